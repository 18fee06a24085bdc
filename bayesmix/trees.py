"""Many mixtures as an ArviZ DataTree, and back: the layout that posterior, bootstrap and chains share.

`posterior` holds weights (chain, draw, cluster), means (…, feature) and dense covariances (…, feature, feature_bis);
every dimension has a coordinate. What describes the draws goes to `sample_stats`, what describes the whole to the
attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix.covariance import Covariance, structure_of
from bayesmix.mixture import GaussianMixture

if TYPE_CHECKING:
    import xarray

__all__ = ["DIMS", "flat_draws", "mixture_tree", "mixtures"]

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
) -> xarray.DataTree:
    """A tree out of a batch of mixtures (chain, draw, ...), numbers (chain, draw) of each, and other parameters."""
    import xarray
    from arviz_base import dict_to_dataset

    k, d = mixture.n_components, mixture.n_features
    names = list(mixture.feature_names or (f"x{j}" for j in range(d)))
    parameters = {"weights": mixture.weights, "means": mixture.means, "covariances": mixture.covariances}
    parameters = {**(sites or {}), **parameters}
    known = {"creation_library": "bayesmix", "covariance": mixture.structure, **attributes}
    posterior = dict_to_dataset(
        parameters,
        dims=DIMS,
        coords={"cluster": np.arange(k), "feature": names, "feature_bis": names},
        attrs=known,
    )
    return xarray.DataTree.from_dict(
        {"posterior": posterior, "sample_stats": dict_to_dataset(dict(stats), attrs=known)}
    )


def flat_draws(batch: Any) -> Any:
    """Leaves (chain, draw, ...) of any pytree as (chain * draw, ...)."""
    return jax.tree.map(lambda a: np.asarray(a).reshape(-1, *np.shape(a)[2:]), batch)


def mixtures(tree: xarray.DataTree) -> GaussianMixture:
    """The draws of a tree as one `GaussianMixture` with leaves (chain, draw, ...).

    Map a method over it with `jax.vmap`, or take one out with `jax.tree.map(lambda a: a[0, 5], mixtures)`.

    Args:
        tree: what `bootstrap`, `stochastic_chain` or a sampler returned.

    Raises:
        ValueError: the tree has no group `posterior` with weights, means and covariances.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("galaxies")
        >>> fit = bm.fit(bm.MixtureModel(3, "E"), x)
        >>> bm.mixtures(bm.bootstrap(fit, x, n_draws=20, key=0)).means.shape
        (1, 20, 3, 1)
    """
    try:
        posterior = tree["posterior"].to_dataset()
        arrays = [np.asarray(posterior[name]) for name in DIMS]
        names = tuple(str(name) for name in posterior["feature"].values)
        row = structure_of(posterior.attrs["covariance"], len(names))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"mixtures needs a tree whose group 'posterior' has weights, means and covariances; {error}"
        ) from None
    weights, means, dense = arrays
    values = row.form.sparse(dense)
    cluster = -1 - row.form.axes
    if row.shared:
        values = np.take(values, [0], axis=cluster)
    return GaussianMixture(weights, means, Covariance(values, row.name), names)
