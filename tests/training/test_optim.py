"""Schedules at the epochs where they are known, and the update against NumPy."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import config as config_lib
from robustjax.training import optim

PER_EPOCH = 10


def _create(**options):
    config = config_lib.base().optimizer
    config.update({"learning_rate": 0.4, **options})
    return optim.create(config, num_epochs=30, steps_per_epoch=PER_EPOCH)


def _rate(epoch, **options):
    return float(_create(**options)[1](round(epoch * PER_EPOCH)))


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "constant"}, {0: 0.4, 29: 0.4}),
        ({"schedule": "piecewise", "boundaries": (10.0, 20.0)}, {9.9: 0.4, 10.1: 0.04, 20.1: 0.004}),
        ({"schedule": "cosine"}, {0: 0.4, 15: 0.2, 30: 0.0}),
        ({"schedule": "cyclic", "warmup_epochs": 12.0}, {0: 0.0, 6: 0.2, 12: 0.4, 21: 0.2, 30: 0.0}),
        ({"schedule": "cosine", "warmup_epochs": 10.0}, {5: 0.2, 10: 0.4, 20: 0.2, 30: 0.0}),
        (
            {"schedule": "piecewise", "boundaries": (10.0, 20.0), "warmup_epochs": 4.0},
            {0: 0.0, 2: 0.2, 4: 0.4, 9.9: 0.4, 10.1: 0.04},
        ),
    ],
)
def test_schedules(options, rates):
    for epoch, rate in rates.items():
        np.testing.assert_allclose(_rate(epoch, **options), rate, atol=1e-6)


@pytest.mark.parametrize("everywhere", [False, True])
def test_two_updates_match_numpy(everywhere):
    transform, _ = _create(schedule="constant", weight_decay=0.1, decay_norms_and_biases=everywhere)
    params = {"conv": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 3.0)}}
    gradient = {"conv": {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.full(2, -0.5)}}
    state = transform.init(params)
    for _ in range(2):
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)

    for name, start, slope, decay in (("kernel", 2.0, 0.5, 0.1), ("bias", 3.0, -0.5, 0.1 * everywhere)):
        value, momentum = start, 0.0
        for _ in range(2):
            momentum = 0.9 * momentum + slope + decay * value
            value -= 0.4 * momentum
        np.testing.assert_allclose(params["conv"][name], value, rtol=1e-6)


# By how much the first update shrinks a weight of 1 without a gradient, at rate 0.05 and weight_decay 0.1. Decoupled
# decay is their product, which LAMB scales to the norm of the weights; where decay is the gradient, adam divides it by
# its own size, and rmsprop by the root of a running mean that keeps 0.9 of 0.
SHRUNK = {"sgd": 0.005, "adam": 0.05, "rmsprop": 0.05 / 0.1**0.5, "lamb": 0.05} | dict.fromkeys(
    ("adamw", "nadamw", "lion"), 0.005
)


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_optimisers_descend_and_decay_kernels_alone(name):
    """Of a quadratic, under strict promotion; without a gradient, decay shrinks kernels and nothing else."""
    transform, _ = _create(name=name, learning_rate=0.05, schedule="constant", weight_decay=0.1)
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    state = transform.init(params)
    updates, _ = transform.update({"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, state, params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(moved["bias"], params["bias"])
    np.testing.assert_allclose(moved["kernel"], 1 - SHRUNK[name], rtol=1e-5)
    loss = lambda params: sum((leaf**2).sum() for leaf in params.values())  # noqa: E731
    start = params
    for _ in range(20):
        updates, state = transform.update({k: 2 * v for k, v in params.items()}, state, params)
        params = optax.apply_updates(params, updates)
    assert loss(params) < 0.8 * loss(start)
