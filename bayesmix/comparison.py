"""Models of different k or structure side by side: how well each predicts a point left out, and its evidence."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.evidence import log_evidence
from bayesmix.keys import folded
from bayesmix.trees import observed_of

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["compare"]


def compare(posteriors: Mapping[Any, xarray.DataTree], *, key: Any) -> pandas.DataFrame:
    """A table of models of the same data, the one that predicts best first.

    Two questions: the expected log density of a new point, by leave-one-out cross-validation (what predicts), and the
    log evidence (what is more probable, with the prior; it depends on how wide the prior is, LOO hardly).

    Args:
        posteriors: by name, from `sample_posterior` on the same data, with the same weights and known labels.
        key: a JAX key or an int, for the evidence.

    Returns:
        A row a model: `elpd_loo`, its standard error, the effective number of parameters `p_loo`, the difference to the
        best and that difference's standard error, `pareto_k_over`, how many points have a Pareto k above ArviZ's limit,
        where LOO cannot be trusted; `log_evidence` and its standard error, and the `probability` of each model if all
        are equally probable before. The last three are missing for a prior that is not conjugate, and for data with
        missing cells. A row of weight w is w points, one of which is left out at a time; a row whose cluster was given
        is judged by log p(x, z).

    Raises:
        ValueError: fewer than two posteriors, of different data, weights or known labels, or without pointwise
            log-likelihood.

    References:
        Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and
        WAIC, Statistics and Computing 27.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("galaxies")
        >>> options = {"key": 0, "method": "gibbs", "n_warmup": 100, "n_draws": 200}
        >>> runs = {k: bm.sample_posterior(bm.MixtureModel(k, "V", "weak"), x, **options) for k in (1, 3)}
        >>> int(bm.compare(runs, key=1).index[0])
        3
    """
    import pandas as pd

    if not isinstance(posteriors, Mapping) or len(posteriors) < 2:
        raise ValueError(
            "posteriors must be a dict from names to what sample_posterior returned, with at least two"
        )
    first = next(iter(posteriors))
    data: Any = None
    terms, rows = {}, {}
    for turn, (name, tree) in enumerate(posteriors.items()):
        for group in ("observed_data", "log_likelihood"):
            if "x" not in getattr(tree, "children", {}).get(group, ()):
                raise ValueError(
                    f"posterior {name!r} has no x in a group {group!r}; sample it with pointwise=True and keep its data"
                )
        own = dict(zip(("data", "weights", "labels"), observed_of(tree)))
        data = own if data is None else data
        other = [
            what for what, values in own.items() if not np.array_equal(values, data[what], equal_nan=True)
        ]
        if other:
            raise ValueError(
                f"posterior {name!r} is of other {other[0]} than {first!r}, so they cannot be compared"
            )
        weight = own["weights"]
        terms[name], row = _left_out(tree, weight)
        conjugate = str(tree["posterior"].attrs.get("prior", "")).startswith("conjugate")
        if conjugate and not np.isnan(own["data"]).any():
            value = log_evidence(tree, key=folded(key, turn))
            row |= {"log_evidence": value.value, "evidence_se": value.standard_error}
        rows[name] = row
    table = pd.DataFrame(rows).T.sort_values("elpd_loo", ascending=False)
    away = [_summed(terms[name] - terms[table.index[0]], weight) for name in table.index]
    for place, (title, values) in enumerate(zip(("difference", "difference_se"), zip(*away)), start=2):
        table.insert(place, title, values)
    if "log_evidence" in table:
        logs = table["log_evidence"]
        chance = np.exp(logs - logs.max())
        table["probability"] = chance / chance.sum()
    return table


def _left_out(tree: xarray.DataTree, weight: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """The expected log density of a point of each row, without it; of rows without weight zero. And a summary."""
    import arviz
    import xarray

    loo: Any = arviz.loo
    some = np.flatnonzero(weight > 0)
    groups = {name: tree[name].to_dataset() for name in ("posterior", "log_likelihood")}
    logs = groups["log_likelihood"].isel(obs_id=some)
    alone = logs.copy(data={"x": logs["x"].data / weight[some]})  # of one point
    with warnings.catch_warnings():  # the table counts such points
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        found = loo(xarray.DataTree.from_dict(groups | {"log_likelihood": alone}), pointwise=True)
    terms = np.zeros(len(weight))
    terms[some] = np.asarray(found.elpd_i)
    total, error = _summed(terms, weight)
    inside = np.asarray(alone["x"].stack(sample=("chain", "draw")).transpose("sample", "obs_id"))
    density = np.logaddexp.reduce(inside, axis=0) - np.log(len(inside))
    over = weight[some][np.asarray(found.pareto_k) > found.good_k].sum()
    return terms, {
        "elpd_loo": total,
        "se": error,
        "p_loo": float(weight[some] @ density) - total,
        "pareto_k_over": round(float(over)),
    }


def _summed(terms: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """The sum over points, and its standard error."""
    total, n = float(weight @ terms), weight.sum()
    squared = weight @ (terms - total / n) ** 2
    return total, float(np.sqrt(squared * n / max(n - 1, 1)))
