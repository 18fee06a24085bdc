"""Starts that a user gives: a mixture, means, responsibilities or labels, checked, and in the units of the loop."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from bayesmix.covariance import Covariance, covariance_values
from bayesmix.frames import never_named, order_of
from bayesmix.initialize import Start, from_means, from_responsibilities, unit_spheres
from bayesmix.inputs import are_chances, as_points
from bayesmix.mixture import GaussianMixture
from bayesmix.seeds import nearest

__all__ = ["given_mixture", "given_start"]


def given_mixture(init: GaussianMixture, n_components: int, names: tuple[str, ...]) -> GaussianMixture:
    """A user's mixture of so many clusters, its features in the order of these names if it has names.

    Raises:
        ValueError: a batch, a mixture of something else, or numbers that make none.
    """
    if init.means.ndim != 2:
        raise ValueError(f"init is a batch of mixtures (means {init.means.shape}); pass one of them")
    if (init.n_components, init.n_features) != (n_components, len(names)):
        raise ValueError(
            f"init is a mixture of {init.n_components} clusters in {init.n_features} features; "
            f"{n_components} clusters in {len(names)} features are needed"
        )
    weights = np.asarray(init.weights)
    finite = all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(init))
    if not (finite and are_chances(weights)):
        raise ValueError(
            "init is a mixture of numbers that are not finite, or whose weights are no probabilities: "
            f"{weights.tolist()}; make it by GaussianMixture.of, which checks"
        )
    own = init.feature_names
    if own is None or never_named(own):
        return init
    order = order_of(own, names, "init")
    return init if order is None else init.marginal(order)


def given_start(init: Any, problem: Any, bare: bool = False) -> Start:
    """A start from a user's mixture, means (k, d), responsibilities (n, k) or labels (n,).

    Of means that are to be `bare`, as for k-means, no covariance is estimated.

    Raises:
        ValueError: what came fits none of these.
    """
    x, weight, keep, units = problem.x, problem.w, problem.keep, problem.units
    k, structure = problem.n_components, problem.structure
    n, d = keep.size, x.shape[1]
    if isinstance(init, GaussianMixture):
        init = given_mixture(init, k, problem.names)
        if bare:
            return Start(unit_spheres(units.of(np.asarray(init.means, np.float64))))
        if init.structure == structure.name:
            values = np.asarray(init.covariance.values, np.float64)
        else:
            try:
                values = covariance_values(np.asarray(init.covariances, np.float64), structure, k, d)
            except ValueError as error:
                raise ValueError(f"init is a mixture whose {error}") from None
        mixture = GaussianMixture(
            np.asarray(init.weights, np.float64),
            np.asarray(init.means, np.float64),
            Covariance(values, structure.name),
        )
        return Start(units.enter(mixture))
    given = np.asarray(init)
    if given.ndim == 1 and given.shape == (n,) and (given.dtype.kind in "iub" or n != k):
        labels = as_points(init, "init").values[:, 0]
        bad = (labels != np.floor(labels)) | (labels < 0) | (labels >= k)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"init as labels must be whole numbers from 0 to {k - 1}; row {row} holds {given[row]!r}"
            )
        return from_responsibilities(x, weight, labels[keep], k, structure)
    named = given.shape == (k, d) != (n, k)  # columns of means are features
    array = as_points(init, "init", known=problem.names if named else None).values.astype(np.float64)
    if array.shape == (k, d):
        # The nearest mean in the data's own units, which are what the user sees.
        means = units.of(array)
        if bare:
            return Start(unit_spheres(means))
        common = units.scale.max()
        labels = nearest(x.measured(common), ((array - units.origin) / common).astype(x.dtype))
        return from_means(x, weight, means, labels, structure, units.floor)
    if array.shape == (n, k):
        off = np.abs(array.sum(axis=1) - 1)
        if (array < 0).any() or off.max() > 1e-6:
            row = int(np.argmax(np.where((array < 0).any(axis=1), np.inf, off)))
            raise ValueError(
                f"init as responsibilities must not be negative and each row must add up to one; "
                f"row {row} is {array[row].tolist()}"
            )
        return from_responsibilities(x, weight, array[keep], k, structure)
    raise ValueError(
        f"init has shape {given.shape}; pass labels ({n},), responsibilities ({n}, {k}), means ({k}, {d}), "
        f"a GaussianMixture, or one of 'kmeans', 'k-means++', 'random'"
    )
