"""The posterior with z summed out, as NumPyro's gradient kernels see it.

θ comes from the model's own prior program, so its sites are those of `MixtureModel`; the likelihood is `summarize`,
the same pass over the data that EM and Gibbs take. Under a prior whose numbers are known everything is in the units of
the loop; any other program speaks the data's own, and its mixtures are moved there.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from numpyro import handlers
from numpyro.distributions.distribution import validation_enabled
from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn

from bayesmix.compilation import one_kernel
from bayesmix.covariance import Covariance
from bayesmix.density import log_determinant
from bayesmix.missing import covariance_of
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel
from bayesmix.observations import Observations
from bayesmix.programs import FixedPrior
from bayesmix.statistics import Statistics, expected_log_joint, summarize
from bayesmix.stories import is_free, on_blanks, unconstrained_shape

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = [
    "Evidence", "blank_points", "by_one_kernel", "log_likelihood", "log_prior_of_sites", "potential",
    "prior_points", "realize", "story", "unconstrained",
]  # fmt: skip


class Evidence(NamedTuple):
    """What the chains are told: data in the units of the loop, and the prior.

    Attributes:
        observations: points whose cluster is unknown.
        fixed: statistics of those whose cluster is given.
        prior: in the units of the loop; absent where the model's prior is any other program.
        origin: (d,) of the units, and
        scale: (d,).
    """

    observations: Observations
    fixed: Statistics
    prior: FixedPrior | None
    origin: Any
    scale: Any


def _under(model: MixtureModel, evidence: Evidence) -> MixtureModel:
    return model if evidence.prior is None else replace(model, prior=evidence.prior)


def log_likelihood(mixture: GaussianMixture, factor: Array, evidence: Evidence, few: bool = False) -> Array:
    """Σ log p(x), and log p(x, z) of the points whose z is given, in nats and in the units of the loop."""
    both = factor, log_determinant(mixture.covariance, factor, mixture.n_features)
    # The factor says all that the covariances say, so no gradient has to flow through both.
    covariance = jax.lax.stop_gradient(mixture.covariance)
    if (
        evidence.observations.gaps is not None
    ):  # they look at the covariances, whose derivatives are the factor's
        covariance = Covariance(covariance_of(covariance.storage, factor), covariance.structure)
    mixture = replace(mixture, covariance=covariance)
    free = _log_density(mixture, both, evidence.observations, few)
    return free + expected_log_joint(mixture, evidence.fixed, both)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _log_density(
    mixture: GaussianMixture, factor: tuple[Array, Array], observations: Observations, few: bool = False
) -> Array:
    """Σ log p(x). Its gradient is Fisher's identity, which takes the one pass over the data that the value takes:

    ∇ Σ log p(x) = ∇ Σ r log p(x, z) at r = p(z | x) held fixed, and that needs the moments of r alone.
    """
    return _value(mixture, factor, observations, few)[0]


def _value(
    mixture: GaussianMixture, factor: tuple[Array, Array], observations: Observations, few: bool
) -> Any:
    statistics = summarize(mixture, observations, "soft", factor=factor, few=few)
    return statistics.objective, (mixture, factor, statistics)


def _gradient(few: bool, kept: Any, slope: Array) -> Any:
    mixture, factor, statistics = kept
    _, pull = jax.vjp(lambda *theta: expected_log_joint(theta[0], statistics, theta[1]), mixture, factor)
    return *pull(slope), None  # data are not differentiated


_log_density.defvjp(_value, _gradient)


def _enter(mixture: GaussianMixture, factor: Array, evidence: Evidence) -> tuple[GaussianMixture, Array]:
    """A mixture in the data's units, and its factor, in the units of the loop."""
    storage, scale = mixture.covariance.storage, evidence.scale
    values = storage.rescale(mixture.covariance.values, 1 / scale)
    moved = replace(
        mixture,
        means=(mixture.means - evidence.origin) / scale,
        covariance=Covariance(values, mixture.structure),
    )
    return moved, factor * (scale if storage.axes else scale[0])


def story(model: MixtureModel, evidence: Evidence, few: bool = False) -> None:
    """The program: θ from the prior, and the likelihood with z summed out, where `few` by one kernel."""
    mixture, factor = _under(model, evidence)._parameters()
    if evidence.prior is None:
        mixture, factor = _enter(mixture, factor, evidence)
    numpyro.factor("x", log_likelihood(mixture, factor, evidence, few))


def potential(model: MixtureModel, evidence: Evidence, point: dict[str, Array], few: bool = False) -> Array:
    """Minus the log joint density at unconstrained values of the sites."""
    with validation_enabled(False):  # what comes out of a support's map lies in it
        return jnp.asarray(potential_energy(story, (model, evidence, few), {}, point))


def by_one_kernel(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function whose value and gradient come together, out of one kernel."""
    both = one_kernel(jax.value_and_grad(function), True)

    @jax.custom_vjp
    def value(point: Array) -> Array:
        return both(point)[0]

    value.defvjp(both, lambda gradient, slope: (slope * gradient,))
    return value


@partial(jax.jit, static_argnums=0)
def realize(
    model: MixtureModel, evidence: Evidence, points: dict[str, Array]
) -> tuple[GaussianMixture, dict[str, Array]]:
    """Mixtures, and values of the sites, at unconstrained points (draws, ...); in the prior's own units."""

    def one(point: dict[str, Array]) -> tuple[GaussianMixture, dict[str, Array]]:
        under = _under(model, evidence)
        sites = constrain_fn(under._parameters, (), {}, point, return_deterministic=True)
        with handlers.block(), handlers.substitute(data=sites):
            return jax.tree.map(jnp.asarray, under._parameters()[0]), sites

    return jax.vmap(one)(points)


@partial(jax.jit, static_argnums=0)
def unconstrained(model: MixtureModel, evidence: Evidence, sites: dict[str, Any]) -> dict[str, Array]:
    """Unconstrained points (starts, ...) from values of the sites."""
    under = _under(model, evidence)
    return jax.vmap(lambda values: unconstrain_fn(under._parameters, (), {}, values))(sites)


@partial(jax.jit, static_argnums=0)
def prior_points(model: MixtureModel, evidence: Evidence, keys: Array) -> dict[str, Array]:
    """Draws of the prior, as unconstrained points (draws, ...)."""
    under = _under(model, evidence)

    def one(key: Array) -> dict[str, Array]:
        with handlers.trace() as sites, handlers.seed(rng_seed=key):
            under._parameters()
        drawn = {name: site["value"] for name, site in sites.items() if is_free(site)}
        return unconstrain_fn(under._parameters, (), {}, drawn)

    return jax.lax.map(one, keys)


def blank_points(model: MixtureModel, evidence: Evidence, n: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What has the shapes of n unconstrained points: the program is run on blanks, and draws nothing."""
    shapes = {}

    def run(evidence: Evidence) -> None:
        for name, site in on_blanks(_under(model, evidence)._parameters).items():
            if is_free(site):
                shapes[name] = unconstrained_shape(site)

    jax.eval_shape(run, evidence)
    return {name: jax.ShapeDtypeStruct((n, *shape), float) for name, shape in shapes.items()}


@partial(jax.jit, static_argnums=0)
def log_prior_of_sites(model: MixtureModel, evidence: Evidence, sites: dict[str, Any]) -> dict[str, Array]:
    """The log density of each site at its values (draws, ...), in the units of the evidence's prior or a program's."""

    def one(values: dict[str, Any]) -> dict[str, Array]:
        under = _under(model, evidence)
        with handlers.trace() as seen, handlers.substitute(data=values):
            under._parameters()
        return {
            name: jnp.sum(site["fn"].log_prob(site["value"]))
            for name, site in seen.items()
            if site["type"] == "sample"
        }

    return jax.lax.map(one, sites)
