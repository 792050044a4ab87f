"""The zoo of broken defenses: what the reader finds in each, and that a hand-made surrogate and a relaxation agree."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.transforms import inspect, relax

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "broken.py"
SPEC = importlib.util.spec_from_file_location("broken", FILE)
broken = importlib.util.module_from_spec(SPEC)
sys.modules["broken"] = broken
SPEC.loader.exec_module(broken)

IMAGES = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32)
WEIGHTS = [jax.random.normal(jax.random.key(i), shape) / 4 for i, shape in enumerate([(64, 32), (32, 10)])]
NETWORK = broken.Network(
    lambda images: jax.nn.relu(images.reshape(len(images), -1) @ WEIGHTS[0]), lambda hidden: hidden @ WEIGHTS[1]
)
# Defense -> the kinds of its findings.
KINDS = {
    "bit_depth": {"step"},
    "jpeg": {"step"},
    "thermometer": {"selection"},
    "median": set(),
    "binarised": {"step"},
    "purified": {"inner_optimisation"},
    "python": {"callback"},
    "python_flattened": {"callback"},
    "resized": {"random"},
    "dropped": {"random"},
    "noisy_levels": {"random", "step"},
    "distilled": {"saturation"},
    "winners": {"integer", "selection"},
    "pruned": {"random", "detached"},
    "mean_sparse": {"selection"},
    "votes": {"selection"},
    "detached": {"detached"},
    "lying": {"custom_rule"},
    "none": set(),
}


def test_every_defense_has_a_case():
    assert KINDS.keys() == broken.ZOO.keys()


@pytest.mark.parametrize("name", KINDS)
def test_the_reader_finds_what_each_defense_hides(name):
    defended = broken.ZOO[name](NETWORK)
    keys = (jax.random.key(1),) if defended.stochastic else ()
    found = inspect(defended.logits_fn, IMAGES, *keys)
    assert KINDS[name] <= {each.kind for each in found} and bool(KINDS[name]) == bool(found)
    assert all("broken.py:" in each.where for each in found), found


@pytest.mark.parametrize("name", ["bit_depth", "jpeg", "noisy_levels", "winners", "detached", "lying", "python"])
def test_the_relaxation_is_the_surrogate_of_one_who_knows(name):
    defended = broken.ZOO[name](NETWORK)
    keys = (jax.random.key(1),) if defended.stochastic else ()
    weights = jnp.arange(1.0, 11.0)

    def gradient(function):
        return jax.jit(jax.grad(lambda x: jnp.sum(function(x, *keys) @ weights)))(IMAGES)

    ours, known = gradient(relax(defended.logits_fn)), gradient(defended.by_hand)
    np.testing.assert_allclose(ours, known, rtol=1e-3, atol=1e-3 * np.max(np.abs(known)))
