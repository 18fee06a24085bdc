"""`GaussianMixture`: EM as scikit-learn's estimator."""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from bayesmix import mixture as parameters
from bayesmix.covariance import ALIASES, STRUCTURES
from bayesmix.em import solve
from bayesmix.model import MixtureModel
from bayesmix.ranking import CRITERIA
from bayesmix.results import Fit
from bayesmix.selection import search
from bayesmix.sklearn.shared import Density, in_words, key_of, rows, sample_size, weights_of, with_names
from bayesmix.sklearn.starts import given_parts
from bayesmix.status import NAME

__all__ = ["GaussianMixture"]

# scikit-learn's words for starts in ours.
_STARTS = {"kmeans": "kmeans", "k-means++": "k-means++", "random": "random", "random_from_data": "random"}
_FAILED = (
    "Fitting the mixture model failed because some components have ill-defined empirical covariance (for instance "
    "caused by singleton or collapsed samples). Try to decrease the number of components, increase reg_covar, or scale "
    "the input data."
)
_NOT_CONVERGED = (
    "Best performing initialization did not converge. Try different init parameters, or increase max_iter, tol, or "
    "check for degenerate data."
)


class GaussianMixture(Density):
    """EM for a Gaussian mixture, in the place of `sklearn.mixture.GaussianMixture`: its arguments, attributes, methods.

    Beyond scikit-learn's: `sample_weight` in `fit`, all covariance structures, `n_components="auto"`, `prior`, and
    fits that are equivariant to the units of the data. Starts come from another random stream than scikit-learn's; from
    the same start the steps are the same.

    Args:
        n_components: the number of clusters, or "auto": the best of one to nine by `criterion`, each fitted from two
            hierarchical partitions and n_init k-means++ draws.
        covariance_type: "full", "tied", "diag", "spherical", or mclust's letters: EII, VII, EEI, VEI, EVI, VVI, EEE,
            VEE, EVE, VVE, EEV, VEV, EVV, VVV.
        tol: stop when fewer nats a point than this remain to be gained, as Aitken's extrapolation predicts.
            scikit-learn stops when the last step gained less, which may be far from the optimum; its default is 1e-3.
        reg_covar: `None`: nothing is added to a covariance; a cluster that collapses is held by a floor relative to
            the data, and a `ConvergenceWarning` says so. A number is added to the diagonal of every covariance, as in
            scikit-learn, in squared units of the data; 0 adds nothing, and a collapse raises unless max_iter ended the
            run before, which warns.
        max_iter: EM iterations at most, of each start. 1,000 where scikit-learn has 100, since less is left to gain.
        n_init: how many starts; the one with the largest likelihood that is not collapsed or spurious wins.
        init_params: "kmeans", "k-means++", or "random_from_data": means are k different rows. "random" is the same:
            scikit-learn's random responsibilities put every mean next to the grand mean.
        weights_init, means_init, precisions_init: parts of a start; what is not given comes from the clusters of the
            nearest given means, or else from the best of n_init starts after one M-step.
        random_state: seeds starts and `sample`.
        warm_start: begin at the last fit's mixture; there a last step that gains less than tol counts as convergence.
        verbose: 1 prints how the fit went, when it is over.
        verbose_interval: every how many iterations.
        prior: `None`, "weak" or a `ConjugatePrior`: with a prior the posterior mode is found, which does not collapse.
        criterion: "bic", "aic", "aicc", "icl", "icl_entropy", "clc" or "nec": what "auto" goes by.

    Attributes:
        weights_, means_: (k,), (k, d).
        covariances_, precisions_, precisions_cholesky_: in scikit-learn's shapes for its four words, (k, d, d) for
            other structures.
        converged_: whether the fit came to its end at an optimum that can be trusted; else a `ConvergenceWarning` says
            what happened.
        n_iter_: iterations of the start that won, after the M-step that a start begins with.
        lower_bound_, lower_bounds_: the mean log-likelihood (plus the log prior) of the fitted mixture, and after each
            iteration.
        fit_: the `bayesmix.Fit`. search_table_: with "auto", every number of clusters with its criteria.
        n_features_in_, feature_names_in_: of the data.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix.sklearn import GaussianMixture
        >>> x = bm.datasets.load("old_faithful")
        >>> GaussianMixture("auto", covariance_type="EEE", random_state=0).fit(x).means_.round(1)
        array([[ 3.8, 77.5],
               [ 4.5, 80.9],
               [ 2. , 54.5]])
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "covariance_type": [StrOptions({*STRUCTURES, *ALIASES})],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "reg_covar": [Interval(Real, 0.0, None, closed="left"), None],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions(set(_STARTS))],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", None],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
        "prior": "no_validation",
        "criterion": [StrOptions(set(CRITERIA))],
    }

    def __init__(
        self,
        n_components: int | str = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-6,
        reg_covar: float | None = None,
        max_iter: int = 1000,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        prior: Any = None,
        criterion: str = "bic",
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.prior = prior
        self.criterion = criterion

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Find the mixture of the points X (n, d); `y` is ignored, an integer weight is repetition."""
        X = rows(self, X, ensure_min_samples=2)
        weight = weights_of(sample_weight, X)
        if self.n_components == "auto":
            fit, extra = self._chosen(X, weight), 0
        else:
            fit, extra = self._fitted(X, weight, int(self.n_components))
        cut = fit.n_steps - extra >= self.max_iter  # no end of the run's own: a warning says how it stands
        if self.reg_covar == 0 and not cut and fit.spurious and NAME[fit.code] != "spurious":
            raise ValueError(f"{_FAILED} {fit.status.capitalize()}.")
        self.fit_ = fit
        self.weights_, self.means_ = fit.mixture.weights, fit.mixture.means
        vars(self).update(in_words(fit.mixture.covariances, self.covariance_type))
        self.n_iter_ = max(
            fit.n_steps - extra, min(1, self.max_iter)
        )  # one cluster is found by its first M-step
        bounds = fit.objective / fit.n_observations
        self.lower_bound_, self.lower_bounds_ = (
            float(bounds[-1]),
            bounds[max(0, bounds.size - self.n_iter_) :],
        )
        last = np.diff(fit.objective[-2:])
        limit = self.tol * fit.n_observations
        at_rest = self.warm_start and NAME[fit.code] == "max_steps" and last.size and abs(last[0]) < limit
        self.converged_ = bool(fit.converged or at_rest)
        self._say()
        if not self.converged_ and self.max_iter > 0:
            warnings.warn(f"{_NOT_CONVERGED} The fit is {fit.status}", ConvergenceWarning, stacklevel=2)
        return self

    def _chosen(self, X: np.ndarray, weight: np.ndarray | None) -> Fit:
        """The best number of clusters by the criterion."""
        for name in ("reg_covar", "weights_init", "means_init", "precisions_init", "warm_start", "prior"):
            if not (getattr(self, name) is None or getattr(self, name) is False):
                raise ValueError(
                    f"n_components='auto' takes no {name}; give the number of clusters, or leave it out"
                )
        if self.init_params != "kmeans" or self.max_iter == 0:
            raise ValueError(
                "n_components='auto' has starts of its own, so init_params and max_iter=0 do not apply"
            )
        found = search(
            with_names(self, X),
            n_components=range(1, min(9, len(X)) + 1),
            covariance=self.covariance_type,
            n_starts=2 + self.n_init,
            criterion=self.criterion,
            sample_weight=weight,
            key=key_of(self.random_state),
            tol=self._nats(X, weight),
            max_steps=self.max_iter,
        )
        self.search_table_ = found.table
        return found.best

    def _fitted(self, X: np.ndarray, weight: np.ndarray | None, k: int) -> tuple[Fit, int]:
        """The fit, and how many M-steps came before its first iteration."""
        if len(X) < k:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {k}, n_samples = {len(X)}"
            )
        prior = MixtureModel(k, self.covariance_type, self.prior)
        if self.prior is not None:
            if self.reg_covar:
                raise ValueError(
                    "reg_covar and prior both keep covariances from collapsing; give one of them"
                )
            prior = prior.resolve(X, sample_weight=weight)
        options = {
            "sample_weight": weight,
            "key": key_of(self.random_state),
            "tol": self._nats(X, weight),
            "prior": prior.prior,
            "added_variance": self.reg_covar or 0.0,
        }
        init, n_starts, extra = self._start(X, k, options)
        fit = solve(
            k,
            self.covariance_type,
            with_names(self, X),
            init=init,
            n_starts=n_starts,
            max_steps=self.max_iter + extra,
            **options,
        )
        return fit, extra

    def _nats(self, X: np.ndarray, weight: np.ndarray | None) -> float:
        """tol in nats of the whole log-likelihood."""
        return float(self.tol * (len(X) if weight is None else weight.sum()))

    def _start(self, X: np.ndarray, k: int, options: dict[str, Any]) -> tuple[Any, int, int]:
        """What `solve` starts from, how many starts, and how many M-steps of theirs are no iteration."""
        if self.warm_start and hasattr(self, "fit_"):
            return self.fit_.mixture, 1, 0
        weights, means, covariances = given_parts(
            self.weights_init, self.means_init, self.precisions_init, self.covariance_type, (k, X.shape[1])
        )
        init, steps = (_STARTS[self.init_params], 1) if means is None else (means, 0)
        if weights is None and means is None and covariances is None:
            return init, self.n_init, steps
        if weights is None or means is None or covariances is None:
            n_starts = 1 if steps == 0 else self.n_init
            made = solve(
                k, self.covariance_type, X, init=init, n_starts=n_starts, max_steps=steps, **options
            ).mixture
            weights = made.weights if weights is None else weights
            means = made.means if means is None else means
            covariances = made.covariances if covariances is None else covariances
        start = parameters.GaussianMixture.of(weights, means, covariances, covariance=self.covariance_type)
        return start, 1, 0

    def _say(self) -> None:
        if not self.verbose:
            return
        for i in range(self.verbose_interval - 1, len(self.lower_bounds_), self.verbose_interval):
            print(f"  Iteration {i + 1}\t lower bound {self.lower_bounds_[i]:.5f}")
        print(f"Initialization {'converged' if self.converged_ else 'did not converge'}. {self.fit_!r}")

    def predict(self, X: Any) -> np.ndarray:
        """The most probable cluster of each point (n,)."""
        X = self._seen(X)
        return self.fit_.mixture.classify(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """p(z = k | x) of each point (n, k)."""
        X = self._seen(X)
        return self.fit_.mixture.responsibilities(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x) of each point (n,), in nats."""
        X = self._seen(X)
        return self.fit_.mixture.log_density(X)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw points (n, d) and their clusters (n,), in random order; an int random_state gives the same again."""
        check_is_fitted(self)
        return self.fit_.mixture.simulate(sample_size(n_samples), key=key_of(self.random_state))

    def bic(self, X: Any, sample_weight: Any = None) -> float:
        """-2 log L + p log n on these points; lower is better."""
        total = self._total(X, sample_weight)
        return -2 * self.score(X, sample_weight=sample_weight) * total + self._n_parameters() * math.log(
            total
        )

    def aic(self, X: Any, sample_weight: Any = None) -> float:
        """-2 log L + 2 p on these points; lower is better."""
        return (
            -2 * self.score(X, sample_weight=sample_weight) * self._total(X, sample_weight)
            + 2 * self._n_parameters()
        )

    def _total(self, X: Any, sample_weight: Any) -> float:
        X = self._seen(X)
        weight = weights_of(sample_weight, X)
        return float(len(X) if weight is None else weight.sum())

    def _n_parameters(self) -> int:
        return self.fit_.n_parameters
