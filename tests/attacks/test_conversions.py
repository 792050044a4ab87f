"""Between the images' dtype and float32, and functions as pytrees."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks.engine import inputs
from robustjax.types import InputError

BOX = (0.0, 1.0)


def test_half_precision_is_rounded_towards_the_image(key):
    images, points = jax.random.uniform(key, (2, 1000))
    for dtype in (jnp.bfloat16, jnp.float16):
        given = images.astype(dtype)
        rounded = inputs.in_dtype_of(given, points, BOX).astype(jnp.float32)
        origin = given.astype(jnp.float32)
        assert np.all(np.abs(rounded - origin) <= np.abs(points - origin))
        # No further than one step of the dtype: of two neighbours it is the one on the image's side.
        step = np.abs(np.asarray(jnp.nextafter(rounded.astype(dtype), points.astype(dtype)), np.float32) - rounded)
        assert np.all(np.abs(rounded - points) <= np.maximum(step, np.abs(points) * jnp.finfo(dtype).eps))
        np.testing.assert_array_equal(inputs.in_dtype_of(given, origin, BOX), given)
        gradient = jax.grad(lambda points, given=given: inputs.in_dtype_of(given, points, BOX).sum())(points)
        np.testing.assert_array_equal(gradient, 1.0)


def test_float32_points_are_what_they_are():
    points = jnp.array([[0.3, 1.5]])
    assert inputs.in_dtype_of(jnp.zeros((1, 2)), points, BOX) is points


def test_float64_images_move_by_what_float32_moved_and_stay_in_the_box():
    with jax.enable_x64(True):
        given = jnp.array([[0.1, 1 / 3, 0.7, 1.0 - 1e-12]], jnp.float64)
        images = np.asarray(given, np.float32)
        moved = jnp.asarray(images + np.array([[0.0, 0.25, -0.125, 0.0]], np.float32))
        points = inputs.in_dtype_of(given, moved, BOX)
        assert points.dtype == jnp.float64
        exact = np.asarray(given) + (np.asarray(moved, np.float64) - images.astype(np.float64))
        np.testing.assert_array_equal(points, exact)
        # The gradient is that of a cast, also of pixels at the walls.
        inner = jnp.array([[0.0, 1.0, 0.25, 1.0]], jnp.float64)
        walls = jnp.array([[0.0, 1.0, 1.0, 0.0]], jnp.float32)
        gradient = jax.grad(lambda points: jnp.sum(inputs.in_dtype_of(inner, points, BOX)))(walls)
        np.testing.assert_array_equal(gradient, np.ones((1, 4), np.float32))
        out = inputs.in_dtype_of(
            given, jnp.asarray(images) + jnp.float32(2.0), ((0.0, 0.0, 0.0, 0.0), (1.0, 0.9, 0.8, 1.0))
        )
        np.testing.assert_array_equal(out, [[1.0, 0.9, 0.8, 1.0]])


class Scaled:
    """Callable, equal to others of its kind, and therefore without a hash."""

    def __init__(self, factor):
        self.factor = factor

    def __eq__(self, other):
        return self.factor == other.factor

    def __call__(self, values):
        return self.factor * values


def test_functions_become_pytrees_that_jit_takes(capsys):
    apply = jax.jit(lambda function, values: function(values))
    assert inputs.as_pytree(None) is None
    partial = jax.tree_util.Partial(lambda weights, values: weights * values, jnp.float32(3.0))
    assert inputs.as_pytree(partial) is partial
    np.testing.assert_array_equal(apply(inputs.as_pytree(Scaled(2.0)), jnp.ones(2)), 2.0)

    # A plain function is kept itself: the same one compiles nothing new, as long as it reads the same.
    def double(values):
        print("traced")
        return 2.0 * values

    for _ in range(2):
        np.testing.assert_array_equal(apply(inputs.as_pytree(double), jnp.ones(2)), 2.0)
    assert capsys.readouterr().out == "traced\n"
    with pytest.raises(TypeError):
        hash(Scaled(2.0))


def test_what_a_callback_raises_is_told_with_its_line_and_not_taken_for_a_missing_gradient():
    def host(images):
        raise RuntimeError("the sensor is off")

    def network(images):
        return jax.pure_callback(host, jax.ShapeDtypeStruct(images.shape, images.dtype), images)

    images = jnp.zeros((2, 3))
    with (
        pytest.raises(InputError, match=r"got RuntimeError: the sensor is off in .*\d+ \(host\)"),
        inputs.blaming("network", network, images),
    ):
        jax.jit(network)(images).block_until_ready()
    with pytest.raises(InputError, match="network must have a gradient"), inputs.blaming("network", network, images):
        jax.grad(lambda images: network(images).sum())(images)


def test_images_whose_channels_come_first_are_warned_of():
    labels = np.zeros(2, np.int32)
    for shape, first in (((2, 3, 8, 8), True), ((2, 1, 8, 8), True), ((2, 3, 3, 3), False), ((2, 1, 8, 3), False)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            inputs.on_host(np.zeros(shape, np.float32), labels, 0.1, "linf", (0.0, 1.0))
        assert ["channels came first" in str(warning.message) for warning in told] == [True] * first
