"""The command `bayesmix`: from a file to a mixture, its posterior and its figures, in one line each.

    bayesmix fit DATA --n-components 1:9 --covariance full --out results

Everything is computed and drawn before the first file is written, so that a command that fails leaves nothing behind.
Exit codes, of all commands: 0, done; 1, no result that is clean, in the words of the messages; 2, the data or an
option cannot be used; 130, interrupted; 141, whoever read standard output went away.
"""

from __future__ import annotations

from typing import Annotated

import typer

from bayesmix import __version__
from bayesmix.cli.compare import compare_command
from bayesmix.cli.fit import fit_command
from bayesmix.cli.plot import plot_command
from bayesmix.cli.sample import sample_command
from bayesmix.cli.search import search_command
from bayesmix.cli.shared import Group
from bayesmix.cli.simulate import simulate_command

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    cls=Group,
)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"bayesmix {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Gaussian mixtures from the command line.

    Example: bayesmix fit old_faithful --n-components 1:5 --out results

    Exit codes: 0, done; 1, no clean result; 2, the data or an option cannot be used; 130, interrupted; 141, whoever
    read standard output went away.
    """


_COMMANDS = {
    "fit": fit_command,
    "search": search_command,
    "sample": sample_command,
    "simulate": simulate_command,
    "compare": compare_command,
    "plot": plot_command,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """The entry point."""
    app()
