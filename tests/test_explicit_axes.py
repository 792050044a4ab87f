"""Arrays on the axes that ``jax.make_mesh`` makes by itself, which are Explicit: the same results as on one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from robustjax import attacks, defenses, models, objectives

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(4, 8, 8, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3])
WEIGHTS = RNG.normal(size=(192, 5)).astype(np.float32)
FEATURES = RNG.normal(size=(4, 4, 4, 6)).astype(np.float32)
CLASSIFIER = RNG.normal(size=(6, 5)).astype(np.float32)
KEY = jax.random.key(0)

linear = lambda images: images.reshape(images.shape[0], -1) @ WEIGHTS  # noqa: E731
noisy = lambda images, key: linear(images) + jax.random.normal(key, (1, 5))  # noqa: E731


@pytest.fixture(autouse=True, scope="module")
def mesh():
    mesh = jax.make_mesh((4,), ("batch",))
    assert mesh.axis_types == (AxisType.Explicit,)
    with jax.set_mesh(mesh):
        yield mesh


def same(function, mesh, *rows):
    """The function's results of sharded rows, which are sharded as these, and of the same rows on one device."""
    shards = NamedSharding(mesh, PartitionSpec("batch"))
    found = function(*(jax.device_put(row, shards) for row in rows))
    with jax.set_mesh(jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,))):
        expected = function(*map(jnp.asarray, rows))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert not one.ndim or one.sharding.spec[0] == "batch"
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-5)


ATTACKS = {
    "fgsm": partial(attacks.fgsm, linear, KEY, epsilon=0.1, random_start=True),
    "n_fgsm": partial(attacks.n_fgsm, linear, KEY, epsilon=0.1),
    "cw": partial(attacks.cw, linear, KEY, num_steps=2, num_searches=2),
    "deepfool": partial(attacks.deepfool, linear, KEY, num_steps=2),
    "hopskipjump": partial(attacks.hopskipjump, linear, KEY, epsilon=0.1, num_steps=1, num_queries=300),
    "multi_targeted": partial(attacks.multi_targeted, linear, KEY, epsilon=0.1, step_size=0.05, num_steps=2),
    "optimized_pgd": partial(
        attacks.optimized_pgd, linear, KEY, epsilon=0.1, optimizer=optax.adam(0.1), num_steps=2
    ),
    "eot": partial(
        attacks.pgd, noisy, KEY, epsilon=0.1, step_size=0.05, num_steps=2, keep_best=True, eot_samples=2
    ),
}  # fmt: skip
for norm in ("linf", "l2", "l1"):
    ATTACKS |= {
        f"pgd {norm}": partial(
            attacks.pgd, linear, KEY, epsilon=0.1, step_size=0.05, num_steps=2, num_restarts=2, norm=norm
        ),
        f"apgd {norm}": partial(
            attacks.apgd, linear, KEY, epsilon=0.1, num_steps=3, norm=norm, loss="dlr-targeted", num_targets=2,
            targets="linearised",
        ),
        f"fab {norm}": partial(attacks.fab, linear, KEY, epsilon=0.1, num_steps=2, num_targets=2, norm=norm),
        f"square {norm}": partial(attacks.square, linear, KEY, epsilon=0.1, num_queries=3, norm=norm),
    }  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name, mesh):
    same(jax.jit(ATTACKS[name]), mesh, IMAGES, LABELS)


@pytest.mark.parametrize("name", ["cw", "optimized_pgd", "pgd l2", "square linf"])
def test_attacks_outside_jit(name, mesh):
    same(ATTACKS[name], mesh, IMAGES, LABELS)


probe = lambda features: features.mean((1, 2)) @ CLASSIFIER  # noqa: E731
DEFENSES = {
    "sap multinomial": lambda features, labels: defenses.sap.prune(KEY, features),
    "sap bernoulli": lambda features, labels: defenses.sap.prune(KEY, features, sampler="bernoulli"),
    "cas": lambda features, labels: defenses.cas.suppress(features, CLASSIFIER, np.zeros(5, np.float32), labels),
    "cas predicted": lambda features, labels: defenses.cas.suppress(features, CLASSIFIER, np.zeros(5, np.float32)),
    "cifs": lambda features, labels: defenses.cifs.select(probe, features, labels),
    "fsr": lambda features, labels: defenses.fsr.separate(features, features, key=KEY),
    "kwta": lambda features, labels: defenses.kwta.k_winners(features, fraction=0.5),
    "meansparse": lambda features, labels: defenses.meansparse.sparsify(
        features, features.mean((0, 1, 2)), features.std((0, 1, 2)), alpha=0.5
    ),
    "trades": lambda features, labels: objectives.trades(probe(features), probe(2 * features), labels, beta=6.0),
    "mart": lambda features, labels: objectives.mart(probe(features), probe(2 * features), labels, beta=5.0),
}


@pytest.mark.parametrize("name", DEFENSES)
def test_defenses_and_objectives(name, mesh):
    same(jax.jit(DEFENSES[name]), mesh, FEATURES, LABELS)


@pytest.mark.parametrize("name", ["lenet5", "small_cnn"])
def test_networks_and_their_gradients(name, mesh):
    images = RNG.uniform(size=(4, 28, 28, 1) if name == "lenet5" else (4, 16, 16, 3)).astype(np.float32)
    module = models.create(name)
    with jax.set_mesh(jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,))):
        variables = jax.device_get(jax.jit(module.init)(KEY, images))
    logits = lambda images: module.apply(variables, images).logits  # noqa: E731
    both = lambda images: (logits(images), jax.grad(lambda images: logits(images).sum())(images))  # noqa: E731
    same(jax.jit(both), mesh, images)
