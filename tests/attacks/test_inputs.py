"""Inputs that cannot lie: every public attack with every kind of wrong, unusual and degenerate input."""

import functools
import inspect
import re
import sys
import types
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import attacks
from robustjax.attacks import losses
from robustjax.attacks.engine import inputs
from robustjax.attacks.engine.verify import is_correct, is_valid, verify
from robustjax.types import InputError, Outputs

SHAPE, SIZE, NUM_CLASSES, EPSILON = (6, 3, 3, 2), 18, 5, 0.2
RNG = np.random.default_rng(3)
IMAGES = RNG.uniform(0.3, 0.7, SHAPE).astype(np.float32)
WEIGHTS = RNG.normal(size=(SIZE, NUM_CLASSES)).astype(np.float32)
LABELS = np.asarray((IMAGES.reshape(-1, SIZE) - 0.5) @ WEIGHTS).argmax(1).astype(np.int32)


def network(images):
    """Linear, in the dtype of the images, which it insists on."""
    return (images.reshape(images.shape[0], SIZE) - 0.5) @ jnp.asarray(WEIGHTS, images.dtype)


BALL = {"epsilon": EPSILON}
STEPS = {**BALL, "step_size": 0.05, "num_steps": 3}
ATTACKS = {
    "fgsm": functools.partial(attacks.fgsm, **BALL),
    "n_fgsm": functools.partial(attacks.n_fgsm, **BALL),
    "pgd": functools.partial(attacks.pgd, **STEPS, num_restarts=2),
    "apgd": functools.partial(attacks.apgd, **BALL, num_steps=4, loss="dlr-targeted", num_targets=4),
    "fab": functools.partial(attacks.fab, **BALL, num_steps=3, num_targets=4),
    "square": functools.partial(attacks.square, **BALL, num_queries=10),
    "hopskipjump": functools.partial(attacks.hopskipjump, **BALL, num_steps=2, num_queries=150),
    "cw": functools.partial(attacks.cw, num_steps=20, num_searches=2, learning_rate=0.1, initial_weight=1.0),
    "deepfool": functools.partial(attacks.deepfool, num_steps=3),
    "multi_targeted": functools.partial(attacks.multi_targeted, **STEPS),
    "optimized_pgd": functools.partial(attacks.optimized_pgd, **BALL, optimizer=optax.adam(0.05), num_steps=3),
    "autoattack": functools.partial(attacks.autoattack, **BALL, version=["apgd-ce", "fab-t"], batch_size=16),
}
PURE = [name for name in ATTACKS if name != "autoattack"]
IN_BALL = [name for name in ATTACKS if name not in ("n_fgsm", "cw", "deepfool")]
MINIMUM_NORM = ["fab", "hopskipjump", "cw", "deepfool"]


def run(name, logits_fn=network, images=IMAGES, labels=LABELS, key=None, **options):
    """The attack's images."""
    result = ATTACKS[name](logits_fn, jax.random.key(0) if key is None else key, images, labels, **options)
    return getattr(result, "images", result)


@functools.cache
def usual(name):
    """What an attack gives for the usual input."""
    return np.asarray(run(name))


def test_every_public_attack_is_in_the_table():
    functions = {name for name in attacks.__all__ if inspect.isfunction(getattr(attacks, name))}
    assert functions == set(ATTACKS)


class Tensor:
    """Arrays of another library, whose dtypes NumPy and JAX do not know."""

    dtype = "torch.float32"

    def __init__(self, array):
        self.array, self.shape, self.ndim = array, array.shape, array.ndim

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


@pytest.mark.parametrize("name", ["pgd", "autoattack"])
def test_tensors_of_other_libraries_are_arrays(name):
    np.testing.assert_array_equal(run(name, images=Tensor(IMAGES), labels=Tensor(LABELS.astype(int))), usual(name))
    with pytest.raises(InputError, match=r"images must be floats .*got uint8"):
        run(name, images=Tensor((255 * IMAGES).astype(np.uint8)))


class Module:
    """Looks like a ``torch.nn.Module``, which need not be installed."""

    __module__ = "torch.nn.modules.module"

    def __call__(self, images):
        raise TypeError("conv2d() received an invalid combination of arguments")


# What tells by shape and dtype, which is refused under jit as well, and what tells by value.
BY_SHAPE = {
    "one logit": ({"logits_fn": lambda x: network(x)[:, :1]}, r"logits_fn must return float logits .*make two logits"),
    "scores": ({"logits_fn": lambda x: network(x)[:, 0]}, r"logits_fn must return float logits .*make two logits"),
    "another batch": ({"logits_fn": lambda x: network(x)[:3]}, "logits_fn must return float logits"),
    "classes": ({"logits_fn": lambda x: jnp.argmax(network(x), axis=1)}, "logits_fn must return float logits"),
    "a tuple": ({"logits_fn": lambda x: (network(x), x)}, "logits_fn must return float logits .*got tuple"),
    "an undeclared key": (
        {"logits_fn": lambda images, key: network(images)},
        r"logits_fn must take \(images\), got \(images, key\); of a network that draws give eot_samples",
    ),
    "a network that is none": ({"logits_fn": WEIGHTS}, r"logits_fn must be a function of \(images\), got ndarray"),
    "a module of PyTorch": (
        {"logits_fn": Module()},
        r"logits_fn must be a function of JAX arrays, got the torch.nn.Module Module; make one by transforms",
    ),
    "integer images": ({"images": (255 * IMAGES).astype(np.uint8)}, "images must be floats .*got uint8"),
    "one number an image": ({"images": IMAGES[:, 0, 0, 0]}, "images must be floats .*got float32"),
    "one-hot labels": (
        {"labels": np.eye(NUM_CLASSES, dtype=np.float32)[LABELS]},
        r"labels must be integers \[6\], got",
    ),
    "float labels": ({"labels": LABELS.astype(np.float32)}, r"labels must be integers \[6\], got float32 \[6\]"),
    "labels [B, 1]": ({"labels": LABELS[:, None]}, r"labels must be integers \[6\], got int32 \[6, 1\]"),
    "too few labels": ({"labels": LABELS[:4]}, r"labels must be integers \[6\], got int32 \[4\]"),
    "epsilon of another length": ({"epsilon": np.full(3, 0.1, np.float32)}, "epsilon must be a number >= 0, or one"),
    "epsilon as text": ({"epsilon": "8/255"}, "epsilon must be a number >= 0, or one"),
    "step_size of another length": ({"step_size": np.full(3, 0.1, np.float32)}, "step_size must be a number >= 0, or"),
    "a key of the old kind": ({"key": jax.random.PRNGKey(0)}, "key must be a typed key.*wrap_key_data"),
    "a seed as key": ({"key": 0}, r"key must be a typed key.*jax.random.key\(seed\)"),
    "keys for another batch": ({"key": jax.random.split(jax.random.key(0), 4)}, r"key must be a typed key.*keys \[4\]"),
    "bounds upside down": ({"bounds": (1.0, 0.0)}, "bounds must be two numbers low < high"),
    "bounds as text": ({"bounds": "01"}, "bounds must be two numbers low < high.*got '01'"),
    "bounds not finite": ({"bounds": (0.0, np.nan)}, "bounds must be two numbers low < high"),
    "three bounds": ({"bounds": (0.0, 0.5, 1.0)}, "bounds must be two numbers low < high"),
    "bounds of other channels": (
        {"bounds": (np.zeros(3), np.ones(3))},
        "bounds must be two numbers low < high, or arr",
    ),
    "an unknown norm": ({"norm": "l7"}, "norm must be "),
    "an unknown order of targets": ({"targets": "malt"}, "targets must be one of logits, linearised, got 'malt'"),
    "bfloat16 of other classes": (
        {"bfloat16_fn": lambda x: network(x)[:, :3]},
        r"bfloat16_fn must return outputs of logits_fn's shapes, \(\d, 5\), got \(\d, 3\); give the same network",
    ),
    "bfloat16 of a tuple": ({"bfloat16_fn": lambda x: (network(x), x)}, r"bfloat16_fn must return .*got \(\(\d, 5\), "),
    "an order of targets of each image": (
        {"targets": LABELS},
        "targets must be one of logits, linearised, got array",
    ),
    "two norms": ({"norm": np.array(["l2", "linf"])}, "norm must be "),
    "bfloat16 of a number": ({"bfloat16_fn": 3}, r"bfloat16_fn must be a function of \(images\), got int; give one"),
    "bfloat16 with a key": (
        {"bfloat16_fn": lambda images, key: network(images)},
        r"bfloat16_fn must take \(images\), got \(images, key\); of a network that draws give eot_samples",
    ),
    "a start of another shape": (
        {"start": IMAGES[:3]},
        r"start must be float points \[6, 3, 3, 2\] like the images, got float32 \[3,",
    ),
    "a start of bytes": ({"start": (255 * IMAGES).astype(np.uint8)}, "start must be float points .*got uint8"),
    "a start in words": ({"start": "clean"}, "start must be float points .*got <U5"),
    "a learning rate of each image": (
        {"learning_rate": [0.01] * 6},
        r"learning_rate must be a number >= 0, got float64 \[6\]; give one number for all",
    ),
    "a list of one learning rate": (
        {"learning_rate": [0.01]},
        r"learning_rate must be a number >= 0, got float64 \[1\]",
    ),
    "negative eot_samples": ({"eot_samples": -1}, "eot_samples must be at least 0"),
    "eot_samples of a network without draws": (
        {"eot_samples": 2, "logits_fn": lambda images: network(images)},
        r"logits_fn must take \(images, key\), as eot_samples=2 says, got \(images\); leave eot_samples out",
    ),
    "a loss by its first letters": ({"loss": "c"}, "loss must be "),
    "a list of losses": ({"loss": ["ce"]}, "loss must be "),
}
BY_VALUE = {
    "not a number": ({"images": np.where(IMAGES > 0.6, np.nan, IMAGES)}, "images must be finite pixels in bounds"),
    "infinite": ({"images": np.where(IMAGES > 0.6, np.inf, IMAGES)}, "images must be finite pixels in bounds"),
    "outside bounds": ({"images": 255 * IMAGES}, "images must be finite pixels in bounds.*scale them"),
    "a label too large": ({"labels": np.where(LABELS == 0, NUM_CLASSES, LABELS)}, "labels must be classes 0 to 4"),
    # It becomes 0 in 32 bits.
    "a label of 64 bits": (
        {"labels": np.where(LABELS == 0, -(2**32), LABELS.astype(np.int64))},
        "labels must be classes, got -4294967296; number the classes from 0",
    ),
    "a negative label": ({"labels": np.where(LABELS[0] == LABELS, -1, LABELS)}, "labels must be classes 0"),
    "negative epsilon": ({"epsilon": -0.1}, "epsilon must be a number >= 0, or one for each of 6.*got -0.1"),
    "one negative epsilon": ({"epsilon": np.array([0.1] * 5 + [-0.2], np.float32)}, "epsilon must be .*got -0.2"),
    "epsilon nan": ({"epsilon": float("nan")}, "epsilon must be a number >= 0, or one for each of 6.*got nan"),
    "negative step_size": ({"step_size": -0.1}, "step_size must be a number >= 0"),
}  # fmt: skip


def cases(kinds, names):
    """(attack, change, message), where the attack has the option that the change is of."""
    table = []
    for kind, (change, message) in kinds.items():
        for name in names:
            option = next(iter(change))
            if option in inspect.signature(ATTACKS[name]).parameters:
                table.append(pytest.param(name, change, message, id=f"{name}-{kind}"))
    return table


def refused(name, change, message, call):
    options = dict(change)
    logits_fn, key = options.pop("logits_fn", network), options.pop("key", jax.random.key(0))
    images, labels = options.pop("images", IMAGES), options.pop("labels", LABELS)
    with pytest.raises(InputError, match=message) as caught:
        call(lambda images, labels: ATTACKS[name](logits_fn, key, images, labels, **options), images, labels)
    assert re.fullmatch(r"\w+ must .+, got .+; .+", str(caught.value))


@pytest.mark.parametrize(("name", "change", "message"), cases(BY_SHAPE | BY_VALUE, ATTACKS))
def test_wrong_input_is_refused(name, change, message):
    refused(name, change, message, lambda function, *arguments: function(*arguments))


@pytest.mark.parametrize(("name", "change", "message"), cases(BY_SHAPE, PURE))
def test_shapes_and_dtypes_are_refused_under_jit(name, change, message):
    refused(name, change, message, jax.eval_shape)


@pytest.mark.parametrize("name", PURE)
def test_outputs_that_carry_logits_give_the_same_under_jit(name):
    carrying = lambda images: Outputs(network(images), {}, {})  # noqa: E731
    result = jax.jit(functools.partial(run, name, carrying))(IMAGES, LABELS)
    np.testing.assert_allclose(result, usual(name), atol=2e-6)


def test_autoattack_ends_with_outputs_that_carry_logits(key):
    carrying = lambda images: Outputs(network(images), {}, {})  # noqa: E731
    lead = np.asarray(network(IMAGES), np.float64)
    lead = lead[np.arange(6), LABELS, None] - lead
    slopes = np.abs(WEIGHTS[:, LABELS, None] - WEIGHTS[:, None]).sum(0)  # the l1 norm of their difference
    distances = np.where(slopes > 0, lead / np.where(slopes > 0, slopes, 1.0), np.inf).min(1)
    epsilon = 0.02
    assert 0 < (distances > epsilon).sum() < 6 and np.abs(distances / epsilon - 1).min() > 0.02
    result = attacks.autoattack(carrying, key, IMAGES, LABELS, epsilon=epsilon, version="plus", batch_size=16)
    np.testing.assert_array_equal(result.robust, distances > epsilon)
    assert list(result.by_attack) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]


def program(name, **options):
    attack = functools.partial(ATTACKS[name], network, jax.random.key(0), labels=LABELS, **options)
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(lambda images: attack(images=images))(IMAGES)))


usual_program = functools.cache(program)


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize(
    "bounds",
    [[0.0, 1], np.array([0.0, 1.0]), (jnp.float32(0), jnp.int32(1)), jnp.array([0.0, 1.0])],
    ids=["list", "numpy", "scalars", "jax"],
)
def test_bounds_of_any_kind_make_the_same_program(bounds, name):
    assert program(name, bounds=bounds) == usual_program(name)


def test_autoattack_takes_bounds_of_any_kind():
    for bounds in ([0.0, 1], np.array([0.0, 1.0]), (jnp.float32(0), jnp.int32(1)), (np.zeros(2), np.ones(2))):
        np.testing.assert_array_equal(run("autoattack", bounds=bounds), usual("autoattack"))


@pytest.mark.parametrize("name", ATTACKS)
def test_bounds_of_each_channel(name):
    low, high = IMAGES.min((0, 1, 2)) - 0.01, IMAGES.max((0, 1, 2)) + np.array([0.01, 0.02])
    images = np.asarray(run(name, bounds=(low, high)))
    assert np.all(images >= low.astype(np.float32)) and np.all(images <= high.astype(np.float32))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays_in_ball_and_box(dtype, name):
    images = jnp.asarray(IMAGES, dtype).at[0].set(jnp.asarray(0.0, dtype))  # at a wall
    adversarial = run(name, images=images, labels=LABELS.astype(np.uint8))
    assert adversarial.dtype == dtype and adversarial.shape == SHAPE
    read, origin = np.asarray(adversarial, np.float32), np.asarray(images, np.float32)
    radius = 3 * EPSILON if name == "n_fgsm" else EPSILON if name in IN_BALL else np.inf
    assert read.min() >= 0 and read.max() <= 1 and np.abs(read - origin).max() <= np.float32(radius)
    assert np.any(~np.asarray(is_correct(network(jnp.asarray(adversarial)), LABELS)) & (np.arange(6) > 0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_walls_that_half_precision_rounds_outwards_hold_its_pixels(dtype):
    """A pixel at such a wall would make an image invalid, and a success none, whatever happens to the others."""
    low, high = bounds = (-2.1179, 2.64)
    scaled = lambda images: network((images.astype(jnp.float32) - low) / (high - low))  # noqa: E731
    images = jnp.asarray(low + (high - low) * IMAGES, dtype).at[:, 0].set(low).at[:, 1].set(high)
    labels = np.asarray(scaled(images)).argmax(1)
    options = {"epsilon": EPSILON * (high - low), "version": ["apgd-ce"], "bounds": bounds}
    result = attacks.autoattack(scaled, jax.random.key(0), images, labels, **options)
    assert result.images.dtype == dtype and not result.robust.all()
    np.testing.assert_array_equal(result.robust, np.asarray(is_correct(scaled(result.images), labels)))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_x64_gives_what_float32_gives(dtype, name):
    expected = usual(name)
    with jax.enable_x64(True):
        adversarial = np.asarray(run(name, images=IMAGES.astype(dtype), labels=LABELS.astype(np.int64)))
    assert adversarial.dtype == dtype
    if name not in ("cw", "square"):  # Adam's rounding and random signs differ
        np.testing.assert_allclose(adversarial, expected, atol=1e-4)
    assert np.all(adversarial >= 0) and np.all(adversarial <= 1)
    if name in IN_BALL:
        assert np.abs(adversarial - IMAGES).max() <= EPSILON * (1 + 1e-6) + 1e-7


@pytest.mark.parametrize("x64", [False, True])
def test_options_of_each_image_may_be_lists_and_of_any_dtype(x64):
    for name, each in {
        "cw": {"confidence": 0.5, "initial_weight": 2.0},
        "deepfool": {"overshoot": 0.1},
        "n_fgsm": {"noise": 1.0, "epsilon": 0.1},
        "pgd": {"step_size": 0.1, "epsilon": 0.1},
    }.items():
        with jax.enable_x64(x64):
            expected = run(name, **each)
            for kind in (lambda value: [value] * 6, lambda value: np.full(6, value), np.float64):
                some = run(name, **{option: kind(value) for option, value in each.items()})
                np.testing.assert_allclose(some, expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_empty_batch_is_empty(dtype, name):
    refusing = lambda images: 1 / 0  # noqa: E731
    result = ATTACKS[name](refusing, jax.random.key(0), jnp.zeros((0, 3, 3, 2), dtype), np.zeros(0, np.int32))
    images = getattr(result, "images", result)
    assert images.shape == (0, 3, 3, 2) and images.dtype == dtype
    if name == "autoattack":
        assert result.robust.shape == (0,) and list(result.by_attack) == ["apgd-ce", "fab-t"]


@pytest.mark.parametrize("name", ATTACKS)
def test_masked_classes_are_no_targets(name):
    """Two of five classes at -inf."""
    masked = np.arange(NUM_CLASSES)[None] >= 3
    three = lambda images: jnp.where(masked, -jnp.inf, network(images))  # noqa: E731
    labels = np.asarray(three(jnp.asarray(IMAGES))).argmax(1)
    adversarial = np.asarray(run(name, three, labels=labels))
    assert np.all(np.isfinite(adversarial)) and np.all(adversarial >= 0) and np.all(adversarial <= 1)
    assert np.any(~is_correct(three(jnp.asarray(adversarial)), labels))


@pytest.mark.parametrize("name", PURE)
def test_a_mask_whose_derivative_is_no_number_spoils_no_image(name):
    """log(0) of something that depends on the image."""
    masked = np.arange(NUM_CLASSES)[None] >= 3

    def three(images):
        logits = network(images)
        return logits + jnp.log(jnp.where(masked, 0.0 * logits, 1.0))

    labels = np.asarray(three(jnp.asarray(IMAGES))).argmax(1)
    adversarial = np.asarray(run(name, three, labels=labels))
    assert np.all(np.isfinite(adversarial)) and np.all(adversarial >= 0) and np.all(adversarial <= 1)
    if name in IN_BALL:
        assert np.all(is_valid(IMAGES, adversarial, epsilon=EPSILON))


@pytest.mark.parametrize("name", MINIMUM_NORM)
def test_only_one_class_left_is_no_boundary(name):
    alone = lambda images: jnp.where(jnp.arange(5)[None] == 0, network(images), -jnp.inf)  # noqa: E731
    np.testing.assert_array_equal(run(name, alone, labels=np.zeros(6, np.int32)), IMAGES)


@pytest.mark.parametrize("name", ATTACKS)
def test_logits_that_are_not_numbers_are_misclassified(name):
    """NaN for every other image, at the image and everywhere: these are not moved by minimum-norm attacks."""

    def poisoned(images):
        bad = jnp.arange(images.shape[0]) % 2 == 1
        return jnp.where(bad[:, None], jnp.nan, network(images))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adversarial = np.asarray(run(name, poisoned))
    assert np.all(np.isfinite(adversarial)) and np.all(adversarial >= 0) and np.all(adversarial <= 1)
    if name in IN_BALL:
        assert np.all(is_valid(IMAGES, adversarial, epsilon=EPSILON))
    if name in MINIMUM_NORM or name == "autoattack":
        np.testing.assert_array_equal(adversarial[1::2], IMAGES[1::2])
    assert np.any(adversarial[::2] != IMAGES[::2])


@pytest.mark.parametrize("name", [*MINIMUM_NORM, "autoattack"])
def test_misclassified_images_come_back_exactly(name):
    labels = np.where(np.arange(6) < 3, (LABELS + 1) % NUM_CLASSES, LABELS)
    options = {"num_targets": None} if name == "fab" else {}
    for dtype in (np.float32, jnp.bfloat16):
        images = IMAGES.astype(dtype)
        adversarial = np.asarray(run(name, images=images, labels=labels, **options))
        np.testing.assert_array_equal(adversarial[:3], images[:3])
        assert np.any(adversarial[3:] != images[3:])


@pytest.mark.parametrize("name", MINIMUM_NORM)
def test_of_equal_logits_the_first_is_the_prediction(name):
    tied = lambda images: network(images)[:, :1] * jnp.ones((1, 2))  # noqa: E731
    for label, correct in ((0, True), (1, False)):
        labels = np.full(6, label, np.int32)
        np.testing.assert_array_equal(is_correct(tied(jnp.asarray(IMAGES)), labels), correct)
        np.testing.assert_array_equal(run(name, tied, labels=labels), IMAGES)


def test_a_loss_of_ones_own_gets_what_it_takes(key):
    pair = lambda images: {"score": network(images)}  # noqa: E731
    loss = lambda outputs, weights: jnp.sum(outputs["score"] * weights, axis=1)  # noqa: E731
    weights = np.ones((6, NUM_CLASSES), np.float32)
    for name in ("fgsm", "pgd", "n_fgsm", "optimized_pgd"):
        assert np.all(loss(pair(run(name, pair, labels=weights, loss=loss)), weights) > loss(pair(IMAGES), weights))
        with pytest.raises(InputError, match=r"loss must return one number for each example \[6\], got \[\]"):
            run(name, pair, labels=weights, loss=lambda *both: jnp.mean(loss(*both)))


def test_distributions_are_labels_of_kl_alone(key):
    labels = np.asarray(jax.nn.softmax(network(jnp.asarray(IMAGES))))
    assert np.any(run("pgd", labels=labels, loss=losses.kl) != IMAGES)
    with pytest.raises(InputError, match=r"labels must be probabilities \[6, 5\], got \[6, 3\]"):
        run("pgd", labels=labels[:, :3], loss=losses.kl)
    with pytest.raises(InputError, match=r"labels must be integers \[6\]"):
        run("pgd", labels=labels, loss=functools.partial(losses.margin, confidence=1.0))


def _attacked(network, images=IMAGES, **options):
    images = jnp.asarray(images)
    labels = np.asarray(verify(network, jax.random.key(0), images, images, np.zeros(len(images), int), epsilon=0.1,
                               norm="linf").logits).argmax(1)  # fmt: skip
    return attacks.autoattack(
        network, jax.random.key(0), images, labels, epsilon=0.01, version=["apgd-ce"], batch_size=16, **options
    )


def test_the_driver_warns_of_probabilities_once():
    with pytest.warns(UserWarning, match="probabilities") as caught:
        _attacked(lambda images: jax.nn.softmax(20 * network(images)))
    assert len(caught) == 1 and caught[0].filename == __file__


def test_the_driver_warns_of_logits_that_are_no_numbers_as_given_and_of_those_that_attacks_make_so():
    least = np.sort(IMAGES.mean(axis=(1, 2, 3)))[:2].mean()

    def poisoned(images):
        return jnp.where((images.mean(axis=(1, 2, 3)) < least)[:, None], jnp.nan, network(images))

    with pytest.warns(UserWarning) as caught:
        result = _attacked(poisoned)
    assert str(caught[0].message).startswith("logits are not finite for 1 of 6 images: NaN counts as misclassified")
    assert result.robust.sum() <= 5

    def darker(images):
        mean = images.mean(axis=(1, 2, 3))
        return jnp.stack([2.0 + 0.0 * mean, jnp.where(mean < 0.495, jnp.nan, 0.5 - mean)], axis=1)

    with pytest.warns(UserWarning, match="not finite for 1 of 1 adversarial images"):
        _attacked(darker, np.full_like(IMAGES[:1], 0.5))


@pytest.mark.parametrize("source", ["call", "trace"])
def test_the_driver_warns_of_randomness_that_was_not_declared(source):
    rng = np.random.default_rng(0)

    def noisy(images):
        if source == "trace":
            return network(images) + rng.normal(size=(images.shape[0], NUM_CLASSES)).astype(np.float32)
        shape = jax.ShapeDtypeStruct((images.shape[0], NUM_CLASSES), jnp.float32)
        return network(images) + jax.pure_callback(lambda: rng.normal(size=shape.shape).astype(np.float32), shape)

    with pytest.warns(UserWarning, match="differ between two calls"):
        _attacked(noisy)


@pytest.mark.parametrize("count", [1, 6])
def test_the_driver_warns_of_outputs_that_change_with_the_batch(count):
    def normalised(images):
        logits = network(images)
        return (logits - jnp.mean(logits, axis=0, keepdims=True)) / (jnp.std(logits, axis=0, keepdims=True) + 1e-3)

    with pytest.warns(UserWarning, match="outputs change with the rest of the batch"):
        _attacked(normalised, IMAGES[:count])


def test_the_driver_does_not_warn_of_what_is_fine():
    """Warnings are errors here. A network in bfloat16, one that jumps, one without any slope, outputs near 0 and 1."""
    half = lambda images: network(images.astype(jnp.bfloat16)).astype(jnp.float32)  # noqa: E731
    jumping = lambda images: jnp.round(4 * network(images))  # noqa: E731
    flat = lambda images: 0 * network(images) + jnp.arange(5.0)[None]  # noqa: E731
    squashed = lambda images: jax.nn.sigmoid(network(images))  # noqa: E731
    for fine in (half, jumping, flat, squashed):
        _attacked(fine)


def test_arrays_that_a_partial_holds_are_arguments_of_what_is_compiled(capsys):
    def linear(weights, images, scale, *, shift, doubled):
        print("traced")
        logits = scale * ((images.reshape(images.shape[0], -1) - 0.5) @ weights["w"]) + shift
        return 2 * logits if doubled else logits  # a value, which no array could be

    module = nn.Dense(NUM_CLASSES)
    flat = jnp.asarray(IMAGES.reshape(-1, SIZE))
    variables = module.init(jax.random.key(0), flat)
    ask = jax.jit(lambda network, images, *rest: network(images, *rest))
    for scale in (1.0, 2.0, 3.0):
        given = functools.partial(linear, {"w": scale * WEIGHTS}, shift=np.ones((1, 1), np.float32))
        for doubled in (True, False):
            network = inputs.as_pytree(functools.partial(given, doubled=doubled))
            expected = (1 + doubled) * (scale * (flat - 0.5) @ WEIGHTS + 1.0)
            np.testing.assert_allclose(ask(network, IMAGES, 1.0), expected, rtol=1e-4, atol=1e-5)
        applied = inputs.as_pytree(functools.partial(module.apply, jax.tree.map(lambda x, by=scale: by * x, variables)))
        np.testing.assert_allclose(ask(applied, flat), scale * module.apply(variables, flat), rtol=1e-4, atol=1e-5)
    assert capsys.readouterr().out == "traced\n" * 2 and ask._cache_size() == 3
    # What is no array, or may change without being another object, stays as it was: in a function around it.
    mutable = types.SimpleNamespace(scale=1.0)
    shaped = functools.partial(lambda shape, images: images.reshape(tuple(shape)), np.array([2, -1]))
    of_text, of_mutable = functools.partial(linear, "w"), functools.partial(linear, mutable)
    assert jax.jit(lambda network, images: network(images))(inputs.as_pytree(shaped), IMAGES).shape == (2, 54)
    for other in (of_text, of_mutable, functools.partial(WEIGHTS.dot), shaped):
        kept = inputs.as_pytree(other)
        assert isinstance(kept, jax.tree_util.Partial) and not jax.tree.leaves(kept)


def test_the_driver_says_in_a_line_what_the_network_does_wrong(monkeypatch):
    with pytest.raises(InputError, match=r"logits_fn must take images .*compute with jax\.numpy"):
        _attacked_as_it_is(lambda images: np.asarray(images).reshape(6, -1)[:, :NUM_CLASSES])

    def calls_torch(images):
        raise TypeError("conv2d() received an invalid combination of arguments - got (DynamicJaxprTracer, Parameter)")

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"give the torch\.nn\.Module itself"):
        patch.setitem(sys.modules, "torch", types.ModuleType("torch"))
        _attacked_as_it_is(calls_torch)

    def called_back(images):
        shape = jax.ShapeDtypeStruct((images.shape[0], NUM_CLASSES), jnp.float32)
        return network(images) + jax.pure_callback(lambda: np.zeros(shape.shape, np.float32), shape)

    def of_images(images):
        shape = jax.ShapeDtypeStruct((images.shape[0], NUM_CLASSES), jnp.float32)
        return jax.pure_callback(lambda x: np.asarray(network(x)), shape, images)

    _attacked_as_it_is(called_back)
    with pytest.raises(InputError, match="logits_fn must have a gradient"):
        _attacked_as_it_is(of_images)


def _attacked_as_it_is(network):
    options = {"epsilon": 0.01, "version": ["apgd-ce"], "batch_size": 16}
    return attacks.autoattack(network, jax.random.key(0), IMAGES, LABELS, **options)
