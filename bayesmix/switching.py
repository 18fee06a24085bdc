"""Label switching undone: the labels of each draw permuted so that a cluster means the same in all of them.

A mixture's likelihood does not change when its labels are permuted, so chains may switch them, and averages over draws
would mix the clusters. Sampling is left alone; afterwards each draw gets the permutation that brings it nearest to a
reference: the label-invariant part of the posterior is unchanged to the last bit.

References:
    Stephens (2000), Dealing with label switching in mixture models, JRSS B 62.
    Papastamoulis & Iliopoulos (2010), An artificial allocations based solution to the label switching problem, JCGS 19.
    Papastamoulis (2016), label.switching: an R package, Journal of Statistical Software 69.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from bayesmix import labels
from bayesmix.inputs import as_name
from bayesmix.keys import as_generator
from bayesmix.labels import assigned, match_mixtures, permuted, unnamed
from bayesmix.mixture import GaussianMixture
from bayesmix.pointwise import Points, mean_in_order, mean_responsibilities, relabelling_costs, with_points
from bayesmix.trees import flat_draws, mixtures

if TYPE_CHECKING:
    import xarray
    from jaxtyping import Bool, Int

__all__ = ["METHODS", "relabel", "relabelled"]

_ROUNDS = 50
_ROWS = 2000  # rows that the relabelling looks at, at most


class _Draws(NamedTuple):
    """What a method sees: mixtures (s, ...), points, z (s, n), which draw has the largest density, and the rule."""

    mixture: GaussianMixture
    points: Points
    z: Int[np.ndarray, "s n"]
    pivot: int
    may: Bool[np.ndarray, "k k"]  # which cluster may take which label


def _renamed(z: np.ndarray, order: np.ndarray) -> np.ndarray:
    """z with the names that the order gives: cluster order[t] becomes t."""
    named, moved = z.copy(), (order != np.arange(order.shape[1])).any(axis=1)
    named[moved] = np.take_along_axis(np.argsort(order[moved], axis=1), z[moved].astype(np.int64), axis=1)
    return named


def _ecr(draws: _Draws) -> np.ndarray:
    """Equivalence classes, iterated: allocations as like as they can be to the most frequent ones."""
    z, k = draws.z, draws.mixture.n_components
    reference = z[draws.pivot]
    order = np.tile(np.arange(k), (len(z), 1))
    own = [_bits(z == j) for j in range(k)]
    for _ in range(_ROUNDS):
        theirs = [_bits(reference == t) for t in range(k)]
        shared = [[np.bitwise_count(a & b).sum(axis=1, dtype=np.int64) for a in own] for b in theirs]
        order = assigned(-np.moveaxis(np.array(shared, float), 2, 0), draws.may)
        named = _renamed(z, order)
        counts = np.stack([_how_many(named == t) for t in range(k)])
        update = counts.argmax(axis=0).astype(z.dtype)
        if (update == reference).all():
            break
        reference = update
    return order


def _bits(mask: np.ndarray) -> np.ndarray:
    """Truth values (..., n), 64 to a word."""
    packed = np.packbits(mask, axis=-1)
    words = np.zeros((*mask.shape[:-1], -(-packed.shape[-1] // 8)), np.uint64)
    words.view(np.uint8)[..., : packed.shape[-1]] = packed
    return words


def _how_many(mask: np.ndarray) -> np.ndarray:
    """Of truth values (s, n) those that are true (n,): bytes, that vector instructions add up, while none overflows."""
    bytes_, most = mask.view(np.uint8), 255
    parts = [bytes_[i : i + most].sum(axis=0, dtype=np.uint8) for i in range(0, len(mask), most)]
    return np.sum(parts, axis=0, dtype=np.int64)


def _stephens(draws: _Draws) -> np.ndarray:
    """Responsibilities as near as they can be, in relative entropy, to their mean."""
    order = _ecr(draws)
    for _ in range(_ROUNDS):
        mean = mean_responsibilities(permuted(draws.mixture, order), draws.points)
        new = assigned(relabelling_costs(draws.mixture, draws.points, mean).swapaxes(1, 2), draws.may)
        if (new == order).all():
            break
        order = new
    return order


def _means(draws: _Draws) -> np.ndarray:
    """Clusters matched to those of the draw with the largest density by their normal laws."""
    pivot = jax.tree.map(lambda a: a[draws.pivot], draws.mixture)
    means, covariances = np.asarray(draws.mixture.means), np.asarray(draws.mixture.covariances)
    return match_mixtures(means, covariances, pivot, draws.may)


def _order(draws: _Draws) -> np.ndarray:
    """Clusters in the order of the first feature's mean, among those that may exchange labels."""
    first, group = np.asarray(draws.mixture.means)[..., 0], draws.may.argmax(axis=1)
    order = np.tile(np.arange(len(group)), (len(first), 1))
    for own in (np.flatnonzero(group == one) for one in np.unique(group)):
        order[:, own] = own[np.argsort(first[:, own], axis=1, kind="stable")]
    return order


METHODS: dict[str, Callable[[_Draws], np.ndarray]] = {
    "ecr": _ecr,
    "stephens": _stephens,
    "means": _means,
    "order": _order,
}


def relabel(
    posterior: xarray.DataTree, method: str = "ecr", *, exchangeable: Sequence[int] | None = None
) -> xarray.DataTree:
    """The same draws with their labels undone of switching.

    Everything with a dimension `cluster` in the groups of draws is permuted together, and the values of z with it. A
    label that means something stays: that of a cluster which a known label names, or which the prior tells apart.

    Args:
        posterior: from `sample_posterior`; it is not changed.
        method: "ecr" (allocations as like as they can be to the most frequent ones, iterated), "stephens"
            (responsibilities nearest to their mean in relative entropy; slower, and sharper where clusters overlap),
            "means" (clusters matched to those of the densest draw) or "order" (by the mean of the first feature,
            which cuts clusters apart where their means cross).
        exchangeable: a number of each cluster; those with the same one, which no known label names, may exchange
            labels. By default what the attributes say, which is what `sample_posterior` found in the prior.

    Returns:
        A new tree. `sample_stats` has the `permutation` (chain, draw, cluster): which of the sampler's clusters each
        one was; the attributes of `posterior` the method, the share of draws that were permuted, a `certainty` (the
        mean probability of a point's most probable cluster) and `exchangeable` (of each cluster the first with which it
        may exchange labels); `allocations` the responsibilities averaged over draws.

    Raises:
        ValueError: a tree without draws, data or allocations, a method that is not known, or not a number for each
            cluster.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> model = bm.MixtureModel(2, prior="weak")
        >>> posterior = bm.sample_posterior(model, x, key=0, method="gibbs", n_draws=200, n_warmup=100)
        >>> bm.relabel(posterior, "stephens")["posterior"].attrs["relabelling"]
        'stephens'
    """
    as_name(method, "method", METHODS)
    return relabelled(posterior, method, exchangeable=exchangeable)


def relabelled(
    posterior: xarray.DataTree,
    method: str,
    mean: np.ndarray | None = None,
    exchangeable: Sequence[int] | None = None,
) -> xarray.DataTree:
    """`relabel`, where p(z | x) (n, k) averaged over the draws as they are may be known: `mean`."""
    import xarray

    batch = mixtures(posterior)
    posterior = posterior.map_over_datasets(
        lambda group: group.transpose("chain", "draw", ..., missing_dims="ignore")
    )
    for group, name in (("observed_data", "x"), ("allocations", "z"), ("sample_stats", "lp")):
        if name not in posterior.children.get(group, ()):
            raise ValueError(f"relabel needs {name!r} in a group {group!r}, as sample_posterior returns it")
    x = np.asarray(posterior["observed_data"]["x"])
    z = np.asarray(posterior["allocations"]["z"])
    density = np.asarray(posterior["sample_stats"]["lp"])
    given = posterior["observed_data"].get("given")
    given = None if given is None else np.asarray(given)
    chains, draws, k = np.asarray(batch.weights).shape
    flat = flat_draws(batch)
    z = z.reshape(chains * draws, -1)
    rows = np.arange(len(x))
    if len(rows) > _ROWS:
        rows = np.sort(as_generator(0).choice(len(x), _ROWS, replace=False))
    some = with_points(x[rows], flat, None if given is None else given[rows])
    may = _may(posterior, given, k, exchangeable)
    # By `take`, which leaves each draw's in a row of memory.
    order = METHODS[method](_Draws(flat, some, np.take(z, rows, axis=1), int(np.argmax(density)), may))
    if mean is None:
        mean = mean_responsibilities(permuted(flat, order), with_points(x, flat, given))
    else:
        mean = mean_in_order(mean, flat, order, x, given)
    shaped = order.reshape(chains, draws, k)
    before = posterior["sample_stats"].get("permutation")
    since = shaped if before is None else np.take_along_axis(before.values, shaped, axis=2)
    groups = {}
    for name, group in posterior.children.items():
        dataset = group.to_dataset()
        new: dict[str, Any] = {}  # variables without coordinates: nothing to be aligned
        if {"chain", "draw"} <= set(dataset.dims) and not name.startswith("prior"):
            new |= _permuted(dataset, shaped)
        if name == "allocations":
            for label in {"z", "z_predictive"} & set(dataset):
                old = dataset[label].variable
                renamed = _renamed(old.values.reshape(chains * draws, -1), order)
                new[label] = old.copy(data=renamed.reshape(old.shape))
            new["responsibilities"] = (("obs_id", "cluster"), mean)
        if name == "sample_stats":
            new["permutation"] = (("chain", "draw", "cluster"), since)
        if name in ("allocations", "sample_stats"):
            new["cluster"] = np.arange(k)
        dataset = dataset.assign(new)
        if name == "posterior":
            dataset.attrs |= {
                "relabelling": method,
                "share_permuted": float((since != np.arange(k)).any(axis=2).mean()),
                "certainty": float(mean.max(axis=1).mean()),
                "exchangeable": may.argmax(axis=1).tolist(),
            }
        groups[name] = dataset
    return xarray.DataTree.from_dict(groups)


def _may(
    posterior: xarray.DataTree, given: np.ndarray | None, k: int, exchangeable: Sequence[int] | None
) -> np.ndarray:
    """Which cluster may take which label (k, k)."""
    known = posterior["posterior"].attrs
    free = np.ones(k, bool) if given is None else unnamed(given, k)
    group = known.get("exchangeable") if exchangeable is None else exchangeable
    if group is None:
        return labels.exchangeable(free, known.get("prior_concentration", 1))
    group = np.asarray(group)
    if group.shape != (k,):
        raise ValueError(f"exchangeable must be {k} numbers, one of each cluster; it is {exchangeable!r}")
    return labels.exchangeable(free, 1, group[:, None] == group)


def _permuted(dataset: xarray.Dataset, order: np.ndarray) -> dict[str, xarray.Variable]:
    """Every variable with draws and a cluster, its clusters in the order (chain, draw, cluster)."""
    found = {}
    for name, array in dataset.data_vars.items():
        if {"chain", "draw", "cluster"} <= set(array.dims):
            moved = array.variable.transpose("chain", "draw", "cluster", ...)
            index = order.reshape(*order.shape, *(1,) * (moved.ndim - 3))
            values = np.take_along_axis(moved.values, index, axis=2)
            found[str(name)] = moved.copy(data=values).transpose(*array.dims)
    return found
