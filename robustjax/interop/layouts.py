"""Tables that pair the parameters of published PyTorch networks with ours, read in both directions.

A ``ParameterLayout`` is one kind of network in one code base. Its rows pair our layers with theirs. What a layer holds
follows from our variables, so a row stands for a weight, for weight and bias, or for the four arrays of a BatchNorm.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from robustjax.models.layers import Network
from robustjax.models.resnet import PreActResNet, ResNet
from robustjax.models.vgg import GROUPS, VGG16
from robustjax.types import InputError

Shapes = Mapping[str, tuple[int, ...]]  # of a state dict: name -> shape
Rows = dict[str, str]  # our layer -> theirs


class ParameterLayout(NamedTuple):
    """One kind of network in one naming.

    Attributes:
        title: for messages.
        network: our class.
        fits: whether a network of that class can be written so.
        pattern: what names of this layout look like, to tell it from the source's others.
        head: their classifier.
        rows: network without guards -> correspondences.
        read: shapes -> the network's fields but classes and guards.
        late: network -> what their names of the guards at its "late" sites begin with, where CAS or CIFS have it.
        dead: what the names of entries begin with that the published code holds but never uses, and the names that
            they repeat.
        biased_convs: their convolutions have a bias, which ours do not need: BatchNorm's mean takes it up.
    """

    title: str
    network: type[Network]
    fits: Callable[[Any], bool]
    pattern: str
    head: str
    rows: Callable[[Any], Rows]
    read: Callable[[Shapes], dict[str, Any]]
    late: Callable[[Any], tuple[str, ...]] = lambda network: ()
    dead: tuple[tuple[str, str], ...] = ()
    biased_convs: bool = False


def vote(shapes: Shapes, layers: list[str], default: int) -> int:
    """The leading size on which most entries of a layer agree, so that one misshapen entry stands out."""
    sizes = [
        shape[0]
        for layer in layers
        for name in ("bias", "running_mean", "running_var", "weight")
        if (shape := shapes.get(f"{layer}.{name}")) and shape[0] > 0
    ]
    return Counter(sizes).most_common(1)[0][0] if sizes else default


def _count_blocks(shapes: Shapes, stage: str) -> int:
    """Blocks of a stage: those of which more than one layer is there, so that a stray entry adds none."""
    layers: dict[int, set[str]] = {}
    for name in shapes:
        found = re.match(rf"{re.escape(stage)}\.(\d+)\.(\w+)\.", name)
        if found and int(found[1]) < len(shapes):
            layers.setdefault(int(found[1]), set()).add(found[2])
    return 1 + max((block for block, found in layers.items() if len(found) > 1), default=0)


def _residual(num_stages: int, stage_name: str, shortcut: tuple[str, ...], ends: Rows) -> tuple[Callable, Callable]:
    """``rows`` and the reading of blocks and widths, which residual networks share."""

    def rows(network: ResNet | PreActResNet) -> Rows:
        pairs = dict(ends)
        for stage, count in enumerate(network.blocks, 1):
            for i in range(count):
                ours, theirs = f"stage{stage}_block{i + 1}", f"{stage_name.format(stage)}.{i}"
                for layer in (1, 2):
                    pairs[f"{ours}_conv{layer}"] = f"{theirs}.conv{layer}"
                    pairs[f"{ours}_norm{layer}"] = f"{theirs}.bn{layer}"
                names = (f"{ours}_shortcut_conv", f"{ours}_shortcut_norm")[: len(shortcut)]
                pairs |= {name: f"{theirs}.{part}" for name, part in zip(names, shortcut, strict=True)}
        return pairs

    def read(shapes: Shapes) -> dict[str, tuple[int, ...]]:
        stages = [stage_name.format(stage) for stage in range(1, num_stages + 1)]
        blocks = tuple(_count_blocks(shapes, stage) for stage in stages)
        widths = tuple(
            vote(shapes, [f"{stage}.{i}.{layer}" for i in range(count) for layer in ("conv1", "conv2", "bn2")], 64)
            for stage, count in zip(stages, blocks, strict=True)
        )
        return {"blocks": blocks, "widths": widths}

    return rows, read


_RESNET_ROWS, _RESNET_READ = _residual(
    4, "layer{}", ("shortcut.0", "shortcut.1"), {"stem_conv": "conv1", "stem_norm": "bn1"}
)
_PREACT_ROWS, _PREACT_READ = _residual(4, "layer{}", ("shortcut.0",), {"stem_conv": "conv1", "final_norm": "bn"})
_WIDE_ROWS, _WIDE_READ = _residual(3, "block{}.layer", ("convShortcut",), {"stem_conv": "conv1", "final_norm": "bn1"})


def _read_preact(shapes: Shapes) -> dict[str, Any]:
    # RobustBench's two kinds of block have the same entries, but each of its networks ends with the norm `bn` if and
    # only if its shortcuts take normalised features.
    final_norm = any(name.startswith("bn.") for name in shapes)
    stem_width = vote(shapes, ["layer1.0.bn1", "conv1"], 64)
    return {**_PREACT_READ(shapes), "stem_width": stem_width, "final_norm": final_norm}


def _read_wide(shapes: Shapes) -> dict[str, Any]:
    return {**_WIDE_READ(shapes), "stem_width": vote(shapes, ["block1.layer.0.bn1", "conv1"], 16)}


RESNET = ParameterLayout(
    title="ResNet",
    network=ResNet,
    fits=lambda network: len(network.blocks) == 4,
    pattern=r"layer[1-4]\.\d+\.(conv|bn|shortcut)|bn1\.",
    head="linear",
    rows=_RESNET_ROWS,
    read=_RESNET_READ,
    late=lambda network: tuple(f"layer4.{i}." for i in range(network.blocks[-1])),
)

PREACT_RESNET = ParameterLayout(
    title="PreActResNet",
    network=PreActResNet,
    fits=lambda network: len(network.blocks) == 4,
    pattern=r"layer[1-4]\.\d+\.(conv|bn|shortcut\.0)|bn\.",
    head="linear",
    rows=_PREACT_ROWS,
    read=_read_preact,
)

WIDE_RESNET = ParameterLayout(
    title="WideResNet",
    network=PreActResNet,
    fits=lambda network: len(network.blocks) == 3 and network.final_norm,
    pattern=r"block[1-3]\.layer\.",
    head="fc",
    rows=_WIDE_ROWS,
    read=_read_wide,
    late=lambda network: (f"block3.layer.{network.blocks[-1] - 1}.", ""),
)

# The code of TRADES built a first group twice, and what grew out of it kept the second.
WIDE_RESNET_WITH_TWIN = WIDE_RESNET._replace(dead=(("sub_block1.", "block1."),))


def _vgg_rows(theirs: Callable[[int, int], tuple[str, str]], classifier: tuple[tuple[str, ...], ...]) -> Callable:
    """Rows from (group, convolution), from 1 and from 0, to their convolution and norm, and from the dense layers."""

    def rows(network: VGG16) -> Rows:
        pairs = {}
        for group, count in enumerate(GROUPS, 1):
            for i in range(count):
                ours = f"group{group}_conv{i + 1}"
                pairs[ours], pairs[f"{ours}_norm"] = theirs(group, i)
        for i, names in enumerate(classifier[: len(network.classifier_widths)], 1):
            pairs |= dict(zip((f"dense{i}", f"dense{i}_norm"), names, strict=False))
        return pairs

    return rows


def _vgg_cas(group: int, i: int) -> tuple[str, str]:
    conv, norm = ("conv", "bn") if group == 5 else ("0", "1")
    return f"layer{group}.{i}.{conv}", f"layer{group}.{i}.{norm}"


def _vgg_fsr(group: int, i: int) -> tuple[str, str]:
    return f"block{group - 1}.{3 * i}", f"block{group - 1}.{3 * i + 1}"


VGG_CAS = ParameterLayout(
    title="VGG-16",
    network=VGG16,
    fits=lambda network: len(network.classifier_widths) == 2 and network.classifier_norm,
    pattern=r"layer[1-5]\.\d\.[01]\.|layer5\.\d\.(conv|bn|fc)|layer[678]\.",
    head="layer8",
    rows=_vgg_rows(_vgg_cas, (("layer6.0", "layer6.1"), ("layer7.0", "layer7.1"))),
    read=lambda shapes: {
        "classifier_widths": tuple(vote(shapes, [f"{name}.0", f"{name}.1"], 512) for name in ("layer6", "layer7")),
        "classifier_norm": True,
    },
    late=lambda network: tuple(f"layer5.{i}." for i in range(3)),
    biased_convs=True,
)

VGG_FSR = ParameterLayout(
    title="VGG-16",
    network=VGG16,
    fits=lambda network: len(network.classifier_widths) == 2 and not network.classifier_norm,
    pattern=r"block[0-4]\.\d\.|classifier\.",
    head="classifier.4",
    rows=_vgg_rows(_vgg_fsr, (("classifier.0",), ("classifier.2",))),
    read=lambda shapes: {
        "classifier_widths": tuple(vote(shapes, [name], 512) for name in ("classifier.0", "classifier.2"))
    },
    biased_convs=True,
)


# Guards: (layout, network) -> rows. CAS and CIFS sit at the "late" sites, FSR at the "final" one.


def _cas_rows(layout: ParameterLayout, network: Network) -> Rows:
    prefixes = layout.late(network)
    # WideResNet's second classifier belongs to no block: it has a name of its own.
    heads = [f"{prefix}fc" if prefix else "extra_fc" for prefix in prefixes]
    return {f"guards_{site}": head for site, head in zip(network.sites()["late"], heads, strict=True)}


def _cifs_rows(layout: ParameterLayout, network: Network) -> Rows:
    *hidden, last = zip(network.sites()["late"], layout.late(network), strict=True)
    rows = {f"guards_{last[0]}/0": f"{last[1]}Probe.Probe.1"}
    for site, prefix in hidden:
        rows |= {f"guards_{site}/0": f"{prefix}Probe.Probe.0.fc", f"guards_{site}/1": f"{prefix}Probe.Probe.1"}
    return rows


def _fsr_rows(layout: ParameterLayout, network: Network) -> Rows:
    guard = f"guards_{network.sites()['final'][0]}"
    rows = {f"{guard}/auxiliary": "aux.0"}
    for ours, theirs in (("separation", "separation.sep_net"), ("recalibration", "recalibration.rec_net")):
        for layer, index in (("conv_0", 0), ("norm_0", 1), ("conv_1", 3), ("norm_1", 4), ("conv_2", 6)):
            rows[f"{guard}/{ours}/{layer}"] = f"{theirs}.{index}"
    return rows


class Source(NamedTuple):
    """A code base that published networks.

    Attributes:
        layouts: the kinds of network in it.
        defense: the name in ``robustjax.defenses``, or None.
        guard_rows: (layout, network) -> correspondences of the guards.
        options: the defense's options that shapes tell: option -> ending of their layers whose size it is, default.
    """

    layouts: tuple[ParameterLayout, ...]
    defense: str | None = None
    guard_rows: Callable[[ParameterLayout, Any], Rows] = lambda layout, network: {}
    options: Mapping[str, tuple[str, int]] = {}


SOURCES = {
    "cas": Source((RESNET, WIDE_RESNET_WITH_TWIN, VGG_CAS), "cas", _cas_rows),
    "cifs": Source((RESNET, WIDE_RESNET), "cifs", _cifs_rows, {"hidden": ("Probe.Probe.0.fc", 128)}),
    "fsr": Source((RESNET, WIDE_RESNET_WITH_TWIN, VGG_FSR), "fsr", _fsr_rows, {"width": ("_net.0", 64)}),
    "robustbench": Source((PREACT_RESNET, RESNET, WIDE_RESNET_WITH_TWIN)),
}


def source_of(name: str) -> Source:
    """A source by its name; an unknown one is an InputError that lists the choices."""
    if not isinstance(name, str) or name not in SOURCES:
        raise InputError(f"source must be one of {', '.join(SOURCES)}, got {name!r}")
    return SOURCES[name]


def guards_a_projection(network: Network) -> bool:
    """Whether a guard sits in a block with a convolution on its shortcut, which the published code leaves unguarded."""
    return isinstance(network, PreActResNet) and any(site.endswith("_block1_act1") for site in network.guards or ())


def recognise(entries: Collection[str], name: str) -> tuple[str, ParameterLayout]:
    """The prefix that wrappers add to the names of a network, and the layout to which most names belong.

    Of two prefixes with as many such names, as where a wrapper holds the network twice, the shorter one counts.

    Args:
        entries: names of a state dict.
        name: of the source.

    Raises:
        InputError: no name belongs to any layout of the source.

    Example:
        >>> prefix, layout = recognise(["0.mean", "0.std", "1.block1.layer.0.conv1.weight"], "robustbench")
        >>> prefix, layout.title
        ('1.', 'WideResNet')
    """
    layouts = source_of(name).layouts
    counts: Counter[tuple[str, int]] = Counter()
    for entry in entries:
        starts = [0, *(i + 1 for i, letter in enumerate(entry) if letter == ".")]
        for start in starts:
            for i, layout in enumerate(layouts):
                if re.match(layout.pattern, entry[start:]):
                    counts[entry[:start], i] += 1
    if not counts:
        titles = ", ".join(layout.title for layout in layouts)
        first = ", ".join(list(entries)[:3]) or "none"
        raise InputError(f"state dict: no entry is one of {name}'s {titles}; its first entries are {first}")
    prefix, chosen = max(counts, key=lambda found: (counts[found], -len(found[0]), -found[1]))
    return prefix, layouts[chosen]


def written_as(network: Network, name: str) -> ParameterLayout:
    """The layout of a source in which a network of ours can be written.

    Raises:
        InputError: there is none.
    """
    layouts = source_of(name).layouts
    for layout in layouts:
        if type(network) is layout.network and layout.fits(network):
            if guards_a_projection(network) and network.guarded_shortcut:
                raise InputError(f"networks of {name!r} do not guard shortcuts, this one needs guarded_shortcut=False")
            return layout
    titles = ", ".join(layout.title for layout in layouts)
    raise InputError(f"source {name!r} publishes {titles}, not a network like this {type(network).__name__}")
