"""Vision transformers against the forward pass written in NumPy, and by what guards rely on."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, defenses, models
from robustjax.models.vit import VisionTransformer, _positions
from robustjax.planning import counts
from robustjax.types import InputError

SMALL = {"patch": 2, "depth": 2, "width": 8, "heads": 2, "num_classes": 3}


@pytest.fixture
def made(key):
    """A small network with biases that are not 0, and images that are not square."""
    network = VisionTransformer(**SMALL)
    images = jax.random.uniform(key, (2, 6, 4, 1))
    variables = network.init(key, images)
    noisy = [
        leaf + 0.3 * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
        for i, leaf in enumerate(jax.tree.leaves(variables))
    ]
    return network, jax.tree.unflatten(jax.tree.structure(variables), noisy), images


def by_hand(parameters, image, heads=2):
    """Logits of one image, token by token."""
    p = jax.tree.map(np.float64, parameters)

    def dense(name, x):
        return x @ p[name]["kernel"] + p[name]["bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p[name]["scale"] + p[name]["bias"]

    def gelu(x):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    tokens = []
    for row in range(3):
        for column in range(2):
            pixels = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].ravel()
            places = [wave(place / 10_000**i) for place in (column, row) for wave in (np.sin, np.cos) for i in (0, 1)]
            tokens.append(pixels @ p["patches"]["kernel"].reshape(4, 8) + p["patches"]["bias"] + places)
    x = np.array(tokens)
    for block in ("block1", "block2"):
        normed = norm(f"{block}_norm1", x)
        query, key, value = (dense(f"{block}_{part}", normed) for part in ("query", "key", "value"))
        mixed = []
        for head in np.split(np.arange(8), heads):
            scores = np.exp(query[:, head] @ key[:, head].T / np.sqrt(len(head)))
            mixed.append(scores / scores.sum(1, keepdims=True) @ value[:, head])
        x = x + dense(f"{block}_mix", np.concatenate(mixed, axis=1))
        x = x + dense(f"{block}_dense2", gelu(dense(f"{block}_dense1", norm(f"{block}_norm2", x))))
    return dense("head", norm("final_norm", x).mean(0))


def test_logits_are_those_of_a_transformer_written_by_hand(made):
    network, variables, images = made
    outputs = network.apply(variables, images)
    expected = [by_hand(variables["params"], np.float64(image)) for image in images]
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-4)
    assert [outputs.features[site].shape for site in ("block2_act", "block2", "final")] == [
        (2, 3, 2, 32), (2, 3, 2, 8), (2, 3, 2, 8),
    ]  # fmt: skip
    head = variables["params"]["head"]  # what it classifies is the site "final", the last of those of CAS and CIFS
    classified = outputs.features["final"].mean((1, 2)) @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(outputs.logits, classified, rtol=1e-4, atol=1e-4)
    assert network.sites()["late"] == ("block2", "final")


# What timm has for vit_small_patch16_224 and vit_base_patch16_224, less a class token and 197 learned positions.
@pytest.mark.parametrize(
    ("name", "parameters", "heads"),
    [("vit_s16", 22_050_664 - 198 * 384, 6), ("vit_b16", 86_567_656 - 198 * 768, 12)],
)
def test_parameters_are_as_published(name, parameters, heads):
    network = models.create(name, num_classes=1000)
    assert network.heads == heads
    variables = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters


def test_tokens_begin_with_the_variance_of_their_pixels(key):
    images = jax.random.normal(key, (8, 64, 64, 3))
    network = VisionTransformer(depth=1, width=64, heads=2)
    kernel = network.init(key, images)["params"]["patches"]["kernel"]
    tokens = images.reshape(8, 4, 16, 4, 16, 3).swapaxes(2, 3).reshape(-1, 768) @ kernel.reshape(768, 64)
    np.testing.assert_allclose(tokens.std(), 1.0, atol=0.05)


def test_positions_of_the_narrowest_network_are_finite():
    np.testing.assert_allclose(_positions(1, 2, 4), [[[0, 1, 0, 1], [np.sin(1), np.cos(1), 0, 1]]])


def test_blocks_computed_again_for_the_gradient_have_the_same_gradient(made):
    network, variables, images = made

    def loss(network):
        return lambda variables: (network.apply(variables, images).logits ** 2).sum()

    ours, theirs = (jax.grad(loss(each)) for each in (network.clone(remat=True), network))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours(variables), theirs(variables)
    )
    computed, kept = (counts.count(jax.make_jaxpr(gradient)(variables)) for gradient in (ours, theirs))
    assert computed.flops > 1.2 * kept.flops and computed.held < kept.held


# Multiplications of a forward pass: patches, in each block four products of width by width, two of eight times that in
# all, and two of all pairs of tokens; the classifier. Timm lists 4.61 and 17.58 billion, with a class token.
@pytest.mark.parametrize(("name", "width", "published"), [("vit_s16", 384, 4.61e9), ("vit_b16", 768, 17.58e9)])
def test_work_is_as_published_attention_included(name, width, published):
    network, images = models.create(name, num_classes=1000), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    found = counts.count(jax.make_jaxpr(lambda *given: network.apply(*given).logits)(variables, images)).flops
    tokens = 14 * 14
    assert found == 2 * (tokens * (768 * width + 12 * (12 * width**2 + 2 * tokens * width)) + 1000 * width)
    assert 0.99 * published < found / 2 < published


@pytest.mark.parametrize("name", ["cas", "cifs", "fsr", "sns", "sap", "kwta", "meansparse"])
def test_defenses_guard_the_map_of_tokens_and_attacks_go_through(name, key):
    network = VisionTransformer(**SMALL)
    defense = defenses.create(name)
    network = network.clone(guards=defense.guards(network.sites(), 3))
    images, labels = jax.random.uniform(key, (4, 4, 4, 1)), jnp.array([0, 1, 2, 0])
    variables = network.init({"params": key, "defense": key}, images)

    def logits_fn(points):
        return network.apply(variables, points, rngs={"defense": key}).logits

    found = attacks.pgd(logits_fn, key, images, labels, epsilon=0.1, step_size=0.05, num_steps=2)
    assert np.isfinite(logits_fn(found)).all() and np.abs(found - images).max() > 0.05


def test_bfloat16_stays_near_and_its_logits_are_float32(made):
    network, variables, images = made
    network_bf16 = network.clone(dtype="bfloat16")
    ours = network_bf16.apply(variables, images)
    # The weights of attention, the only exponentials, are computed in float32.
    text = str(jax.make_jaxpr(lambda images: network_bf16.apply(variables, images).logits)(images))
    assert re.findall(r":(\w+)\[\S* = exp ", text) == ["f32"] * network.depth
    assert ours.logits.dtype == jnp.float32 and ours.features["block1"].dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.logits, network.apply(variables, images).logits, atol=0.1)


@pytest.mark.parametrize(
    ("options", "side", "message"),
    [
        ({}, 5, r"images must have sides divisible by 2, got \(5, 5\); scale them"),
        ({}, 1, "needs images of at least 2 x 2"),
        ({"width": 6}, 4, "width must be a multiple of 4 and of the 2 heads, got 6"),
        ({"heads": 3}, 4, "width must be a multiple of 4 and of the 3 heads, got 8"),
    ],
)
def test_what_does_not_fit_is_said(options, side, message, key):
    with pytest.raises(InputError, match=message):
        VisionTransformer(**(SMALL | options)).init(key, jnp.zeros((1, side, side, 1)))
