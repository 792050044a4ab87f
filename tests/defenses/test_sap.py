"""SAP: its law against closed forms in float64, for both samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from robustjax.defenses import sap
from robustjax.types import InputError

DRAWS = 4000

prune = jax.jit(sap.prune, static_argnames=("fraction", "sampler"))

# Three regimes of the exact sampler: every draw made one by one; most by first arrivals; more draws than entries.
REGIMES = {"few": (16, 0.5), "many": (400, 1.0), "more_than_entries": (200, 2.5)}


def _map(size):
    """Magnitudes over four decades, some zero, some negative, one that holds a tenth of the mass."""
    rng = np.random.default_rng(size)
    values = 10 ** rng.uniform(-4, 0, size) * rng.choice([-1, 1], size)
    values[::5] = 0.0
    values[1] = np.abs(values).sum() / 10
    return values.astype(np.float32)


def _law(values, fraction):
    num_draws = round(fraction * values.size)
    magnitudes = np.abs(values.astype(np.float64))
    probabilities = magnitudes / magnitudes.sum()
    return probabilities, num_draws, 1 - (1 - probabilities) ** num_draws


@pytest.fixture(scope="module")
def samples():
    """Pruned copies of each regime's map by both samplers, each array [DRAWS, n]."""

    def draw(sampler, regime):
        size, fraction = REGIMES[regime]
        copies = jnp.broadcast_to(jnp.asarray(_map(size))[None, :], (DRAWS, size))
        return np.asarray(prune(jax.random.key(1), copies, fraction=fraction, sampler=sampler))

    return {(sampler, regime): draw(sampler, regime) for sampler in ("multinomial", "bernoulli") for regime in REGIMES}


CASES = [(sampler, regime) for sampler in ("multinomial", "bernoulli") for regime in REGIMES]


@pytest.mark.parametrize("case", CASES)
def test_unbiased_within_four_standard_errors(samples, case):
    values, fraction = _map(REGIMES[case[1]][0]), REGIMES[case[1]][1]
    _, _, kept = _law(values, fraction)
    normal = DRAWS * kept * (1 - kept) > 10  # where the mean is close to normal; the marginals below speak for the rest
    assert normal.sum() > 4
    error = np.abs(values[normal]) * np.sqrt((1 / kept[normal] - 1) / DRAWS)
    deviation = np.abs(samples[case].astype(np.float64).mean(0) - values)[normal]
    assert np.all(deviation <= 4 * error)


@pytest.mark.parametrize("case", CASES)
def test_marginals_are_exact(samples, case):
    values, fraction = _map(REGIMES[case[1]][0]), REGIMES[case[1]][1]
    _, _, kept = _law(values, fraction)
    counts = (samples[case] != 0).sum(0)
    assert np.all(counts[values == 0] == 0)
    # Two-sided binomial tests, entry by entry; then all together: small errors of many entries add up.
    tails = np.minimum(binom.cdf(counts, DRAWS, kept), binom.sf(counts - 1, DRAWS, kept))
    assert np.min(tails) > 1e-5
    variance = DRAWS * kept * (1 - kept)
    z = ((counts - DRAWS * kept) / np.sqrt(np.maximum(variance, 1e-30)))[variance > 10]
    assert np.mean(z**2) < 1 + 5 * np.sqrt(2 / z.size)


@pytest.mark.parametrize("case", CASES)
def test_number_kept_has_the_mean_and_variance_of_its_law(samples, case):
    sampler, regime = case
    probabilities, num_draws, kept = _law(_map(REGIMES[regime][0]), REGIMES[regime][1])
    variance = np.sum(kept * (1 - kept))
    if sampler == "multinomial":
        p = probabilities
        neither = (1 - p[:, None] - p[None, :]) ** num_draws - np.outer(1 - kept, 1 - kept)
        variance += neither.sum() - np.trace(neither)
    counts = (samples[case] != 0).sum(1)
    assert abs(counts.mean() - kept.sum()) < 4 * np.sqrt(variance / DRAWS)
    assert abs(counts.var() / variance - 1) < 5 * np.sqrt(2 / DRAWS)


@pytest.mark.parametrize("case", CASES)
def test_kept_entries_carry_the_inverse_of_their_probability(samples, case):
    values = _map(REGIMES[case[1]][0])
    _, _, kept = _law(values, REGIMES[case[1]][1])
    row, column = np.nonzero(samples[case])
    np.testing.assert_allclose(samples[case][row, column], (values / np.where(kept > 0, kept, 1))[column], rtol=2e-5)


def test_a_map_draws_all_pairs_as_the_exact_law_says():
    """Three entries, two draws: all six outcomes against their probabilities."""
    values = np.array([0.5, 0.3, 0.2], np.float32)
    copies = jnp.broadcast_to(jnp.asarray(values)[None, :], (20000, 3))
    kept = np.asarray(prune(jax.random.key(3), copies, fraction=2 / 3)) != 0
    outcomes = np.bincount(kept @ np.array([1, 2, 4]), minlength=8) / 20000
    expected = np.array([0, 0.25, 0.09, 2 * 0.15, 0.04, 2 * 0.1, 2 * 0.06, 0])
    assert np.all(np.abs(outcomes - expected) <= 4 * np.sqrt(expected * (1 - expected) / 20000))


def test_no_more_entries_are_kept_than_are_drawn():
    """A hundred draws of twenty thousand equal entries: in three maps of four each finds another one."""
    kept = np.sum(np.asarray(prune(jax.random.key(5), jnp.ones((64, 20_000)), fraction=0.005)) != 0, axis=1)
    assert kept.max() == 100 and kept.min() > 90 and 0.6 < np.mean(kept == 100) < 0.95


def test_mask_and_scale_are_constants_for_the_gradient(key):
    values = jnp.asarray(_map(16).reshape(1, 2, 2, 4))
    out, vjp = jax.vjp(lambda h: prune(key, h), values)
    (gradient,) = vjp(jnp.ones_like(out))
    np.testing.assert_allclose(gradient * values, out, rtol=1e-6)
    np.testing.assert_array_equal(gradient == 0, out == 0)


@pytest.mark.parametrize("sampler", ["multinomial", "bernoulli"])
def test_zero_maps_stay_zero_and_examples_are_drawn_apart(key, sampler):
    maps = jnp.asarray(np.stack([_map(16), np.zeros(16, np.float32), _map(16), _map(16)]))
    out = prune(key, maps, sampler=sampler)
    np.testing.assert_array_equal(out[1], 0)
    assert len({tuple(row) for row in np.asarray(out[np.array([0, 2, 3])] != 0)}) > 1


def test_many_draws_are_the_plain_network(key):
    maps = jax.random.normal(key, (2, 4, 4, 2))
    np.testing.assert_allclose(prune(key, maps, fraction=1e6, sampler="bernoulli"), maps, rtol=1e-6)


def test_bfloat16_keeps_its_dtype_and_not_a_number_shows(key):
    out = prune(key, jnp.ones((1, 64), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert bool(jnp.any(out > 1.5))  # 1 / (1 - (1 - 1/64)^64) = 1.57
    assert bool(jnp.isnan(prune(key, jnp.array([[1.0, jnp.nan]]))[0, 1]))


def test_memory_is_linear_in_the_map(key):
    """No draw-by-entry table: at n = 2048 nothing is larger than a few maps."""
    maps = jnp.ones((2, 2048))
    jaxpr = jax.make_jaxpr(sap.prune)(key, maps)
    sizes = [variable.aval.size for equation in _equations(jaxpr.jaxpr) for variable in equation.outvars]
    assert max(sizes) <= 2 * maps.size


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            if hasattr(value, "jaxpr"):
                yield from _equations(value.jaxpr)
            elif hasattr(value, "eqns"):
                yield from _equations(value)


def test_bad_options_are_named(key):
    maps = jnp.ones((1, 4))
    with pytest.raises(InputError, match="fraction must be above 0 and finite, got 0"):
        prune(key, maps, fraction=0)
    with pytest.raises(InputError, match="sampler must be 'multinomial' or 'bernoulli', got 'poisson'"):
        prune(key, maps, sampler="poisson")
    with pytest.raises(InputError, match="fraction"):
        sap.defense(fraction=-1.0)
