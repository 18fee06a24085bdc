"""k-means as a limit of the mixture, not a second algorithm.

Give every cluster the same weight and the same sphere, Σ_k = σ² I. Then

    log p(x, z=k) = -|x - m_k|² / 2σ² + a constant,

so the most probable cluster is the nearest mean, whatever σ is. Assign each point wholly to it (hard
responsibilities), hold the weights, and the M-step moves each mean to the average of its points: Lloyd's
algorithm, step for step. Soft EM does the same as σ → 0, because r ∝ exp(-|x - m|² / 2σ²) then puts all of a
point on its nearest mean. What k-means minimises is the free energy of the loop with its sign changed:
-F = n d/2 log(2πσ²) + inertia / 2σ² + n log k.

References:
    Lloyd (1982), Least squares quantization in PCM. Celeux & Govaert (1992), section 3.
    Kulis & Jordan (2012), Revisiting k-means: new algorithms via Bayesian nonparametrics, section 2.1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bayesmix.em import solve
from bayesmix.inputs import as_count
from bayesmix.results import Fit

__all__ = ["kmeans"]


def kmeans(
    x: Any,
    n_components: int,
    *,
    n_starts: int | None = None,
    init: Any = None,
    sample_weight: Any = None,
    key: Any = 0,
    max_steps: int | None = None,
    batch_size: int | None = None,
) -> Fit:
    """Minimise Σ_n |x_n - m_z(n)|²: the one loop with hard responsibilities, equal weights and one sphere.

    An emptied cluster is moved to the point farthest from its own centre.

    Args:
        x: data (n, d), or (n,) for one feature.
        n_components: the number of clusters k.
        n_starts: how many starts, 10 by default; the smallest inertia wins.
        init: "k-means++" (default) or "random", both from 131,072 rows at most; means (k, d), labels (n,) or a
            `GaussianMixture`.
        sample_weight: (n,); an integer weight is repetition, zero is absence.
        key: seeds the starts.
        max_steps: at most so many steps, 1,000 by default; the loop stops when the assignment repeats.
        batch_size: mini-batch k-means, for very many rows: each step sees so many rows alone, and the sums move
            towards the batch's by a decreasing step; 4 starts by default, of `max_steps` steps each.

    Returns:
        A `Fit` with `inertia`, `labels`, and the centres as `mixture.means`. Its mixture is the sphere around
        each centre with σ² = inertia / (n d).

    Raises:
        ValueError: bad data or options, or fewer rows than clusters.

    Status:
        converged (inertia 0 too); reached max_steps; finished (batches); fewer distinct rows than clusters.

    Example:
        >>> import bayesmix as bm
        >>> fit = bm.kmeans([0.0, 0.1, 0.2, 9.8, 9.9, 10.0, 10.1], 2)
        >>> sorted(fit.mixture.means[:, 0].round(2).tolist()), round(fit.inertia, 4)
        ([0.1, 9.95], 0.07)
    """
    k = as_count(n_components, "n_components")
    fit = solve(
        k,
        "EII",
        x,
        method="hard" if batch_size is None else "online",
        n_starts=n_starts,
        init=init,
        sample_weight=sample_weight,
        hold=("weights", "covariance"),
        key=key,
        max_steps=max_steps,
        batch_size=batch_size,
        relocate=True,
    )
    return replace(fit, hold=("weights",))
