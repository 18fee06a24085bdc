"""The door: what may come in, as which numbers, and the one error for what may not.

Every public function passes its data, weights and options through here once, and its keys through `keys`, before
anything is compiled. Inside, arrays are finite, two-dimensional and of one floating type; outside, a user sees
either results or one `ValueError` that names the argument, what came, and what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from bayesmix.frames import default_names, first_of, numbers_of, order_of, quoted, refuse, table_of

__all__ = [
    "Gaps", "Points", "are_chances", "as_count", "as_feature_names", "as_floats", "as_list", "as_name", "as_names",
    "as_points", "as_share", "as_tol", "as_weights", "cores", "is_number", "is_traced", "require_alike",
    "require_squares", "to_numpy",
]  # fmt: skip


_HELD = 1e-152, 1e152  # standard deviations, at least and at most
_ALIKE = 1e40  # largest by smallest, at most
_WEIGHED = 1e-90, 1e150  # weights in all, at least and at most


class Gaps(NamedTuple):
    """Which cells of some data are known, see `missing`; the others were filled in."""

    seen: np.ndarray  # (n, d)
    hidden: np.ndarray  # what covariances (d, d) of the filled data are to be enlarged by

    def taken(self, rows: Any) -> Gaps | None:
        """Those of some rows, or `None` if all of their cells are known."""
        seen = self.seen[rows]
        return None if seen.all() else Gaps(seen, self.hidden)


class Points(NamedTuple):
    """Rows of data that passed the door: `values` (n, d), float64 or float32, and a name per column."""

    values: np.ndarray
    names: tuple[str, ...]
    gaps: Gaps | None = None


def is_traced(*trees: Any) -> bool:
    """Whether any leaf belongs to a user's own `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def cores() -> int:
    """How many threads this process may run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def to_numpy(tree: Any) -> Any:
    """The same pytree with NumPy leaves, which survive outside `devices.double_precision`."""
    return jax.tree.map(np.asarray, tree)


def as_points(
    x: Any,
    name: str = "x",
    *,
    n_features: int | None = None,
    feature_names: Iterable[str] | None = None,
    known: tuple[str, ...] | None = None,
    infinite: bool = False,
    missing: bool | None = None,
) -> Points:
    """Data as an (n, d) float array; (n,) is one feature.

    float32 stays float32; float64, integers, booleans and lists become float64, and so do all columns of a table of
    which one is no float32. A masked value, a null and `NA` are missing values. What is `Points` already passes.

    Args:
        x: an array, a table (see `frames`), or nested lists.
        name: what x is called in errors.
        n_features: how many columns there must be.
        feature_names: what to call them, in place of their own names.
        known: the features' names in the order in which they are needed: a table's columns are taken by name.
        infinite: whether infinities are numbers too.
        missing: whether cells may be missing, which are NaN then; `None` if nobody can say that they may.

    Raises:
        ValueError: not numeric, missing or infinite cells, empty, more than two axes, not `n_features` columns, or
            other columns than the known ones; the message names the argument and every column that is to blame.
    """
    if isinstance(x, Points):
        names, by_name, (values, blame), gaps = x.names, True, (x.values, {}), x.gaps
    else:
        names, by_name, (values, blame), gaps = *_read(x, name), None
    if values.ndim == 1:
        if blame:  # no number has a shape
            refuse(values[:, None], names or default_names(1), name, blame)
        if n_features not in (None, 1):
            raise ValueError(
                f"{name} has shape {values.shape}, which is {values.size} points of one feature, but "
                f"{n_features} features are needed; for a single point pass {name}[None, :]"
            )
        values = values[:, None]
    if values.ndim != 2:
        raise ValueError(f"{name} must be (n, d) or (n,), points by features; it has shape {values.shape}")
    n, d = values.shape
    if names is not None and len(names) != d:
        names = None
    order = order_of(names, known, name) if by_name and names is not None and known is not None else None
    if order is not None and names is not None:
        blame = {place: blame[j] for place, j in enumerate(order) if j in blame}
        values, names = np.ascontiguousarray(values[:, order]), tuple(names[j] for j in order)
        d = len(order)
        gaps = None if gaps is None else Gaps(gaps.seen[:, order], gaps.hidden[np.ix_(order, order)])
    if n == 0 or d == 0:
        raise ValueError(f"{name} is empty: its shape is {values.shape}")
    if n_features is not None and d != n_features:
        raise ValueError(f"{name} has {d} features, but {n_features} are needed")
    if feature_names is not None:
        names = as_feature_names(feature_names, d)
    if names is None:
        names = default_names(d)
    refuse(np.nan_to_num(values, nan=np.nan) if infinite else values, names, name, blame, missing)
    return Points(values, names, gaps)


def as_feature_names(feature_names: Any, d: int) -> tuple[str, ...]:
    """Names of d features, as texts."""
    try:
        names = () if isinstance(feature_names, str) else tuple(map(str, feature_names))
    except TypeError:
        names = ()
    if len(names) != d or len(set(names)) < d:
        raise ValueError(f"feature_names must be {d} different names; it is {feature_names!r}")
    return names


def _read(x: Any, name: str) -> tuple[tuple[str, ...] | None, bool, tuple[np.ndarray, dict[int, str]]]:
    """Column names, whether they say which column is which, and the numbers with what is to blame."""
    try:
        table = table_of(x)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from None
    if table is None:
        columns = getattr(x, "columns", None)
        names = None if columns is None or callable(columns) else tuple(map(str, columns))
        return names, True, _as_float(x, name)
    names = table.names
    if names is not None and len(set(names)) < len(names):
        twice = sorted({column for column in names if names.count(column) > 1})
        raise ValueError(f"{name} has several columns called {quoted(twice)}; rename or drop them")
    if not table.by_name:
        one = table.columns[0]
        return names, False, (np.zeros(1), {0: one}) if isinstance(one, str) else _as_float(one, name)
    read = [numbers_of(column) for column in table.columns]
    blame = {j: why for j, (_, why) in enumerate(read) if why}
    good = [column for column, why in read if not why]
    single = bool(good) and all(column.dtype.kind == "f" and column.itemsize <= 4 for column in good)
    n = max((len(column) for column in good), default=1 if read else 0)
    values = np.zeros((n, len(read)), np.float32 if single else np.float64)
    with np.errstate(over="ignore"):
        for j, (column, why) in enumerate(read):
            if not why:
                values[:, j] = column
    return names, True, (values, blame)


def _precision(values: np.ndarray) -> np.ndarray:
    """float32 for floats that fit in it, else float64, in row order."""
    single = values.dtype.itemsize <= 4 and values.dtype.kind not in "iub"
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32 if single else np.float64)


def _as_float(x: Any, name: str) -> tuple[np.ndarray, dict[int, str]]:
    """An array of any shape as floats, missing values NaN; and which columns are no numbers, and why."""
    missing = np.ma.getmaskarray(x) if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x) else None
    try:
        values = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as an array of numbers: {error}") from None
    if values.dtype.kind == "c":
        raise ValueError(f"{name} is complex ({values.dtype}); pass real numbers")
    blame = {}
    if values.dtype.kind not in "fiub" and values.dtype != jax.numpy.bfloat16:
        cells = values.reshape(values.shape[0], -1) if values.ndim else values.reshape(1, 1)
        if missing is not None:
            cells = cells.astype(object)
            cells[missing.reshape(cells.shape)] = None
        read = [_cells(column) for column in cells.T]
        blame = {j: why for j, (_, why) in enumerate(read) if why}
        columns = [np.zeros(len(cells)) if why else column for column, why in read]
        values = np.stack(columns, axis=1).reshape(values.shape) if columns else np.zeros(values.shape)
    values = _precision(values)
    if missing is not None:
        values = np.where(missing, values.dtype.type(np.nan), values)
    return values, blame


def _cells(column: np.ndarray) -> tuple[np.ndarray, str]:
    """As `numbers_of`, with text cell by cell, so that the first is shown."""
    return numbers_of(column.astype(object) if column.dtype.kind in "USTV" else column)


def as_floats(values: Any, name: str, *, infinite: bool = False) -> np.ndarray:
    """An array of numbers of any shape, float64 or float32 by the rule of `as_points`; finite, or `infinite` too."""
    array, blame = _as_float(values, name)
    if blame:
        raise ValueError(f"{name} is not numeric: {first_of(list(blame.values()))}; pass numbers")
    if np.isnan(array).any() or not (infinite or np.isfinite(array).all()):
        raise ValueError(f"{name} have a value that is not finite: {array.tolist()}")
    return array


def are_chances(weights: np.ndarray) -> bool:
    """Whether numbers are not negative and add up to one."""
    return not (weights < 0).any() and abs(float(weights.sum(dtype=np.float64)) - 1) <= 1e-6


def as_weights(sample_weight: Any, n: int, name: str = "sample_weight") -> np.ndarray:
    """Observation weights (n,), float64; `None` is a weight of one each.

    Raises:
        ValueError: wrong shape, negative, not finite, all zero, or far too small or large in all to compute with.
    """
    if sample_weight is None:
        return np.ones(n)
    weight = as_points(sample_weight, name, n_features=1).values[:, 0].astype(np.float64)
    if weight.shape != (n,):
        raise ValueError(f"{name} has {weight.size} entries for {n} rows")
    if (weight < 0).any():
        row = int(np.argmax(weight < 0))
        raise ValueError(f"{name} is negative ({weight[row]}) in row {row}; a weight counts repetitions")
    if not weight.any():
        raise ValueError(f"{name} is zero for every row, so there are no data")
    with np.errstate(over="ignore"):
        total = weight.sum()
    if not _WEIGHED[0] <= total <= _WEIGHED[1]:
        raise ValueError(f"{name} adds up to {total:.3g}, which is no number of repetitions; change its unit")
    return weight


def as_labels(labels: Any, k: int, keep: np.ndarray) -> np.ndarray | None:
    """Known clusters (n,), -1 where they are not; those of rows that are not kept (n,) say nothing. `None` if none is.

    Raises:
        ValueError: no whole numbers from -1 to k - 1, one a row.
    """
    if labels is None:
        return None
    n, given = len(keep), np.ma.asarray(labels)
    whole = given.dtype.kind in "iu" and given.shape == (n,)
    known = given.compressed()  # what is masked is not known
    if not whole or (known.size and (known.min() < -1 or known.max() >= k)):
        raise ValueError(
            f"labels must be {n} whole numbers, a cluster below {k} or -1 where it is not known; they are "
            f"{given.dtype} of shape {given.shape}"
            + (f" from {known.min()} to {known.max()}" if whole else "")
        )
    given = np.where(keep, np.ma.filled(given.astype(np.int64), -1), -1)
    return given if (given >= 0).any() else None


def require_squares(x: np.ndarray, deviations: np.ndarray) -> None:
    """Refuse data with standard deviations of which the squares, or those of narrow clusters, cannot be held."""
    if not ((deviations >= _HELD[0]) & (deviations <= _HELD[1])).all():
        raise ValueError(
            f"x is too large or too small: its columns reach {np.abs(x).max(axis=0).tolist()}, and variances, which "
            "are of the size of squares, cannot be held in float64; change its units"
        )


def require_alike(deviations: np.ndarray, structure: str) -> None:
    """Refuse columns of which a structure that has one scale for all could not hold the determinants."""
    if deviations.max() > _ALIKE * deviations.min():
        raise ValueError(
            f"the columns of x have standard deviations from {deviations.min():.3g} to {deviations.max():.3g}, too "
            f"far apart for {structure}, which depends on the units of the columns; change these, or use 'VVV'"
        )


def as_count(value: Any, name: str, minimum: int = 1) -> int:
    """A whole number of at least `minimum`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")
    return int(value)


def is_number(value: Any) -> bool:
    """Whether a value is one real number, and no truth value."""
    return not is_traced(value) and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"


def as_share(value: Any, name: str, *, whole: bool = False) -> float:
    """A number between 0 and 1, or with `whole` 1 itself."""
    if not (is_number(value) and (0 < value < 1 or (whole and value == 1))):
        raise ValueError(
            f"{name} must be {'above 0 and at most 1' if whole else 'between 0 and 1'}, not {value!r}"
        )
    return float(value)


def as_tol(tol: Any) -> float:
    """How many nats may remain to be gained."""
    if not (isinstance(tol, int | float | np.number) and 0 <= tol < np.inf):
        raise ValueError(f"tol must be a number of nats, zero or more; it is {tol!r}")
    return float(tol)


def as_name(value: Any, name: str, choices: Iterable[str]) -> str:
    """One of a table's names."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; it is {value!r}")
    return value


def as_names(values: Any, name: str, choices: Iterable[str]) -> tuple[str, ...]:
    """Some of a table's names, each once and in order."""
    return tuple(sorted({as_name(value, name, choices) for value in as_list(values)}))


def as_list(values: Any) -> list[Any]:
    """The values of a list, or one alone."""
    alone = isinstance(values, str) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0
    return [values] if alone else list(values)
