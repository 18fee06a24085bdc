"""A report: one HTML file with its figures, tables and styles inside, that loads nothing and runs nothing.

The functions below make pieces of HTML out of plain text, tables and pictures, and `page` joins them. All text is
escaped here and nowhere else, so a column may be called `<script>`. Numbers come as text: who makes a table knows how
many digits it deserves.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, NewType

if TYPE_CHECKING:
    import pandas

__all__ = [
    "Html",
    "beside",
    "code",
    "details",
    "facts",
    "figure",
    "group",
    "page",
    "paragraph",
    "section",
    "table",
]

Html = NewType("Html", str)

_TYPES = {"svg": "image/svg+xml", "png": "image/png"}
_LONG = 60  # letters, above which a cell may break into lines


def page(title: str, header: Iterable[Html], sections: Iterable[Html], *, made: datetime) -> str:
    """The whole document.

    Args:
        title: of the page.
        header: what stands above the first section.
        sections: from `section`.
        made: when, with its time zone.

    Example:
        >>> from datetime import UTC, datetime
        >>> text = page("a < b", [paragraph("One & all.")], [], made=datetime(2026, 1, 2, tzinfo=UTC))
        >>> "<h1>a &lt; b</h1>" in text, "<p>One &amp; all.</p>" in text
        (True, True)
    """
    template = Template((files("bayesmix.report") / "page.html").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    time = made.isoformat(timespec="seconds")
    day = made.strftime("%Y-%m-%d %H:%M %Z").strip()
    return template.substitute(
        title=escape(title),
        header="\n".join(header),
        sections="\n".join(sections),
        generator=escape(versions.split(",")[0]),
        made=f'Made on <time datetime="{time}">{escape(day)}</time> by {escape(versions)}.',
    )


def _versions() -> dict[str, str]:
    """Of what the numbers come from."""
    import platform
    from importlib.metadata import version

    from bayesmix import __version__

    libraries = {name: version(name) for name in ("jax", "numpy", "matplotlib")}
    return {"bayesmix": __version__, "Python": platform.python_version()} | libraries


def section(heading: str, *pieces: Html) -> Html:
    """A heading, and what is under it."""
    return Html("\n".join([f"<section>\n<h2>{escape(heading)}</h2>", *pieces, "</section>"]))


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph; of kind "lead" or "warn" it stands out."""
    return Html(f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>")


def code(text: str) -> Html:
    """What was typed; a line breaks between words only."""
    words = " ".join(f"<span>{escape(word)}</span>" for word in text.split(" "))
    return Html(f"<pre><code>{words}</code></pre>")


def details(summary: str, *pieces: Html) -> Html:
    """What opens when it is asked for."""
    return Html("\n".join([f"<details><summary>{escape(summary)}</summary>", *pieces, "</details>"]))


def facts(values: Mapping[str, Any]) -> Html:
    """A few numbers, each with its name."""
    rows = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in values.items()
    )
    return Html(f'<dl class="facts">{"".join(rows)}</dl>')


def table(frame: pandas.DataFrame, caption: str, *, kinds: Sequence[str] = ()) -> Html:
    """A table in a box of its own, which scrolls where it is wider than the page.

    Args:
        frame: of text; a named index is the first column. Cells that are numbers stand at the right.
        caption: what it is.
        kinds: of each row, "chosen", "dim" or "".
    """
    shown = frame.reset_index(allow_duplicates=True) if frame.index.name is not None else frame
    cells = [[str(cell) for cell in row] for row in shown.itertuples(index=False)]
    right = [all(_is_number(row[j]) for row in cells) and bool(cells) for j in range(shown.shape[1])]
    head = "".join(
        f'<th scope="col"{_class("n" * r)}>{escape(str(c))}</th>' for c, r in zip(shown.columns, right)
    )
    lines = []
    for row, kind in zip(cells, kinds or [""] * len(cells)):
        inside = "".join(
            f"<td{_class('n' if r else 'long' if len(c) > _LONG else '')}>{escape(c)}</td>"
            for c, r in zip(row, right)
        )
        lines.append(f"<tr{_class(kind)}>{inside}</tr>")
    return Html(
        f'<figure class="table"><figcaption>{escape(caption)}</figcaption>'
        f'<div class="box" tabindex="0" role="region" aria-label="{escape(caption)}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div></figure>"
    )


def figure(picture: bytes, caption: str, *, kind: str = "svg", wide: bool = False) -> Html:
    """A picture, inside the page; `wide` takes the whole width."""
    data = base64.b64encode(picture).decode()
    return Html(
        f'<figure class="picture{" wide" * wide}"><img src="data:{_TYPES[kind]};base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def beside(*pieces: Html) -> Html:
    """Pieces side by side, where the page is wide enough."""
    return Html('<div class="beside">\n' + "\n".join(pieces) + "\n</div>")


def group(*pieces: Html) -> Html:
    """Pieces one below the other, as one."""
    return Html("<div>\n" + "\n".join(pieces) + "\n</div>")


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _is_number(text: str) -> bool:
    try:
        float(text.replace("−", "-").removesuffix("%"))
    except ValueError:
        return text in ("", "–")
    return True
