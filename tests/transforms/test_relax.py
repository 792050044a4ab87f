"""Relaxed derivatives, each against its formula; values that stay what they are; and attacks that find their way."""

import functools

import hidden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, defenses
from robustjax.transforms import inspect, quicken, relax
from robustjax.transforms._relax import relaxable, relaxed
from robustjax.types import InputError

X = jnp.asarray(hidden.IMAGES)
DIRECTION = jnp.asarray(np.random.default_rng(4).normal(size=X.shape), jnp.float32)


def gradient_of(function):
    """Of a weighted sum of all outputs, compiled."""

    def total(x):
        outputs = function(x)
        return jnp.sum(outputs @ jnp.arange(1.0, 1.0 + outputs.shape[-1]))

    return jax.jit(jax.grad(total))


def gradient(function, x=X):
    return gradient_of(function)(x)


@pytest.mark.parametrize("name", hidden.HIDES)
def test_values_stay_and_what_hides_a_gradient_gives_one(name):
    function, kinds = hidden.HIDES[name]
    relaxed = relax(function)
    np.testing.assert_array_equal(relaxed(X), function(X))
    np.testing.assert_allclose(jax.jit(relaxed)(X), jax.jit(function)(X), rtol=1e-6)
    found = gradient(lambda x: relaxed(x))
    assert np.all(np.isfinite(found))
    # A batch of which the mean is subtracted has no gradient of its sum.
    assert name == "batch statistics" or np.all(np.any(found != 0, axis=(1, 2, 3)))
    # Of the findings alone as well.
    if not kinds <= {"precision", "random", "batch_dependent"}:
        alone = gradient(relax(function, kinds=inspect(function, X)))
        assert np.all(np.isfinite(alone)) and np.any(alone != 0)


@pytest.mark.parametrize("name", [*hidden.HONEST])
def test_an_honest_function_keeps_its_values_and_finite_gradients(name):
    function = hidden.HONEST[name]
    np.testing.assert_array_equal(relax(function)(X), function(X))
    assert np.all(np.isfinite(gradient(relax(function))))
    # Without a finding nothing is relaxed.
    np.testing.assert_allclose(gradient(relax(function, kinds=inspect(function, X))), gradient(function), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("round", lambda x: hidden.linear(4.0 * x)),
        ("cast", lambda x: hidden.linear(4.0 * x)),
        ("lookup", lambda x: hidden.linear(x)),
        ("detached", hidden.linear),
        ("detached in part", lambda x: hidden.linear(x * x)),
        ("lying rule", lambda x: hidden.linear(x**2)),
        ("lying vjp", lambda x: hidden.linear(x**2)),
        ("lying rule of what closes over weights", lambda x: hidden.linear(2.0 * x)),
        ("bits", lambda x: hidden.linear(255.0 * x)),
        ("rounding in an honest vjp", lambda x: hidden.linear(4.0 * x)),
        ("rounding in an honest jvp", lambda x: hidden.linear(4.0 * x)),
        ("rounding in an honest vjp in a loop", lambda x: hidden.linear(16.0 * x)),
        ("remainder", lambda x: hidden.linear(0.5 * x)),
        (
            "product of integers",
            lambda x: 127.0 * x.reshape(len(x), -1) @ jnp.trunc(20.0 * jnp.asarray(hidden.WEIGHTS)),
        ),
        ("clipped everywhere", lambda x: hidden.linear(hidden.steep(x))),
        ("bounded on both sides", lambda x: hidden.linear(hidden.steep(x))),
        ("below a bound", hidden.linear),
        ("masked bits", lambda x: hidden.linear(255.0 * x)),
        ("clamped", hidden.linear),
        ("python", hidden.linear),
        ("round in scan", hidden.linear),
        ("floor in checkpoint", lambda x: hidden.linear(4.0 * x)),
    ],
)
def test_derivatives_are_those_of_the_function_behind(name, same_as):
    np.testing.assert_allclose(gradient(relax(hidden.HIDES[name][0])), gradient(same_as), rtol=1e-5, atol=1e-6)


def test_a_lookup_is_differentiated_by_the_slope_of_its_table():
    table = jnp.arange(18.0) ** 2
    # At index 4 + 1 / 2 the neighbours of entry 4 are 9 and 25.
    slope = jax.grad(relax(lambda x: table[(16.0 * x).astype(jnp.int32)]))(4.5 / 16)
    np.testing.assert_allclose(slope, 16.0 * (25.0 - 9.0) / 2.0, rtol=1e-6)


def integers(x):
    return (255.0 * x).astype(jnp.int32)


PLACES = np.asarray([3, 1, 2, 0])


@pytest.mark.parametrize(
    ("function", "same_as"),
    [
        (lambda q: q**2, lambda q, real: real**2),
        (lambda q: jnp.square(q), lambda q, real: real**2),
        (lambda q: jnp.abs(q - 100), lambda q, real: jnp.sign(q - 100.0) * real),
        (lambda q: jax.lax.clamp(50, q, 200), lambda q, real: jnp.where((q > 50) & (q < 200), real, 0.0)),
        (
            lambda q: jnp.pad(q, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :4],
            lambda q, real: jnp.roll(real, 1, 1).at[:, 0].set(0.0),
        ),
        (lambda q: q[:, PLACES], lambda q, real: real[:, PLACES]),
        (
            lambda q: jax.lax.dynamic_slice(q, (0, 2, 0, 0), (2, 2, 4, 1)).repeat(2, 1),
            lambda q, real: real[:, 2:].repeat(2, 1),
        ),
    ],
)
def test_integers_move_as_the_numbers_they_were_cut_from(function, same_as):
    network = lambda x: hidden.linear(function(integers(x)).astype(jnp.float32))  # noqa: E731
    np.testing.assert_array_equal(relax(network)(X), network(X))
    q = integers(X).astype(jnp.float32)
    expected = gradient(lambda x: hidden.linear(same_as(q, 255.0 * x)))
    np.testing.assert_allclose(gradient(relax(network)), expected, rtol=1e-4, atol=1e-3)


def test_a_mask_that_is_moved_about_is_mixed_by_the_same_sigmoids():
    mask = relax(lambda x: (x > 0.4).astype(jnp.float32))
    for moved in (lambda m: m[:, PLACES], lambda m: jnp.pad(m, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :4]):
        expected = gradient(lambda x, moved=moved: hidden.linear(x * moved(mask(x))))
        found = gradient(relax(lambda x, moved=moved: hidden.linear(x * moved(x > 0.4).astype(x.dtype))))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("each", [False, True])
def test_branches_are_mixed_by_the_probability_of_their_own_number(each):
    branches = [lambda y: 0.0 * y, lambda y: 2.0 * y, lambda y: -y]

    def chosen(x):  # an index that is 2 above a half and 1 below it
        return jax.lax.switch(jnp.where(x > 0.5, 2, 1), branches, x)

    function = jax.vmap(chosen) if each else chosen
    x = jnp.asarray([0.3, 0.9]) if each else jnp.float32(0.3)

    def soft(x):
        share = jax.nn.sigmoid((x - 0.5) / jax.lax.stop_gradient(jnp.abs(x - 0.5)))
        return share * -x + (1.0 - share) * 2.0 * x

    slope = lambda function: jax.grad(lambda x: jnp.sum(function(x)))(x)  # noqa: E731
    np.testing.assert_array_equal(relax(function)(x), function(x))
    np.testing.assert_allclose(slope(relax(function)), slope(soft), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_a_threshold_is_mixed_by_the_sigmoid_of_its_margin(temperature):
    def mixed(x):
        margin = x - 0.4
        width = temperature * jnp.mean(jnp.abs(margin), axis=(1, 2, 3), keepdims=True)
        return jax.nn.sigmoid(margin / jax.lax.stop_gradient(width)) * x

    found = gradient(relax(hidden.HIDES["threshold"][0], temperature=temperature))
    np.testing.assert_allclose(found, gradient(lambda x: hidden.linear(mixed(x))), rtol=1e-4, atol=1e-6)
    traced = jax.jit(lambda t: gradient(relax(hidden.HIDES["threshold"][0], temperature=t)))
    np.testing.assert_allclose(traced(temperature), found, rtol=1e-5, atol=1e-6)


def test_bits_that_become_floats_again_move_in_proportion():
    x = jnp.asarray([-3.3, -0.2, 0.7, 5.1])
    slope = lambda function: jax.grad(lambda x: jnp.sum(relax(function)(x)))(x)  # noqa: E731
    np.testing.assert_array_equal(slope(lambda x: hidden.of_bits(hidden.bits_of(x) & 0x7FFFFFFF)), jnp.sign(x))
    np.testing.assert_array_equal(slope(lambda x: hidden.of_bits(hidden.bits_of(x) + (1 << 23))), jnp.full(4, 2.0))
    cut = lambda x: hidden.of_bits(hidden.bits_of(x) >> 19 << 19)  # noqa: E731
    np.testing.assert_allclose(slope(cut), cut(x) / x, rtol=1e-6)
    assert np.isfinite(jax.grad(relax(cut))(0.0))


def test_an_order_by_bits_has_no_derivative_of_its_own():
    rows = X.reshape(len(X), -1)
    winners = lambda x: defenses.kwta.k_winners(x, fraction=0.25)  # noqa: E731
    found = jax.grad(lambda x: jnp.sum(relax(winners)(x)))(rows)
    # Nothing says how near the others are: all of them pass.
    np.testing.assert_array_equal(found, jnp.ones_like(rows))


@pytest.mark.parametrize("rule", [jax.nn.relu6, jax.nn.relu, jax.nn.silu, jax.nn.softplus, jax.nn.softmax])
def test_a_rule_that_says_more_than_its_function_is_kept(rule):
    function = lambda x: rule(20.0 * (x - 0.5))  # noqa: E731
    np.testing.assert_allclose(gradient(relax(function, kinds=("step", "custom_rule"))), gradient(function), rtol=1e-6)
    np.testing.assert_allclose(gradient(relax(jax.nn.relu6)), gradient(jax.nn.relu6), rtol=1e-6)


def test_bounds_are_left_out_of_the_images_that_they_hold_everywhere():
    def network(x):
        return jnp.clip(x, 0.0, 1.0)

    x = jnp.asarray([[-1.0, 2.0, 3.0], [-1.0, 0.5, 3.0]])
    found = jax.grad(lambda x: jnp.sum(relax(network)(x)))(x)
    np.testing.assert_array_equal(found, [[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])


def test_the_first_of_several_conditions_is_as_likely_as_all_before_it_are_not():
    def soft(x):
        below = [
            jax.nn.sigmoid((level - x) / jnp.mean(jnp.abs(jax.lax.stop_gradient(level - x)), (1, 2, 3), keepdims=True))
            for level in (0.3, 0.6)
        ]
        return 0.5 * (1.0 - below[0]) * below[1] + (1.0 - below[0]) * (1.0 - below[1])

    found = gradient(relax(hidden.HIDES["first of several"][0]))
    np.testing.assert_allclose(found, gradient(lambda x: hidden.linear(soft(x))), rtol=1e-4, atol=1e-6)


def test_a_place_among_sorted_numbers_is_a_soft_count_of_those_below():
    def soft(x):
        margin = x[..., None] - hidden.LEVELS[None, None, None, None]
        return jnp.sum(jax.nn.sigmoid(margin / jax.lax.stop_gradient(jnp.mean(jnp.abs(margin)))), axis=-1)

    expected = gradient(lambda x: hidden.linear(soft(x)))
    np.testing.assert_allclose(gradient(relax(hidden.HIDES["binned"][0])), expected, rtol=1e-4, atol=1e-6)
    table = jnp.asarray(hidden.LEVELS)
    digitized = relax(lambda x: hidden.linear(table[jnp.digitize(x, table) - 1]))
    np.testing.assert_allclose(gradient(digitized), expected / 16.0, rtol=1e-3, atol=1e-6)


def test_what_is_counted_by_bins_moves_half_to_the_next_and_half_from_the_one_before():
    jacobian = jax.jacobian(relax(lambda x: hidden.bins_counted(x).astype(jnp.float32)))(jnp.asarray([0.1, 0.5, 0.9]))
    np.testing.assert_allclose(jacobian.T, 3.0 * np.asarray([[-0.5, 0.5, 0.0], [-0.5, 0.0, 0.5], [0.0, -0.5, 0.5]]))


@pytest.mark.parametrize("name", ["integers", "levels", "counted"])
def test_integers_are_mixed_by_the_sigmoids_of_the_margins(name):
    def above(level, x):
        margin = x - level
        width = jnp.mean(jnp.abs(jax.lax.stop_gradient(margin)), axis=tuple(range(1, x.ndim)), keepdims=True)
        return jax.nn.sigmoid(margin / width)

    def soft(x):
        if name == "integers":
            return above(0.4, x)
        if name == "levels":
            return 2.0 * above(0.6, x) + (1.0 - above(0.6, x)) * above(0.3, x)
        return jnp.sum(above(jnp.arange(1.0, 5.0)[None, None, None] / 5.0, jnp.broadcast_to(x, (*x.shape[:3], 4))), 3)

    found = gradient(relax(hidden.HIDES[name][0]))
    np.testing.assert_allclose(found, gradient(lambda x: hidden.linear(soft(x))), rtol=1e-4, atol=1e-6)


def test_the_largest_is_chosen_by_a_softmax_of_the_same_scores():
    def soft(x):
        scores = hidden.linear(x)
        below = scores - jnp.max(scores, axis=1, keepdims=True)
        width = jnp.mean(jnp.abs(jax.lax.stop_gradient(below)), axis=1, keepdims=True)
        return jax.nn.softmax(below / width, axis=1)

    expected = gradient(soft)
    np.testing.assert_allclose(gradient(relax(hidden.HIDES["one-hot"][0])), expected, rtol=1e-3, atol=1e-5)
    rows = jnp.asarray(hidden.WEIGHTS[:3]).T
    found = gradient(relax(lambda x: rows[hidden.largest(hidden.linear(x))]))
    np.testing.assert_allclose(found, gradient(lambda x: soft(x) @ rows), rtol=1e-3, atol=1e-5)


def test_sorted_indices_are_a_softmax_of_distances():
    table = jnp.asarray([1.0, 2.0, 4.0])

    def function(x):
        return table[jnp.argsort(x, axis=1)]

    x = jnp.asarray([[0.3, -0.2, 0.9]])

    def soft(x):
        ranks = jnp.sort(x, axis=1)
        distance = jnp.abs(x[:, :, None] - ranks[:, None])
        width = jnp.mean(jax.lax.stop_gradient(distance), axis=1, keepdims=True)
        return jnp.einsum("bkr,k->br", jax.nn.softmax(-distance / width, axis=1), table)

    np.testing.assert_allclose(gradient(relax(function), x), gradient(soft, x), rtol=1e-4)


def test_a_loop_is_differentiated_through_its_turns_or_around_it():
    x = 1.0 + X
    turns = int(np.sum(np.sum(x) * 1.1 ** np.arange(64) < 30.0))
    through, around = (gradient(relax(hidden.grown, loops=loops), x) for loops in ("through", "around"))
    np.testing.assert_allclose(through, 1.1**turns * around, rtol=1e-4)
    # Each image as many turns as it takes itself.
    apart = x * jnp.asarray([0.1, 0.3])[:, None, None, None]
    each = gradient(relax(lambda x: hidden.linear(hidden.grown_each(x))), apart)
    sums = np.sum(np.asarray(apart), axis=(1, 2, 3))
    turns = np.sum(sums[:, None] * 1.1 ** np.arange(64)[None] < 15.0, axis=1)
    assert len(set(turns)) == len(x)
    expected = 1.1 ** turns[:, None, None, None] * gradient(hidden.linear, x)
    np.testing.assert_allclose(each, expected, rtol=1e-4)
    function = hidden.HIDES["descent"][0]
    np.testing.assert_allclose(gradient(relax(function)), gradient(function), rtol=1e-4)
    np.testing.assert_allclose(gradient(relax(function, loops="around")), gradient(hidden.linear), rtol=1e-5)


def in_python(function, shape):
    """A function of NumPy in the program; the shape of its results, but for the first axis."""

    def call(x):
        rows = jax.ShapeDtypeStruct((len(x), *shape), jnp.float32)
        return jax.pure_callback(lambda x: np.float32(function(np.asarray(x))), rows, x, vmap_method="sequential")

    return call


def test_calls_whose_results_have_another_shape_are_differentiated_by_differences():
    """Of one pixel the two signs are all directions there are: the central difference itself, of each row its own."""
    x = jnp.asarray([[0.2], [0.5], [0.8]])
    cubed = relax(in_python(lambda x: np.concatenate([x**3, 2.0 * x], axis=1), (2,)))
    found = jax.jit(jax.grad(lambda x: jnp.sum(cubed(x) @ jnp.asarray([1.0, 10.0]))))(x)
    reach = 0.1 * x
    np.testing.assert_allclose(found, ((x + reach) ** 3 - (x - reach) ** 3) / (2 * reach) + 20.0, rtol=1e-4)
    # In forward mode the same, and a temperature that is traced.
    ahead = jax.jvp(lambda x: cubed(x) @ jnp.asarray([1.0, 10.0]), (x,), (jnp.ones_like(x),))[1]
    np.testing.assert_allclose(ahead, found[:, 0], rtol=1e-4)
    np.testing.assert_allclose(cubed(x)[:, 0], x[:, 0] ** 3, rtol=1e-6)


def test_differences_are_right_in_the_mean_and_see_beyond_a_step():
    images = jnp.asarray(np.random.default_rng(0).uniform(0.3, 0.7, (64, 4)), jnp.float32)
    weights = np.asarray([[1.0, -2.0, 3.0, 0.5]], np.float32).T
    linear = relax(in_python(lambda x: x @ weights, (1,)))
    found = jax.grad(lambda x: jnp.sum(linear(x)))(images)
    # Each row has its own directions; the error of the mean over 64 rows of 32 is a few hundredths.
    np.testing.assert_allclose(np.mean(found, axis=0), weights[:, 0], atol=0.35)
    # With the identity instead a call that swaps pixels is misread; differences see where each one goes.
    swapped = in_python(lambda x: np.round(16.0 * x[:, ::-1]) / 16.0, (4,))
    slope = lambda **options: np.mean(  # noqa: E731
        jax.grad(lambda x: jnp.sum(relax(swapped, **options)(x) @ weights))(images), axis=0
    )
    np.testing.assert_allclose(slope(), weights[:, 0], rtol=1e-5)
    np.testing.assert_allclose(slope(callbacks="differences", temperature=2.0), weights[::-1, 0], atol=0.7)


def test_saturated_sigmoids_have_the_derivative_of_smaller_numbers():
    def function(x):
        return jax.nn.sigmoid(1000.0 * hidden.linear(x))

    def smaller(x):
        z = 1000.0 * hidden.linear(x)
        return jax.nn.sigmoid(z / jax.lax.stop_gradient(jnp.mean(jnp.abs(z), axis=1, keepdims=True)))

    np.testing.assert_allclose(gradient(relax(function)), gradient(smaller), rtol=1e-4)


@functools.cache
def gradient_of_finite_pixels(name):
    return gradient_of(relax(lambda x: hidden.HIDES[name][0](jnp.where(jnp.isfinite(x), x, 1.0))))


@pytest.mark.parametrize("value", [0.0, 1e30, -1e30, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["threshold", "mask", "thermometer", "cast", "saturated", "one-hot", "winners"])
def test_tails_give_no_gradient_that_is_not_a_number(name, value):
    x = X.at[0, 0, 0, 0].set(value).at[1].set(0.25)
    assert np.all(np.isfinite(gradient_of_finite_pixels(name)(x)))


@pytest.mark.parametrize("name", ["round", "threshold", "one-hot", "chosen column", "winners", "sign in vmap"])
def test_composes_with_transformations(name):
    relaxed = relax(hidden.HIDES[name][0])
    expected = gradient(relaxed)
    np.testing.assert_allclose(gradient(quicken(relaxed)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient(relax(quicken(hidden.HIDES[name][0]))), expected, rtol=1e-5, atol=1e-6)
    each = jax.vmap(lambda x: gradient(relaxed, x[None])[0])(X)
    np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-5)
    slope = jax.jvp(lambda x: jnp.sum(relaxed(x) @ jnp.arange(1.0, 4.0)), (X,), (DIRECTION,))[1]
    np.testing.assert_allclose(slope, jnp.vdot(expected, DIRECTION), rtol=1e-4)


def drawn(x, key=hidden.KEY):
    return jax.random.bernoulli(key, 0.3, x.shape)


# A network with a random factor -> (the factor as NumPy has it, what it multiplies).
RANDOM_FACTORS = {
    "dropout": (lambda x: jnp.where(drawn(x), x / 0.3, 0.0), lambda x: np.asarray(drawn(x)) / 0.3),
    "a mask": (lambda x: x * drawn(x).astype(x.dtype), lambda x: np.asarray(drawn(x))),
    "on the left": (lambda x: drawn(x).astype(x.dtype) * x, lambda x: np.asarray(drawn(x))),
    "what is not drawn": (lambda x: jnp.where(drawn(x), 0.0, x), lambda x: 1.0 - np.asarray(drawn(x))),
    "signs": (lambda x: x * jnp.where(drawn(x), 1.0, -1.0), lambda x: np.where(drawn(x), 1.0, -1.0)),
    "of jit": (jax.jit(lambda x: jax.jit(jnp.multiply)(x, drawn(x).astype(x.dtype))), lambda x: np.asarray(drawn(x))),
    "checkpointed": (jax.checkpoint(lambda x: x * drawn(x).astype(x.dtype)), lambda x: np.asarray(drawn(x))),
    "normal": (lambda x: x * jax.random.normal(hidden.KEY, x.shape), lambda x: jax.random.normal(hidden.KEY, x.shape)),
    "by magnitude": (
        lambda x: x * (jax.random.uniform(hidden.KEY, x.shape) < x).astype(x.dtype),
        lambda x: np.asarray(jax.random.uniform(hidden.KEY, x.shape) < x),
    ),
    "in a loop": (
        lambda x: jax.lax.scan(lambda x, key: (x * drawn(x, key).astype(x.dtype), None), x, hidden.KEY[None])[0],
        lambda x: np.asarray(drawn(x)),
    ),
}


@pytest.mark.parametrize("name", RANDOM_FACTORS)
def test_a_random_factor_counts_as_its_mean(name):
    function, factor_of = RANDOM_FACTORS[name]
    network = lambda x: hidden.linear(function(x))  # noqa: E731
    relaxed = relax(network, kinds="random")
    np.testing.assert_array_equal(relaxed(X), network(X))
    x, factor = np.asarray(X, np.float64), np.asarray(factor_of(X), np.float64)
    axes = (1, 2, 3)
    mean = np.sum(factor * x**2, axes, keepdims=True) / np.sum(x**2, axes, keepdims=True)
    expected = mean * np.asarray(gradient(hidden.linear))
    np.testing.assert_allclose(gradient(relaxed), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient(relax(network)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strength", [True, 1.0, 0.0])
def test_means_may_take_the_place_of_random_factors_in_the_values_too(strength):
    network = lambda x: jnp.where(drawn(x), 2.0 * x, x)  # noqa: E731
    strength_of = lambda key: strength if key[0] == "random" else None  # noqa: E731
    value = relaxed(network, strength_of, 1.0, "through", False, False, True, X)
    mask, x = np.asarray(drawn(X), np.float64), np.asarray(X, np.float64)
    share = np.sum(mask * x**2, (1, 2, 3), keepdims=True) / np.sum(x**2, (1, 2, 3), keepdims=True)
    np.testing.assert_allclose(value, (1.0 + share) * x if strength else network(X), rtol=1e-5)


def test_what_is_random_but_no_factor_keeps_its_derivative():
    weights = jax.random.normal(hidden.KEY, (16, 3))
    cases = {
        "added": lambda x: hidden.linear(x**2 + jax.random.normal(hidden.KEY, x.shape)),
        "drawn of the image": lambda x: hidden.linear(x * jnp.where(drawn(x), x, 1.0)),
        "other factors": lambda x: hidden.linear(x * jnp.sin(x) * 2.0),
        "weights": lambda x: x.reshape(len(x), -1) @ weights,
    }
    for name in ("added", "other factors", "weights"):
        np.testing.assert_allclose(gradient(relax(cases[name], kinds="random")), gradient(cases[name]), rtol=1e-5)
    # A selection between the image and another value is averaged; the product with it has its own derivative.
    mask, x = np.asarray(drawn(X), np.float64), np.asarray(X, np.float64)
    share = np.sum(mask * (x - 1.0) ** 2, (1, 2, 3), keepdims=True) / np.sum((x - 1.0) ** 2, (1, 2, 3), keepdims=True)
    slope = np.where(mask > 0, x, 1.0) + share * x
    np.testing.assert_allclose(
        gradient(relax(cases["drawn of the image"], kinds="random")),
        slope * np.asarray(gradient(hidden.linear)), rtol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_random_factor_of_nothing_gives_numbers(dtype):
    function = relax(lambda x: x * drawn(x).astype(x.dtype), kinds="random")
    for x in (jnp.zeros(X.shape, dtype), jnp.full(X.shape, 1e-30, dtype), X.astype(dtype).at[0, 0, 0, 0].set(jnp.inf)):
        value, pull = jax.vjp(function, x)
        slope = pull(jnp.ones_like(value))[0]
        assert value.dtype == slope.dtype == dtype
        assert np.all(np.isfinite(np.asarray(slope, np.float32)))


@pytest.mark.parametrize("kinds", ["detached", "random", ("detached", "selection"), None])
def test_a_branch_that_is_not_taken_spreads_no_gradient_that_is_not_a_number(kinds):
    x = X.at[:, 0].set(0.0)

    def network(x):  # pruned at random by detached magnitudes, of which some are zero
        kept = jax.lax.stop_gradient(jnp.abs(x)) / 2.0
        return hidden.linear(x * jnp.where(jax.random.uniform(hidden.KEY, x.shape) < kept, 1.0 / kept, 0.0))

    assert np.all(np.isfinite(gradient(relax(network, kinds=kinds), x)))
    key = inspect(network, x)
    assert {finding.kind for finding in key} >= {"detached", "random"}
    # How much of each is relaxed may be traced: what is not relaxed is not followed either.
    for chosen in ("detached", "random"):
        strength_of = lambda key: jnp.float32(key[0] == chosen)  # noqa: B023, E731
        traced = gradient(lambda x: relaxed(network, strength_of, 1.0, "through", False, False, False, x), x)  # noqa: B023
        np.testing.assert_allclose(traced, gradient(relax(network, kinds=chosen), x), rtol=1e-5, atol=1e-6)


def test_which_draws_are_factors_is_read_off_the_program():
    def network(x, key):
        first, second = jax.random.split(key)
        noisy = x + jax.random.normal(first, x.shape)
        return hidden.linear(jnp.where(jax.random.bernoulli(second, 0.5, x.shape), noisy, 0.0))

    findings = inspect(network, X, hidden.KEY)
    assert [finding.kind for finding in findings] == ["random", "random"]
    (mask,) = relaxable(findings, network, X, hidden.KEY)
    assert mask == findings[1]


def test_pruning_at_random_shows_in_one_draw_what_takes_many():
    weights = jax.random.normal(jax.random.key(8), (2, 64, 64)) / 8.0
    images = jax.random.uniform(jax.random.key(9), (8, 64))

    def network(x, key):
        for layer, one in zip(weights, jax.random.split(key), strict=True):
            x = defenses.sap.prune(one, jax.nn.relu(x @ layer), fraction=0.3, sampler="bernoulli")
        return x[:, :3]

    def slope(function, key):
        return jax.grad(lambda x: jnp.sum(function(x, key) @ jnp.array([1.0, -1.0, 0.5])))(images)

    def cosine(one, other):
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        return np.mean(np.sum(one * other, axis=1) / np.maximum(lengths, 1e-9))

    keys = jax.random.split(hidden.KEY, 2000)
    mean = np.asarray(jax.jit(lambda: jnp.mean(jax.lax.map(lambda key: slope(network, key), keys[1:]), axis=0))())
    own, relaxed = (np.asarray(slope(each, keys[0])) for each in (network, relax(network, kinds="random")))
    assert cosine(relaxed, mean) > 0.9 and cosine(relaxed, mean) > cosine(own, mean) + 0.2


def test_only_the_lines_that_are_named_are_relaxed():
    function = lambda x: hidden.linear(jnp.round(4.0 * x)) + hidden.linear(hidden.quantised(x))  # noqa: E731
    here, there = sorted(inspect(function, X), key=lambda finding: "quantised" in finding.where)
    np.testing.assert_allclose(gradient(relax(function, kinds=[here])), 4.0 * gradient(hidden.linear), rtol=1e-5)
    np.testing.assert_allclose(gradient(relax(function, kinds=there)), gradient(hidden.linear), rtol=1e-5)
    assert not np.any(gradient(relax(function, kinds="detached")))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays(dtype):
    function = lambda x: jnp.where(x > 0.4, jnp.round(4 * x), jnp.sign(x)) + jax.nn.sigmoid(x)  # noqa: E731
    x = X.astype(dtype)
    value, pull = jax.vjp(relax(function), x)
    assert value.dtype == dtype and pull(jnp.ones_like(value))[0].dtype == dtype
    np.testing.assert_array_equal(value, function(x))


def test_double_precision_stays():
    with jax.enable_x64(True):
        x = np.asarray(hidden.IMAGES, np.float64)
        function = lambda x: jnp.where(x > 0.4, jnp.round(4 * x), jnp.sign(x))  # noqa: E731
        value, pull = jax.vjp(relax(function), x)
        assert value.dtype == jnp.float64 and pull(jnp.ones_like(value))[0].dtype == jnp.float64


def test_a_quantised_network_falls_to_its_relaxation():
    images = jnp.asarray(np.random.default_rng(5).uniform(size=(16, 4, 4, 1)), jnp.float32)
    network = lambda x: hidden.linear(hidden.quantised(x))  # noqa: E731
    labels = jnp.argmax(network(images), axis=1)

    def accuracy(gradients_of):
        attack = jax.jit(lambda x: attacks.pgd(
            gradients_of, hidden.KEY, x, labels, epsilon=0.3, step_size=0.05, num_steps=20, random_start=False,
        ))  # fmt: skip
        return float(jnp.mean((jnp.argmax(network(attack(images)), axis=1) == labels).astype(jnp.float32)))

    assert accuracy(network) == 1.0 and accuracy(relax(network)) < 0.3


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"kinds must be findings or of step, .* got 'steps' \(nearest: 'step'\)"):
        relax(hidden.linear, kinds="steps")
    with pytest.raises(InputError, match="loops must be through or around, got 'over'"):
        relax(hidden.linear, loops="over")
    with pytest.raises(InputError, match="callbacks must be identity or differences, got 'none'"):
        relax(hidden.linear, callbacks="none")
    with pytest.raises(InputError, match="temperature must be above 0"):
        relax(hidden.linear, temperature=0)
