"""State dicts and variables, there and back, and everything that can be wrong with a state dict."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import random_variables

from robustjax import defenses, interop, models
from robustjax.models import VGG16, PreActResNet, ResNet
from robustjax.types import InputError

K = 5
RESNET = ResNet(num_classes=K, blocks=(1, 2, 1, 2), widths=(4, 8, 12, 16))
PREACT = PreActResNet(num_classes=K, blocks=(1, 1, 2, 1), widths=(4, 4, 8, 8), stem_width=4)
WIDE = models.create("wide_resnet", num_classes=K, depth=16, width=1)
VGG = VGG16(num_classes=K, classifier_widths=(24, 20))

# source, network, options of its defense, and some entries of the published layout with their shapes
LAYOUTS = {
    "cas-resnet18": (
        "cas",
        ResNet(num_classes=K),
        {},
        {"layer4.0.fc.weight": (K, 512), "layer4.1.fc.bias": (K,), "layer4.0.shortcut.1.running_var": (512,)},
    ),
    "cas-wide_resnet": (
        "cas",
        WIDE,
        {},
        {"block3.layer.1.fc.weight": (K, 64), "extra_fc.bias": (K,), "fc.weight": (K, 64)},
    ),
    "cas-vgg16": (
        "cas",
        VGG.clone(classifier_norm=True),
        {},
        {"layer5.2.fc.weight": (K, 512), "layer4.0.0.bias": (512,), "layer6.1.running_var": (24,), "layer8.bias": (K,)},
    ),
    "cifs-resnet": (
        "cifs",
        RESNET,
        {"hidden": 7},
        {
            "layer4.0.Probe.Probe.0.fc.weight": (7, 16),
            "layer4.0.Probe.Probe.1.weight": (K, 7),
            "layer4.1.Probe.Probe.1.weight": (K, 16),
        },
    ),
    "cifs-wide_resnet": (
        "cifs",
        WIDE,
        {"hidden": 7},
        {"block3.layer.1.Probe.Probe.0.fc.bias": (7,), "Probe.Probe.1.weight": (K, 64)},
    ),
    "fsr-resnet": (
        "fsr",
        RESNET,
        {"width": 6},
        {
            "separation.sep_net.0.weight": (6, 16, 3, 3),
            "separation.sep_net.1.running_mean": (6,),
            "separation.sep_net.3.weight": (6, 6, 3, 3),
            "recalibration.rec_net.4.bias": (6,),
            "recalibration.rec_net.6.weight": (16, 6, 3, 3),
            "aux.0.weight": (K, 16),
        },
    ),
    "fsr-wide_resnet": ("fsr", WIDE, {"width": 6}, {"aux.0.weight": (K, 64), "bn1.running_mean": (64,)}),
    "fsr-vgg16": (
        "fsr",
        VGG,
        {"width": 6},
        {"block0.3.weight": (64, 64, 3, 3), "block4.7.bias": (512,), "classifier.2.bias": (20,)},
    ),
    "robustbench-resnet": (
        "robustbench",
        RESNET.clone(mean=(0.5, 0.25, 0.75), std=(0.5, 0.25, 0.125)),
        {},
        {"mu": (1, 3, 1, 1), "sigma": (1, 3, 1, 1), "linear.weight": (K, 16)},
    ),
    "robustbench-preact_resnet": (
        "robustbench",
        PREACT,
        {},
        {"bn.weight": (8,), "layer2.0.shortcut.0.weight": (4, 4, 1, 1)},
    ),
    "robustbench-preact_resnet-wong": ("robustbench", PREACT.clone(final_norm=False), {}, {"layer1.0.bn1.bias": (4,)}),
    "robustbench-wide_resnet": (
        "robustbench",
        WIDE,
        {},
        {"bn1.running_var": (64,), "block2.layer.0.convShortcut.weight": (32, 16, 1, 1)},
    ),
}


def guarded(source, network, options):
    if source == "robustbench":
        return network
    defense = defenses.create(source, **options)
    return network.clone(guards=defense.guards(network.sites(), network.num_classes))


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    source, network, options, entries = LAYOUTS[request.param]
    module = guarded(source, network, options)
    variables = random_variables(module)
    return source, module, variables, interop.to_torch(module, variables, source), entries


@pytest.fixture(scope="module")
def cifs():
    """A small state dict to damage."""
    module = guarded("cifs", RESNET, {"hidden": 7})
    return interop.to_torch(module, random_variables(module), "cifs")


def refusal(state_dict, source="cifs"):
    with pytest.raises(InputError) as caught:
        interop.from_torch(state_dict, source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_variables_come_back_bit_for_bit(layout):
    source, module, variables, state_dict, _ = layout
    module_back, back = interop.from_torch(state_dict, source)
    assert module_back == module
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {jnp.dtype("float32")}


def test_the_names_are_the_published_ones(layout):
    _, _, variables, state_dict, entries = layout
    assert {name: state_dict[name].shape for name in entries} == entries
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in state_dict.values())
    # Every number goes somewhere, once; biases of convolutions and constants come on top.
    extra = [name for name in state_dict if name in ("mu", "sigma") or not state_dict[name].any()]
    sizes = sum(array.size for name, array in state_dict.items() if name not in extra)
    assert sizes == sum(leaf.size for leaf in jax.tree.leaves(variables))


def test_every_missing_surplus_and_misshapen_entry_is_named(layout):
    source, _, _, state_dict, _ = layout
    names = sorted(state_dict)
    missing, misshapen = (names[first :: len(names) // 3][:3] for first in (0, 1))
    broken = {name: array for name, array in state_dict.items() if name not in missing}
    broken |= {name: state_dict[name][..., None] for name in misshapen} | {"layer9.weight": np.zeros(3)}
    shapes = {name: state_dict[name].shape for name in names}
    assert refusal(broken, source).partition(" classes: ")[2] == (
        f"missing {', '.join(f'{name} {shapes[name]}' for name in missing)}; surplus layer9.weight; misshapen "
        + ", ".join(f"{name} (must be {shapes[name]}, got {(*shapes[name], 1)})" for name in misshapen)
    )


def test_all_problems_are_named_at_once(cifs):
    broken = {name: array for name, array in cifs.items() if name not in ("bn1.weight", "layer2.1.conv2.weight")}
    broken["layer4.1.Probe.Probe.1.weight"] = broken["layer4.1.Probe.Probe.1.weight"].T
    broken["layer4.2.conv1.weight"] = np.zeros((16, 16, 3, 3))
    broken["epoch"] = 90
    broken["layer1.0.bn1.running_var"] = np.full(4, np.inf)
    assert refusal(broken) == (
        "state dict is not a ResNet of cifs with 5 classes: "
        "missing bn1.weight (4,), layer2.1.conv2.weight (8, 8, 3, 3); "
        "surplus epoch, layer4.2.conv1.weight; "
        "misshapen layer4.1.Probe.Probe.1.weight (must be (5, 16), got (16, 5)); "
        "not finite layer1.0.bn1.running_var"
    )


@pytest.mark.parametrize(
    ("wrap", "same"),
    [
        (lambda d: {"state_dict": d, "optimizer": {"lr": 0.1}}, True),
        (lambda d: {"model": {"state_dict": d}, "epoch": 3}, True),
        (lambda d: {f"module.{name}": array for name, array in d.items()}, True),
        (lambda d: {"state_dict": {f"module.model.{name}": array for name, array in d.items()}}, True),
        (lambda d: d | {"bn1.num_batches_tracked": np.int64(7), "layer1.0.bn1.num_batches_tracked": 7}, True),
        (lambda d: {name: array.astype(np.float64) for name, array in d.items()}, True),
        (lambda d: {name: jnp.asarray(array) for name, array in d.items()}, True),
        (lambda d: {f"net.{name}": array for name, array in d.items()}, True),
        (lambda d: {"net": {f"module._orig_mod.{name}": array for name, array in d.items()}, "acc": 91.2}, True),
        (lambda d: {"model_state_dict": d, "optimizer_state_dict": {"state": {0: {"step": np.zeros(1)}}}}, True),
        (lambda d: {"last": d, "best": d, "epoch": 3}, "give checkpoint['last'] or checkpoint['best']"),
        (lambda d: {"model": {"ema": d}}, "give checkpoint['ema']"),
        (
            lambda d: {"classifier.weight": np.ones(3)},
            "no entry is one of cifs's ResNet, WideResNet; its first entries",
        ),
    ],
)
def test_what_wraps_a_state_dict_is_taken_off_or_named(cifs, wrap, same):
    if same is True:
        _, variables = interop.from_torch(wrap(cifs), "cifs")
        np.testing.assert_array_equal(variables["params"]["head"]["bias"], cifs["linear.bias"])
    else:
        assert same in refusal(wrap(cifs))


MEAN, STD = np.float32([0.5, 0.25, 0.75]), np.float32([0.5, 0.25, 1.0])


def normaliser(name, mean="mean", std="std", shape=(3, 1, 1)):
    return {f"{name}{mean}": MEAN.reshape(shape), f"{name}{std}": STD.reshape(shape)}


def prefixed(prefix, state_dict):
    return {f"{prefix}{name}": array for name, array in state_dict.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: {**normaliser("0."), **prefixed("1.", d)},  # Sequential(Normalize, network)
        lambda d: {**normaliser("module.0.", "mu", "sigma", (1, 3, 1, 1)), **prefixed("module.1.", d)},
        lambda d: {**normaliser("normalize.", shape=(3,)), **d},  # a layer of the network's own
        lambda d: {  # MadryLab's robustness
            "model": {
                **prefixed("module.model.", d),
                **normaliser("module.normalizer.", "new_mean", "new_std"),
                **prefixed("module.attacker.model.", d),
                **normaliser("module.attacker.normalize.", "new_mean", "new_std"),
            },
            "epoch": 3,
        },
    ],
)
@pytest.mark.parametrize("source", ["robustbench", "cas"])
def test_what_a_wrapper_normalises_by_is_used(key, wrap, source):
    network = WIDE if source == "robustbench" else guarded("cas", WIDE, {})
    variables = random_variables(network)
    module, restored = interop.from_torch(wrap(interop.to_torch(network, variables, source)), source)
    assert (module.mean, module.std) == (tuple(map(float, MEAN)), tuple(map(float, STD)))
    images = jax.random.uniform(key, (2, 8, 8, 3))
    normalised = (images - MEAN[None, None, None]) / STD[None, None, None]
    np.testing.assert_array_equal(module.apply(restored, images).logits, network.apply(variables, normalised).logits)


def test_what_a_wrapper_holds_besides_the_network_is_surplus_unless_it_repeats_it():
    state_dict = interop.to_torch(WIDE, random_variables(WIDE), "robustbench")
    twice = {**prefixed("model.", state_dict), **prefixed("attacker.model.", state_dict)}
    _, variables = interop.from_torch(twice, "robustbench")
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], state_dict["fc.bias"])
    other = twice | {"attacker.model.fc.bias": state_dict["fc.bias"] + 1}
    assert refusal(other, "robustbench").endswith(": surplus attacker.model.fc.bias")
    # An outer entry never takes the place of the network's own.
    outer = prefixed("model.", state_dict) | {"fc.bias": state_dict["fc.bias"] + 1}
    assert refusal(outer, "robustbench").endswith(": surplus fc.bias")
    several = {**normaliser("0."), **prefixed("1.", state_dict), "attack.mean": MEAN + 1, "attack.std": STD}
    assert "in several ways, by 0.mean and 0.std and by attack.mean and attack.std" in refusal(several, "robustbench")
    own = {**prefixed("1.", state_dict | normaliser("")), **normaliser("0.")}
    assert "normalises twice, by 0.mean and 0.std and by mean, std" in refusal(own, "robustbench")
    wrong = prefixed("1.", state_dict) | {"0.mean": np.ones(2), "0.std": np.ones(2)}
    assert "0.mean and 0.std must hold one number or one for each of 3 channels, got (2,)" in refusal(
        wrong, "robustbench"
    )
    assert "std must be one finite number above 0" in refusal(
        prefixed("1.", state_dict) | {"0.mean": MEAN, "0.std": 0 * STD}, "robustbench"
    )


def test_dead_entries_are_taken_only_where_the_layout_has_them():
    network = WIDE.clone()
    state_dict = interop.to_torch(network, random_variables(network), "robustbench")
    twin = {f"sub_{name}": array for name, array in state_dict.items() if name.startswith("block1.")}
    _, variables = interop.from_torch(state_dict | twin, "robustbench")
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], state_dict["fc.bias"])
    strange = {"sub_block1.layer.0.conv3.weight": np.zeros(1), "sub_block2.layer.0.conv1.weight": np.zeros(1)}
    assert refusal(state_dict | strange, "robustbench").endswith("surplus " + ", ".join(strange))
    guarded_wide = guarded("cifs", WIDE, {"hidden": 7})
    state_dict = interop.to_torch(guarded_wide, random_variables(guarded_wide), "cifs")
    assert re.search("surplus sub_block1[^;]*$", refusal(state_dict | twin, "cifs"))


def test_biases_of_convolutions_move_the_mean_of_the_norm():
    module = guarded("fsr", VGG, {"width": 6})
    variables = random_variables(module)
    state_dict = interop.to_torch(module, variables, "fsr")
    biases = np.linspace(-1, 1, 128).astype(np.float32)
    _, moved = interop.from_torch(state_dict | {"block1.3.bias": biases}, "fsr")
    mean = variables["batch_stats"]["group2_conv2_norm"]["mean"]
    np.testing.assert_array_equal(moved["batch_stats"]["group2_conv2_norm"]["mean"], mean - biases)
    np.testing.assert_array_equal(
        moved["batch_stats"]["group2_conv1_norm"]["mean"], variables["batch_stats"]["group2_conv1_norm"]["mean"]
    )


def test_constants_of_normalisation_are_read_or_named():
    state_dict = interop.to_torch(WIDE, random_variables(WIDE), "robustbench")
    constants = {
        "mean": np.float32([0.5, 0.25, 0.75]).reshape(3, 1, 1),
        "std": np.float32([0.5, 0.25, 1]).reshape(3, 1, 1),
    }
    module, _ = interop.from_torch(state_dict | constants, "robustbench")
    assert (module.mean, module.std) == ((0.5, 0.25, 0.75), (0.5, 0.25, 1.0))
    assert "missing std (3, 1, 1)" in refusal(state_dict | {"mean": constants["mean"]}, "robustbench")
    assert "std must be above 0" in refusal(state_dict | constants | {"std": 0 * constants["std"]}, "robustbench")
    cas = guarded("cas", WIDE, {})
    assert "surplus mu" in refusal(
        interop.to_torch(cas, random_variables(cas), "cas") | {"mu": constants["mean"]}, "cas"
    )


def test_wrong_arguments_are_named(cifs):
    assert "source must be one of cas, cifs, fsr, robustbench, got 'trades'" in refusal(cifs, "trades")
    assert "must be a mapping from names to arrays, got list" in refusal([1, 2])
    assert "no entry is one of" in refusal({})
    assert "linear.bias must hold real numbers" in refusal(cifs | {"linear.bias": np.array(["a"] * K)})

    variables = random_variables(RESNET)
    shallow = guarded("cas", models.create("wide_resnet", num_classes=K, depth=10, width=1), {})
    for source, module, tree, message in [
        ("trades", RESNET, variables, "source must be one of"),
        ("fsr", PREACT, variables, "publishes ResNet, WideResNet, VGG-16, not a network like this PreActResNet"),
        ("cas", VGG, variables, "not a network like this VGG16"),
        ("cas", shallow, random_variables(shallow), "do not guard shortcuts"),
        ("robustbench", RESNET, {"params": variables["params"]}, "variables and module differ in batch_stats/stage1"),
        ("robustbench", RESNET.clone(num_classes=4), variables, "differ in params/head/bias, params/head/kernel"),
        ("robustbench", RESNET, {"params": {}}, "hold no params/stem_conv/kernel"),
        (
            "robustbench",
            guarded("cas", RESNET, {}),
            random_variables(guarded("cas", RESNET, {})),
            "no place for params/guards",
        ),
        (
            "cas",
            guarded("cas", RESNET, {}).clone(mean=(0.5,)),
            random_variables(guarded("cas", RESNET, {})),
            "mean (0.5,)",
        ),
    ]:
        with pytest.raises(InputError) as caught:
            interop.to_torch(module, tree, source)
        assert message in str(caught.value)
