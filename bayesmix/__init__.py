"""bayesmix: Gaussian mixtures as an explicit generative model, on JAX, NumPyro and ArviZ."""

from bayesmix import datasets
from bayesmix.em import fit
from bayesmix.limit import kmeans
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel
from bayesmix.prior import ConjugatePrior, weak_prior
from bayesmix.results import Fit

__version__ = "0.1.0"
__all__ = [
    "ConjugatePrior",
    "Fit",
    "GaussianMixture",
    "MixtureModel",
    "datasets",
    "fit",
    "kmeans",
    "weak_prior",
]
