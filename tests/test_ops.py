"""Gradients by substitution, and channels, under the transformations that attacks use."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import ops
from robustjax.types import InputError


def test_straight_through_has_the_one_value_bit_for_bit_and_the_other_gradient():
    value, surrogate = jnp.array([1e-8, 3.0]), jnp.array([1e8, 2.0])
    np.testing.assert_array_equal(ops.straight_through(value, surrogate), value)
    by_value, by_surrogate = jax.grad(lambda v, s: jnp.sum(ops.straight_through(v, s)), argnums=(0, 1))(
        value, surrogate
    )
    np.testing.assert_array_equal(by_value, [0.0, 0.0])
    np.testing.assert_array_equal(by_surrogate, [1.0, 1.0])


class BpdaTest(chex.TestCase):
    @chex.all_variants
    def test_values_and_gradients(self):
        sign = ops.bpda(jnp.sign, jnp.tanh)
        points = jnp.array([-2.0, 0.5])
        for transform in (lambda f: f, jax.vmap):
            gradients = jax.grad(lambda x, transform=transform: jnp.sum(transform(sign)(x)))
            np.testing.assert_array_equal(self.variant(transform(sign))(points), [-1.0, 1.0])
            np.testing.assert_allclose(self.variant(gradients)(points), 1 - np.tanh(points) ** 2, rtol=1e-6)


def test_bpda_in_forward_mode_and_in_second_derivatives():
    sign = ops.bpda(jnp.sign, jnp.tanh)
    _, tangent = jax.jvp(sign, (0.5,), (1.0,))
    np.testing.assert_allclose(tangent, 1 - np.tanh(0.5) ** 2, rtol=1e-6)
    second = jax.grad(jax.grad(sign))(0.5)
    np.testing.assert_allclose(second, -2 * np.tanh(0.5) * (1 - np.tanh(0.5) ** 2), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 5)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_channels_match_numpy(shape, dtype):
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=shape), dtype)
    weights = rng.normal(size=(2, 5)).astype(np.float32)
    exact = np.asarray(features, np.float32)

    pooled = ops.global_average_pool(features)
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, exact.reshape(2, -1, 5).mean(1), rtol=1e-5, atol=1e-6)

    scaled = ops.scale_channels(features, jnp.asarray(weights))
    assert (scaled.dtype, scaled.shape) == (dtype, shape)
    expected = np.einsum("b...c,bc->b...c", exact, weights)
    np.testing.assert_allclose(np.asarray(scaled, np.float32), expected, rtol=1e-6 if dtype == jnp.float32 else 4e-3)


def test_classes_are_integers_one_for_each_example_from_0_to_one_less_than_there_are():
    ops.check_classes("labels", np.array([0, 2]), 2, 3)
    ops.check_classes("labels", np.zeros(0, np.int32), 0, 3)
    for labels, got in (
        (np.zeros(2), r"float64 \[2\]"),
        (np.zeros(3, np.int32), r"int32 \[3\]"),
        (np.zeros((2, 1), np.int32), r"int32 \[2, 1\]"),
        (np.zeros((2, 3), np.float32), r"float32 \[2, 3\]"),
        ([0, 2], r"list \[\]"),
        (np.array([0, 3]), "0 to 3; number the classes"),
        (np.array([-1, 2]), "-1 to 2; number the classes"),
    ):
        with pytest.raises(InputError, match=rf"labels must be integers \[2\] of classes 0 to 2, got {got}"):
            ops.check_classes("labels", labels, 2, 3)


@pytest.mark.parametrize("kind", [float, np.float64, jnp.float32, jnp.bfloat16, np.asarray, jnp.asarray])
def test_a_number_is_one_of_python_or_numpy_or_an_array_of_no_axes(kind):
    ops.check_number("rate", kind(0.5), "[0, 1)")
    ops.check_number("rate", kind(0), "[0, 1)")
    with pytest.raises(InputError, match=r"rate must be in \[0, 1\), got 1(.0)?; give one that is"):
        ops.check_number("rate", kind(1), "[0, 1)")


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (True, "True"), (np.True_, "bool []"), (jnp.array(True), "bool []"), (np.array([0.5]), "float64 [1]"),
        (jnp.full((9, 9), 0.5), "float32 [9, 9]"), ([0.5], "[0.5]"), ("0.5", "'0.5'"), (None, "None"),
        (0.5 + 0j, "(0.5+0j)"), (np.complex64(0.5), "complex64 []"), (np.array(0.5, object), "object []"),
        (jax.random.key(0), "key<fry> []"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused_in_one_line(value, got):
    with pytest.raises(InputError) as caught:
        ops.check_number("rate", value, "[0, 1)")
    assert str(caught.value) == f"rate must be in [0, 1), got {got}; give a number"


def test_an_integer_is_no_number_with_a_fraction_nor_one_without_end():
    for value in (3, np.int64(3), jnp.int32(3)):
        ops.check_number("width", value, "[1, inf)", whole=True)
    for value, got in ((1.5, "1.5"), (2.0, "2.0"), (True, "True"), (jnp.float32(2), r"float32 \[\]")):
        with pytest.raises(InputError, match=f"width must be at least 1 and finite, got {got}; give an integer"):
            ops.check_number("width", value, "[1, inf)", whole=True)
    with pytest.raises(InputError, match=r"width must be at least 1 and finite, got 10{17}\.\.\.0{19}; give one"):
        ops.check_number("width", 10**400, "[1, inf)", whole=True)


def test_of_a_traced_number_shape_and_dtype_are_known():
    def checked(value):
        ops.check_number("rate", value, "[0, 1)")
        ops.check_number("rate", jnp.float32(0.5), "[0, 1)")  # not traced, within a trace
        return value

    jax.jit(checked)(2.0), jax.grad(checked)(2.0), jax.vmap(checked)(jnp.ones(2))
    for value, got in ((jnp.ones(2), r"float32 \[2\]"), (jnp.array(True), r"bool \[\]")):
        with pytest.raises(InputError, match=rf"rate must be in \[0, 1\), got {got}; give a number"):
            jax.jit(checked)(value)
