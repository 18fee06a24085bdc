"""What a prior that is a program says: a mark of its laws, which of its sites are of clusters, what it holds alike.

Two programs with one mark are one program, whatever objects they are; a program that reads something that has changed
is another. Clusters a and b are alike to a program if exchanging them, in its sites and in the mixture that it returns,
leaves its density: labels of others mean something, and are not to be undone.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer.util import constrain_fn, potential_energy

from bayesmix.checkpoints import fingerprint
from bayesmix.devices import double_precision
from bayesmix.inputs import to_numpy
from bayesmix.labels import permuted
from bayesmix.mixture import GaussianMixture

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

__all__ = ["Reading", "alike", "is_free", "on_blanks", "read", "unconstrained_shape"]

_PLATE = "cluster"
_WAYS = 64  # that are tried to tell which sites are of clusters, at most
_DRAWS = 3  # at which a program is asked
_TOLERANCE = 1e-8
_TAKEN = {
    "chain",
    "draw",
    "cluster",
    "feature",
    "feature_bis",
    "obs_id",
    "x",
    "z",
}  # dimensions, and the points
_SHARE = -1  # in place of an axis: a site p of two clusters whose weights are p and 1 - p


class Reading(NamedTuple):
    """A program's mark, and the dimensions of its sites in the plate `cluster`."""

    mark: str
    dims: dict[str, list[str | None]]


def is_free(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def unconstrained_shape(site: dict[str, Any]) -> tuple[int, ...]:
    try:
        return biject_to(site["fn"].support).inverse_shape(site["fn"].shape())
    except NotImplementedError:
        raise ValueError(
            f"prior has a site {site['name']!r} that no gradient can follow, a {type(site['fn']).__name__}; sum it "
            "out, or say it by laws of real numbers"
        ) from None


def on_blanks(program: Callable[[], Any]) -> dict[str, Any]:
    """The sites of a program that is run on blanks, and draws nothing; inside a trace."""

    def blank(site: dict[str, Any]) -> Any:
        return jnp.zeros(site["fn"].shape()) if is_free(site) else None

    with handlers.seed(rng_seed=0), handlers.trace() as sites, handlers.substitute(substitute_fn=blank):
        program()
    return sites


def read(program: Callable[[], GaussianMixture], k: int) -> Reading:
    """Trace a program once, in float64."""
    shapes: dict[str, Any] = {}
    dims: dict[str, list[str | None]] = {}

    def look() -> None:
        for name, site in on_blanks(program).items():
            if name in _TAKEN and site["type"] in ("sample", "deterministic"):
                raise ValueError(
                    f"prior has a site {name!r}, which is the name of something else in what is returned; rename it"
                )
            if is_free(site):
                shapes[name] = jax.ShapeDtypeStruct(unconstrained_shape(site), float)
            axis = _axis(site, k, _PLATE)
            if axis is not None:
                dims[name] = [None] * axis + [_PLATE]

    def say(points: dict[str, Array]) -> Any:
        with handlers.block():
            sites = constrain_fn(program, (), {}, points, return_deterministic=True)
            return potential_energy(program, (), {}, points), sites, _said(program, sites)

    with double_precision():
        jax.eval_shape(look)
        traced = jax.jit(say).trace(shapes)
        text = f"{dims}{traced.out_info}{traced.lower().as_text()}"
    mark = f"{fingerprint(traced.jaxpr.consts)}{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    return Reading(mark, dims)


def _axis(site: dict[str, Any], k: int, plate: str | None = None) -> int | None:
    """Which axis of a site's value is that of the plate, or of any of k."""
    if site["type"] not in ("sample", "deterministic"):
        return None
    shape = np.shape(site["value"])
    for frame in site["cond_indep_stack"]:
        if frame.size == k and frame.name == (plate or frame.name):
            if site["type"] == "sample":
                return len(shape) - site["fn"].event_dim + frame.dim
            if shape.count(k) == 1:  # nothing says which axes of another site are its events'
                return shape.index(k)
    return shape.index(k) if plate is None and k in shape else None


def _said(program: Callable[[], GaussianMixture], sites: dict[str, Any]) -> tuple[Array, GaussianMixture]:
    """The log density of a program at values of its sites, minus infinity off their support, and its mixture."""
    with handlers.block(), handlers.trace() as seen, handlers.substitute(data=sites):
        mixture = program()
    total = jnp.zeros(())
    for site in seen.values():
        if site["type"] == "sample":
            own = jnp.sum(site["fn"].log_prob(site["value"]))
            inside = jnp.all(site["fn"].support(site["value"])) if is_free(site) else True
            total += jnp.where(inside, own, -jnp.inf)
    return total, jax.tree.map(jnp.asarray, mixture)


@partial(jax.jit, static_argnums=0)
def _said_of_each(
    program: Callable[[], GaussianMixture], sites: dict[str, Any]
) -> tuple[Array, GaussianMixture]:
    return jax.lax.map(partial(_said, program), sites)


def alike(
    program: Callable[[], GaussianMixture], k: int, sites: dict[str, np.ndarray]
) -> Bool[np.ndarray, "k k"]:
    """Which clusters a program holds alike, asked at some of the draws (s, ...) of its sites.

    Sites in a plate `cluster` move with the clusters. Of others that have an axis of k, or that may be a share of two,
    nothing says whether they do, so ways to move some of them are tried.
    """
    sure: dict[str, int] = {}
    unsure: dict[str, int] = {}
    values: dict[str, np.ndarray] = {}

    def look() -> None:
        for name, site in on_blanks(program).items():
            if not is_free(site):
                continue
            values[name] = sites[name][np.linspace(0, len(sites[name]) - 1, _DRAWS).astype(int)]
            axis = _axis(site, k, _PLATE)
            if axis is not None:
                sure[name] = axis
            elif (axis := _axis(site, k)) is not None:
                unsure[name] = axis
            elif k == 2 and not np.shape(site["value"]) and site["fn"].support == constraints.unit_interval:
                unsure[name] = _SHARE

    with double_precision():
        jax.eval_shape(look)
    best = np.eye(k, dtype=bool)
    for axes in itertools.islice(_ways(sure, unsure), _WAYS):
        found = _kept(program, k, values, axes)
        if found.sum() > best.sum():
            best = found
        if best.all():
            break
    return best


def _ways(sure: dict[str, int], unsure: dict[str, int]) -> Iterator[dict[str, int]]:
    """The axes of sites that move with the clusters: first all that may."""
    for moved in itertools.product((True, False), repeat=len(unsure)):
        yield sure | dict(itertools.compress(unsure.items(), moved))


def _kept(
    program: Callable[[], GaussianMixture], k: int, values: dict[str, np.ndarray], axes: dict[str, int]
) -> Bool[np.ndarray, "k k"]:
    """Of which two clusters an exchange leaves the density, and exchanges those of the mixture."""
    pairs = list(itertools.combinations(range(k), 2))
    orders = np.tile(np.arange(k), (1 + len(pairs), 1))
    for order, pair in zip(orders[1:], pairs):
        order[list(pair)] = pair[::-1]

    def moved(name: str, value: np.ndarray) -> np.ndarray:
        axis = axes.get(name)
        if axis is None:
            return np.concatenate([value] * len(orders))
        if axis == _SHARE:
            return np.concatenate([np.where(order[0] == 0, value, 1 - value) for order in orders])
        return np.concatenate([np.take(value, order, 1 + axis) for order in orders])

    with double_precision():
        logs, mixtures = to_numpy(
            _said_of_each(program, {name: moved(name, value) for name, value in values.items()})
        )
    first = np.tile(np.arange(_DRAWS), len(orders))
    expected = permuted(jax.tree.map(lambda a: a[first], mixtures), np.repeat(orders, _DRAWS, axis=0))
    same = _near(logs, logs[first], 1.0)
    for one, other in zip(jax.tree.leaves(mixtures), jax.tree.leaves(expected)):
        same &= _near(one, other)
    out = np.eye(k, dtype=bool)
    for (i, j), every in zip(pairs, same.reshape(-1, _DRAWS).all(axis=1)[1:]):
        out[i, j] = out[j, i] = every
    return out


def _near(one: np.ndarray, other: np.ndarray, least: float = 0.0) -> Bool[np.ndarray, " s"]:
    """Which finite numbers (s, ...) differ by rounding alone, relative to the largest, or to the least that counts."""
    one, other = (a.reshape(len(a), -1) for a in (one, other))
    size = np.maximum(np.abs(other).max(axis=1, keepdims=True), least)
    with np.errstate(invalid="ignore"):
        close = np.abs(one - other) <= _TOLERANCE * size
    return (close & np.isfinite(one) & np.isfinite(other)).all(axis=1)
