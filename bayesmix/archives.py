"""Trees of draws as netCDF: HDF5, which a C library reads, so what is in a file is looked at before an array is.

A file that `write_tree` wrote ends with the digest of all before it, which is checked before that library sees it.
Links, external storage and sizes that the file's bytes cannot hold are refused in any file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bayesmix.documents import is_sealed, replacing, seal
from bayesmix.trees import mixtures

__all__ = ["HDF5", "OBJECTS", "checked", "marked", "read_tree", "room", "write_tree"]

HDF5 = b"\x89HDF\r\n\x1a\n"  # how such a file begins
_SEALED, _VERSION = "bayesmix_sealed", 1
_TIMES, _FREE = 64, 2**24  # a file may declare so many times its own size, and so many bytes besides
OBJECTS = 10_000  # files, groups and arrays at most


def _netcdf() -> Any:
    try:
        import h5netcdf  # noqa: F401
        import h5py
    except ImportError as error:
        raise ImportError(
            f"posteriors are kept as netCDF, for which {error.name} is not installed: "
            "pip install 'bayesmix[netcdf]'"
        ) from None
    return h5py


def _require(tree: Any) -> None:
    """That a tree is one of ours: a group of mixtures whose parameters fit each other."""
    groups = [name for name in ("posterior", "prior") if name in tree.children]
    if not groups:
        raise ValueError("it has neither a group 'posterior' nor 'prior' of mixtures")
    for name in groups:
        drawn = mixtures(tree, group=name)
        *lead, k, d = drawn.means.shape
        values = np.asarray(drawn.covariances)
        if len(lead) != 2 or drawn.weights.shape != (*lead, k) or values.shape != (*lead, k, d, d):
            raise ValueError(f"the parameters in its group {name!r} do not fit each other")
        for array in (drawn.weights, drawn.means, values):
            if np.asarray(array).dtype.kind != "f" or not np.isfinite(array).all():
                raise ValueError(f"the group {name!r} has parameters that are no finite numbers")


def marked(tree: Any) -> Any:
    """A tree of ours, as it is written: it says itself that a digest goes with it."""
    import xarray

    if not isinstance(tree, xarray.DataTree):
        raise ValueError(
            f"a GaussianMixture, a Fit or a DataTree of draws can be saved, not a {type(tree).__name__}"
        )
    _require(tree)
    copy = tree.copy()
    copy.attrs = {**tree.attrs, _SEALED: _VERSION}
    return copy


def checked(tree: Any, sealed: bool) -> Any:
    """A tree as it was before `marked`, where the digest is there that it says goes with it, and it is one of ours."""
    version = tree.attrs.pop(_SEALED, None)
    if version not in (None, _VERSION):
        raise ValueError(f"it is version {version!r:.40}, and this bayesmix knows version {_VERSION}")
    if (version is not None) != sealed:
        raise ValueError("it is cut, or was altered since it was written: its sha256 is missing")
    _require(tree)
    return tree


def room(size: int) -> int:
    """Bytes that what is read may take in memory where files have so many."""
    return _TIMES * size + _FREE


def write_tree(tree: Any, path: Any) -> None:
    """As `files.save`."""
    tree = marked(tree)
    _netcdf()
    with replacing(path) as part:
        tree.to_netcdf(part, engine="h5netcdf")
        seal(part)


def read_tree(path: Path) -> Any:
    """As `files.load`."""
    h5py = _netcdf()
    import xarray

    sealed = is_sealed(path)
    try:
        with h5py.File(path, "r") as file:
            _survey(h5py, file, path.stat().st_size)
        with xarray.open_datatree(path, engine="h5netcdf") as opened:
            return checked(opened.load().copy(), sealed)
    except MemoryError:
        raise
    except Exception as error:  # whatever xarray and HDF5 say of a broken file is about the file
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from None


def _survey(h5py: Any, file: Any, size: int) -> None:
    """Refuse what leads out of the file, and arrays that are larger than its bytes can say."""
    budget, seen, waiting = room(size), set(), [file]
    while waiting:
        group = waiting.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{name!r:.40} is a link to elsewhere")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen or len(seen) > OBJECTS:
                raise ValueError(f"{name!r:.40} occurs twice, or it has more than {OBJECTS} parts")
            seen.add(address)
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
                raise ValueError(f"{name!r:.40} is no array that is kept in this file")
            elif not str(item.attrs.get("NAME", "")).startswith("b'This is a netCDF dimension but"):
                budget -= _bytes(h5py, item)
            if budget < 0:
                raise ValueError(
                    f"{name!r:.40} declares more than {_TIMES} times the bytes that the file has"
                )


def _bytes(h5py: Any, item: Any) -> int:
    """What an array takes in memory; texts are looked at one by one, since many may be one and the same in the file."""
    count = 0 if item.shape is None else item.size
    if item.dtype.kind != "O":
        return count * item.dtype.itemsize
    if h5py.check_string_dtype(item.dtype) is None or count > OBJECTS:
        raise ValueError(f"it holds objects that are no texts, or more than {OBJECTS} texts")
    return sum(len(item[index]) for index in np.ndindex(*(item.shape or ())))
