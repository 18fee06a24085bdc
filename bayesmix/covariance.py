"""How the covariances of the clusters are stored, constrained and estimated: the table `STRUCTURES`.

Celeux & Govaert's family writes each covariance as Σ_k = λ_k D_k A_k D_kᵀ: volume, shape, orientation.
mclust's three letters say of each in turn whether it is Equal over the clusters, Varying, or the
Identity. A structure is a row: one of three ways to store Σ (`storage.STORAGES`), a function that estimates it
(its M-step), and what else differs. Adding a structure is one function and one row.

References:
    Celeux & Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28, table 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix import estimate
from bayesmix.inputs import as_floats, is_traced
from bayesmix.storage import STORAGES, WRITTEN_OUT, Storage

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = [
    "ALIASES",
    "STRUCTURES",
    "Covariance",
    "Structure",
    "covariance_values",
    "structure_of",
]


class Structure(NamedTuple):
    """One row of `STRUCTURES`.

    Attributes:
        name: mclust's letters.
        storage: which row of `STORAGES`.
        estimate: the M-step, (count (k,), scatter in storage (k|1, ...), previous values) -> values.
            An iterative M-step starts from the previous values.
        by_column: the family is closed under rescaling each column by itself, not only all by one number.
        n_features: the only number of features that it is for, if there is one.
    """

    name: str
    storage: str
    estimate: Callable[[Array, Array, Array], Array]
    by_column: bool
    n_features: int | None = None

    @property
    def letters(self) -> str:
        """Volume, shape, orientation, each Equal, Varying or the Identity."""
        return self.name if len(self.name) == 3 else self.name + "II"

    @property
    def form(self) -> Storage:
        return STORAGES[self.storage]

    @property
    def shared(self) -> bool:
        """One Σ for all clusters, so logits are linear in x and only the total scatter is needed."""
        return "V" not in self.letters

    @property
    def constrained(self) -> bool:
        """Clusters have something in common and something of their own, so no site of one cluster makes it."""
        return not self.shared and "E" in self.letters

    @property
    def unbounded(self) -> bool:
        """Volumes vary, so a cluster that shrinks to a point drives the likelihood to infinity."""
        return self.letters[0] == "V"

    @property
    def kept_by_parts(self) -> bool:
        """Whether some features of such covariances, alone or given the others, are of the structure again.

        So it is where each Σ_k is a multiple of one matrix, and where there is no constraint.
        """
        return self.letters[1:] in ("II", "EI", "EE") or self.name == self.general

    @property
    def general(self) -> str:
        """The structure without constraints of this storage, or the one that is shared."""
        letter = "E" if self.shared else "V"
        return {"full": 3 * letter, "diagonal": 2 * letter + "I", "spherical": letter + "II"}[self.storage]

    def n_moments(self, d: int) -> int:
        """How many numbers a pass takes of a point for each cluster: T(x), without products where Σ is shared."""
        return 1 + d + (0 if self.shared else sum(self.form.sizes(d)))

    def written_out(self, d: int, family: bool = False) -> bool:
        """Whether its M-step, or with `family` that of any structure of the storage, calls nothing of LAPACK."""
        axes = family or self.constrained  # which have a formula for two features
        return self.storage != "full" or d <= (2 if axes else WRITTEN_OUT)

    def n_parameters(self, k: int, d: int) -> int:
        """Free parameters of the covariances: a volume, d - 1 ratios of axes and d (d - 1) / 2 angles, each
        once where it is equal and k times where it varies.
        """
        times = {"E": 1, "V": k, "I": 0}
        volume, shape, orientation = (times[letter] for letter in self.letters)
        return volume + shape * (d - 1) + orientation * d * (d - 1) // 2


STRUCTURES: dict[str, Structure] = {
    row.name: row
    for row in (
        Structure("E", "spherical", estimate.pooled, False, 1),
        Structure("V", "spherical", estimate.each, False, 1),
        Structure("EII", "spherical", estimate.pooled, False),
        Structure("VII", "spherical", estimate.each, False),
        Structure("EEI", "diagonal", estimate.pooled, True),
        Structure("VEI", "diagonal", estimate.vei, True),
        Structure("EVI", "diagonal", estimate.evi, True),
        Structure("VVI", "diagonal", estimate.each, True),
        Structure("EEE", "full", estimate.pooled, True),
        Structure("VEE", "full", estimate.vee, True),
        Structure("EVE", "full", estimate.eve, False),
        Structure("VVE", "full", estimate.vve, False),
        Structure("EEV", "full", estimate.eev, False),
        Structure("VEV", "full", estimate.vev, False),
        Structure("EVV", "full", estimate.evv, True),
        Structure("VVV", "full", estimate.each, True),
    )
}

ALIASES = {"full": "VVV", "tied": "EEE", "diag": "VVI", "spherical": "VII"}


def structure_of(covariance: Any, n_features: int | None = None) -> Structure:
    """The row for mclust's letters or scikit-learn's word.

    Raises:
        ValueError: no such structure, or one that is for another number of features.
    """
    name = ALIASES.get(covariance, covariance) if isinstance(covariance, str) else covariance
    if not isinstance(name, str) or name not in STRUCTURES:
        known = ", ".join([*STRUCTURES, *ALIASES])
        raise ValueError(f"covariance must be one of {known}; it is {covariance!r}")
    row = STRUCTURES[name]
    if n_features is not None and row.n_features not in (None, n_features):
        raise ValueError(
            f"covariance {name!r} is for {row.n_features} feature, and the data have {n_features}; "
            f"use {name + 'II'!r} or another three-letter structure"
        )
    return row


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Covariance:
    """Covariances in their structure's storage: `values` (k|1, d, d), (k|1, d) or (k|1,)."""

    values: Any
    structure: str = field(metadata={"static": True})

    @property
    def row(self) -> Structure:
        return STRUCTURES[self.structure]

    @property
    def storage(self) -> Storage:
        return STORAGES[self.row.storage]


def covariance_values(covariances: Any, row: Structure, k: int, d: int) -> Any:
    """Covariances in the row's storage, from dense matrices (k, d, d) or from the storage itself.

    Values are checked unless they are traced, where only shapes can be.

    Raises:
        ValueError: shapes that do not fit, a matrix that is not symmetric, not positive definite or not of the
            structure.
    """
    storage = STORAGES[row.storage]
    given = jnp.asarray(covariances) if is_traced(covariances) else as_floats(covariances, "covariances")
    if d == 1 and given.shape == (k,):
        given = given[:, None, None]
    leading = 1 if row.shared else k
    stored = (leading,) + (d,) * storage.axes
    if given.shape == (k, d, d):
        values = storage.sparse(given)[:leading]
    elif given.shape == stored or (row.shared and given.shape == stored[1:]):
        values = given.reshape(stored)
    else:
        raise ValueError(
            f"covariances have shape {given.shape}; {row.name} with {k} clusters and {d} features takes "
            + " or ".join(map(str, dict.fromkeys([(k, d, d), stored, *([(k,)] if d == 1 else [])])))
        )
    if isinstance(given, np.ndarray):
        _check(given, np.broadcast_to(storage.dense(values, d), (k, d, d)), row)
    return values


def _check(given: np.ndarray, dense: np.ndarray, row: Structure) -> None:
    tolerance = 1e-6 if dense.dtype == np.float64 else 1e-3
    given, dense = given.astype(np.float64), dense.astype(np.float64)
    variances = np.diagonal(dense, axis1=1, axis2=2)
    for index in np.flatnonzero((variances <= 0).any(axis=1)):
        raise ValueError(
            f"covariance {index} is not positive definite, as a variance is not positive: {dense[index].tolist()}"
        )
    # Whatever the units of the features.
    deviations = np.sqrt(variances)
    largest = deviations.max(axis=0)
    unit = np.outer(largest, largest)
    if given.shape == dense.shape and not np.allclose(given / unit, dense / unit, rtol=1e-6, atol=1e-9):
        raise ValueError(
            f"covariances are not of the structure {row.name}: as {row.name} they would be {dense.tolist()}"
        )
    correlations = dense / (deviations[:, :, None] * deviations[:, None])
    for index, matrix in enumerate(correlations):
        if np.abs(matrix - matrix.T).max() > 1e-6:
            raise ValueError(f"covariance {index} is not symmetric: {dense[index].tolist()}")
        lowest = np.linalg.eigvalsh(matrix)[0]
        if lowest <= 0:
            raise ValueError(
                f"covariance {index} is not positive definite (smallest eigenvalue {lowest:.3g} of its correlations): "
                f"{dense[index].tolist()}"
            )
    logs = np.linalg.slogdet(correlations)[1] + 2 * np.log(deviations).sum(axis=1)
    differ = _unequal(dense, np.exp(logs / dense.shape[-1]), row, tolerance)
    if differ:
        raise ValueError(
            f"covariances are not of the structure {row.name}, which has equal {differ}: {dense.tolist()}"
        )


def _unequal(dense: np.ndarray, volumes: np.ndarray, row: Structure, tolerance: float) -> str:
    """What the structure says is equal over the clusters and is not; empty where all is well."""
    volume, shape, orientation = row.letters
    d = dense.shape[-1]
    unit = dense / volumes[:, None, None]
    shapes = np.linalg.eigvalsh(unit) if orientation != "I" else np.diagonal(unit, axis1=1, axis2=2)
    if volume == "E" and np.ptp(volumes) > tolerance * volumes.max():
        return f"volumes, |Σ|^(1/{d}), but they are {volumes.tolist()}"
    if shape == "E" and (np.ptp(shapes, axis=0) > tolerance * shapes.max()).any():
        return f"shapes, but the normalised eigenvalues are {shapes.tolist()}"
    largest = np.sqrt(np.diagonal(unit, axis1=1, axis2=2).max(axis=0))
    if shape == orientation == "E" and (np.ptp(unit, axis=0) > tolerance * np.outer(largest, largest)).any():
        return "shapes and orientations, but the matrices over their volumes differ"
    if orientation == "E" and d > 1:
        products = unit[:, None] @ unit[None]
        size = np.abs(unit).max(axis=(1, 2))
        apart = np.abs(products - np.swapaxes(products, -1, -2)).max(axis=(2, 3)) / np.outer(size, size)
        if apart.max() > tolerance:
            return "orientations, but these matrices have no common axes"
    return ""
