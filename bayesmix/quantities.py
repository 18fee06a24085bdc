"""What a sampler is judged by: numbers (chain, draw) of each draw, those that labels cannot touch apart from the rest.

With the clusters of each draw in order of weight, and W = Σ_k π_k Σ_k the covariance within clusters,

    log joint density        log p(x, θ), as in `sample_stats`
    log-likelihood           log p(x | θ), z summed out
    sorted weights           the largest first
    sorted distances         of means, √((μ_a - μ_b)ᵀ W⁻¹ (μ_a - μ_b)), the smallest first
    entropy of weights       -Σ π log π, nats
    entropy of sizes         the same of the shares of rows that z puts into each cluster

are the same, to the last bit, whatever the clusters are called.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.allocations import allocations_of
from bayesmix.covariance import structure_of
from bayesmix.labels import permuted
from bayesmix.mixture import GaussianMixture
from bayesmix.trees import flat_draws, mixtures

if TYPE_CHECKING:
    import xarray
    from jaxtyping import Float

__all__ = ["invariants", "parameters"]

_MOST = 10  # distances that are looked at


def invariants(posterior: xarray.DataTree) -> dict[str, Float[np.ndarray, "chain draw"]]:
    """What does not depend on the names of the clusters.

    Of more than ten distances ten are kept, evenly spaced in rank from the smallest to the largest.
    """
    batch = mixtures(posterior)
    shape = np.shape(batch.weights)[:2]
    flat = flat_draws(batch)
    flat = permuted(flat, np.argsort(-np.asarray(flat.weights), axis=1, kind="stable"))
    weights = np.asarray(flat.weights)
    lp = np.asarray(posterior["sample_stats"]["lp"])
    out = {"log joint density": lp}
    if "log_likelihood" in posterior.children:
        out["log-likelihood"] = np.asarray(posterior["log_likelihood"]["x"].sum("obs_id"))
    elif "log_prior" in posterior.children:
        out["log-likelihood"] = lp - sum(
            np.asarray(part) for part in posterior["log_prior"].data_vars.values()
        )
    out |= {f"sorted weights[{i}]": weights[:, i] for i in range(weights.shape[1])}
    distances = _distances(flat)
    ranks = np.arange(distances.shape[1])
    if ranks.size > _MOST:
        ranks = np.linspace(0, ranks[-1], _MOST).round().astype(int)
    out |= {f"sorted distances[{i}]": distances[:, i] for i in ranks.tolist()}
    out["entropy of weights"] = _entropy(weights)
    if "allocations" in posterior.children:
        z = allocations_of(posterior, "diagnose").values
        counts = [np.count_nonzero(z == cluster, axis=-1) for cluster in range(weights.shape[1])]
        out["entropy of sizes"] = _entropy(np.sort(np.stack(counts, axis=-1) / z.shape[-1], axis=-1))
    return {name: np.reshape(values, shape) for name, values in out.items()}


def _distances(flat: GaussianMixture) -> Float[np.ndarray, "s pairs"]:
    """Of the means of each two clusters, in units of W; the smallest first."""
    weights, means, covariances = np.asarray(flat.weights), np.asarray(flat.means), flat.covariances
    within = np.einsum("sk,skij->sij", weights, np.asarray(covariances))
    white = np.linalg.solve(np.linalg.cholesky(within), np.swapaxes(means, 1, 2))  # (s, d, k)
    k = weights.shape[1]
    pairs = [np.linalg.norm(white[:, :, a + 1 :] - white[:, :, a, None], axis=1) for a in range(k - 1)]
    return np.sort(np.concatenate([np.empty((len(weights), 0)), *pairs], axis=1), axis=1)


def _entropy(shares: np.ndarray) -> np.ndarray:
    from scipy.special import entr

    return entr(shares).sum(axis=-1)


def parameters(posterior: xarray.DataTree) -> dict[str, Float[np.ndarray, "chain draw"]]:
    """Every number of every parameter, by its coordinates: "means[0, waiting]".

    Of a symmetric matrix each pair once, of a covariance that clusters share the first cluster's, and no cell that is
    zero by its structure. Where draws of a program were permuted, sites that were not permuted with them are left out.
    """
    dataset = posterior["posterior"].to_dataset()
    if dataset.attrs.get("prior") == "program" and dataset.attrs.get("share_permuted", 0) > 0:
        dataset = dataset[[name for name, values in dataset.data_vars.items() if "cluster" in values.dims]]
    row = structure_of(dataset.attrs["covariance"], dataset.sizes["feature"])
    out = {}
    for name, variable in dataset.data_vars.items():
        values = variable.transpose("chain", "draw", ...)
        dims = [str(dim) for dim in values.dims[2:]]
        names = [values[dim].values if dim in values.coords else np.arange(values.sizes[dim]) for dim in dims]
        for place in itertools.product(*(range(len(known)) for known in names)):
            at: dict[str, int] = dict(zip(dims, place))
            cell: Any = values.values[:, :, *place]
            if name == "covariances":
                i, j = at["feature"], at["feature_bis"]
                own = {2: i <= j, 1: i == j, 0: i == j == 0}[row.form.axes]
                if not own or (row.shared and at["cluster"] > 0):
                    continue
            label = ", ".join(str(known[i]) for known, i in zip(names, place))
            out[f"{name}[{label}]" if label else str(name)] = cell
    return out
