"""Checks of single arguments, each bound from both sides; test_inputs.py has the attacks that use them."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks
from robustjax.attacks import losses
from robustjax.attacks.engine.inputs import _arguments as arguments
from robustjax.attacks.engine.inputs import on_host
from robustjax.types import InputError


def test_a_box_is_known_before_a_program_is_compiled():
    @jax.jit
    def program(bounds):
        return arguments.box(bounds, 1)

    with pytest.raises(InputError, match="bounds must be two numbers low < high"):
        program(jnp.array([0.0, 1.0]))


def test_of_a_long_reason_the_beginning_is_given():
    class Odd:
        def __array__(self, *_, **__):
            raise ValueError(150 * "x")

    with pytest.raises(InputError, match=r"images must be an array, got Odd \(x{100}\); make it one"):
        arguments.as_array("images", Odd())


def test_walls_are_rounded_for_half_precision_alone():
    assert arguments.box((0.1, 0.7), 1) == arguments.box((0.1, 0.7), 1, np.float64) == (0.1, 0.7)
    assert arguments.box((0.1, 0.7), 1, np.float16) == (float(np.float16(0.1)), float(np.float16(0.7)))


@pytest.mark.parametrize("bounds", [(0.5, 0.5), ([0.0, 0.5], [1.0, 0.5])])
def test_a_box_has_room_between_its_walls(bounds):
    with pytest.raises(InputError, match="bounds must be two numbers low < high"):
        arguments.box(bounds, np.ndim(bounds))


def test_images_may_touch_the_walls_of_each_channel_and_no_more():
    images = np.array([[0.0, 0.5], [1.0, 2.0]], np.float32)
    arguments.check_in_box(images, ((0.0, 0.5), (1.0, 2.0)))
    for bounds in (
        ((0.0, 0.5), (1.0, 1.9)),
        ((0.0, 0.6), (1.0, 2.0)),
        ((0.1, 0.0), (1.0, 2.0)),
        (0.0, 1.5),
        (0.1, 2.0),
    ):
        with pytest.raises(InputError, match="images must be finite pixels in bounds"):
            arguments.check_in_box(images, bounds)
    # A wall as the dtype has it: 0.7 of bfloat16 is above that of float32.
    arguments.check_in_box(jnp.full((1, 1), 0.7, jnp.bfloat16), (0.0, 0.7))
    with pytest.raises(InputError, match="images must be finite"):
        arguments.check_in_box(np.array([[0.5, np.nan]]), (0.0, 1.0))


def test_labels_are_integers_that_fit_or_of_kl_probabilities():
    assert arguments.as_labels(np.array([0, 2**31 - 1]), 2, loss=losses.margin).dtype == jnp.int32
    with pytest.raises(InputError, match="labels must be classes, got 2147483648"):
        arguments.as_labels(np.array([0, 2**31]), 2, loss=losses.margin)
    distributions = np.full((2, 3), 1 / 3, np.float32)
    assert arguments.as_labels(distributions, 2, loss=losses.kl).shape == (2, 3)
    assert arguments.as_labels(np.array([1, 2]), 2, loss=losses.kl).dtype == jnp.int32
    for labels, mend in (
        (np.zeros((2, 3), np.int32), "of one-hot labels their argmax"),
        (np.zeros((2, 1), np.int32), r"labels\[:, 0\]"),
        (np.zeros(3, np.int32), "the number of each image's class$"),
    ):
        with pytest.raises(InputError, match=mend):
            arguments.as_labels(labels, 2, loss=losses.cross_entropy)
    for labels in (distributions[:1], distributions[0], np.zeros(3, np.int32)):
        with pytest.raises(InputError, match=r"integers \[2\]"):
            arguments.as_labels(labels, 2, loss=losses.kl)
    # A loss of one's own takes what it likes.
    assert arguments.as_labels(distributions, 5, loss=lambda outputs, labels: outputs).shape == (2, 3)


def test_classes_are_numbered_from_0_to_one_less_than_there_are():
    arguments.labels_in_range(np.array([0, 2]), 3)
    for labels, number in ((np.array([0, 3]), 3), (np.array([-1, 0]), None)):
        with pytest.raises(InputError, match="number the classes from 0"):
            arguments.labels_in_range(labels, number)


def test_a_radius_is_a_number_from_0_or_one_for_each_example():
    for value in (0, 0.0, np.inf, np.zeros(2), [0.1, np.inf]):
        arguments.check_radius("epsilon", value, 2, allow_infinite=True)
    for value in (-1e-9, np.nan, [0.1, -0.1], np.zeros(3), np.zeros((2, 1)), "0.1"):
        with pytest.raises(InputError, match="epsilon must be a number >= 0, or one for each of 2 examples"):
            arguments.check_radius("epsilon", value, 2, allow_infinite=True)
    for value, got in (
        ("0.1", "'0.1'"),
        (None, "None"),
        (np.zeros((2, 1)), r"float64 \[2, 1\]"),
        ([True], r"bool \[1\]"),
    ):
        with pytest.raises(InputError, match=f"got {got}; give one number for all"):
            arguments.check_radius("epsilon", value, 2, allow_infinite=True)
    with pytest.raises(InputError, match="got inf"):
        arguments.check_radius("epsilon", np.inf, 2, allow_infinite=False)


def test_logits_are_floats_of_each_example_and_two_classes_at_least():
    logits = jnp.zeros((3, 2))
    assert arguments.logits_of(logits, 3) is logits
    assert arguments.logits_of(SimpleNamespace(logits=logits), 3) is logits
    for outputs, got in (
        (jnp.zeros((2, 2)), r"float32 \[2, 2\]; return a row"),
        (jnp.zeros((3, 2), jnp.int32), r"int32 \[3, 2\]; return a row"),
        (jnp.zeros((3, 2, 2)), r"float32 \[3, 2, 2\]; return a row"),
        (jnp.zeros((3, 1)), r"float32 \[3, 1\]; of one score"),
        (jnp.zeros(3), r"float32 \[3\]; of one score"),
        ([logits], "list; return a row"),
    ):
        with pytest.raises(InputError, match=rf"logits_fn must return float logits \[3, K\] with K >= 2, got {got}"):
            arguments.logits_of(outputs, 3)


def test_images_are_batches_of_floats():
    for num_axes, shape in ((None, (2, 3)), (None, (1, 2, 2, 1)), (4, (1, 2, 2, 1))):
        assert arguments.as_images(np.zeros(shape), num_axes).shape == shape
    for images, num_axes, message in (
        (np.zeros(3), None, r"floats \[B, ...\], got float64 \[3\]; give a batch"),
        (np.zeros((2, 3)), 4, r"floats \[B, H, W, C\], got float64 \[2, 3\]; give a batch"),
        (np.zeros((2, 3), np.uint8), None, "divide integers by 255 and"),
        (np.zeros((2, 3), bool), None, "convert them and"),
    ):
        with pytest.raises(InputError, match=message):
            arguments.as_images(images, num_axes)


def test_a_network_that_draws_is_asked_with_the_first_of_many_keys():
    def draws(images, key):
        return images + jax.random.normal(key, images.shape)

    images, labels = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)
    for key in (jax.random.key(0), jax.random.split(jax.random.key(0))):
        arguments.check_outputs(draws, key, images, labels, losses.margin, eot_samples=2, library_loss=True)
    with pytest.raises(InputError, match="logits_fn must take"):
        arguments.check_outputs(draws, key, images, labels, losses.margin, eot_samples=0, library_loss=True)


def test_labels_are_compared_with_logits_and_with_no_other_outputs():
    images, key = jnp.zeros((2, 3)), jax.random.key(0)

    def check(network, labels, loss=losses.margin):
        library_loss = loss is losses.margin
        arguments.check_outputs(network, key, images, labels, loss, eot_samples=0, library_loss=library_loss)

    def own(outputs, labels):
        return jnp.sum(outputs, axis=(1, 2)) + labels.astype(jnp.float32)

    check(lambda images: images, jnp.array([0, 2]))
    with pytest.raises(InputError, match="labels must be classes 0 to 2, as there are logits"):
        check(lambda images: images, jnp.array([0, 3]))
    check(lambda images: jnp.zeros((2, 3, 3)), jnp.array([0, 3]), own)
    with pytest.raises(InputError, match="loss must return one number for each example"):
        check(lambda images: jnp.zeros((2, 3, 3)), jnp.array([0, 3]), lambda outputs, labels: jnp.sum(outputs))


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        (attacks.apgd, {"epsilon": 0.1, "num_steps": 8}),
        (attacks.fab, {"epsilon": 0.1, "num_steps": 2}),
        (attacks.square, {"epsilon": 0.1, "num_queries": 4}),
        (attacks.hopskipjump, {"epsilon": 0.1, "num_steps": 1, "num_queries": 100}),
        (attacks.cw, {"num_steps": 2}),
        (attacks.deepfool, {"num_steps": 2}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_attacks_take_one_key_for_each_example(attack, options):
    def network(images):
        return images.reshape(2, -1)[:, :3]

    images, labels = jnp.full((2, 2, 2, 1), 0.5), jnp.zeros(2, jnp.int32)
    for keys in (jax.random.key(0), jax.random.split(jax.random.key(0))):
        shape = jax.eval_shape(partial(attack, network, **options), keys, images, labels)
        assert (shape.shape, shape.dtype) == (images.shape, images.dtype)


def test_a_driver_gets_one_radius_for_each_image_and_refuses_to_have_none():
    images = np.full((2, 1, 1, 1), 0.5, np.float64)
    given, labels, radius, _ = on_host(images, [0, 1], 0.25, "linf", (0.0, 1.0))
    assert (given.dtype, labels.dtype, radius.dtype) == (np.float32, np.int32, np.float32)
    np.testing.assert_array_equal(radius, [0.25, 0.25])
    with pytest.raises(InputError, match="images must be at least one"):
        on_host(images[:0], np.zeros(0, np.int32), 0.25, "linf", (0.0, 1.0))
    assert len(on_host(images[:0], np.zeros(0, np.int32), 0.25, "linf", (0.0, 1.0), allow_empty=True)[0]) == 0
