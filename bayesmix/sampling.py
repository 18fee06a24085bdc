"""`sample_posterior`: the posterior of a mixture as an ArviZ DataTree.

The data are centred and scaled, chains start at optima of the posterior, and run in two compiled programs (`chains`);
then each draw says of each point its density and draws its cluster (`pointwise`), and label switching is undone
(`switching`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix import switching
from bayesmix.checkpoints import Checkpoint, fingerprint
from bayesmix.compilation import compiling, one_at_a_time
from bayesmix.inputs import Points, as_count, as_labels, as_name, as_points, as_share, as_weights, cores
from bayesmix.keys import as_generator, as_words, key_words
from bayesmix.labels import exchangeable, unnamed
from bayesmix.missing import allowed, completed
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel, story_of
from bayesmix.passes import is_few
from bayesmix.prior import ConjugatePrior, require_site, weak_prior
from bayesmix.problem import Problem, prepare
from bayesmix.programs import FixedPrior, ProgramPrior
from bayesmix.trees import flat_draws

if TYPE_CHECKING:
    import xarray

__all__ = ["sample_posterior"]

_METHODS = ("nuts", "gibbs", "vi", "laplace")
# A draw: with each, effective draws a second were most on the benchmark's data.
_STEPS = {"nuts": 2, "gibbs": 3}


@one_at_a_time
def sample_posterior(
    model: MixtureModel,
    x: Any,
    *,
    key: Any,
    method: str = "nuts",
    n_chains: int = 4,
    n_warmup: int = 1000,
    n_draws: int = 1000,
    sample_weight: Any = None,
    labels: Any = None,
    missing: str | None = None,
    init: GaussianMixture | Sequence[GaussianMixture] | None = None,
    relabelling: str | None = "ecr",
    pointwise: bool | None = None,
    predictive: bool = False,
    permute: bool = False,
    thinning: int | None = None,
    target_accept: float = 0.8,
    checkpoint: Any = None,
) -> xarray.DataTree:
    """Draws from p(weights, means, covariances | x), and of z.

    Args:
        model: the number of clusters, the structure and the prior: "weak", a `ConjugatePrior`, or, but for "gibbs", any
            other. A flat prior has no posterior: `None` takes `weak_prior(x)`, and the attributes say so.
        x: data (n, d), or (n,) for one feature.
        key: a JAX key or an int.
        method: "nuts" (NumPyro's, on the story with z summed out) or "gibbs" (conjugate blocks: z given θ, then θ given
            z; many times faster where clusters are separated); or a normal approximation of one mode, drawn from
            independently: "vi" (NumPyro's autoguide with a full covariance) or "laplace" (the Hessian at the mode).
        n_chains: how many chains.
        n_warmup: steps before the draws, or up to `thinning` more; of "vi", how many steps it is fitted for.
        n_draws: of each chain.
        sample_weight: (n,); a weight counts repetitions. "nuts" takes any, "gibbs" whole numbers.
        labels: (n,) clusters that are known, -1 where they are not; those of rows of weight zero say nothing.
        missing: "at_random" to integrate missing cells out, as in `fit`; not with labels, nor "gibbs" with weights.
        init: mixtures to start from, one or one a chain, in the data's units. By default the distinct clean optima of
            the posterior within 10 nats of the best, moved a little where one serves several chains; under a
            hierarchical or LKJ prior those of `weak_prior`, under a program the best of draws from it.
        relabelling: a method of `relabel`, or `None` to leave the labels as they come. Under a program only clusters
            that it holds alike exchange labels: `exchangeable` in the attributes.
        pointwise: whether to keep the log-likelihood of each point; by default if it has at most 10⁸ numbers.
        predictive: whether to draw as many new points from each draw: `posterior_predictive`, and their clusters
            `z_predictive` in `allocations`, since ArviZ plots all that is predictive.
        permute: "gibbs": propose another labelling after each sweep, of the clusters that no row names; under equal
            concentrations it is always taken. Under others, which tell labels apart, it is on: chains would keep to the
            labelling in which they begin.
        thinning: "nuts" and "gibbs": steps a draw, of which the last is kept; by default two and three, because with
            few points a step takes less time than what is said of each draw. `sample_stats` says of all of them
            together how many gradients they took (`n_steps`), whether one diverged, and the mean square of the change
            of energy (`squared_energy_change`).
        target_accept: "nuts": acceptance rate that the step size is tuned to.
        checkpoint: "nuts" and "gibbs": a file that says how far the chains have come, written as they go on; the same
            call with the same file goes on from there, to the same draws.

    Returns:
        A tree that ArviZ reads. `posterior`: weights, means, covariances (chain, draw, cluster, ...), the hierarchical
        prior's `rate`, LKJ's `deviations`, and a program's own sites. `sample_stats`: `lp`, the log joint density, and
        what the sampler records. `log_likelihood` x of each row: its weight times log p(x), or log p(x, z) where its
        cluster was given; leave-one-out so leaves out a row with all its repetitions, `compare` one of them.
        `log_prior`. `allocations`: z of each draw, and after relabelling the mean responsibilities. `observed_data`.
        Attributes: method, versions, key, prior, relabelling, and status: "complete", or after Ctrl-C, with a warning,
        how many draws there are.

    Raises:
        ValueError: bad data or options; a structure whose covariances share a part, or for "gibbs" a prior that is not
            conjugate; a checkpoint of something else.
        KeyboardInterrupt: Ctrl-C before the first draw after warm-up, or twice.

    References:
        Diebolt & Robert (1994), Estimation of finite mixture distributions through Bayesian sampling, JRSS B 56.
        Hoffman & Gelman (2014), The No-U-Turn sampler, JMLR 15.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> model = bm.MixtureModel(2, prior="weak")
        >>> posterior = bm.sample_posterior(model, x, key=0, method="gibbs", n_warmup=200, n_draws=500)
        >>> posterior["posterior"]["weights"].mean(["chain", "draw"]).round(2).values
        array([0.64, 0.36])
    """
    if not isinstance(model, MixtureModel):
        raise ValueError(
            f"model must be a MixtureModel, such as MixtureModel(3, prior='weak'); it is {model!r}"
        )
    as_name(method, "method", _METHODS)
    n_chains, n_draws = as_count(n_chains, "n_chains"), as_count(n_draws, "n_draws")
    n_warmup = as_count(n_warmup, "n_warmup", minimum=0)
    thinning = _STEPS.get(method, 1) if thinning is None else as_count(thinning, "thinning")
    if relabelling is not None:
        as_name(relabelling, "relabelling", switching.METHODS)
    target_accept = as_share(target_accept, "target_accept")
    k, structure = model.n_components, model.covariance
    may = allowed(missing)
    x = as_points(x, missing=may)
    if may:
        x = completed(x, as_weights(sample_weight, len(x.values)))
    resolved = model.resolve(x, sample_weight=sample_weight)
    prior = resolved.prior if isinstance(resolved.prior, FixedPrior) else None
    conjugate = prior if isinstance(prior, ConjugatePrior) else None
    if conjugate is None and method == "gibbs":
        raise ValueError(
            "gibbs needs a conjugate prior: 'weak' or a ConjugatePrior; use method='nuts' for any other"
        )
    if prior is None and init is not None:
        raise ValueError(
            "init is for priors whose sites are known; chains of a program start at the best of draws from it"
        )
    if checkpoint is not None and method not in ("nuts", "gibbs"):
        raise ValueError(f"checkpoint is for the chains of 'nuts' and 'gibbs'; {method!r} has none")
    if thinning > 1 and method not in ("nuts", "gibbs"):
        raise ValueError(
            f"thinning is for the chains of 'nuts' and 'gibbs'; draws of {method!r} are independent"
        )
    if permute and method != "gibbs":
        raise ValueError("permute is for method='gibbs'; NUTS has no sweep after which to permute labels")
    if conjugate is not None:
        require_site(model.structure)
    elif prior is not None:  # it has no closed M-step, so optima are sought under one that has
        conjugate = weak_prior(x, n_components=k, covariance=structure, sample_weight=sample_weight)
    problem = _problem(k, structure, x, sample_weight, conjugate)
    if method == "gibbs":
        problem.whole("gibbs draws a whole number of allocations", "use method='nuts'")
        if (problem.w != 1).any():
            problem.without_gaps("gibbs of weighted rows", "use method='nuts'")
    given = as_labels(labels, k, problem.keep)
    if given is not None:
        problem.without_gaps("labels=", "impute them, or leave labels out")
    given = np.full(len(problem.points), -1) if given is None else given
    from bayesmix.stories import Reading, alike, read

    known = _attributes(model, prior, method, key, n_warmup) | {"thinning": thinning}
    reading = Reading("", {}) if prior is not None else read(resolved.parameters, k)
    # Before anything is computed.
    kept = Checkpoint.at(
        checkpoint,
        "sample_posterior",
        lambda: {
            "x": fingerprint(problem.came),
            "sample_weight": fingerprint(problem.weight),
            "labels": fingerprint(given),
            "n_components": k,
            "covariance": structure,
            "prior": reading.mark if prior is None else fingerprint(prior),
            "init": "none" if init is None else fingerprint(init),
            "method": method,
            "key": known["key"],
            "n_chains": n_chains,
            "n_warmup": n_warmup,
            "n_draws": n_draws,
            "permute": permute,
            "thinning": thinning,
            "target_accept": target_accept,
            "numpyro": known["inference_library_version"],
        },
    )

    from bayesmix.approximations import APPROXIMATIONS, approximate
    from bayesmix.chain_starts import (
        blank_starts,
        evidence_of,
        from_optima,
        from_prior,
        given_starts,
        in_sites,
    )
    from bayesmix.chains import Plan, chunk_of, run_chains
    from bayesmix.draws import draws_of, posterior_tree, tree_calls

    evidence = evidence_of(resolved, problem, prior, given[problem.keep])
    story = story_of(k, structure, resolved.prior if prior is None else None, reading.mark)
    counts = bool((problem.w != 1).any())
    plan = Plan(
        method,
        story,
        n_chains,
        n_warmup if method == "nuts" else 0,
        counts=counts,
        permute=permute or (method == "gibbs" and bool(np.ptp(getattr(prior, "concentration", 0)))),
        target_accept=target_accept,
        thinning=thinning,
        few=is_few(k * model.structure.n_moments(problem.x.shape[1]))
        and problem.gaps is None
        and not (counts and method == "gibbs"),
    )
    unkept = -(-n_warmup // thinning)  # draws in as many steps, or some more
    chosen = given_starts(problem, init, n_chains)
    start, point = blank_starts(plan, evidence, problem)
    calls = tree_calls(plan, evidence, problem, given, point, n_draws)
    if method not in APPROXIMATIONS:
        calls.insert(0, chunk_of(plan, evidence, start, unkept + n_draws))
    for_starts, for_chains = as_generator(key).spawn(2)
    with compiling(calls, cores()) as compiled:
        if prior is None:
            starts = from_prior(plan, evidence, for_starts)
        else:
            mixtures = from_optima(problem, given[problem.keep], chosen, n_chains, key)
            starts = in_sites(plan, evidence, mixtures, for_starts)
        wait(compiled)
    words = key_words(for_chains, n_chains)
    if method in APPROXIMATIONS:
        start = jax.tree.map(lambda leaf: leaf[0], starts)
        shape = n_chains, n_draws
        raw, record, known["pareto_k"] = approximate(
            method, story, evidence, start, for_chains, n_warmup, shape
        )
    else:
        raw, record = run_chains(plan, evidence, starts, words, unkept, n_draws, kept)
        drawn = jax.tree.leaves(raw)[0].shape[1]
        if drawn < n_draws:
            known["status"] = f"interrupted: {drawn} of {n_draws} draws a chain"
            warnings.warn(
                f"the sampler was interrupted: each chain has {drawn} of {n_draws} draws"
                + ("" if kept is None else f"; the same call goes on from {str(kept.path)!r}"),
                stacklevel=3,
            )
    mixture, sites = draws_of(plan, evidence, problem, raw)
    dims = prior.dims if isinstance(prior, ProgramPrior) else reading.dims
    tree, mean = posterior_tree(
        plan, evidence, problem, given, prior, mixture, sites, dims, record, key, pointwise, predictive
    )
    tree["posterior"].attrs |= known
    if not isinstance(prior, ConjugatePrior):
        _warn_of_collapse(mixture, problem)
    if k == 1:
        return tree
    same = prior is not None or alike(story.parameters, k, flat_draws(sites))
    may = exchangeable(unnamed(given, k), getattr(prior, "concentration", 1), same)
    tree["posterior"].attrs["exchangeable"] = may.argmax(axis=1).tolist()
    return tree if relabelling is None else switching.relabelled(tree, relabelling, mean)


def _problem(k: int, structure: str, x: Any, sample_weight: Any, prior: ConjugatePrior | None) -> Problem:
    """In float64, whatever the data's type: a posterior is k-sized."""
    points, names, gaps = as_points(x)
    return prepare(k, structure, Points(points.astype(np.float64), names, gaps), sample_weight, 1e-4, prior)


def _warn_of_collapse(mixtures: GaussianMixture, problem: Problem) -> None:
    """Say so where chains arrived at a cluster narrower than the rounding of the data, whose values it repeats.

    A conjugate prior's inverse-Wishart law of the covariance bounds the density there; a random scale may not.
    """
    variance = np.diagonal(np.asarray(mixtures.covariances), axis1=-2, axis2=-1)
    narrow = variance < (problem.grid * problem.units.scale) ** 2 / 12
    if narrow.any() and problem.structure.unbounded:
        share, column = narrow.any(axis=(2, 3)).mean(), int(np.argmax(narrow.any(axis=(0, 1, 2))))
        warnings.warn(
            f"in {share:.1%} of the draws a cluster is narrower than the rounding of column {problem.names[column]!r}: "
            "it follows rows that repeat one value, where the posterior may have infinite mass; use prior='weak', "
            "fewer clusters or a structure with equal volumes",
            stacklevel=4,
        )


def _attributes(
    model: MixtureModel, prior: FixedPrior | None, method: str, key: Any, n_warmup: int
) -> dict[str, Any]:
    """What a reader of the tree must know of how it was made; plain values, so that it can be saved."""
    import numpyro

    from bayesmix import __version__

    word = model.prior if isinstance(model.prior, str) else "weak" if model.prior is None else "given"
    family = prior.word if isinstance(prior, ProgramPrior) else "conjugate"
    known = {
        "method": method,
        "n_warmup": n_warmup,
        "key": str(as_words(key).tolist()),
        "prior": "program" if prior is None else family if word == family else f"{family}, {word}",
        "relabelling": "none",
        "status": "complete",
        "bayesmix_version": __version__,
        "inference_library": "numpyro",
        "inference_library_version": numpyro.__version__,
        "jax_version": jax.__version__,
    }
    numbers = [] if prior is None else [field.name for field in fields(prior)]
    for name in (name for name in numbers if name not in ("n_components", "covariance")):
        value = np.asarray(getattr(prior, name), float)
        # One number is a number: netCDF knows no lists of one.
        known[f"prior_{name}"] = value.ravel().tolist() if value.size > 1 else value.item()
    return known
