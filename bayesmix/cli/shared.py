"""What all commands share: exit codes, options, messages, and the one JSON object for scripts."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    import pandas

__all__ = ["BAD_INPUT", "DONE", "INTERRUPTED", "NOT_CLEAN", "NOT_READ", "Group"]
__all__ += [
    "CheckpointOption",
    "CountsOption",
    "CovarianceOption",
    "DataArgument",
    "FeaturesOption",
    "FormatOption",
    "JsonOption",
]
__all__ += ["KeyOption", "LabelsOption", "MissingOption", "OutOption", "ReportOption"]
__all__ += ["bad_input_ends", "command_line", "counts_of", "emit", "plural", "say", "show"]
__all__ += ["whole_results", "words_of"]

DONE, NOT_CLEAN, BAD_INPUT, INTERRUPTED, NOT_READ = 0, 1, 2, 130, 141
_MOST = 10_000  # numbers of clusters
_PART = "the (search|sampler) was interrupted"  # how the library's warnings begin

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A CSV or Parquet file with a header and numeric columns, - for standard input, or the name of a "
        "bundled data set: old_faithful, iris, galaxies.",
        show_default=False,
    ),
]
CountsOption = Annotated[
    str,
    typer.Option(
        "--n-components", "-k", help="Numbers of clusters: 3, or 1,2,5, or a range with both ends, 1:9."
    ),
]
CovarianceOption = Annotated[
    str, typer.Option(help="full, tied, diag, spherical, or mclust's letters such as VVI.")
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="A column of known classes: taken out of the data, and compared with the clusters by the adjusted "
        "Rand index.",
    ),
]
FeaturesOption = Annotated[
    str | None,
    typer.Option(metavar="COLUMNS", help="The columns to use, such as width,height; all by default."),
]
MissingOption = Annotated[
    str | None,
    typer.Option(
        help="at_random: cells without a value are integrated out, which is right where whether a cell is missing does "
        "not depend on what it would have been. By default they are an error.",
    ),
]
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Says how far the run has come, written as it goes on: after Ctrl-C or a crash the same command goes on "
        "from it.",
    ),
]
KeyOption = Annotated[int, typer.Option(help="Seeds what is drawn; the same key gives the same result.")]
OutOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER", help="Folder for the results, made if needed; without it none are written."
    ),
]
ReportOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="One HTML file with the figures, the tables and this command."),
]
FormatOption = Annotated[str, typer.Option("--format", help="csv or parquet, of the tables in the folder.")]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object and nothing else; messages go to standard error."),
]


class Group(TyperGroup):
    """Remembers the words of the command line, for the report; ends quietly when interrupted or no longer read."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say(f"bayesmix: interrupted{_to_go_on(ctx.meta.get('checkpoint'))}")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # as `| head` does; nothing may be flushed to it at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(NOT_READ) from None


def _to_go_on(checkpoint: str | None) -> str:
    written = checkpoint is not None and Path(checkpoint).is_file()
    return f"; the same command goes on from {checkpoint}" if written else ""


def command_line(context: typer.Context) -> str:
    """The command as it was typed, quoted for a shell."""
    import shlex

    return shlex.join(["bayesmix", *context.meta["words"]])


def say(sentence: str) -> None:
    """To standard error."""
    typer.echo(sentence, err=True)


@contextmanager
def bad_input_ends() -> Iterator[None]:
    """Bad data or options end the command with one sentence and exit code 2."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        say(f"bayesmix: {' '.join(str(error).split())}")
        raise typer.Exit(BAD_INPUT) from None


@contextmanager
def whole_results() -> Iterator[None]:
    """Ctrl-C ends the command, at once, where the library warns and makes a result of what is finished.

    Raises:
        KeyboardInterrupt: it was pressed.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", _PART)
            yield
    except UserWarning as warning:
        if re.match(_PART, str(warning)):
            raise KeyboardInterrupt from None
        raise


def counts_of(text: str, most: int | None = None) -> list[int]:
    """ "3", "1,2,5" or "1:9", both ends included, as numbers in order.

    Raises:
        ValueError: no such numbers, very many, or more clusters than there are rows, if `most` says how many.
    """
    try:
        if ":" in text:
            first, last = map(int, text.split(":"))
            counts = range(first, last + 1)
        else:
            counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = ()
    if not counts or counts[0] < 1:
        raise ValueError(f"--n-components must be numbers from 1 such as 3, 1,2,5 or 1:9; it is {text!r}")
    if isinstance(counts, range) and counts[-1] - counts[0] >= _MOST:  # before there is a list of them
        raise ValueError(f"--n-components must be {_MOST} numbers at most; it is {text!r}")
    if most is not None and counts[-1] > most:
        raise ValueError(
            f"--n-components asks for {counts[-1]} clusters, and there are only {most} rows; ask for fewer"
        )
    return list(counts)


def words_of(text: str | None) -> list[str] | None:
    """ "a,b" as a list."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def show(title: str, frame: pandas.DataFrame, kinds: Sequence[str] = ()) -> None:
    """A table of text on the terminal, a line a row; of each row "chosen" is bold and "dim" is dim."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    typer.echo(title)
    shown = Table(box=box.SIMPLE_HEAD)
    for column in frame.columns:
        right = all(cell[:1] in "-0123456789+" for cell in frame[column])
        shown.add_column(Text(column), justify="right" if right else "left")
    for row, kind in zip(frame.itertuples(index=False), kinds or [""] * len(frame)):
        shown.add_row(*map(Text, row), style={"chosen": "bold", "dim": "dim"}.get(kind))
    console = Console()
    Console(width=None if console.is_terminal else 1000).print(shown)


def emit(document: Mapping[str, Any]) -> None:
    """The one JSON object, on standard output; what is no finite number is null."""
    typer.echo(json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    """Tables, arrays and NumPy's numbers as what JSON has."""
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return _plain(value.to_dict("records"))
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, PurePath):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
