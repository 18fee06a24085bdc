"""A problem: data that passed the door, in the units of the loop, and what a run needs beside them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from bayesmix.covariance import Covariance, Structure, structure_of
from bayesmix.devices import blas_on_one_thread
from bayesmix.inputs import Gaps, as_labels, as_points, as_weights
from bayesmix.labels import exchangeable, unnamed
from bayesmix.loop import Rules
from bayesmix.missing import completed
from bayesmix.mixture import GaussianMixture
from bayesmix.observations import Observations, observe
from bayesmix.penalty import penalty, to_data_units
from bayesmix.prior import ConjugatePrior
from bayesmix.results import Fit
from bayesmix.spurious import spacing
from bayesmix.units import Rows, Units, standardize

__all__ = ["Problem", "inside", "prepare", "problem_of"]


class Problem(NamedTuple):
    """Data and the rules of a run; rows of weight zero are absent from `x`."""

    names: tuple[str, ...]
    points: np.ndarray  # all rows, in the data's units; of missing cells what one Gaussian expects
    weight: np.ndarray  # of all rows
    keep: np.ndarray  # which rows have positive weight
    x: Any  # those rows, in loop units: `Rows`, or an array
    w: np.ndarray
    grid: np.ndarray  # spacing of each column's values in loop units, zero where it is on no grid
    units: Units
    structure: Structure
    observations: Observations
    rules: Rules
    n_components: int
    accelerate: bool | None = False  # EM; None where that is worth compiling
    batch: int | None = None  # rows of a step, of online EM
    gaps: Gaps | None = None  # which cells of all rows are known, where some are missing
    given: np.ndarray | None = None  # clusters of all rows, -1 where they are not known; `None` where none is

    def adding(self, variance: float) -> Problem:
        """The same, where each M-step adds a variance, in squared units of the data, to every diagonal."""
        matrix = variance * np.diag(self.units.scale**-2.0)[None]
        asked = self.structure.form.sparse(matrix)
        return self._replace(rules=self.rules._replace(floor=self.rules.floor._replace(asked=asked)))

    @property
    def came(self) -> np.ndarray:
        """All rows as they came, in the data's units: NaN where a cell is missing."""
        return self.points if self.gaps is None else np.where(self.gaps.seen, self.points, np.nan)

    @property
    def seen(self) -> np.ndarray | None:
        """Which cells of the rows of `x` are known, or `None`."""
        return None if self.gaps is None else self.gaps.seen[self.keep]

    @property
    def told(self) -> np.ndarray | None:
        """The clusters of the rows of `x`, -1 where they are not known, or `None`."""
        return None if self.given is None else self.given[self.keep]

    @property
    def may(self) -> np.ndarray | None:
        """Which cluster may take which label (k, k): one that rows name its own alone; `None` if none does."""
        return None if self.given is None else exchangeable(unnamed(self.given, self.n_components), 1.0)

    @property
    def moved(self) -> float:
        """What to add to objectives in loop units to have those of the data's own units."""
        own = 0.0
        if self.rules.penalty is not None:
            own = to_data_units(self.units, self.structure, self.n_components)
        if self.gaps is None:
            return own + self.units.log_volume * float(self.w.sum())
        return own - float(self.w @ self.seen @ np.log(self.units.scale))

    def without_gaps(self, what: str, instead: str) -> None:
        """Raise where cells are missing."""
        if self.gaps is not None:
            count, n = int((~self.gaps.seen.all(axis=1)).sum()), len(self.points)
            raise ValueError(
                f"{what} needs rows without missing cells, and {count} of {n} lack some: {instead}"
            )

    def whole(self, why: str, instead: str) -> None:
        """Raise unless weights are whole numbers."""
        broken = self.weight != np.round(self.weight)
        if broken.any():
            row = int(np.argmax(broken))
            raise ValueError(
                f"{why}, so sample_weight must be whole numbers; row {row} has {self.weight[row]}: {instead}"
            )


def prepare(
    n_components: int,
    covariance: str,
    x: Any,
    sample_weight: Any,
    tol: float,
    prior: ConjugatePrior | None = None,
    labels: Any = None,
) -> Problem:
    """Check the data against the question, centre and scale them, and lay them out in blocks.

    Raises:
        ValueError: bad data or labels, or fewer rows than clusters.
    """
    points, names, gaps = as_points(x)
    structure = structure_of(covariance, points.shape[1])
    weight = as_weights(sample_weight, points.shape[0])
    keep = weight > 0
    rows, w = (points, weight) if keep.all() else (points[keep], weight[keep])
    if rows.shape[0] < n_components:
        raise ValueError(
            f"x has {rows.shape[0]} rows{'' if keep.all() else ' of positive weight'}, fewer than "
            f"n_components={n_components}; ask for fewer clusters"
        )
    given = as_labels(labels, n_components, keep)
    seen = None if gaps is None else gaps.seen[keep]
    with blas_on_one_thread(rows.size):
        units = standardize(rows, w, names, structure, None if gaps is None else gaps.hidden)
        scaled = Rows(rows, units)
        told = None if given is None else given[keep]
        observations = observe(scaled, w, structure, given=told, seen=seen)
    known = [slice(None)] * len(names) if seen is None else seen.T
    grid = np.array([spacing(column[own], w[own]) for column, own in zip(rows.T, known)]) / units.scale
    summed = observations.x.dtype
    # Points err in the data's precision, each on its own; their sum does in float64.
    own, double = (4 * float(np.finfo(dtype).eps) for dtype in (summed, np.float64))
    rules = Rules(
        units.floor.summed_in(summed),
        float(tol),
        max(own / math.sqrt(len(w)), double),
        float(w.sum() * points.shape[1]),
        None if prior is None else penalty(prior, units, structure, n_components),
    )
    return Problem(
        names,
        points,
        weight,
        keep,
        scaled,
        w,
        grid,
        units,
        structure,
        observations,
        rules,
        n_components,
        gaps=gaps,
        given=given,
    )


def problem_of(fit: Any, x: Any, sample_weight: Any, tol: float = 1e-4) -> Problem:
    """The problem that a fit solved, or an error that says why these are not its data."""
    if not isinstance(fit, Fit):
        raise ValueError(f"fit must be what bm.fit returned; it is {type(fit).__name__}")
    mixture = fit.mixture
    points = as_points(
        x, n_features=mixture.n_features, known=mixture.feature_names, missing=fit.n_missing > 0 or None
    )
    if fit.n_missing:
        points = completed(points, as_weights(sample_weight, len(points.values)))
    labels = fit.known_labels
    if labels is not None and len(points.values) != len(labels):
        raise ValueError(
            f"x has {len(points.values)} rows; the fit was told the clusters of {len(labels)}: pass the same data"
        )
    return prepare(
        mixture.n_components, mixture.structure, points, sample_weight, tol, fit.prior, labels=labels
    )


def inside(problem: Problem, mixture: GaussianMixture) -> GaussianMixture:
    """Parameters in loop units, float64."""
    values = Covariance(np.asarray(mixture.covariance.values, np.float64), mixture.structure)
    wide = GaussianMixture(
        np.asarray(mixture.weights, np.float64), np.asarray(mixture.means, np.float64), values
    )
    return problem.units.enter(wide)
