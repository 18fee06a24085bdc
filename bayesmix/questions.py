"""What a posterior says of new points: averages over draws, with intervals.

A posterior is a batch of mixtures, and each draw has an answer of its own; the answer given what was seen is their
average, and how much they differ is how sure it is. Points go through in blocks, so that memory is that of draws × k ×
block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix import density
from bayesmix.devices import double_precision
from bayesmix.inputs import as_points, as_share
from bayesmix.mixture import GaussianMixture
from bayesmix.trees import flat_draws, mixtures

if TYPE_CHECKING:
    import xarray
    from jaxtyping import Array

__all__ = ["classify", "log_density", "responsibilities", "same_cluster"]

_NUMBERS = 2**24  # of one block, over all draws


def responsibilities(posterior: xarray.DataTree, x: Any, *, probability: float = 0.9) -> xarray.Dataset:
    """p(z = k | x, data) of new points: responsibilities averaged over draws, with intervals.

    Args:
        posterior: draws whose labels mean the same, from `sample_posterior` or `bootstrap`.
        x: points (n, d).
        probability: of the interval between equal tails.

    Returns:
        `mean`, `lower` and `upper` (obs_id, cluster). The means of a point sum to one.

    Raises:
        ValueError: points that do not fit, a probability outside (0, 1), or labels that were not undone of switching.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> options = {"key": 0, "method": "gibbs", "n_warmup": 100, "n_draws": 200}
        >>> posterior = bm.sample_posterior(bm.MixtureModel(2, prior="weak"), x, **options)
        >>> r = bm.responsibilities(posterior, [[3.0, 65.0], [4.5, 80.0]])
        >>> r["mean"].sum("cluster").values
        array([1., 1.])
        >>> bool(r["upper"][0, 0] - r["lower"][0, 0] > 0.2)  # between the clusters, the draws do not agree
        True
    """
    _require_labels(posterior)
    return _answer(posterior, (x,), density.responsibilities, probability, ["cluster"])


def classify(posterior: xarray.DataTree, x: Any, *, probability: float = 0.9) -> xarray.Dataset:
    """The most probable cluster of new points, all draws considered.

    Args:
        posterior: draws whose labels mean the same.
        x: points (n, d).
        probability: of the interval between equal tails.

    Returns:
        `cluster` (obs_id), the one with the largest mean responsibility; that mean, with `lower` and `upper`; and
        `agreement`, the share of draws in which it is the most probable one.

    Raises:
        ValueError: as `responsibilities`.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> options = {"key": 0, "method": "gibbs", "n_warmup": 100, "n_draws": 200}
        >>> posterior = bm.sample_posterior(bm.MixtureModel(2, prior="weak"), x, **options)
        >>> found = bm.classify(posterior, [[2.0, 55.0], [4.5, 80.0]])
        >>> bool((found["agreement"] == 1).all())
        True
    """
    _require_labels(posterior)
    averaged = _answer(posterior, (x,), density.responsibilities, probability, ["cluster"])
    winner = averaged["mean"].argmax("cluster")
    votes = _answer(posterior, (x,), _is_most_probable, probability, ["cluster"])["mean"]
    picked = averaged.isel(cluster=winner).drop_vars("cluster")
    return picked.assign(cluster=winner, agreement=votes.isel(cluster=winner).drop_vars("cluster"))


def log_density(posterior: xarray.DataTree, x: Any, *, probability: float = 0.9) -> xarray.Dataset:
    """log p(x | data), the posterior predictive density of new points, with a credible band.

    Whether labels switch does not matter.

    Args:
        posterior: draws of mixtures.
        x: points (n, d), a grid for a band.
        probability: of the pointwise band between equal tails.

    Returns:
        `mean` (obs_id), the log of the density averaged over draws, in nats, and `lower` and `upper`, the band of the
        log density: their exponentials are the average and the band of the density itself.

    Raises:
        ValueError: points that do not fit, or a probability outside (0, 1).

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("galaxies")
        >>> options = {"key": 0, "method": "gibbs", "n_warmup": 100, "n_draws": 200}
        >>> posterior = bm.sample_posterior(bm.MixtureModel(3, "V", "weak"), x, **options)
        >>> band = bm.log_density(posterior, [20e3, 25e3])  # km/s
        >>> bool((band["lower"] < band["mean"]).all() and (band["mean"] < band["upper"]).all())
        True
    """
    return _answer(posterior, (x,), density.log_density, probability, [], logs=True)


def same_cluster(
    posterior: xarray.DataTree, x: Any, other: Any, *, probability: float = 0.9
) -> xarray.Dataset:
    """The probability that a point and another one come from the same cluster, row by row.

    Σ_k p(z = k | x) p(z = k | other), averaged over draws; whether labels switch does not matter. For the points of the
    data among each other, see `coclustering`.

    Args:
        posterior: draws of mixtures.
        x: points (n, d).
        other: as many points.
        probability: of the interval between equal tails.

    Returns:
        `mean`, `lower` and `upper` (obs_id).

    Raises:
        ValueError: points that do not fit, or a probability outside (0, 1).

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("galaxies")
        >>> options = {"key": 0, "method": "gibbs", "n_warmup": 100, "n_draws": 200}
        >>> posterior = bm.sample_posterior(bm.MixtureModel(3, "V", "weak"), x, **options)
        >>> pairs = bm.same_cluster(posterior, [9.5e3, 9.5e3], [9.7e3, 20e3])["mean"]
        >>> bool(pairs[0] > 0.9 > 0.1 > pairs[1])
        True
    """
    return _answer(posterior, (x, other), _together, probability, [])


def _is_most_probable(mixture: GaussianMixture, x: Array) -> Array:
    return jax.nn.one_hot(density.classify(mixture, x), mixture.n_components, axis=0)


def _together(mixture: GaussianMixture, x: Array, other: Array) -> Array:
    return jnp.sum(density.responsibilities(mixture, x) * density.responsibilities(mixture, other), axis=0)


def _require_labels(posterior: xarray.DataTree) -> None:
    mixtures(posterior)  # that there are any
    if (
        posterior["posterior"].attrs.get("relabelling") == "none"
        and posterior["posterior"].sizes["cluster"] > 1
    ):
        raise ValueError(
            "the labels of this posterior may switch from draw to draw, so clusters cannot be averaged; call "
            "bm.relabel(posterior) first"
        )


@partial(jax.jit, static_argnums=0)
def _each(function: Callable[..., Array], batch: GaussianMixture, blocks: tuple[Array, ...]) -> Array:
    return jax.lax.map(lambda mixture: function(mixture, *blocks), batch)


def _answer(
    posterior: xarray.DataTree,
    points: tuple[Any, ...],
    function: Callable[..., Array],
    probability: float,
    dims: list[str],
    *,
    logs: bool = False,
) -> xarray.Dataset:
    """mean, lower and upper over draws of a function of (mixture, points last), whose result has its points last."""
    import xarray

    probability = as_share(probability, "probability")
    batch = flat_draws(mixtures(posterior))
    d = batch.n_features
    arrays = [as_points(p, n_features=d, known=batch.feature_names).values.astype(np.float64) for p in points]
    n = len(arrays[0])
    if any(len(a) != n for a in arrays):
        raise ValueError(
            f"both must have as many points; they have {' and '.join(str(len(a)) for a in arrays)}"
        )
    tail = (1 - probability) / 2
    parts: list[list[np.ndarray]] = []
    draws = len(batch.weights)
    for blocks, size in _blocks(arrays, max(64, _NUMBERS // (draws * batch.n_components))):
        with double_precision():
            values = np.asarray(_each(function, batch._arrays(), blocks))[..., :size]
        with np.errstate(invalid="ignore"):
            low, high = np.quantile(values, [tail, 1 - tail], axis=0)
        if logs:  # NaN is between two values of which one is minus infinity
            low, high = (np.where(np.isnan(a), -np.inf, a) for a in (low, high))
        mean = _log_mean(values) if logs else values.mean(axis=0)
        parts.append([np.moveaxis(part, -1, 0) for part in (mean, low, high)])
    coords: dict[str, Any] = {"obs_id": np.arange(n)}
    if dims:
        coords["cluster"] = np.arange(batch.n_components)
    found = {
        name: (("obs_id", *dims), np.concatenate([part[i] for part in parts]))
        for i, name in enumerate(("mean", "lower", "upper"))
    }
    return xarray.Dataset(found, coords, {"probability": probability})


def _log_mean(values: np.ndarray) -> np.ndarray:
    """log of the mean of exp(values) over draws, of which all may be minus infinity."""
    top = values.max(axis=0)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return top + np.log(np.mean(np.exp(values - top), axis=0))


def _blocks(arrays: list[np.ndarray], size: int) -> Iterator[tuple[tuple[np.ndarray, ...], int]]:
    """Blocks (d, b) of all arrays, the last filled up to a multiple of 64, and how many points are real."""
    for start in range(0, len(arrays[0]), size):
        rows = [a[start : start + size] for a in arrays]
        count = len(rows[0])
        room = -(-count // 64) * 64
        yield tuple(np.pad(r, ((0, room - count), (0, 0))).T for r in rows), count
