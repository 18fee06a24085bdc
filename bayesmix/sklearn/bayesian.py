"""`BayesianMixture`: a mixture's posterior, and predictions averaged over its draws, as a scikit-learn estimator."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any, ClassVar, Self

import jax
import numpy as np
from sklearn.base import _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from bayesmix.covariance import ALIASES, STRUCTURES
from bayesmix.diagnosis import diagnose
from bayesmix.draws import replicates
from bayesmix.keys import as_generator, key_words
from bayesmix.model import MixtureModel
from bayesmix.questions import log_density, responsibilities
from bayesmix.sampling import sample_posterior
from bayesmix.sklearn.shared import Density, in_words, key_of, rows, sample_size, weights_of, with_names
from bayesmix.trees import flat_draws, mixtures

__all__ = ["BayesianMixture"]


class BayesianMixture(Density):
    """A mixture's posterior by Markov chain Monte Carlo; predictions are averages over its draws.

    Where scikit-learn's `BayesianGaussianMixture` finds one approximation by variational inference, this keeps draws:
    `predict_proba` is p(z | x, data), doubt about the parameters included, and `posterior_` is what ArviZ reads.

    Args:
        n_components: the number of clusters.
        covariance_type: "full", "tied", "diag", "spherical", or mclust's letters; those whose clusters share a part of
            their covariance, such as "VEV", have no sampler.
        prior: "weak" (scaled from the data), "hierarchical", "lkj", a `ConjugatePrior`, or a NumPyro program; all but
            "weak" and `ConjugatePrior` need method="nuts".
        method: "gibbs" or "nuts", as in `sample_posterior`.
        n_chains: chains.
        n_warmup: steps of each before its draws.
        n_draws: of each chain.
        random_state: seeds the draws; an int gives the same draws again.

    Attributes:
        posterior_: the draws, an ArviZ `DataTree`, label switching undone.
        diagnosis_: what `bayesmix.diagnose` says of them.
        converged_: whether it has no complaint; where it has, `fit` gives a `ConvergenceWarning` with its words.
        weights_, means_: posterior means (k,), (k, d).
        covariances_, precisions_, precisions_cholesky_: of the posterior means of the covariances, in scikit-learn's
            shapes for its four words, (k, d, d) for others.
        n_features_in_, feature_names_in_: of the data.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix.sklearn import BayesianMixture
        >>> x = bm.datasets.load("old_faithful")
        >>> mixture = BayesianMixture(2, n_warmup=200, n_draws=500, random_state=0).fit(x)
        >>> mixture.predict_proba(x.iloc[:2]).max(axis=1).round(2)
        array([1., 1.])
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions({*STRUCTURES, *ALIASES})],
        "prior": "no_validation",
        "method": [StrOptions({"gibbs", "nuts"})],
        "n_chains": [Interval(Integral, 1, None, closed="left")],
        "n_warmup": [Interval(Integral, 0, None, closed="left")],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        prior: Any = "weak",
        method: str = "gibbs",
        n_chains: int = 4,
        n_warmup: int = 1000,
        n_draws: int = 1000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.prior = prior
        self.method = method
        self.n_chains = n_chains
        self.n_warmup = n_warmup
        self.n_draws = n_draws
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Draw from the posterior given the points X (n, d).

        `y` is ignored. An integer weight is repetition; "gibbs" takes whole numbers only.
        """
        X = rows(self, X, ensure_min_samples=2)
        self.posterior_ = sample_posterior(
            MixtureModel(self.n_components, self.covariance_type, self.prior),
            with_names(self, X),
            key=key_of(self.random_state),
            method=self.method,
            n_chains=self.n_chains,
            n_warmup=self.n_warmup,
            n_draws=self.n_draws,
            sample_weight=weights_of(sample_weight, X),
        )
        means = self.posterior_["posterior"].mean(["chain", "draw"])
        self.weights_, self.means_ = means["weights"].to_numpy(), means["means"].to_numpy()
        vars(self).update(in_words(means["covariances"].to_numpy(), self.covariance_type))
        self.diagnosis_ = diagnose(self.posterior_)
        self.converged_ = self.diagnosis_.fine
        if not self.converged_:
            warnings.warn(self.diagnosis_.verdict, ConvergenceWarning, stacklevel=2)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """p(z = k | x, data) of each point (n, k): responsibilities averaged over draws."""
        X = self._seen(X)
        return responsibilities(self.posterior_, X)["mean"].to_numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The cluster of each point (n,) that is the most probable, all draws considered."""
        return self.predict_proba(X).argmax(axis=1)

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x | data) of each point (n,), in nats: the log of the density averaged over draws."""
        X = self._seen(X)
        return log_density(self.posterior_, X)["mean"].to_numpy()

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw points (n, d) of the posterior predictive law and their clusters (n,), each by a draw of its own."""
        check_is_fitted(self)
        n = sample_size(n_samples)
        generator = as_generator(key_of(self.random_state))
        batch = flat_draws(mixtures(self.posterior_))
        size = max(64, 1 << (n - 1).bit_length())  # few sizes, so few programs
        which = generator.integers(len(batch.weights), size=size)
        x, z = replicates(jax.tree.map(lambda a: a[which], batch), key_words(generator, len(which)), 1)
        return x[:n, 0], z[:n, 0]
