"""From what the chains sampled to a posterior: mixtures in the data's own units, and a tree that ArviZ reads.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix.chains import Plan
from bayesmix.compilation import Call
from bayesmix.conjugate import blank, mixture_of
from bayesmix.density import precision_factor, simulate
from bayesmix.devices import double_precision
from bayesmix.inputs import to_numpy
from bayesmix.keys import key_data
from bayesmix.mixture import GaussianMixture
from bayesmix.penalty import Penalty, log_prior_parts, to_data_units
from bayesmix.pointwise import allocate, call_of_allocate, with_points
from bayesmix.potential import Evidence, log_prior_of_sites, realize
from bayesmix.problem import Problem
from bayesmix.programs import FixedPrior, ProgramPrior
from bayesmix.trees import flat_draws, mixture_tree

if TYPE_CHECKING:
    import xarray
    from jaxtyping import Array

__all__ = ["draws_of", "posterior_tree", "replicates", "tree_calls"]

_TOGETHER = 2**20  # numbers of covariances, of whose draws the priors are taken at once
_MOST = 10**8  # numbers of pointwise log-likelihood that are kept without asking


def draws_of(
    plan: Plan, evidence: Evidence, problem: Problem, raw: Any
) -> tuple[GaussianMixture, dict[str, np.ndarray]]:
    """Mixtures (chains, draws, ...) in the data's units, and values of the sites to be shown beside them."""
    shape = jax.tree.leaves(raw)[0].shape[:2]
    flat = flat_draws(raw)
    sites: dict[str, np.ndarray] = {}
    if plan.method == "gibbs":
        mixture = mixture_of(flat, problem.structure)
    else:
        with double_precision():
            mixture, sites = to_numpy(realize(plan.story, evidence, flat))
    if evidence.prior is not None:
        mixture = problem.units.leave(mixture)
        prior = evidence.prior
        sites = prior.shown(sites, problem.units.scale) if isinstance(prior, ProgramPrior) else {}
    mixture, sites = jax.tree.map(lambda a: np.asarray(a).reshape(*shape, *np.shape(a)[1:]), (mixture, sites))
    return replace(mixture, feature_names=problem.names), sites


def tree_calls(
    plan: Plan, evidence: Evidence, problem: Problem, given: np.ndarray, points: Any, n_draws: int
) -> list[Call]:
    """Those that make a tree of so many draws of each chain, for sampled `points` of these shapes."""
    k, n = problem.n_components, plan.n_chains * n_draws
    drawn = blank(problem.structure, (n, k, problem.points.shape[1]))
    some = [call_of_allocate(drawn, with_points(problem.came, drawn, given))]
    if plan.method != "gibbs":
        flat = jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype), points)
        some.append(Call(realize, (plan.story, evidence, flat)))
    return some


def _log_priors(penalty: Penalty, mixtures: GaussianMixture) -> dict[str, np.ndarray]:
    """`log_prior_parts` of every draw; they are small, and NumPy takes less time than compiling."""
    n, d = len(mixtures.weights), mixtures.n_features
    step = max(1, _TOGETHER * n // mixtures.covariance.values.size)
    of = [jax.tree.map(itemgetter(slice(first, first + step)), mixtures) for first in range(0, n, step)]
    parts = [log_prior_parts(penalty, some, precision_factor(some.covariance, d)) for some in of]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _log_prior(
    plan: Plan,
    evidence: Evidence,
    problem: Problem,
    prior: FixedPrior | None,
    flat: GaussianMixture,
    sites: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """log p(θ) of each draw in the data's units: by site, or for a conjugate prior by parameter up to a constant."""
    with double_precision():
        if isinstance(prior, ProgramPrior):
            values = prior.sites_of(flat, flat_draws(sites))
            return to_numpy(log_prior_of_sites(plan.story, evidence._replace(prior=prior), values))
        if prior is None:
            return to_numpy(log_prior_of_sites(plan.story, evidence, flat_draws(sites)))
    inner = jax.tree.map(np.asarray, problem.units.enter(replace(flat, feature_names=None)))
    assert problem.rules.penalty is not None
    parts = _log_priors(problem.rules.penalty, inner)
    moved = to_data_units(problem.units, problem.structure, problem.n_components)
    return {**parts, "covariances": parts["covariances"] + float(problem.rules.penalty.constant) + moved}


def posterior_tree(
    plan: Plan,
    evidence: Evidence,
    problem: Problem,
    given: np.ndarray,
    prior: FixedPrior | None,
    mixture: GaussianMixture,
    sites: dict[str, np.ndarray],
    site_dims: Mapping[str, Sequence[str | None]],
    record: dict[str, np.ndarray],
    key: Any,
    pointwise: bool | None,
    predictive: bool,
) -> tuple[xarray.DataTree, np.ndarray]:
    """The groups posterior, sample_stats, log_likelihood, log_prior, allocations, observed_data; and p(z | x) (n, k).

    `prior` is in the data's units, `None` for any other program.
    """
    from arviz_base import dict_to_dataset

    chains, draws, k = mixture.weights.shape
    n, d = problem.points.shape
    flat = flat_draws(mixture)
    words = key_data(key, chains * draws)
    logs, z, mean = allocate(flat, with_points(problem.came, flat, given), words)
    times = np.where(problem.keep, problem.weight, 0)
    if (times != 1).any():
        logs *= times
    log_prior = _log_prior(plan, evidence, problem, prior, flat, sites)
    lp = logs.sum(axis=1) + sum(value.reshape(len(value), -1).sum(axis=1) for value in log_prior.values())
    shape = (chains, draws)
    if "n_steps" in record:
        record["tree_depth"] = np.ceil(np.log2(record["n_steps"] / plan.thinning + 1)).astype(int)
    tree = mixture_tree(mixture, {"lp": lp.reshape(shape), **record}, {}, sites, site_dims)
    names = list(problem.names)
    coords = {"obs_id": np.arange(n), "feature": names, "cluster": np.arange(k)}

    def dataset(arrays: dict[str, Any], dims: dict[Any, Any], **options: Any) -> xarray.Dataset:
        known = {name: coords[name] for name in coords if any(name in some for some in dims.values())}
        return dict_to_dataset(
            arrays, dims=dims, coords=known, attrs={"creation_library": "bayesmix"}, **options
        )

    if pointwise or (pointwise is None and logs.size <= _MOST):
        tree["log_likelihood"] = dataset({"x": logs.reshape(*shape, n)}, {"x": ["obs_id"]})
    else:
        tree["posterior"].attrs["pointwise"] = (
            f"left out: {logs.size} numbers; ask for them with pointwise=True"
        )
    summed = {name: value.reshape(*shape, -1).sum(axis=-1) for name, value in log_prior.items()}
    tree["log_prior"] = dataset(summed, {})
    allocations = {"z": z.reshape(*shape, n)}
    if predictive:
        new, drawn = replicates(flat, words[:, ::-1], n)
        tree["posterior_predictive"] = dataset({"x": new.reshape(*shape, n, d)}, {"x": ["obs_id", "feature"]})
        allocations["z_predictive"] = drawn.reshape(*shape, n).astype(z.dtype)
    tree["allocations"] = dataset(allocations, {name: ["obs_id"] for name in allocations})
    observed: dict[str, Any] = {"x": problem.came}
    dims = {"x": ["obs_id", "feature"]}
    if (given >= 0).any():
        observed["given"], dims["given"] = given, ["obs_id"]
    if (problem.weight != 1).any():
        observed["weight"], dims["weight"] = problem.weight, ["obs_id"]
    tree["observed_data"] = dataset(observed, dims, sample_dims=[])
    return tree, mean


def replicates(mixtures: GaussianMixture, words: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """As many points as the data have, and their clusters, from each draw."""
    with double_precision():
        return to_numpy(_simulate(mixtures._arrays(), words, n))


@partial(jax.jit, static_argnums=2)
def _simulate(mixtures: GaussianMixture, words: Array, n: int) -> tuple[Array, Array]:
    def one(pair: tuple[GaussianMixture, Array]) -> tuple[Array, Array]:
        return simulate(pair[0], jax.random.wrap_key_data(pair[1]), n)

    return jax.lax.map(one, (mixtures, words))
