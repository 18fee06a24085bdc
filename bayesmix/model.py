"""The generative story as a NumPyro model: θ from the prior, a cluster for each point, the point.

    θ = (weights, means, covariances) ~ prior
    z_n | θ       ~ Categorical(weights)
    x_n | z_n, θ  ~ Normal(means[z_n], covariances[z_n])

`model(x)` says just this; `model.marginal(x)` says it with z summed out, x_n | θ ~ Σ_k weights[k] Normal(·),
which is what gradient kernels take. The covariances are drawn as precisions, in one site:

    full storage         precision_cholesky (d, d)   WishartCholesky(degrees_of_freedom, rate=scale)
    diagonal storage     precisions (d,)             Gamma(degrees_of_freedom / 2, rate=scale / 2)
    spherical storage    precision                   Gamma(degrees_of_freedom / 2, rate=scale / 2)

inside the plate `cluster`, or before it where all clusters share one. (So under a conjugate prior; see `hierarchical`
and `lkj` for what they declare.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from bayesmix.compilation import one_at_a_time
from bayesmix.covariance import Structure, structure_of
from bayesmix.density import precision_factor
from bayesmix.devices import double_precision
from bayesmix.hierarchical import HierarchicalPrior, hierarchical_prior
from bayesmix.inputs import as_count, as_points, is_traced, to_numpy
from bayesmix.keys import as_key
from bayesmix.lkj import LKJPrior, lkj_prior
from bayesmix.mixture import GaussianMixture
from bayesmix.prior import ConjugatePrior, require_site, weak_prior
from bayesmix.programs import FixedPrior, ProgramPrior
from bayesmix.trees import prior_tree

if TYPE_CHECKING:
    import xarray
    from jaxtyping import Array

__all__ = ["NAMED", "MixtureModel", "story_of"]

# What a word says of the data.
NAMED: dict[str, Callable[..., FixedPrior]] = {
    "weak": weak_prior,
    HierarchicalPrior.word: hierarchical_prior,
    LKJPrior.word: lkj_prior,
}
_CHOICES = (
    f"{', '.join(map(repr, NAMED))}, a ConjugatePrior, a HierarchicalPrior, an LKJPrior, or a NumPyro program "
    "that returns a GaussianMixture"
)


@dataclass(frozen=True, eq=False)
class MixtureModel:
    """A mixture with unknown parameters: how many clusters, of which shape, and what is believed before.

    It is a NumPyro model: `model(x)` has the sites `weights`, the covariance's own, `means`, `z` and `x` in
    the plates `cluster` and `obs_id`, so handlers, `Predictive` and `render_model` take it; `model.marginal`
    has them without `z`. Both follow the global JAX flag, as NumPyro does.

    Args:
        n_components: k.
        covariance: mclust's letters or scikit-learn's words; kept in letters.
        prior: `None` is maximum likelihood; "weak", "hierarchical" and "lkj" are `weak_prior`, `hierarchical_prior` and
            `lkj_prior` of the data; a `ConjugatePrior`, `HierarchicalPrior` or `LKJPrior`; or a NumPyro program: it
            is called as `prior()`, declares whatever sites it likes but `z` and `x`, and returns a `GaussianMixture`
            of k clusters and this structure, in the data's own units. A flat prior has no posterior, so as a NumPyro
            model `None` means "weak". `fit` takes the conjugate ones, `sample_posterior` any.

    Raises:
        ValueError: no such number, structure or prior, or a prior that does not fit the other two.

    Example:
        >>> import bayesmix as bm
        >>> from numpyro import handlers
        >>> model = bm.MixtureModel(3, "full", prior="weak")
        >>> model.covariance
        'VVV'
        >>> x = [[0.0], [1.0], [5.0], [6.0]]
        >>> sites = handlers.trace(handlers.seed(model, 0)).get_trace(x)
        >>> [name for name, site in sites.items() if site["type"] == "sample"]
        ['weights', 'precision_cholesky', 'means', 'z', 'x']
    """

    n_components: int
    covariance: str = "full"
    prior: str | FixedPrior | Callable[[], GaussianMixture] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_components", as_count(self.n_components, "n_components"))
        object.__setattr__(self, "covariance", structure_of(self.covariance).name)
        if isinstance(self.prior, FixedPrior):
            self.prior.require(self.n_components, self.structure)
        elif self._needs_data:
            if self.prior not in (None, "weak"):  # fit takes those for every structure
                require_site(self.structure, f"the prior {self.prior!r}")
        elif not callable(self.prior):
            raise ValueError(f"prior must be None, {_CHOICES}; it is {self.prior!r}")

    @property
    def structure(self) -> Structure:
        """The row of `STRUCTURES`."""
        return structure_of(self.covariance)

    @property
    def _needs_data(self) -> bool:
        return self.prior is None or (isinstance(self.prior, str) and self.prior in NAMED)

    def resolve(self, x: Any, *, sample_weight: Any = None) -> MixtureModel:
        """The same model with its prior fixed: a word becomes what it says of x, `None` `weak_prior(x)`; others stay.

        Do so once, before the data are split, simulated or traced.

        Raises:
            ValueError: data that the word's function refuses, or not as many features as the prior has.

        Example:
            >>> import bayesmix as bm
            >>> model = bm.MixtureModel(2, prior="weak").resolve([[0.0], [2.0], [4.0]])
            >>> model.prior.mean
            array([2.])
        """
        if self._needs_data:
            k, structure = self.n_components, self.covariance
            scaled = NAMED[str(self.prior or "weak")]
            prior = scaled(x, n_components=k, covariance=structure, sample_weight=sample_weight)
            return replace(self, prior=prior)
        if isinstance(self.prior, FixedPrior):
            as_points(x, n_features=self.prior.n_features)
        return self

    def parameters(self) -> GaussianMixture:
        """θ ~ prior, the first line of the story by itself: declares its sites and returns the mixture.

        Under `handlers.substitute` it turns values of the sites into the mixture that they stand for.

        Raises:
            ValueError: the prior waits for data, or is a program that returns no such mixture.
        """
        return self._parameters()[0]

    def __call__(self, x: Any = None, n: int | None = None) -> Any:
        """The explicit story: the sites `weights`, the covariance's own, `means`, `z` and `x`.

        Args:
            x: the data (n, d); without them x is drawn too.
            n: how many points to draw where there are no data, one by default.

        Returns:
            x, given or drawn.

        Raises:
            ValueError: bad data, both x and n, or a prior that waits for data that are absent or traced.
        """
        model, points, n = self._rows(x, n)
        return model._explicit(points, n)[1]["x"]

    def marginal(self, x: Any = None, n: int | None = None) -> Any:
        """The same story with z summed out: x_n | θ ~ Σ_k weights[k] Normal(means[k], covariances[k]).

        Takes, returns and raises what `model(x)` does.
        """
        import numpyro

        from bayesmix.distribution import MixtureDistribution

        model, points, n = self._rows(x, n)
        mixture, factor = model._parameters(points)
        with numpyro.plate("obs_id", n):
            return numpyro.sample("x", MixtureDistribution(mixture, factor), obs=points)

    @one_at_a_time
    def prior_predictive(self, n: int, *, key: Any, like: Any = None) -> xarray.DataTree:
        """Draws of θ, z and x from the story, before any data are seen; in float64.

        Args:
            n: how many draws of θ.
            key: a JAX key or an int.
            like: data that give the rows of a draw, the names of the features, and "weak" and other words
                their scale. Without them each draw of θ comes with one row.

        Returns:
            A tree with the groups `prior` (weights, means, dense covariances, the hierarchical prior's `rate`, LKJ's
            `deviations`, and the sites of a program) and `prior_predictive` (x and z), as ArviZ reads it.

        Raises:
            ValueError: `prior` is `None`, which has nothing to draw from, or a word without `like`.

        Example:
            >>> import bayesmix as bm
            >>> prior = bm.ConjugatePrior.of(mean=[0.0], degrees_of_freedom=3, scale=[[1.0]])
            >>> draws = bm.MixtureModel(2, "full", prior).prior_predictive(100, key=0)
            >>> dict(draws["prior"].sizes)
            {'chain': 1, 'draw': 100, 'cluster': 2, 'feature': 1, 'feature_bis': 1}
        """
        from bayesmix.distribution import draws
        from bayesmix.stories import read

        n = as_count(n, "n")
        if self.prior is None:
            raise ValueError(f"prior is None, a flat one, which has nothing to draw from; choose {_CHOICES}")
        if self._needs_data and like is None:
            raise ValueError(f"prior={self.prior!r} takes its scale from data; pass them as like=x")
        known = self.prior.n_features if isinstance(self.prior, FixedPrior) else None
        points = None if like is None else as_points(like, "like", n_features=known)
        model = self if points is None else self.resolve(points.values)
        rows = 1 if points is None else points.values.shape[0]
        k, covariance = self.n_components, self.covariance
        dims: dict[str, Any] = {}
        if isinstance(model.prior, FixedPrior):
            prior, story = model.prior, story_of(k, covariance, None)
            dims |= prior.dims if isinstance(prior, ProgramPrior) else {}
        else:
            prior, (mark, dims) = None, read(model.parameters, k)
            story = story_of(k, covariance, model.prior, mark)
        with double_precision():
            keys = jax.random.split(as_key(key), n)
            shown = None if prior is None else tuple(dims)
            mixture, sites, drawn = to_numpy(draws(story._simulate, prior, keys, rows, shown))
        d = mixture.means.shape[-1]
        if points is not None and points.values.shape[1] != d:
            raise ValueError(f"like has {points.values.shape[1]} features, but the prior's mixture has {d}")
        names = points.names if points is not None else mixture.feature_names
        return prior_tree(mixture, sites, drawn, names or tuple(f"x{j}" for j in range(d)), dims)

    def _rows(self, x: Any, n: int | None) -> tuple[MixtureModel, Array | None, int]:
        """The model with its prior fixed, the data in the precision of the flag, and how many rows."""
        if x is None:
            return self, None, 1 if n is None else as_count(n, "n")
        if n is not None:
            raise ValueError(
                "n is how many points to draw where there are no data; leave it out when x is given"
            )
        if is_traced(x):
            if self._needs_data:
                raise ValueError(
                    f"prior={self.prior!r} takes its scale from the data, which are traced here (jit, vmap "
                    "or grad); fix the prior first, with model.resolve(x)"
                )
            values, model = jnp.atleast_1d(x), self
            values = values[:, None] if values.ndim == 1 else values
        else:
            values = as_points(x).values
            model = self.resolve(values)
        return model, jnp.asarray(values, float), values.shape[0]

    def _parameters(self, points: Array | None = None) -> tuple[GaussianMixture, Array]:
        """θ ~ prior as a mixture, and W of each cluster, |W (x - m)|² the squared Mahalanobis distance."""
        from bayesmix.distribution import draw_parameters

        if isinstance(self.prior, ConjugatePrior):
            mixture, factor = draw_parameters(self.prior, self.n_components, self.structure)
        elif isinstance(self.prior, ProgramPrior):
            mixture, factor = self.prior.draw()
        elif callable(self.prior):
            mixture = _checked(self.prior(), self.n_components, self.covariance)
            factor = precision_factor(mixture.covariance, mixture.n_features)[0]
        else:
            raise ValueError(
                f"prior={self.prior!r} takes its scale from data, and none are given; pass x, or fix the "
                "prior first, with model.resolve(x)"
            )
        if points is not None and points.shape[1] != mixture.n_features:
            raise ValueError(f"x has {points.shape[1]} features, but the prior has {mixture.n_features}")
        return mixture, factor

    def _explicit(self, points: Array | None, n: int) -> tuple[GaussianMixture, dict[str, Any]]:
        """The whole story: θ, and z and x, given or drawn."""
        import numpyro
        import numpyro.distributions as dist

        from bayesmix.distribution import scale_trils

        mixture, factor = self._parameters(points)
        scale_tril = scale_trils(mixture, factor)
        with numpyro.plate("obs_id", n):
            z: Any = numpyro.sample("z", dist.CategoricalProbs(jnp.asarray(mixture.weights)))
            cluster = dist.MultivariateNormal(jnp.asarray(mixture.means)[z], scale_tril=scale_tril[z])
            x = numpyro.sample("x", cluster, obs=points)
        return mixture, {"z": z, "x": x}

    def _simulate(self, prior: FixedPrior | None, n: int) -> tuple[GaussianMixture, dict[str, Array]]:
        """The whole story forward, under this prior if one is passed."""
        return (self if prior is None else replace(self, prior=prior))._explicit(None, n)


def _checked(mixture: Any, k: int, structure: str) -> GaussianMixture:
    if not isinstance(mixture, GaussianMixture):
        raise ValueError(
            f"prior is a program that returned a {type(mixture).__name__}, not a GaussianMixture"
        )
    if mixture.means.ndim != 2 or (mixture.n_components, mixture.structure) != (k, structure):
        raise ValueError(
            f"prior returned a mixture with means {mixture.means.shape} and structure {mixture.structure}; "
            f"the model has {k} clusters and {structure}"
        )
    structure_of(structure, mixture.n_features)
    return mixture


def story_of(n_components: int, covariance: str, program: Any, mark: str = "") -> MixtureModel:
    """One object for all models of a kind, so that they share compiled code; fixed priors are passed beside it.

    Programs are of a kind if their marks are the same (`stories.read`): what compiles next traces this one.
    """
    story = _story(n_components, covariance, mark)
    object.__setattr__(story, "prior", program)
    return story


@lru_cache(maxsize=64)  # programs may hold a user's data
def _story(n_components: int, covariance: str, mark: str) -> MixtureModel:
    return MixtureModel(n_components, covariance)
