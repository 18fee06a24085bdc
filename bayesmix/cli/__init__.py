"""The command `bayesmix`: from a file to a mixture, its posterior and its figures, in one line each.

    bayesmix fit DATA --n-components 1:9 --covariance full --out results

Everything is computed and drawn before the first file is written, so that a command that fails leaves nothing behind.
Exit codes, of all commands: 0, done; 1, no result that is clean, in the words of the messages; 2, the data or an
option cannot be used; 130, interrupted.
"""

from __future__ import annotations

import typer

from bayesmix.cli.fit import fit_command
from bayesmix.cli.search import search_command
from bayesmix.cli.shared import Group

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, cls=Group)


@app.callback()
def _about() -> None:
    """Gaussian mixtures from the command line.

    Example: bayesmix fit old_faithful --n-components 1:5 --out results

    Exit codes: 0, done; 1, no clean result; 2, the data or an option cannot be used; 130, interrupted.
    """


for _name, _command in {"fit": fit_command, "search": search_command}.items():
    app.command(_name)(_command)


def main() -> None:
    """The entry point."""
    app()
