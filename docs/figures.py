"""The figures of the pages: an image that directly follows a Python block is what that block drew last.

A block needs no line that saves. `python docs/figures.py` runs all pages and writes docs/figures anew;
`python docs/figures.py gallery model` runs some. The tests run the same blocks, and ask that a figure was drawn
wherever one is shown. A page is one program: its blocks share their names, top to bottom.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "drawn", "run"]

FOLDER = Path(__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n+!\[[^\]]*\]\((figures/[^)]+)\))?", re.DOTALL | re.MULTILINE)


def drawn(path: Path) -> list[str]:
    """The images of a page that its own blocks draw."""
    return [block[2] for block in BLOCK.finditer(path.read_text(encoding="utf-8")) if block[2]]


def run(path: Path) -> Iterator[tuple[str, Any]]:
    """Run a page; after each block that has an image, its name and the last figure of the block.

    Raises:
        ValueError: a block that drew nothing and has an image.
    """
    from matplotlib import pyplot

    text = path.read_text(encoding="utf-8")
    namespace: dict = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        before = pyplot.get_fignums()
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(path), "exec"), namespace)
        if block[2]:
            new = [number for number in pyplot.get_fignums() if number not in before]
            if not new:
                raise ValueError(f"{path.name}:{line + 1} shows {block[2]}, but the block drew no figure")
            yield block[2], pyplot.figure(new[-1])


def main(names: list[str]) -> None:
    from matplotlib import pyplot

    pages = [FOLDER / f"{name}.md" for name in names] or sorted(FOLDER.glob("**/*.md"))
    for path in pages:
        if drawn(path):
            for name, figure in run(path):
                figure.savefig(FOLDER / name, dpi=110)
                print(name)
            pyplot.close("all")


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("agg")
    main(sys.argv[1:])
