"""The exact posterior of a few points under a conjugate prior: the sum over all k^n allocations, each in closed form.

Given z, with n_k and x̄_k the count and mean of a cluster, κ = mean_count, m the prior mean, ν and S the degrees of freedom
and the scale, everything is a normal–inverse-Wishart (Murphy 2007, Conjugate Bayesian analysis of the Gaussian
distribution, section 9), or a normal–inverse-gamma where the storage is not full.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from bayesmix.covariance import STRUCTURES


class Exact(NamedTuple):
    """What enumeration says; expectations are infinite where ν is too small for them to exist."""

    log_evidence: float  # log p(x), nats
    responsibilities: np.ndarray  # p(z_n = k | x) (n, k)
    together: np.ndarray  # p(z_n = z_m | x) (n, n)
    weights: np.ndarray  # E[weights | x] (k,)
    means: np.ndarray  # (k, d)
    covariances: np.ndarray  # (k, d, d)
    precisions: np.ndarray  # (k, d, d)


def log_evidence(x, prior, n_components, structure="VVV"):
    """log p(x), exact, in nats; x is (n, d) with k^n small."""
    return enumerate_posterior(x, prior, n_components, structure).log_evidence


def enumerate_posterior(x, prior, n_components, structure="VVV", given=-1):
    """`Exact`, for a structure whose covariances share everything or nothing; `given` are known clusters, or -1."""
    x = np.asarray(x, float)
    (n, d), k = x.shape, n_components
    row = STRUCTURES[structure]
    assert not row.constrained, structure
    assert k**n <= 10**5, f"{k}**{n} allocations are too many"
    alpha = np.broadcast_to(np.asarray(prior.concentration, float), (k,))
    kappa, m = prior.mean_count, np.asarray(prior.mean)
    z = np.array(list(itertools.product(range(k), repeat=n)))
    z = z[((np.asarray(given) < 0) | (z == given)).all(axis=1)]
    chosen = (z[:, :, None] == np.arange(k)).astype(float)  # (allocations, n, k)
    count = chosen.sum(axis=1)
    after = kappa + count
    center = (kappa * m + np.einsum("ank,nd->akd", chosen, x)) / after[..., None]
    scatter = np.einsum("ank,ni,nj->akij", chosen, x, x) + kappa * np.outer(m, m)
    scatter -= after[..., None, None] * center[..., :, None] * center[..., None, :]
    logs = special.gammaln(alpha.sum()) - special.gammaln(alpha.sum() + n)
    logs = logs + (special.gammaln(alpha + count) - special.gammaln(alpha)).sum(axis=1)
    logs += d / 2 * np.log(kappa / after).sum(axis=1)
    if row.shared:
        parts, covariances, precisions = _of_covariances(
            np.full((len(z), 1), float(n)), scatter.sum(axis=1, keepdims=True), prior, row.storage
        )
        covariances, precisions = (np.repeat(a, k, axis=1) for a in (covariances, precisions))
    else:
        parts, covariances, precisions = _of_covariances(count, scatter, prior, row.storage)
    logs += parts.sum(axis=1)
    chance = special.softmax(logs)
    weights = (alpha + count) / (alpha.sum() + n)
    together = np.einsum("ank,amk->anm", chosen, chosen)
    values = (chosen, together, weights, center, covariances, precisions)
    expected = [np.tensordot(chance, value, axes=1) for value in values]
    return Exact(float(special.logsumexp(logs)), *expected)


def _of_covariances(count, scatter, prior, storage):
    """Of counts (a, g) and scatters (a, g, d, d) that share a Σ: log ∫ p(x | Σ) p(Σ), E[Σ] and E[Σ⁻¹]."""
    d, nu, s = scatter.shape[-1], prior.degrees_of_freedom, np.asarray(prior.scale)
    log_pi = -count * d / 2 * math.log(math.pi)
    if storage == "full":
        after, total = nu + count, s + scatter
        logs = special.multigammaln(after.ravel() / 2, d).reshape(after.shape) - special.multigammaln(
            nu / 2, d
        )
        logs += nu / 2 * np.linalg.slogdet(s)[1] - after / 2 * np.linalg.slogdet(total)[1]
        degrees = after[..., None, None]
        return (
            log_pi + logs,
            total / (degrees - d - 1) if nu > d + 1 else np.full_like(total, np.inf),
            degrees * np.linalg.inv(total),
        )
    cells = np.diagonal(scatter, axis1=-2, axis2=-1)
    if storage == "spherical":  # one variance, of which every point says d things
        cells, count = cells.sum(axis=-1, keepdims=True), count * d
    after, total = (nu + count)[..., None], s + cells
    logs = special.gammaln(after / 2) - special.gammaln(nu / 2)
    logs = logs + nu / 2 * np.log(s) - after / 2 * np.log(total)
    variance = total / (after - 2) if nu > 2 else np.full_like(total, np.inf)
    dense = np.eye(d)
    return log_pi + logs.sum(axis=-1), variance[..., None] * dense, (after / total)[..., None] * dense
