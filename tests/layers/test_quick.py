# ruff: noqa: E501, a case a line
"""Quick primitives against JAX's own: every layout, stride, dilation, group and padding, in values and derivatives."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.layers import quick
from robustjax.layers.convolution import conv2d

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
# name -> (shape of the images, of the kernel, window strides, padding, everything else)
CONVOLUTIONS = {
    "valid": ((3, 9, 8, 12), (3, 3, 12, 5), (1, 1), "VALID", {"dimension_numbers": NHWC}),
    "channels first": ((3, 12, 9, 8), (5, 12, 3, 3), (1, 1), "SAME", {"dimension_numbers": NCHW}),
    "uneven": ((3, 12, 9, 8), (5, 12, 3, 2), (2, 1), [(0, 1), (2, 0)], {"dimension_numbers": NCHW}),
    "strided": ((3, 8, 8, 12), (4, 4, 12, 20), (2, 2), "SAME", {"dimension_numbers": NHWC}),
    "strided by more than it sees": ((2, 3, 9, 9), (4, 3, 1, 1), (3, 2), "VALID", {"dimension_numbers": NCHW}),
    "few in": ((3, 3, 9, 8), (12, 3, 5, 5), (1, 1), "SAME", {"dimension_numbers": NCHW}),
    "few out": ((2, 9, 8, 12), (3, 3, 12, 2), (1, 1), [(1, 0), (2, 1)], {"dimension_numbers": NHWC}),
    "small maps": ((2, 12, 2, 2), (12, 12, 3, 3), (1, 1), "SAME", {"dimension_numbers": NCHW}),
    "many": ((2, 64, 13, 12), (70, 64, 3, 3), (1, 1), "SAME", {"dimension_numbers": NCHW}),
    "many, valid": ((2, 14, 12, 64), (3, 3, 64, 64), (1, 1), "VALID", {"dimension_numbers": NHWC}),
    "dilated kernel": ((2, 12, 9, 8), (5, 12, 3, 3), (1, 1), "SAME", {"dimension_numbers": NCHW, "rhs_dilation": (2, 3)}),
    "dilated images": ((2, 4, 5, 12), (4, 4, 12, 9), (1, 1), [(2, 2), (1, 3)], {"dimension_numbers": NHWC, "lhs_dilation": (2, 3)}),
    "all dilated": ((2, 4, 5, 3), (3, 3, 3, 9), (2, 1), [(0, 0), (1, 0)], {"dimension_numbers": NHWC, "lhs_dilation": (2, 1), "rhs_dilation": (1, 2)}),
    "groups": ((2, 12, 9, 8), (8, 3, 3, 3), (1, 1), "SAME", {"dimension_numbers": NCHW, "feature_group_count": 4}),
    "groups, strided": ((2, 9, 8, 12), (3, 3, 6, 8), (2, 2), "SAME", {"dimension_numbers": NHWC, "feature_group_count": 2}),
    "depthwise": ((2, 9, 8, 12), (3, 3, 1, 12), (1, 1), "SAME", {"dimension_numbers": NHWC, "feature_group_count": 12}),
    "depthwise, strided, twofold": ((2, 12, 9, 8), (24, 1, 3, 3), (2, 2), "SAME", {"dimension_numbers": NCHW, "feature_group_count": 12}),
    "batch groups": ((4, 9, 8, 3), (3, 3, 3, 8), (1, 1), "SAME", {"dimension_numbers": NHWC, "batch_group_count": 2}),
    "odd layout": ((9, 2, 12, 8), (5, 3, 12, 3), (1, 1), "SAME", {"dimension_numbers": ("HNCW", "OHIW", "CWHN")}),
    "one axis": ((2, 12, 9), (5, 12, 3), (2,), "SAME", {"dimension_numbers": ("NCH", "OIH", "NCH")}),
    "three axes": ((2, 3, 5, 4, 6), (4, 3, 3, 2, 3), (1, 2, 1), "SAME", {"dimension_numbers": ("NCDHW", "OIDHW", "NCDHW")}),
    "no axis": ((3, 4), (4, 5), (), (), {"dimension_numbers": ("NC", "IO", "NC")}),
    "no images": ((0, 9, 8, 3), (3, 3, 3, 12), (1, 1), "SAME", {"dimension_numbers": NHWC}),
    "of another precision": ((2, 9, 8, 12), (3, 3, 12, 5), (1, 1), "SAME", {"dimension_numbers": NHWC, "precision": "highest", "preferred_element_type": jnp.float32}),
}  # fmt: skip


def close(ours, wanted, tolerance=1e-5):
    """Relative to the largest entry: the sums of a convolution cancel."""
    assert ours.shape == wanted.shape and ours.dtype == wanted.dtype
    scale = np.abs(wanted).max(initial=1e-30)
    np.testing.assert_allclose(np.asarray(ours) / scale, wanted / scale, atol=tolerance)


def drawn(*shapes):
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


@partial(jax.jit, static_argnums=0)
def everything(function, *operands):
    """Values, forward and reverse derivatives, and reverse derivatives of those."""
    count = len(operands) // 2
    point, direction = operands[:count], operands[count:]
    outputs, forward = jax.jvp(function, point, direction)
    pulled, again = jax.vjp(lambda *point: jax.vjp(function, *point)[1](jnp.cos(outputs)), *point)
    return outputs, forward, pulled, again(direction)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_derivatives_are_xlas(name):
    images, kernel, strides, padding, options = CONVOLUTIONS[name]
    slow = partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    operands = drawn(images, kernel, images, kernel)
    ours, wanted = (everything(each, *operands) for each in (partial(quick.call, slow), slow))
    jax.tree.map(close, ours, wanted)


def test_less_than_no_padding_takes_pixels_away():
    """Against the images without those pixels: XLA's own reads beyond its memory here."""
    images, kernel = drawn((2, 9, 8, 3), (3, 3, 3, 12))

    def cropped(padding, images):
        slow = partial(jax.lax.conv_general_dilated, window_strides=(2, 1), dimension_numbers=NHWC)
        return quick.call(partial(slow, padding=padding), images, kernel)

    ours = jax.vjp(partial(cropped, [(-1, 1), (0, -2)]), images)
    wanted = jax.vjp(lambda images: cropped([(0, 1), (0, 0)], images[:, 1:, :-2]), images)
    close(ours[0], wanted[0])
    close(ours[1](jnp.cos(ours[0]))[0], wanted[1](jnp.cos(wanted[0]))[0])


# name -> (shape, window, strides, padding, dilation of the window)
WINDOWS = {
    "halves": ((2, 6, 8, 3), (1, 2, 2, 1), (1, 2, 2, 1), "VALID", None),
    "odd": ((2, 3, 7, 5), (1, 1, 2, 2), (1, 1, 2, 2), "VALID", None),
    "overlapping": ((2, 3, 9, 8), (1, 1, 3, 3), (1, 1, 2, 2), "SAME", None),
    "sliding": ((2, 7, 6, 3), (1, 3, 2, 1), (1, 1, 1, 1), "SAME", None),
    "with gaps": ((2, 9, 8, 3), (1, 2, 1, 1), (1, 3, 2, 1), [(0, 0), (1, 2), (0, 0), (0, 0)], None),
    "over channels": ((2, 6, 4), (1, 2, 4), (1, 2, 4), "VALID", None),
    "large": ((1, 10, 9, 2), (1, 9, 8, 1), (1, 1, 1, 1), "VALID", None),
    "dilated": ((2, 9, 8, 3), (1, 2, 2, 1), (1, 1, 1, 1), "VALID", (1, 2, 2, 1)),
}


def pooled(kind, window, strides, padding, dilation):
    start, combine = {"max": (-jnp.inf, jax.lax.max), "sum": (0.0, jax.lax.add)}[kind]
    return lambda x: jax.lax.reduce_window(x, start, combine, window, strides, padding, window_dilation=dilation)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("kind", ["max", "sum"])
def test_pooling_and_its_gradient_are_xlas(kind, name):
    shape, *window = WINDOWS[name]
    slow = pooled(kind, *window)
    values, slopes = drawn(shape, jax.eval_shape(slow, jnp.zeros(shape)).shape)
    values = jnp.round(2.0 * values)  # many are equal, and the first of them gets the gradient

    @partial(jax.jit, static_argnums=0)
    def both(pool):
        outputs, pull = jax.vjp(pool, values)
        return outputs, pull(slopes)[0]

    if kind == "max" and name == "dilated":  # which JAX does not differentiate either
        np.testing.assert_array_equal(quick.call(slow, values), slow(values))
        return
    ours, wanted = both(partial(quick.call, slow)), both(slow)
    jax.tree.map(close, ours, wanted)


def test_second_derivatives_and_forward_mode_of_pooling():
    slow = pooled("max", (1, 2, 2, 1), (1, 2, 2, 1), "VALID", None)
    point, direction = drawn((2, 6, 4, 3), (2, 6, 4, 3))

    def everything(pool):
        slope = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))
        return jax.jvp(pool, (point,), (direction,))[1], jax.jvp(slope, (point,), (direction,))[1]

    jax.tree.map(close, everything(partial(quick.call, slow)), everything(slow))


def test_what_is_not_finite_stays_so():
    slow = pooled("max", (1, 3, 3, 1), (1, 2, 2, 1), "SAME", None)
    values = jnp.zeros((1, 7, 7, 1)).at[0, 2, 3, 0].set(jnp.nan).at[0, 6, 6, 0].set(jnp.inf).at[0, 0].set(-jnp.inf)
    np.testing.assert_array_equal(quick.call(slow, values), slow(values))


def test_vmap_over_either_or_both_operands():
    images, kernel = drawn((3, 2, 6, 5, 4), (3, 3, 4, 7))
    kernels = jnp.stack([kernel, 2.0 * kernel, kernel - 1.0])

    def slow(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=NHWC)

    ours = partial(quick.call, slow)
    for axes, operands in (
        ((0, None), (images, kernel)),
        ((None, 0), (images[0], kernels)),
        ((0, 0), (images, kernels)),
    ):
        close(jax.vmap(ours, axes)(*operands), jax.vmap(slow, axes)(*operands))
    close(
        jax.vmap(jax.vmap(ours, (0, None)), (None, 0))(images, kernels),
        jax.vmap(jax.vmap(slow, (0, None)), (None, 0))(images, kernels),
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_for_other_backends_are_those_without(platform):
    def gradient(convolve, pool):
        def value(images, kernel):
            return jnp.sum(jnp.sin(pool(convolve(images, kernel))))

        return jax.jit(jax.grad(value, argnums=(0, 1)))

    slow = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    pool = pooled("max", (1, 2, 2, 1), (1, 2, 2, 1), "VALID", None)
    operands = drawn((2, 8, 8, 12), (3, 3, 12, 5))

    def text(*functions):
        program = gradient(*functions).trace(*operands).lower(lowering_platforms=(platform,)).as_text()
        return re.sub(r"jit_\w+|@\w+", "", program)

    assert text(partial(quick.call, slow), partial(quick.call, pool)) == text(slow, pool)


def test_eager_calls_work_with_and_without_jit():
    images, kernel = drawn((1, 5, 5, 2), (3, 3, 2, 2))
    first = conv2d(images, kernel)
    with jax.disable_jit():
        close(conv2d(images, kernel), first)
