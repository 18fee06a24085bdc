"""The registry that tests iterate over: every structure, with one small data set each, so that compiled code is reused."""

from functools import cache

import numpy as np

import bayesmix as bm
from bayesmix.covariance import STRUCTURES

NAMES = tuple(STRUCTURES)
K, N = 3, 120


def features(name):
    return STRUCTURES[name].n_features or 3


@cache
def mixture(name):
    """Three overlapping clusters of the structure, in one or three features."""
    d = features(name)
    rng = np.random.default_rng(7)
    means = np.array([[0.0, 0.0, 0.0], [2.5, 1.0, -1.0], [-1.0, 3.0, 1.5]])[:, :d]
    row = STRUCTURES[name]
    k = 1 if row.shared else K
    if row.storage == "full":
        factor = rng.normal(size=(k, d, d)) * 0.4 + np.eye(d)
        covariances = factor @ np.swapaxes(factor, 1, 2)
    else:
        covariances = rng.uniform(0.4, 1.5, size=(k, d) if row.storage == "diagonal" else (k,))
    return bm.GaussianMixture.of([0.5, 0.3, 0.2], means, covariances, covariance=name)


@cache
def data(name):
    """Points of the mixture and the clusters that they came from."""
    x, z = mixture(name).simulate(N, key=3)
    x.setflags(write=False)
    return x, z


@cache
def fitted(name):
    return bm.fit(bm.MixtureModel(K, name), data(name)[0], init=data(name)[1], tol=1e-10)
