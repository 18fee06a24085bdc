"""What comes in: tables as numbers and known classes, mixtures and posteriors."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesmix.cli.shared import plural, say
from bayesmix.frames import never_named

if TYPE_CHECKING:
    import pandas
    import xarray

    from bayesmix.mixture import GaussianMixture

__all__ = ["PARQUET", "POSTERIORS", "Data", "load_mixture", "load_posterior", "named", "read_data"]
__all__ += ["require_netcdf", "require_parquet"]

PARQUET = (".parquet", ".pq")
POSTERIORS = (".nc", ".zarr")
_SEPARATORS = (",", ";", "\t")
_MAGIC = b"PAR1"


class Data(NamedTuple):
    """What a command reads: where from, the features as float64, and the known class of each row if asked for."""

    name: str
    x: pandas.DataFrame
    column: str | None
    labels: np.ndarray | None

    @property
    def size(self) -> str:
        rows, features = self.x.shape
        gone = f", {plural(self.n_missing, 'missing cell')}" if self.n_missing else ""
        return f"{rows} rows, {features} feature{'s' if features > 1 else ''}{gone}"

    @property
    def n_missing(self) -> int:
        """How many cells have no value."""
        return int(self.x.isna().to_numpy().sum())

    def document(self) -> dict[str, Any]:
        """For scripts."""
        told = {"name": self.name, "n_rows": len(self.x), "features": list(self.x.columns)}
        return told | ({"n_missing": self.n_missing} if self.n_missing else {})


def named(names: Sequence[str] | None, columns: Iterable[str]) -> list[str] | None:
    """The columns that features are by their names; `None` for features that were never named: all, by position."""
    if names is None or (never_named(names) and not set(names) <= set(columns)):
        return None
    return list(names)


def read_data(
    source: str,
    *,
    labels: str | None = None,
    features: Sequence[str] | None = None,
    known: Sequence[str] | None = None,
    missing: str | None = None,
) -> Data:
    """The table: the known classes taken out, then the features as numbers, all by default, or those of a mixture.

    Raises:
        ValueError: no such file or column, a column in two roles, or a cell that is no number, unless it is `missing`
            and may be; the message names its column and row.
    """
    from bayesmix import datasets
    from bayesmix.missing import allowed

    frame: Any
    frame, name = _read(source, labels)
    twice = sorted(set(frame.columns[frame.columns.duplicated()]))
    if twice:
        raise ValueError(
            f"{name} has several columns called {', '.join(map(repr, twice))}; rename or drop them"
        )
    if known is not None:
        features = named(known, frame.columns)
    asked = [*(features or ()), *([labels] if labels else ())]
    for column in asked:
        if asked.count(column) > 1:
            raise ValueError(
                f"column {column!r} is asked for twice; --features and --labels take each column once"
            )
        if column not in frame:
            raise ValueError(
                f"{name} has no column {column!r}; its columns are {', '.join(map(str, frame.columns))}"
            )
    classes = None
    if labels is not None:
        classes = frame.pop(labels)
        if classes.isna().any():
            row = int(np.argmax(classes.isna()))
            raise ValueError(
                f"{name}: column {labels!r} has no value in row {row}, so the row has no known class"
            )
        classes = classes.astype(str).to_numpy(object)
    if features is not None:
        frame = frame[list(features)]
    elif source in datasets.NAMES:  # whose known classes are no measurement
        frame = frame.drop(columns="label", errors="ignore")
    if not frame.shape[1]:
        raise ValueError(f"{name} has no column left to use as a feature")
    return Data(name, _numbers(frame, name, allowed(missing)), labels, classes)


def _read(source: str, labels: str | None) -> tuple[pandas.DataFrame, str]:
    """The table as it is, and the name that messages call it by."""
    from bayesmix import datasets

    if source in datasets.NAMES:
        frame = datasets.load(source)
        return (frame.assign(label=datasets.labels(source)) if source in datasets.LABELLED else frame), source
    if source == "-":
        content, name = sys.stdin.buffer.read(), "standard input"
        parquet = content.startswith(_MAGIC)
        return (_parquet(io.BytesIO(content), name) if parquet else _csv(content, name, labels)), name
    path = Path(source)
    if not path.is_file():
        raise ValueError(
            f"there is no file {source!r}; the bundled data sets are {', '.join(datasets.NAMES)}"
        )
    if path.suffix.lower() in PARQUET:
        return _parquet(source, source), source
    return _csv(source, source, labels), source


def _csv(source: str | bytes, name: str, labels: str | None) -> pandas.DataFrame:
    """A file, or its content; its separator is the first of `_SEPARATORS` that its header has, outside of quotes."""
    import pandas

    def read(separator: str, **options: Any) -> pandas.DataFrame:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        return pandas.read_csv(stream, sep=separator, skipinitialspace=True, **options)

    as_text = {"header": None, "dtype": str, "keep_default_na": False}
    try:
        headers = {separator: list(read(separator, nrows=1, **as_text).iloc[0]) for separator in _SEPARATORS}
        separator = next((s for s in _SEPARATORS if len(headers[s]) > 1), ",")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame = read(separator, index_col=False)
        # pandas renames columns of one name, and leaves the blanks after a name.
        frame.columns = [text.rstrip() or f"Unnamed: {j}" for j, text in enumerate(headers[separator])]
        if frame.shape[1] == 1:
            both = (read(separator, skip_blank_lines=skip, **as_text) for skip in (True, False))
            _require_cells(name, *(table.iloc[:, 0].tolist() for table in both))
        if labels in frame:  # its cells are words, "NA" too
            column = list(frame.columns).index(labels)
            words = read(separator, index_col=False, usecols=[column], dtype=str, keep_default_na=False)
            frame[labels] = words.iloc[:, 0].str.strip().where(lambda word: word != "")
    except pandas.errors.ParserWarning:
        raise ValueError(
            f"{name} cannot be read as CSV: its rows have more cells than its header; cells are separated by "
            f"{separator!r}, and numbers have a decimal point"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8; save it as UTF-8") from None
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise ValueError(f"{name} cannot be read as CSV: {error}") from None
    frame = _without_row_names(frame)
    if all(_is_number(column) for column in frame.columns):
        raise ValueError(f"{name} has no header line: its first line is all numbers; add the columns' names")
    return frame


def _require_cells(name: str, cells: list[str], lines: list[str]) -> None:
    """A blank line between the cells of a lone column, which pandas leaves out, is a cell without a value."""
    for row, (cell, line) in enumerate(zip(cells, lines)):
        if cell != line:
            raise ValueError(
                f"{name}: column {cells[0].strip()!r} has no value in row {row - 1}, which is a blank line; drop such "
                "rows (the first row is row 0)"
            )


def _parquet(source: Any, name: str) -> pandas.DataFrame:
    import pandas

    require_parquet(name)
    import pyarrow

    try:
        frame = pandas.read_parquet(source, engine="pyarrow")
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{name} cannot be read as Parquet: {error}") from None
    return frame.rename(columns=str)


def require_parquet(name: str) -> None:
    """Say what is missing where Parquet is asked for and cannot be had.

    Raises:
        ValueError: pyarrow is not installed.
    """
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise ValueError(
            f"{name}: Parquet needs pyarrow, which is not installed; pip install 'bayesmix[parquet]', or use CSV"
        )


def require_netcdf() -> None:
    """Say what is missing where netCDF is asked for and cannot be had.

    Raises:
        ValueError: h5netcdf is not installed.
    """
    from importlib.util import find_spec

    if find_spec("h5netcdf") is None:
        raise ValueError(
            "a posterior is kept as netCDF, which needs h5netcdf: pip install 'bayesmix[netcdf]'"
        )


def _without_row_names(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Without a first column that has no name and counts the rows, as R and pandas write it."""
    first = frame.columns[0]
    if str(first) == "Unnamed: 0" and any(
        list(frame[first]) == list(range(s, s + len(frame))) for s in (0, 1)
    ):
        say("bayesmix: the first column has no name and counts the rows, so it is left out")
        return frame.drop(columns=first)
    return frame


def _numbers(frame: pandas.DataFrame, name: str, gaps: bool = False) -> pandas.DataFrame:
    """The table as float64, or the first cell that is no finite number, which with `gaps` may have no value."""
    import pandas

    if frame.empty:
        raise ValueError(f"{name} has no rows")
    columns = {}
    for column, own in frame.items():
        moments = own.dtype.kind in "mM" or isinstance(own.dtype, pandas.PeriodDtype)  # numbers to pandas
        read = np.full(len(own), np.nan) if moments else pandas.to_numeric(own, errors="coerce")
        columns[column] = values = np.asarray(read, np.float64)
        bad = np.flatnonzero(~np.isfinite(values) & ~(own.isna().to_numpy() & gaps))
        if not bad.size:
            continue
        cell = str(own.iloc[bad[0]])[:80]
        if "," in cell and _is_number(cell.replace(".", "").replace(",", ".")):
            raise ValueError(
                f"{name}: column {str(column)!r} holds {cell!r} in row {bad[0]}; write numbers with a decimal "
                "point and no other marks (the first row is row 0)"
            )
        empty = own.isna().iloc[bad[0]]
        what = "has no value" if empty else f"holds {cell!r}, not a finite number,"
        more = f" ({bad.size} of {len(frame)} rows are affected)" if bad.size > 1 else ""
        raise ValueError(
            f"{name}: column {str(column)!r} {what} in row {bad[0]}{more}; drop such rows, or use other columns by "
            f"--features{', or --missing at_random' if empty else ''} (the first row is row 0)"
        )
    return pandas.DataFrame(columns, index=frame.index)


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


def load_mixture(path: str) -> GaussianMixture:
    """What `bayesmix fit`, `GaussianMixture.save` or `Fit.save` wrote.

    Raises:
        ValueError: no such file, or no mixture in it.
    """
    from bayesmix.files import load
    from bayesmix.mixture import GaussianMixture
    from bayesmix.results import Fit

    if not Path(path).is_file():
        raise ValueError(
            f"there is no file {path!r}; bayesmix fit DATA --out FOLDER writes FOLDER/mixture.json"
        )
    found = load(path)
    found = found.mixture if isinstance(found, Fit) else found
    if not isinstance(found, GaussianMixture):
        raise ValueError(f"{path} holds a posterior, not a mixture")
    return found


def load_posterior(path: str) -> xarray.DataTree:
    """What `bayesmix sample` or `bm.save` wrote, in memory.

    Raises:
        ValueError: no such file, no posterior in it, or what reads it is not installed.
    """
    import xarray

    from bayesmix.files import load

    if not Path(path).exists():
        raise ValueError(
            f"there is no file {path!r}; bayesmix sample DATA --out FOLDER writes FOLDER/posterior.nc"
        )
    try:
        found = load(path)
    except ImportError as error:  # an extra that is not installed
        raise ValueError(str(error)) from None
    if not isinstance(found, xarray.DataTree) or "posterior" not in found.children:
        raise ValueError(f"{path} holds no posterior")
    return found
