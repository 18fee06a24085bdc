"""Two normal approximations of the posterior, in the unconstrained coordinates in which NUTS moves.

"laplace" has its mean at the mode and the inverse Hessian there as covariance. "vi" is NumPyro's multivariate normal
autoguide, whose mean and covariance maximise the evidence lower bound. Both are of one labelling and one mode: how well
they do is said by the Pareto k of their importance weights, which is above 0.7 where they should not be used.

This module imports NumPyro; import it where it is used.

References:
    Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25.
    Yao, Vehtari, Simpson & Gelman (2018), Yes, but did it work?: evaluating variational inference, ICML.
    Kucukelbir, Tran, Ranganath, Gelman & Blei (2017), Automatic differentiation variational inference, JMLR 18.
"""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.optim import Adam

from bayesmix.devices import double_precision
from bayesmix.inputs import to_numpy
from bayesmix.keys import key_words
from bayesmix.model import MixtureModel
from bayesmix.potential import Evidence, potential, realize, story
from bayesmix.progress import Progress

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["APPROXIMATIONS", "approximate"]

_CHUNK = 200  # steps a call: the progress bar moves by as many
_PARTICLES = 8
_TRUSTED = 0.7  # Pareto k
_FEWEST = 25  # draws of which the largest fifth has five, that a tail can be fitted to

Point = dict[str, Any]


@partial(jax.jit, static_argnums=0)
def _energy(model: MixtureModel, evidence: Evidence, like: Point, flat: Array) -> tuple[Array, Array]:
    """Minus the log joint density at a packed point, and its gradient."""
    unpack = ravel_pytree(like)[1]
    return jax.value_and_grad(lambda u: potential(model, evidence, unpack(u)))(flat)


@partial(jax.jit, static_argnums=0)
def _hessian(model: MixtureModel, evidence: Evidence, like: Point, flat: Array) -> Array:
    unpack = ravel_pytree(like)[1]
    gradient = jax.grad(lambda u: potential(model, evidence, unpack(u)))
    return jax.lax.map(lambda v: jax.jvp(gradient, (flat,), (v,))[1], jnp.eye(flat.size))


@partial(jax.jit, static_argnums=0)
def _energies(model: MixtureModel, evidence: Evidence, like: Point, flats: Array) -> Array:
    unpack = ravel_pytree(like)[1]
    return jax.lax.map(lambda u: potential(model, evidence, unpack(u)), flats)


def _laplace(
    model: MixtureModel, evidence: Evidence, start: Point, words: np.ndarray, n_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The mode by Newton's method in a trust region, and the Cholesky factor of the inverse Hessian there.

    Raises:
        ValueError: no mode was found, or the Hessian there is not positive definite.
    """
    from scipy.optimize import minimize

    flat = np.asarray(ravel_pytree(start)[0])
    found = minimize(
        lambda u: to_numpy(_energy(model, evidence, start, u)),
        flat,
        jac=True,
        hess=lambda u: np.asarray(_hessian(model, evidence, start, u)),
        method="trust-exact",
        options={"gtol": 1e-6 * max(1, abs(float(_energy(model, evidence, start, flat)[0]))), "maxiter": 500},
    )
    hessian = np.asarray(_hessian(model, evidence, start, found.x))
    hessian = (hessian + hessian.T) / 2
    values, vectors = np.linalg.eigh(hessian)
    if not np.isfinite(hessian).all() or values[0] < 1e-10 * values[-1]:
        along = {
            name: np.abs(part).max()
            for name, part in ravel_pytree(start)[1](jnp.asarray(vectors[:, 0])).items()
        }
        raise ValueError(
            f"laplace is refused: the Hessian of the log density is not positive definite at the optimum (eigenvalues "
            f"from {values[0]:.2g} to {values[-1]:.2g}, the smallest along {max(along, key=lambda n: along[n])!r}), so "
            "the posterior is not like a normal law there; use method='nuts' or 'gibbs', or fewer clusters"
        )
    if not found.success:
        raise ValueError(
            f"laplace is refused: no mode was found in {found.nit} Newton steps ({found.message}); use method='nuts' "
            "or 'gibbs'"
        )
    return found.x, vectors / np.sqrt(values)


def _svi(model: MixtureModel, evidence: Evidence, start: Point, n_steps: Any) -> SVI:
    sites = jax.tree.map(
        lambda leaf: leaf[0], realize(model, evidence, jax.tree.map(lambda a: a[None], start))[1]
    )
    guide = AutoMultivariateNormal(story, init_loc_fn=init_to_value(values=sites), init_scale=0.05)
    # From 0.02 to 0.0002, so that the last steps average over the noise of the gradient.
    return SVI(story, guide, Adam(lambda i: 0.02 * 0.01 ** (i / n_steps)), Trace_ELBO(_PARTICLES))


@partial(jax.jit, static_argnums=0)
def _begin(model: MixtureModel, evidence: Evidence, start: Point, key: Array, n_steps: Any) -> Any:
    return _svi(model, evidence, start, n_steps).init(key, model, evidence)


@partial(jax.jit, static_argnums=(0, 5))
def _advance(
    model: MixtureModel, evidence: Evidence, start: Point, state: Any, n_steps: Any, n: int
) -> tuple[Any, Array, dict[str, Array]]:
    """n more steps: the state, the losses and the parameters of the guide."""
    svi = _svi(model, evidence, start, n_steps)
    svi.init(
        jax.random.key(0), model, evidence
    )  # tells the guide its sites; the state goes on from the one given
    found = svi.run(jax.random.key(0), n, model, evidence, progress_bar=False, init_state=state)
    return found.state, found.losses, found.params


def _variational(
    model: MixtureModel, evidence: Evidence, start: Point, words: np.ndarray, n_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and Cholesky factor of the autoguide after so many steps of Adam."""
    if n_steps < 1:
        raise ValueError(f"n_warmup is the number of steps of 'vi', at least 1; it is {n_steps}")
    chunk = -(-n_steps // -(-n_steps // _CHUNK))
    total = float(n_steps)
    state, params = _begin(model, evidence, start, words, total), {}
    with Progress("vi", "steps", n_steps) as bar:
        for _ in range(-(-n_steps // chunk)):
            state, losses, params = _advance(model, evidence, start, state, total, chunk)
            if not np.isfinite(np.asarray(losses)).all():
                raise ValueError(
                    "the evidence lower bound of 'vi' is not finite; use method='nuts' or 'gibbs', fewer clusters or "
                    "a prior that is less flat"
                )
            bar.update(chunk)
    return np.asarray(params["auto_loc"]), np.asarray(params["auto_scale_tril"])


APPROXIMATIONS = {"laplace": _laplace, "vi": _variational}


def approximate(
    method: str,
    model: MixtureModel,
    evidence: Evidence,
    start: Point,
    generator: np.random.Generator,
    n_steps: int,
    shape: tuple[int, int],
) -> tuple[Point, dict[str, np.ndarray], float]:
    """Independent draws of an approximation.

    Args:
        method: a row of `APPROXIMATIONS`.
        model: of `story_of`.
        evidence: the data and the prior.
        start: an unconstrained point, EM's optimum.
        generator: draws.
        n_steps: of "vi".
        shape: (chains, draws).

    Returns:
        Unconstrained points (chains, draws, ...); `log_weight` (chains, draws), the log of the posterior over the
        approximation, up to a constant; and their Pareto k, NaN of fewer than 25.

    Raises:
        ValueError: there is no such approximation, with the reason.
    """
    import arviz_stats.base

    psis: Any = arviz_stats.base.array_stats.psislw  # pyright: ignore
    words = key_words(generator, 1)[0]
    count = shape[0] * shape[1]
    with double_precision():
        evidence = jax.device_put(evidence)
        mean, factor = APPROXIMATIONS[method](model, evidence, start, words, n_steps)
        standard = generator.standard_normal((count, mean.size))
        flats = mean + standard @ factor.T
        energy = np.asarray(_energies(model, evidence, start, flats))
        points = to_numpy(jax.vmap(ravel_pytree(start)[1])(jnp.asarray(flats)))
    log_q = (
        -(standard**2).sum(axis=1) / 2 - np.linalg.slogdet(factor)[1] - mean.size / 2 * math.log(2 * math.pi)
    )
    weight = np.where(np.isfinite(energy), -energy - log_q, -np.inf)
    if count < _FEWEST:
        pareto = math.nan
    else:  # ArviZ takes minus the log weights, as those of leave-one-out are minus log-likelihoods
        pareto = float(np.asarray(psis(-weight)[1])) if np.isfinite(weight).all() else math.inf
    if pareto > _TRUSTED:
        warnings.warn(
            f"the Pareto k of {method!r} is {pareto:.2f}, above {_TRUSTED}: the normal approximation misses a part of "
            "the posterior, so its intervals cannot be trusted; use method='nuts' or 'gibbs'",
            stacklevel=4,
        )
    points = jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), points)
    return points, {"log_weight": weight.reshape(shape)}, pareto
