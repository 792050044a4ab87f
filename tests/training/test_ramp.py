"""What grows over the first steps: the epsilon that attack and GradAlign see, and the past's weight in an average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, build, config, data
from robustjax.training import alignment
from robustjax.training.step import _averaged

STEPS_PER_EPOCH, SIZE = 4, 8


def lengths_seen(monkeypatch, steps, gradalign=0.0, **changes):
    """epsilon and step size at each of the steps, as the attack is given them; or epsilon, as GradAlign is."""
    seen = []

    def aligned(logits_fn, key, images, labels, *, epsilon):
        jax.debug.callback(lambda length: seen.append(float(length)), epsilon)
        return jnp.zeros(images.shape[0])

    def watching(logits_fn, key, images, labels, *, epsilon, step_size, **_):
        assert logits_fn(images).logits.shape == (SIZE, 10)  # the network's outputs, and no statistics
        if not gradalign:
            jax.debug.callback(lambda *lengths: seen.append(tuple(map(float, lengths))), epsilon, step_size)
        return images

    monkeypatch.setattr(attacks, "pgd", watching)
    monkeypatch.setattr(alignment, "misalignment", aligned)
    settings = config.base()
    settings.data.train_examples = STEPS_PER_EPOCH * SIZE
    settings.train.batch_size = SIZE
    settings.model.name = "small_cnn"
    settings.objective.gradalign = gradalign
    settings.attack.update({"epsilon": 0.2, "step_size": 0.05, **changes})
    dataset = build.datasets(settings)[0]
    module = build.model(settings, dataset.num_classes)
    state = build.initial_state(settings, module, dataset.image_shape)()
    step = jax.jit(build.training_step(settings, module, STEPS_PER_EPOCH))
    images, labels = data.to_float(dataset.images[:SIZE]), jnp.asarray(dataset.labels[:SIZE])
    for at in steps:
        after = step(state._replace(step=jnp.full_like(state.step, at)), images, labels)
        assert int(after.step) == at + 1
        jax.effects_barrier()
    return np.array(seen)


@pytest.mark.parametrize(
    ("warmup_epochs", "warmup_steps"),
    [(0.0, 0), (0.25, 1), (1.0, 4), (2.5, 10)],
)
def test_lengths_grow_evenly_until_the_warmup_is_over(warmup_epochs, warmup_steps, monkeypatch):
    steps = (0, 1, 2, 3, 4, 8, 9, 10, 11, 1000)
    seen = lengths_seen(monkeypatch, steps, warmup_epochs=warmup_epochs)
    scale = np.array([min(1.0, (at + 1) / warmup_steps) if warmup_steps else 1.0 for at in steps])
    assert scale[-1] == 1.0
    np.testing.assert_allclose(seen, np.stack([0.2 * scale, 0.05 * scale], axis=1), rtol=1e-6)


def test_gradalign_looks_as_far_as_the_attack_goes(monkeypatch):
    seen = lengths_seen(monkeypatch, (0, 1, 3, 9), gradalign=0.2, warmup_epochs=1.0)
    np.testing.assert_allclose(seen, [0.05, 0.1, 0.2, 0.2], rtol=1e-6)


def test_an_average_forgets_its_start_at_first_and_then_at_the_given_pace():
    for step, decay, weight in ((0, 0.9, 0.1), (1, 0.9, 2 / 11), (10, 0.5, 0.5), (80, 0.95, 0.9), (1000, 0.95, 0.95)):
        found = _averaged({"w": jnp.float32(2.0)}, {"w": jnp.float32(-1.0)}, jnp.int32(step), decay)["w"]
        np.testing.assert_allclose(found, weight * 2.0 - (1.0 - weight), rtol=1e-5)
    assert _averaged(None, {"w": jnp.float32(1.0)}, jnp.int32(0), 0.9) is None
