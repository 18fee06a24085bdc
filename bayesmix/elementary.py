"""exp and log of softmax sums, what normal numbers are made with, and log gamma, for XLA on a processor.

It computes float64 logarithms and cosines one by one and takes twice as long as it need over exponentials: together
half of an EM step with few features. Here the argument is split into a power of two, which is set or read as bits, and
a remainder near zero or one, of which a polynomial is taken: straight-line code, which becomes vector instructions. exp
is right to 1 unit in the last place, log to 3. Other precisions and other devices have XLA's own functions. Ours are
written by operations of `lax`, than which the operators of arrays take several times as long to trace.

XLA's log gamma takes a third of a second to compile, most of it for arguments below zero; `gammaln` is Stirling's
series.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix import lean
from bayesmix.compilation import in_kernel

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["cos_turn", "exp_below", "gammaln", "log_positive", "multigammaln"]

_LEAST = -708.0  # exp of less is below the smallest normal number
_SHIFT = 1.5 * 2.0**52  # added to a float, leaves its nearest integer in the last bits
_SHIFT_BITS = 0x4338 << 48
_EXPONENT, _BIAS = 52, 1023  # the bit above which it is kept, and what is added to it
_ROOT_BITS = (_BIAS << _EXPONENT) - 0x3FE6A09E667F3BCD  # from the bits of sqrt(1/2) to those of one
# log 2 in two parts, of which the first has so few digits that its multiples are exact
_LN2 = 0.6931471803691238, 1.9082149292705877e-10
# Polynomials of least degree that err by less than rounding: through 1 at 0, (exp(r) - 1) / r at Chebyshev's points
# between -log 2 / 2 and log 2 / 2; and 2 atanh(s) / s, in the square of s = (m - 1) / (m + 1), between its ends.
_EXP = [
    1.0, 1.0, 0.5000000000000006, 0.1666666666666667, 0.041666666666573066, 0.008333333333326136,
    0.001388888893251478, 0.00019841269874820627, 2.480150431378554e-05, 2.7557255400206422e-06,
    2.7626371065696354e-07, 2.5105217004720745e-08,
]  # fmt: skip
_LOG = [
    2.0, 0.6666666666666765, 0.3999999999930191, 0.2857142876073828, 0.22222197046404274, 0.18183632241617026,
    0.153125131147383, 0.14809867572313062,
]  # fmt: skip
# B_2i / (2i (2i - 1)), B Bernoulli's numbers
_STIRLING = [1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156]
_FAR = 8  # where Stirling's series has that many digits
_SIN = [(-1) ** i / math.factorial(2 * i + 1) for i in range(12)]


def _choose(own: Callable[[Array], Array], theirs: Callable[[Array], Array], x: Array) -> Array:
    if x.dtype != jnp.float64:
        return theirs(x)
    return own(x) if in_kernel() else lax.platform_dependent(x, cpu=own, default=theirs)


def _bits(x: Array, dtype: Any) -> Array:
    return lax.bitcast_convert_type(x, dtype)


def _series(coefficients: list[float], x: Array) -> Array:
    total = lax.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = lax.add(lax.mul(total, x), coefficient)
    return total


@jax.custom_jvp
def exp_below(x: Array) -> Array:
    """exp(x) of x <= 0: exactly 0 below -708, 1 at 0, NaN of NaN."""
    return _choose(_exp, jnp.exp, x)


def _exp(x: Array) -> Array:
    y = lax.max(x, _LEAST)
    n = lax.round(lax.mul(y, math.log2(math.e)), lax.RoundingMethod.TO_NEAREST_EVEN)
    rest = lax.sub(lax.sub(y, lax.mul(n, _LN2[0])), lax.mul(n, _LN2[1]))
    more = lax.shift_left(_bits(lax.add(n, _SHIFT), np.int64), _EXPONENT)  # in the exponent: times 2^n
    times = lax.add(_bits(_series(_EXP, rest), np.int64), more)
    return lean.where(lax.lt(x, _LEAST), 0, _bits(times, np.float64))


@jax.custom_jvp
def log_positive(x: Array) -> Array:
    """log(x) of normal numbers x > 0: exactly 0 at 1, NaN of NaN and infinity."""
    return _choose(_log, jnp.log, x)


def _log(x: Array) -> Array:
    # x = 2^n m, m between the roots of 1/2 and 2
    n = lax.shift_right_arithmetic(lax.add(_bits(x, np.int64), _ROOT_BITS), _EXPONENT)
    m = lax.mul(x, _bits(lax.sub((2 * _BIAS) << _EXPONENT, lax.shift_left(n, _EXPONENT)), np.float64))
    exponent = lax.sub(_bits(lax.add(n, _SHIFT_BITS - _BIAS), np.float64), _SHIFT)
    s = lax.div(lax.sub(m, 1.0), lax.add(m, 1.0))
    rest = lax.add(lax.mul(s, _series(_LOG, lax.mul(s, s))), lax.mul(exponent, _LN2[1]))
    return lax.add(lax.mul(exponent, _LN2[0]), rest)


def cos_turn(x: Array) -> Array:
    """cos(2 pi x) of 0 <= x <= 1, to 4e-16."""
    return _choose(_cos_turn, lambda x: jnp.cos(2 * math.pi * x), x)


def _cos_turn(x: Array) -> Array:
    y = 2 * math.pi * (0.25 - jnp.minimum(x, 1 - x))  # the sine of what is left to a quarter
    return y * _series(_SIN, y * y)


def gammaln(x: Any) -> Array:
    """log Gamma(x) of x > 0, to 5e-15 absolute or relative."""
    x = jnp.asarray(x, float)
    near = jnp.minimum(x, _FAR)
    y = jnp.where(x < _FAR, near + _FAR, x)
    steps = jnp.where(x < _FAR, math.prod([near + i for i in range(_FAR)]), 1)
    series = _series(_STIRLING, 1 / (y * y)) / y
    return (y - 0.5) * jnp.log(y) - y + math.log(2 * math.pi) / 2 + series - jnp.log(steps)


def multigammaln(x: Any, d: int) -> Array:
    """Log of the multivariate gamma function of x > (d - 1) / 2."""
    each = gammaln(jnp.asarray(x, float)[..., None] - jnp.arange(d) / 2)
    return jnp.sum(each, axis=-1) + d * (d - 1) / 4 * math.log(math.pi)


# Bits have no derivative.
@exp_below.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    value = exp_below(*primals)
    return value, value * tangents[0]


@log_positive.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return log_positive(*primals), tangents[0] / primals[0]
