"""Networks by what is published of them, and by what guards and attacks rely on."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import models
from robustjax.models.layers import average_pool, max_pool
from robustjax.types import InputError

CIFAR, MNIST = (32, 32, 3), (28, 28, 1)

# name, options, image shape, parameters for 10 classes, ReLUs
PUBLISHED = [
    ("lenet5", {}, MNIST, 61_706, 4),
    ("small_cnn", {}, MNIST, 166_406, 3),
    ("resnet10", {}, CIFAR, 4_903_242, 9),
    ("resnet18", {}, CIFAR, 11_173_962, 17),
    ("resnet34", {}, CIFAR, 21_282_122, 33),
    ("resnet20", {}, CIFAR, 272_282, 19),
    ("resnet50", {}, (224, 224, 3), 23_528_522, 49),
    ("preact_resnet18", {}, CIFAR, 11_172_170, 17),
    ("preact_resnet18", {"final_norm": False}, CIFAR, 11_171_146, 16),
    ("vgg16", {}, CIFAR, 14_724_042, 13),
    ("vgg16", {"classifier_widths": (512, 512), "classifier_norm": True}, CIFAR, 15_251_402, 15),
    ("deepmind_preact_resnet18", {}, CIFAR, 12_548_426, 17),
    ("deepmind_wide_resnet", {"depth": 28, "width": 10}, CIFAR, 36_479_194, 25),
    ("wide_resnet", {"depth": 28, "width": 10}, CIFAR, 36_479_194, 25),
    ("wide_resnet", {"depth": 34, "width": 10}, CIFAR, 46_160_474, 31),
]
EVERY = [(name, options, shape) for name, options, shape, _, _ in PUBLISHED[:-3]]
EVERY.append(("wide_resnet", {"depth": 10, "width": 1}, CIFAR))
EVERY.append(("vit_s16", {}, CIFAR))


class Double(nn.Module):
    """A guard that doubles what it sees and answers with heads of its own."""

    kind: str = "probe"

    @nn.compact
    def __call__(self, features, labels=None, train=False):
        weights = self.param("weights", nn.initializers.ones_init(), (features.shape[-1], 3))
        signal = 1.0 if labels is not None and train else 0.0
        return 2 * features, {self.kind: features.mean(axis=tuple(range(1, features.ndim - 1))) @ weights + signal}


def shapes(network, image_shape, batch=2, **options):
    """Shapes of variables and outputs, without computing anything."""
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    return variables, jax.eval_shape(lambda v, x: network.apply(v, x, **options), variables, images)


def passed(network, image_shape):
    """The sites in the order of the forward pass: `eval_shape` returns dicts sorted, so they are noted inside."""
    order = []

    def forward(key):
        variables = network.init(key, jnp.zeros((1, *image_shape)))
        order[:] = network.apply(variables, jnp.zeros((1, *image_shape))).features
        return 0

    jax.eval_shape(forward, jax.random.key(0))
    return order


@pytest.mark.parametrize(("name", "options", "shape", "parameters", "relus"), PUBLISHED)
def test_parameters_and_activations_are_as_published(name, options, shape, parameters, relus):
    network = models.create(name, **options)
    variables, outputs = shapes(network, shape)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert len(network.sites()["activation"]) == relus
    assert outputs.logits.shape == (2, 10) and outputs.logits.dtype == jnp.float32
    assert outputs.auxiliary == {}


@pytest.mark.parametrize(("name", "options", "shape"), EVERY)
def test_sites_are_what_the_network_passes_in_this_order(name, options, shape):
    network = models.create(name, **options)
    _, outputs = shapes(network, shape)
    order = list(passed(network, shape))
    features = outputs.features
    sites = dict(network.sites())
    assert sites.pop("preactivation") == tuple(f"{site}_input" for site in sites["activation"])
    assert sites.pop("weights") == ("weights",)
    for names in sites.values():
        assert names and [order.index(site) for site in names] == sorted(order.index(site) for site in names)
    late = [features[site] for site in network.sites()["late"]]
    of_last_stage = {"vgg16": 3, "resnet10": 1, "resnet34": 3, "resnet50": 3}
    assert all(feature.ndim == 4 for feature in late) and len(late) == of_last_stage.get(name, 2)


@pytest.mark.parametrize(("name", "options", "shape"), EVERY)
def test_classes_channels_and_dtypes_are_free(name, options, shape):
    network = models.create(name, num_classes=3, dtype="bfloat16", mean=(0.5,), std=(0.25,) * 2, **options)
    variables, outputs = shapes(network, (48, 32, 2))
    assert outputs.logits.shape == (2, 3) and outputs.logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert {feature.dtype for feature in outputs.features.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(("name", "options", "shape"), EVERY)
def test_guards_before_activations_sit_at_every_relus_input(name, options, shape):
    network = models.create(name, **options)
    sites = network.sites()["preactivation"]
    guarded = network.clone(guards={site: Double() for site in sites})
    _, outputs = shapes(guarded, shape)
    assert outputs.auxiliary["probe"].shape[0] == len(sites)


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "vgg16"])
def test_guards_sit_at_their_sites_and_their_heads_are_stacked_in_order(name):
    network = models.create(name)
    late = network.sites()["late"]
    guarded = network.clone(guards={site: Double() for site in reversed(late)})
    _, outputs = shapes(guarded, CIFAR, labels=jnp.zeros(2, jnp.int32), train=False)
    assert outputs.auxiliary["probe"].shape == (len(late), 2, 3)


def test_a_guard_changes_what_the_network_goes_on_with(key):
    plain = models.create("small_cnn")
    guarded = plain.clone(guards={"conv2": Double()})
    images = jax.random.uniform(key, (2, 8, 8, 1))
    variables = guarded.init(key, images)
    ours, theirs = (network.apply(variables, images) for network in (guarded, plain))
    np.testing.assert_allclose(ours.features["conv2"], 2 * theirs.features["conv2"], rtol=1e-6)
    pooled = theirs.features["conv2"].mean(axis=(1, 2))
    np.testing.assert_allclose(ours.auxiliary["probe"][0], jnp.tile(pooled.sum(1, keepdims=True), 3), rtol=1e-5)
    trained = guarded.apply(variables, images, jnp.array([0, 1]), train=True)
    np.testing.assert_allclose(trained.auxiliary["probe"], ours.auxiliary["probe"] + 1.0, rtol=1e-5)
    dense = variables["params"]["dense"]
    hidden = jnp.maximum(ours.features["conv2"].reshape(2, -1) @ dense["kernel"] + dense["bias"][None], 0)
    np.testing.assert_allclose(ours.features["dense"], hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "passes"), [({}, False), ({"guarded_shortcut": False}, True), ({"final_norm": False}, True)]
)
def test_what_a_convolution_on_a_shortcut_takes(options, passes, key):
    """Whether anything gets past a guard that lets nothing through at the input of a block that widens."""

    class Nothing(nn.Module):
        def __call__(self, features, labels=None, train=False):
            return jnp.zeros_like(features), {}

    network = models.PreActResNet(blocks=(1,), widths=(4,), stem_width=2, **options)
    guarded = network.clone(guards={"stage1_block1_act1": Nothing()})
    images = jax.random.uniform(key, (2, 4, 4, 1))
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), jax.eval_shape(guarded.init, key, images))
    variables["batch_stats"] = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    variables["params"]["stage1_block1_norm2"]["bias"] = jnp.full(4, -1.0)  # nothing leaves an empty block
    outputs = jax.jit(guarded.apply)(variables, images)
    assert bool(jnp.any(outputs.features["stage1_block1"] != 0)) == passes
    if not options.get("final_norm", True):
        assert "final" not in outputs.features and "final_norm" not in variables["params"]
        pooled = outputs.features["stage1_block1"].mean(axis=(1, 2))
        np.testing.assert_allclose(outputs.logits, pooled @ jnp.full((4, 10), 0.5) + 0.5, rtol=1e-5)


def test_guards_come_from_a_defense():
    class Everywhere:
        def guards(self, sites, num_classes):
            assert num_classes == 10
            return {site: Double("own") for site in sites["late"]}

    network = models.create("small_cnn", defense=Everywhere())
    assert shapes(network, (8, 8, 1))[1].auxiliary["own"].shape == (2, 2, 3)


def test_normalisation_is_the_first_layer(key):
    images = jax.random.uniform(key, (2, 8, 8, 3))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    normalising = models.create("small_cnn", mean=mean, std=std)
    variables = normalising.init(key, images)
    normalised = (images - jnp.array(mean)[None, None, None]) / jnp.array(std)[None, None, None]
    np.testing.assert_allclose(
        normalising.apply(variables, images).logits,
        models.create("small_cnn").apply(variables, normalised).logits,
        rtol=1e-5,
        atol=1e-6,
    )


def test_one_number_normalises_every_channel_however_it_is_given(key):
    images = jax.random.uniform(key, (2, 8, 8, 3))
    expected = models.create("small_cnn", mean=(0.5,) * 3, std=(0.25,) * 3)
    variables = expected.init(key, images)
    logits = expected.apply(variables, images).logits
    one = models.create("small_cnn", mean=0.5, std=0.25)
    assert one == models.create("small_cnn", mean=(0.5,), std=np.array([0.25], np.float32))
    assert hash(one) == hash(models.create("small_cnn", mean=[0.5], std=jnp.float32(0.25)))
    for network in (one, models.create("small_cnn").clone(mean=0.5, std=0.25)):
        np.testing.assert_array_equal(network.apply(variables, images).logits, logits)


def test_batch_norm_uses_and_updates_statistics_in_training_only(key):
    network = models.resnet.PreActResNet(blocks=(1,), widths=(4,), stem_width=4)
    images = jax.random.uniform(key, (4, 8, 8, 1))
    variables = network.init(key, images)
    outputs, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
    conv = network.apply(variables, images, train=True, mutable=["batch_stats"])[0].features["final"]
    assert conv.shape == (4, 8, 8, 4) and not np.allclose(outputs.logits, network.apply(variables, images).logits)
    stem = models.conv2d(images, variables["params"]["stem_conv"]["kernel"], padding=1)
    norm = updated["batch_stats"]["stage1_block1_norm1"]
    np.testing.assert_allclose(norm["mean"], 0.1 * stem.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm["var"], 0.9 + 0.1 * stem.var(axis=(0, 1, 2)), rtol=1e-4)


def test_pools_match_numpy_and_the_gradient_of_max_goes_to_the_largest(key):
    features = jax.random.normal(key, (2, 5, 7, 3))
    expected = np.asarray(features)[:, :4, :6].reshape(2, 2, 2, 3, 2, 3).max(axis=(2, 4))
    np.testing.assert_array_equal(max_pool(features), expected)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(features)
    np.testing.assert_array_equal(np.sum(gradient, axis=(1, 2)), np.full((2, 3), 6.0))
    np.testing.assert_allclose(average_pool(features), np.mean(features, axis=(1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        (("resnet81",), CIFAR, "nearest: 'resnet18'"),
        (("small_cnn", {"depth": 3}), CIFAR, "got depth"),
        (("wide_resnet", {"depth": 28}), CIFAR, "needs width"),
        (("wide_resnet", {"depth": 28.0, "width": 10}), CIFAR, "needs integers as depth and width, got 28.0 and 10"),
        (("wide_resnet", {"depth": 27, "width": 1}), CIFAR, "nearest depth: 28"),
        (("vgg16", {"classifier_widths": (512, 0)}), CIFAR, "classifier_widths from 1 on, got (512, 0)"),
        (("resnet18", {"final_norm": False}), CIFAR, "got final_norm"),
        (("resnet18", {"num_classes": 1}), CIFAR, "num_classes must be an integer from 2 on, got 1"),
        (("resnet18", {"num_classes": "10"}), CIFAR, "got '10'"),
        (
            ("resnet18", {"std": (0.2, 0.0, 0.2)}),
            CIFAR,
            "std must be one finite number above 0, or one per channel, got",
        ),
        (
            ("resnet18", {"mean": (float("nan"),)}),
            CIFAR,
            "mean must be one finite number, or one per channel, got (nan,)",
        ),
        (("resnet18", {"std": 0}), CIFAR, "std must be one finite number above 0, or one per channel, got 0"),
        (("resnet18", {"mean": "0.5,"}), CIFAR, "got '0.5,'"),
        (("resnet18", {"mean": ()}), CIFAR, "mean must be one finite number, or one per channel, got ()"),
        (("resnet18", {"mean": None}), CIFAR, "mean must be one finite number, or one per channel, got None"),
        (("resnet18", {"dtype": "float16"}), CIFAR, "float32 or bfloat16"),
        (("small_cnn", {"mean": (0.1, 0.2)}), CIFAR, "one for each of 3 channels, got 2"),
        (("vgg16", {}), MNIST, "at least 32 x 32, got (28, 28)"),
        (("small_cnn", {}), (2, 8, 1), "at least 4 x 4"),
        (("small_cnn", {}), (8, 8), "floating-point [B, H, W, C]"),
    ],
)
def test_what_does_not_fit_is_named(arguments, shape, message):
    with pytest.raises(InputError) as caught:
        name, options = arguments[0], arguments[1] if len(arguments) > 1 else {}
        shapes(models.create(name, **options), shape)
    assert message in str(caught.value)


def test_the_number_of_classes_may_be_one_of_numpy():
    made = models.create("small_cnn", num_classes=np.arange(3).max() + 1)
    assert made == models.create("small_cnn", num_classes=3) and type(made.num_classes) is int


def test_a_guard_at_no_site_is_named():
    network = models.create("small_cnn").clone(guards={"conv3": Double()})
    with pytest.raises(InputError, match=r"no site conv3 .* conv1, conv2, dense"):
        shapes(network, (8, 8, 1))


def test_the_small_network_with_batch_norm_is_the_one_without_of_folded_weights():
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    normed, plain = models.create("small_cnn", batch_norm=True), models.create("small_cnn")
    variables = normed.init(jax.random.key(0), images)
    keys = iter(jax.random.split(jax.random.key(2), 9))
    moved = jax.tree.map(lambda x: x + 0.1 * jax.random.uniform(next(keys), x.shape), variables["batch_stats"])
    folded = dict(variables["params"])
    for name in ("conv1", "conv2"):
        norm, stats = folded.pop(f"{name}_norm"), moved[f"{name}_norm"]
        factor = norm["scale"] / jnp.sqrt(stats["var"] + 1e-5)
        kernel = folded[name]["kernel"] * factor[None, None, None]
        folded[name] = {"kernel": kernel, "bias": norm["bias"] - stats["mean"] * factor}
    expected = plain.apply({"params": folded}, images).logits
    found = normed.apply({"params": variables["params"], "batch_stats": moved}, images).logits
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, normed.apply(variables, images).logits, atol=1e-3)
