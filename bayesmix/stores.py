"""Trees of draws as Zarr 3: a folder of JSON and compressed numbers. All of it is looked at before zarr reads it.

Codecs are names from a list, so that no name in a store becomes code, and what a compressed piece says of its own size
must be what its array says. A store that `write_store` wrote has the digest of all its files among its attributes,
taken with zeros in its own place.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from bayesmix.archives import OBJECTS, checked, marked, room

__all__ = ["is_store", "read_store", "write_store"]

_SEAL = "bayesmix_sha256"  # an attribute: of another file zarr would warn
_BLANK = "0" * 64
_LONGEST = 2**24  # bytes of a zarr.json
_TYPES = {"bool": 1, "float32": 4, "float64": 8} | {
    f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_TEXT = "fixed_length_utf32"
_CODECS = (["bytes"], ["bytes", "zstd"])  # texts of lengths of their own say themselves how many they are
_ZSTD = b"\x28\xb5\x2f\xfd"


def is_store(path: Any) -> bool:
    """Whether `save` keeps a tree as Zarr there."""
    return Path(path).suffix == ".zarr"


def _zarr() -> None:
    try:
        import zarr  # noqa: F401
    except ImportError:
        raise ImportError(
            "Zarr stores need zarr, which is not installed: pip install 'bayesmix[zarr]'"
        ) from None


def write_store(tree: Any, path: Any) -> None:
    """As `files.save`; a store that was there is replaced when the new one is complete."""
    tree = marked(tree)
    _zarr()
    target = Path(os.path.realpath(path))
    if target.exists() and not (target / "zarr.json").is_file():
        raise ValueError(f"{path} is there, and no Zarr store: it is left as it is")
    part, old = (target.with_name(f".{target.name}.{secrets.token_hex(4)}.{end}") for end in ("part", "old"))
    try:
        tree.attrs[_SEAL] = _BLANK
        _fixed(tree).to_zarr(part, mode="w-", consolidated=False, zarr_format=3)
        root = part / "zarr.json"
        root.write_bytes(root.read_bytes().replace(_BLANK.encode(), _digest(part, _BLANK).encode()))
        if target.exists():
            target.rename(old)
        part.rename(target)
    finally:
        # Where the new one did not come to its place the old one is not lost.
        if old.exists() and not target.exists():
            old.rename(target)
        for rest in (part, old):
            shutil.rmtree(rest, ignore_errors=True)


def read_store(path: Path) -> Any:
    """As `files.load`."""
    if not (path / "zarr.json").is_file():
        raise ValueError("it is a folder, and no Zarr store of version 3")
    _zarr()
    import xarray

    try:
        seal = _survey(path)
        if seal is not None and seal != _digest(path, str(seal)):
            raise ValueError("it was altered since it was written: its sha256 is another")
        with xarray.open_datatree(path, engine="zarr", consolidated=False) as opened:
            tree = opened.load().copy()
        tree.attrs.pop(_SEAL, None)
        return checked(tree, seal is not None)
    except MemoryError:
        raise
    except Exception as error:  # whatever xarray and zarr say of a broken store is about the store
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from None


def _fixed(tree: Any) -> Any:
    """The tree with texts of one length each."""

    def fixed(data: Any) -> Any:
        texts = {
            name: array.astype(str) for name, array in data.variables.items() if array.dtype.kind in "OT"
        }
        return data.assign_coords({n: texts[n] for n in texts if n in data.coords}).assign(
            {n: texts[n] for n in texts if n in data.data_vars}
        )

    return tree.map_over_datasets(fixed)


def _files(path: Path) -> list[Path]:
    """All files below, in one order everywhere; links and what is no file are refused."""
    found = []
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            place = Path(folder, name)
            if place.is_symlink() or not (place.is_dir() or place.is_file()):
                raise ValueError(f"{name!r:.40} is a link, or no file")
        found += [Path(folder, name) for name in files]
        if len(found) > OBJECTS:
            raise ValueError(f"it has more than {OBJECTS} files")
    return sorted(found, key=lambda place: place.relative_to(path).as_posix())


def _digest(path: Path, seal: str) -> str:
    """Of the paths and digests of all files, with zeros where the root has its seal."""
    total = hashlib.sha256()
    for place in _files(path):
        name = place.relative_to(path).as_posix()
        if name == "zarr.json":
            digest = hashlib.sha256(place.read_bytes().replace(seal.encode(), _BLANK.encode())).hexdigest()
        else:
            with place.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{name} {digest}\n".encode())
    return total.hexdigest()


def _survey(path: Path) -> Any:
    """Refuse codecs and types beyond those that are written here, and arrays larger than the files can say.

    Returns:
        The digest that the root says is that of the store, if it says one.
    """
    files, seal = _files(path), None
    budget = room(sum(place.stat().st_size for place in files))
    for place in files:
        if place.name != "zarr.json":
            continue
        if place.stat().st_size > _LONGEST:
            raise ValueError(f"its {place.relative_to(path)} is too long")
        node = json.loads(place.read_text(encoding="utf-8"))
        if not isinstance(node, dict) or node.get("zarr_format") != 3:
            raise ValueError(f"its {place.relative_to(path)} is not of version 3")
        if node.get("node_type") == "array":
            budget -= _array(node, place.parent, budget)
        elif node.get("node_type") != "group":
            raise ValueError(f"its {place.relative_to(path)} is neither an array nor a group")
        if place.parent == path:
            seal = node.get("attributes", {}).get(_SEAL)
    return seal


def _array(node: dict[str, Any], folder: Path, budget: int) -> int:
    """What an array takes in memory."""
    name, grid = folder.name, node["chunk_grid"]
    kind = node["data_type"]
    codecs = [codec["name"] for codec in node["codecs"]]
    if codecs not in _CODECS or node.get("storage_transformers") or grid["name"] != "regular":
        raise ValueError(
            f"the array {name!r:.40} is kept in a way that is not read here: codecs {codecs!r:.80}"
        )
    shape, piece = node["shape"], grid["configuration"]["chunk_shape"]
    if not all(type(size) is int and 0 <= size < 2**48 for size in (*shape, *piece)):
        raise ValueError(f"the array {name!r:.40} has no shape")
    if isinstance(kind, dict) and kind["name"] == _TEXT:
        width = int(kind["configuration"]["length_bytes"])
    elif isinstance(kind, str) and kind in _TYPES:
        width = _TYPES[kind]
    else:
        raise ValueError(f"the array {name!r:.40} is of type {kind!r:.80}, which is not read here")
    whole, each = (math.prod(sizes) * width for sizes in (shape, piece))
    if width < 0 or max(whole, each) > budget:
        raise ValueError(f"the array {name!r:.40} declares more bytes than the store can hold")
    for chunk in (place for place in _files(folder) if place.name != "zarr.json"):
        if each != (_unpacked(chunk) if codecs[-1] == "zstd" else chunk.stat().st_size):
            raise ValueError(f"a piece of the array {name!r:.40} is of another size than its array says")
    return whole


def _unpacked(chunk: Path) -> int:
    """The size that a zstd frame says it has when it is unpacked."""
    with chunk.open("rb") as file:
        head = file.read(18)
    if len(head) < 6 or not head.startswith(_ZSTD):
        raise ValueError(f"{chunk.name!r:.40} is no zstd frame")
    flag = head[4]
    single, code = flag & 0x20, flag >> 6
    length = (1 if single else 0, 2, 4, 8)[code]
    begin = 5 + (not single) + (0, 1, 2, 4)[flag & 3]
    if not length or len(head) < begin + length:
        raise ValueError(f"{chunk.name!r:.40} does not say how large it is")
    return int.from_bytes(head[begin : begin + length], "little") + (256 if code == 1 else 0)
