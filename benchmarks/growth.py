"""How time and memory of PGD and of PGD training grow with batch, attack steps, image size, width and devices.

python benchmarks/growth.py [--config=configs/digits.py] [--batch_sizes=16,32,64] [--num_steps=2,4,8]
                            [--image_sizes=32,48,64] [--widths=1,2,4] [--devices=1,2,4] [--output=docs/growth]

One quantity grows at a time while the others keep the first value of their list; an empty list leaves a quantity out.
Each has a picture, in which broken lines say what theory expects of the largest point's smaller relatives: time grows
as batch * passes * pixels * width^2, where K attack steps cost 2 K forward passes and the update 3 more; memory as
batch * pixels * width, whatever the steps. `--batch_sizes` is of one device: more devices should change neither time
nor memory, except on a CPU, where the devices are imitated by threads that share the cores.

Memory is XLA's own analysis of the compiled program: arguments, temporary buffers and results on one device, of which
what the state's new values take over from the old ones counts once. Where devices keep count themselves, the largest of
these figures stands beside the device's own. Images are random numbers. For a GPU:

python benchmarks/growth.py --config=configs/cifar10_at.py --config.model.dtype=bfloat16 --batch_sizes=128,256,512,1024
                            --num_steps=10,20,40 --image_sizes=32,64,96 --devices=1,2,4,8
"""

import contextlib
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import measure
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict, config_flags

from robustjax import attacks, build, cli, config
from robustjax.evaluation.protocol import records
from robustjax.runtime import sharding
from robustjax.training import step
from robustjax.types import InputError

CONFIG = config_flags.DEFINE_config_file("config", str(Path("configs") / "digits.py"), "Network, attack, objective.")
LISTS = {
    "batch_size": flags.DEFINE_list("batch_sizes", ["16", "32", "64", "128"], "Images of a batch, on one device."),
    "num_steps": flags.DEFINE_list("num_steps", ["2", "4", "8", "16"], "Of PGD."),
    "image_size": flags.DEFINE_list("image_sizes", ["32", "48", "64", "96"], "Sides of the images."),
    "width": flags.DEFINE_list("widths", ["1", "2", "4", "8"], "Widening factors of a wide_resnet."),
    "devices": flags.DEFINE_list("devices", ["1", "2", "4"], "Numbers of devices."),
}
REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Turns.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the pictures; none without it.")
PART = flags.DEFINE_enum("part", None, ["devices"], "Be some CPU devices that serve the parent.")
COUNT = flags.DEFINE_integer("count", 1, "How many.", lower_bound=1)

WHAT = ("attack", "training")
QUANTITIES = {
    "batch_size": "batch",
    "num_steps": "attack steps",
    "image_size": "side of the images",
    "width": "width",
    "devices": "devices, each with a batch of its own",
}


class Point(NamedTuple):
    """What is measured."""

    batch_size: int
    num_steps: int
    image_size: int
    width: int
    devices: int


class Program(NamedTuple):
    """A compiled attack or training step: how to run it, and the bytes that it needs on one device."""

    run: Callable[[], object]
    memory: float


def main() -> int:
    """Measures one quantity after the other."""
    settings = CONFIG.value
    config.validate(settings)
    if settings.attack.name != "pgd":
        raise InputError(f"attack.name must be pgd, whose steps are counted here, got {settings.attack.name!r}")
    values = {name: _numbers(flag) for name, flag in LISTS.items()}
    if settings.model.name != "wide_resnet":
        print(f"width is left out: {settings.model.name} has one")
        values["width"] = []
    first = Point(**{name: (own or [1])[0] for name, own in values.items()})
    if PART.value:
        return _be_devices(first._replace(devices=COUNT.value))
    cpu = jax.default_backend() == "cpu"
    if not cpu:
        values["devices"] = [count for count in values["devices"] if count <= jax.device_count()]
    print(f"{settings.model.name}, {settings.model.dtype}; where they do not grow: {first._asdict()}")
    print(f"hardware {records.conditions()['hardware']}, versions {records.conditions()['versions']}")
    largest = 0.0
    for name, own in values.items():
        if len(own) < 2:
            continue
        points = [first._replace(**{name: value}) for value in own]
        with contextlib.ExitStack() as stack:
            of_point = partial(_imitated, stack) if cpu and name == "devices" else _compiled
            found = [of_point(point) for point in points]
            runs = {(what, i): program[what].run for i, program in enumerate(found) for what in WHAT}
            seconds = measure.in_turns(runs, REPETITIONS.value, at_least=0.05)
        memory = {what: [program[what].memory for program in found] for what in WHAT}
        largest = max(largest, *memory["attack"], *memory["training"])
        times = {what: [seconds[what, i] for i in range(len(points))] for what in WHAT}
        expected = [{what: _expected(point, what, share_cores=cpu) for what in WHAT} for point in points]
        _report(name, points, times, memory, expected)
        if OUTPUT.value:
            _draw(name, points, times, memory, expected)
    own = jax.devices()[0].memory_stats()
    if own:
        most = own["peak_bytes_in_use"]
        print(f"largest of all: {largest / 2**20:,.0f} MiB by XLA's analysis, {most / 2**20:,.0f} MiB by the device")
    return 0


def _numbers(flag: flags.FlagHolder) -> list[int]:
    if not all(text.isdecimal() and int(text) > 0 for text in flag.value):
        raise InputError(f"--{flag.name} must be whole numbers above 0, separated by commas, got {flag.value}")
    return sorted(int(text) for text in flag.value)


def _expected(point: Point, what: str, *, share_cores: bool) -> tuple[float, float]:
    """Time and memory up to a factor."""
    passes = 2 * point.num_steps + (3 if what == "training" else 0)
    size = point.batch_size * point.image_size**2 * point.width
    return size * passes * point.width * (point.devices if share_cores else 1), size


def _compiled(point: Point) -> dict[str, Program]:
    """Attack and training step on the first so many devices."""
    settings = _settings(point)
    layout = sharding.layout(jax.devices()[: point.devices])
    module = build.model(settings, 10)
    shape = (point.image_size, point.image_size, 3)
    state = jax.jit(build.initial_state(settings, module, shape), out_shardings=layout.replicated)()
    size = point.batch_size * point.devices
    pixels = jax.random.randint(jax.random.key(0), (size, *shape), 0, 256).astype(jnp.uint8)
    images, labels = layout.split_batch((pixels, jnp.arange(size) % 10))

    def pgd(variables, images, labels):
        network = lambda points: module.apply(variables, points).logits  # noqa: E731
        options = {name: settings.attack[name] for name in ("epsilon", "step_size", "num_steps", "norm")}
        images = images.astype(jnp.float32) / 255.0
        return layout.constrain_batch(attacks.pgd(network, jax.random.key(0), images, labels, **options))

    attack = jax.jit(pgd).lower(state.variables, images, labels).compile()
    update = build.training_step(settings, module, steps_per_epoch=1)
    train = step.make_batch_dispatch(update, layout).lower(state, images, labels).compile()
    variables = jax.tree.map(jnp.copy, state.variables)  # a training step gives its state's memory away

    def run_training() -> None:
        nonlocal state
        state = jax.block_until_ready(train(state, images, labels))

    return {
        "attack": Program(lambda: jax.block_until_ready(attack(variables, images, labels)), _memory(attack)),
        "training": Program(run_training, _memory(train)),
    }


def _settings(point: Point) -> ConfigDict:
    settings = CONFIG.value.copy_and_resolve_references()
    settings.attack.num_steps = point.num_steps
    if settings.model.name == "wide_resnet":
        settings.model.width = point.width
    return settings


def _memory(program: jax.stages.Compiled) -> float:
    found = program.memory_analysis()
    sizes = found.argument_size_in_bytes, found.temp_size_in_bytes, found.output_size_in_bytes
    return float(sum(sizes) - found.alias_size_in_bytes)


def _imitated(stack: contextlib.ExitStack, point: Point) -> dict[str, Program]:
    """As `_compiled` on CPU devices, whose number is a process's own."""
    side = measure.start("devices", f"--count={point.devices}")
    stack.callback(measure.stop, side)
    return {what: Program(partial(measure.ask, side, what), measure.ask(side, f"{what} memory")) for what in WHAT}


def _be_devices(point: Point) -> int:
    jax.config.update("jax_num_cpu_devices", point.devices)
    answers = {}
    for what, program in _compiled(point).items():
        answers[what] = partial(measure.timed, program.run)
        answers[f"{what} memory"] = partial(float, program.memory)
    measure.serve(answers)
    return 0


def _report(
    name: str,
    points: Sequence[Point],
    times: dict[str, list[list[float]]],
    memory: dict[str, list[float]],
    expected: Sequence[dict[str, tuple[float, float]]],
) -> None:
    """A line for each point, and how steep time and memory are beside what theory says."""
    print(f"\n{QUANTITIES[name]}")
    for what in WHAT:
        medians = [statistics.median(seconds) for seconds in times[what]]
        for i, point in enumerate(points):
            rate = point.batch_size * point.devices / medians[i]
            time = measure.milliseconds(times[what][i])
            mebibytes = memory[what][i] / 2**20
            print(f"  {what:8} {getattr(point, name):6} {time:34} {rate:9.1f} images/s {mebibytes:9.1f} MiB")
        laws = zip(*(expectation[what] for expectation in expected), strict=True)
        for kind, measured, law in zip(("time", "memory"), (medians, memory[what]), laws, strict=True):
            growth, due = measured[-1] / measured[0], law[-1] / law[0]
            print(f"  {what:8} {kind} from {name} {_ends(points, name)}: x {growth:.2f}, in theory x {due:.2f}")


def _ends(points: Sequence[Point], name: str) -> str:
    return f"{getattr(points[0], name)} to {getattr(points[-1], name)}"


def _draw(
    name: str,
    points: Sequence[Point],
    times: dict[str, list[list[float]]],
    memory: dict[str, list[float]],
    expected: Sequence[dict[str, tuple[float, float]]],
) -> None:
    """Time and memory against one quantity."""
    at = [getattr(point, name) for point in points]
    figure = Figure(figsize=(7.6, 3.2), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, what in enumerate(WHAT):
        medians = [1e3 * statistics.median(seconds) for seconds in times[what]]
        below = [middle - 1e3 * min(seconds) for middle, seconds in zip(medians, times[what], strict=True)]
        above = [1e3 * max(seconds) - middle for middle, seconds in zip(medians, times[what], strict=True)]
        label = "PGD" if what == "attack" else "PGD training step"
        left.errorbar(at, medians, (below, above), fmt="o", color=f"C{i}", markersize=4, capsize=3, label=label)
        mebibytes = [size / 2**20 for size in memory[what]]
        right.plot(at, mebibytes, "o", color=f"C{i}", markersize=4, label=label)
        for axis, last, kind in ((left, medians[-1], 0), (right, mebibytes[-1], 1)):
            law = [expectation[what][kind] for expectation in expected]
            axis.plot(at, [last * value / law[-1] for value in law], "--", color=f"C{i}", linewidth=1)
    for axis, title in ((left, "time (ms): median and range"), (right, "memory on a device (MiB)")):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(at, map(str, at))
        axis.minorticks_off()
        low, high = axis.get_ylim()
        margin = max(1.3, 3 / math.sqrt(high / low))  # nearly a factor of ten at least, or what is constant would jump
        axis.set_ylim(low / margin, high * margin)
        ticks = _ticks(*axis.get_ylim())
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xlabel(QUANTITIES[name])
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    right.plot([], [], "--", color="grey", linewidth=1, label="theory")
    right.legend(fontsize=8)
    others = {
        QUANTITIES[other]: value for other, value in points[0]._asdict().items() if other not in (name, "devices")
    }
    about = CONFIG.value.model.name, CONFIG.value.model.dtype, jax.devices()[0].device_kind
    figure.suptitle(", ".join([*about, *(f"{other} {value}" for other, value in others.items())]), fontsize=9)
    folder = Path(OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png")


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]


if __name__ == "__main__":
    cli.run(main)
