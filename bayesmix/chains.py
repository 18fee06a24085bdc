"""Markov chains in two compiled programs: the beginning of a NUTS chain, and a chunk of steps of any chain.

Warm-up is the first steps, which are thrown away, so a chunk continued as often as it takes is all of a chain.
NumPyro's `MCMC` is built and run inside the compiled function, so data, keys and starts are its arguments and a second
call compiles nothing. On a CPU the cores run chains of their own: chains in lock step cost as much as one after the
other, and those of NUTS wait for the longest path besides. Elsewhere all are advanced together.

NUTS moves in coordinates u in which the curvature of the potential at the start is one (`Frame`), so that its warm-up
need not find out how unlike the parameters are in scale.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC, NUTS
from numpyro.infer.mcmc import MCMCKernel

from bayesmix.checkpoints import Checkpoint, restored, stored
from bayesmix.compilation import Call, one_kernel, wide
from bayesmix.devices import double_precision, lapack_on_one_thread
from bayesmix.gibbs import GibbsKernel, GibbsState
from bayesmix.inputs import cores
from bayesmix.interrupts import patient
from bayesmix.model import MixtureModel
from bayesmix.potential import Evidence, by_one_kernel, potential
from bayesmix.prior import ConjugatePrior
from bayesmix.progress import Progress

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["SPREAD", "Frame", "Plan", "advance", "chunk_of", "curvature", "run_chains"]

# Steps a call at most, of many points fewer: the progress bar moves by as many.
_CHUNK = {"nuts": 200, "gibbs": 1000}
_LEAST = 20
_POINTS = 2 * 10**6  # that a call passes over
# What is recorded of each draw beside the parameters: NumPyro's name, and the schema's.
_FIELDS: dict[str, dict[str, str]] = {
    "nuts": {
        "energy": "energy",
        "diverging": "diverging",
        "num_steps": "n_steps",
        "accept_prob": "acceptance_rate",
        "adapt_state.step_size": "step_size",
        "mean_accept_prob": "squared_energy_change",  # see `_Strides`
    },
    "gibbs": {},
}
_STEP = 1e-4  # of the finite differences


class Plan(NamedTuple):
    """What is static: a different plan is a different program."""

    method: str
    story: MixtureModel
    n_chains: int
    n_warmup: int = 0  # of NUTS, which tunes itself in as many steps; Gibbs has nothing to tune
    counts: bool = False  # Gibbs: weights are whole numbers other than one
    permute: bool = False  # Gibbs: labels at random after each sweep
    target_accept: float = 0.8
    few: bool = False  # a pass over the points is one kernel: `passes.is_few`
    thinning: int = 1  # steps a draw


# NumPyro draws its estimates of the covariance towards a thousandth of the identity. The first are of 25 draws, so with
# more parameters what they are drawn towards decides: in coordinates of this spread that is the truth.
SPREAD = 1e-3**0.5


class Frame(NamedTuple):
    """Coordinates u (p,) of a NUTS chain, `SPREAD` wide, which stand for the point center + spread @ u, packed."""

    center: Any  # a pytree of p unconstrained numbers
    spread: Any  # (p, p)
    u: Any  # (p,) where the chain begins

    def point(self, u: Float[Array, " p"]) -> Any:
        """The unconstrained numbers that u stands for."""
        center, unpack = ravel_pytree(self.center)
        return unpack(center + self.spread @ u)


def _is_simple(plan: Plan, evidence: Evidence) -> bool:
    """Whether the density, or a sweep, can be one kernel: nothing in it calls LAPACK, as other priors do."""
    d = evidence.observations.x.shape[1]
    return plan.few and isinstance(evidence.prior, ConjugatePrior) and plan.story.structure.written_out(d)


class _Strides(NUTS):
    """NumPyro's, so many transitions a step; what is said of a step is said of all of them, but for the energy.

    How far a transition moved the energy, squared, and averaged over a step, takes the place of a running mean that
    NumPyro keeps for its progress bar.
    """

    def __init__(self, transitions: int, **options: Any) -> None:
        super().__init__(**options)
        self._transitions = transitions

    def sample(self, state: Any, model_args: tuple, model_kwargs: dict) -> Any:
        one = super().sample

        def moved(old: Any, new: Any) -> Any:
            return jnp.square(new.energy - old.energy) / self._transitions

        if self._transitions == 1:
            new = one(state, model_args, model_kwargs)
            return new._replace(mean_accept_prob=moved(state, new))

        def more(_: Any, state: Any) -> Any:
            new = one(state, model_args, model_kwargs)
            return new._replace(
                num_steps=state.num_steps + new.num_steps,
                accept_prob=state.accept_prob + new.accept_prob / self._transitions,
                mean_accept_prob=state.mean_accept_prob + moved(state, new),
                diverging=state.diverging | new.diverging,
            )

        added = ("num_steps", "accept_prob", "mean_accept_prob", "diverging")
        blank = {name: jnp.zeros_like(getattr(state, name)) for name in added}
        return jax.lax.fori_loop(0, self._transitions, more, state._replace(**blank))


def _kernel(plan: Plan, evidence: Evidence, start: Any) -> MCMCKernel:
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
            few=plan.few,
        )

    def energy(u: Float[Array, " p"]) -> Array:
        return potential(plan.story, evidence, start.point(u), plan.few)

    return _Strides(
        plan.thinning,
        potential_fn=by_one_kernel(energy) if _is_simple(plan, evidence) else energy,
        step_size=SPREAD,
        dense_mass=True,
        target_accept_prob=plan.target_accept,
    )


@partial(wide, static_argnames=("plan", "together"))
def _begin(words: Array, frame: Frame, evidence: Evidence, plan: Plan, together: bool) -> Any:
    """The state of NUTS at the beginning."""

    def chain(words: Array, frame: Frame) -> Any:
        return _kernel(plan, evidence, frame).init(words, plan.n_warmup, frame.u, (), {})

    return (jax.vmap(chain) if together else chain)(words, frame)


def advance(
    state: Any, start: Any, evidence: Evidence, plan: Plan, n: int
) -> tuple[Any, Any, dict[str, Array]]:
    """n more draws of a chain: the state they lead to, what was sampled (n, ...), and the record; traceable."""
    kernel = _kernel(plan, evidence, start)
    # A kernel of NumPyro learns in `init` what a step is; nothing is computed here.
    jax.eval_shape(lambda s: kernel.init(s.rng_key, plan.n_warmup, s.z, (), {}), state)
    sweeps = plan.thinning if plan.method == "gibbs" else 1
    sampler = MCMC(
        kernel, num_warmup=plan.n_warmup, num_samples=n * sweeps, thinning=sweeps, progress_bar=False
    )
    sampler.post_warmup_state = state  # NUTS goes on tuning itself until the state has seen n_warmup steps
    sampler.run(state.rng_key, init_params=state.z, extra_fields=tuple(_FIELDS[plan.method]))
    drawn = sampler.get_samples()
    if plan.method == "nuts":
        drawn = jax.vmap(start.point)(drawn)
    return sampler.last_state, drawn, sampler.get_extra_fields()


@partial(wide, static_argnames=("plan", "n", "together"))
def _advance(state: Any, start: Any, evidence: Evidence, plan: Plan, n: int, together: bool) -> Any:
    def chain(state: Any, start: Any, evidence: Evidence) -> Any:
        return advance(state, start, evidence, plan, n)

    if together:
        return jax.vmap(chain, (0, 0, None))(state, start, evidence)
    return one_kernel(chain, plan.method == "gibbs" and _is_simple(plan, evidence))(state, start, evidence)


def curvature(plan: Plan, evidence: Evidence, center: Any) -> Float[np.ndarray, "p p"]:
    """Second derivatives of the potential at a point, packed, by central differences of its gradient."""
    p = sum(np.size(leaf) for leaf in jax.tree.leaves(center))
    words = np.zeros(2, np.uint32)

    # The first state of a chain has the gradient where it begins, and its program is compiled for the chains anyway.
    def slope(u: np.ndarray) -> np.ndarray:
        return np.asarray(_begin(words, Frame(center, np.eye(p), u), evidence, plan, False).z_grad)

    with double_precision():
        second = np.stack([slope(_STEP * e) - slope(-_STEP * e) for e in np.eye(p)]) / (2 * _STEP)
    return (second + second.T) / 2


def _shape(plan: Plan, evidence: Evidence, total: int) -> tuple[int, int, bool]:
    """How many draws a call makes, of how many chains, and whether these are advanced together."""
    together = not isinstance(evidence.observations.x, np.ndarray)  # on an accelerator
    most = min(_CHUNK[plan.method], max(_LEAST, _POINTS // evidence.observations.weight.size))
    most = max(1, most // plan.thinning)
    return -(-total // -(-total // most)), plan.n_chains if together else 1, together


def chunk_of(plan: Plan, evidence: Evidence, starts: Any, total: int) -> Call:
    """The call of which `run_chains` makes all others, for starts of these shapes."""
    chunk, size, together = _shape(plan, evidence, total)

    def lane(a: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *a.shape[1:]) if together else a.shape[1:], a.dtype)

    words = np.zeros((size, 2) if together else 2, np.uint32)
    with double_precision():
        begin = jax.tree.map(lane, starts)
        gibbs = plan.method == "gibbs"
        state = (
            GibbsState(begin, words) if gibbs else _begin.eval_shape(words, begin, evidence, plan, together)
        )
    return Call(_advance, (state, begin, evidence, plan, chunk, together))


def run_chains(
    plan: Plan,
    evidence: Evidence,
    starts: Any,
    words: np.ndarray,
    n_warmup: int,
    n_draws: int,
    checkpoint: Checkpoint | None = None,
) -> tuple[Any, dict[str, np.ndarray]]:
    """The draws (chains, n_draws, ...) and what is recorded of each; after Ctrl-C those that there are.

    Args:
        plan: what to run.
        evidence: on what.
        starts: a pytree (chains, ...): `Frame` for "nuts", `Parameters` for "gibbs".
        words: key data (chains, 2).
        n_warmup: draws before those that are kept.
        n_draws: of each chain, after warm-up.
        checkpoint: written between chunks, and gone on from.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first draw after warm-up, or twice.
    """
    total = n_warmup + n_draws
    chunk, size, together = _shape(plan, evidence, total)
    lanes = [slice(c, c + size) if together else c for c in range(0, plan.n_chains, size)]
    kept = None if checkpoint is None else checkpoint.read()
    if kept is not None:
        starts = restored("starts", starts, kept)
    begins = [jax.tree.map(itemgetter(lane), starts) for lane in lanes]

    def begin(lane: Any, start: Any) -> Any:
        if plan.method == "gibbs":
            return GibbsState(start, words[lane])
        return _begin(words[lane], start, evidence, plan, together)

    def turn(state: Any, start: Any) -> Any:
        state, *out = _advance(state, start, evidence, plan, chunk, together)
        return state, jax.tree.map(
            lambda a: np.asarray(a).reshape(size, chunk, *a.shape[1 + together :]), out
        )

    def known() -> dict[str, np.ndarray]:
        arrays = stored("starts", starts) | stored("parts", _joined(parts)) | {"done": np.array(done)}
        for i, state in enumerate(states):
            arrays |= stored(f"state{i}", state)
        return arrays

    parts: list[Any] = []
    done = 0
    with (
        patient() as patience,
        lapack_on_one_thread(evidence.observations.x.shape[1]),
        ThreadPoolExecutor(min(len(lanes), cores())) as pool,
        Progress(plan.method, "draws", total) as bar,
    ):
        with double_precision():
            evidence = jax.device_put(evidence)
        states = _each(pool, begin, lanes, begins, new=True)
        if kept is not None:
            with double_precision():
                state, *out = _advance.eval_shape(states[0], begins[0], evidence, plan, chunk, together)
            states = [restored(f"state{i}", state, kept) for i in range(len(lanes))]
            done = int(kept["done"])
            whole = jax.tree.map(
                lambda a: np.zeros((plan.n_chains, done, *a.shape[1 + together :]), a.dtype), out
            )
            parts = [restored("parts", whole, kept)]
            bar.update(min(done, total))
        try:
            while done < total:
                patience.check()
                # Its program is there: `chunk_of`.
                states, outs = zip(*_each(pool, turn, states, begins, new=False))
                parts.append(jax.tree.map(lambda *leaves: np.concatenate(leaves), *outs))
                seen = parts[-1][1].get("diverging", np.zeros((1, 0)))[
                    :, max(0, n_warmup - done) : total - done
                ]
                new = int(np.sum(seen))
                if new:
                    bar.write(f"in {new} of the last {seen.size} draws transitions diverged")
                bar.update(min(chunk, total - done))
                done += chunk
                if checkpoint is not None:
                    checkpoint.write(known, now=done >= total)
        except KeyboardInterrupt:
            if patience.again:
                raise
            if checkpoint is not None and parts:
                checkpoint.write(known, now=True)
            if done <= n_warmup:
                raise
    draws, fields = jax.tree.map(lambda a: a[:, n_warmup:total], _joined(parts))
    if diverging := int(np.sum(fields.get("diverging", 0))):
        warnings.warn(
            f"in {diverging} of {fields['diverging'].size} draws transitions diverged, so the chains may miss a part "
            "of the posterior: raise target_accept, or use a prior that is less flat, or a conjugate one and 'gibbs'",
            stacklevel=4,
        )
    return draws, {name: fields[theirs] for theirs, name in _FIELDS[plan.method].items()}


def _joined(parts: list[Any]) -> Any:
    """Chunks of draws (chains, ...), one after another."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)


def _each(pool: ThreadPoolExecutor, call: Callable[..., Any], *sequences: Any, new: bool) -> list[Any]:
    """The calls' results, in order; of a new call the first is by itself, lest two threads compile one program."""

    def inside(*arguments: Any) -> Any:
        with double_precision():
            return call(*arguments)

    calls = list(zip(*sequences))
    alone = 1 if new else 0
    done = [inside(*arguments) for arguments in calls[:alone]]
    return done + list(pool.map(lambda arguments: inside(*arguments), calls[alone:]))
