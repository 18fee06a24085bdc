"""Cells of a search tabulated and ranked: the criteria, and which cell is best.

Criteria follow Schwarz's sign, lower is better. A cell that is collapsed, spurious or degenerate stays in the table
with its reason and is never chosen; one that reached max_steps may be, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.covariance import STRUCTURES, structure_of
from bayesmix.groups import Cell
from bayesmix.inputs import as_count
from bayesmix.mixture import GaussianMixture
from bayesmix.outcomes import CellFit
from bayesmix.results import Fit, criteria
from bayesmix.status import CODE, sentence

if TYPE_CHECKING:
    import pandas

__all__ = ["CRITERIA", "INTERRUPTED", "Search"]

# What may rank cells, each better if lower, and its formula in words: `results.criteria`, for NEC `Search._row`.
CRITERIA = {
    "bic": "-2 log L + p log n (Schwarz 1978)",
    "aic": "-2 log L + 2 p (Akaike 1974)",
    "aicc": "aic + 2 p (p + 1) / (n - p - 1) (Hurvich & Tsai 1989); infinite where n <= p + 1",
    "icl": "-2 classification log L + p log n (Biernacki, Celeux & Govaert 2000)",
    "icl_entropy": "bic + 2 entropy (Biernacki, Celeux & Govaert 2000)",
    "clc": "-2 log L + 2 entropy (Biernacki & Govaert 1997)",
    "nec": "entropy / (log L(k) - log L(1)), 1 for k = 1 (Celeux & Soromenho 1996; Biernacki et al. 1999)",
}

INTERRUPTED = "the search was interrupted before this cell was finished"


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
    _given: np.ndarray | None = field(repr=False)  # clusters of the rows, -1 where they are not known
    _hold: tuple[str, ...] = field(repr=False)

    @cached_property
    def table(self) -> pandas.DataFrame:
        """A row per cell, best first; cells that may not be chosen come last.

        Columns: n_components, covariance, log_likelihood, n_parameters, bic, aic, aicc, icl, icl_entropy, clc, nec,
        n_steps, n_agree (starts that reached the same optimum), n_starts, status, clean, reason.
        """
        import pandas

        rows = self._rows + [
            {
                "n_components": k,
                "covariance": name,
                "status": "interrupted" if reason == INTERRUPTED else "impossible",
                "clean": False,
                "reason": reason,
            }
            for (k, name), reason in self.reasons.items()
        ]
        table = pandas.DataFrame(rows)
        if self.cells:
            table = table.sort_values([self.criterion, "n_parameters"])
        return table.sort_values("clean", ascending=False, kind="stable", ignore_index=True)

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return [self._row(cell, found) for cell, found in self.cells.items()]

    def _row(self, cell: Cell, found: CellFit) -> dict[str, Any]:
        k, n = cell.n_components, float(self._weight.sum())
        mixture = found.mixture
        p = mixture.n_parameters - (k - 1 if "weights" in self._hold else 0)
        one = self.cells.get(Cell(1, cell.covariance))
        gained = math.nan if one is None else found.log_likelihood - one.log_likelihood
        nec = 1.0 if k == 1 else found.entropy / gained if gained > 0 else math.inf
        return {
            "n_components": k,
            "covariance": cell.covariance,
            "log_likelihood": found.log_likelihood,
            "n_parameters": p,
            **criteria(found.log_likelihood, found.classification_log_likelihood, found.entropy, p, n),
            "nec": math.nan if one is None and k > 1 else nec,
            "n_steps": found.n_steps,
            "n_agree": found.n_agree,
            "n_starts": found.n_starts,
            "status": found.verdict.name,
            "clean": found.verdict.clean,
            "reason": "" if found.verdict.converged else self._status(cell),
        }

    def _status(self, cell: Cell) -> str:
        found = self.cells[cell]
        labels = self._labels(found.mixture) if found.verdict.reasons else np.zeros(1, np.int64)
        return sentence(
            found.verdict.name,
            found.verdict.reasons,
            labels,
            max_steps=found.max_steps,
            gain=found.gain,
            columns=found.degenerate,
            structure=cell.covariance,
            k=cell.n_components,
        )

    def _labels(self, mixture: GaussianMixture) -> np.ndarray:
        labels, given = mixture.classify(self._x, missing="at_random"), self._given
        return labels if given is None else np.where(given >= 0, given, labels)

    @property
    def best(self) -> Fit:
        """The clean cell with the lowest criterion, as a `Fit`; if it reached max_steps, its status says so.

        Raises:
            ValueError: no cell is clean.
        """
        clean = [row for row in self._rows if row["clean"]]
        if not clean:
            raise ValueError(
                "none of the cells is clean, for the reasons in search.table, so none is best; search fewer "
                "clusters, or structures with equal volumes such as 'EEE'"
            )
        first = min(
            clean, key=lambda row: (math.isnan(row[self.criterion]), row[self.criterion], row["n_parameters"])
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
            labels=self._labels(found.mixture),
            n_observations=float(self._weight.sum()),
            method="soft",
            n_steps=found.n_steps,
            code=CODE[found.verdict.name],
            status=self._status(cell),
            n_starts=found.n_starts,
            n_agree=found.n_agree,
            n_spurious=found.n_spurious,
            hold=self._hold,
            known_labels=self._given,
            n_missing=int(np.isnan(self._x).sum()),
        )

    def merge(self, other: Search) -> Search:
        """Both searches in one; of a cell that both have the clean one stays, or that with the larger likelihood.

        Raises:
            ValueError: the other search is of other data, weights or labels, or with other parts held.
        """
        same = isinstance(other, Search) and self._hold == other._hold
        pairs: list[tuple[Any, Any]] = [
            (getattr(self, name), getattr(other, name, None)) for name in ("_x", "_weight", "_given")
        ]
        if not (same and all(_same(*pair) for pair in pairs)):
            raise ValueError("only searches on the same data, weights, labels and held parts can be merged")
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


def _same(a: Any, b: Any) -> bool:
    """Whether two arrays, or nothing twice, are equal; missing cells are."""
    return a is b if a is None or b is None else np.array_equal(a, b, equal_nan=True)


def _rank(found: CellFit) -> tuple[bool, float]:
    return found.verdict.clean, found.log_likelihood
