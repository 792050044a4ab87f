"""The convolution against XLA's own, in values, gradients of both orders, and every way of calling it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from robustjax.models.convolution import conv2d

# (image sides, kernel side, stride, padding): what the networks use, and what they might.
CASES = [
    ((8, 6), 3, 1, 1),
    ((7, 9), 3, 2, 1),
    ((8, 8), 3, 2, 1),
    ((8, 8), 4, 2, 1),
    ((9, 8), 4, 2, 1),
    ((8, 7), 1, 2, 0),
    ((5, 5), 1, 1, 0),
    ((9, 9), 5, 1, 2),
    ((9, 9), 5, 1, 0),
    ((11, 10), 7, 3, 2),
    ((6, 6), 2, 2, 0),
    ((6, 6), 3, 1, 4),
]


def reference(images, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def operands(sides, size, batch=4):
    keys = jax.random.split(jax.random.key(size), 2)
    return jax.random.normal(keys[0], (batch, *sides, 3)), jax.random.normal(keys[1], (size, size, 3, 5))


@pytest.mark.parametrize(("sides", "size", "stride", "padding"), CASES)
def test_values_and_gradients_match_xla(sides, size, stride, padding):
    images, kernel = operands(sides, size)
    expected, pull = jax.vjp(lambda x, k: reference(x, k, stride, padding), images, kernel)
    ours, our_pull = jax.vjp(lambda x, k: conv2d(x, k, stride=stride, padding=padding), images, kernel)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-4)
    cotangent = jax.random.normal(jax.random.key(9), expected.shape)
    for gradient, wanted in zip(our_pull(cotangent), pull(cotangent), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-4)


def test_values_match_numpy():
    images, kernel = (np.asarray(array) for array in operands((6, 5), 3))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    expected = np.einsum("bhwcij,ijco->bhwo", windows, kernel)
    np.testing.assert_allclose(
        conv2d(jnp.asarray(images), jnp.asarray(kernel), stride=2, padding=1), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("sides", "size", "stride", "padding"), [CASES[0], CASES[1], CASES[3]])
def test_gradients_of_gradients_match_xla(sides, size, stride, padding):
    images, kernel = operands(sides, size)

    def penalty(convolve):
        """Depends on the input gradient, as gradient alignment and second-order masks do."""

        def inner(x, k):
            return jnp.sum(jnp.tanh(convolve(x, k)))

        return lambda x, k: jnp.sum(jax.grad(inner)(x, k) ** 2)

    ours = jax.grad(penalty(lambda x, k: conv2d(x, k, stride=stride, padding=padding)), argnums=(0, 1))
    wanted = jax.grad(penalty(lambda x, k: reference(x, k, stride, padding)), argnums=(0, 1))
    for gradient, expected in zip(ours(images, kernel), wanted(images, kernel), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (4, 2)])
def test_every_transformation_gives_the_same_input_gradient(size, stride):
    images, kernel = operands((8, 8), size, batch=8)

    def gradient(images):
        return jax.grad(lambda x: jnp.sum(jnp.sin(conv2d(x, kernel, stride=stride, padding=1))))(images)

    expected = gradient(images)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    batch = PartitionSpec("data")
    parts = images.reshape(4, 2, 8, 8, 3)
    results = {
        "jit": jax.jit(gradient)(images),
        "mesh": jax.jit(gradient)(jax.device_put(images, NamedSharding(mesh, batch))),
        "shard_map": jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=batch, out_specs=batch))(images),
        "vmap": jax.vmap(gradient)(parts).reshape(images.shape),
        "pmap": jax.pmap(gradient)(parts).reshape(images.shape),
        "loop": jax.lax.fori_loop(0, 1, lambda i, x: gradient(x), images),
    }
    for name, result in results.items():
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_loop_holds_no_convolution_with_swapped_kernel_dimensions():
    """What the explicit gradient is for, read off the compiled program."""
    images, kernel = operands((8, 8), 3)

    def program(convolve):
        step = jax.grad(lambda x: jnp.sum(jnp.sin(convolve(x, kernel))))
        loop = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x + step(x), x))
        return loop.lower(images).compile().as_text()

    assert "01oi" in program(lambda x, k: reference(x, k, 1, 1))
    assert "01oi" not in program(lambda x, k: conv2d(x, k, padding=1))


def test_bfloat16_keeps_its_dtype():
    images, kernel = (array.astype(jnp.bfloat16) for array in operands((8, 8), 3))
    outputs = conv2d(images, kernel, padding=1)
    assert outputs.dtype == jnp.bfloat16
    exact = reference(images.astype(jnp.float32), kernel.astype(jnp.float32), 1, 1)
    np.testing.assert_allclose(outputs.astype(jnp.float32), exact, rtol=0.02, atol=0.1)
