"""Can these draws be trusted? First what labels cannot touch, then the parameters, then the sampler; each in words.

The posterior of a mixture is the same whatever its clusters are called, and a sampler may exchange their names. So
chains are compared first by quantities that names do not change: where these disagree, the chains are in different
optima or too short, and no relabelling helps. Where they agree and relabelled parameters do not, the density can be
trusted, and the names of the clusters cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.convergence import CONSTANT, DRAWS, FINE, R_HAT, Row, quantity_rows, sampler_rows
from bayesmix.quantities import invariants, parameters

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["Diagnosis", "diagnose"]

_CERTAIN = 0.8
_FAR = 1.1  # an R-hat that running a little longer does not mend
_SWITCHING = (
    "Labels were not undone of switching, so parameters are left out: relabel(posterior) undoes it. What is "
    "label-invariant needs no relabelling."
)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Whether draws can be trusted, quantity by quantity and in words.

    Attributes:
        table: a row per quantity: `quantity`, `group` ("label-invariant", "relabelled" or "sampler"), `mean`, `sd`,
            `r_hat`, `ess_bulk`, `ess_tail`, and a `verdict` in words; NaN where a number means nothing.
        verdict: a paragraph: do the chains agree, what became of the labels, what the sampler says.
    """

    table: pandas.DataFrame
    verdict: str

    @property
    def complaints(self) -> pandas.DataFrame:
        """The rows whose verdict is neither "fine" nor "constant"."""
        return self.table.loc[~self.table["verdict"].isin((FINE, CONSTANT))]

    @property
    def fine(self) -> bool:
        """Whether no row has a complaint."""
        return self.complaints.empty

    def __str__(self) -> str:
        return self.verdict

    def __repr__(self) -> str:
        return f"Diagnosis(fine={self.fine}, complaints: {len(self.complaints)} of {len(self.table)} rows)"


def diagnose(posterior: xarray.DataTree) -> Diagnosis:
    """Read a posterior in the order in which it can be trusted: what labels cannot touch, parameters, the sampler.

    The label-invariant quantities are the log joint density, the log-likelihood, the sorted weights, the sorted
    distances between means in pooled standard deviations within clusters (ten at most), and the entropies of the
    weights and of the cluster sizes in z. Parameters are shown where label switching was undone. The chains disagree
    where R-hat is above 1.01, and are short where a quantity is worth fewer than 100 independent draws a chain.

    Args:
        posterior: what `sample_posterior` returned. Of the groups beside `posterior` and `sample_stats`, what is absent
            is left out: without `allocations` there is no entropy of sizes.

    Raises:
        ValueError: a tree without mixtures or without `lp`, as a bootstrap's, whose draws are no chain.

    References:
        Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization: an improved
        R-hat for assessing convergence of MCMC, Bayesian Analysis 16: the limits.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> model = bm.MixtureModel(2, prior="weak")
        >>> posterior = bm.sample_posterior(model, x, key=0, method="gibbs", n_warmup=200, n_draws=500)
        >>> print(bm.diagnose(posterior).verdict.split(":")[0])
        The 4 chains agree
    """
    import pandas

    stats = _statistics(posterior)
    first = quantity_rows("label-invariant", invariants(posterior))
    known = posterior["posterior"].attrs
    several = posterior["posterior"].sizes["cluster"] > 1
    undone = not several or "permutation" in stats
    named = quantity_rows("relabelled", parameters(posterior)) if undone else []
    sentences = [_agreement(first, stats["lp"])]
    if several and undone:
        named.append(_certainty(float(known["certainty"])))
        sentences.append(_labels(first, named, known, stats["permutation"]))
    elif several:
        sentences.append(_SWITCHING)
    last = sampler_rows(stats)
    sentences.append(_sampled(last))
    return Diagnosis(pandas.DataFrame([*first, *named, *last]), " ".join(filter(None, sentences)))


def _statistics(posterior: Any) -> dict[str, np.ndarray]:
    """The numbers (chain, draw, ...) of the group sample_stats."""
    try:
        group = posterior["sample_stats"].data_vars.items()
        stats = {
            str(name): np.asarray(values.transpose("chain", "draw", ...))
            for name, values in group
            if {"chain", "draw"} <= set(values.dims)
        }
        stats["lp"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(
            "diagnose reads what sample_posterior returned; this has no 'lp' in a group 'sample_stats', "
            "of chains and draws. One chain is isel(chain=[0]); the draws of a bootstrap are independent, so there are "
            "no chains to compare"
        ) from None
    return stats


def _agreement(rows: list[Row], lp: np.ndarray) -> str:
    """Do the chains agree on what labels cannot touch?"""
    chains, draws = lp.shape
    who = f"The {chains} chains" if chains > 1 else "The halves of the only chain"
    seen = [row for row in rows if not math.isnan(row.r_hat)]
    if not seen:
        return f"{draws} draws are too few to compare chains by: run longer."
    worst = max(seen, key=lambda row: row.r_hat)
    if worst.apart:
        means = ", ".join(f"{value:.1f}" for value in lp.mean(axis=1))
        far = "They are in different optima, or mix too slowly: run longer, or start them elsewhere"
        advice = far if worst.r_hat > _FAR else "They have not mixed well: run longer"
        return (
            f"{who} disagree: R-hat is {worst.r_hat:#.4g} for the {worst.quantity}, and above {R_HAT} for "
            f"{sum(row.apart for row in seen)} of {len(rows)} label-invariant quantities. {advice} (mean log joint "
            f"density by chain: {means})."
        )
    least = min(seen, key=lambda row: row.worth)
    if not least.fine:
        return (
            f"{who} agree, but are short: the {least.quantity} is worth {least.worth:.0f} independent draws, fewer "
            f"than {DRAWS} a chain; run longer."
        )
    return (
        f"{who} agree: R-hat of label-invariant quantities is at most {worst.r_hat:.3f}, and each is worth at least "
        f"{least.worth:.0f} independent draws."
    )


def _certainty(value: float) -> Row:
    """The mean probability of a point's most probable cluster, after relabelling."""
    vague = f"below {_CERTAIN}: clusters overlap, or their names cannot be told apart"
    return Row("certainty", "relabelled", value, verdict=FINE if value >= _CERTAIN else vague)


def _labels(first: list[Row], named: list[Row], known: Mapping[Any, Any], order: np.ndarray) -> str:
    """What became of the labels, and whether the parameters can be read."""
    switches = int((order[:, 1:] != order[:, :-1]).any(axis=-1).sum())
    said = (
        f"Labels switched {switches} times inside chains, harmless for what is label-invariant; {known['relabelling']} "
        f"permuted {known['share_permuted']:.0%} of the draws"
    )
    apart = [row for row in named if row.apart]
    certainty = f"certainty {known['certainty']:.2f}"
    if apart:
        worst = max(apart, key=lambda row: row.r_hat)
        why = (
            "as the chains do"
            if any(row.apart for row in first)
            else "so the names of clusters are ambiguous: read what is label-invariant, and the density"
        )
        found = f"R-hat is {worst.r_hat:#.4g} for {worst.quantity}, {certainty}"
        return f"{said}. The relabelled parameters disagree, {why} ({found})."
    if not named[-1].fine:
        care = "read them with care, for clusters overlap or their names cannot be told apart"
        return f"{said}. The relabelled parameters agree, but {care} ({certainty})."
    return f"{said}. The relabelled parameters can be trusted as far as the chains can ({certainty})."


def _sampled(rows: list[Row]) -> str:
    """What the sampler itself complains of, or that it does not."""
    complaints = [row.verdict for row in rows if not row.fine]
    if complaints:
        text = "; ".join(complaints)
        return text[0].upper() + text[1:] + "."
    return "The sampler has no complaint."
