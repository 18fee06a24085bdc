"""The registry that tests iterate over: every structure, with one small data set each, so that compiled code is reused."""

from functools import cache

import numpy as np

import bayesmix as bm
from bayesmix.covariance import STRUCTURES

NAMES = tuple(STRUCTURES)
# Where the structure is beside the point: each storage, shared or not, an iterated M-step, one feature.
FEW = ("V", "EII", "VVI", "EEE", "VVV", "VEV")
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
    # λ_k D_k A_k D_kᵀ by the letters: each volume, shape and orientation once where it is equal.
    volume, shape, orientation = row.letters
    volumes = np.broadcast_to(rng.uniform(0.5, 1.4, size=K if volume == "V" else 1), K)
    logs = np.zeros((K, d)) if shape == "I" else rng.normal(size=(K if shape == "V" else 1, d)) * 0.5
    shapes = np.broadcast_to(np.exp(logs - logs.mean(axis=1, keepdims=True)), (K, d))
    turns = [np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(K)]
    axes = {"I": [np.eye(d)] * K, "E": turns[:1] * K, "V": turns}[orientation]
    covariances = np.stack([v * (a * s) @ a.T for v, s, a in zip(volumes, shapes, axes)])
    covariances = (covariances + np.swapaxes(covariances, 1, 2)) / 2
    return bm.GaussianMixture.of([0.5, 0.3, 0.2], means, covariances, covariance=name)


@cache
def data(name, key=3):
    """Points of the mixture and the clusters that they came from."""
    x, z = mixture(name).simulate(N, key=key)
    x.setflags(write=False)
    return x, z


@cache
def fitted(name, key=3):
    x, z = data(name, key)
    return bm.fit(bm.MixtureModel(K, name), x, init=z, tol=1e-10)
