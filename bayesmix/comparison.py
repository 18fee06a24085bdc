"""Models of different k or structure side by side: how well each predicts a point left out, and its evidence."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix.evidence import log_evidence
from bayesmix.inputs import as_key

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["compare"]


def compare(posteriors: Mapping[Any, xarray.DataTree], *, key: Any) -> pandas.DataFrame:
    """A table of models of the same data, the one that predicts best first.

    Two questions: the expected log density of a new point, by leave-one-out cross-validation (what predicts), and the
    log evidence (what is more probable, with the prior; it depends on how wide the prior is, LOO hardly).

    Args:
        posteriors: by name, from `sample_posterior` on the same data.
        key: a JAX key or an int, for the evidence.

    Returns:
        A row a model: `elpd_loo`, its standard error, the effective number of parameters `p_loo`, the difference to the
        best and that difference's standard error, `pareto_k_over`, how many points have a Pareto k above ArviZ's limit,
        where LOO cannot be trusted; `log_evidence` and its standard error, and the `probability` of each model if all
        are equally probable before. The last three are missing for a prior that is not conjugate.

    Raises:
        ValueError: fewer than two posteriors, of different data, or without pointwise log-likelihood.

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
    import arviz
    import pandas as pd

    if not isinstance(posteriors, Mapping) or len(posteriors) < 2:
        raise ValueError(
            "posteriors must be a dict from names to what sample_posterior returned, with at least two"
        )
    first = next(iter(posteriors))
    data: Any = None
    results, rows = {}, {}
    loo: Any = arviz.loo
    for turn, (name, tree) in enumerate(posteriors.items()):
        try:
            x, _ = np.asarray(tree["observed_data"]["x"]), tree["log_likelihood"]["x"]
        except KeyError as error:
            raise ValueError(
                f"posterior {name!r} has no {error}; sample it with pointwise=True and keep its data"
            ) from None
        if data is None:
            data = x
        elif x.shape != data.shape or not np.array_equal(x, data):
            raise ValueError(
                f"posterior {name!r} is of other data than {first!r}, so they cannot be compared"
            )
        with warnings.catch_warnings():  # the table counts such points
            warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
            found = results[name] = loo(tree, pointwise=True)
        row = {"elpd_loo": found.elpd, "se": found.se, "p_loo": found.p}
        row["pareto_k_over"] = int((np.asarray(found.pareto_k) > found.good_k).sum())
        if str(tree["posterior"].attrs.get("prior", "")).startswith("conjugate"):
            value = log_evidence(tree, key=jax.random.fold_in(as_key(key), turn))
            row |= {"log_evidence": value.value, "evidence_se": value.standard_error}
        rows[name] = row
    table = pd.DataFrame(rows).T.sort_values("elpd_loo", ascending=False)
    best = results[table.index[0]]
    away = {name: np.asarray(found.elpd_i) - np.asarray(best.elpd_i) for name, found in results.items()}
    table.insert(2, "difference", [away[name].sum() for name in table.index])
    table.insert(3, "difference_se", [away[name].std() * np.sqrt(len(data)) for name in table.index])
    if "log_evidence" in table:
        logs = table["log_evidence"]
        chance = np.exp(logs - logs.max())
        table["probability"] = chance / chance.sum()
    return table
