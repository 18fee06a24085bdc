"""Which k, and which of the fourteen structures: every cell fitted, then tabulated and ranked (`ranking`).

`search` fits all cells of k × structure together (`cells`) from starts that do not depend on luck: partitions by
model-based agglomeration and by Ward's method, then k-means++ draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bayesmix.acceleration import asked
from bayesmix.cells import fit_cells
from bayesmix.checkpoints import Checkpoint, fingerprint
from bayesmix.covariance import STRUCTURES, structure_of
from bayesmix.devices import blas_on_one_thread
from bayesmix.gap import CentreSearch, search_centres
from bayesmix.groups import Cell
from bayesmix.inputs import (
    Points,
    as_count,
    as_labels,
    as_list,
    as_name,
    as_names,
    as_points,
    as_tol,
    as_weights,
)
from bayesmix.keys import as_words
from bayesmix.missing import allowed, completed
from bayesmix.outcomes import CellFit
from bayesmix.partitions import partition
from bayesmix.progress import Progress
from bayesmix.ranking import CRITERIA, INTERRUPTED, Search

__all__ = ["search"]


def search(
    x: Any,
    *,
    n_components: int | Iterable[int] = range(1, 10),
    covariance: str | Iterable[str] = "all",
    n_starts: int = 4,
    criterion: str | None = None,
    sample_weight: Any = None,
    labels: Any = None,
    missing: str | None = None,
    hold: Collection[str] = (),
    key: Any = 0,
    tol: float = 1e-3,
    max_steps: int = 10_000,
    accelerate: bool | None = None,
    checkpoint: Any = None,
) -> Search | CentreSearch:
    """Fit every number of clusters with every structure, and rank them.

    Args:
        x: data (n, d), or (n,) for one feature.
        n_components: the numbers of clusters.
        covariance: "all" (the 14 structures; E and V for one feature), structures in mclust's letters or
            scikit-learn's words, or "kmeans", which tabulates inertia, silhouette and the gap statistic instead, and
            has no use for `hold`, `tol`, `max_steps` and `accelerate`.
        n_starts: of each cell: model-based agglomeration (before it the quantiles, for one feature), Ward's
            partition, then k-means++ draws; at least ten for "kmeans".
        criterion: "bic" by default, "aic", "aicc", "icl", "icl_entropy", "clc" or "nec", which compares with one
            cluster, so that k = 1 must be searched too; for "kmeans" "gap" (by default) or "silhouette".
        sample_weight: (n,); an integer weight is repetition, zero is absence.
        labels: (n,) clusters that are known, -1 where they are not, as in `fit`. Cells with fewer clusters than they
            name are listed with that reason.
        missing: "at_random" to integrate missing cells out, as in `fit`; not for "kmeans".
        hold: "weights" for equal proportions.
        key: seeds the draws.
        tol: as in `fit`: a cell ends when less than this many nats are left to gain.
        max_steps: of a cell, about; one that reaches it is ranked with the others, and its status says so.
        accelerate: as in `fit`, once steps gain little; by default where there are more than a few cells, or the data
            are large enough for it to be worth compiling.
        checkpoint: a file that says how far the search has come, written as it goes on; the same call with the same
            file goes on from there, to the same result. Not for "kmeans".

    Returns:
        A `Search`: `.table`, `.best`, `.top(n)`, `.fit(k, structure)`, `.plot()`, `.merge(other)`; a `CentreSearch`
        for "kmeans", with the same but `.merge`. More clusters than rows are listed with that reason. After Ctrl-C,
        with a warning, the cells that are finished; the others are listed with that reason.

    Raises:
        ValueError: bad data or options, or a checkpoint of a search of something else.
        KeyboardInterrupt: Ctrl-C before any cell was finished, or twice.

    References:
        Fraley & Raftery (2002), Model-based clustering, discriminant analysis and density estimation, JASA 97.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> found = bm.search(x, n_components=[2, 3], covariance=["EEE", "VVV"])
        >>> found.best.mixture.structure, found.best.mixture.n_components
        ('EEE', 3)
    """
    may = allowed(missing)
    x = as_points(x, missing=may)
    points, names, _ = x
    d = points.shape[1]
    weight = as_weights(sample_weight, len(points))
    x = completed(x, weight) if may else x
    counts = _counts(n_components)
    n_starts = as_count(n_starts, "n_starts")
    if isinstance(covariance, str) and covariance == "kmeans":
        if checkpoint is not None:
            raise ValueError("checkpoint is for searches of mixtures; one over k-means starts again")
        if as_list(hold):
            raise ValueError(
                f"hold is for searches of mixtures; of k-means nothing is held: leave out {hold!r}"
            )
        if x.gaps is not None:
            raise ValueError(
                "missing='at_random' is for searches of mixtures; k-means needs rows without missing cells"
            )
        if labels is not None:
            raise ValueError("labels are for searches of mixtures; k-means knows none: leave them out")
        return search_centres(x, weight, counts, n_starts=max(n_starts, 10), criterion=criterion, key=key)
    chosen = as_name("bic" if criterion is None else criterion, "criterion", CRITERIA)
    keep = weight > 0
    given = as_labels(labels, counts[-1], keep)
    named = 0 if given is None else 1 + int(given.max())
    if chosen == "nec" and (1 not in counts or named > 1):
        raise ValueError(
            f"criterion='nec' compares with one cluster, so n_components must have 1; it is {counts}"
            + (f", and labels name {named} clusters" if named > 1 else "")
        )
    hold = as_names(hold, "hold", ("weights",))
    tol = as_tol(tol)
    max_steps = as_count(max_steps, "max_steps")
    wanted = asked(accelerate, "soft", tol)
    if isinstance(covariance, str) and covariance == "all":
        structures = [row.name for row in STRUCTURES.values() if (row.n_features == 1) == (d == 1)]
    else:
        structures = list(dict.fromkeys(structure_of(name, d).name for name in as_list(covariance)))
        if not structures:
            raise ValueError("covariance is empty; pass structures such as ['EEE', 'VVV'], or 'all'")
    rows, gaps = x.values[keep], None if x.gaps is None else x.gaps.taken(keep)
    cells = [Cell(k, name) for name in structures for k in counts]
    fitted = [cell for cell in cells if named <= cell.n_components <= len(rows)]
    reasons = {
        cell: f"x has {len(rows)} rows, fewer than {cell.n_components} clusters"
        if cell.n_components >= named
        else f"labels name cluster {named - 1}, so there are {named} clusters at least"
        for cell in cells
        if cell not in fitted
    }
    told = None if given is None else given[keep]
    found: dict[Cell, CellFit] = {}
    if fitted:
        with Progress("search", "cells", len(fitted)) as bar:

            def progress(cell: Cell) -> None:
                bar.update(title=f"{cell.covariance}, {cell.n_components}")

            kept = Checkpoint.at(
                checkpoint,
                "search",
                lambda: {
                    "x": fingerprint(points),
                    "sample_weight": fingerprint(weight),
                    **({} if given is None else {"labels": fingerprint(given)}),
                    "n_components": counts,
                    "covariance": structures,
                    "n_starts": n_starts,
                    "hold": list(hold),
                    "key": as_words(key).tolist(),
                    "tol": tol,
                    "max_steps": max_steps,
                    "accelerate": wanted,
                },
            )
            within = [k for k in counts if named <= k <= len(rows)]
            with blas_on_one_thread(), ThreadPoolExecutor(1) as beside:
                fits, interrupted = fit_cells(
                    Points(rows, names, gaps),
                    weight[keep],
                    fitted,
                    beside.submit(partition, rows, weight[keep], within, n_starts, key, told),
                    n_starts=n_starts,
                    hold=hold,
                    tol=tol,
                    max_steps=max_steps,
                    accelerate=wanted,
                    progress=progress,
                    checkpoint=kept,
                    given=told,
                )
            found = {cell: fits[cell] for cell in fitted if cell in fits}
        if interrupted:
            reasons |= {cell: INTERRUPTED for cell in fitted if cell not in found}
            warnings.warn(
                f"the search was interrupted: {len(found)} of {len(fitted)} cells are finished"
                + ("" if kept is None else f"; the same call goes on from {str(kept.path)!r}"),
                stacklevel=2,
            )
    return Search(found, chosen, reasons, points, weight, given, hold)


def _counts(n_components: int | Iterable[int]) -> list[int]:
    counts = sorted({as_count(k, "n_components") for k in as_list(n_components)})
    if not counts:
        raise ValueError("n_components is empty; pass numbers of clusters such as range(1, 10)")
    return counts
