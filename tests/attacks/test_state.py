"""Functions that read what changes: what was compiled for them before must not answer for them."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from robustjax import attacks, transforms
from robustjax.attacks.engine.inputs import as_pytree
from robustjax.attacks.engine.inputs._state import unchanged

IMAGES, LABELS = np.full((2, 1, 1, 2), 0.5, np.float32), np.zeros(2, np.int32)
RIGHT, WRONG = np.array([[2.0, 0.0]] * 2, np.float32), np.array([[0.0, 2.0]] * 2, np.float32)
GLOBAL = jnp.asarray(RIGHT)


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


def by_global(images):
    return linear(GLOBAL, images)


def networks():
    """Name -> a network, and what changes it."""
    global GLOBAL
    GLOBAL = jnp.asarray(RIGHT)
    around, held = jnp.asarray(RIGHT), types.SimpleNamespace(weights=RIGHT)
    params, listed, array = {"w": jnp.asarray(RIGHT)}, [RIGHT], RIGHT.copy()

    class Settings:
        weights = RIGHT

    @dataclasses.dataclass(frozen=True)
    class Model:
        scale: float = 1.0

        def __call__(self, images):
            return self.logits(images)

        def logits(self, images):
            return self.scale * linear(GLOBAL, images)

    model = Model()

    def of_global():
        global GLOBAL
        GLOBAL = jnp.asarray(WRONG)

    def of_closure():
        nonlocal around
        around = jnp.asarray(WRONG)

    def default(images, weights=listed):
        return linear(weights[0], images)

    return {
        "global": (by_global, of_global),
        "function that calls it": (lambda images: by_global(images), of_global),
        "vmap": (jax.vmap(lambda image: by_global(image[None])[0]), of_global),
        "quicken": (transforms.quicken(lambda images: linear(around, images)), of_closure),
        "closure": (lambda images: linear(around, images), of_closure),
        "mapping": (lambda images: linear(params["w"], images), lambda: params.update(w=jnp.asarray(WRONG))),
        "list": (default, lambda: listed.__setitem__(0, WRONG)),
        "array in place": (lambda images: linear(array, images), lambda: np.copyto(array, WRONG)),
        "object": (lambda images: linear(held.weights, images), lambda: setattr(held, "weights", WRONG)),
        "class": (lambda images: linear(Settings.weights, images), lambda: setattr(Settings, "weights", WRONG)),
        "method of a frozen object": (lambda images: model(images), of_global),
        "partial": (functools.partial(lambda a, images: a * linear(around, images), np.float32([[1.0]])), of_closure),
    }


@pytest.mark.parametrize("name", networks())
def test_the_driver_attacks_the_network_as_it_is_now(name):
    network, change = networks()[name]
    robust = []
    for _ in range(2):
        result = attacks.autoattack(network, jax.random.key(0), IMAGES, LABELS, epsilon=0.01, version=["apgd-ce"])
        robust.append(result.robust.all())
        change()
    assert robust == [True, False]


@dataclasses.dataclass(frozen=True)
class Frozen:
    scale: float


class Own(linen.Module):
    factor = 2.0
    calls = 0  # which no code reads

    @linen.compact
    def __call__(self, values):
        return linen.Dense(2)(values) * self.factor


def test_what_is_the_same_is_compiled_once():
    module, variables, frozen = linen.Dense(2), {"params": {"kernel": jnp.ones((2, 2))}}, Frozen(2.0)
    key, dtype = jax.random.key(0), jnp.bfloat16

    def again(depth):
        return again(depth - 1) if depth else 0

    def network(images):
        flat = jnp.reshape(images, (len(images), -1)) * np.float32(frozen.scale) + again(2)
        return module.apply(variables, flat) + jax.nn.relu(jax.random.normal(key, ())).astype(dtype)

    own = Own()
    of_own = lambda images: own.apply({"params": {"Dense_0": variables["params"]}}, images)  # noqa: E731
    before = unchanged(of_own)
    Own.calls += 1
    assert before is not None and before == unchanged(of_own) and hash(before) == hash(unchanged(of_own))
    Own.factor = 3.0
    assert before != unchanged(of_own)

    assert unchanged(network) == unchanged(network) and hash(unchanged(network)) == hash(unchanged(network))
    assert jax.tree.structure(as_pytree(network)) == jax.tree.structure(as_pytree(network))
    variables["params"]["kernel"] = 2 * variables["params"]["kernel"]
    assert unchanged(network) != unchanged(lambda images: images)
    generator = np.random.default_rng(0)
    for changing in (generator, iter([1]), types.SimpleNamespace(), {1}, dataclasses.make_dataclass("Open", [])()):
        assert unchanged(lambda images, read=changing: images) is None
