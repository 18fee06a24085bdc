"""What a fit is: a mixture, how it was reached, and one sentence that says whether to trust it.

The criteria follow Schwarz's sign, bic = -2 log L + p log n: lower is better. mclust prints the negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax

from bayesmix.mixture import GaussianMixture
from bayesmix.prior import ConjugatePrior
from bayesmix.status import NAME, STATUS

if TYPE_CHECKING:
    import pandas

__all__ = ["Fit", "criteria", "mixture_of"]

_STATIC = {"static": True}  # to JAX: no array


def criteria(log_likelihood: Any, classification: Any, entropy: Any, p: int, n: float) -> dict[str, Any]:
    """Penalised likelihoods of p parameters and n observations, as `Fit` says them; all are better if lower."""
    deviance, penalty = -2 * log_likelihood, p * math.log(n)
    return {
        "bic": deviance + penalty,
        "aic": deviance + 2 * p,
        "aicc": deviance + 2 * p + (2 * p * (p + 1) / (n - p - 1) if n > p + 1 else math.inf),
        "icl": -2 * classification + penalty,
        "icl_entropy": deviance + penalty + 2 * entropy,
        "clc": deviance + 2 * entropy,
    }


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Fit:
    """A mixture fitted to data.

    Attributes:
        mixture: the fitted parameters, in the data's own units.
        objective: the free energy Σ r (log_joint - log r) in nats after each step of the run that won, that
            of its starting mixture first where it had one: the log-likelihood for soft responsibilities, the
            classification log-likelihood for hard ones; plus the log prior where there is one. Annealed EM keeps
            its last level only; stochastic EM ends with the mixture of the averages; of online EM each is what the
            step's batch says of all data. The last entry is that of
            `mixture`.
        log_likelihood: Σ log p(x) in nats under `mixture`, with observation weights as repetitions; of a row whose
            cluster was known log p(x, z).
        classification_log_likelihood: Σ max_k log p(x, z=k) in nats.
        entropy: -Σ_n Σ_k r log r in nats, of the soft assignments.
        labels: the most probable cluster of each row (n,), or the one that was known.
        n_observations: total weight; BIC's n.
        method: a row of `engines.METHODS`.
        n_steps: M-steps of the run that won.
        code: the number behind `status`; see `status.STATUS`.
        status: a sentence that says how the fit ended and what to do.
        n_starts: how many starts were run.
        n_agree: how many of them reached the best optimum, or are headed there by Aitken's extrapolation
            (within 0.1 nats).
        n_spurious: how many ended in a collapsed or spurious optimum.
        n_redraws: stochastic EM: draws that were repeated because a cluster fell below d + 1 points.
        hold: what was held fixed ("weights", "covariance"), so not counted by the criteria.
        prior: the prior whose log density the objective includes, so that this is the posterior's mode, or `None`.
        best_visited: stochastic EM: the mixture with the largest likelihood along the chain; no verdict is passed on
            it, so it may be a spurious one that the chain came through.
        known_labels: what `fit` was told of the clusters of the rows (n,), -1 where it was told nothing, or `None`.
        n_missing: how many cells of the data were missing.
        inertia: k-means: weighted sum of squared distances to the assigned centres, in squared data units.
        traces: as `objective`, of every start that differs from those before it, the winner among them; only the
            winner was taken to its end. Empty where nothing was kept, as in a cell of a search.
    """

    mixture: GaussianMixture
    objective: Any
    log_likelihood: Any
    classification_log_likelihood: Any
    entropy: Any
    labels: Any
    n_observations: Any
    method: str = field(metadata=_STATIC)
    n_steps: int = field(metadata=_STATIC)
    code: int = field(metadata=_STATIC)
    status: str = field(metadata=_STATIC)
    n_starts: int = field(default=1, metadata=_STATIC)
    n_agree: int = field(default=1, metadata=_STATIC)
    n_spurious: int = field(default=0, metadata=_STATIC)
    n_redraws: int = field(default=0, metadata=_STATIC)
    hold: tuple[str, ...] = field(default=(), metadata=_STATIC)
    prior: ConjugatePrior | None = None
    best_visited: GaussianMixture | None = None
    known_labels: Any = None
    n_missing: int = field(default=0, metadata=_STATIC)
    inertia: Any = None
    traces: tuple[Any, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether the run that won came to its proper end, at an optimum that can be trusted."""
        return STATUS[NAME[self.code]].converged

    @property
    def spurious(self) -> bool:
        """Whether the optimum is collapsed or spurious: such a fit ranks below every clean one."""
        return not STATUS[NAME[self.code]].clean

    @property
    def hard(self) -> bool:
        """Whether each point was wholly in one cluster, as in hard EM and k-means, also of batches."""
        return self.method == "hard" or self.inertia is not None

    @property
    def n_parameters(self) -> int:
        """Free parameters that were estimated."""
        mixture = self.mixture
        k, d = mixture.n_components, mixture.n_features
        held = {"weights": k - 1, "covariance": mixture.covariance.row.n_parameters(k, d)}
        return mixture.n_parameters - sum(held[name] for name in self.hold)

    @property
    def bic(self) -> float:
        """-2 log L + p log n; lower is better. mclust's BIC is the negative."""
        return self._criteria["bic"]

    @property
    def aic(self) -> float:
        """-2 log L + 2 p; lower is better."""
        return self._criteria["aic"]

    @property
    def aicc(self) -> float:
        """aic + 2 p (p + 1) / (n - p - 1), for few observations; infinite where n is at most p + 1.

        References:
            Hurvich & Tsai (1989), Regression and time series model selection in small samples, Biometrika 76.
        """
        return self._criteria["aicc"]

    @property
    def clc(self) -> float:
        """Classification likelihood criterion, -2 log L + 2 entropy; lower is better.

        References:
            Biernacki & Govaert (1997), Using the classification likelihood to choose the number of clusters.
        """
        return self._criteria["clc"]

    @property
    def icl(self) -> float:
        """Integrated completed likelihood with hard labels, bic - 2 Σ log max r; lower is better.

        References:
            Biernacki, Celeux & Govaert (2000), IEEE PAMI 22, 719-725; the negative of mclust's ICL.
        """
        return self._criteria["icl"]

    @property
    def icl_entropy(self) -> float:
        """Integrated completed likelihood with soft labels, bic + 2 entropy; lower is better."""
        return self._criteria["icl_entropy"]

    @property
    def _criteria(self) -> dict[str, float]:
        return criteria(
            self.log_likelihood,
            self.classification_log_likelihood,
            self.entropy,
            self.n_parameters,
            self.n_observations,
        )

    def summary(self) -> pandas.DataFrame:
        """The fit in one column: how it was made, its likelihood, criteria and status.

        The clusters' parameters are in `fit.mixture.summary()`.
        """
        import pandas

        off = (
            ""
            if self.method == "soft" and not self.hold and self.prior is None
            else f" (not at the likelihood's maximum: {self._why()})"
        )
        rows = {
            "covariance": self.mixture.structure,
            "method": self.method,
            "clusters": self.mixture.n_components,
            "observations": f"{self.n_observations:.15g}",
            "log-likelihood": f"{self.log_likelihood:.4f}",
            "parameters": self.n_parameters,
            f"BIC{off}": f"{self.bic:.4f}",
            f"AIC{off}": f"{self.aic:.4f}",
            f"ICL{off}": f"{self.icl:.4f}",
            "steps": self.n_steps,
            "starts that agree": f"{self.n_agree} of {self.n_starts}",
            "spurious starts": self.n_spurious,
            "status": self.status,
        }
        if self.known_labels is not None:
            rows["rows whose cluster was known"] = int((self.known_labels >= 0).sum())
        if self.n_missing:
            rows["missing cells"] = self.n_missing
        if self.inertia is not None:
            rows["inertia"] = f"{self.inertia:.6g}"
        return pandas.DataFrame({"value": rows})

    def save(self, path: Any) -> None:
        """Write all of the fit as JSON, every number with all its digits; `bayesmix.load` reads it back.

        Raises:
            ValueError: a batch of fits, or parameters that are not finite.
        """
        from bayesmix.files import save

        save(self, path)

    def _why(self) -> str:
        if self.inertia is not None:
            return "k-means"
        if self.prior is not None:
            return "posterior mode"
        return f"{self.method} EM" if self.method != "soft" else "parameters were held"

    def __repr__(self) -> str:
        return (
            f"Fit({self.mixture.structure}, k={self.mixture.n_components}, method={self.method!r}, "
            f"log_likelihood={float(self.log_likelihood):.4f}, n_steps={self.n_steps}, status={self.status!r})"
        )


def mixture_of(fit: Any) -> GaussianMixture:
    """The mixture that a reader of results is asked about: a fit's own, or the one given.

    Raises:
        ValueError: neither a `Fit` nor a `GaussianMixture`, or a batch of mixtures.
    """
    mixture = fit.mixture if isinstance(fit, Fit) else fit
    if not isinstance(mixture, GaussianMixture):
        raise ValueError(f"fit must be a Fit or a GaussianMixture; it is {type(fit).__name__}")
    if mixture.means.ndim != 2:
        raise ValueError(
            f"fit must be one mixture; this is a batch, with means {mixture.means.shape}: pass one of them"
        )
    return mixture
