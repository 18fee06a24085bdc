"""How far a long run has come, in a file from which the same call goes on as if it had never stopped.

A line that says what the file is, a line of JSON (what the run was made from, and the type and shape of each array),
the arrays' bytes one after another, little-endian, and the digest of it all. Reading makes arrays of numbers and
nothing else, and only after the sizes that are declared have been compared with the file's.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bayesmix.documents import is_sealed, read_object, replacing, seal, seal_size

__all__ = ["Checkpoint", "fingerprint", "restored", "stored"]

_FIRST = b"bayesmix.checkpoint 1\n"
_MOST = 2**24  # bytes of the line of JSON
_SHARE = 20  # writing takes at most one part in so many of the time


def fingerprint(*values: Any) -> str:
    """A short mark of arrays, by which two that differ are told apart."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(values):
        array = np.asarray(leaf)
        found.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return f"#{found.hexdigest()[:32]}"


@dataclass
class Checkpoint:
    """The file of one run.

    Attributes:
        path: where.
        kind: which function runs.
        made_from: by name, what the result depends on: plain values, or fingerprints.
    """

    path: Path
    kind: str
    made_from: Mapping[str, Any]
    _written: float = field(default=-math.inf)  # when, and how long it took
    _took: float = field(default=0.0)

    @classmethod
    def at(cls, path: Any, kind: str, made_from: Callable[[], Mapping[str, Any]]) -> Checkpoint | None:
        """The checkpoint that a user asked for, if one; only then what it is made from is called.

        Raises:
            ValueError: a path that no file can be written to.
        """
        if path is None:
            return None
        try:
            place = Path(path)
        except TypeError:
            raise ValueError(f"checkpoint must be the path of a file; it is {path!r}") from None
        if not place.absolute().parent.is_dir() or (place.exists() and not place.is_file()):
            raise ValueError(f"checkpoint must be a file in a folder that exists; it is {str(place)!r}")
        from bayesmix import __version__

        versions = {"bayesmix": __version__, "jax": jax.__version__}
        return cls(place, kind, {**made_from(), **versions})

    def write(self, arrays: Callable[[], Mapping[str, np.ndarray]], *, now: bool = False) -> None:
        """Replace the file, unless that was done so recently that it would take too much of the time."""
        begin = time.monotonic()
        if not now and begin - self._written < _SHARE * self._took:
            return
        kept = {
            name: np.asarray(a, np.asarray(a).dtype.newbyteorder("<"), order="C")
            for name, a in arrays().items()
        }
        told = [[name, a.dtype.str, list(a.shape)] for name, a in kept.items()]
        header = {"kind": self.kind, "made_from": dict(self.made_from), "arrays": told}
        with replacing(self.path) as part:
            with part.open("wb") as file:
                file.write(_FIRST + json.dumps(header).encode() + b"\n")
                for array in kept.values():
                    file.write(array.tobytes())
            seal(part)
        self._written = time.monotonic()
        self._took = self._written - begin

    def read(self) -> dict[str, np.ndarray] | None:
        """What was written, or `None` where there is no file yet.

        Raises:
            ValueError: a file that is cut, altered or foreign, or of a run that was made from something else.
        """
        if not self.path.exists():
            return None
        try:
            header, arrays = self._read()
        except ValueError as error:
            raise ValueError(f"{self.path} is no checkpoint that can be used: {error}") from None
        if header["kind"] != self.kind:
            raise ValueError(f"{self.path} is a checkpoint of {header['kind']}, not of {self.kind}")
        was, now = header["made_from"], json.loads(json.dumps(dict(self.made_from)))
        differs = [
            _difference(name, was.get(name), now.get(name))
            for name in {**was, **now}
            if was.get(name) != now.get(name)
        ]
        if differs:
            raise ValueError(
                f"{self.path} is the checkpoint of another {self.kind}: {'; '.join(differs)}. Repeat the call as it "
                "was, or take another file"
            )
        return arrays

    def _read(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        with self.path.open("rb") as file:
            if file.readline(len(_FIRST)) != _FIRST:
                raise ValueError("it is something else, or of another version")
            if not is_sealed(self.path):
                raise ValueError("it is cut")
            header = read_object(file.readline(_MOST))
            left = self.path.stat().st_size - file.tell() - seal_size()
            plans = []
            try:
                for name, code, shape in header["arrays"]:
                    dtype = np.dtype(code)
                    if dtype.kind not in "biuf" or not all(
                        type(length) is int and length >= 0 for length in shape
                    ):
                        raise TypeError
                    plans.append((str(name), dtype, tuple(shape), math.prod(shape) * dtype.itemsize))
                if not (isinstance(header["kind"], str) and isinstance(header["made_from"], dict)):
                    raise TypeError
            except (KeyError, TypeError, ValueError):
                raise ValueError("its header is broken") from None
            if sum(size for *_, size in plans) != left:
                raise ValueError(
                    f"it declares {sum(size for *_, size in plans)} bytes of arrays and has {left}"
                )
            arrays = {
                name: np.frombuffer(file.read(size), dtype).astype(dtype.newbyteorder("=")).reshape(shape)
                for name, dtype, shape, size in plans
            }
        return header, arrays


def _difference(name: str, was: Any, now: Any) -> str:
    if str(was).startswith("#") or str(now).startswith("#"):
        return f"{name} differs"
    return f"{name} was {was!r} and is {now!r}"


def stored(name: str, tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree of arrays, numbered."""
    return {f"{name}.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def restored(name: str, like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """A pytree like another one, but for the length of its first axis, out of the arrays of `stored`.

    Raises:
        ValueError: the arrays are not those of such a tree.
    """
    leaves, shape = jax.tree.flatten(like)
    found = [arrays.get(f"{name}.{i}") for i in range(len(leaves))]
    for one, leaf in zip(found, leaves):
        if one is None or one.dtype != leaf.dtype or one.shape[1:] != leaf.shape[1:] or one.ndim != leaf.ndim:
            raise ValueError(f"the checkpoint holds other arrays than the run's {name}")
    return jax.tree.unflatten(shape, found)
