"""Makes a run of published PyTorch weights: ``python -m robustjax.interop CHECKPOINT --source=NAME --workdir=DIR``.

CHECKPOINT is a .safetensors file, or .pt or .pth, for which PyTorch is needed. DIR receives config.json and a
checkpoint of step 0, which ``python -m robustjax.evaluate --workdir=DIR`` evaluates.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from robustjax import build, cli, data
from robustjax import config as config_lib
from robustjax.evaluation.protocol import threats
from robustjax.interop.convert import Published, read
from robustjax.interop.files import read_checkpoint
from robustjax.interop.layouts import SOURCES
from robustjax.models import VGG16, Network, PreActResNet, ResNet
from robustjax.runs.checkpoint import Checkpoints
from robustjax.runs.claim import claim
from robustjax.runtime import files
from robustjax.types import Config, InputError

OPTIONS = flags.FlagValues()
SOURCE: flags.FlagHolder[Any] = flags.DEFINE_string(
    "source", None, f"The code base of the checkpoint: {', '.join(SOURCES)}.", flag_values=OPTIONS
)
WORKDIR: flags.FlagHolder[Any] = flags.DEFINE_string(
    "workdir", None, "Folder of the run to make; it must not hold one.", flag_values=OPTIONS
)
DATASET = flags.DEFINE_string("dataset", "cifar10", "Data set that the run is evaluated on.", flag_values=OPTIONS)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Where data sets lie; by default TFDS_DATA_DIR.",
    flag_values=OPTIONS,
)
NORM = flags.DEFINE_string("norm", "linf", "Norm of the threat.", flag_values=OPTIONS)
EPSILON = flags.DEFINE_string("epsilon", "8/255", "Radius of the threat.", flag_values=OPTIONS)
MEAN = flags.DEFINE_list(
    "mean", None, "R,G,B: mean that the published code subtracts, where the checkpoint lacks it.", flag_values=OPTIONS
)
STD = flags.DEFINE_list("std", None, "R,G,B: divisor after --mean.", flag_values=OPTIONS)


class Options(NamedTuple):
    """What the command line asks for; the fields are its flags."""

    checkpoint: str
    source: str
    workdir: str
    dataset: str = "cifar10"
    data_dir: str | None = None
    norm: str = "linf"
    epsilon: float = 8 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one line on stderr for a mistake of the user."""
    return cli.call(_import, arguments, options=OPTIONS, positional=["CHECKPOINT"], required=["source", "workdir"])


def _import(checkpoint: str) -> None:
    options = Options(
        checkpoint,
        SOURCE.value,
        WORKDIR.value,
        dataset=DATASET.value,
        data_dir=DATA_DIR.value,
        norm=NORM.value,
        epsilon=threats.radius("--epsilon", str(EPSILON.value)),
        mean=_numbers(MEAN),
        std=_numbers(STD),
    )
    print(_imported(options))


def _numbers(flag: flags.FlagHolder) -> tuple[float, ...] | None:
    if flag.value is None:
        return None
    try:
        numbers = tuple(map(float, flag.value))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        text = ",".join(flag.value)
        raise InputError(f"--{flag.name} must be numbers separated by commas, such as 0.5,0.5,0.5, got {text!r}")
    return numbers


def _imported(options: Options) -> str:
    """Writes the run and returns what to tell of it."""
    workdir = files.place(options.workdir)
    if (workdir / "config.json").exists() or (workdir / "checkpoints").exists():
        raise InputError(f"{workdir} holds a run already; give another --workdir")
    published = read(read_checkpoint(options.checkpoint), options.source)
    config: Config = _config(published, options)
    config_lib.validate(config)
    dataset = build.test_dataset(config, num_examples=1)
    _check_images(published, dataset, options)

    create = build.initial_state(config, published.module, dataset.images.shape[1:])
    # Under jit, what is not returned is not computed: no random weights are drawn.
    state = jax.jit(lambda: create()._replace(variables=None))()._replace(variables=published.variables)
    with claim(workdir, config_lib.plain(config)), Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, state)

    size = sum(leaf.size for leaf in jax.tree.leaves(published.variables["params"]))
    unused = f"; left out {len(published.unused)} entries that it never uses" if published.unused else ""
    guarded = f", defense {config.defense.name}" if config.defense.name else ""
    return (
        f"{config.model.name}, {published.module.num_classes} classes, {size:,} parameters{guarded}{unused}\n"
        f"threat: {config.attack.norm} epsilon {config.attack.epsilon:.4g} on {config.data.name} "
        "(--norm, --epsilon, --dataset)\n"
        f"evaluate it: python -m robustjax.evaluate --workdir={shlex.quote(str(workdir))}"
    )


def _config(published: Published, options: Options) -> Config:
    """The config of which the network is built again; what concerns training stays at its defaults."""
    module = published.module
    config: Config = config_lib.base()
    given = {name: getattr(options, name) for name in ("mean", "std") if getattr(options, name) is not None}
    config.data.name, config.data.data_dir = options.dataset, options.data_dir
    config.attack.norm, config.attack.epsilon = options.norm, options.epsilon
    config.model.update(_model(module) | {"mean": module.mean, "std": module.std} | given)
    config.defense.name = SOURCES[options.source].defense
    config.defense.update(published.options)
    return config


def _model(module: Network) -> dict[str, Any]:
    """The keys of config.model that name the network.

    Raises:
        InputError: no name means this network.
    """
    plain = module.clone(guards=None, mean=(0.0,), std=(1.0,))
    same: dict[str, Any] = {"num_classes": module.num_classes}
    if plain == ResNet(**same):
        return {"name": "resnet18"}
    if isinstance(plain, VGG16):
        return {
            "name": "vgg16",
            "classifier_widths": module.classifier_widths,
            "classifier_norm": module.classifier_norm,
        }
    if isinstance(plain, PreActResNet):
        if plain == PreActResNet(**same, final_norm=module.final_norm):
            return {"name": "preact_resnet18", "final_norm": module.final_norm}
        blocks, width = module.blocks[0], module.widths[0] // 16
        widths = (16 * width, 32 * width, 64 * width)
        if plain == PreActResNet(**same, blocks=(blocks,) * 3, widths=widths, stem_width=16):
            return {"name": "wide_resnet", "depth": 6 * blocks + 4, "width": width}
    raise InputError(
        f"no model name of a config means a {type(module).__name__} with blocks {module.blocks} and widths "
        f"{module.widths}; use robustjax.interop.from_torch"
    )


def _check_images(published: Published, dataset: data.Dataset, options: Options) -> None:
    """Raises InputError unless the network fits the data set, and the constants the network."""
    ours = (published.module.num_classes, published.channels)
    theirs = (dataset.num_classes, dataset.images.shape[3])
    if ours != theirs:
        raise InputError(
            f"the network has {ours[0]} classes and {ours[1]} image channels, {dataset.name} has {theirs[0]} and "
            f"{theirs[1]}; give another --dataset"
        )
    given = [values for values in (options.mean, options.std) if values is not None]
    if given and published.normalises:
        raise InputError(f"{options.checkpoint} holds mean and std already; leave out --mean and --std")
    if len(given) == 1 or any(len(values) not in (1, published.channels) for values in given):
        raise InputError(f"--mean and --std go together, each one number or {published.channels}")


if __name__ == "__main__":
    sys.exit(main())
