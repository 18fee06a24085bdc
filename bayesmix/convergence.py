"""Have chains converged? A row per quantity: its mean, R-hat, how many independent draws it is worth, and a verdict.

    R-hat       spread of all draws over that within chains, on ranks; above 1.01 chains disagree
    ESS         how many independent draws the mean (bulk) and the 5% and 95% quantiles (tail) are worth; 100 a chain
    E-BFMI      how far the energy moves in a transition relative to its spread; under 0.3 NUTS explores it badly

References:
    Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization: an improved
    R-hat for assessing convergence of MCMC, Bayesian Analysis 16, 667-718.
    Betancourt (2016), Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo, arXiv:1604.00695.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["CONSTANT", "DRAWS", "FINE", "R_HAT", "Row", "quantity_rows", "sampler_rows"]

R_HAT = 1.01
DRAWS = 100  # effective ones a chain
_E_BFMI = 0.3
_DEPTH = 10  # NumPyro's limit of a tree
_FEWEST = 4  # draws that R-hat can be computed from
_ROUNDING = 1e-12
# Verdicts, all but two of which are complaints.
FINE, CONSTANT = "fine", "constant"


class Row(NamedTuple):
    """A row of the table, by the names of its columns; NaN where a number means nothing."""

    quantity: str
    group: str
    mean: float
    sd: float = math.nan
    r_hat: float = math.nan
    ess_bulk: float = math.nan
    ess_tail: float = math.nan
    verdict: str = FINE

    @property
    def fine(self) -> bool:
        return self.verdict in (FINE, CONSTANT)

    @property
    def apart(self) -> bool:
        """Whether chains disagree."""
        return self.r_hat > R_HAT

    @property
    def worth(self) -> float:
        """Independent draws, in the bulk or in the tails, whichever are fewer."""
        return min(self.ess_bulk, self.ess_tail)


def quantity_rows(group: str, quantities: dict[str, Float[np.ndarray, "chain draw"]]) -> list[Row]:
    """R-hat and effective draws of each quantity; one chain is compared by its halves."""
    from arviz_stats.sampling_diagnostics import ess, rhat

    stack = np.stack(list(quantities.values()), axis=-1).astype(np.float64)
    chains, draws, count = stack.shape
    varies = np.ptp(stack, axis=(0, 1)) > _ROUNDING * np.abs(stack).max(axis=(0, 1))
    numbers = np.full((3, count), np.nan)
    half = draws // 2
    compared = stack if chains > 1 else np.concatenate([stack[:, :half], stack[:, draws - half :]])
    if varies.any() and compared.shape[1] >= _FEWEST:
        with np.errstate(divide="ignore", invalid="ignore"):  # a chain that stands still
            numbers[0, varies] = rhat(compared[..., varies])
            numbers[1, varies] = ess(stack[..., varies], method="bulk")
            numbers[2, varies] = ess(stack[..., varies], method="tail", prob=(0.05, 0.95))
    columns = np.stack([stack.mean(axis=(0, 1)), stack.std(axis=(0, 1)), *numbers], axis=1).tolist()
    rows = [Row(name, group, *column[:5]) for name, column in zip(quantities, columns)]
    return [row._replace(verdict=_verdict(row, chains) if v else CONSTANT) for row, v in zip(rows, varies)]


def _verdict(row: Row, chains: int) -> str:
    if math.isnan(row.r_hat):
        return "too few draws for R-hat: run longer"
    if row.apart:
        who = "chains" if chains > 1 else "the halves of the chain"
        return f"R-hat {row.r_hat:#.4g} above {R_HAT}: {who} disagree"
    for value, where in ((row.ess_bulk, ""), (row.ess_tail, " in the tails")):
        if value < DRAWS * chains:
            return f"{value:.0f} effective draws{where}, fewer than {DRAWS} a chain: run longer"
    return FINE


def sampler_rows(stats: dict[str, Float[np.ndarray, "chain draw"]]) -> list[Row]:
    """How many draws there are, and what NUTS recorded of each."""
    chains, draws = stats["lp"].shape
    single = "one chain can only be compared with itself: run four"
    short = f"fewer than {DRAWS} draws a chain: run longer"
    rows = [
        Row("chains", "sampler", chains, verdict=FINE if chains > 1 else single),
        Row("draws a chain", "sampler", draws, verdict=FINE if draws >= DRAWS else short),
    ]
    if "diverging" in stats:
        advice = "a part of the posterior may be missing; raise target_accept, or take a conjugate prior and 'gibbs'"
        rows.append(
            _share(
                "share diverging",
                stats["diverging"] != 0,
                f"draws came of transitions that diverged: {advice}",
            )
        )
    if "tree_depth" in stats:
        advice = "steps are too short for the way to go; warm up for longer"
        long = stats["tree_depth"] >= _DEPTH
        rows.append(_share("share of full trees", long, f"trees reached depth {_DEPTH}: {advice}"))
    if "energy" in stats and draws > 1:
        energy = stats["energy"]
        # Of every transition, where one draw is kept of several: from draw to draw the energy moves further.
        moved = stats.get("squared_energy_change", np.square(np.diff(energy, axis=1)))
        each = moved.mean(axis=1) / energy.var(axis=1, ddof=1)
        low = (
            f"E-BFMI {each.min():.2f} of chain {each.argmin()} below {_E_BFMI}: heavy tails are explored badly; run "
            "longer, or with a tighter prior"
        )
        rows.append(
            Row("least E-BFMI", "sampler", each.min(), verdict=FINE if each.min() >= _E_BFMI else low)
        )
    return rows


def _share(name: str, hit: np.ndarray, what: str) -> Row:
    complaint = f"{np.count_nonzero(hit)} of {hit.size} {what}"
    return Row(name, "sampler", float(hit.mean()), verdict=complaint if hit.any() else FINE)
