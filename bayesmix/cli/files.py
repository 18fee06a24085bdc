"""Files out: checked before any work, made in memory, and written all or none."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from bayesmix.cli.shared import BAD_INPUT, command_line, say
from bayesmix.cli.tables import PARQUET, require_parquet

if TYPE_CHECKING:
    import pandas

__all__ = [
    "SINGLE",
    "TABLES",
    "Output",
    "check_checkpoint",
    "check_file",
    "check_folder",
    "drawn",
    "saved_bytes",
    "table_bytes",
    "write",
]

SINGLE = (6.4, 4.8)  # inches, of a figure with one panel
TABLES = (".csv", *PARQUET)
_FORMATS = {"csv": ".csv", "parquet": ".parquet"}


def check_folder(out: str | None) -> Path | None:
    """Before any work: a folder, or a place where one can be made.

    Raises:
        ValueError: it is neither.
    """
    if out is None:
        return None
    path = Path(out)
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(f"--out must be a folder; {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"--out: {nearest} is not writable")
    return path


def check_file(out: str | None, suffixes: Sequence[str], option: str = "--out") -> Path | None:
    """Before any work: a name that ends in one of the suffixes, at a place where a file can be made.

    Raises:
        ValueError: it does not, or there is none.
    """
    if out is None:
        return None
    path = Path(out)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} must be a file that ends in {', '.join(suffixes)}; it is {out!r}")
    if path.is_dir():
        raise ValueError(f"{option} must be a file; {path} is a folder")
    check_folder(str(path.absolute().parent))
    if path.suffix.lower() in PARQUET:
        require_parquet(out)
    return path


def check_checkpoint(context: typer.Context, checkpoint: str | None) -> None:
    """Before any work: a place for a file; the line that says that the command was interrupted will name it.

    Raises:
        ValueError: it is none.
    """
    if checkpoint is None:
        return
    path = Path(checkpoint)
    if not path.absolute().parent.is_dir() or (path.exists() and not path.is_file()):
        raise ValueError(f"--checkpoint must be a file in a folder that exists; it is {checkpoint!r}")
    context.meta["checkpoint"] = checkpoint


class Output(NamedTuple):
    """Where results go, checked before any work."""

    folder: Path | None
    report: Path | None
    suffix: str
    as_json: bool
    command: str

    @classmethod
    def of(
        cls, context: typer.Context, out: str | None, report: str | None, kind: str, as_json: bool
    ) -> Output:
        """From the options that commands share.

        Raises:
            ValueError: a place where nothing can be written, or no such kind of table.
        """
        if kind not in _FORMATS:
            raise ValueError(f"--format must be csv or parquet; it is {kind!r}")
        if kind == "parquet":
            require_parquet("--format parquet")
        html = check_file(report, (".html", ".htm"), "--report")
        return cls(check_folder(out), html, _FORMATS[kind], as_json, command_line(context))

    def tables(self, frames: Mapping[str, pandas.DataFrame]) -> dict[Path, bytes]:
        """Tables as files of the folder."""
        if self.folder is None:
            return {}
        return {
            self.folder / (name + self.suffix): table_bytes(frame, self.suffix)
            for name, frame in frames.items()
        }

    def say_written(self, files: Mapping[Path, bytes], what: str) -> None:
        """The last line on the terminal; `what` could have been written to a folder."""
        if not files:
            typer.echo(f"\nNothing was written; --out FOLDER writes {what}.")
            return
        inside = sorted(path.name for path in files if path != self.report)
        places = [f"{', '.join(inside)} to {self.folder}"] if inside else []
        places += [str(self.report)] if self.report is not None else []
        typer.echo(f"\nWrote {' and '.join(places)}")


def table_bytes(frame: pandas.DataFrame, suffix: str) -> bytes:
    """CSV or Parquet; the index, if it has a name, is the first column."""
    named = frame.index.name is not None
    if suffix.lower() not in PARQUET:
        return frame.to_csv(index=named).encode()
    content = io.BytesIO()
    (frame.reset_index() if named else frame).to_parquet(content, engine="pyarrow", index=False)
    return content.getvalue()


def saved_bytes(result: Any, suffix: str) -> bytes:
    """What `bayesmix.save` writes."""
    from tempfile import TemporaryDirectory

    from bayesmix.files import save

    with TemporaryDirectory() as folder:
        path = Path(folder, f"result{suffix}")
        save(result, path)
        return path.read_bytes()


def drawn(
    draw: Callable[[Any], Any],
    *,
    panels: tuple[int, int] = (1, 1),
    size: tuple[float, float] = SINGLE,
    kind: str = "png",
) -> bytes:
    """A figure; made without pyplot, so that no display and no global state is touched.

    Names of columns are shown as they are: a dollar starts no formula.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with rc_context({"text.parse_math": False, "svg.hashsalt": "bayesmix"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(*panels))
        figure.savefig(content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def write(files: Mapping[Path, bytes]) -> None:
    """All of the files or none: each beside its place first, then all into place.

    Raises:
        typer.Exit: a file could not be written; whatever was made for it is gone again, and old files are back.
    """
    made: list[Path] = []
    aside: list[Path] = []
    try:
        for path, content in files.items():
            folder = path.absolute().parent
            made += reversed([place for place in (folder, *folder.parents) if not place.exists()])
            folder.mkdir(parents=True, exist_ok=True)
            made.append(_part(path))
            made[-1].write_bytes(content)
        for path in files:
            if path.is_file():
                aside.append(path)
                path.replace(_old(path))  # which is undone on a full disk too
            elif not path.exists():
                made.append(path)
            _part(path).replace(path)
    except BaseException as error:
        for path in aside:
            if _old(path).exists():
                _old(path).replace(path)
        for path in reversed(made):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        say(f"bayesmix: cannot write {', '.join(map(str, files))}: {error}")
        raise typer.Exit(BAD_INPUT) from None
    for path in aside:
        _old(path).unlink()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
