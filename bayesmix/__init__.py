"""bayesmix: Gaussian mixtures as an explicit generative model, on JAX, NumPyro and ArviZ."""

from bayesmix.mixture import GaussianMixture

__all__ = ["GaussianMixture"]
