"""Files that are whole or absent, with a digest of what they hold, and texts that are read as data and nothing else.

A document is one JSON object: `format`, `version`, `sha256`, then its fields, in UTF-8. `sha256` is that of the file's
bytes with its own 64 digits replaced by zeros, so any language can check it; who writes a document by hand leaves it
out. Numbers have the shortest digits that give back every bit; those that JSON has no number for are the words "NaN",
"Infinity" and "-Infinity". Nothing is taken on trust: the size of the file, duplicate or unknown names, types and
lengths are checked before an array is made.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "MOST",
    "array_from",
    "count_from",
    "fields_of",
    "number_from",
    "plain",
    "read_document",
    "replacing",
]
__all__ += ["text_from", "write_document"]

MOST = 2**28  # bytes of a document
_BLANK = "0" * 64
_MARK = b"\nbayesmix-sha256 "  # before the digest at the end of a file that is no text
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@contextmanager
def replacing(path: Any) -> Iterator[Path]:
    """A new file beside `path`, which takes its place when the block ends well and is removed when it does not."""
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def seal(path: Path) -> None:
    """Append to a file the digest of all that it holds."""
    digest = _digest(path, path.stat().st_size)
    with path.open("ab") as file:
        file.write(_MARK + digest + b"\n")


def seal_size() -> int:
    """Bytes that `seal` appends."""
    return len(_MARK) + 65


def is_sealed(path: Path) -> bool:
    """Whether a file ends with the digest of all that is before.

    Raises:
        ValueError: it ends with another digest.
    """
    end = path.stat().st_size - seal_size()
    with path.open("rb") as file:
        file.seek(max(0, end))
        tail = file.read(seal_size())
    if not tail.startswith(_MARK):
        return False
    if tail != _MARK + _digest(path, end) + b"\n":
        raise ValueError("it was altered since it was written: its bytes are not those of its sha256")
    return True


def _digest(path: Path, size: int) -> bytes:
    """Of the first `size` bytes, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 2**20))):
            found.update(block)
            size -= len(block)
    return found.hexdigest().encode()


def plain(value: Any) -> Any:
    """An array, a number or `None` as JSON has it."""
    if value is None or isinstance(value, str):
        return value
    values = np.asarray(value)
    nested = values.tolist()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return _named(nested)
    return nested


def _named(value: Any) -> Any:
    if isinstance(value, list):
        return [_named(each) for each in value]
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def write_document(path: Any, name: str, version: int, fields: Mapping[str, Any]) -> None:
    """Write a document, a field a line.

    Raises:
        ValueError: it would be larger than what is read back.
    """
    whole = {"format": name, "version": version, "sha256": _BLANK, **fields}
    lines = ",\n".join(
        f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in whole.items()
    )
    text = f"{{\n{lines}\n}}\n".encode()
    if len(text) > MOST:
        raise ValueError(f"{path} would have {len(text)} bytes, more than the {MOST} that are read back")
    digest = hashlib.sha256(text).hexdigest()
    with replacing(path) as part:
        part.write_bytes(text.replace(_BLANK.encode(), digest.encode(), 1))


def read_document(path: Any) -> dict[str, Any]:
    """The object in a file.

    Raises:
        ValueError: too large, not UTF-8, not JSON, nested too deep, a name twice, other bytes than the digest says.
    """
    with Path(path).open("rb") as file:
        raw = file.read(MOST + 1)
    if len(raw) > MOST:
        raise ValueError(f"it has more than {MOST} bytes")
    document = read_object(raw)
    digest = document.get("sha256")
    if digest is not None:
        mark = text_from(digest, "sha256").encode("utf-8", "replace")
        blank = raw.replace(mark, _BLANK.encode(), 1)
        if len(mark) != 64 or raw.count(mark) != 1 or hashlib.sha256(blank).hexdigest() != digest:
            raise ValueError(
                "it was altered since it was written: its bytes are not those of its sha256; if you meant to edit it, "
                "remove that line"
            )
    return document


def read_object(raw: bytes) -> dict[str, Any]:
    """A JSON object out of bytes, as data and nothing else.

    Raises:
        ValueError: not UTF-8, not JSON, no object, nested too deep, or a name twice.
    """
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("its lists are nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not an object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def fields_of(value: Any, what: str, names: Iterable[str]) -> dict[str, Any]:
    """An object with exactly these names."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {_shown(value)}, not an object")
    names = list(names)
    lacks, extra = [n for n in names if n not in value], [n for n in value if n not in names]
    if lacks or extra:
        raise ValueError(
            f"{what} lacks {', '.join(map(repr, lacks))}"
            if lacks
            else f"{what} has an unknown {extra[0]!r:.40}"
        )
    return value


def text_from(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is {_shown(value)}, not a text")
    return value


def count_from(value: Any, what: str, lowest: int = 0) -> int:
    if type(value) is not int or not lowest <= value < 2**63:
        raise ValueError(f"{what} is {_shown(value)}, not a whole number from {lowest}")
    return value


def number_from(value: Any, what: str) -> float:
    return float(array_from(value, (), np.float64, what, infinite=True))


def array_from(
    value: Any, shape: tuple[int | None, ...], dtype: Any, what: str, *, infinite: bool = False
) -> np.ndarray:
    """Nested lists of exactly this shape as an array; `None` stands for any length of a list, one at least.

    With `infinite` NaN and infinities too.
    """
    kind = np.dtype(dtype)
    allowed = {int} if kind.kind == "i" else {int, float, str} if infinite else {int, float}
    lengths = list(shape)
    leaves: list[list[Any]] = []

    def walk(nested: Any, axis: int) -> None:
        if axis == len(lengths):
            leaves.append([nested])
            return
        if not isinstance(nested, list):
            raise ValueError(f"{what} has {_shown(nested)} in place of a list")
        if lengths[axis] is None:
            lengths[axis] = len(nested)
        if len(nested) != lengths[axis] or not nested:
            wanted = lengths[axis] or "one or more"
            raise ValueError(f"{what} has a list of {len(nested)} in place of {wanted}")
        if axis == len(lengths) - 1:
            leaves.append(nested)
            return
        for each in nested:
            walk(each, axis + 1)

    walk(value, 0)
    for leaf in leaves:
        if not set(map(type, leaf)) <= allowed or any(type(v) is str and v not in _WORDS for v in leaf):
            odd = next(v for v in leaf if type(v) not in allowed or (type(v) is str and v not in _WORDS))
            raise ValueError(
                f"{what} holds {_shown(odd)}, not a {'whole ' if kind.kind == 'i' else ''}number"
            )
    try:
        flat = [[_WORDS[v] if type(v) is str else v for v in leaf] for leaf in leaves] if infinite else leaves
        with np.errstate(over="ignore"):
            array = np.array(flat, np.int64 if kind.kind == "i" else np.float64).astype(kind)
    except OverflowError:
        raise ValueError(f"{what} holds a number that is too large") from None
    if not infinite and not np.isfinite(array).all():
        raise ValueError(f"{what} holds a number that is too large")
    return array.reshape([length or 0 for length in lengths])


def _shown(value: Any) -> str:
    return (
        f"{type(value).__name__} {str(value)!r:.40}"
        if not isinstance(value, list | dict)
        else type(value).__name__
    )
