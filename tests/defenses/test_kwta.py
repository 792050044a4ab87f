"""kWTA: exactly k winners, whatever the ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from robustjax.defenses import kwta
from robustjax.types import InputError


@pytest.mark.parametrize("fraction", [0.1, 0.37, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_keeps_exactly_the_k_largest(fraction, ties):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 4, 4, 5)).astype(np.float32)
    maps = np.round(maps) + 7.0 if ties else maps
    out = np.asarray(kwta.k_winners(jnp.asarray(maps), fraction=fraction)).reshape(3, -1)
    flat = maps.reshape(3, -1)
    count = round(fraction * 80)
    expected = np.zeros_like(flat)
    for row, order in enumerate(np.argsort(-flat, axis=1, kind="stable")):
        expected[row, order[:count]] = flat[row, order[:count]]
    np.testing.assert_array_equal(out, expected)
    assert np.all((out != 0).sum(1) == count)


def test_gradient_reaches_the_winners_alone_and_matches_finite_differences():
    maps = jnp.asarray(np.random.default_rng(1).permutation(24).astype(np.float32).reshape(2, 3, 4))
    weights = jnp.arange(24.0).reshape(2, 3, 4)
    check_grads(lambda h: jnp.sum(weights * kwta.k_winners(h, fraction=0.25)), (maps,), order=1, eps=1e-2, rtol=1e-2)
    gradient = jax.grad(lambda h: jnp.sum(kwta.k_winners(h, fraction=0.25)))(maps)
    np.testing.assert_array_equal(gradient, kwta.k_winners(maps, fraction=0.25) > 0)


def test_by_magnitude_the_largest_in_absolute_value_win_with_their_signs():
    out = kwta.k_winners(jnp.array([[1.0, -4.0, 3.0, -2.0]]), fraction=0.5, by_magnitude=True)
    np.testing.assert_array_equal(out, [[0.0, -4.0, 3.0, 0.0]])


def test_a_guard_compares_with_signs_unless_it_is_told_otherwise():
    maps = jnp.array([[1.0, -4.0, 3.0, -2.0]])
    for options, expected in (({}, [[1.0, 0.0, 3.0, 0.0]]), ({"by_magnitude": True}, [[0.0, -4.0, 3.0, 0.0]])):
        np.testing.assert_array_equal(kwta.KWTA(0.5, **options).apply({}, maps)[0], expected)


def test_at_least_one_winner_and_the_dtype_stays():
    out = kwta.k_winners(jnp.array([[1.0, 2.0, 3.0]], jnp.bfloat16), fraction=0.01)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), [[0.0, 0.0, 3.0]])


def test_zeros_of_either_sign_are_equal_and_the_earlier_wins():
    kept = jax.jit(kwta._largest, static_argnums=1)(jnp.array([[-1.0, -0.0, 0.0, -0.0], [0.0, -0.0, -1.0, 0.0]]), 2)
    np.testing.assert_array_equal(kept, [[False, True, True, False], [True, True, False, False]])


@pytest.mark.parametrize("fraction", [0.0, 1.5, float("nan")])
def test_bad_fractions_are_named(fraction):
    with pytest.raises(InputError, match=r"fraction must be in \(0, 1\]"):
        kwta.k_winners(jnp.ones((1, 2)), fraction=fraction)
    with pytest.raises(InputError, match=r"fraction must be in \(0, 1\]"):
        kwta.defense(fraction=fraction)
