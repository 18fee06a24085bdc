"""EM with a memory: where clusters overlap EM crawls, and the steps that it took tell how to stride.

EM is steepest ascent in the metric of the complete data, θ⁺ - θ = I⁻¹ ∇ log p(x | θ), so in coordinates in which that
information is one its step f is the gradient, and a limited-memory BFGS direction, p = H f with H made of the last
few steps s and what each took from f, is Newton's in the directions that were walked and EM's own in all others.

Coordinates are those of the frame of θ, made anew each step: with n the counts and W = L⁻¹ of its clusters,

    weights         √n log(w⁺ / w)
    means           √n W (m⁺ - m)
    covariances     √n W L⁺,  on the diagonal √(2 n) log(W L⁺)

A vector is carried from one frame to the next as it is. A proposal is brought back into the family of the structure
by the M-step, is refused where the objective falls, and EM's own step follows: so the objective never falls, at one
pass over the data a proposal. A direction in which f grew, as it does at a saddle, is not remembered.

References:
    Lange (1995), A quasi-Newton acceleration of the EM algorithm, Statistica Sinica 5.
    Jamshidian & Jennrich (1997), Acceleration of the EM algorithm by using quasi-Newton methods, JRSS B 59.
    Liu & Nocedal (1989), On the limited memory BFGS method for large scale optimization, Math. Programming 45.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix import lean
from bayesmix.covariance import Covariance
from bayesmix.elementary import log_positive
from bayesmix.mixture import GaussianMixture

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["Memory", "Proposal", "asked", "blank", "learn", "own_step", "pays", "propose"]

_STEPS = 8  # that are remembered
_ROOM = 2**18  # numbers, for the steps of a large mixture
_COMPILING = 2e8  # products that take about as long
_CURVED = 1e-3  # of a step, what it must take from f at least to be remembered


def asked(accelerate: Any, method: str, tol: float) -> bool | None:
    """The option, checked: False where EM's own steps are what was asked for, None where it is to be decided.

    Raises:
        ValueError: no such option, or acceleration of what cannot be.
    """
    if not (accelerate is None or isinstance(accelerate, bool)):
        raise ValueError(f"accelerate must be True, False or None; it is {accelerate!r}")
    own = "tol=0 takes EM's own steps" if tol == 0 else f"method={method!r} is no climb of soft EM"
    climbs = method in ("soft", "annealed") and tol > 0
    if accelerate and not climbs:
        raise ValueError(f"accelerate=True cannot be: {own}; leave it out")
    return accelerate if climbs else False


def pays(products: float) -> bool:
    """Whether passes of so many products n k p take longer than compiling the accelerated step, a second or two."""
    return products > _COMPILING


class Memory(NamedTuple):
    """What a run remembers of its way, in vectors of q coordinates, each in place of the oldest."""

    steps: Any  # (m, q) s
    changes: Any  # (m, q) y, what each took from f; of the last step, f before it
    scales: Any  # (m,) 1 / (s y), 0 for what is not to be used
    last: Any  # where the last step is
    refused: Any  # the last proposal was
    plain: Any  # the last step was EM's own
    radius: Any  # of a proposal, at most; zero before the first step
    factor: Any  # Cholesky factor of the mixture's covariances, and
    inverse: Any  # its inverse


class Proposal(NamedTuple):
    """Where to go on: EM's own step where `plain`, and nats that remain to be gained if the directions told all."""

    mixture: GaussianMixture
    factor: Array
    plain: Array
    steady: Array  # two steps in a row are EM's own
    remaining: Array
    begun: Array
    step: Array  # (q,)
    residual: Array  # f before it
    change: Array  # (q,) what the step before took from f, and
    scale: Array  # of it


def blank(mixture: GaussianMixture) -> Memory:
    """No memory."""
    values = mixture.covariance.values.shape
    size = _size(mixture)
    rows = int(np.clip(_ROOM // size, 2, _STEPS))
    return Memory(
        steps=np.zeros((rows, size)),
        changes=np.zeros((rows, size)),
        scales=np.zeros(rows),
        last=np.int64(0),
        refused=np.bool_(False),
        plain=np.bool_(True),
        radius=np.float64(0),
        factor=np.zeros(values),
        inverse=np.zeros(values),
    )


class _Frame(NamedTuple):
    """Coordinates about a mixture, each a relative change times the root of the number of points that it is of."""

    mixture: GaussianMixture
    factor: Array
    inverse: Array
    root: Array  # (q,)

    @lean.inlined
    def vector(self, mixture: GaussianMixture, factor: Array) -> Array:
        """The coordinates (q,) of a mixture with its Cholesky factor."""
        center, storage = self.mixture, self.mixture.covariance.storage
        both = (center.weights > 0) & (mixture.weights > 0)
        weights = jnp.where(both, log_positive(jnp.where(both, mixture.weights / center.weights, 1)), 0)
        means = storage.apply(self.inverse, mixture.means - center.means)
        ratio = self.inverse @ factor if storage.axes == 2 else self.inverse * factor
        diagonal, worth = self._diagonal()
        ratio = jnp.where(diagonal, worth * log_positive(jnp.where(diagonal, ratio, 1)), ratio)
        return self.root * jnp.concatenate([part.reshape(-1) for part in (weights, means, ratio)])

    @lean.inlined
    def at(self, vector: Array) -> tuple[GaussianMixture, Array]:
        """The mixture at some coordinates, and its Cholesky factor; without the constraints of its structure."""
        center, storage = self.mixture, self.mixture.covariance.storage
        k, d = center.n_components, center.n_features
        change = jnp.where(self.root > 0, vector / jnp.where(self.root > 0, self.root, 1), 0)
        weights = center.weights * jnp.exp(change[:k])
        means = center.means + storage.apply(self.factor, change[k : k + k * d].reshape(k, d))
        diagonal, worth = self._diagonal()
        ratio = change[k + k * d :].reshape(self.factor.shape)
        ratio = jnp.where(diagonal, jnp.exp(jnp.where(diagonal, ratio, 0) / worth), ratio)
        factor = self.factor @ ratio if storage.axes == 2 else self.factor * ratio
        values = factor @ jnp.swapaxes(factor, -1, -2) if storage.axes == 2 else factor * factor
        covariance = Covariance(values, center.covariance.structure)
        return replace(center, weights=weights / jnp.sum(weights), means=means, covariance=covariance), factor

    def _diagonal(self) -> tuple[Any, float]:
        """Where a factor has its diagonal; and √2, as a log deviation is worth two means, a sphere's one of each."""
        axes, d = self.mixture.covariance.storage.axes, self.mixture.n_features
        where = np.eye(d, dtype=bool) if axes == 2 else np.ones(self.factor.shape, bool)
        return where, float(np.sqrt(2 if axes else 2 * d))


@lean.inlined
def _frame(mixture: GaussianMixture, factor: Array, inverse: Array, total: Array) -> _Frame:
    counts = total * mixture.weights
    shared = counts if factor.shape[0] == counts.shape[0] else total[None]
    each = counts, jnp.repeat(counts, mixture.n_features), jnp.repeat(shared, factor[0].size)
    return _Frame(mixture, factor, inverse, jnp.sqrt(jnp.concatenate(each)))


def own_step(plus: GaussianMixture, factor: Array) -> Proposal:
    """EM's own step, of a run that remembers nothing yet."""
    none, zero, no = jnp.zeros(_size(plus)), jnp.asarray(0.0), jnp.asarray(False)
    return Proposal(plus, factor, ~no, no, zero, no, none, none, none, zero)


def _size(mixture: GaussianMixture) -> int:
    return mixture.weights.size + mixture.means.size + mixture.covariance.values.size


def propose(
    memory: Memory,
    mixture: GaussianMixture,
    plus: GaussianMixture,
    factor: Array,
    total: Array,
    begun: Array,
    own: Array,
) -> Proposal:
    """Where to go from a mixture whose M-step is `plus`; the covariances may be out of the family of its structure.

    Args:
        memory: of the run.
        mixture: where the run is.
        plus: where EM goes.
        factor: the Cholesky factor of plus.
        total: the number of points.
        begun: the memory is of this mixture; otherwise it begins here, with EM's own step.
        own: take EM's own step.
    """

    def first() -> Proposal:
        return own_step(plus, factor)._replace(steady=memory.plain, begun=begun)

    def later() -> Proposal:
        frame = _frame(mixture, memory.factor, memory.inverse, total)
        residual = frame.vector(plus, factor)
        change, scale = _change(memory, residual)
        known = memory._replace(
            changes=_at(memory.changes, change, memory.last), scales=_at(memory.scales, scale, memory.last)
        )
        direction = _quasi_newton(known, residual)
        both = jnp.stack([residual, direction])
        products = jnp.sum(both * both[:, None], axis=-1)
        remaining, lengths = products[0, 1] / 2, jnp.sqrt(jnp.diagonal(products))
        plain = own | memory.refused | ~(remaining > 0)
        shorter = jnp.minimum(1, jnp.maximum(memory.radius, lengths[0]) / lengths[1])
        step = jnp.where(plain, residual, shorter * direction)
        chosen, chosen_factor = jax.tree.map(
            lambda ours, proposed: jnp.where(plain, ours, proposed), (plus, factor), frame.at(step)
        )
        steady = plain & memory.plain
        return Proposal(chosen, chosen_factor, plain, steady, remaining, begun, step, residual, change, scale)

    return jax.lax.cond(begun, later, first)


@lean.inlined
def learn(memory: Memory, proposal: Proposal, inverse: Array, accepted: Array) -> Memory:
    """The memory after the pass at a proposal; `inverse` is that of its Cholesky factor."""
    size = jnp.sqrt(jnp.sum(proposal.step**2))
    wider = jnp.where(proposal.plain, memory.radius, 2 * memory.radius)
    before, rows = memory.last, memory.scales.shape[0]
    last = jax.lax.rem(before + 1, jnp.full_like(before, rows))
    changes = _at(_at(memory.changes, proposal.change, before), proposal.residual, last)
    scales = _at(_at(memory.scales, proposal.scale, before), jnp.zeros(()), last)
    return Memory(
        steps=_at(memory.steps, proposal.step, last),
        changes=changes,
        scales=jnp.where(proposal.begun, scales, 0),
        last=last,
        refused=~accepted,
        plain=proposal.plain,
        radius=jnp.where(proposal.begun, jnp.where(accepted, wider, size / 4), jnp.inf),
        factor=jnp.where(accepted, proposal.factor, memory.factor),
        inverse=jnp.where(accepted, inverse, memory.inverse),
    )


def _at(rows: Array, row: Array, place: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(rows, row, place, 0)


@lean.inlined
def _change(memory: Memory, residual: Array) -> tuple[Array, Array]:
    """What the last step took from f, now that f after it is known, and its scale; nothing if it was refused."""
    step = memory.steps[memory.last]
    change = memory.changes[memory.last] - residual
    along = jnp.sum(step * change)
    curved = (along > _CURVED * jnp.sum(step * step)) & ~memory.refused
    return change, jnp.where(curved, 1 / jnp.where(curved, along, 1), 0)


def _quasi_newton(memory: Memory, residual: Array) -> Array:
    """H f by limited-memory BFGS; f where nothing is remembered.

    References:
        Nocedal (1980), Updating quasi-Newton matrices with limited storage, Mathematics of Computation 35.
    """
    rows = memory.scales.shape[0]
    order = jax.lax.rem(memory.last + 1 + jnp.arange(rows), jnp.full(rows, rows))  # the oldest first

    def back(left: Array, row: Array) -> tuple[Array, Array]:
        part = memory.scales[row] * jnp.sum(memory.steps[row] * left)
        return left - part * memory.changes[row], part

    def forth(found: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        row, part = at
        took = memory.scales[row] * jnp.sum(memory.changes[row] * found)
        return found + memory.steps[row] * (part - took), None

    left, parts = jax.lax.scan(back, residual, order, reverse=True)
    return jax.lax.scan(forth, left, (order, parts))[0]
