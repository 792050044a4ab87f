"""Gradients in bfloat16 at float32 logits: which of the two decides on what, and networks whose bfloat16 is wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from robustjax.attacks import apgd, autoattack, losses
from robustjax.attacks.engine.precision import with_gradients_of
from robustjax.attacks.engine.verify import is_correct, is_valid
from robustjax.types import Outputs

quick = partial(autoattack, batch_size=16)


def coarse(images):
    """`toys.smooth` in bfloat16 throughout."""
    half = lambda array: array.astype(jnp.bfloat16)  # noqa: E731
    return jnp.tanh(half(images).reshape(-1, toys.SIZE) @ half(toys.HIDDEN)) @ half(toys.READOUT)


def mixed(logits_fn, bfloat16_fn):
    return partial(with_gradients_of, bfloat16_fn, logits_fn)


def gradient(network, images):
    return jax.grad(lambda images: jnp.sum(losses.cross_entropy(network(images), LABELS)))(images)


LABELS = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)


def test_outputs_are_the_ones_and_gradients_the_others():
    network = mixed(toys.smooth, coarse)
    assert np.any(np.asarray(coarse(toys.IMAGES), np.float32) != np.asarray(toys.smooth(toys.IMAGES)))
    outputs = network(toys.IMAGES)
    assert outputs.dtype == jnp.float32
    np.testing.assert_array_equal(outputs, toys.smooth(toys.IMAGES))
    # The pullback is the coarse network's, of the cotangent at the exact logits.
    cotangent = jax.grad(lambda logits: jnp.sum(losses.cross_entropy(logits, LABELS)))(toys.smooth(toys.IMAGES))
    (expected,) = jax.vjp(coarse, toys.IMAGES)[1](cotangent.astype(jnp.bfloat16))
    found = gradient(network, toys.IMAGES)
    np.testing.assert_array_equal(found, expected)
    exact = gradient(toys.smooth, toys.IMAGES)
    assert 1e-4 < jnp.max(jnp.abs(found - exact)) / jnp.max(jnp.abs(exact)) < 3e-2


def test_every_leaf_of_the_outputs_is_taken_alike():
    def network(images, scale):
        features = {"site": images * scale, "count": jnp.zeros(images.shape[0], jnp.int32)}
        return Outputs(scale * toys.linear(images), {}, features)

    outputs = mixed(partial(network, scale=1.0), partial(network, scale=3.0))
    leaves, expected = (jax.tree.leaves(made) for made in (outputs(toys.IMAGES), network(toys.IMAGES, 1.0)))
    assert len(leaves) == len(expected) == 3
    for leaf, other in zip(leaves, expected, strict=True):
        np.testing.assert_array_equal(leaf, other)
    for read in (lambda made: made.logits[:, 0], lambda made: made.features["site"]):
        own, exact = (
            jax.grad(lambda images, of=of, read=read: jnp.sum(read(of(images))))(toys.IMAGES)
            for of in (outputs, partial(network, scale=1.0))
        )
        np.testing.assert_allclose(own, 3.0 * exact, rtol=1e-6)


def test_masked_classes_stay_masked():
    masked = lambda network: lambda images: jnp.where(np.arange(5)[None] == 2, -jnp.inf, network(images))  # noqa: E731
    network = mixed(masked(toys.smooth), masked(coarse))
    np.testing.assert_array_equal(network(toys.IMAGES), masked(toys.smooth)(toys.IMAGES))
    labels = jnp.where(LABELS == 2, 0, LABELS)
    found = jax.grad(lambda images: jnp.sum(losses.cross_entropy(network(images), labels)))(toys.IMAGES)
    assert bool(jnp.all(jnp.isfinite(found))) and bool(jnp.any(found != 0))


THREE = ["apgd-dlr", "fab-t", "square"]


@pytest.mark.parametrize(
    ("version", "norm"),
    [
        ("fast", "linf"), pytest.param("fast", "l2", marks=pytest.mark.slow),
        pytest.param("fast", "l1", marks=pytest.mark.slow), pytest.param(THREE, "linf", marks=pytest.mark.slow),
        (THREE, "l2"), (THREE, "l1"),
    ],
)  # fmt: skip
def test_bfloat16_finds_what_float32_finds(version, norm, key):
    distances, labels = toys.linear_distances(norm)
    half = lambda images: images.astype(jnp.bfloat16).reshape(-1, toys.SIZE) @ jnp.asarray(toys.WEIGHTS, jnp.bfloat16)  # noqa: E731
    chosen = distances > 1e-3
    factors = np.where(np.arange(chosen.sum()) % 2 == 0, 0.98, 1.3 if norm == "l1" else 1.05)
    images, epsilon = toys.IMAGES[chosen], factors * distances[chosen]
    options = {"epsilon": epsilon, "norm": norm, "version": version, "bfloat16_fn": half}
    result = quick(toys.linear, key, images, labels[chosen], **options)
    np.testing.assert_array_equal(result.robust, factors < 1)
    np.testing.assert_array_equal(is_correct(toys.linear(result.images), labels[chosen]), result.robust)


def certain_of_another(images):
    """The gradients of `toys.smooth`, and logits which say that every image is of a class that it is not."""
    wrong = jax.nn.one_hot((LABELS[0] + 1) % 5, 5)[None]
    return toys.smooth(images) + 100.0 * jax.lax.stop_gradient(wrong)


def opposite(images):
    """Leads away from what would succeed."""
    return -toys.smooth(images)


def blind(images):
    return 0.0 * toys.smooth(images)


@pytest.mark.parametrize(
    ("wrong_fn", "version"),
    [
        (certain_of_another, "fast"), (opposite, "fast"), (opposite, ["apgd-dlr", "square"]),
        pytest.param(certain_of_another, ["apgd-dlr", "square"], marks=pytest.mark.slow),
        pytest.param(blind, "fast", marks=pytest.mark.slow),
        pytest.param(blind, ["apgd-dlr", "square"], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_wrong_bfloat16_network_can_hide_successes_but_not_make_any(wrong_fn, version, key):
    attack = partial(quick, toys.smooth, key, toys.IMAGES, LABELS, epsilon=0.02, version=version)
    plain, result = attack(), attack(bfloat16_fn=wrong_fn)
    np.testing.assert_array_equal(is_correct(toys.smooth(result.images), LABELS), result.robust)
    assert bool(jnp.all(is_valid(toys.IMAGES, result.images, epsilon=0.02)))
    assert 0 < plain.robust.sum() < 16
    if wrong_fn is certain_of_another:  # nothing but gradients is taken from it
        np.testing.assert_array_equal(result.images, plain.images)
    elif version == "fast":  # and they are all taken from it
        assert result.robust.sum() > plain.robust.sum()
    else:  # Square takes none
        np.testing.assert_array_equal(result.robust, plain.robust)


@pytest.mark.parametrize("loss", ["ce", "dlr-targeted"])
def test_apgd_takes_gradients_alone(loss, key):
    attack = partial(apgd, toys.smooth, key, toys.IMAGES, LABELS, epsilon=0.03, num_steps=20, loss=loss)
    plain = attack()
    np.testing.assert_array_equal(attack(bfloat16_fn=certain_of_another), plain)
    missed = is_correct(toys.smooth(attack(bfloat16_fn=opposite)), LABELS)
    assert missed.sum() > is_correct(toys.smooth(plain), LABELS).sum()
    own = lambda outputs, labels: losses.margin(outputs[0], labels)  # noqa: E731
    pair = lambda images: (toys.smooth(images), images)  # noqa: E731
    shifted = lambda images: (certain_of_another(images), images + 1.0)  # noqa: E731
    attack = partial(apgd, pair, key, toys.IMAGES, LABELS, epsilon=0.03, num_steps=5, loss=own)
    np.testing.assert_array_equal(attack(bfloat16_fn=shifted), attack())


def test_targets_are_linearised_through_it(key):
    """Two classes at the same distance from the third, of which bfloat16's gradient makes the other the nearer."""

    def network(images, slopes):
        x = jnp.mean(images, axis=(1, 2, 3))[:, None]
        return jnp.array([[1.0, 0.0, 0.0, -9.0]]) + (x - 0.5) * jnp.asarray(slopes, jnp.float32)[None]

    images, labels = jnp.full((2, 2, 2, 1), 0.5), jnp.zeros(2, jnp.int32)
    options = {"epsilon": 0.21, "loss": "dlr-targeted", "targets": "linearised", "num_targets": 1}
    exact = partial(network, slopes=[0.0, 6.0, -3.0, 0.0])
    swayed = partial(network, slopes=[0.0, 3.0, -6.0, 0.0])
    towards = [
        jnp.sign(jnp.mean(apgd(exact, key, images, labels, **options, **more) - images))
        for more in ({}, {"bfloat16_fn": swayed})
    ]
    assert towards == [1.0, -1.0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_images_of_another_dtype_reach_both_networks_as_they_are(dtype, key):
    seen = set()

    def exact(images):
        seen.add(("exact", images.dtype))
        return toys.linear(images.astype(jnp.float32))

    def half(images):
        seen.add(("half", images.dtype))
        return toys.linear(images.astype(jnp.float32)).astype(jnp.bfloat16)

    with jax.enable_x64(dtype == jnp.float64):
        distances, labels = toys.linear_distances("linf")
        images = jnp.asarray(toys.IMAGES).astype(dtype)
        epsilon = 1.5 * distances + 0.02
        adversarial = apgd(exact, key, images, labels, epsilon=epsilon, bfloat16_fn=half)
        result = quick(exact, key, images, labels, epsilon=epsilon, version="fast", bfloat16_fn=half)
    assert adversarial.dtype == result.images.dtype == dtype
    assert not np.any(is_correct(toys.linear(adversarial.astype(jnp.float32)), labels)) and not result.robust.any()
    assert seen == {("exact", np.dtype(dtype)), ("half", np.dtype(dtype))}


def test_a_stochastic_network_and_its_twin_draw_alike(key):
    def noisy(images, key, sign=1.0):
        """In half of the draws the sign is turned, and with it the way up."""
        turned = jax.random.bernoulli(key, 0.5)
        return sign * jnp.where(turned, toys.linear(-images), toys.linear(images))

    distances, labels = toys.linear_distances("linf")
    found = jax.grad(lambda images: jnp.sum(mixed(noisy, partial(noisy, sign=2.0))(images, key)[:, 0]))(toys.IMAGES)
    expected = jax.grad(lambda images: jnp.sum(2.0 * noisy(images, key)[:, 0]))(toys.IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    def shaken(images, key):
        return toys.linear(images) + 0.01 * jax.random.normal(key, (images.shape[0], toys.NUM_CLASSES))

    chosen = np.argsort(distances)[8:]
    factors = np.where(np.arange(8) % 2 == 0, 0.5, 1.5)
    result = quick(
        shaken, key, toys.IMAGES[chosen], labels[chosen], epsilon=factors * distances[chosen], version="rand",
        eot_samples=4, bfloat16_fn=lambda images, key: shaken(images, key).astype(jnp.bfloat16),
    )  # fmt: skip
    np.testing.assert_array_equal(result.robust, factors < 1)


def test_weights_are_arguments_and_devices_share(key):
    traces = 0

    def half(weights, images):
        nonlocal traces
        traces += 1
        return (images.astype(jnp.bfloat16).reshape(-1, toys.SIZE) - 0.5) @ weights

    def exact(weights, images):
        return (images.reshape(-1, toys.SIZE) - 0.5) @ weights

    distances, labels = toys.linear_distances("linf")
    options = {"epsilon": np.where(np.arange(16) % 2 == 0, 0.9, 1.2) * distances, "version": ["apgd-ce"]}
    alone = []
    for scale in (1.0, 0.5):
        weights = scale * jnp.asarray(toys.WEIGHTS)
        networks = jax.tree_util.Partial(exact, weights), jax.tree_util.Partial(half, weights.astype(jnp.bfloat16))
        before = traces
        result = quick(networks[0], key, toys.IMAGES, labels, bfloat16_fn=networks[1], **options)
        alone.append((result.robust, traces - before))
    assert alone[0][1] == 2 and alone[1][1] == 1  # the check of its outputs, which compiles nothing, and the attack
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    shared = quick(networks[0], key, toys.IMAGES, labels, bfloat16_fn=networks[1], sharding=split, **options)
    np.testing.assert_array_equal(shared.robust, alone[1][0])
    assert 0 < shared.robust.sum() < 16
