"""bayesmix: Gaussian mixtures as an explicit generative model, on JAX, NumPyro and ArviZ."""

from bayesmix import datasets
from bayesmix.checks import FitCheck, check_fit
from bayesmix.em import fit
from bayesmix.hierarchical import HierarchicalPrior, hierarchical_prior
from bayesmix.information import StandardErrors, standard_errors
from bayesmix.limit import kmeans
from bayesmix.lkj import LKJPrior, lkj_prior
from bayesmix.merging import MergeHierarchy, merge_clusters
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel
from bayesmix.prior import ConjugatePrior, weak_prior
from bayesmix.ratio_test import LikelihoodRatioTest, likelihood_ratio_test
from bayesmix.results import Fit
from bayesmix.sampling import sample_posterior
from bayesmix.selection import Search, search
from bayesmix.stochastic import stochastic_chain
from bayesmix.switching import relabel
from bayesmix.trees import mixtures
from bayesmix.uncertainty import bootstrap, jackknife

__version__ = "0.1.0"
__all__ = [
    "ConjugatePrior",
    "Fit",
    "FitCheck",
    "GaussianMixture",
    "HierarchicalPrior",
    "LKJPrior",
    "LikelihoodRatioTest",
    "MergeHierarchy",
    "MixtureModel",
    "Search",
    "StandardErrors",
    "bootstrap",
    "check_fit",
    "datasets",
    "fit",
    "hierarchical_prior",
    "jackknife",
    "kmeans",
    "likelihood_ratio_test",
    "lkj_prior",
    "merge_clusters",
    "mixtures",
    "relabel",
    "sample_posterior",
    "search",
    "standard_errors",
    "stochastic_chain",
    "weak_prior",
]
