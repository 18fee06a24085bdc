"""Where chains begin: at optima of the posterior, at mixtures that are given, or at the best of many prior draws.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import numpy as np

from bayesmix.chains import SPREAD, Frame, Plan, curvature
from bayesmix.conjugate import Parameters, blank, parameters_of
from bayesmix.devices import double_precision
from bayesmix.distribution import precision_sites
from bayesmix.em import optima
from bayesmix.given import given_mixture
from bayesmix.initialize import from_partition, known_centres, known_statistics
from bayesmix.inputs import to_numpy
from bayesmix.keys import as_generator, key_words
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel
from bayesmix.mstep import maximize
from bayesmix.observations import observe
from bayesmix.penalty import rescaled
from bayesmix.potential import Evidence, blank_points, potential, prior_points, unconstrained
from bayesmix.problem import Problem, inside
from bayesmix.programs import FixedPrior, ProgramPrior
from bayesmix.seeds import nearest, plus_plus

__all__ = ["blank_starts", "evidence_of", "from_optima", "from_prior", "given_starts", "in_sites"]

_NEAR = 10.0  # nats below the best optimum at which a chain may start
_FLAT = 1e-3  # least curvature of the potential along any direction, where that of each parameter is one
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


def given_starts(problem: Problem, init: Any, n_chains: int) -> list[GaussianMixture]:
    """The mixtures of `init`, one or a list, in loop units; none where it is `None`.

    Raises:
        ValueError: mixtures that do not fit the model or the number of chains.
    """
    if init is None:
        return []
    some = list(init) if isinstance(init, list | tuple) else [init]
    some = [_required(mixture, problem) for mixture in some]
    if len(some) not in (1, n_chains):
        raise ValueError(f"init has {len(some)} mixtures for {n_chains} chains; pass one, or one a chain")
    return [inside(problem, mixture) for mixture in some]


def from_optima(
    problem: Problem, given: np.ndarray, known: list[GaussianMixture], n_chains: int, key: Any
) -> GaussianMixture:
    """A mixture a chain (chains, ...), in loop units.

    Args:
        problem: the data, with the prior under which optima are sought.
        given: known clusters of its rows, -1 where they are not.
        known: mixtures to take instead of optima, if there are any.
        n_chains: how many.
        key: seeds the search.

    Raises:
        ValueError: no optimum is clean.
    """
    if known:
        found = known
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


def _required(mixture: Any, problem: Problem) -> GaussianMixture:
    if not isinstance(mixture, GaussianMixture):
        raise ValueError(
            f"init must be a GaussianMixture, or a list with one a chain; it has a {type(mixture).__name__}"
        )
    mixture = given_mixture(mixture, problem.n_components, problem.names)
    if mixture.structure != problem.structure.name:
        raise ValueError(
            f"init has a mixture of structure {mixture.structure}; the model has {problem.structure.name}"
        )
    return mixture


def _from_labels(problem: Problem, given: np.ndarray, generator: np.random.Generator) -> GaussianMixture:
    """The M-step of a partition that keeps the known clusters: each other row with the nearest of their means."""
    x, w, k = problem.x[:], problem.w, problem.n_components
    named, centres = known_centres(x, w, given, k, problem.structure)
    seeds = np.empty((k, x.shape[1]))
    seeds[named] = centres
    seeds[np.setdiff1d(np.arange(k), named)] = plus_plus(x, w, k - len(named), [generator], centres)[0]
    labels = np.where(given >= 0, given, nearest(x, seeds))
    start = from_partition(x, w, seeds, labels, problem.structure)
    assert start.statistics is not None
    rules = problem.rules
    with double_precision():
        return to_numpy(maximize(start.mixture, start.statistics, rules.floor, (), rules.penalty).mixture)


def blank_starts(plan: Plan, evidence: Evidence, problem: Problem) -> tuple[Any, Any]:
    """What has the shapes of what the method begins with, and of what it samples (chains, ...)."""
    n = plan.n_chains
    if plan.method == "gibbs":
        of = blank(problem.structure, (n, problem.n_components, problem.x.shape[1]))
        start = Parameters(of.weights, of.means, of.covariance.values)
        return start, start
    with double_precision():
        points = blank_points(plan.story, evidence, n)
    if plan.method != "nuts":
        return points, points
    p = sum(math.prod(a.shape[1:]) for a in points.values())
    return Frame(points, np.broadcast_to(0.0, (n, p, p)), np.broadcast_to(0.0, (n, p))), points


def in_sites(
    plan: Plan, evidence: Evidence, mixtures: GaussianMixture, generator: np.random.Generator
) -> Any:
    """Mixtures (chains, ...) as what the method begins with.

    "gibbs" its parameters; "nuts" frames, begun at a draw from the normal law of the curvature at the mixture; the
    approximations unconstrained points.
    """
    if plan.method == "gibbs":
        return parameters_of(mixtures)
    prior = evidence.prior
    with double_precision():
        sites = prior.sites_of(mixtures) if isinstance(prior, ProgramPrior) else precision_sites(mixtures)
        points = to_numpy(unconstrained(plan.story, evidence, sites))
    return _frames(plan, evidence, points, generator) if plan.method == "nuts" else points


def _frames(
    plan: Plan, evidence: Evidence, points: dict[str, np.ndarray], generator: np.random.Generator
) -> Frame:
    spreads: dict[bytes, np.ndarray] = {}
    frames = []
    for c in range(plan.n_chains):
        center = jax.tree.map(itemgetter(c), points)
        mark = b"".join(leaf.tobytes() for leaf in center.values())
        if mark not in spreads:
            spreads[mark] = _spread(curvature(plan, evidence, center))
        spread = spreads[mark] / SPREAD
        frames.append(Frame(center, spread, SPREAD * generator.standard_normal(len(spread))))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *frames)


def _spread(second: np.ndarray) -> np.ndarray:
    """A, A Aᵀ the covariance of the normal law with this curvature of its potential (p, p).

    Where it curves the other way, or next to not at all, the parameter's own curvature counts.
    """
    own = np.sqrt(np.abs(np.diagonal(second)))
    own = np.where(own > 0, own, 1)
    values, axes = np.linalg.eigh(second / own[:, None] / own)
    return axes / np.sqrt(np.maximum(np.abs(values), _FLAT)) / own[:, None]


def from_prior(
    plan: Plan, evidence: Evidence, generator: np.random.Generator
) -> Frame | dict[str, np.ndarray]:
    """The best of many draws of a program, as what the method begins with (chains, ...)."""
    n = plan.n_chains
    keys = key_words(generator, _PRIOR_DRAWS * n)
    with double_precision():
        points = to_numpy(prior_points(plan.story, evidence, keys))
        energy = np.asarray(_energies(plan.story, evidence, points))
    best = np.argsort(np.where(np.isfinite(energy), energy, np.inf), kind="stable")[:n]
    if not np.isfinite(energy[best]).all():
        raise ValueError(
            f"of {len(energy)} draws from the prior program fewer than {n} have a finite density at the data"
        )
    center = {name: value[best] for name, value in points.items()}
    if plan.method != "nuts":
        return center
    p = sum(value[0].size for value in center.values())
    return Frame(center, np.tile(np.eye(p) / SPREAD, (n, 1, 1)), np.zeros((n, p)))


@partial(jax.jit, static_argnums=0)
def _energies(story: MixtureModel, evidence: Evidence, points: dict[str, Any]) -> Any:
    return jax.lax.map(lambda point: potential(story, evidence, point), points)
