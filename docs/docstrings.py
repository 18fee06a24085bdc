"""The package's docstrings as the reference shows them: `Example:` is code, `Status:` and `References:` are text."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

__all__ = ["Sections"]

TEXT = re.compile(r"^(Status|References):\n((?:[ ]+.*\n?|\n(?=[ ]))+)", re.MULTILINE)


class Sections(griffe.Extension):
    """Renames the sections that Griffe would show as notes in a box."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = TEXT.sub(lambda m: f"**{m[1]}:** {textwrap.dedent(m[2])}", text)
