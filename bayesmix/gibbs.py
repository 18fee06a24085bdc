"""Conjugate blocked Gibbs sampling: all z given θ, then all of θ given z, as a NumPyro kernel.

A sweep draws z in the one pass over the data that gives EM its statistics, then θ from its law given them
(`conjugate`). Nothing is rejected or tuned. Everything is in the units of the loop.

This module imports NumPyro; import it where it is used.

References:
    Diebolt & Robert (1994), Estimation of finite mixture distributions through Bayesian sampling, JRSS B 56.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from numpyro.infer.mcmc import MCMCKernel

from bayesmix.conjugate import Parameters, conditional_law, draw
from bayesmix.covariance import Covariance, Structure
from bayesmix.density import log_determinant
from bayesmix.missing import covariance_of
from bayesmix.mixture import GaussianMixture
from bayesmix.observations import Observations
from bayesmix.prior import ConjugatePrior
from bayesmix.statistics import Statistics, summarize
from bayesmix.variates import split, uniform

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["GibbsKernel", "GibbsState"]


class GibbsState(NamedTuple):
    """What the chain carries; `z` is NumPyro's name for what is sampled."""

    z: Parameters
    rng_key: Any


class GibbsKernel(MCMCKernel):
    """The sweep as a kernel of `numpyro.infer.MCMC`, of one chain.

    Args:
        observations: points whose cluster is unknown.
        fixed: statistics of the points whose cluster is given.
        prior: in the units of the observations.
        row: a structure whose clusters share everything or nothing.
        counts: weights are whole numbers other than one, each so many draws of z.
        permute: a random permutation of the clusters that no point names, proposed after each sweep; under a prior that
            does not tell clusters apart it is always taken, so that all labellings are visited alike.
        few: a pass over the points is one kernel.
    """

    def __init__(
        self,
        observations: Observations,
        fixed: Statistics,
        prior: ConjugatePrior,
        row: Structure,
        *,
        counts: bool = False,
        permute: bool = False,
        few: bool = False,
    ) -> None:
        self._observations, self._fixed, self._prior, self._row = observations, fixed, prior, row
        self._responsibilities = "sampled_counts" if counts else "sampled"
        self._permute, self._few = permute, few

    @property
    def sample_field(self) -> str:
        return "z"

    def init(
        self,
        rng_key: Any,
        num_warmup: int,
        init_params: Parameters,
        model_args: tuple,
        model_kwargs: dict,
    ) -> GibbsState:
        return GibbsState(init_params, rng_key)

    def sample(self, state: GibbsState, model_args: tuple, model_kwargs: dict) -> GibbsState:
        key, coin, noise, shuffle = split(state.rng_key, 4)
        weights, means, cholesky = state.z
        structure, axes = self._row, self._row.form.axes
        factor = jnp.swapaxes(cholesky, -1, -2) if axes == 2 else cholesky
        # The values are not looked at but by rows with missing cells: the factor says all.
        values = factor if self._observations.gaps is None else covariance_of(structure.form, factor)
        mixture = GaussianMixture(weights, means, Covariance(values, structure.name))
        log_det = log_determinant(mixture.covariance, factor, means.shape[-1])
        statistics = summarize(
            mixture,
            self._observations,
            self._responsibilities,
            key=coin,
            factor=(factor, log_det),
            few=self._few,
        )
        law = conditional_law(statistics + self._fixed, self._prior, structure)
        drawn = draw(noise, law, structure)
        if self._permute:
            order = self._proposed(shuffle, drawn.weights)
            drawn = drawn._replace(weights=drawn.weights[order], means=drawn.means[order])
            if not structure.shared:
                drawn = drawn._replace(cholesky=drawn.cholesky[order])
        return GibbsState(drawn, key)

    def _proposed(self, words: Any, weights: Array) -> Array:
        """Which cluster each label is to have: another permutation, or the one that there is where it is refused.

        Of all that depends on the labels only the Dirichlet density of the weights can differ.
        """
        k = weights.size
        each, free = jnp.arange(k), self._fixed.moments[:, 0] <= 0
        random = uniform(words, (k,))
        rank = jnp.sum(free & (random < random[:, None]), axis=1)
        place = jnp.sum(free & (each < each[:, None]), axis=1)
        order = jnp.where(free, jnp.sum(each * (free & (place == rank[:, None])), axis=1), each)
        logs = jnp.log(jnp.maximum(weights, 1e-300))
        gain = jnp.sum((self._prior.concentration - 1.0) * (logs[order] - logs))
        return jnp.where(jnp.log(uniform(words, (1,), first=k)) < gain, order, each)
