"""MeanSparse: what is replaced, what the gradient sees, and the statistics of the training set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import config, data, defenses, models, runs
from robustjax.defenses import meansparse
from robustjax.defenses.convention import with_statistics
from robustjax.types import InputError

RNG = np.random.default_rng(0)
MAPS = RNG.normal(1.0, 2.0, (3, 4, 5, 6)).astype(np.float32)
MEAN, DEVIATION = RNG.normal(size=6).astype(np.float32), RNG.uniform(0.5, 2.0, 6).astype(np.float32)


def reference(activations, mean, deviation, alpha):
    """As published for PyTorch: channels on the second axis, and the band as a product of its own."""
    channels_first = np.moveaxis(activations, -1, 1)
    shape = (1, -1) + (1,) * (activations.ndim - 2)
    bias, crop = mean.reshape(shape), np.float32(alpha) * deviation.reshape(shape)
    difference = channels_first - bias
    sparse = np.where(np.abs(difference) < crop, bias * np.ones_like(channels_first), channels_first)
    return np.moveaxis(sparse, 1, -1)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("maps", [MAPS, MAPS.reshape(-1, 6)], ids=["convolution", "dense"])
def test_agrees_with_the_published_operation(maps, alpha):
    sparse = np.asarray(meansparse.sparsify(jnp.asarray(maps), MEAN, DEVIATION, alpha=alpha))
    np.testing.assert_array_equal(sparse, reference(maps, MEAN, DEVIATION, alpha))
    changed = np.mean(sparse != maps)
    assert changed == 0 if alpha == 0 else 0.01 < changed < 0.9


def test_the_band_is_open_and_constant_channels_have_none():
    activations = jnp.array([[1.5, 1.0, jnp.inf], [0.5, 3.0, jnp.nan], [1.4375, -2.0, 1.0]])
    sparse = meansparse.sparsify(activations, jnp.ones(3), jnp.array([2.0, 0.0, 2.0]), alpha=0.25)
    np.testing.assert_array_equal(sparse, [[1.5, 1.0, jnp.inf], [0.5, 3.0, jnp.nan], [1.0, -2.0, 1.0]])


def test_the_gradient_is_zero_inside_the_band_and_that_of_the_identity_outside():
    weights = jnp.asarray(RNG.normal(size=MAPS.shape).astype(np.float32))

    def value(maps):
        return jnp.sum(weights * meansparse.sparsify(maps, MEAN, DEVIATION, alpha=0.5))

    gradient = np.asarray(jax.jit(jax.grad(value))(jnp.asarray(MAPS)))
    inside = np.abs(MAPS - MEAN) < np.float32(0.5) * DEVIATION
    assert 0.1 < inside.mean() < 0.6
    np.testing.assert_array_equal(gradient, np.where(inside, 0.0, weights))


def test_of_the_guards_modes_the_surrogate_alone_has_the_gradient_of_the_identity():
    statistics = {"statistics": {"mean": jnp.asarray(MEAN), "variance": jnp.asarray(DEVIATION**2)}}

    def apply(mode, maps):
        return meansparse.MeanSparse(0.5, mode).apply(statistics, maps)[0]

    maps = jnp.asarray(MAPS)
    sparse = meansparse.sparsify(maps, MEAN, jnp.sqrt(jnp.asarray(DEVIATION**2)), alpha=0.5)
    for mode, output, gradient in (
        ("active", sparse, np.asarray(sparse) == MAPS), ("surrogate", sparse, True), ("off", maps, True)
    ):  # fmt: skip
        slope = jax.grad(lambda z, mode=mode: jnp.sum(apply(mode, z)))(maps)
        np.testing.assert_array_equal(apply(mode, maps), output)
        np.testing.assert_array_equal(slope, np.broadcast_to(gradient, MAPS.shape))


def test_bfloat16_is_compared_in_float32():
    # In bfloat16 a band of 0.2 * 1.0234375 would be rounded to 0.205078125.
    activations = jnp.array([[0.2041015625, 0.205078125]], jnp.bfloat16)
    sparse = meansparse.sparsify(activations, jnp.zeros(2), jnp.full(2, 1.0234375), alpha=0.2)
    assert sparse.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(sparse, np.float32), [[0.0, 0.205078125]])


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_bad_widths_are_named(alpha):
    calls = (lambda: meansparse.sparsify(MAPS, MEAN, DEVIATION, alpha=alpha), lambda: meansparse.defense(alpha=alpha))
    for call in calls:
        with pytest.raises(InputError, match=f"meansparse: alpha must be at least 0 and finite, got {alpha}"):
            call()


def guarded(alpha):
    return models.create("small_cnn", defense=defenses.create("meansparse", alpha=alpha))


def test_statistics_are_those_of_the_plain_networks_inputs_to_each_activation():
    images = jnp.asarray(RNG.uniform(size=(10, 8, 8, 1)).astype(np.float32))
    variables = jax.jit(models.create("small_cnn").init)(jax.random.key(0), images)
    measured = with_statistics(guarded(10.0), variables, [images[:4], images[4:8], images[8:]])
    assert measured["params"] is variables["params"]
    # The first layer, a 4 x 4 convolution of stride 2, in NumPy.
    kernel, bias = (np.asarray(variables["params"]["conv1"].get(name), np.float64) for name in ("kernel", "bias"))
    padded = np.pad(np.asarray(images, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.stack([padded[:, i : i + 7 : 2, j : j + 7 : 2, 0] for i in range(4) for j in range(4)], axis=-1)
    inputs = patches @ kernel.reshape(16, -1) + bias
    parts = [(inputs[:4], 0.4), (inputs[4:8], 0.4), (inputs[8:], 0.2)]
    found = measured["statistics"]["guards_conv1_input"]
    np.testing.assert_allclose(found["mean"], inputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    expected = sum(weight * part.var((0, 1, 2)) for part, weight in parts)
    np.testing.assert_allclose(found["variance"], expected, rtol=1e-4)
    # A later layer's are those behind a plain first one, however wide the band.
    again = with_statistics(guarded(0.0), variables, [images[:4], images[4:8], images[8:]])
    jax.tree.map(np.testing.assert_array_equal, measured, again)


def test_without_a_band_the_network_is_the_plain_one():
    images = jnp.asarray(RNG.uniform(size=(4, 8, 8, 1)).astype(np.float32))
    plain = models.create("small_cnn")
    variables = jax.jit(plain.init)(jax.random.key(0), images)
    measured = with_statistics(guarded(0.2), variables, [images])

    @jax.jit
    def logits(measured):
        return [net.apply(measured, images).logits for net in (plain, guarded(0.0), guarded(0.5))]

    without, zero, half = logits(measured)
    np.testing.assert_array_equal(without, zero)
    assert float(jnp.max(jnp.abs(without - half))) > 1e-4


def test_a_run_measures_its_training_images(tmp_path):
    made = config.digits()
    made.data.train_examples = 512
    made.train.num_epochs, made.train.batch_size, made.attack.num_steps = 1, 256, 1
    made.validation.num_steps, made.validation.batch_size = 1, 200
    made.defense.name, made.defense.alpha = "meansparse", 0.3
    runs.train(made, tmp_path)
    run, plain = runs.load(tmp_path), runs.load(tmp_path, defense="none")
    assert run.defense.name == "meansparse" and "statistics" not in plain.variables
    images = data.to_float(data.load("digits", "train", validation_examples=200, num_examples=512).images)
    own = with_statistics(run.module, plain.variables, [images[:500], images[500:]])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), own, run.variables)
    inside = run.variables["statistics"]["guards_dense_input"]
    assert np.all(np.asarray(inside["variance"]) > 0)
