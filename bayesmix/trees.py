"""Many mixtures as an ArviZ DataTree, and back: the layout that posterior, bootstrap and chains share.

`posterior` holds weights (chain, draw, cluster), means (…, feature) and dense covariances (…, feature, feature_bis);
every dimension has a coordinate. What describes the draws goes to `sample_stats`, what describes the whole to the
attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix.covariance import Covariance, structure_of
from bayesmix.mixture import GaussianMixture

if TYPE_CHECKING:
    import xarray

__all__ = ["DIMS", "flat_draws", "mixture_tree", "mixtures", "observed_of", "prior_tree"]

DIMS: dict[Any, Any] = {
    "weights": ["cluster"],
    "means": ["cluster", "feature"],
    "covariances": ["cluster", "feature", "feature_bis"],
}


def mixture_tree(
    mixture: GaussianMixture,
    stats: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    sites: Mapping[str, np.ndarray] | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
) -> xarray.DataTree:
    """A tree out of a batch of mixtures (chain, draw, ...), numbers (chain, draw) of each, and other parameters.

    `dims` names the dimensions of other parameters, where they are known.
    """
    import xarray
    from arviz_base import dict_to_dataset

    k, d = mixture.n_components, mixture.n_features
    names = list(mixture.feature_names or (f"x{j}" for j in range(d)))
    parameters = {"weights": mixture.weights, "means": mixture.means, "covariances": mixture.covariances}
    parameters = {**(sites or {}), **parameters}
    known = {"creation_library": "bayesmix", "covariance": mixture.structure, **attributes}
    posterior = dict_to_dataset(
        parameters,
        dims={**dict(dims or {}), **DIMS},
        coords={"cluster": np.arange(k), "feature": names, "feature_bis": names},
        attrs=known,
    )
    return xarray.DataTree.from_dict(
        {"posterior": posterior, "sample_stats": dict_to_dataset(dict(stats), attrs=known)}
    )


def flat_draws(batch: Any) -> Any:
    """Leaves (chain, draw, ...) of any pytree as (chain * draw, ...)."""
    return jax.tree.map(
        lambda a: np.asarray(a).reshape(np.shape(a)[0] * np.shape(a)[1], *np.shape(a)[2:]), batch
    )


def prior_tree(
    mixture: GaussianMixture,
    sites: Mapping[str, Any],
    drawn: Mapping[str, Any],
    names: tuple[str, ...],
    dims: Mapping[str, Sequence[str | None]],
) -> xarray.DataTree:
    """Mixtures (draw, ...), other parameters, and x and z drawn from them, as the groups of a prior."""
    import numpyro
    import xarray
    from arviz_base import dict_to_dataset

    k, rows = mixture.n_components, drawn["x"].shape[1]
    known: dict[Any, Any] = {**dims, **DIMS, "x": ["obs_id", "feature"], "z": ["obs_id"]}
    coords = {
        "cluster": np.arange(k),
        "feature": list(names),
        "feature_bis": list(names),
        "obs_id": np.arange(rows),
    }
    parameters = {"weights": mixture.weights, "means": mixture.means, "covariances": mixture.covariances}
    z = drawn["z"].astype(np.min_scalar_type(-k))

    def dataset(arrays: dict[str, Any]) -> xarray.Dataset:
        attributes = {"creation_library": "bayesmix", "covariance": mixture.structure}
        chains = {name: values[None] for name, values in arrays.items()}
        return dict_to_dataset(chains, dims=known, coords=coords, attrs=attributes, inference_library=numpyro)

    groups = {"prior": {**sites, **parameters}, "prior_predictive": {"x": drawn["x"], "z": z}}
    return xarray.DataTree.from_dict({name: dataset(arrays) for name, arrays in groups.items()})


def mixtures(tree: xarray.DataTree, *, group: str = "posterior") -> GaussianMixture:
    """The draws of a tree as one `GaussianMixture` with leaves (chain, draw, ...).

    Map a method over it with `jax.vmap`, or take one out with `jax.tree.map(lambda a: a[0, 5], mixtures)`.

    Args:
        tree: what `bootstrap`, `stochastic_chain` or a sampler returned, or `MixtureModel.prior_predictive`.
        group: "posterior" or "prior".

    Raises:
        ValueError: the tree has no such group with weights, means and covariances.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("galaxies")
        >>> fit = bm.fit(bm.MixtureModel(3, "E"), x)
        >>> bm.mixtures(bm.bootstrap(fit, x, n_draws=20, key=0)).means.shape
        (1, 20, 3, 1)
    """
    if group not in getattr(tree, "children", ()):
        raise ValueError(
            f"mixtures needs a tree with a group {group!r}, as sample_posterior and bootstrap return one"
        )
    try:
        posterior = tree[group].to_dataset()
        lead = [name for name in ("chain", "draw") if name in posterior.dims]
        arrays = [np.asarray(posterior[name].transpose(*lead, *dims)) for name, dims in DIMS.items()]
        names = tuple(str(name) for name in posterior["feature"].values)
        row = structure_of(posterior.attrs["covariance"], len(names))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"mixtures needs a tree whose group {group!r} has weights, means and covariances; {error}"
        ) from None
    weights, means, dense = arrays
    values = row.form.sparse(dense)
    cluster = -1 - row.form.axes
    if row.shared:
        values = np.take(values, [0], axis=cluster)
    return GaussianMixture(weights, means, Covariance(values, row.name), names)


def observed_of(tree: xarray.DataTree) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The data of a posterior, the weight of each row, and its cluster where that was given, else -1."""
    observed = tree["observed_data"]
    x = np.asarray(observed["x"])
    weight = np.asarray(observed["weight"]) if "weight" in observed else np.ones(len(x))
    given = np.asarray(observed["given"]) if "given" in observed else np.full(len(x), -1)
    return x, weight, given
