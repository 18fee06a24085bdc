"""Where chains begin: at optima of the posterior, at mixtures that are given, or at the best of many prior draws.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from bayesmix.chains import Plan
from bayesmix.conjugate import parameters_of
from bayesmix.distribution import precision_sites
from bayesmix.em import optima
from bayesmix.initialize import from_partition, known_statistics, nearest, plus_plus
from bayesmix.inputs import as_generator, double_precision, to_numpy
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel
from bayesmix.mstep import maximize
from bayesmix.penalty import rescaled
from bayesmix.potential import Evidence, potential, prior_points, unconstrained
from bayesmix.problem import Problem, inside
from bayesmix.programs import FixedPrior, ProgramPrior
from bayesmix.statistics import observe

__all__ = ["evidence_of", "from_optima", "from_prior", "in_sites"]

_NEAR = 10.0  # nats below the best optimum at which a chain may start
_JITTER = 0.1  # of a start, in unconstrained units
_PRIOR_DRAWS = 500  # a chain


def evidence_of(
    model: MixtureModel, problem: Problem, prior: FixedPrior | None, given: np.ndarray
) -> Evidence:
    """Points whose cluster is given count by their statistics, the others by the pass over the data."""
    row, observations = problem.structure, problem.observations
    k, known = model.n_components, given >= 0
    fixed = known_statistics(problem.x, problem.w, given, k, row)
    if known.any():
        observations = observe(problem.x, np.where(known, 0, problem.w), row)
    if isinstance(prior, ProgramPrior):
        prior = prior.rescaled(problem.units)
    elif prior is not None:
        inner = rescaled(prior, problem.units, row)
        prior = replace(inner, concentration=np.broadcast_to(np.asarray(inner.concentration, float), (k,)))
    return Evidence(observations, fixed, prior, problem.units.origin, problem.units.scale)


def from_optima(problem: Problem, given: np.ndarray, init: Any, n_chains: int, key: Any) -> GaussianMixture:
    """A mixture a chain (chains, ...), in loop units.

    Args:
        problem: the data, with the prior under which optima are sought.
        given: known clusters of its rows, -1 where they are not.
        init: mixtures in the data's units, or `None`.
        n_chains: how many.
        key: seeds the search.

    Raises:
        ValueError: mixtures that do not fit the model or the number of chains.
    """
    if init is not None:
        some = list(init) if isinstance(init, list | tuple) else [init]
        for mixture in some:
            _require(mixture, problem)
        if len(some) not in (1, n_chains):
            raise ValueError(f"init has {len(some)} mixtures for {n_chains} chains; pass one, or one a chain")
        found = [inside(problem, mixture) for mixture in some]
    elif (given >= 0).any():
        generator = as_generator(key)
        found = [_from_labels(problem, given, generator) for _ in range(n_chains)]
    else:
        ranked = optima(problem, key=key)
        found = [mixture for objective, mixture in ranked if objective > ranked[0][0] - _NEAR]
        if not found:
            raise ValueError(
                "no start of EM ended at a clean optimum, so chains have nowhere to begin; pass init=, fewer clusters "
                "or a prior that is less flat"
            )
    chosen = [found[c % len(found)] for c in range(n_chains)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *chosen)


def _require(mixture: Any, problem: Problem) -> None:
    k, d, name = problem.n_components, problem.x.shape[1], problem.structure.name
    if not isinstance(mixture, GaussianMixture) or mixture.means.ndim != 2:
        raise ValueError(
            f"init must be a GaussianMixture, or a list with one a chain; it has a {type(mixture).__name__}"
        )
    if (mixture.n_components, mixture.n_features, mixture.structure) != (k, d, name):
        raise ValueError(
            f"init has a mixture of {mixture.n_components} clusters in {mixture.n_features} features, "
            f"{mixture.structure}; the model has {k} in {d}, {name}"
        )


def _from_labels(problem: Problem, given: np.ndarray, generator: np.random.Generator) -> GaussianMixture:
    """The M-step of a partition that keeps the known clusters: each other row with the nearest of their means."""
    x, w, k = problem.x, problem.w, problem.n_components
    seeds = plus_plus(x, w, k, generator)
    for cluster in range(k):
        if (rows := given == cluster).any():
            seeds[cluster] = w[rows] @ x[rows] / w[rows].sum()
    labels = np.where(given >= 0, given, nearest(x, seeds)[0])
    start = from_partition(x, w, seeds, labels, problem.structure)
    assert start.statistics is not None
    rules = problem.rules
    with double_precision():
        return to_numpy(maximize(start.mixture, start.statistics, rules.floor, (), rules.penalty).mixture)


def in_sites(plan: Plan, evidence: Evidence, mixtures: GaussianMixture, key: jax.Array) -> Any:
    """Mixtures (chains, ...) as what the kernel samples; "nuts" moves them a little, the approximations start there."""
    if plan.method == "gibbs":
        return parameters_of(mixtures)
    prior = evidence.prior
    with double_precision():
        sites = prior.sites_of(mixtures) if isinstance(prior, ProgramPrior) else precision_sites(mixtures)
        points = to_numpy(unconstrained(plan.story, evidence, sites))
        return _moved(points, key) if plan.method == "nuts" else points


def _moved(points: dict[str, Any], key: jax.Array) -> dict[str, np.ndarray]:
    """Normal noise on every unconstrained number, so that no two chains begin alike."""
    keys = jax.random.split(key, len(points))
    return {
        name: np.asarray(value + _JITTER * jax.random.normal(k, value.shape, value.dtype))
        for k, (name, value) in zip(keys, points.items())
    }


def from_prior(
    story: MixtureModel, evidence: Evidence, key: jax.Array, n_chains: int
) -> dict[str, np.ndarray]:
    """The best of many draws of a program, as unconstrained points (chains, ...)."""
    with double_precision():
        points = prior_points(story, evidence, jax.random.split(key, _PRIOR_DRAWS * n_chains))
        energy = np.asarray(_energies(story, evidence, points))
    best = np.argsort(np.where(np.isfinite(energy), energy, np.inf), kind="stable")[:n_chains]
    if not np.isfinite(energy[best]).all():
        raise ValueError(
            f"of {len(energy)} draws from the prior program fewer than {n_chains} have a finite density at the data"
        )
    return {name: np.asarray(value)[best] for name, value in points.items()}


@partial(jax.jit, static_argnums=0)
def _energies(story: MixtureModel, evidence: Evidence, points: dict[str, Any]) -> Any:
    return jax.lax.map(lambda point: potential(story, evidence, point), points)
