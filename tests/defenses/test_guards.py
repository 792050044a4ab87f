"""Guards in networks with BatchNorm: what they return, what trains, and what an adversary is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import defenses
from robustjax.attacks.losses import cross_entropy
from robustjax.models.resnet import ResNet
from robustjax.types import InputError

B, K = 4, 3
PLAIN = ResNet(num_classes=K, blocks=(2,), widths=(4,))
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(B, 4, 4, 1)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 1])
KEY = jax.random.key(0)
OPTIONS = {
    "cas": {},
    "cifs": {"hidden": 5},
    "fsr": {"width": 3},
    "kwta": {"fraction": 0.3},
    "meansparse": {"alpha": 0.5},
    "sap": {"fraction": 0.5, "sampler": "bernoulli"},
}


def _network(defense):
    return PLAIN.clone(guards=defense.guards(PLAIN.sites(), K))


def _variables(module):
    """Parameters away from the zeros and ones of initialisation, without the time that compiling it takes."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, KEY, IMAGES)
    draw = {
        "params": lambda leaf: rng.normal(0, 0.5, leaf.shape),
        "batch_stats": lambda leaf: rng.uniform(1, 2, leaf.shape),
        "statistics": lambda leaf: rng.uniform(0.2, 1, leaf.shape),
    }
    return {
        name: jax.tree.map(lambda leaf, draw=draw[name]: jnp.asarray(draw(leaf), jnp.float32), tree)
        for name, tree in shapes.items()
    }


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def guarded(request):
    """A defense, its variables, and (key) -> outputs and input gradient of each mode at inference, and unguarded."""
    defense = defenses.create(request.param, **OPTIONS[request.param])
    variables = _variables(_network(defense))
    backbone = {
        name: {layer: leaves for layer, leaves in tree.items() if not layer.startswith("guards_")}
        for name, tree in variables.items()
    }

    def run(module, variables):
        @jax.jit
        def at(key):
            def value(images):
                outputs = module.apply(variables, images, rngs={"defense": key})
                return jnp.sum(cross_entropy(outputs.logits, LABELS)), outputs

            (_, outputs), gradient = jax.value_and_grad(value, has_aux=True)(IMAGES)
            return outputs, gradient

        return at

    at = {
        "active": run(_network(defense), variables),
        "surrogate": run(_network(defense.surrogate), variables),
        "off": run(_network(defense.switched_off), variables),
        "plain": run(PLAIN, backbone),
    }
    return defense, variables, {mode: forward(KEY) for mode, forward in at.items()}, at["active"]


def test_heads_are_those_declared_one_for_each_site(guarded):
    defense, _, runs, _ = guarded
    sites = PLAIN.sites()[defense.role]
    for mode in ("active", "surrogate", "off"):
        auxiliary = runs[mode][0].auxiliary
        assert sorted(auxiliary) == sorted(defense.heads)
        assert all(logits.shape == (len(sites), B, K) and logits.dtype == jnp.float32 for logits in auxiliary.values())


def test_the_surrogate_has_the_same_outputs_and_another_gradient(guarded):
    _, _, runs, _ = guarded
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), runs["surrogate"][0], runs["active"][0]
    )
    assert float(jnp.max(jnp.abs(runs["surrogate"][1] - runs["active"][1]))) > 1e-6
    assert all(bool(jnp.all(jnp.isfinite(gradient))) for _, gradient in runs.values())


def test_switched_off_is_the_undefended_network(guarded):
    _, _, runs, _ = guarded
    for a, b in zip((runs["off"][0].logits, runs["off"][1]), (runs["plain"][0].logits, runs["plain"][1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert float(jnp.max(jnp.abs(runs["active"][0].logits - runs["plain"][0].logits))) > 1e-4


def test_training_reaches_every_parameter_of_network_and_guard(guarded):
    defense, variables, _, _ = guarded
    module = _network(defense)

    @jax.jit
    def step(params):
        def value(params):
            outputs, updated = module.apply(
                variables | {"params": params},
                IMAGES,
                LABELS,
                train=True,
                rngs={"defense": KEY},
                mutable=["batch_stats"],
            )
            term = lambda logits, labels: cross_entropy(logits["natural"], labels)  # noqa: E731
            return jnp.sum(defense.loss({"natural": outputs}, LABELS, term=term)), updated

        return jax.grad(value, has_aux=True)(params)

    gradient, updated = step(variables["params"])
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.any(leaf) or not np.all(np.isfinite(leaf))
    ]
    assert not still
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), updated["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_stochastic_defenses_and_only_they_draw_at_inference(guarded):
    defense, variables, runs, active = guarded
    if defense.stochastic:
        assert float(jnp.max(jnp.abs(active(jax.random.key(1))[0].logits - runs["active"][0].logits))) > 1e-4
    else:
        jax.eval_shape(_network(defense).apply, variables, IMAGES)  # raises if a key is asked for


def test_sap_leaves_training_dense_and_draws_each_site_apart():
    defense = defenses.create("sap")
    module = _network(defense)
    variables = jax.eval_shape(PLAIN.init, KEY, IMAGES)
    # Without parameters of its own any checkpoint of the plain network loads.
    assert jax.eval_shape(module.init, KEY, IMAGES) == variables
    dense, trained = (
        str(
            jax.make_jaxpr(lambda v, net=net: net.apply(v, IMAGES, LABELS, train=True, mutable=["batch_stats"]))(
                variables
            )
        )
        for net in (PLAIN, module)
    )
    assert trained == dense
    site, other = (defense.guards({"activation": ("a", "b")}, K)[name] for name in "ab")
    assert site is not other


def test_published_sites_and_probes():
    sites = {"activation": ("a",), "late": ("b", "c"), "final": ("c",)}
    guards = defenses.create("cifs", hidden=7).guards(sites, K)
    features = jnp.ones((2, 2, 2, 5))
    shapes = {site: jax.tree.map(jnp.shape, guard.init(KEY, features)["params"]) for site, guard in guards.items()}
    assert shapes["b"] == {"kernel_0": (5, 7), "bias_0": (7,), "kernel_1": (7, K), "bias_1": (K,)}
    assert shapes["c"] == {"kernel_0": (5, K), "bias_0": (K,)}
    assert list(defenses.create("cas").guards(sites, K)) == ["b", "c"]
    (fsr,) = defenses.create("fsr").guards(sites, K).values()
    params = jax.eval_shape(fsr.init, KEY, jnp.ones((1, 4, 4, 512)))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    # Two networks of 3 x 3 convolutions 512-64-64-512 with two BatchNorms, and the shared head.
    assert count == 2 * (9 * 64 * (512 + 64 + 512) + 4 * 64) + 512 * K + K


def test_guards_keep_bfloat16():
    for name, options in OPTIONS.items():
        sites = dict.fromkeys(("activation", "preactivation", "late", "final"), ("a",))
        (guard,) = defenses.create(name, **options).guards(sites, K).values()
        features = jnp.ones((2, 2, 2, 4), jnp.bfloat16)
        out, heads = jax.eval_shape(lambda guard=guard, features=features: guard.init_with_output(KEY, features)[0])
        assert out.dtype == jnp.bfloat16, name
        assert all(logits.dtype == jnp.float32 for logits in heads.values()), name


def test_mistakes_are_named():
    with pytest.raises(
        InputError, match="one of cas, cifs, dropout, fsr, kwta, meansparse, noise, sap, sns, got 'sapp'"
    ):
        defenses.create("sapp")
    with pytest.raises(InputError, match="defense 'kwta' takes the options fraction, by_magnitude, sites, got k"):
        defenses.create("kwta", k=3)
    with pytest.raises(InputError, match="needs a network with 'late' sites, this one has activation"):
        defenses.create("cas").guards({"activation": ("a",), "late": ()}, K)
    for name, options in {"cas": {"beta": -1}, "cifs": {"hidden": 0}, "fsr": {"width": 0}}.items():
        with pytest.raises(InputError, match=f"{name}: {next(iter(options))}"):
            defenses.create(name, **options)
