"""Functions of `jax.numpy` by `lax`: the same numbers, and no promotion."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from bayesmix import lean
from bayesmix.devices import double_precision
from bayesmix.passes import largest

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 4, 3))
ARRAYS = [
    (A > 0, A, B),
    (A > 0, A, 0),
    (A > 0, np.nan, B),
    (np.array(True), A, B),
    (True, A, B),
    ((A > 0)[:, :1], A, B[:1]),
    ((A > 0)[0], A[:, :1], 2.5),
    (A[:1, None] > 0, A, B[0]),
    ((A > 0), 1, 0),
    ((A > 0), 1.5, 0),
    ((A > 0), np.arange(3), 7),
    ((A > 0), A > B, False),
]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("case", range(len(ARRAYS)))
def test_where_is_where(case, traced):
    with double_precision():
        # Python's numbers stay what they are, as they do where they are used.
        given = [jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in ARRAYS[case]]
        arrays = [a for a in given if isinstance(a, jax.Array)]

        def of(*some):
            rest = iter(some)
            return lean.where(*(next(rest) if isinstance(a, jax.Array) else a for a in given))

        ours = (jax.jit(of) if traced else of)(*arrays)
        theirs = jnp.where(*ARRAYS[case])
    assert ours.dtype == theirs.dtype
    assert_array_equal(ours, theirs)


@pytest.mark.parametrize("pair", [(A, A > 0), (A.astype(np.float32), B), (np.arange(3), 0.5)])
def test_types_are_not_mixed(pair):
    with double_precision(), pytest.raises((TypeError, ValueError)):
        lean.where(A > 0, *(jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in pair))


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_sums_and_whether_any_and_all_are_those_of_numpy(axis):
    with double_precision():
        x = jnp.asarray(A)
        np.testing.assert_allclose(lean.sum(x, axis), A.sum(axis), rtol=1e-14)
        for truth in (A > 0, A > -9, A > 9):
            assert_array_equal(lean.any(jnp.asarray(truth), axis), truth.any(axis))
            assert_array_equal(lean.all(jnp.asarray(truth), axis), truth.all(axis))


def test_what_is_inlined_is_the_same_without_functions_for_its_operations():
    apart = jax.jit(lambda x: jnp.maximum(x, 0))  # as those of `jax.numpy` are

    def function(x, y, *, exact):
        return apart(x) / (1 + y * y) - jnp.sum(x > y) if exact else x

    def traced(of):
        return jax.make_jaxpr(partial(of, exact=True))(A, B)

    with double_precision():
        assert "jit" in {e.primitive.name for e in traced(function).eqns}
        assert "jit" not in {e.primitive.name for e in traced(lean.inlined(function)).eqns}
        ours, theirs = (jax.jit(partial(of, exact=True))(A, B) for of in (lean.inlined(function), function))
    assert_array_equal(ours, theirs)


def test_the_largest_of_many_logits_is_found_by_a_loop_inside_a_function_that_is_inlined():
    with double_precision():
        traced = jax.make_jaxpr(lean.inlined(lambda a: largest(a)))(np.zeros((500, 4)))
    assert len(traced.eqns) < 50
