"""Quick primitives against JAX's own: every layout, stride, dilation, group and padding, in values and derivatives."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.layers import conv2d, quick

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
SMALL, KERNEL = (2, 9, 8, 12), (3, 3, 12, 5)  # shapes that many cases share
FIRST, FIRST_KERNEL = (2, 12, 9, 8), (5, 12, 3, 3)  # the same with channels first


def convolution(images, kernel, layouts, strides=(1, 1), padding="SAME", **options):
    """Shapes of the operands, and a function of them by JAX's primitive."""
    options |= {"window_strides": strides, "padding": padding, "dimension_numbers": layouts}
    return images, kernel, partial(jax.lax.conv_general_dilated, **options)


CONVOLUTIONS = {
    "valid": convolution(SMALL, KERNEL, NHWC, padding="VALID"),
    "channels first": convolution(FIRST, FIRST_KERNEL, NCHW),
    "uneven": convolution(FIRST, (5, 12, 3, 2), NCHW, (2, 1), [(0, 1), (2, 0)]),
    "strided": convolution((3, 8, 8, 12), (4, 4, 12, 20), NHWC, (2, 2)),
    "strided by more than it sees": convolution((2, 3, 9, 9), (4, 3, 1, 1), NCHW, (3, 2), "VALID"),
    "few in": convolution((3, 3, 9, 8), (12, 3, 5, 5), NCHW),
    "few out": convolution(SMALL, (3, 3, 12, 2), NHWC, padding=[(1, 0), (2, 1)]),
    "small maps": convolution((2, 12, 2, 2), (12, 12, 3, 3), NCHW),
    "many": convolution((2, 64, 13, 12), (70, 64, 3, 3), NCHW),
    "many, valid": convolution((2, 14, 12, 64), (3, 3, 64, 64), NHWC, padding="VALID"),
    "dilated kernel": convolution(FIRST, FIRST_KERNEL, NCHW, rhs_dilation=(2, 3)),
    "dilated images": convolution((2, 4, 5, 12), (4, 4, 12, 9), NHWC, padding=[(2, 2), (1, 3)], lhs_dilation=(2, 3)),
    "all dilated": convolution(
        (2, 4, 5, 3), (3, 3, 3, 9), NHWC, (2, 1), [(0, 0), (1, 0)], lhs_dilation=(2, 1), rhs_dilation=(1, 2)
    ),
    "groups": convolution(FIRST, (8, 3, 3, 3), NCHW, feature_group_count=4),
    "many groups": convolution((2, 9, 8, 18), (3, 3, 2, 9), NHWC, feature_group_count=9),
    "groups, strided": convolution(SMALL, (3, 3, 6, 8), NHWC, (2, 2), feature_group_count=2),
    "depthwise": convolution(SMALL, (3, 3, 1, 12), NHWC, feature_group_count=12),
    "depthwise, strided, twofold": convolution(FIRST, (24, 1, 3, 3), NCHW, (2, 2), feature_group_count=12),
    "depthwise, dilated": convolution(FIRST, (12, 1, 3, 3), NCHW, rhs_dilation=(2, 1), feature_group_count=12),
    "batch groups": convolution((4, 9, 8, 3), (3, 3, 3, 8), NHWC, batch_group_count=2),
    "odd layout": convolution((9, 2, 12, 8), (5, 3, 12, 3), ("HNCW", "OHIW", "CWHN")),
    "one axis": convolution((2, 12, 9), (5, 12, 3), ("NCH", "OIH", "NCH"), (2,)),
    "three axes": convolution((2, 3, 5, 4, 6), (4, 3, 3, 2, 3), ("NCDHW", "OIDHW", "NCDHW"), (1, 2, 1)),
    "no axis": convolution((3, 4), (4, 5), ("NC", "IO", "NC"), (), ()),
    "no images": convolution((0, 9, 8, 3), (3, 3, 3, 12), NHWC),
    "of a precision": convolution(SMALL, KERNEL, NHWC, precision="highest", preferred_element_type=jnp.float32),
}


def close(ours, wanted, tolerance=1e-5):
    """Relative to the largest entry: the sums of a convolution cancel."""
    assert ours.shape == wanted.shape and ours.dtype == wanted.dtype
    scale = np.abs(wanted).max(initial=1e-30)
    np.testing.assert_allclose(np.asarray(ours) / scale, wanted / scale, atol=tolerance)


def drawn(*shapes):
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_derivatives_are_xlas(name):
    images, kernel, slow = CONVOLUTIONS[name]
    point, direction = drawn(images, kernel), drawn(kernel, images)[::-1]

    @partial(jax.jit, static_argnums=0)
    def everything(function):
        outputs, forward = jax.jvp(function, point, direction)
        return outputs, forward, jax.vjp(function, *point)[1](jnp.cos(outputs))

    jax.tree.map(close, everything(partial(quick.call, slow)), everything(slow))


def test_less_than_no_padding_takes_pixels_away():
    """Against the images without those pixels: XLA's own reads beyond its memory here."""
    images, kernel = drawn((2, 9, 8, 3), (3, 3, 3, 12))

    def cropped(padding, images):
        *_, slow = convolution((), (), NHWC, (2, 1), padding)
        return quick.call(slow, images, kernel)

    ours = jax.vjp(partial(cropped, [(-1, 1), (0, -2)]), images)
    wanted = jax.vjp(lambda images: cropped([(0, 1), (0, 0)], images[:, 1:, :-2]), images)
    close(ours[0], wanted[0])
    close(ours[1](jnp.cos(ours[0]))[0], wanted[1](jnp.cos(wanted[0]))[0])


def pooling(kind, window, strides, padding="VALID", dilation=None):
    start, combine = {"max": (-jnp.inf, jax.lax.max), "sum": (0.0, jax.lax.add)}[kind]
    return lambda x: jax.lax.reduce_window(x, start, combine, window, strides, padding, window_dilation=dilation)


# name -> (shape, what `pooling` takes)
WINDOWS = {
    "halves": ((2, 6, 8, 3), (1, 2, 2, 1), (1, 2, 2, 1)),
    "odd": ((2, 3, 7, 5), (1, 1, 2, 2), (1, 1, 2, 2)),
    "overlapping": ((2, 3, 9, 8), (1, 1, 3, 3), (1, 1, 2, 2), "SAME"),
    "sliding": ((2, 7, 6, 3), (1, 3, 2, 1), (1, 1, 1, 1), "SAME"),
    "apart": ((2, 9, 8, 3), (1, 2, 1, 1), (1, 3, 2, 1), [(0, 0), (1, 2), (0, 0), (0, 0)]),
    "over channels": ((2, 6, 4), (1, 2, 4), (1, 2, 3)),
    "large": ((1, 10, 9, 2), (1, 9, 8, 1), (1, 1, 1, 1)),
    "larger than the images": ((2, 3, 2, 3), (1, 5, 3, 1), (1, 2, 1, 1)),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("kind", ["max", "sum"])
def test_pooling_and_its_gradient_are_xlas(kind, name):
    shape, *window = WINDOWS[name]
    slow = pooling(kind, *window)
    values, slopes = drawn(shape, jax.eval_shape(slow, jnp.zeros(shape)).shape)
    values = jnp.round(2.0 * values)  # many are equal, and the first of them gets the gradient

    @partial(jax.jit, static_argnums=0)
    def both(pool):
        outputs, pull = jax.vjp(pool, values)
        return outputs, pull(slopes)[0]

    jax.tree.map(close, both(partial(quick.call, slow)), both(slow))


def test_a_maximum_over_a_dilated_window_is_xlas():
    slow = pooling("max", (1, 2, 2, 1), (1, 1, 1, 1), dilation=(1, 2, 2, 1))
    (values,) = drawn((2, 9, 8, 3))
    np.testing.assert_array_equal(quick.call(slow, values), slow(values))


def test_second_derivatives_and_forward_mode_of_a_maximum():
    slow = pooling("max", (1, 2, 2, 1), (1, 2, 2, 1))
    point, direction = drawn((2, 6, 4, 3), (2, 6, 4, 3))

    def everything(pool):
        slope = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))
        return jax.jvp(pool, (point,), (direction,))[1], jax.jvp(slope, (point,), (direction,))[1]

    jax.tree.map(close, everything(partial(quick.call, slow)), everything(slow))


def test_what_is_not_finite_stays_so():
    slow = pooling("max", (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    values = jnp.zeros((1, 7, 7, 1)).at[0, 2, 3, 0].set(jnp.nan).at[0, 6, 6, 0].set(jnp.inf).at[0, 0].set(-jnp.inf)
    np.testing.assert_array_equal(quick.call(slow, values), slow(values))


def test_vmap_over_either_or_both_operands():
    images, kernel = drawn((3, 2, 6, 5, 4), (3, 3, 4, 7))
    kernels = jnp.stack([kernel, 2.0 * kernel, kernel - 1.0])
    *_, slow = convolution((), (), NHWC)
    ours = partial(quick.call, slow)
    cases = [((0, None), (images, kernel)), ((None, 0), (images[0], kernels)), ((0, 0), (images, kernels))]
    for axes, operands in cases:
        close(jax.vmap(ours, axes)(*operands), jax.vmap(slow, axes)(*operands))
    twice = [jax.vmap(jax.vmap(function, (0, None)), (None, 0))(images, kernels) for function in (ours, slow)]
    close(*twice)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_for_other_backends_are_those_without(platform):
    *_, slow = convolution((), (), NHWC)
    pool = pooling("max", (1, 2, 2, 1), (1, 2, 2, 1))
    operands = drawn((2, 8, 8, 12), (3, 3, 12, 5))

    def text(convolve, pool):
        gradient = jax.grad(lambda *operands: jnp.sum(jnp.sin(pool(convolve(*operands)))), argnums=(0, 1))
        program = jax.jit(gradient).trace(*operands).lower(lowering_platforms=(platform,)).as_text()
        return re.sub(r"jit_\w+|@\w+", "", program)  # but for names

    assert text(partial(quick.call, slow), partial(quick.call, pool)) == text(slow, pool)


def test_eager_calls_work_with_and_without_jit():
    images, kernel = drawn((1, 5, 5, 2), (3, 3, 2, 2))
    first = conv2d(images, kernel)
    with jax.disable_jit():
        close(conv2d(images, kernel), first)
