"""Which k, and which of the fourteen structures: every cell fitted, tabulated and ranked.

`search` fits all cells of k × structure together (`cells`) from starts that do not depend on luck: partitions by
model-based agglomeration and by Ward's method, then k-means++ draws. Criteria follow Schwarz's sign, lower is better.
A cell that is collapsed, spurious or degenerate stays in the table with its reason and is never chosen.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix.acceleration import asked
from bayesmix.cells import CellFit, fit_cells
from bayesmix.checkpoints import Checkpoint, fingerprint
from bayesmix.covariance import STRUCTURES, structure_of
from bayesmix.gap import CentreSearch, search_centres
from bayesmix.groups import Cell
from bayesmix.inputs import as_count, as_key, as_name, as_points, as_weights
from bayesmix.partitions import partition
from bayesmix.results import CODE, Fit
from bayesmix.verdict import sentence

if TYPE_CHECKING:
    import pandas

__all__ = ["CRITERIA", "Search", "search"]

# Each lower is better: (-2 log L, parameters p, n, -2 classification log L, entropy, NEC) -> number.
CRITERIA = {
    "bic": "-2 log L + p log n (Schwarz 1978)",
    "aic": "-2 log L + 2 p (Akaike 1974)",
    "aicc": "aic + 2 p (p + 1) / (n - p - 1) (Hurvich & Tsai 1989); infinite where n <= p + 1",
    "icl": "-2 classification log L + p log n (Biernacki, Celeux & Govaert 2000)",
    "icl_entropy": "bic + 2 entropy (Biernacki, Celeux & Govaert 2000)",
    "clc": "-2 log L + 2 entropy (Biernacki & Govaert 1997)",
    "nec": "entropy / (log L(k) - log L(1)), 1 for k = 1 (Celeux & Soromenho 1996; Biernacki et al. 1999)",
}


@dataclass(frozen=True)
class Search:
    """Every cell of a search.

    Attributes:
        cells: the fit of each (n_components, structure).
        criterion: what ranks them, a name of `CRITERIA`.
        reasons: cells that could not be tried, or were not finished before Ctrl-C, and why.
    """

    cells: Mapping[Cell, CellFit]
    criterion: str
    reasons: Mapping[Cell, str]
    _x: np.ndarray = field(repr=False)
    _weight: np.ndarray = field(repr=False)
    _hold: tuple[str, ...] = field(repr=False)
    _max_steps: int = field(repr=False)

    @cached_property
    def table(self) -> pandas.DataFrame:
        """A row per cell, best first; cells that may not be chosen come last.

        Columns: n_components, covariance, log_likelihood, n_parameters, bic, aic, aicc, icl, icl_entropy, clc, nec,
        n_steps, n_agree (starts that reached the same optimum), n_starts, status, clean, reason.
        """
        import pandas

        rows = [self._row(cell, found) for cell, found in self.cells.items()]
        rows += [
            {
                "n_components": k,
                "covariance": name,
                "status": "interrupted" if reason == _INTERRUPTED else "impossible",
                "clean": False,
                "reason": reason,
            }
            for (k, name), reason in self.reasons.items()
        ]
        table = pandas.DataFrame(rows)
        if self.cells:
            table = table.sort_values([self.criterion, "n_parameters"])
        return table.sort_values("clean", ascending=False, kind="stable", ignore_index=True)

    def _row(self, cell: Cell, found: CellFit) -> dict[str, Any]:
        k, n = cell.n_components, float(self._weight.sum())
        mixture = found.mixture
        p = mixture.n_parameters - (k - 1 if "weights" in self._hold else 0)
        deviance = -2 * found.log_likelihood
        one = self.cells.get(Cell(1, cell.covariance))
        gained = math.nan if one is None else found.log_likelihood - one.log_likelihood
        nec = 1.0 if k == 1 else found.entropy / gained if gained > 0 else math.inf
        return {
            "n_components": k,
            "covariance": cell.covariance,
            "log_likelihood": found.log_likelihood,
            "n_parameters": p,
            "bic": deviance + p * math.log(n),
            "aic": deviance + 2 * p,
            "aicc": deviance + 2 * p + 2 * p * (p + 1) / (n - p - 1) if n > p + 1 else math.inf,
            "icl": -2 * found.classification_log_likelihood + p * math.log(n),
            "icl_entropy": deviance + p * math.log(n) + 2 * found.entropy,
            "clc": deviance + 2 * found.entropy,
            "nec": math.nan if one is None and k > 1 else nec,
            "n_steps": found.n_steps,
            "n_agree": found.n_agree,
            "n_starts": found.n_starts,
            "status": found.verdict.name,
            "clean": found.verdict.clean,
            "reason": "" if found.verdict.name in ("converged", "few_rows") else self._status(cell),
        }

    def _status(self, cell: Cell) -> str:
        found = self.cells[cell]
        labels = found.mixture.classify(self._x) if found.verdict.reasons else np.zeros(1, np.int64)
        return sentence(
            found.verdict.name,
            found.verdict.reasons,
            labels,
            max_steps=self._max_steps,
            gain=found.gain,
            columns=found.degenerate,
            structure=cell.covariance,
            k=cell.n_components,
        )

    @property
    def best(self) -> Fit:
        """The clean cell with the lowest criterion, as a `Fit`.

        Raises:
            ValueError: no cell is clean.
        """
        table = self.table
        first = table.iloc[0].to_dict()
        if not first["clean"]:
            raise ValueError(
                "none of the cells is clean, for the reasons in search.table, so none is best; search fewer "
                "clusters, or structures with equal volumes such as 'EEE'"
            )
        return self.fit(first["n_components"], first["covariance"])

    def top(self, n: int = 3) -> pandas.DataFrame:
        """The n best clean cells, with the difference of each from the best."""
        clean = int(np.count_nonzero(self.table["clean"]))
        table = self.table.head(min(as_count(n, "n"), clean)).copy()
        place = list(table.columns).index(self.criterion) + 1
        table.insert(place, "difference", table[self.criterion] - table[self.criterion].min())
        return table

    def fit(self, n_components: int, covariance: str) -> Fit:
        """A cell as a `Fit`.

        Raises:
            ValueError: the search has no such cell, or it could not be tried.
        """
        cell = Cell(as_count(n_components, "n_components"), structure_of(covariance).name)
        if cell not in self.cells:
            why = self.reasons.get(cell, "it was not searched")
            raise ValueError(f"there is no fit of {cell.n_components} clusters {cell.covariance}: {why}")
        found = self.cells[cell]
        return Fit(
            mixture=found.mixture,
            objective=np.array([found.log_likelihood]),
            log_likelihood=found.log_likelihood,
            classification_log_likelihood=found.classification_log_likelihood,
            entropy=found.entropy,
            labels=found.mixture.classify(self._x),
            n_observations=float(self._weight.sum()),
            method="soft",
            n_steps=found.n_steps,
            code=CODE[found.verdict.name],
            status=self._status(cell),
            n_starts=found.n_starts,
            n_agree=found.n_agree,
            n_spurious=found.n_spurious,
            hold=self._hold,
        )

    def merge(self, other: Search) -> Search:
        """Both searches in one; of a cell that both have the clean one stays, or that with the larger likelihood.

        Raises:
            ValueError: the other search is of other data or weights, or with other parts held.
        """
        same = isinstance(other, Search) and self._hold == other._hold
        if not (same and np.array_equal(self._x, other._x) and np.array_equal(self._weight, other._weight)):
            raise ValueError("only searches on the same data, weights and held parts can be merged")
        cells = dict(self.cells)
        for cell, found in other.cells.items():
            if cell not in cells or _rank(found) > _rank(cells[cell]):
                cells[cell] = found
        reasons = {cell: why for cell, why in {**self.reasons, **other.reasons}.items() if cell not in cells}
        return replace(self, cells=cells, reasons=reasons)

    def plot(self, *, ax: Any = None) -> Any:
        """The criterion against k, a curve per structure; see `plots.plot_search`."""
        from bayesmix.plots import plot_search

        return plot_search(self, ax=ax)

    def __repr__(self) -> str:
        k = sorted({cell.n_components for cell in self.cells})
        names = [name for name in STRUCTURES if any(cell.covariance == name for cell in self.cells)]
        clean = sum(found.verdict.clean for found in self.cells.values())
        return f"Search(n_components={k}, covariance={names}, {clean} of {len(self.cells)} cells clean)"


_INTERRUPTED = "the search was interrupted before this cell was finished"


def _rank(found: CellFit) -> tuple[bool, float]:
    return found.verdict.clean, found.log_likelihood


def search(
    x: Any,
    *,
    n_components: int | Iterable[int] = range(1, 10),
    covariance: str | Iterable[str] = "all",
    n_starts: int = 4,
    criterion: str | None = None,
    sample_weight: Any = None,
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
            scikit-learn's words, or "kmeans", which tabulates inertia, silhouette and the gap statistic instead.
        n_starts: of each cell: model-based agglomeration (before it the quantiles, for one feature), Ward's
            partition, then k-means++ draws; at least ten for "kmeans".
        criterion: "bic" by default, "aic", "aicc", "icl", "icl_entropy", "clc" or "nec"; for "kmeans" "gap" (by
            default) or "silhouette".
        sample_weight: (n,); an integer weight is repetition, zero is absence.
        hold: "weights" for equal proportions.
        key: seeds the draws.
        tol: as in `fit`: a cell ends when less than this many nats are left to gain.
        max_steps: of a cell, about.
        accelerate: as in `fit`; by default where the data are large enough for it to be worth compiling.
        checkpoint: a file that says how far the search has come, written as it goes on; the same call with the same
            file goes on from there, to the same result. Not for "kmeans".

    Returns:
        A `Search`: `.table`, `.best`, `.top(n)`, `.fit(k, structure)`, `.plot()`, `.merge(other)`; a `CentreSearch`
        with the same for "kmeans". More clusters than rows are listed with that reason. After Ctrl-C, with
        a warning, the cells that are finished; the others are listed with that reason.

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
    points, names = as_points(x)
    d = points.shape[1]
    weight = as_weights(sample_weight, len(points))
    counts = _counts(n_components)
    n_starts = as_count(n_starts, "n_starts")
    if isinstance(covariance, str) and covariance == "kmeans":
        if checkpoint is not None:
            raise ValueError("checkpoint is for searches of mixtures; one over k-means starts again")
        return search_centres(
            points, weight, counts, n_starts=max(n_starts, 10), criterion=criterion, key=key
        )
    chosen = as_name("bic" if criterion is None else criterion, "criterion", CRITERIA)
    hold = (hold,) if isinstance(hold, str) else tuple(hold)
    for name in hold:
        as_name(name, "hold", ("weights",))
    if not (isinstance(tol, int | float | np.number) and 0 <= tol < np.inf):
        raise ValueError(f"tol must be a number of nats, zero or more; it is {tol!r}")
    max_steps = as_count(max_steps, "max_steps")
    wanted = asked(accelerate, "soft", tol)
    if isinstance(covariance, str) and covariance == "all":
        structures = [row.name for row in STRUCTURES.values() if (row.n_features == 1) == (d == 1)]
    else:
        given = [covariance] if isinstance(covariance, str) else list(covariance)
        structures = list(dict.fromkeys(structure_of(name, d).name for name in given))
    keep = weight > 0
    rows = points[keep]
    cells = [Cell(k, name) for name in structures for k in counts]
    fitted = [cell for cell in cells if cell.n_components <= len(rows)]
    reasons = {
        cell: f"x has {len(rows)} rows, fewer than {cell.n_components} clusters"
        for cell in cells
        if cell not in fitted
    }
    found: dict[Cell, CellFit] = {}
    if fitted:
        from tqdm import tqdm

        with tqdm(total=len(fitted), desc="search", unit=" cells", delay=2, disable=None, leave=False) as bar:

            def progress(cell: Cell) -> None:
                bar.set_description(f"{cell.covariance}, {cell.n_components}", refresh=False)
                bar.update()

            kept = Checkpoint.at(
                checkpoint,
                "search",
                {
                    "x": fingerprint(points),
                    "sample_weight": fingerprint(weight),
                    "n_components": counts,
                    "covariance": structures,
                    "n_starts": n_starts,
                    "hold": list(hold),
                    "key": np.asarray(jax.random.key_data(as_key(key))).tolist(),
                    "tol": float(tol),
                    "max_steps": max_steps,
                    "accelerate": wanted,
                },
            )
            within = [k for k in counts if k <= len(rows)]
            starts = partition(rows, weight[keep], within, n_starts, key)
            fits, interrupted = fit_cells(
                rows,
                weight[keep],
                fitted,
                starts,
                hold=hold,
                tol=tol,
                max_steps=max_steps,
                accelerate=wanted,
                progress=progress,
                checkpoint=kept,
            )
            found = {
                cell: replace(fits[cell], mixture=replace(fits[cell].mixture, feature_names=names))
                for cell in fitted
                if cell in fits
            }
        if interrupted:
            reasons |= {cell: _INTERRUPTED for cell in fitted if cell not in found}
            warnings.warn(
                f"the search was interrupted: {len(found)} of {len(fitted)} cells are finished"
                + ("" if kept is None else f"; the same call goes on from {str(kept.path)!r}"),
                stacklevel=2,
            )
    return Search(found, chosen, reasons, points, weight, hold, max_steps)


def _counts(n_components: int | Iterable[int]) -> list[int]:
    given = [n_components] if isinstance(n_components, int | np.integer) else list(n_components)
    counts = sorted({as_count(k, "n_components") for k in given})
    if not counts:
        raise ValueError("n_components is empty; pass numbers of clusters such as range(1, 10)")
    return counts
