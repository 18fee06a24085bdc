"""Results in files: mixtures and fits as JSON documents, posteriors as netCDF or Zarr; see docs/files.md.

Reading executes nothing that a file says: `documents` reads JSON, `archives` netCDF, `stores` Zarr, and none makes
anything but numbers and texts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.archives import HDF5, read_tree, write_tree
from bayesmix.covariance import Covariance, structure_of
from bayesmix.documents import (
    array_from,
    count_from,
    fields_of,
    number_from,
    plain,
    read_document,
    text_from,
    write_document,
)
from bayesmix.inputs import as_name
from bayesmix.mixture import GaussianMixture
from bayesmix.prior import ConjugatePrior
from bayesmix.results import Fit
from bayesmix.status import NAME
from bayesmix.stores import is_store, read_store, write_store

if TYPE_CHECKING:
    import xarray

__all__ = ["load", "load_mixture", "save"]

_VERSION = 1
_FOREIGN = {
    b"\x80": "a Python pickle, which is never opened",
    b"PK": "a zip archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "compressed by gzip",
    b"CDF": "netCDF 3; posteriors are netCDF 4",
    b"bayesmix.checkpoint": "a checkpoint; pass it as checkpoint= to what wrote it",
}


def save(result: GaussianMixture | Fit | xarray.DataTree, path: Any) -> None:
    """Write a mixture or a fit as JSON, or a tree of draws as netCDF or Zarr, every number with all its digits.

    A tree is what `sample_posterior`, `bootstrap`, `stochastic_chain` or `MixtureModel.prior_predictive` returned. The
    file appears when it is complete; one that was there is replaced then.

    Args:
        result: what to keep.
        path: where; a tree is a Zarr store where that ends with ".zarr".

    Raises:
        ValueError: something else, a batch of mixtures, a mixture with numbers that are not finite, or a folder that is
            there and no Zarr store.
        ImportError: a tree, where the extra `netcdf` or `zarr` is not installed.

    Example:
        >>> import tempfile, bayesmix as bm
        >>> path = tempfile.mkdtemp() + "/mixture.json"
        >>> mixture = bm.GaussianMixture.of([0.7, 0.3], [[-5.0], [5.0]], [[[1.0]], [[1.0]]])
        >>> bm.save(mixture, path)
        >>> bm.load(path).means.tolist()
        [[-5.0], [5.0]]
    """
    if isinstance(result, GaussianMixture):
        write_document(path, "bayesmix.GaussianMixture", _VERSION, _mixture_fields(result))
    elif isinstance(result, Fit):
        told = {name: write(getattr(result, name)) for name, (write, _) in _FIT.items()}
        write_document(path, "bayesmix.Fit", _VERSION, told)
    else:
        (write_store if is_store(path) else write_tree)(result, path)


def load(path: Any) -> GaussianMixture | Fit | xarray.DataTree:
    """Read what `save` wrote, to the last bit: a `GaussianMixture`, a `Fit` or a tree, by what the file is.

    What xarray's own `to_netcdf` or `to_zarr` made of such a tree is read too. Nothing in a file is executed.

    Raises:
        ValueError: a file that is cut, altered, foreign or of a version that is not known.
        OSError: no such file, or one that may not be read.
        ImportError: a posterior, where the extra `netcdf` or `zarr` is not installed.

    Example:
        >>> import tempfile, bayesmix as bm
        >>> path = tempfile.mkdtemp() + "/fit.json"
        >>> fit = bm.fit(bm.MixtureModel(3, "E"), bm.datasets.load("galaxies"))
        >>> fit.save(path)
        >>> bool(bm.load(path).bic == fit.bic)
        True
    """
    try:
        return _load(path)
    except UnicodeDecodeError:
        why = "it is not UTF-8"
    except ValueError as error:
        why = str(error)
    raise ValueError(
        f"{path} is not a mixture, fit or posterior that this version of bayesmix reads: {why}"
    ) from None


def load_mixture(path: Any) -> GaussianMixture:
    """Read a mixture, as `GaussianMixture.load` says."""
    found = load(path)
    if not isinstance(found, GaussianMixture):
        raise ValueError(f"{path} is not a mixture but a {type(found).__name__}; read it with bayesmix.load")
    return found


def _load(path: Any) -> Any:
    place = Path(path)
    if place.is_dir():
        return read_store(place)
    if place.exists() and not place.is_file():
        raise ValueError("it is no regular file")
    with place.open("rb") as file:
        head = file.read(32)
    if head.startswith(HDF5):
        return read_tree(place)
    for mark, what in _FOREIGN.items():
        if head.startswith(mark):
            raise ValueError(f"it is {what}")
    document = read_document(place)
    name, version = document.pop("format", None), document.pop("version", None)
    sealed = document.pop("sha256", None) is not None
    if not isinstance(name, str) or name not in _READ:
        raise ValueError(f"its format is {name!r:.40}, not one of {', '.join(_READ)}")
    if type(version) is not int or version != _VERSION:
        raise ValueError(
            f"it is version {version!r:.40} of {name}, and this bayesmix knows version {_VERSION}"
        )
    return _READ[name](document, sealed)


def _mixture_fields(mixture: GaussianMixture) -> dict[str, Any]:
    arrays = [np.asarray(a) for a in (mixture.weights, mixture.means, mixture.covariance.values)]
    if mixture.means.ndim != 2:
        raise ValueError(
            f"this is a batch of mixtures (means {mixture.means.shape}); save the tree that it came from"
        )
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("this mixture has parameters that are not finite, so there is nothing to keep")
    weights, means, values = (plain(a) for a in arrays)
    return {
        "dtype": str(np.result_type(*arrays)),
        "covariance": mixture.structure,
        "feature_names": list(mixture.feature_names) if mixture.feature_names else None,
        "weights": weights,
        "means": means,
        "covariances": values,
    }


def _mixture(value: Any, sealed: bool, what: str = "the mixture") -> GaussianMixture:
    """A mixture; one that was written by hand passes through `GaussianMixture.of` and all that it checks.

    What bayesmix wrote need not: a fit that collapsed, and says so, has covariances that `of` refuses.
    """
    names = ("dtype", "covariance", "feature_names", "weights", "means", "covariances")
    body = fields_of(value, what, names)
    dtype = np.dtype(as_name(body["dtype"], "dtype", ("float64", "float32")))
    means = array_from(body["means"], (None, None), dtype, "means")
    k, d = means.shape
    row = structure_of(body["covariance"], d)
    weights = array_from(body["weights"], (k,), dtype, "weights")
    stored = (1 if row.shared else k,) + (d,) * row.form.axes
    values = array_from(body["covariances"], stored, dtype, "covariances")
    features = body["feature_names"]
    if features is not None:
        if not isinstance(features, list) or len(features) != d:
            raise ValueError(f"feature_names must be null or a list of {d}")
        features = tuple(text_from(feature, "feature_names") for feature in features)
    if not sealed:
        return GaussianMixture.of(weights, means, values, covariance=row.name, feature_names=features)
    if (weights < 0).any() or abs(float(weights.sum(dtype=np.float64)) - 1) > 1e-5:
        raise ValueError(f"weights are no probabilities: {weights.tolist()}")
    if row.form.axes == 2 and np.abs(values - np.swapaxes(values, 1, 2)).max() > 1e-6 * np.abs(values).max():
        raise ValueError("covariances are not symmetric")
    variances = np.diagonal(values, axis1=1, axis2=2) if row.form.axes == 2 else values
    if (variances < 0).any():
        raise ValueError("covariances have a negative variance")
    return GaussianMixture(weights, means, Covariance(values, row.name), features)


_PRIOR = ("concentration", "mean", "mean_count", "degrees_of_freedom", "scale")


def _prior(value: Any) -> ConjugatePrior | None:
    if value is None:
        return None
    body = fields_of(value, "prior", _PRIOR)
    shapes = {"concentration": 1, "mean": 1, "scale": 2}
    numbers: dict[str, Any] = {}
    for name in _PRIOR:
        given, axes = body[name], 0
        while isinstance(given, list) and given and axes < shapes.get(name, 0):
            given, axes = given[0], axes + 1
        array = array_from(body[name], (None,) * axes, np.float64, f"prior.{name}")
        numbers[name] = array if axes else float(array)
    return ConjugatePrior.of(**numbers)


def _told_prior(prior: ConjugatePrior | None) -> Any:
    return None if prior is None else {name: plain(getattr(prior, name)) for name in _PRIOR}


def _optional(value: Any) -> Any:
    return None if value is None else plain(float(value))


# Each field of a fit: how it is told, and how it is read.
_FIT: dict[str, tuple[Callable[[Any], Any], Callable[[Any, str], Any]]] = {
    "mixture": (_mixture_fields, lambda v, what: v),
    "objective": (plain, lambda v, what: _trace(v, what)),
    **dict.fromkeys(
        ("log_likelihood", "classification_log_likelihood", "entropy", "n_observations"),
        (lambda v: plain(float(v)), number_from),
    ),
    "labels": (plain, lambda v, what: array_from(v, (None,), np.int64, what)),
    "known_labels": (
        plain,
        lambda v, what: None if v is None else array_from(v, (None,), np.int64, what),
    ),
    "method": (str, text_from),
    **dict.fromkeys(
        ("n_steps", "n_starts", "n_agree", "n_spurious", "n_redraws", "n_missing"), (int, count_from)
    ),
    "code": (int, lambda v, what: count_from(v, what, min(NAME))),
    "status": (str, text_from),
    "hold": (
        list,
        lambda v, what: tuple(as_name(each, what, ("weights", "covariance")) for each in _list(v, what)),
    ),
    "prior": (_told_prior, lambda v, what: _prior(v)),
    "best_visited": (lambda v: None if v is None else _mixture_fields(v), lambda v, what: v),
    "traces": (
        lambda v: [plain(trace) for trace in v],
        lambda v, what: tuple(_trace(trace, what) for trace in _list(v, what)),
    ),
    "inertia": (_optional, lambda v, what: None if v is None else number_from(v, what)),
}


def _trace(value: Any, what: str) -> np.ndarray:
    return array_from(value, (None,), np.float64, what, infinite=True) if value != [] else np.zeros(0)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is no list")
    return value


def _fit(document: dict[str, Any], sealed: bool) -> Fit:
    older = {"known_labels": None, "n_missing": 0}  # of files from before there were any
    body = fields_of({**older, **document}, "the fit", _FIT)
    found = {name: read(body[name], name) for name, (_, read) in _FIT.items()}
    mixture = found["mixture"] = _mixture(body["mixture"], True)
    if body["best_visited"] is not None:
        found["best_visited"] = _mixture(body["best_visited"], True, "best_visited")
    if found["code"] not in NAME:
        raise ValueError(f"code is {found['code']}, which is no status")
    if found["labels"].min() < 0 or found["labels"].max() >= mixture.n_components:
        raise ValueError(f"labels are not clusters from 0 to {mixture.n_components - 1}")
    if found["prior"] is not None:
        found["prior"].require(mixture.n_components, mixture.covariance.row)
    return Fit(**found)


_READ: dict[str, Callable[[dict[str, Any], bool], Any]] = {
    "bayesmix.GaussianMixture": _mixture,
    "bayesmix.Fit": _fit,
}
