"""bayesmix: Gaussian mixtures as an explicit generative model, on JAX, NumPyro and ArviZ."""

from importlib import import_module
from typing import Any

from bayesmix import datasets
from bayesmix.agreement import adjusted_rand_index
from bayesmix.allocations import coclustering
from bayesmix.checks import FitCheck, check_fit
from bayesmix.clustering import Partition, partition
from bayesmix.comparison import compare
from bayesmix.compilation import enable_compilation_cache
from bayesmix.diagnosis import Diagnosis, diagnose
from bayesmix.em import fit
from bayesmix.evidence import LogEvidence, log_evidence
from bayesmix.files import load, save
from bayesmix.hierarchical import HierarchicalPrior, hierarchical_prior
from bayesmix.information import StandardErrors, standard_errors
from bayesmix.limit import kmeans
from bayesmix.lkj import LKJPrior, lkj_prior
from bayesmix.merging import MergeHierarchy, merge_clusters
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel
from bayesmix.prior import ConjugatePrior, weak_prior
from bayesmix.questions import classify, log_density, responsibilities, same_cluster
from bayesmix.ranking import Search
from bayesmix.ratio_test import LikelihoodRatioTest, likelihood_ratio_test
from bayesmix.results import Fit
from bayesmix.sampling import sample_posterior
from bayesmix.selection import search
from bayesmix.stochastic import stochastic_chain
from bayesmix.switching import relabel
from bayesmix.trees import mixtures
from bayesmix.uncertainty import bootstrap, jackknife

__version__ = "0.1.0"
__all__ = [
    "ConjugatePrior",
    "Diagnosis",
    "Fit",
    "FitCheck",
    "GaussianMixture",
    "HierarchicalPrior",
    "LKJPrior",
    "LikelihoodRatioTest",
    "LogEvidence",
    "MergeHierarchy",
    "MixtureModel",
    "Partition",
    "Search",
    "StandardErrors",
    "adjusted_rand_index",
    "bootstrap",
    "check_fit",
    "classify",
    "coclustering",
    "compare",
    "datasets",
    "diagnose",
    "enable_compilation_cache",
    "fit",
    "hierarchical_prior",
    "jackknife",
    "kmeans",
    "likelihood_ratio_test",
    "load",
    "lkj_prior",
    "log_density",
    "log_evidence",
    "merge_clusters",
    "mixtures",
    "partition",
    "relabel",
    "responsibilities",
    "same_cluster",
    "save",
    "sample_posterior",
    "search",
    "standard_errors",
    "stochastic_chain",
    "weak_prior",
]


def __getattr__(name: str) -> Any:
    """`plots` and `sklearn` load when they are asked for: they bring matplotlib and scikit-learn."""
    if name in ("plots", "sklearn"):
        return import_module(f"bayesmix.{name}")
    raise AttributeError(f"module 'bayesmix' has no attribute {name!r}")
