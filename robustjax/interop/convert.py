"""Converts state dicts of published PyTorch networks to variables of ``robustjax.models``, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import defenses
from robustjax.interop.layouts import (
    ParameterLayout,
    Source,
    guards_a_projection,
    recognise,
    source_of,
    vote,
    written_as,
)
from robustjax.interop.wrappers import float32, inside, normaliser_of, unwrapped
from robustjax.models.layers import Network
from robustjax.types import InputError

Path = tuple[str, ...]  # of a leaf in our variables

# What a layer's arrays are called, ours and PyTorch's, and how its axes are ordered there: OIHW where ours are HWIO,
# [out, in] where ours are [in, out].
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}

# RobustBench's networks that normalise hold one of these pairs, of this shape for C channels.
CONSTANTS = {("mu", "sigma"): lambda channels: (1, channels, 1, 1), ("mean", "std"): lambda channels: (channels, 1, 1)}


class Published(NamedTuple):
    """A network read from a state dict.

    Attributes:
        module, variables: as ``from_torch`` returns them.
        options: of the defense, as far as the shapes tell them.
        channels: of its images.
        normalises: whether the state dict held mean and std.
        unused: names of entries that the published code never uses.
    """

    module: Network
    variables: dict[str, Any]
    options: dict[str, int]
    channels: int
    normalises: bool
    unused: tuple[str, ...]


def from_torch(state_dict: Mapping[str, Any], source: str) -> tuple[Network, dict[str, Any]]:
    """The network of a published state dict, with its weights and BatchNorm statistics.

    Kind, depth, widths, classes and the guards' sizes are read off names and shapes. What a state dict does not hold
    cannot be read off it: the temperature of FSR (taken as 0.1), and constants by which a network normalises images in
    its code; set those by ``module.clone(mean=..., std=...)``.

    Args:
        state_dict: PyTorch's names -> NumPy arrays or torch tensors. It may lie inside a checkpoint under "state_dict",
            "model_state_dict", "model" or "net", and the network inside wrappers, such as DataParallel ("module."
            before every name) or Sequential(Normalize, network), whose mean and std the module then has.
        source: whose names they are: "cas" (Bai et al. 2021), "cifs" (Yan et al. 2021), "fsr" (Kim et al. 2023):
            ResNet and WideResNet, of CAS and FSR also VGG-16; or "robustbench": its ResNet with basic blocks,
            PreActResNet and WideResNet.

    Returns:
        A module of ``robustjax.models``, and float32 variables for it.

    Raises:
        InputError: an unknown source, another network, a checkpoint that holds arrays under another key (which is
            named), or entries that are missing, surplus, misshapen or not finite, every one of them named.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustjax import models
        >>> network = models.create("wide_resnet", depth=10, width=1, num_classes=3)
        >>> shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        >>> variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
        >>> state_dict = to_torch(network, variables, "robustbench")
        >>> state_dict["block2.layer.0.convShortcut.weight"].shape
        (32, 16, 1, 1)
        >>> module, restored = from_torch(state_dict, "robustbench")
        >>> module == network
        True
        >>> from_torch(state_dict | {"fc.bias": jnp.zeros(4)}, "robustbench")
        Traceback (most recent call last):
        ...
        robustjax.types.InputError: state dict is not a WideResNet of robustbench with 3 classes: misshapen fc.bias
        (must be (3,), got (4,))
    """
    return read(state_dict, source)[:2]


def to_torch(module: Network, variables: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """The state dict that ``from_torch`` would read these variables from, bit for bit.

    Without ``num_batches_tracked`` and without what the published code never uses. Where its convolutions have biases
    that ours do not need, they are 0.

    Args:
        module: a network of ``robustjax.models``.
        variables: its own.
        source: as for ``from_torch``.

    Returns:
        PyTorch's names -> float32 arrays.

    Raises:
        InputError: an unknown source, one that does not publish such a network, or variables of another.

    Example:
        >>> from robustjax import models
        >>> network = models.create("preact_resnet18", mean=(0.5,), std=(0.25,))
        >>> shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        >>> state_dict = to_torch(network, jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes), "robustbench")
        >>> state_dict["layer4.1.conv2.weight"].shape, state_dict["sigma"].ravel()
        ((512, 512, 3, 3), array([0.25, 0.25, 0.25], dtype=float32))
    """
    layout, origin = written_as(module, source), source_of(source)
    leaves = {path: np.asarray(leaf) for path, leaf in _flat(variables).items()}
    stem = ("params", next(iter(layout.rows(module))), "kernel")
    if stem not in leaves:
        raise InputError(f"variables hold no {'/'.join(stem)}; give those of the module")
    expected = _leaf_shapes(module, leaves[stem].shape[2])
    found = {path: leaf.shape for path, leaf in leaves.items()}
    different = [path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)]
    if different:
        raise InputError(f"variables and module differ in {', '.join(sorted(map('/'.join, different)))}")
    names = _names(layout, origin, module, expected)
    state_dict = {name: leaves[path].transpose(AXES[leaves[path].ndim]).copy() for name, path in names.items()}
    for name, path in _folded(layout, module).items():
        state_dict[name] = np.zeros_like(leaves[path])
    if (module.mean, module.std) != ((0.0,), (1.0,)):
        if origin.defense is not None:
            raise InputError(f"networks of {source!r} do not normalise, this one has mean {module.mean}")
        shape = CONSTANTS["mu", "sigma"](leaves[stem].shape[2])
        for name, values in (("mu", module.mean), ("sigma", module.std)):
            state_dict[name] = np.broadcast_to(np.asarray(values, np.float32).reshape(1, -1, 1, 1), shape).copy()
    return state_dict


def read(state_dict: Mapping[str, Any], name: str) -> Published:
    """``from_torch``, with everything else that is read off the state dict."""
    source = source_of(name)
    everything = unwrapped(state_dict)
    prefix, layout = recognise(everything, name)
    entries, outside = inside(everything, prefix)
    shapes = {entry: tuple(value.shape) for entry, value in entries.items() if hasattr(value, "shape")}

    network, options = _network(layout, source, shapes)
    stem = shapes.get(f"{next(iter(layout.rows(network).values()))}.weight", ())
    channels = stem[1] if len(stem) == 4 and stem[1] > 0 else 3
    leaves = _leaf_shapes(network, channels)
    names = _names(layout, source, network, leaves)
    folded = _folded(layout, network)
    constants = next((pair for pair in CONSTANTS if source.defense is None and set(pair) & entries.keys()), ())

    expected = {entry: tuple(leaves[path][axis] for axis in AXES[len(leaves[path])]) for entry, path in names.items()}
    expected |= {entry: leaves[path] for entry, path in folded.items()}
    if constants:
        expected |= {entry: CONSTANTS[constants](channels) for entry in constants}
    twins = {
        dead + entry.removeprefix(alive) for dead, alive in layout.dead for entry in expected if entry.startswith(alive)
    }
    unused = tuple(entry for entry in entries if entry in twins)

    left = {prefix + entry: value for entry, value in entries.items() if entry not in expected and entry not in unused}
    surplus, normaliser = normaliser_of({**left, **outside})
    values, problems = _values(entries, expected, surplus=tuple(surplus))
    if problems:
        title = f"{layout.title} of {name} with {network.num_classes} classes"
        raise InputError(f"state dict is not a {title}: " + "; ".join(problems))
    arrays = {path: values[entry].transpose(np.argsort(AXES[values[entry].ndim])) for entry, path in names.items()}
    for entry, path in folded.items():
        arrays[path] = arrays[path] - values[entry]
    if constants:
        mean, std = (tuple(map(float, values[entry].ravel())) for entry in constants)
        if min(std) <= 0:
            raise InputError(f"state dict: {constants[1]} must be above 0, got {std}")
        network = network.clone(mean=mean, std=std)
    if normaliser:
        if constants:
            raise InputError(f"state dict normalises twice, by {normaliser.names} and by {', '.join(constants)}")
        network = network.clone(mean=normaliser.check("mean", channels), std=normaliser.check("std", channels))
    return Published(network, _nested(arrays), options, channels, bool(constants or normaliser), unused)


def _network(
    layout: ParameterLayout, source: Source, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Network, dict[str, int]]:
    """The network that shapes describe, and the options of its defense."""
    fields = layout.read(shapes)
    last_width = fields["widths" if "widths" in fields else "classifier_widths"][-1]
    plain = layout.network(num_classes=_count_classes(shapes, layout.head, last_width), **fields)
    if source.defense is None:
        return plain, {}
    options: dict[str, Any] = {
        option: vote(shapes, sorted({entry.rpartition(".")[0] for entry in shapes if f"{ending}." in entry}), default)
        for option, (ending, default) in source.options.items()
    }
    guards = defenses.create(source.defense, **options).guards(plain.sites(), plain.num_classes)
    network = plain.clone(guards=guards)
    return network.clone(guarded_shortcut=False) if guards_a_projection(network) else network, options


def _count_classes(shapes: Mapping[str, tuple[int, ...]], head: str, last_width: int) -> int:
    """From the classifier's weight where it fits the network, else from its bias."""
    weight = shapes.get(f"{head}.weight", ())
    return weight[0] if weight[1:] == (last_width,) and weight[0] > 0 else vote(shapes, [head], 10)


def _leaf_shapes(network: Network, channels: int) -> dict[Path, tuple[int, ...]]:
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    return {path: leaf.shape for path, leaf in _flat(jax.eval_shape(network.init, jax.random.key(0), images)).items()}


def _names(layout: ParameterLayout, source: Source, network: Network, leaves: Mapping[Path, Any]) -> dict[str, Path]:
    """PyTorch's name of every leaf."""
    rows = layout.rows(network) | {"head": layout.head} | source.guard_rows(layout, network)
    names = {}
    for path in leaves:
        _, *layer, leaf = path
        kind, _, index = leaf.partition("_")  # the layers of a CIFS probe are numbered
        theirs = rows.get("/".join([*layer, index] if index else layer))
        if theirs is None:
            raise InputError(f"{layout.title} of the source has no place for {'/'.join(path)}; give the guards' source")
        names[f"{theirs}.{LEAVES[kind]}"] = path
    return names


def _folded(layout: ParameterLayout, network: Network) -> dict[str, Path]:
    """Biases of their convolutions -> our BatchNorm's mean, from which each is subtracted."""
    if not layout.biased_convs:
        return {}
    rows = layout.rows(network)
    return {
        f"{rows[ours]}.bias": ("batch_stats", f"{ours}_norm", "mean")
        for ours in rows
        if f"{ours}_norm" in rows and not ours.startswith("dense")
    }


def _values(
    entries: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], *, surplus: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The expected arrays as float32, and what is wrong with the entries."""
    values, misshapen, infinite = {}, [], []
    for entry, shape in expected.items():
        if entry not in entries:
            continue
        found = getattr(entries[entry], "shape", None)
        if found is None or tuple(found) != shape:
            received = type(entries[entry]).__name__ if found is None else tuple(found)
            misshapen.append(f"{entry} (must be {shape}, got {received})")
            continue
        values[entry] = float32(entry, entries[entry])
        if not np.isfinite(values[entry]).all():
            infinite.append(entry)
    listed = {
        "missing": [f"{entry} {shape}" for entry, shape in expected.items() if entry not in entries],
        "surplus": surplus,
        "misshapen": misshapen,
        "not finite": infinite,
    }
    return values, [f"{kind} {', '.join(sorted(found))}" for kind, found in listed.items() if found]


def _flat(tree: Any) -> dict[Path, Any]:
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _nested(arrays: Mapping[Path, np.ndarray]) -> dict[str, Any]:
    """Arrays by path as nested dicts, copied to the device: the caller's memory is not shared."""
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for (*parents, leaf), array in arrays.items():
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = jnp.array(array, copy=True)
    return tree
