"""The evidence of a mixture, p(x | k, structure, prior), by bridge sampling between the posterior and its conditionals.

The posterior of an exchangeable model has k! copies of everything, one a labelling. The proposal here has them too: it
is the mixture of the laws of θ given z, z from some of the draws, summed over all labellings,

    q(θ) = 1/S Σ_s 1/k! Σ_π p(π θ | z_s, x),

each sum over π by dynamic programming on subsets, exactly; and each draw of the posterior gets a random labelling. So
nothing has to be multiplied by k!, which is wrong wherever labellings overlap. Half of the draws make q, the other half
are what the bridge stands on. Where some rows name their cluster, π permutes the clusters that none names. A prior
with unequal concentrations has other laws in other labellings, which chains may not have seen: there the evidence is
the mean of joint / q over draws of q alone.

References:
    Meng & Wong (1996), Simulating ratios of normalizing constants via a simple identity, Statistica Sinica 6.
    Frühwirth-Schnatter (2004), Estimating marginal likelihoods for mixture and Markov switching models using bridge
    sampling techniques, Econometrics Journal 7.
    Lee & Robert (2016), Importance sampling schemes for evidence approximation in mixture models, Bayesian Analysis 11.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix.conjugate import (
    Law,
    Parameters,
    conditional_law,
    draw,
    log_densities,
    mixture_of,
    parameters_of,
)
from bayesmix.covariance import Structure, structure_of
from bayesmix.devices import double_precision
from bayesmix.initialize import known_statistics
from bayesmix.inputs import as_count, to_numpy
from bayesmix.keys import as_generator, folded, key_data
from bayesmix.labels import permuted, unnamed
from bayesmix.mixture import GaussianMixture
from bayesmix.penalty import rescaled
from bayesmix.pointwise import log_likelihoods, with_points
from bayesmix.prior import ConjugatePrior
from bayesmix.problem import Problem, prepare
from bayesmix.statistics import Statistics
from bayesmix.trees import flat_draws, mixtures, observed_of

if TYPE_CHECKING:
    import xarray
    from jaxtyping import Array, Float

__all__ = ["LogEvidence", "log_evidence"]

_MOST_CLUSTERS = 10  # the sum over labellings costs 2^k k² a pair of draws
_ROUNDS = 1000
# Draws a chain: the bridge stands on half of them, and ArviZ counts effective draws of four or more.
_FEWEST = 8


class LogEvidence(NamedTuple):
    """log p(x), in nats, and its Monte-Carlo standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.standard_error:.3f}"


def log_evidence(
    posterior: xarray.DataTree, *, key: Any, n_proposals: int = 100, n_draws: int = 2000
) -> LogEvidence:
    """log p(x | model), the normaliser of the posterior, for models with a conjugate prior.

    The difference of two models' values is the log of their Bayes factor: `compare` makes probabilities of them.

    Args:
        posterior: from `sample_posterior`, relabelled or not.
        key: a JAX key or an int.
        n_proposals: from how many draws' allocations the proposal is made.
        n_draws: how many draws the bridge stands on at most, and as many from the proposal; under unequal
            concentrations so many from the proposal alone.

    Returns:
        The value in nats, in the data's own units, and its standard error, by the delta method and the effective
        number of draws.

    Raises:
        ValueError: a tree that `sample_posterior` did not make, a prior that is not conjugate (compare by LOO
            instead), more than 10 clusters, rows with missing cells, fewer than 100 draws, or of a chain fewer than 8.

    References:
        Frühwirth-Schnatter (2004), Econometrics Journal 7, section 4.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("galaxies")
        >>> options = {"key": 0, "method": "gibbs", "n_warmup": 100, "n_draws": 200}
        >>> one, three = (bm.sample_posterior(bm.MixtureModel(k, "V", "weak"), x, **options) for k in (1, 3))
        >>> bm.log_evidence(three, key=1).value > bm.log_evidence(one, key=1).value
        True
    """
    n_proposals, n_draws = as_count(n_proposals, "n_proposals"), as_count(n_draws, "n_draws", 50)
    mixture = mixtures(posterior)
    chains, draws, k = np.shape(mixture.weights)
    if k > _MOST_CLUSTERS:
        raise ValueError(
            f"the evidence sums over all labellings, which is done for at most {_MOST_CLUSTERS} clusters; the "
            f"posterior has {k}: compare by LOO"
        )
    if chains * draws < 100 or draws < _FEWEST:
        raise ValueError(
            f"the evidence needs at least 100 draws, and {_FEWEST} of each chain; the posterior has {chains * draws}, "
            f"{draws} of each: run longer"
        )
    problem, prior, given = _problem(posterior, mixture)
    z = np.asarray(posterior["allocations"]["z"])
    inner = problem.units.enter(flat_draws(mixture))
    generator, row = as_generator(key), problem.structure
    # Even draws of every chain make the proposal, odd ones are what the bridge stands on.
    which = np.arange(chains * draws).reshape(chains, draws)
    chosen = _spread_out(which[:, ::2].ravel(), n_proposals)
    stood = which[:, 1::2][:, :: max(1, min(draws // _FEWEST, -(-chains * (draws // 2) // n_draws)))]
    free = tuple(np.flatnonzero(unnamed(given[problem.keep], k)).tolist())
    stand = jax.tree.map(lambda a: np.asarray(a)[stood.ravel()], inner)
    stand = permuted(stand, _labellings(len(stand.weights), k, free, generator))
    flat_z = z.reshape(chains * draws, -1)[chosen][:, problem.keep]
    statistics = [known_statistics(problem.x, problem.w, labels, k, row) for labels in flat_z]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *statistics)
    # Chains that keep to one labelling do not see the others: where these have other laws, proposals alone count.
    apart = bool(free) and bool(np.ptp(np.asarray(prior.concentration)[list(free)]))
    count = n_draws if apart else stood.size
    words = key_data(folded(key, 1), count)
    points, weight = with_points(problem.x, stand, given[problem.keep]), problem.w
    with double_precision():
        proposed = to_numpy(_propose(stacked, prior, words, generator.integers(0, len(chosen), count), row))
    proposals = mixture_of(proposed, row)
    proposals = permuted(proposals, _labellings(count, k, free, generator))
    terms = []
    for batch in (proposals,) if apart else (stand, proposals):
        with double_precision():
            log_q, log_prior = to_numpy(_densities(stacked, prior, parameters_of(batch), row, free))
        terms.append(log_likelihoods(batch, points, weight) + log_prior - log_q)
    value, error = _mean(terms[0]) if apart else _bridge(terms[0].reshape(stood.shape), terms[1])
    return LogEvidence(value + problem.moved, error)


def _problem(
    posterior: xarray.DataTree, mixture: GaussianMixture
) -> tuple[Problem, ConjugatePrior, np.ndarray]:
    """The data in the units of the loop, the prior in them, and the clusters that were given."""
    attributes = posterior["posterior"].attrs
    if not str(attributes.get("prior", "")).startswith("conjugate"):
        raise ValueError(
            "log_evidence needs a posterior from sample_posterior under a conjugate prior; this one's prior is "
            f"{attributes.get('prior', 'not recorded')!r}: compare by LOO"
        )
    x, weight, given = observed_of(posterior)
    d = x.shape[1]
    row = structure_of(mixture.structure, d)
    scale = np.asarray(attributes["prior_scale"], float)
    concentration = np.asarray(attributes["prior_concentration"], float)
    k = mixture.n_components
    prior = ConjugatePrior(
        np.broadcast_to(concentration, (k,)),
        np.asarray(attributes["prior_mean"], float).reshape(d),
        float(attributes["prior_mean_count"]),
        float(attributes["prior_degrees_of_freedom"]),
        scale.reshape(d, d) if row.storage == "full" else scale if scale.size == d > 1 else scale.reshape(()),
    )
    if np.isnan(x).any():
        raise ValueError(
            "the evidence needs rows without missing cells, and the posterior is of rows that lack some: compare by LOO"
        )
    problem = prepare(k, row.name, x, weight, 1e-4)
    return problem, rescaled(prior, problem.units, row), given


def _spread_out(which: np.ndarray, count: int) -> np.ndarray:
    return which[np.linspace(0, len(which) - 1, min(count, len(which))).astype(int)]


def _labellings(count: int, k: int, free: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Permutations (count, k), each as probable, of those clusters; the others keep their labels."""
    order = np.tile(np.arange(k), (count, 1))
    order[:, list(free)] = np.array(free, int)[np.argsort(generator.random((count, len(free))), axis=1)]
    return order


@partial(jax.jit, static_argnames="row")
def _propose(
    statistics: Statistics, prior: ConjugatePrior, words: Array, which: Array, row: Structure
) -> Any:
    """A draw from the law of θ given the allocations `which`, for each key."""

    def one(pair: tuple[Array, Array]) -> Parameters:
        of_draw = jax.tree.map(lambda leaf: leaf[pair[1]], statistics)
        return draw(pair[0], conditional_law(of_draw, prior, row), row)

    return jax.lax.map(one, (words, which))


@partial(jax.jit, static_argnames=("row", "free"))
def _densities(
    statistics: Statistics, prior: ConjugatePrior, theta: Parameters, row: Structure, free: tuple[int, ...]
) -> tuple[Array, Array]:
    """log q and the log prior density of each θ (m, ...)."""
    laws = jax.vmap(lambda part: conditional_law(part, prior, row))(statistics)
    nothing = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), statistics)
    before = conditional_law(nothing, prior, row)

    def one(at: Parameters) -> tuple[Array, Array]:
        def of_law(law: Law) -> Array:
            own, shared = log_densities(law, at, row)
            named = jnp.trace(own) - sum(own[j, j] for j in free)
            return shared + named + _log_mean_labelling(own[np.ix_(free, free)])

        own, shared = log_densities(before, at, row)
        logs = jax.vmap(of_law)(laws)
        return jax.nn.logsumexp(logs) - math.log(logs.size), jnp.trace(own) + shared

    return jax.lax.map(one, theta)


def _log_mean_labelling(logs: Float[Array, "k k"]) -> Array:
    """log 1/k! Σ_π exp Σ_j logs[j, π(j)]: the permanent, column set by column set."""
    k = logs.shape[0]
    masks = np.arange(2**k)
    held = (masks[:, None] >> np.arange(k)) & 1 == 1
    without = masks[:, None] ^ (1 << np.arange(k))
    total = jnp.where(masks == 0, 0.0, -jnp.inf)
    for j in range(k):  # total[S]: the sum over ways to give the first j clusters the columns S
        total = jax.nn.logsumexp(jnp.where(held, total[without] + logs[j], -jnp.inf), axis=1)
    return total[-1] - math.lgamma(k + 1)


def _mean(proposal: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """The log normaliser from log (joint / q) at draws of q alone, and its error."""
    top = proposal.max()
    ratio = np.exp(proposal - top)
    return top + math.log(ratio.mean()), float(ratio.std() / ratio.mean() / math.sqrt(ratio.size))


def _bridge(
    posterior: Float[np.ndarray, "chain draw"], proposal: Float[np.ndarray, " m"]
) -> tuple[float, float]:
    """The log normaliser from log (joint / q) at draws of both, by Meng and Wong's optimal bridge, and its error."""
    import arviz

    ess: Any = arviz.ess

    def terms(log_r: float) -> tuple[np.ndarray, np.ndarray]:
        """At q's draws joint / (s1 joint + s2 r q), at the posterior's r q / (s1 joint + s2 r q)."""
        above = np.exp(-np.logaddexp(math.log(s1), math.log(s2) + log_r - proposal))
        return above, np.exp(-np.logaddexp(math.log(s1) + posterior - log_r, math.log(s2)))

    effective = float(ess(posterior, method="mean"))
    size = effective if np.isfinite(effective) else posterior.size
    s1, s2 = size / (size + proposal.size), proposal.size / (size + proposal.size)
    log_r = float(np.median(posterior))
    for _ in range(_ROUNDS):
        above, below = terms(log_r)
        change = math.log(above.mean()) - math.log(below.mean())
        log_r += change
        if abs(change) < 1e-10:
            break
    above, below = terms(log_r)
    autocorrelation = below.size / float(ess(below, method="mean"))
    squared = above.var() / above.mean() ** 2 / above.size
    squared += autocorrelation * below.var() / below.mean() ** 2 / below.size
    return log_r, math.sqrt(squared)
