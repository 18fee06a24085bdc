"""Markov chains in two compiled programs: the warm-up, and a chunk of draws, continued as often as it takes.

Gibbs has nothing to tune, so its warm-up is draws that are thrown away, in whole chunks.

NumPyro's `MCMC` is built and run inside the compiled function, so data, keys and starts are its arguments and a second
call compiles nothing. Chains are vectorised.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array
from numpyro.infer import MCMC, NUTS
from numpyro.infer.mcmc import MCMCKernel

from bayesmix.gibbs import GibbsKernel
from bayesmix.inputs import double_precision, to_numpy
from bayesmix.model import MixtureModel
from bayesmix.potential import Evidence, potential
from bayesmix.prior import ConjugatePrior

__all__ = ["Plan", "run_chains"]

_CHUNK = 200  # draws a call at most: the progress bar moves by as many
# What is recorded of each draw beside the parameters: NumPyro's name, and the schema's.
_FIELDS: dict[str, dict[str, str]] = {
    "nuts": {
        "energy": "energy",
        "diverging": "diverging",
        "num_steps": "n_steps",
        "accept_prob": "acceptance_rate",
        "adapt_state.step_size": "step_size",
    },
    "gibbs": {},
}


class Plan(NamedTuple):
    """What is static: a different plan is a different program."""

    method: str
    story: MixtureModel
    n_chains: int
    n_warmup: int = 0  # of NUTS, a part of its program; Gibbs throws away draws
    counts: bool = False  # Gibbs: weights are whole numbers other than one
    permute: bool = False  # Gibbs: labels at random after each sweep
    target_accept: float = 0.8


def _kernel(plan: Plan, evidence: Evidence) -> MCMCKernel:
    if plan.method == "gibbs":
        row = plan.story.structure
        assert isinstance(evidence.prior, ConjugatePrior)
        return GibbsKernel(
            evidence.observations,
            evidence.fixed,
            evidence.prior,
            row,
            counts=plan.counts,
            permute=plan.permute,
        )
    return NUTS(
        potential_fn=partial(potential, plan.story, evidence),
        dense_mass=True,
        target_accept_prob=plan.target_accept,
    )


def _sampler(plan: Plan, evidence: Evidence, n: int) -> MCMC:
    return MCMC(
        _kernel(plan, evidence),
        num_warmup=plan.n_warmup,
        num_samples=n,
        num_chains=plan.n_chains,
        chain_method="vectorized",
        progress_bar=False,
    )


@partial(jax.jit, static_argnames="plan")
def _warm(key: Array, starts: Any, evidence: Evidence, plan: Plan) -> Any:
    sampler = _sampler(plan, evidence, 1)
    sampler.warmup(key, init_params=starts)
    return sampler.last_state


@partial(jax.jit, static_argnames=("plan", "n"))
def _draw(state: Any, evidence: Evidence, plan: Plan, n: int) -> tuple[Any, Any, dict[str, Array]]:
    """n more draws: the state they lead to, the draws (chains, n, ...), and the record."""
    sampler = _sampler(plan, evidence, n)
    sampler.post_warmup_state = state
    sampler.run(state.rng_key, init_params=state.z, extra_fields=tuple(_FIELDS[plan.method]))
    fields = sampler.get_extra_fields(group_by_chain=True)
    return sampler.last_state, sampler.get_samples(group_by_chain=True), fields


def run_chains(
    plan: Plan, evidence: Evidence, starts: Any, key: Array, n_warmup: int, n_draws: int
) -> tuple[Any, dict[str, np.ndarray]]:
    """The draws (chains, n_draws, ...) and what is recorded of each.

    Args:
        plan: what to run.
        evidence: on what.
        starts: a pytree (chains, ...) of what the kernel samples.
        key: a JAX key.
        n_warmup: steps before the draws.
        n_draws: of each chain, after warm-up.
    """
    from tqdm import tqdm

    if plan.n_chains == 1:
        starts = jax.tree.map(lambda a: a[0], starts)
    chunk = -(-n_draws // -(-n_draws // _CHUNK))
    tuned = plan.method == "nuts"
    before = 0 if tuned else -(-n_warmup // chunk)  # chunks of draws that are thrown away
    parts, diverging = [], 0
    with tqdm(
        total=n_warmup + n_draws, desc=plan.method, unit=" draws", delay=2, disable=None, leave=False
    ) as bar:
        with double_precision():
            evidence = jax.device_put(evidence)
            if tuned:
                state = jax.block_until_ready(_warm(key, starts, evidence, plan))
                bar.update(n_warmup)
            else:
                keys = jax.random.split(key, plan.n_chains) if plan.n_chains > 1 else key
                state = _kernel(plan, evidence).init(keys, 0, starts, (), {})
        for turn in range(-before, -(-n_draws // chunk)):
            with double_precision():
                state, draws, fields = _draw(state, evidence, plan, chunk)
                part = to_numpy((draws, fields))
            if turn >= 0:
                parts.append(part)
                new = int(np.sum(part[1].get("diverging", 0)))
                if new and not bar.disable:
                    bar.write(f"{new} of the last {plan.n_chains * chunk} transitions diverged")
                diverging += new
            bar.update(chunk)
    if diverging:
        warnings.warn(
            f"{diverging} of {plan.n_chains * chunk * len(parts)} transitions diverged, so the chains may miss a part "
            "of the posterior: raise target_accept, or use a prior that is less flat, or a conjugate one and 'gibbs'",
            stacklevel=3,
        )
    draws, fields = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1)[:, :n_draws], *parts)
    return draws, {name: fields[theirs] for theirs, name in _FIELDS[plan.method].items()}
