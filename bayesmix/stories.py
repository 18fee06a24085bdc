"""What a prior that is a program says: a mark of its laws, and which of its sites are of clusters.

Two programs with one mark are one program, whatever objects they are; a program that reads something that has changed
is another.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import constrain_fn, potential_energy

from bayesmix.checkpoints import fingerprint
from bayesmix.devices import double_precision
from bayesmix.mixture import GaussianMixture

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["Reading", "is_free", "on_blanks", "read", "unconstrained_shape"]

_PLATE = "cluster"


class Reading(NamedTuple):
    """A program's mark, and the dimensions of its sites in the plate `cluster`."""

    mark: str
    dims: dict[str, list[str | None]]


def is_free(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def unconstrained_shape(site: dict[str, Any]) -> tuple[int, ...]:
    return biject_to(site["fn"].support).inverse_shape(site["fn"].shape())


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
