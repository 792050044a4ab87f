"""Networks in DeepMind's form against one written anew, and blocks that are computed again for the gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import defenses, models
from robustjax.models.resnet import BottleneckResNet, PreActResNet, ResNet
from robustjax.models.vgg import VGG16
from robustjax.planning import counts

TINY = {"blocks": (1, 1), "widths": (4, 6)}


def same_convolution(x, kernel, stride):
    """As TensorFlow pads: with strides on even sides, below and to the right only."""
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def deepmind(variables, images, *, preact):
    """Gowal et al.'s networks as their published code computes them, from our names of the weights."""
    params, statistics = variables["params"], variables["batch_stats"]

    def normed(name, x):
        mean, var = statistics[name]["mean"], statistics[name]["var"]
        hat = (x - mean.reshape(1, 1, 1, -1)) / jnp.sqrt(var.reshape(1, 1, 1, -1) + 1e-5)
        out = hat * params[name]["scale"].reshape(1, 1, 1, -1) + params[name]["bias"].reshape(1, 1, 1, -1)
        return out / (1 + jnp.exp(-out))  # SiLU

    x = same_convolution(images, params["stem_conv"]["kernel"], 1)
    for name, stride in (("stage1_block1", 1), ("stage2_block1", 2)):
        active = normed(f"{name}_norm1", x)
        if f"{name}_shortcut_conv" in params:
            seen = x if preact else active
            shortcut = same_convolution(seen, params[f"{name}_shortcut_conv"]["kernel"], stride)
        else:
            shortcut = x
        x = same_convolution(active, params[f"{name}_conv1"]["kernel"], stride)
        x = same_convolution(normed(f"{name}_norm2", x), params[f"{name}_conv2"]["kernel"], 1) + shortcut
    x = normed("final_norm", x).mean((1, 2))
    return x @ params["head"]["kernel"] + params["head"]["bias"].reshape(1, -1)


@pytest.mark.parametrize("name", ["deepmind_preact_resnet18", "deepmind_wide_resnet"])
def test_networks_of_deepmind_are_as_published(name, key):
    preact = name == "deepmind_preact_resnet18"
    options = models.MODELS[name].keywords
    network = PreActResNet(**TINY, stem_width=4 if preact else 3, **options)
    images = jax.random.uniform(key, (3, 8, 8, 3))
    variables = network.init(key, images)
    shaken = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.abs(jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)))
                          .reshape(leaf.shape), variables)  # fmt: skip
    logits = network.apply(shaken, images).logits
    np.testing.assert_allclose(logits, deepmind(shaken, images, preact=preact), rtol=1e-4, atol=1e-4)
    _, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
    stem = same_convolution(images, variables["params"]["stem_conv"]["kernel"], 1)
    moved = updated["batch_stats"]["stage1_block1_norm1"]["mean"]
    np.testing.assert_allclose(moved, 0.01 * np.mean(stem, (0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    "network",
    [
        partial(ResNet, **TINY),
        partial(BottleneckResNet, **TINY),
        partial(PreActResNet, **TINY, stem_width=4),
        VGG16,
    ],
    ids=["ResNet", "BottleneckResNet", "PreActResNet", "VGG16"],
)
def test_remat_keeps_names_and_values_and_computes_blocks_again(network, key):
    plain, again = network(), network(remat=True)
    images = jax.random.uniform(key, (2, 32, 32, 3))
    variables = jax.eval_shape(plain.init, key, images)
    assert jax.eval_shape(again.init, key, images) == variables

    def traced(network):
        def loss(params, statistics):
            outputs, _ = network.apply({"params": params, "batch_stats": statistics}, images, train=True,
                                       mutable=["batch_stats"])  # fmt: skip
            return outputs.logits.sum()

        return jax.make_jaxpr(jax.grad(loss))(variables["params"], variables["batch_stats"])

    kept, computed = counts.count(traced(plain)), counts.count(traced(again))
    assert computed.flops > 1.05 * kept.flops and computed.held < kept.held


def test_remat_with_guards_changes_no_gradient(key):
    images, labels = jax.random.uniform(key, (2, 8, 8, 3)), jnp.array([1, 2])
    results, orders = [], []
    for remat in (False, True):
        network = PreActResNet(**TINY, stem_width=4, remat=remat)
        network = network.clone(guards=defenses.create("cifs", hidden=3).guards(network.sites(), 10))
        order = []

        def loss(params, variables, network=network, order=order):
            variables = {**variables, "params": params}
            outputs, updated = network.apply(variables, images, labels, train=True, mutable=["batch_stats"])
            order[:] = outputs.features
            total = outputs.logits.sum() + sum(jnp.sin(each).sum() for each in outputs.auxiliary.values())
            return total, (updated, outputs)

        variables = jax.jit(network.init)(key, images)
        results.append(jax.jit(jax.grad(loss, has_aux=True))(variables["params"], variables))
        orders.append(order)
    assert orders[0] == orders[1] and len(orders[0]) > 5
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
