"""Tables: the columns of pandas, polars, pyarrow, xarray and structured NumPy data, and a frame out again.

A library is known by where the class of an object lives, so none is loaded for data of another. A column comes out as
numbers, missing cells as NaN, or as the word for what it is when it holds no numbers; `inputs` judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bayesmix.blocks import chunks_of

__all__ = ["FRAMES", "READERS", "Table", "default_names", "first_of", "frame_like"]
__all__ += ["never_named", "numbers_of", "order_of", "quoted", "refuse", "table_of"]


_MISSING = ("NoneType", "NAType", "NaTType", "MaskedConstant")
# `float` takes some of them.
_NO_NUMBERS = (str, bytes, complex, np.complexfloating, np.datetime64, np.timedelta64)


class Table(NamedTuple):
    """Columns by name; `by_name` where the names say which column is which, as those of a lone series do not.

    What has no names at all is one "column", which may be (n, d).
    """

    names: tuple[str, ...] | None
    columns: list[Any]  # each an array (n,), or the word for a type that is no number
    by_name: bool = True


def table_of(x: Any) -> Table | None:
    """The columns of a table, or `None` where x is none.

    Raises:
        ValueError: a lazy frame, or an array whose rows cannot be told; the sentence goes on "x is ...".
    """
    if isinstance(x, np.ndarray) and x.dtype.names:
        odd = [f"{name!r} has shape {x[name].shape}" for name in x.dtype.names if x[name].ndim != 1]
        if odd:
            raise ValueError(
                f"a record array whose fields are no columns of numbers: {first_of(odd)}; a row is one record, and "
                "each feature a field of its own"
            )
        return Table(tuple(x.dtype.names), [_filled(x[name]) for name in x.dtype.names])
    library = _library(x)
    return READERS[library](x) if library in READERS else None


def _library(x: Any) -> str:
    """The first part of the module of x's class, or of the first class that it derives from and that has a reader."""
    roots = [cls.__module__.partition(".")[0] for cls in type(x).__mro__]
    return next((root for root in roots if root in READERS), roots[0])


def numbers_of(column: Any) -> tuple[np.ndarray, str]:
    """A column as floats, missing cells NaN; and why it is no column of numbers, empty where it is one."""
    if isinstance(column, str):
        return np.zeros(0), column
    if column.dtype.kind in "fiub":
        return column, ""
    if column.dtype.kind != "O":
        return np.zeros(0), "text" if column.dtype.kind in "UST" else str(column.dtype)
    out = np.empty(column.shape)
    for row, cell in enumerate(column):
        try:
            if isinstance(cell, _NO_NUMBERS):
                raise TypeError
            missing = type(cell).__name__ in _MISSING
            out[row] = np.nan if missing else float(cell)
        except (TypeError, ValueError, OverflowError):
            return out, f"row {row} holds {cell!r:.80}"
    return out, ""


def _filled(column: np.ndarray) -> np.ndarray:
    """A masked column with NaN where it is masked."""
    if not isinstance(column, np.ma.MaskedArray):
        return column
    if not np.ma.getmaskarray(column).any() or column.dtype.kind not in "fiubO":
        return column.data
    kind = column.dtype if column.dtype.kind in "fO" else np.dtype(np.float64)
    return np.where(np.ma.getmaskarray(column), np.nan, column.data.astype(kind))


def _pandas(x: Any) -> Table | None:
    import pandas

    if isinstance(x, pandas.DataFrame):
        names = [".".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in x.columns]
        return Table(tuple(names), [_pandas_column(column) for _, column in x.items()])
    if isinstance(x, pandas.Index | pandas.api.extensions.ExtensionArray):
        x = pandas.Series(x)
    if not isinstance(x, pandas.Series):
        return None
    return Table(None if x.name is None else (str(x.name),), [_pandas_column(x)], by_name=False)


def _pandas_column(series: Any) -> Any:
    import pandas

    dtype = series.dtype
    if isinstance(dtype, np.dtype):
        return series.to_numpy()
    types = pandas.api.types
    known = types.is_numeric_dtype(dtype) or types.is_bool_dtype(dtype)
    if not known or isinstance(dtype, pandas.CategoricalDtype):
        return str(dtype)
    single = dtype.kind == "f" and getattr(dtype, "itemsize", 8) <= 4
    return series.to_numpy(np.float32 if single else np.float64, na_value=np.nan)


def _polars(x: Any) -> Table | None:
    import polars

    if isinstance(x, polars.LazyFrame):
        raise ValueError("a LazyFrame, whose rows are not there yet; call .collect() first")
    if isinstance(x, polars.Series):
        return Table((x.name,) if x.name else None, [_polars_column(x)], by_name=False)
    return Table(tuple(x.columns), [_polars_column(column) for column in x.get_columns()])


def _polars_column(series: Any) -> Any:
    import polars

    if series.dtype == polars.Object:
        return np.fromiter(series.to_list(), dtype=object, count=len(series))
    if not (series.dtype.is_numeric() or series.dtype in (polars.Boolean, polars.Null)):
        return str(series.dtype)
    kind = polars.Float32 if series.dtype == polars.Float32 else polars.Float64
    return series.cast(kind).to_numpy()


def _pyarrow(x: Any) -> Table | None:
    import pyarrow

    if isinstance(x, pyarrow.Table | pyarrow.RecordBatch):
        return Table(tuple(x.schema.names), [_pyarrow_column(column) for column in x.columns])
    return Table(None, [_pyarrow_column(x)], by_name=False)


def _pyarrow_column(column: Any) -> Any:
    from pyarrow import compute, float32, float64, types

    kind = column.type
    if types.is_null(kind):
        return np.full(len(column), np.nan)
    if not (
        types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    ):
        return str(kind)
    single = types.is_float16(kind) or types.is_float32(kind)
    cast = compute.cast(column, float32() if single else float64(), safe=False)
    return cast.to_numpy(zero_copy_only=False) if hasattr(cast, "buffers") else cast.to_numpy()


def _xarray(x: Any) -> Table | None:
    import xarray

    if isinstance(x, xarray.Dataset):
        shapes = {variable.dims for variable in x.data_vars.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            found = ", ".join(f"{name} {variable.dims}" for name, variable in x.data_vars.items())
            raise ValueError(
                f"a Dataset whose variables are no columns over one dimension: {found or 'it is empty'}; "
                "pass one of them, (obs, feature)"
            )
        return Table(
            tuple(str(name) for name in x.data_vars), [variable.values for variable in x.data_vars.values()]
        )
    if not isinstance(x, xarray.DataArray):
        raise ValueError("a DataTree; pass the array of its data, such as tree['observed_data']['x']")
    if x.ndim == 1:
        return Table(None if x.name is None else (str(x.name),), [x.values], by_name=False)
    if x.ndim != 2:
        raise ValueError(f"a DataArray with dimensions {x.dims}; points by features are needed")
    if x.dims[0] == "feature":
        x = x.T
    feature = x.dims[1]
    values = np.asarray(x.values)
    if feature not in x.coords:
        return Table(None, [values], by_name=False)
    return Table(tuple(str(name) for name in x[feature].values), list(values.T))


READERS: dict[str, Callable[[Any], Table | None]] = {
    "pandas": _pandas,
    "polars": _polars,
    "pyarrow": _pyarrow,
    "xarray": _xarray,
}


def default_names(d: int) -> tuple[str, ...]:
    """What features are called that came without names."""
    return tuple(f"x{j}" for j in range(d))


def never_named(names: Sequence[str]) -> bool:
    """Whether features are called as those are that came without names."""
    return tuple(names) == default_names(len(names))


def order_of(names: tuple[str, ...], known: tuple[str, ...], name: str) -> list[int] | None:
    """Where each known feature stands among a table's columns; `None` for features that were never named."""
    if names == known:
        return None
    if set(names) == set(known):
        return [names.index(feature) for feature in known]
    if never_named(known):
        return None
    lacks = [feature for feature in known if feature not in names]
    extra = [column for column in names if column not in known]
    raise ValueError(
        f"{name} has other columns than the features {quoted(known)}: "
        + " and ".join(
            [f"it lacks {quoted(lacks)}"] * bool(lacks)
            + [f"{quoted(extra)} {'are' if len(extra) > 1 else 'is'} none of them"] * bool(extra)
        )
        + "; rename or choose columns, or pass an array, which is taken by position"
    )


def quoted(names: Iterable[str]) -> str:
    """Names in quotes, the first twenty of many."""
    names = list(names)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(map(repr, names[:20])) + more


def refuse(
    values: np.ndarray,
    names: tuple[str, ...],
    name: str,
    blame: dict[int, str],
    missing: bool | None = None,
) -> None:
    """One error that names every column that is no number, and every one with a missing or infinite cell.

    `missing` says whether cells may be; `None` if no user can say that they may.
    """

    def right(cells: np.ndarray) -> np.ndarray:
        return ~np.isinf(cells) if missing else np.isfinite(cells)

    if not blame and all(right(values[rows]).all() for rows in chunks_of(len(values))):
        return
    finite = right(values)
    whole = [f"column {names[j]!r} ({why})" for j, why in blame.items()]
    cells = []
    for j in np.flatnonzero(~finite.all(axis=0)).tolist():
        if j in blame:
            continue
        row = int(np.argmin(finite[:, j]))
        what = "a missing value" if np.isnan(values[row, j]) else f"an infinite value ({values[row, j]})"
        count = int((~finite[:, j]).sum())
        cells.append(f"{what} in row {row}, column {names[j]!r} ({count} of {len(values)} rows are affected)")
    parts, remedies = [], []
    if whole:
        parts.append(f"is not numeric: {first_of(whole)}")
        remedies.append("drop or encode such columns")
    if cells:
        parts.append(f"has {first_of(cells)}")
        remedies.append("drop or impute such rows first")
    if missing is False and np.isnan(values).any() and not (blame or np.isinf(values).any()):
        remedies = ["drop or impute such rows first, or pass missing='at_random'"]
    raise ValueError(f"{name} {', and '.join(parts)}; {' and '.join(remedies)}")


def first_of(phrases: list[str]) -> str:
    return ", ".join(phrases[:20]) + (f" and {len(phrases) - 20} more" if len(phrases) > 20 else "")


def _pandas_frame(x: Any, columns: Mapping[str, np.ndarray]) -> Any:
    import pandas

    index = x.index if isinstance(x, pandas.DataFrame | pandas.Series) else None
    return pandas.DataFrame(dict(columns), index=index)


def _polars_frame(x: Any, columns: Mapping[str, np.ndarray]) -> Any:
    import polars

    return polars.DataFrame(dict(columns))


def _pyarrow_frame(x: Any, columns: Mapping[str, np.ndarray]) -> Any:
    import pyarrow

    return pyarrow.table(dict(columns))


FRAMES: dict[str, Callable[[Any, Mapping[str, np.ndarray]], Any]] = {
    "pandas": _pandas_frame,
    "polars": _polars_frame,
    "pyarrow": _pyarrow_frame,
}


def frame_like(x: Any, values: np.ndarray, names: Sequence[str]) -> Any:
    """Per-row results (n,) or (n, columns) as a frame of the library of x, a pandas frame where it has none."""
    columns = np.asarray(values).reshape(len(values), -1)
    return FRAMES.get(_library(x), _pandas_frame)(
        x, {name: columns[:, j].copy() for j, name in enumerate(names)}
    )
