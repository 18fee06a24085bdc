"""Which points go together? The draws of z as clusterings, whatever their clusters are called.

Two draws of z that differ in the names of the clusters only are one clustering, so labels are first renamed in order of
appearance: everything here is the same to the last bit before and after `relabel`. Draws that are then equal are kept
once with their number, and rows that share a cluster in every draw are one group. `coclustering` is

    p(z_n = z_m | x),   the share of draws in which rows n and m share a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray
    from jaxtyping import Float, Int

__all__ = ["Clusterings", "allocations_of", "clusterings", "coclustering"]

_MOST_ROWS = 20_000  # rows of a matrix of 3.2 GB
_BLOCK = 2**22  # numbers of a temporary array


class Clusterings(NamedTuple):
    """The distinct clusterings among draws, of groups of rows that are together in all of them.

    Attributes:
        labels: of each group in each distinct clustering.
        count: how many draws have it.
        draw: which of the distinct ones each draw is.
        group: of each row.
        size: how many rows each group has.
    """

    labels: Int[np.ndarray, "m u"]
    count: Int[np.ndarray, " u"]
    draw: Int[np.ndarray, " s"]
    group: Int[np.ndarray, " n"]
    size: Int[np.ndarray, " m"]

    @property
    def n_labels(self) -> int:
        return int(self.labels.max()) + 1

    @property
    def share(self) -> Float[np.ndarray, " u"]:
        """Of the draws, for each distinct clustering."""
        return self.count / self.draw.size


def allocations_of(posterior: Any, reader: str) -> xarray.DataArray:
    """z (chain, draw, obs_id) of a tree.

    Raises:
        ValueError: the tree has none, or it is not made of whole numbers from zero; `reader` says who asks.
    """
    try:
        z = posterior["allocations"]["z"].transpose("chain", "draw", "obs_id")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(
            f"{reader} reads the draws of z (chain, draw, obs_id) in the group 'allocations', which sample_posterior "
            "makes; this has none"
        ) from None
    if z.dtype.kind not in "iu" or z.size == 0 or int(z.min()) < 0:
        raise ValueError(f"{reader} needs z of whole numbers from zero; it is {z.dtype} of shape {z.shape}")
    return z


def clusterings(z: Int[np.ndarray, "s n"]) -> Clusterings:
    """Draws of z without the names of their clusters, each distinct clustering once."""
    named = _named_by_appearance(z)
    draw, count = _alike(named)
    distinct = named[np.unique(draw, return_index=True)[1]].T
    group, size = _alike(distinct)
    labels = np.ascontiguousarray(distinct[np.unique(group, return_index=True)[1]])
    return Clusterings(labels, count, draw, group, size)


def _named_by_appearance(z: np.ndarray) -> np.ndarray:
    """Each row's labels renamed in the order in which they appear in it."""
    n, k = z.shape[1], int(z.max()) + 1
    out = np.empty(z.shape, np.min_scalar_type(k))
    step = max(1, _BLOCK // n)
    for start in range(0, len(z), step):
        block = z[start : start + step]
        marks = (block == label for label in range(k))
        first = np.stack([np.where(m.any(axis=1), m.argmax(axis=1), n) for m in marks], axis=1)
        name = first.argsort(axis=1, kind="stable").argsort(axis=1)
        out[start : start + step] = np.take_along_axis(name, block.astype(np.intp), axis=1)
    return out


def _alike(rows: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A number per row, equal rows alike, in order of appearance; and how many rows each number has."""
    numbers: dict[bytes, int] = {}
    which = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])
    return which, np.bincount(which)


def coclustering(posterior: xarray.DataTree, *, rows: Any = None) -> xarray.DataArray:
    """The probability that two points share a cluster, p(z_n = z_m | x), for all pairs.

    It does not depend on what the clusters are called, so it is the same before and after `relabel`, and needs none.
    Exact over the draws: each entry is a whole number of draws by how many there are.

    Args:
        posterior: a tree with draws of z in the group `allocations`, as from `sample_posterior`.
        rows: positions of the rows to look at, or a mask (n,); all by default. n rows take 8 n² bytes.

    Returns:
        The matrix (obs_id, obs_id_bis), symmetric, with ones on the diagonal.

    Raises:
        ValueError: a tree without z, rows that do not exist, or more than 20,000 rows.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> model = bm.MixtureModel(2, prior="weak")
        >>> posterior = bm.sample_posterior(model, x, key=0, method="gibbs", n_warmup=200, n_draws=500)
        >>> together = bm.coclustering(posterior, rows=[0, 1, 2])
        >>> together.values.round(2)  # a long eruption, a short one, a long one
        array([[1., 0., 1.],
               [0., 1., 0.],
               [1., 0., 1.]])
    """
    import xarray

    z = allocations_of(posterior, "coclustering")
    n = z.sizes["obs_id"]
    chosen = np.arange(n) if rows is None else _positions(rows, n)
    if chosen.size > _MOST_ROWS:
        raise ValueError(
            f"the matrix of {chosen.size} rows would take {8e-9 * chosen.size**2:.1f} GB; give at most {_MOST_ROWS} "
            f"rows, such as rows=range(0, {n}, {-(-n // 2000)})"
        )
    some = clusterings(z.values.reshape(-1, n)[:, chosen])
    shares = (_times_together(some) / some.draw.size)[some.group][:, some.group]
    names = z["obs_id"].values[chosen]
    return xarray.DataArray(
        shares,
        dims=("obs_id", "obs_id_bis"),
        coords={"obs_id": names, "obs_id_bis": names},
        name="coclustering",
        attrs={"n_draws": some.draw.size},
    )


def _positions(rows: Any, n: int) -> np.ndarray:
    chosen = np.asarray(rows)
    if chosen.dtype == bool and chosen.shape == (n,):
        chosen = np.flatnonzero(chosen)
    if chosen.size == 0:
        raise ValueError(f"rows must be positions, or a mask ({n},), of one row at least; they are of none")
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
        raise ValueError(f"rows must be positions, or a mask ({n},); they are {rows!r}")
    if chosen.min() < 0 or chosen.max() >= n:
        raise ValueError(f"rows must be between 0 and {n - 1}; they go from {chosen.min()} to {chosen.max()}")
    return chosen


def _times_together(some: Clusterings) -> np.ndarray:
    """In how many draws each pair of groups shares a cluster (m, m): sums of products of memberships (m, draws × k)."""
    m, u = some.labels.shape
    names = np.arange(some.n_labels, dtype=some.labels.dtype)
    total = np.zeros((m, m))
    step = max(1, _BLOCK // (m * names.size))
    for start in range(0, u, step):
        # float32 counts exactly to 2²⁴, and multiplies twice as fast
        member = (some.labels[:, start : start + step, None] == names).astype(np.float32)
        repeated = member * some.count[start : start + step, None].astype(np.float32)
        total += repeated.reshape(m, -1) @ member.reshape(m, -1).T
    return total
