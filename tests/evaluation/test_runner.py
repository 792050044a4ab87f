"""The runner on a network whose every answer is known."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.data import Dataset
from robustjax.evaluation import runner
from robustjax.training import sharding

# Class 1 where the mean pixel exceeds one half.
LEVELS = np.array([20, 90, 120, 140, 200, 250, 130, 100, 10, 255], np.uint8)
DATASET = Dataset("levels", LEVELS.reshape(10, 1, 1, 1), (LEVELS > 127).astype(np.int32), 2, ("dark", "light"))


def logits_fn(variables, images):
    score = variables * (images.mean(axis=(1, 2, 3)) - 0.5)
    return jnp.stack([-score, score], axis=1)


def make(**options):
    options = {"epsilon": 0.1, "norm": "linf", "batch_size": 4, "layout": sharding.layout(), **options}
    return runner.make_runner(logits_fn, jnp.float32(3.0), DATASET, **options)


def shift(logits_fn, key, images, labels):
    """Towards the other class, by exactly 0.1."""
    away = jnp.where(labels == 1, -0.1, 0.1).reshape(-1, 1, 1, 1)
    return jnp.clip(images + away, 0.0, 1.0)


def test_flags_are_in_order_padding_is_left_out_and_every_batch_is_reported(key):
    seen = []
    run = make()
    clean = run(None, key)
    np.testing.assert_array_equal(clean.robust, np.ones(10, bool))
    attacked = run(shift, key, progress=seen.append)
    assert seen == [1, 2, 3, 3] and run.num_batches == 3
    np.testing.assert_array_equal(attacked.robust, np.abs(LEVELS / 255 - 0.5) > 0.1)
    np.testing.assert_array_equal(attacked.clean_predictions, DATASET.labels)
    np.testing.assert_array_equal(attacked.predictions == DATASET.labels, attacked.robust)
    np.testing.assert_allclose(attacked.adversarial[3].ravel(), 140 / 255 - 0.1, rtol=1e-5)


def test_an_attack_that_leaves_the_ball_is_not_believed(key):
    with pytest.raises(RuntimeError, match="outside the linf ball"):
        make(epsilon=0.05)(shift, key)


def test_one_compilation_serves_every_batch(key):
    traces = 0

    def counted(logits_fn, key, images, labels):
        nonlocal traces
        traces += 1
        return images

    make()(counted, key)
    assert traces == 1


def test_an_ensemble_takes_the_whole_data_set_and_is_not_believed_either(key):
    def ensemble(network, key, images, labels, *, batch_size):
        assert images.shape == (10, 1, 1, 1) and batch_size == 4
        assert network(images).shape == (10, 2)
        moved = np.array(shift(network, key, images, labels))
        moved[0] = images[0]
        return SimpleNamespace(images=moved, robust=np.zeros(10, bool))

    outcome = make()(ensemble, key, whole=True)
    np.testing.assert_array_equal(outcome.robust, make()(shift, key).robust)  # whatever it claims


def test_the_clean_mistakes_are_not_robust(key):
    wrong = DATASET._replace(labels=1 - DATASET.labels)
    run = runner.make_runner(
        logits_fn, jnp.float32(3.0), wrong, epsilon=0.1, norm="linf", batch_size=4, layout=sharding.layout()
    )
    assert not run(lambda logits_fn, key, images, labels: images, key).robust.any()
    assert jax.device_count() == 4
