"""What is believed before the data: Dirichlet weights, and a normal–inverse-Wishart for each cluster.

    weights         ~ Dirichlet(concentration)
    Σ_k             ~ InverseWishart(degrees_of_freedom, scale)             full storage
    σ²_k, each cell ~ InverseGamma(degrees_of_freedom / 2, scale / 2)       diagonal and spherical storage
    means_k | Σ_k   ~ Normal(mean, Σ_k / mean_count)

A tied structure draws its one Σ once. This is the conjugate prior in the convention of Fraley & Raftery,
whose data-scaled defaults `weak_prior` computes; any other prior is a NumPyro program (`MixtureModel`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bayesmix.covariance import STRUCTURES, Structure, structure_of
from bayesmix.inputs import as_count, as_points, as_weights, require_squares

__all__ = ["ConjugatePrior", "counted_rows", "filled", "moments", "require_site", "weak_prior"]

# What `scale` may look like in each storage, for d features.
_SCALE_SHAPES = {
    "full": lambda d: ((d, d),),
    "diagonal": lambda d: ((), (d,)),
    "spherical": lambda d: ((),),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConjugatePrior:
    """Dirichlet × normal–inverse-Wishart, or normal–inverse-gamma where the storage is not full.

    Make one with `ConjugatePrior.of`, which checks, or `weak_prior`, which reads it off the data.

    Attributes:
        concentration: of the Dirichlet on the weights, one number or one a cluster (k,).
        mean: (d,), where the clusters' means are expected, in the data's units.
        mean_count: how many observations that expectation is worth.
        degrees_of_freedom: how many observations the expectation of Σ is worth, about.
        scale: of the inverse Wishart (d, d), or of the inverse gamma, one number or one a feature (d,);
            in the data's units squared.

    References:
        Fraley & Raftery (2007), Bayesian regularization for normal mixture estimation and model-based
        clustering, Journal of Classification 24, section 3.1.

    Example:
        >>> import bayesmix as bm
        >>> prior = bm.ConjugatePrior.of(mean=[0, 0], degrees_of_freedom=4, scale=[[1, 0], [0, 1]])
        >>> model = bm.MixtureModel(3, "full", prior)
        >>> prior.mean_count
        0.01
    """

    concentration: Any
    mean: Any
    mean_count: Any
    degrees_of_freedom: Any
    scale: Any

    @classmethod
    def of(
        cls,
        *,
        mean: Any,
        degrees_of_freedom: float,
        scale: Any,
        mean_count: float = 0.01,
        concentration: Any = 1.0,
    ) -> ConjugatePrior:
        """A proper prior out of plain numbers.

        Raises:
            ValueError: a number that is not positive and finite, a `scale` that is no positive-definite
                matrix or does not fit the mean, or too few degrees of freedom: they must exceed d - 1 when
                `scale` is a matrix, 0 when it is not.
        """
        center = as_points(mean, "mean", n_features=1).values[:, 0].astype(np.float64)
        d = center.size
        spread = _as_scale(scale, d)
        lowest = d - 1 if spread.ndim == 2 else 0
        dof = _positive(degrees_of_freedom, "degrees_of_freedom")
        if dof <= lowest:
            raise ValueError(
                f"degrees_of_freedom must exceed {lowest}, or the prior is improper; it is {dof}"
            )
        weight = np.asarray(_numbers(concentration, "concentration"))
        if weight.ndim > 1 or not weight.size or not (np.isfinite(weight) & (weight > 0)).all():
            raise ValueError(
                f"concentration must be positive, one number or one a cluster; it is {weight.tolist()}"
            )
        return cls(
            weight if weight.ndim else float(weight), center, _positive(mean_count, "mean_count"), dof, spread
        )

    @property
    def n_features(self) -> int:
        """d, of the data that it is for."""
        return np.shape(self.mean)[-1]

    def require(self, n_components: int, row: Structure) -> None:
        """Refuse what this prior cannot be a prior for.

        Raises:
            ValueError: the concentration is for another number of clusters, the scale for another storage, or
                the structure for another number of features.
        """
        structure_of(row.name, self.n_features)
        given = np.shape(self.concentration)
        if given not in ((), (n_components,)):
            raise ValueError(
                f"prior has {given[0]} concentrations for {n_components} clusters; give one, or one each"
            )
        allowed = _SCALE_SHAPES[row.storage](self.n_features)
        if np.shape(self.scale) not in allowed:
            shapes = " or ".join("one number" if shape == () else f"shape {shape}" for shape in allowed)
            raise ValueError(
                f"prior has a scale of shape {np.shape(self.scale)}; the structure {row.name} takes {shapes}"
            )


def require_site(row: Structure, prior: str = "a ConjugatePrior") -> None:
    """Refuse a structure that a prior of one cluster's covariance has no NumPyro site for.

    Raises:
        ValueError: the structure ties the clusters in a way that no site has.
    """
    if row.constrained:
        sited = [name for name, other in STRUCTURES.items() if not other.constrained]
        raise ValueError(
            f"the structure {row.name} has no NumPyro site for {prior}: its covariances share a part; fit takes it, "
            f"with a conjugate prior or none; for sampling choose one of {', '.join(sited)}, or pass a NumPyro "
            "program as the prior"
        )


def weak_prior(
    x: Any,
    *,
    n_components: int = 1,
    covariance: str = "VVV",
    sample_weight: Any = None,
) -> ConjugatePrior:
    """The data-scaled default: Fraley & Raftery's, with Dirichlet(1) weights.

        mean = mean(x),  mean_count = 0.01,  degrees_of_freedom = d + 2
        scale = cov(x) / k^(2/d)                  full storage; cov has divisor n - 1
        scale = trace(cov(x)) / d / k^(2/d)       diagonal and spherical storage

    Moving or rescaling the data moves and rescales the prior; for full storage each column by itself.
    A weight counts repetitions. Below a total weight of two, where n - 1 vanishes, the divisor is half of it. Of data
    with missing cells the moments are those of the known ones and of what these predict of the others
    (`missing.completed`).

    Two repairs keep `scale` positive definite. A constant column says nothing of its own scale and takes
    the root mean square of the other columns' standard deviations (1 if every column is constant). Columns
    that determine each other, or fewer rows than columns, leave a correlation matrix that cannot be
    inverted; its off-diagonal entries are then multiplied by 1 - 1e-6.

    Raises:
        ValueError: data that are not numeric, weights that do not fit, a structure that is not known, or
            data so large or small that their square is not a number.

    References:
        Fraley & Raftery (2007), Bayesian regularization for normal mixture estimation and model-based
        clustering, Journal of Classification 24, section 3.2.

    Example:
        >>> import bayesmix as bm
        >>> prior = bm.weak_prior([[0.0], [2.0], [4.0]], n_components=2)
        >>> prior.mean, prior.scale
        (array([2.]), array([[1.]]))
    """
    k = as_count(n_components, "n_components")
    mean, correlation, deviation = moments(x, sample_weight)
    d = mean.size
    row = structure_of(covariance, d)
    covariances = correlation * deviation[:, None] * deviation
    scale = covariances if row.storage == "full" else np.trace(covariances) / d
    return ConjugatePrior.of(mean=mean, degrees_of_freedom=d + 2, scale=scale / k ** (2 / d), mean_count=0.01)


def counted_rows(x: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows of positive weight (n, d), float64, and their weights."""
    values = as_points(x).values.astype(np.float64)
    weight = as_weights(sample_weight, len(values))
    return values[weight > 0], weight[weight > 0]


def moments(x: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (d,), correlations (d, d) and standard deviations (d,) of the data, repaired as `weak_prior` says."""
    x = as_points(x)
    values, weight = counted_rows(x, sample_weight)
    total = weight.sum()
    origin = values[0]
    with np.errstate(over="ignore", invalid="ignore"):  # of data that are refused
        shift = weight @ (values - origin) / total
        divisor = max(total - 1, total / 2)
        hidden = None if x.gaps is None else x.gaps.hidden * (total / divisor)
        found = _correlation(values - origin - shift, weight, divisor, hidden)
    require_squares(values, found[1])
    return origin + shift, *found


def filled(size: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """Sizes (d,) in which a constant column has the root mean square of the others; 1 if every column is constant."""
    others = size[~constant]
    return np.where(constant, np.sqrt(np.mean(others**2)) if others.size else 1.0, size)


def _correlation(
    y: np.ndarray, weight: np.ndarray, divisor: float, hidden: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations and standard deviations of centred data, of which some covariance (d, d) is hidden."""
    largest = np.abs(y).max(axis=0)
    constant = np.ptp(y, axis=0) == 0
    unit = y / np.where(constant, 1, largest)
    unit[:, constant] = 0
    covariance = (weight * unit.T) @ unit / divisor
    if hidden is not None:
        inverse = np.where(constant, 0, 1 / np.where(constant, 1, largest))
        covariance = covariance + inverse[:, None] * hidden * inverse
    deviation = np.sqrt(np.diagonal(covariance))
    safe = np.where(constant, 1, deviation)
    correlation = covariance / safe[:, None] / safe
    deviation = filled(deviation * largest, constant)
    np.fill_diagonal(correlation, 1)
    if np.linalg.eigvalsh(correlation)[0] < 1e-10:
        correlation = np.where(np.eye(len(correlation)) > 0, 1, (1 - 1e-6) * correlation)
    return correlation, deviation


def _numbers(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as numbers: {error}") from None


def _positive(value: Any, name: str) -> float:
    number = _numbers(value, name)
    if number.ndim or not np.isfinite(number) or number <= 0:
        raise ValueError(f"{name} must be one positive number; it is {value!r}")
    return float(number)


def _as_scale(scale: Any, d: int) -> np.ndarray:
    spread = _numbers(scale, "scale")
    if spread.shape not in ((), (d,), (d, d)):
        raise ValueError(
            f"scale must be one number, ({d},) or ({d}, {d}) as the mean is; it is {spread.shape}"
        )
    if not np.isfinite(spread).all():
        raise ValueError(f"scale has a value that is not finite: {spread.tolist()}")
    if spread.ndim < 2:
        if (spread <= 0).any():
            raise ValueError(f"scale must be positive; it is {spread.tolist()}")
        return spread
    if np.abs(spread - spread.T).max() > 1e-6 * np.abs(spread).max():
        raise ValueError(f"scale is not symmetric: {spread.tolist()}")
    root = np.sqrt(np.abs(np.diagonal(spread)))
    if (np.diagonal(spread) <= 0).any() or np.linalg.eigvalsh(spread / root[:, None] / root)[0] <= 0:
        raise ValueError(f"scale is not positive definite: {spread.tolist()}")
    return spread
