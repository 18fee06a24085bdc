"""A Gaussian mixture is its parameters: everything else follows from log p(x, z).

    z ~ Categorical(weights),    x | z ~ Normal(means[z], covariances[z])

Summing p(x, z) over z is the density, normalising it over z the responsibilities; the formula is in `density`.

`GaussianMixture` is a JAX pytree. On ordinary arrays its methods compute in float64 (float32 for float32
data) whatever the global JAX flag says and return NumPy arrays; under a user's own `jit`, `vmap` or
`grad` they return JAX arrays and follow the flag that is set outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix import density, parts, peaks, quadratic, regions, tails
from bayesmix.covariance import Covariance, covariance_values, structure_of
from bayesmix.evaluate import each_point
from bayesmix.frames import frame_like
from bayesmix.inputs import (
    Points,
    are_chances,
    as_count,
    as_feature_names,
    as_list,
    as_name,
    as_points,
    as_share,
    is_number,
    is_traced,
)
from bayesmix.keys import as_generator, as_key
from bayesmix.missing import allowed, imputed, log_joint_of_seen
from bayesmix.storage import numbers

if TYPE_CHECKING:
    import pandas
    from jaxtyping import Array, Float, Int

__all__ = ["GaussianMixture"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """p(x) = Σ_k weights[k] Normal(x | means[k], covariances[k]).

    Make one with `GaussianMixture.of`, which checks; the constructor does not, because JAX runs it.

    Attributes:
        weights: mixing proportions (k,), adding up to one.
        means: (k, d), in the data's units.
        covariance: the covariances as their structure stores them.
        feature_names: a name per feature, or `None`.

    Example:
        >>> import bayesmix as bm
        >>> mixture = bm.GaussianMixture.of([0.7, 0.3], [[-5.0], [5.0]], [[[1.0]], [[1.0]]])
        >>> x, z = mixture.simulate(1000, key=0)
        >>> x.shape, z.shape
        ((1000, 1), (1000,))
        >>> mixture.classify([[-4.0], [6.0]])
        array([0, 1])
    """

    weights: Any
    means: Any
    covariance: Covariance
    feature_names: tuple[str, ...] | None = field(default=None, metadata={"static": True})

    @classmethod
    def of(
        cls,
        weights: Any,
        means: Any,
        covariances: Any,
        *,
        covariance: str = "VVV",
        feature_names: Any = None,
    ) -> GaussianMixture:
        """A mixture with known parameters.

        Args:
            weights: (k,), not negative, adding up to one.
            means: (k, d), or (k,) for one feature.
            covariances: (k, d, d), symmetric and positive definite; variances (k,) for one feature; or
                what the structure stores: (d, d) tied, (k, d) diagonal, (k,) spherical.
            covariance: the structure, in mclust's letters or scikit-learn's words.
            feature_names: a name per feature.

        Raises:
            ValueError: shapes that do not fit each other, weights that are no probabilities, a matrix that is not
                symmetric, not positive definite or not of the structure, names that are not one a feature. Of traced
                values (`jit`, a NumPyro program) only shapes are checked.
        """
        if is_traced(weights, means, covariances):
            w, m = jnp.asarray(weights), jnp.asarray(means)
            m = m[:, None] if m.ndim == 1 else m
            row = structure_of(covariance, m.shape[1])
            if w.shape != m.shape[:1]:
                raise ValueError(f"weights has shape {w.shape} for means of shape {m.shape}")
            values = covariance_values(covariances, row, *m.shape)
            names = None if feature_names is None else as_feature_names(feature_names, m.shape[1])
            return cls(w, m, Covariance(values, row.name), names)
        m, names, _ = as_points(means, "means", feature_names=feature_names)
        k, d = m.shape
        w = as_points(weights, "weights", n_features=1).values[:, 0]
        if w.shape != (k,):
            raise ValueError(f"weights has {w.size} entries for {k} means")
        if not are_chances(w):
            raise ValueError(
                f"weights must not be negative and must add up to one; they are {w.tolist()}, "
                f"which add up to {w.sum(dtype=np.float64):.8g}"
            )
        row = structure_of(covariance, d)
        values = covariance_values(covariances, row, k, d)
        dtype = np.float32 if w.dtype == m.dtype == values.dtype == np.float32 else np.float64
        return cls(
            w.astype(dtype),
            m.astype(dtype),
            Covariance(values.astype(dtype), row.name),
            names if feature_names is not None else None,
        )

    @property
    def n_components(self) -> int:
        """k, of each mixture of a batch."""
        return self.means.shape[-2]

    @property
    def n_features(self) -> int:
        """d, of each mixture of a batch."""
        return self.means.shape[-1]

    @property
    def structure(self) -> str:
        """mclust's letters for the covariance structure."""
        return self.covariance.structure

    @property
    def covariances(self) -> Float[Any, "*batch k d d"]:
        """The dense covariance matrices, for every structure."""
        dense = self.covariance.storage.dense(self.covariance.values, self.n_features)
        return numbers(dense).broadcast_to(dense, (*self.means.shape, self.n_features))

    @property
    def n_parameters(self) -> int:
        """Free parameters: k - 1 weights, k d means and the structure's covariance parameters."""
        k, d = self.n_components, self.n_features
        return k - 1 + k * d + self.covariance.row.n_parameters(k, d)

    def log_joint(self, x: Any, *, missing: str | None = None) -> Float[Any, "n k"]:
        """log p(x, z=k) in nats, of each point with each cluster; `missing` as in `log_density`."""
        return self._each(density.log_joint, x, gaps=allowed(missing))

    def log_density(self, x: Any, *, missing: str | None = None, as_frame: bool = False) -> Float[Any, " n"]:
        """log p(x) in nats, of each point.

        Args:
            x: points (n, d); a table's columns are taken by name where the features have names.
            missing: what missing cells are, `None` for an error: "at_random" has the density of the others alone,
                which of a point without any is 1. Outside jit, vmap and grad.
            as_frame: give a frame of x's own library (polars, pyarrow; else pandas, with the index of x) with the
                column `log_density`.

        Example:
            >>> import bayesmix as bm
            >>> bm.GaussianMixture.of([1.0], [[0.0]], [[[1.0]]]).log_density([0.0]).round(4)
            array([-0.9189])
        """
        found = self._each(density.log_density, x, gaps=allowed(missing))
        return _framed(found, x, as_frame, "log_density")

    def responsibilities(
        self, x: Any, *, missing: str | None = None, as_frame: bool = False
    ) -> Float[Any, "n k"]:
        """p(z=k | x), the soft assignment of each point; rows add up to one.

        Of a point so far away (1e19 standard deviations in float32) that no log density is finite they are equal. With
        `missing` and `as_frame` as in `log_density`, with a column `cluster_0`, `cluster_1`, ... each.
        """
        names = [f"cluster_{j}" for j in range(self.n_components)]
        found = self._each(density.responsibilities, x, gaps=allowed(missing))
        return _framed(found, x, as_frame, *names)

    def classify(self, x: Any, *, missing: str | None = None, as_frame: bool = False) -> Int[Any, " n"]:
        """The most probable cluster of each point; a tie goes to the lowest index.

        With `missing` and `as_frame` as in `log_density`, with the column `cluster`.

        Example:
            >>> import bayesmix as bm
            >>> x = bm.datasets.load("old_faithful")
            >>> mixture = bm.GaussianMixture.of([0.4, 0.6], x.iloc[[1, 0]], [[1, 40], [1, 40]], covariance="diag")
            >>> x.head(3).join(mixture.classify(x.head(3), as_frame=True))
               eruptions  waiting  cluster
            0      3.600       79        1
            1      1.800       54        0
            2      3.333       74        1
        """
        return _framed(self._each(density.classify, x, gaps=allowed(missing)), x, as_frame, "cluster")

    def impute(self, x: Any, *, key: Any = None, as_frame: bool = False) -> Float[Any, "n d"]:
        """The points with a value in each missing cell: the one expected given the others, E[x_missing | x_known].

        Outside jit, vmap and grad.

        Args:
            x: points (n, d) with missing cells; those that are known come back as they are.
            key: a JAX key or an int: values are then drawn given the known ones, first z and then x, so that they
                spread as values do; several such draws are multiple imputations.
            as_frame: as in `log_density`, with the features as columns.

        References:
            Rubin (1987), Multiple Imputation for Nonresponse in Surveys.

        Example:
            >>> import bayesmix as bm
            >>> mixture = bm.GaussianMixture.of([1.0], [[0.0, 1.0]], [[[1.0, 0.5], [0.5, 1.0]]])
            >>> mixture.impute([[2.0, None], [None, None]])
            array([[2., 2.], [0., 1.]])
        """
        if is_traced(self, x):
            raise ValueError("impute is for numbers, outside jit, vmap and grad")
        self._check_one()
        points = as_points(x, n_features=self.n_features, known=self.feature_names, missing=True)
        values, seen = points.values, ~np.isnan(points.values)
        generator = None if key is None else as_generator(key)
        rows = np.flatnonzero(~seen.all(axis=1))
        found = values.copy()
        if rows.size:
            found[rows] = imputed(self, values[rows], seen[rows], generator)
        return _framed(found, x, as_frame, *points.names)

    def within(
        self,
        x: Any,
        radius: float = 2.5,
        *,
        coverage: float | None = None,
        distance: str = "mahalanobis",
    ) -> Int[Any, " n"]:
        """The nearest cluster of each point if it is closer than the radius, else -1.

        Args:
            x: points (n, d).
            radius: in standard deviations. A ball of Mahalanobis radius 2.5 holds 99% of a cluster's
                points at d = 1, but 21% at d = 10.
            coverage: in place of a radius, the share of its own points that a cluster's ball holds,
                between 0 and 1: radius² is then that quantile of the chi-square law with d degrees.
            distance: "mahalanobis", or "euclidean": nearest in plain distance, with the radius counted in that
                cluster's standard deviation along the way, (uᵀ Σ u)^½ for the unit vector u towards the point.

        Raises:
            ValueError: a radius that is not positive, a coverage outside (0, 1) or together with "euclidean".
        """
        as_name(distance, "distance", _DISTANCES)
        if coverage is not None:
            coverage = as_share(coverage, "coverage")
            if distance != "mahalanobis":
                raise ValueError("coverage goes with distance='mahalanobis'; pass a radius for 'euclidean'")
            from scipy.special import gammaincinv

            radius = math.sqrt(2 * gammaincinv(self.n_features / 2, coverage))
        elif not (is_traced(radius) or (is_number(radius) and radius > 0)):
            raise ValueError(f"radius must be positive, not {radius!r}")
        return self._each(_DISTANCES[distance], x, radius)

    def simulate(self, n: int, *, key: Any) -> tuple[Float[Any, "n d"], Int[Any, " n"]]:
        """Draw n points in two steps: flip the k-sided coin for z, then draw x from cluster z.

        Args:
            n: how many points.
            key: a JAX key or an int; it seeds NumPy's generator, and JAX's under jit, vmap or grad, so that draws there
                are others of the same law.

        Returns:
            x (n, d) and z (n,); row i of x was drawn from cluster z[i].
        """
        n = as_count(n, "n")
        if is_traced(self, key):
            return density.simulate(self._arrays(), as_key(key), n)
        self._check_one()
        return density.simulate_numbers(self, as_generator(key), n)

    def marginal(self, features: Any) -> GaussianMixture:
        """The law of some of the features, by index or name: again a mixture, with the same weights.

        Its structure is the same where that holds for parts of each covariance, otherwise the one without constraints.
        """
        keep = [self._feature(f) for f in as_list(features)]
        if not keep or len(set(keep)) != len(keep):
            raise ValueError(f"features must be different features, at least one; they are {features!r}")
        return parts.marginal(self, keep)

    def condition(self, given: Mapping[Any, float]) -> GaussianMixture:
        """The law of the other features given the values of some: again a mixture.

        With a the free and b the given features, w_k becomes proportional to w_k Normal(b | m_b, Σ_bb) and
        cluster k has mean m_a + Σ_ab Σ_bb⁻¹ (b - m_b) and covariance Σ_aa - Σ_ab Σ_bb⁻¹ Σ_ba.

        Args:
            given: feature (index or name) to value, for example `{0: 1.5}`.
        """
        if not isinstance(given, Mapping) or not given:
            raise ValueError(f"given must map features to values, such as {{0: 1.5}}; it is {given!r}")
        b = [self._feature(f) for f in given]
        a = [j for j in range(self.n_features) if j not in b]
        if not a or len(set(b)) != len(b):
            raise ValueError(
                f"condition needs at least one feature left free, each given once; given {given!r}"
            )
        return parts.conditional(self, a, b, list(given.values()))

    def modes(self) -> peaks.Modes:
        """The peaks of the density, the highest first, and which cluster's mean climbs to which.

        Example:
            >>> import bayesmix as bm
            >>> crossed = bm.GaussianMixture.of([0.5, 0.5], [[0, 0], [1, 1]], [[1, 0.05], [0.05, 1]], covariance="VVI")
            >>> crossed.modes().points.round(3)
            array([[0.952, 0.048], [0.001, 0. ], [1. , 0.999]])
        """
        return peaks.find_modes(self._alone())

    def overlap(self) -> Float[np.ndarray, "k k"]:
        """[i, j] = P(w_j Normal(x | j) > w_i Normal(x | i)) for x from cluster i: how often i is mistaken for j.

        Zero on the diagonal. The weights count: a heavy cluster draws points from a light one, not the other way round.

        Example:
            >>> import bayesmix as bm
            >>> bm.GaussianMixture.of([0.5, 0.5], [0.0, 2.0], [1.0, 1.0]).overlap().round(4)
            array([[0. , 0.1587], [0.1587, 0. ]])
        """
        return quadratic.misclassification(self._alone())

    def highest_density_region(
        self, coverage: float, *, key: Any = 0, n_draws: int = 100_000
    ) -> regions.HighestDensityRegion:
        """The smallest region that holds a share `coverage` of the mixture: where log p is above a level.

        Exact in one dimension, where it has `intervals`, and for one cluster; otherwise the level comes from draws.

        Args:
            coverage: between 0 and 1.
            key: a JAX key or an int, for the draws.
            n_draws: how many; the region's `coverage_error` falls with their square root.

        Raises:
            ValueError: a coverage outside (0, 1), or so near either end that the draws cannot tell.
        """
        return regions.densest_region(self._alone(), coverage, key, n_draws)

    def cdf(self, x: Any) -> Any:
        """P(X <= x), in one dimension, of each number or infinity; the lower tail keeps its digits.

        Example:
            >>> import bayesmix as bm
            >>> bm.GaussianMixture.of([0.5, 0.5], [-5.0, 5.0], [1.0, 1.0]).cdf([-5.0, 0.0, 5.0])
            array([0.25, 0.5 , 0.75])
        """
        return tails.cumulative(self, x)

    def quantile(self, p: Any) -> Any:
        """The x with P(X <= x) = p, in one dimension: of one probability or an array of them, in its shape.

        Accurate in both tails; 0 and 1 give minus and plus infinity.

        Raises:
            ValueError: more than one feature, or a p that is no probability.

        Example:
            >>> import bayesmix as bm
            >>> bm.GaussianMixture.of([0.5, 0.5], [-5.0, 5.0], [1.0, 1.0]).quantile([0.25, 0.5]).round(4)
            array([-5., 0.])
        """
        return tails.inverse(self, p)

    def summary(self) -> pandas.DataFrame:
        """A row per cluster: its weight, and each feature's mean and standard deviation."""
        import pandas

        self._check_one()
        names = self.feature_names or [f"x{j}" for j in range(self.n_features)]
        deviations = np.sqrt(np.diagonal(self.covariances, axis1=-2, axis2=-1))
        columns = {"weight": np.asarray(self.weights)}
        columns |= {f"mean {name}": np.asarray(self.means)[:, j] for j, name in enumerate(names)}
        columns |= {f"sd {name}": deviations[:, j] for j, name in enumerate(names)}
        return pandas.DataFrame(columns, index=pandas.RangeIndex(self.n_components, name="cluster"))

    def save(self, path: Any) -> None:
        """Write the mixture as JSON, every number with all its digits; see `bayesmix.save`."""
        from bayesmix.files import save

        save(self, path)

    @classmethod
    def load(cls, path: Any) -> GaussianMixture:
        """Read what `save` wrote, to the last bit.

        Raises:
            ValueError: the file is no such JSON document, or its parameters make no mixture.
        """
        from bayesmix.files import load_mixture

        return load_mixture(path)

    def _alone(self) -> GaussianMixture:
        """This mixture in float64, where it is one and known: what searches it cannot be traced."""
        if is_traced(self) or self.means.ndim != 2:
            raise ValueError(
                f"this reads one mixture of numbers, outside jit, vmap and grad; its means are {self.means.shape}: "
                "take one out of a batch by jax.tree.map(lambda leaf: leaf[0], mixture)"
            )
        alone = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), self)
        try:
            np.linalg.cholesky(alone.covariances)
        except np.linalg.LinAlgError:
            raise ValueError(
                "a covariance is singular to rounding, so the density has no peak to read there"
            ) from None
        return alone

    def _arrays(self) -> GaussianMixture:
        """Without names, and of the most general structure stored alike: what compiled code need not depend on."""
        covariance = Covariance(self.covariance.values, self.covariance.row.general)
        return replace(self, covariance=covariance, feature_names=None)

    def _feature(self, feature: Any) -> int:
        if isinstance(feature, jax.Array | np.ndarray) and feature.ndim == 0:
            feature = feature.item()
        if isinstance(feature, str):
            as_name(feature, "feature", self.feature_names or ())
            return (self.feature_names or ()).index(feature)
        whole = isinstance(feature, int | np.integer) and not isinstance(feature, bool)
        if whole and 0 <= feature < self.n_features:
            return int(feature)
        raise ValueError(f"feature must be a name or an index below {self.n_features}; it is {feature!r}")

    def _each(
        self, block: Callable[..., Array], x: Any, *more: float, last: bool = False, gaps: bool | None = None
    ) -> Any:
        """Apply a function of one block, points last, to all points, which come first in the result unless `last`.

        `gaps` says whether cells may be missing, of the functions in `density.OF_LOGITS`.
        """
        if is_traced(self, x, more):
            if gaps:
                raise ValueError(
                    "missing='at_random' is for numbers; under jit, vmap and grad pass whole points"
                )
            points = jnp.asarray(x)
            points = points[:, None] if points.ndim == 1 and self.n_features == 1 else points
            if points.ndim != 2 or points.shape[1] != self.n_features:
                raise ValueError(f"x must be (n, {self.n_features}); it is {jnp.shape(x)}")
            return jnp.moveaxis(block(self._arrays(), points.T, *more), -1, 0)
        self._check_one()
        came = as_points(x, n_features=self.n_features, known=self.feature_names, missing=gaps)
        points, seen = came.values, None if came.gaps is None else came.gaps.seen
        if gaps and np.isnan(points).any():
            seen = ~np.isnan(points)
        if seen is not None:
            out = self._each_seen(block, points, seen)
            return out if last else np.ascontiguousarray(np.moveaxis(out, -1, 0))
        once = (
            density.factor_of
            if density.is_written_out(self) and block is not density.within_euclidean
            else None
        )
        wide = points.dtype == np.float32 and not density.is_single(jax.tree.map(np.asarray, self._arrays()))
        out = each_point(
            block,
            self._arrays(),
            points.astype(np.float64) if wide else points,
            self.n_components,
            more,
            once,
            last,
        )
        return out.astype(np.float32) if wide and out.dtype.kind == "f" else out

    def _each_seen(self, block: Callable[..., Array], points: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """The same of the cells that are seen, points last; whole rows are computed as ever."""
        whole = seen.all(axis=1)
        with np.errstate(all="ignore"):  # as `evaluate` has it
            some = density.OF_LOGITS[block](log_joint_of_seen(self, points[~whole], seen[~whole]))
        some = some.astype(points.dtype) if some.dtype.kind == "f" else some
        if not whole.any():
            return some
        out = np.empty((*some.shape[:-1], len(points)), some.dtype)
        out[..., ~whole] = some
        out[..., whole] = self._each(block, Points(points[whole], self.feature_names or ()), last=True)
        return out

    def _check_one(self) -> None:
        if self.means.ndim != 2:
            raise ValueError(
                f"this is a batch of mixtures (means {self.means.shape}); map the method over it with jax.vmap"
            )


def _framed(values: Any, x: Any, as_frame: bool, *names: str) -> Any:
    if as_frame and is_traced(values):
        raise ValueError("as_frame=True is for numbers; under jit, vmap or grad there is no frame to give")
    return frame_like(x, values, names) if as_frame else values


_DISTANCES: dict[str, Callable[..., Array]] = {
    "mahalanobis": density.within_mahalanobis,
    "euclidean": density.within_euclidean,
}
