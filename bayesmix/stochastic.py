"""Stochastic EM as a sampler: its chain is a sample of mixtures around the maximum of the likelihood.

A step draws z from p(z | x, θ) and takes the θ that maximises p(x, z | θ). The chain does not converge to a point but
to a law: its mean is near the maximum, its spread is that which the unknown z adds to what x says. It is no posterior:
what would be left if z were known is not in it.

References:
    Celeux & Diebolt (1985), The SEM algorithm. Nielsen (2000), The stochastic EM algorithm: estimation and asymptotic
    results, Bernoulli 6.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix.devices import double_precision
from bayesmix.drive import begin, run
from bayesmix.em import fit
from bayesmix.engines import sampled
from bayesmix.initialize import Start
from bayesmix.inputs import as_count, to_numpy
from bayesmix.keys import key_data
from bayesmix.loop import Options, Rules
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel
from bayesmix.mstep import maximize
from bayesmix.problem import inside, problem_of
from bayesmix.statistics import Statistics
from bayesmix.trees import mixture_tree
from bayesmix.uncertainty import ordered

if TYPE_CHECKING:
    import xarray
    from jaxtyping import Array

__all__ = ["stochastic_chain"]


def stochastic_chain(
    model: MixtureModel,
    x: Any,
    *,
    key: Any,
    n_draws: int = 1000,
    n_warmup: int = 200,
    n_chains: int = 4,
    init: Any = None,
    sample_weight: Any = None,
) -> xarray.DataTree:
    """The chain of stochastic EM, as mixtures.

    Each chain starts at the maximum that `fit` finds, or that it reaches from `init`. A draw that leaves a cluster at
    most d points is repeated.

    Args:
        model: the number of clusters, the structure, and a prior that `fit` takes.
        x: data (n, d).
        key: a JAX key or an int.
        n_draws: mixtures a chain.
        n_warmup: steps before them.
        n_chains: how many chains.
        init: as in `fit`.
        sample_weight: (n,), whole numbers.

    Returns:
        A tree with the group `posterior` (weights, means, covariances; chain, draw, cluster, ...), its clusters in the
        order of the maximum, and `sample_stats` with the log-likelihood (plus log prior) of each draw.

    Raises:
        ValueError: bad data or options, weights that are not whole numbers, or a fit that is not clean.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> chain = bm.stochastic_chain(bm.MixtureModel(2), x, key=0, n_draws=100, n_chains=2)
        >>> chain["posterior"]["means"].mean(["chain", "draw"]).round(0).values
        array([[ 4., 80.],
               [ 2., 54.]])
    """
    n_draws, n_chains = as_count(n_draws, "n_draws"), as_count(n_chains, "n_chains")
    n_warmup = as_count(n_warmup, "n_warmup", minimum=0)
    best = fit(model, x, init=init, sample_weight=sample_weight)
    if best.spurious:
        raise ValueError(f"stochastic_chain starts at a clean fit, and this one is {best.status}")
    problem = problem_of(best, x, sample_weight)
    problem.whole("stochastic EM draws a whole number of points", "use bootstrap(kind='weighted')")
    options = Options(sampled(problem), best.hold)
    start = inside(problem, best.mixture)
    states = begin([Start(start)] * n_chains, options, key_data(key, n_chains))
    limits = np.full(n_chains, n_warmup + n_draws)
    path = run(states, limits, problem.observations, problem.rules, options, title="stochastic EM")
    short = min(len(chain) for chain in path.chains)
    if short < n_warmup + n_draws:
        raise ValueError(
            "a cluster lost its points in 200 draws in a row, so the chain has no law to settle at; "
            "use fewer clusters or prior='weak'"
        )
    # A step is M, then E: the mixture of draw t comes from the statistics drawn before it.
    moments = np.stack([chain[-n_draws - 1 : -1] for chain in path.chains])
    objective = np.stack([trace[-n_draws:] for trace in path.traces])
    with double_precision():
        flat = moments.reshape(-1, *moments.shape[2:])
        second = problem.observations.second
        drawn = to_numpy(_mixtures(flat, second, start, problem.rules, best.hold))
    mixture, _ = ordered(problem, drawn, best.mixture)
    shaped = jax.tree.map(lambda a: np.asarray(a).reshape(n_chains, n_draws, *a.shape[1:]), mixture)
    attributes = {
        "method": "stochastic EM",
        "n_warmup": n_warmup,
        "n_redraws": int(path.states.redraws.sum()),
    }
    return mixture_tree(shaped, {"objective": objective + problem.moved}, attributes)


@partial(jax.jit, static_argnames="hold")
def _mixtures(
    moments: Array, second: Any, start: GaussianMixture, rules: Rules, hold: tuple[str, ...]
) -> GaussianMixture:
    """The M-step at each of many statistics."""

    def one(moments: Array) -> GaussianMixture:
        statistics = Statistics(moments, 0.0, second)
        return maximize(start, statistics, rules.floor, hold, rules.penalty).mixture

    return jax.lax.map(one, moments)
