"""The convolution against XLA's own, in values, derivatives of both orders and modes, and every way of calling it."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from robustjax.layers import conv2d

# (image sides, channels, kernel side, stride, padding): what the networks use, and what they might. Many channels on
# large maps take XLA's convolution, 64 and more Winograd's where the kernel suits it, all others the matrix product.
CASES = [
    ((8, 6), 12, 3, 1, 1),
    ((9, 9), 12, 5, 1, 0),
    ((9, 8), 12, 4, 1, 2),
    ((7, 9), 12, 3, 2, 1),
    ((9, 8), 12, 4, 2, 1),
    ((8, 8), 3, 4, 2, 1),
    ((9, 8), 3, 4, 2, 1),
    ((8, 7), 12, 1, 2, 0),
    ((5, 5), 12, 1, 1, 0),
    ((9, 7), 3, 5, 1, 2),
    ((11, 10), 3, 7, 3, 2),
    ((2, 2), 12, 3, 1, 1),
    ((6, 6), 3, 3, 1, 4),
    ((11, 8), 64, 3, 1, 1),
    ((12, 31), 65, 3, 1, 1),
]
EACH = [((6, 5), 9, 3, 1, 1), ((5, 6), 3, 4, 2, 1), ((11, 12), 64, 3, 1, 1)]  # one case of each form


def reference(images, kernel, *, stride=1, padding=0):
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def operands(sides, channels, size, batch=4):
    keys = jax.random.split(jax.random.key(size), 4)
    shapes = [(batch, *sides, channels), (size, size, channels, channels if channels >= 64 else 5)]
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, 2 * shapes, strict=True)]
    scale = 1 / (size * channels**0.5)  # outputs of the images' size
    return (arrays[0], scale * arrays[1]), (arrays[2], scale * arrays[3])


def close(ours, wanted, tolerance=1e-5, message=""):
    """Relative to the largest entry: the sums of a convolution cancel."""
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(np.asarray(ours, np.float32) / scale, wanted / scale, atol=tolerance, err_msg=message)


@pytest.mark.parametrize(("sides", "channels", "size", "stride", "padding"), CASES)
def test_values_and_derivatives_match_xla(sides, channels, size, stride, padding):
    point, direction = operands(sides, channels, size)

    @partial(jax.jit, static_argnums=0)
    def everything(convolve, point, direction):  # as arguments: XLA would compute with constants while it compiles
        convolve = partial(convolve, stride=stride, padding=padding)
        outputs, forward = jax.jvp(convolve, point, direction)
        _, pull = jax.vjp(convolve, *point)
        return outputs, forward, *pull(jnp.cos(outputs))

    for ours, wanted in zip(*(everything(each, point, direction) for each in (conv2d, reference)), strict=True):
        assert ours.shape == wanted.shape
        close(ours, wanted)


def test_values_match_numpy():
    (images, kernel), _ = operands((6, 5), 3, 3)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    expected = np.einsum("bhwcij,ijco->bhwo", windows, kernel)
    close(conv2d(images, kernel, stride=2, padding=1), expected)


@pytest.mark.parametrize(("sides", "channels", "size", "stride", "padding"), EACH)
def test_second_derivatives_match_xla(sides, channels, size, stride, padding):
    point, direction = operands(sides, channels, size)

    @partial(jax.jit, static_argnums=0)
    def twice(convolve, point, direction):
        value = lambda *point: jnp.mean(jnp.sin(convolve(*point, stride=stride, padding=padding)))  # noqa: E731
        slope = jax.grad(value, argnums=(0, 1))
        along = lambda *point: sum(jnp.vdot(*pair) for pair in zip(slope(*point), direction, strict=True))  # noqa: E731
        return *jax.jvp(slope, point, direction)[1], *jax.grad(along, argnums=(0, 1))(*point)

    for ours, wanted in zip(*(twice(each, point, direction) for each in (conv2d, reference)), strict=True):
        close(ours, wanted)


@pytest.mark.parametrize(("sides", "channels", "size", "stride", "padding"), EACH[:2])
@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_first_and_second_derivatives_match_finite_differences(sides, channels, size, stride, padding, mode):
    point, _ = operands(sides, channels, size, batch=1)
    point = jax.tree.map(lambda array: 0.3 * array, point)

    @jax.jit
    def value(images, kernel):
        return jnp.sum(jnp.sin(conv2d(images, kernel, stride=stride, padding=padding)))

    check_grads(value, point, order=2, modes=[mode], eps=1e-2, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("sides", "channels", "size", "stride", "padding"), EACH)
def test_every_transformation_gives_the_same_gradients(sides, channels, size, stride, padding):
    (images, kernel), _ = operands(sides, channels, size, batch=4)

    def gradients(images, kernel):
        outputs = partial(conv2d, stride=stride, padding=padding)
        return jax.grad(lambda *arguments: jnp.sum(jnp.sin(outputs(*arguments))), argnums=(0, 1))(images, kernel)

    expected = jax.jit(gradients)(images, kernel)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(gradients, mesh=mesh, in_specs=(split, whole), out_specs=(split, whole))
    sharded = jax.device_put(images, NamedSharding(mesh, split)), jax.device_put(kernel, NamedSharding(mesh, whole))
    parts = images[:, None]
    by_part = jax.jit(jax.vmap(gradients, in_axes=(0, None)))(parts, kernel)
    by_device = jax.pmap(gradients, in_axes=(0, None))(parts, kernel)
    results = {
        "mesh": jax.jit(gradients)(*sharded),
        "shard_map": jax.jit(mapped)(images, kernel),
        "vmap": (by_part[0][:, 0], by_part[1].sum(0)),
        "pmap": (by_device[0][:, 0], by_device[1].sum(0)),
        "loop": jax.lax.fori_loop(0, 1, lambda i, state: gradients(images, kernel), (images, kernel)),
    }
    for name, result in results.items():
        for ours, wanted in zip(result, expected, strict=True):
            close(ours, wanted, message=name)


def test_convolutions_in_a_loop_are_all_of_the_quick_form():
    """What the spelling of the derivatives is for, read off the compiled program."""
    (images, kernel), _ = operands((8, 8), 12, 3)
    kernel = jnp.tile(kernel, (1, 1, 1, 3))  # as few outputs as five take no convolution at all

    def forms(convolve):
        value = jax.grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k, padding=1))), argnums=(0, 1))
        loop = jax.jit(lambda *start: jax.lax.fori_loop(0, 3, lambda i, state: value(*state), start))
        return set(re.findall(r"dim_labels=(\S+?),? ", loop.lower(images, kernel).compile().as_text()))

    assert len(forms(reference)) == 3
    assert forms(conv2d) == {"b01f_01io->b01f"}


@pytest.mark.parametrize(("sides", "channels", "size", "stride", "padding"), EACH)
def test_bfloat16_keeps_its_dtype(sides, channels, size, stride, padding):
    point, _ = operands(sides, channels, size)
    half = [array.astype(jnp.bfloat16) for array in point]
    outputs, pull = jax.vjp(partial(conv2d, stride=stride, padding=padding), *half)
    assert {array.dtype for array in (outputs, *pull(outputs))} == {jnp.dtype("bfloat16")}
    close(outputs, reference(*point, stride=stride, padding=padding), tolerance=0.02)
