"""Arrays on the axes that ``jax.make_mesh`` makes by itself, which are Explicit: the same results as on one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from robustjax import attacks, defenses, models, objectives

RNG = np.random.default_rng(14)  # of which the labels below have margins of 2 to 8
IMAGES = RNG.uniform(size=(4, 8, 8, 3)).astype(np.float32)
WEIGHTS = RNG.normal(size=(192, 5)).astype(np.float32)
LABELS = (IMAGES.reshape(4, -1) @ WEIGHTS).argmax(1)  # misclassified images would not be attacked
FEATURES = RNG.normal(size=(4, 4, 4, 6)).astype(np.float32)
CLASSIFIER = RNG.normal(size=(6, 5)).astype(np.float32)
KEY = jax.random.key(0)

# Curved, so that deepfool and fab need several steps.
curved = lambda images: 8 * jnp.tanh(images.reshape(images.shape[0], -1) @ WEIGHTS / 8)  # noqa: E731
noisy = lambda images, key: curved(images) + jax.random.normal(key, (1, 5))  # noqa: E731


@pytest.fixture(autouse=True, scope="module")
def mesh():
    mesh = jax.make_mesh((4,), ("batch",))
    assert mesh.axis_types == (AxisType.Explicit,)
    with jax.set_mesh(mesh):
        yield mesh


def same(function, mesh, *rows):
    """The function's results of rows on one device, as those of sharded rows are, which are sharded as these."""
    shards = NamedSharding(mesh, PartitionSpec("batch"))
    found = function(*(jax.device_put(row, shards) for row in rows))
    with jax.set_mesh(jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,))):
        expected = function(*map(jnp.asarray, rows))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert not one.ndim or one.sharding.spec[0] == "batch"
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-5)
    return jax.device_get(expected)


def moves(attack, mesh):
    """An attack's points are the same, and none is where it was."""
    points = same(attack, mesh, IMAGES, LABELS)
    assert (np.abs(points - IMAGES).max((1, 2, 3)) > 1e-3).all()


ATTACKS = {
    "fgsm": partial(attacks.fgsm, curved, KEY, epsilon=0.1, random_start=True),
    "n_fgsm": partial(attacks.n_fgsm, curved, KEY, epsilon=0.1),
    "cw": partial(attacks.cw, curved, KEY, num_steps=4, num_searches=2, learning_rate=0.1, initial_weight=1.0),
    "deepfool": partial(attacks.deepfool, curved, KEY, num_steps=3),
    "hopskipjump": partial(attacks.hopskipjump, curved, KEY, epsilon=np.inf, num_steps=1, num_queries=300),
    "multi_targeted": partial(attacks.multi_targeted, curved, KEY, epsilon=0.01, step_size=0.004, num_steps=3),
    "optimized_pgd": partial(
        attacks.optimized_pgd, curved, KEY, epsilon=0.1, optimizer=optax.adam(0.02), num_steps=3
    ),
    "eot": partial(
        attacks.pgd, noisy, KEY, epsilon=0.1, step_size=0.02, num_steps=3, keep_best=True, eot_samples=2
    ),
}  # fmt: skip
for norm, epsilon in (("linf", 0.01), ("l2", 0.2), ("l1", 2.0)):
    ATTACKS |= {
        f"pgd {norm}": partial(
            attacks.pgd, curved, KEY, epsilon=epsilon, step_size=epsilon / 4, num_steps=3, num_restarts=2, norm=norm
        ),
        f"apgd {norm}": partial(
            attacks.apgd, curved, KEY, epsilon=epsilon, num_steps=3, norm=norm, loss="dlr-targeted", num_targets=2,
            targets="linearised",
        ),
        f"fab {norm}": partial(attacks.fab, curved, KEY, epsilon=np.inf, num_steps=3, num_targets=2, norm=norm),
        f"square {norm}": partial(attacks.square, curved, KEY, epsilon=epsilon, num_queries=8, norm=norm),
    }  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name, mesh):
    moves(jax.jit(ATTACKS[name]), mesh)


@pytest.mark.parametrize("name", ["cw", "optimized_pgd", "pgd l2", "square linf"])
def test_attacks_outside_jit(name, mesh):
    moves(ATTACKS[name], mesh)


@pytest.mark.parametrize("name", ["pgd linf", "apgd linf"])
def test_images_of_which_each_device_has_a_part(name):
    """Rows over one axis and heights over another; the network's contraction says how its own are to meet."""
    weights = WEIGHTS.reshape(8, 8, 3, 5)
    parts = lambda images: 8 * jnp.tanh(jnp.einsum("bhwc,hwck->bk", images, weights) / 8)  # noqa: E731
    attack = jax.jit(partial(ATTACKS[name].func, parts, KEY, **ATTACKS[name].keywords))
    mesh = jax.make_mesh((2, 2), ("batch", "height"))
    images, labels = (
        jax.device_put(rows, NamedSharding(mesh, PartitionSpec(*axes)))
        for rows, axes in ((IMAGES, ("batch", "height")), (LABELS, ("batch",)))
    )
    with jax.set_mesh(mesh):
        points = attack(images, labels)
    assert points.sharding.spec[:2] == ("batch", "height")
    np.testing.assert_allclose(np.asarray(points), np.asarray(attack(IMAGES, LABELS)), atol=1e-5)


def test_keys_of_examples_that_are_sharded_as_these(mesh):
    """Each example's draws are its own, wherever it is; the network's own are keyed by the first."""
    keys = jax.random.split(KEY, 4)
    attack = lambda keys, images, labels: attacks.apgd(  # noqa: E731
        noisy, keys, images, labels, epsilon=0.01, num_steps=3, eot_samples=2
    )
    rows = [np.asarray(jax.random.key_data(keys)), IMAGES, LABELS]
    same(jax.jit(lambda data, *rest: attack(jax.random.wrap_key_data(data), *rest)), mesh, *rows)
    shards = NamedSharding(mesh, PartitionSpec("batch"))
    attack(*(jax.device_put(row, shards) for row in (keys, IMAGES, LABELS)))


@pytest.mark.parametrize("name", ["deepfool", "fab l2", "apgd linf"])
def test_labels_that_every_device_has(name, mesh):
    everywhere = jax.device_put(LABELS, NamedSharding(mesh, PartitionSpec()))
    images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("batch")))
    attack = jax.jit(ATTACKS[name])
    np.testing.assert_allclose(np.asarray(attack(images, everywhere)), np.asarray(attack(IMAGES, LABELS)), atol=1e-5)


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


def test_each_device_prunes_its_own_maps(mesh):
    """Keys are the same on every device, and would have each draw for all."""
    maps = jax.device_put(FEATURES, NamedSharding(mesh, PartitionSpec("batch")))
    program = jax.jit(DEFENSES["sap multinomial"]).lower(maps, LABELS).compile().as_text()
    assert "all-gather" not in program


@pytest.mark.parametrize("name", ["lenet5", "small_cnn"])
def test_networks_and_their_gradients(name, mesh):
    images = RNG.uniform(size=(4, 28, 28, 1) if name == "lenet5" else (4, 16, 16, 3)).astype(np.float32)
    module = models.create(name)
    with jax.set_mesh(jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,))):
        variables = jax.device_get(jax.jit(module.init)(KEY, images))
    logits = lambda images: module.apply(variables, images).logits  # noqa: E731
    both = lambda images: (logits(images), jax.grad(lambda images: logits(images).sum())(images))  # noqa: E731
    same(jax.jit(both), mesh, images)


def test_a_vision_transformer_knows_where_its_tokens_lie(mesh):
    module = models.create("vit_s16").clone(depth=1)
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    with jax.set_mesh(jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,))):
        variables = jax.eval_shape(module.init, KEY, images)
    variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    sharded = jax.ShapeDtypeStruct(images.shape, images.dtype, sharding=NamedSharding(mesh, PartitionSpec("batch")))
    apply = lambda variables, images: module.apply(variables, images).logits  # noqa: E731
    assert jax.eval_shape(apply, variables, sharded).sharding.spec[0] == "batch"
