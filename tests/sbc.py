"""Simulation-based calibration: θ from the prior, data from θ, draws from the package, and where θ ranks among them.

If the sampler draws from the posterior, θ is one more draw of it, so that its rank in any quantity is uniform. Prior,
data and quantities are written here in NumPy and SciPy; only what is tested, `sample`, is the package's.

References:
    Talts, Betancourt, Simpson, Vehtari & Gelman (2018), Validating Bayesian inference algorithms with simulation-based
    calibration.
    Säilynoja, Bürkner & Vehtari (2022), Graphical test for discrete uniformity and its applications in goodness-of-fit
    evaluation and multiple sample comparison, Statistics and Computing 32.
"""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

import bayesmix as bm
from bayesmix.chain_starts import evidence_of, from_optima, given_starts, in_sites
from bayesmix.chains import Plan, advance, run_chains
from bayesmix.covariance import STRUCTURES
from bayesmix.devices import double_precision
from bayesmix.draws import draws_of
from bayesmix.gibbs import GibbsState
from bayesmix.inputs import to_numpy
from bayesmix.keys import as_generator, key_words
from bayesmix.model import story_of
from bayesmix.problem import prepare

N = 20
RANKS = 20  # values that a rank can take: one more than there are draws
# How many steps a chain takes before its first draw, and from one draw to the next: nearly independent ones.
STEPS = {"gibbs": (160, 40), "nuts": (90, 5)}
SCALES = {"full": [[1.0, 0.9], [0.9, 1.5]], "diagonal": [1.0, 1.5], "spherical": 1.2}


class Mixtures(NamedTuple):
    """Parameters (..., k, ...) with dense covariances, in the data's units."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def prior_of(structure, **changes):
    """Overlapping clusters, labels that are told apart by their concentrations only, a correlated scale."""
    settings = {
        "mean": [0.3, -0.2],
        "mean_count": 1.0,
        "degrees_of_freedom": 4.5,
        "scale": SCALES[STRUCTURES[structure].storage],
        "concentration": [4.0, 1.2],
    }
    return bm.ConjugatePrior.of(**settings | changes)


def transposed(scale):
    """LᵀL in place of L Lᵀ: what a transposed Cholesky factor makes of a scale."""
    factor = np.linalg.cholesky(scale)
    return factor.T @ factor


def simulate_parameters(prior, structure, count, rng):
    """θ ~ prior, `count` times."""
    row, d = STRUCTURES[structure], prior.n_features
    concentration = np.asarray(prior.concentration)
    k = len(concentration)
    weights = rng.dirichlet(concentration, size=count)
    clusters = 1 if row.shared else k
    nu, scale = prior.degrees_of_freedom, np.asarray(prior.scale)
    if row.storage == "full":
        covariances = stats.invwishart.rvs(nu, scale, size=count * clusters, random_state=rng)
    else:
        cells = d if row.storage == "diagonal" else 1
        variances = stats.invgamma.rvs(
            nu / 2, scale=scale / 2, size=(count * clusters, cells), random_state=rng
        )
        covariances = variances[..., None] * np.eye(d)
    covariances = np.broadcast_to(np.reshape(covariances, (count, clusters, d, d)), (count, k, d, d))
    noise = np.linalg.cholesky(covariances) @ rng.normal(size=(count, k, d, 1))
    return Mixtures(weights, prior.mean + noise[..., 0] / np.sqrt(prior.mean_count), covariances)


def simulate_points(theta, n, rng):
    """z and then x, n points of each mixture (count, n, d)."""
    count, k, d = theta.means.shape
    z = (rng.random((count, n, 1)) > np.cumsum(theta.weights, axis=1)[:, None, : k - 1]).sum(axis=-1)
    index = np.arange(count)[:, None]
    noise = np.linalg.cholesky(theta.covariances)[index, z] @ rng.normal(size=(count, n, d, 1))
    return theta.means[index, z] + noise[..., 0]


def log_joint(theta, x):
    """log p(x, z=k) (count, ..., k, n) of mixtures (count, ..., k, ...) on data x (count, n, d)."""
    weights, means, covariances = theta
    x = np.reshape(x, (len(x), *(1,) * (weights.ndim - 1), *x.shape[1:]))
    deviation = x - means[..., None, :]
    distance = np.einsum("...ni,...ij,...nj->...n", deviation, np.linalg.inv(covariances), deviation)
    constant = np.log(weights) - np.linalg.slogdet(covariances)[1] / 2 - x.shape[-1] / 2 * np.log(2 * np.pi)
    return constant[..., None] - distance / 2


def quantities(theta, x, prior, structure):
    """Numbers that do not depend on which cluster is called 0, but for the prior's share in the log joint."""
    row, d = STRUCTURES[structure], x.shape[-1]
    weights, means, covariances = theta
    precision, log_det = np.linalg.inv(covariances), np.linalg.slogdet(covariances)[1]
    log_likelihood = np.logaddexp.reduce(log_joint(theta, x), axis=-2).sum(axis=-1)
    # log p(θ), up to a constant, by weights, covariances and means.
    nu, scale = prior.degrees_of_freedom, np.asarray(prior.scale)
    log_prior = ((np.asarray(prior.concentration) - 1) * np.log(weights)).sum(axis=-1)
    each = slice(0, 1) if row.shared else slice(None)
    if row.storage == "full":
        parts = (
            -(nu + d + 1) / 2 * log_det - np.trace(scale @ precision, axis1=-2, axis2=-1) / 2
        )  # inverse Wishart
    else:
        cells = np.diagonal(precision, axis1=-2, axis2=-1)
        cells = cells if row.storage == "diagonal" else cells[..., :1]
        parts = ((nu / 2 + 1) * np.log(cells) - scale / 2 * cells).sum(axis=-1)  # inverse gammas
    log_prior = log_prior + parts[..., each].sum(axis=-1)
    off = means - prior.mean
    pull = prior.mean_count * np.einsum("...i,...ij,...j->...", off, precision, off)
    log_prior = log_prior - (log_det + pull).sum(axis=-1) / 2
    return {
        "log likelihood": log_likelihood,
        "log prior": log_prior,
        "log joint": log_likelihood + log_prior,
        "largest weight": weights.max(axis=-1),
        "log determinants": log_det.sum(axis=-1),
        "first variances": np.log(covariances[..., 0, 0]).sum(axis=-1),
        "distance of means": ((means[..., 0, :] - means[..., 1, :]) ** 2).sum(axis=-1),
        "grand mean": (weights * means[..., 0]).sum(axis=-1),
    }


@partial(jax.jit, static_argnames=("plan", "n"))
def _gibbs(keys, starts, evidence, plan, n):
    """The chains of many data sets at once: what `run_chains` runs for one of them."""

    def chain(words, start, one):
        return advance(GibbsState(start, words), start, one, plan, n)[1]

    return jax.vmap(chain)(keys, starts, evidence)


def sample(method, x, prior, structure, seed, *, steps=None, n_draws=RANKS - 1, init=None):
    """Draws of the posteriors of the data sets x (count, n, d), and how many transitions diverged.

    What happens to a data set is what `sample_posterior` does to it, with one chain and the key seed + its number.

    Args:
        method: "gibbs", where all data sets run together in one program, or "nuts", where one comes after the other.
        x, prior, structure: the data sets, and what the sampler is told.
        seed: of the first data set.
        steps: of warm-up, and from one draw to the next; `STEPS` by default.
        n_draws: how many are wanted so far apart; all draws between them are returned too: (count, n_draws * apart, ...).
        init: `Mixtures` (count, ...) to start from; by default chains start at optima of the posterior.
    """
    n_warmup, apart = steps or STEPS[method]
    k, n, length = len(np.asarray(prior.concentration)), x.shape[1], n_draws * apart
    model, unknown = bm.MixtureModel(k, structure, prior), np.full(n, -1)
    # Concentrations differ, and so the public face proposes labellings.
    warm = n_warmup if method == "nuts" else 0
    plan = Plan(method, story_of(k, structure, None), 1, warm, permute=method == "gibbs")
    keys = [seed + number for number in range(len(x))]
    spawned = [as_generator(key).spawn(2) for key in keys]
    words = [key_words(for_chains, 1) for _, for_chains in spawned]
    problems = [prepare(k, structure, points, None, 1e-4, prior) for points in x]
    evidence = [evidence_of(model, problem, prior, unknown) for problem in problems]
    given = [None] * len(x)
    if init is not None:
        given = [bm.GaussianMixture.of(*one, covariance=structure) for one in zip(*init)]
    optima = [
        from_optima(p, unknown, given_starts(p, one, 1), 1, key) for p, one, key in zip(problems, given, keys)
    ]
    raws, diverging = [], 0
    if method == "gibbs":
        starts = in_sites(plan, evidence[0], _stack(optima, np.concatenate), spawned[0][0])
        with double_precision():
            one = _stack(evidence, np.stack)
            raw = to_numpy(_gibbs(np.concatenate(words), starts, one, plan, n_warmup + length))
        raws = [jax.tree.map(lambda a, i=i: a[i, None, n_warmup:], raw) for i in range(len(x))]
    else:
        for one, optimum, (for_starts, _), word in zip(evidence, optima, spawned, words):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=r".* transitions diverged")
                start = in_sites(plan, one, optimum, for_starts)
                draws, record = run_chains(plan, one, start, word, n_warmup, length)
            raws.append(draws)
            diverging += int(record["diverging"].sum())
    found = [draws_of(plan, one, problem, raw)[0] for one, problem, raw in zip(evidence, problems, raws)]
    mixtures = [Mixtures(m.weights[0], m.means[0], m.covariances[0]) for m in found]
    return _stack(mixtures, np.stack), diverging


def _stack(trees, how):
    return jax.tree.map(lambda *leaves: how([np.asarray(leaf) for leaf in leaves]), *trees)


class Study(NamedTuple):
    """Data sets, what was drawn for each, and where the truth ranks among those draws that are far enough apart."""

    x: np.ndarray
    draws: Mixtures
    chains: dict  # of each quantity, (count, all draws)
    ranks: dict  # of each quantity, (count,)
    diverging: int


def study(method, structure, count, seed, *, believed=None, steps=None, search=True):
    """Truths from `prior_of(structure)`, ranked among the draws of a sampler.

    Args:
        method, structure: of the sampler.
        count, seed: how many data sets, and which.
        believed: the prior that the sampler is told, where it is not the true one.
        steps: of warm-up, and from one draw to the next; `STEPS` by default.
        search: whether chains start at optima of the posterior or, which is cheaper, at a draw from the prior.
    """
    prior, rng = prior_of(structure), np.random.default_rng(seed)
    truth = simulate_parameters(prior, structure, count, rng)
    x = simulate_points(truth, N, rng)
    init = None if search else simulate_parameters(prior, structure, count, rng)
    draws, diverging = sample(method, x, believed or prior, structure, seed, steps=steps, init=init)
    chains, true = quantities(draws, x, prior, structure), quantities(truth, x, prior, structure)
    apart = (steps or STEPS[method])[1]
    ranks = {
        name: (values[:, apart - 1 :: apart] < true[name][:, None]).sum(axis=1)
        for name, values in chains.items()
    }
    return Study(x, draws, chains, ranks, diverging)


def effective_sizes(chains):
    """The effective sample size of each row's mean: one chain a row."""
    import arviz as az

    return np.array([float(az.ess(chain[None], method="mean")) for chain in chains])


def _tails(n, values):
    """Edges of the rank's values, and for each what a count of 0 .. n ranks below it is worth, in two-sided probability."""
    edges = np.arange(1, values)[:, None] / values
    counts = np.arange(n + 1)
    return 2 * np.minimum(stats.binom.cdf(counts, n, edges), stats.binom.sf(counts - 1, n, edges))


def probability_inside(level, n, values):
    """How probable it is that n uniform ranks have, at no edge, a count that is worth `level` or less.

    Exact, by the recursion over edges: of the n - c ranks that are above one edge, each is below the next with equal chance.
    """
    tails = _tails(n, values)
    state, before = np.ones(1), np.zeros(1, int)
    for number, tail in enumerate(tails):
        after = np.flatnonzero(tail > level)
        step = stats.binom.pmf(after - before[:, None], n - before[:, None], 1 / (values - number))
        state, before = state @ step, after
    return state.sum()


def uniformity(ranks, values=RANKS):
    """p-value of uniform ranks: how often their cumulative distribution departs as far, at the edge where it does most."""
    n = len(ranks)
    counts = (ranks < np.arange(1, values)[:, None]).sum(axis=1)
    level = _tails(n, values)[np.arange(values - 1), counts].min()
    return float(min(1, max(1 - probability_inside(level, n, values), level)))


def worst(ranks):
    """The smallest p-value of all quantities, times their number, and whose it is."""
    found = {name: uniformity(values) for name, values in ranks.items()}
    name = min(found, key=found.get)
    return min(1.0, len(found) * found[name]), name
