"""Quick random bits against JAX's own, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from robustjax.transforms import inspect, quicken

KEY = jax.random.key(7)


def names(function, *arguments):
    return str(jax.make_jaxpr(quicken(function))(*arguments))


@pytest.mark.parametrize("shape", [(), (1,), (2,), (5,), (3, 7), (4, 1, 6), (0,), (3, 0)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_bits_are_those_of_jax(shape, dtype):
    draw = lambda key: jax.random.bits(key, shape, dtype)  # noqa: E731
    assert "quick_random_bits" in names(draw, KEY)
    ours, wanted = jax.jit(quicken(draw))(KEY), draw(KEY)
    assert ours.dtype == wanted.dtype
    np.testing.assert_array_equal(ours, wanted)


def test_bits_of_64():
    with jax.enable_x64(True):
        draw = lambda key: jax.random.bits(key, (3, 5), "uint64")  # noqa: E731
        np.testing.assert_array_equal(jax.jit(quicken(draw))(KEY), draw(KEY))


def test_enough_entries_for_every_word_of_the_counter_to_count():
    """Over 2^16 entries, and with keys of which both words are large."""
    key = jax.random.wrap_key_data(jnp.array([0xFFFFFFFE, 0x80000001], jnp.uint32))
    draw = lambda key: jax.random.bits(key, (70_001,))  # noqa: E731
    np.testing.assert_array_equal(jax.jit(quicken(draw))(key), draw(key))


@pytest.mark.parametrize("law", ["uniform", "normal", "gumbel", "exponential", "rademacher"])
def test_draws_of_many_keys(law):
    """As a gradient over draws takes them, and each example its own."""
    draw = jax.vmap(jax.vmap(lambda key: getattr(jax.random, law)(key, (3, 5))))
    keys = jax.random.split(KEY, (2, 4))
    assert "quick_random_bits" in names(draw, keys)
    np.testing.assert_array_equal(jax.jit(quicken(draw))(keys), jax.jit(draw)(keys))
    np.testing.assert_array_equal(jax.vmap(quicken(draw))(keys[None])[0], jax.jit(draw)(keys))


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 4)])
def test_no_keys_draw_nothing(shape):
    """As an empty batch has them, of which each example has its own."""
    draw = lambda keys: jax.vmap(lambda key: jax.random.normal(key, (3, 5)))(keys.reshape(-1))  # noqa: E731
    keys = jax.random.split(KEY, shape)
    assert "quick_random_bits" in names(draw, keys)
    assert jax.jit(quicken(draw))(keys).shape == quicken(draw)(keys).shape == (0, 3, 5)


@pytest.mark.parametrize("each_its_key", [False, True])
def test_a_program_for_any_batch_size_draws_the_same(each_its_key):
    def noisy(images, keys):
        if not each_its_key:
            return images + jax.random.normal(keys[0], images.shape)
        return jax.vmap(lambda image, key: image + jax.random.normal(key, image.shape))(images, keys)

    (size,) = export.symbolic_shape("b")
    keys = jax.random.split(KEY, 4)
    shapes = jax.ShapeDtypeStruct((size, 3), jnp.float32), jax.ShapeDtypeStruct((size,), keys.dtype)
    exported = export.export(jax.jit(quicken(noisy)), platforms=["cpu"])(*shapes)
    images = jnp.zeros((4, 3))
    np.testing.assert_array_equal(jax.jit(exported.call)(images, keys), jax.jit(noisy)(images, keys))


def test_gradients_are_the_same():
    points = jnp.linspace(-1, 1, 12).reshape(3, 4)

    def loss(points, key):
        return jnp.sum(jnp.where(jax.random.bernoulli(key, 0.5, points.shape), points**2, 0.0))

    np.testing.assert_array_equal(jax.jit(jax.grad(quicken(loss)))(points, KEY), jax.grad(loss)(points, KEY))


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_other_generators_draw_as_they_do(kind):
    key, draw = jax.random.key(3, impl=kind), lambda key: jax.random.bits(key, (4, 3))
    np.testing.assert_array_equal(jax.jit(quicken(draw))(key), jax.jit(draw)(key))


def test_the_older_order_of_bits_is_kept():
    with jax.threefry_partitionable(False):
        draw = lambda key: jax.random.bits(key, (4, 3))  # noqa: E731
        older = draw(KEY)
        np.testing.assert_array_equal(jax.jit(quicken(draw))(KEY), older)
    assert np.any(older != draw(KEY))


def test_what_is_quickened_is_still_random_to_inspect():
    noisy = lambda images, key: images.sum(axis=(2, 3)) + jax.random.normal(key, (2, 3))  # noqa: E731
    kinds = lambda function: [found.kind for found in inspect(function, jnp.ones((2, 3, 1, 1)), KEY)]  # noqa: E731
    assert kinds(noisy) == kinds(quicken(noisy)) == ["random"]
