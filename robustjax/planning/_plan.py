"""One training step compiled for a slice of TPUs, and what follows for memory and time."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import build
from robustjax import config as config_lib
from robustjax.data.known import KNOWN
from robustjax.planning import chips, counts, hlo
from robustjax.runtime import sharding
from robustjax.training import step as step_lib
from robustjax.types import Config, InputError

GIB = chips.GIB
# What the training split has of data sets that need not be there to plan for them.
TRAINING_EXAMPLES = {
    "mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000, "svhn_cropped": 73_257,
    "imagenet2012": 1_281_167,
}  # fmt: skip
_IMAGENET_CLASSES = 1000
_EXHAUSTED = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG])")


class Examples(NamedTuple):
    """What a plan has to know of a data set."""

    num_examples: int
    image_shape: tuple[int, int, int]
    num_classes: int


class Memory(NamedTuple):
    """Bytes on a chip. ``total`` counts a result that takes the place of an argument once."""

    arguments: float
    temporaries: float
    program: float
    total: float


class Plan(NamedTuple):
    """What :func:`plan` found out; ``str(plan)`` is the page that ``train --plan`` prints.

    Attributes:
        target: the slice.
        title: network, data set, batch and dtype in words.
        batch_per_chip: examples.
        steps_per_epoch, num_epochs: of the run.
        counted: by our own count, of one step on one chip.
        state_bytes, data_bytes: on each chip: of the training state, and of a data set that lies there.
        memory: of the compiled program; None where it was not compiled.
        collectives: of the compiled program, of one step; None likewise.
        not_compiled: why not; "" where it was.
        mends: what would make it fit, or make room, each with the memory it would take a chip, in bytes.
    """

    target: chips.Slice
    title: str
    batch_per_chip: int
    steps_per_epoch: int
    num_epochs: int
    counted: counts.Counts
    state_bytes: float
    data_bytes: float
    memory: Memory | None
    collectives: Mapping[str, hlo.Collective] | None
    not_compiled: str
    mends: tuple[tuple[str, float], ...]

    @property
    def needed(self) -> float:
        """Bytes a chip: the compiled program's, or else by our own count."""
        if self.memory is not None:
            return self.memory.total
        return _reported(self.not_compiled) or self.state_bytes + self.data_bytes + self.counted.held

    @property
    def fits(self) -> bool:
        return self.needed <= self.target.chip.memory

    @property
    def seconds(self) -> dict[str, float]:
        """What a step takes at least, by what limits it: "compute", "state" (read and written once), "interconnect"."""
        chip, n = self.target.chip, self.target.num_chips
        sent = sum(each.bytes for each in (self.collectives or {}).values()) * 2 * (n - 1) / n
        return {
            "compute": self.counted.flops / chip.flops,
            "state": 2 * self.state_bytes / chip.bandwidth,
            "interconnect": sent / chip.interconnect,
        }

    def __str__(self) -> str:
        return "\n".join(_page(self))


def plan(config: Config, target: chips.Slice | str, *, minutes: float = 30.0) -> Plan:
    """Compiles the training step of a config for TPUs that are not there, and says what it needs of them.

    The step is the one that ``train`` would run there: attack, update, averaging and collectives, in the same loop over
    the steps of a dispatch.

    Args:
        config: of the run. Its data set need not be there if it is one of the usual ones.
        target: such as "v5e-16".
        minutes: how long the compiler may take; then the plan is by our own count alone. 0: nothing is compiled.

    Raises:
        InputError: wrong values in the config, chips that cannot share a batch, no libtpu, no such slice.

    Example:
        >>> from robustjax import config as config_lib
        >>> config = config_lib.digits()
        >>> plan(config, "v5e-3")
        Traceback (most recent call last):
        ...
        robustjax.types.InputError: --plan must have a power of two of chips, 1 to 256 of v5e, got 'v5e-3' (nearest:
        'v5e-2')
    """
    if isinstance(target, str):
        target = chips.parse(target)
    config_lib.validate(config)
    layout = sharding.layout(chips.devices(target))
    layout.check_batch_size("train.batch_size", config.train.batch_size, parts=config.train.accumulation)
    facts = examples(config)
    if facts.num_examples < config.train.batch_size:
        raise InputError(
            f"train.batch_size must be at most the {facts.num_examples} training examples, "
            f"got {config.train.batch_size}"
        )
    counted, state = _counted(config, facts, target.num_chips)
    memory, collectives, reason = _compiled(lambda: _lowered(config, facts, layout), minutes)
    # What the compiler makes of our own count, to judge what was not compiled by.
    held = _reported(reason) if memory is None else memory.temporaries
    state_bytes, data_bytes = _bytes(state), _data_bytes(config, facts)
    if memory is None and held:
        held -= state_bytes + data_bytes
    scale = held / counted.held if held and counted.held else 1.0
    found = Plan(
        target=target,
        title=_title(config, facts),
        batch_per_chip=config.train.batch_size // target.num_chips,
        steps_per_epoch=facts.num_examples // config.train.batch_size,
        num_epochs=config.train.num_epochs,
        counted=counted,
        state_bytes=state_bytes,
        data_bytes=data_bytes,
        memory=memory,
        collectives=collectives,
        not_compiled=reason,
        mends=(),
    )
    return found if found.fits else found._replace(mends=tuple(_mends(config, facts, target, scale)))


def examples(config: Config) -> Examples:
    """Size, shape and classes of a config's training data, which of the usual data sets need not be there."""
    name = config.data.name
    known = name.partition(":")[0]
    if known in TRAINING_EXAMPLES:
        size = config.data.image_size
        shape = KNOWN[known].image_shape if known in KNOWN else None
        if size is not None:
            shape = (size, size, 3 if shape is None else shape[2])
        if shape is None:
            raise InputError(f"data.image_size must be set for {name}, whose images are of many sizes, got None")
        classes = len(KNOWN[known].class_names["label"]) if known in KNOWN else _IMAGENET_CLASSES
        total = TRAINING_EXAMPLES[known] - config.data.validation_examples
        return Examples(min(total, config.data.train_examples or total), shape, classes)
    train, _ = build.datasets(config)
    return Examples(train.num_examples, train.image_shape, train.num_classes)


def _parts(config: Config, facts: Examples) -> tuple[Any, Callable]:
    """The abstract state of a run, and its step."""
    module = build.model(config, facts.num_classes)
    state = jax.eval_shape(build.initial_state(config, module, facts.image_shape))
    return state, build.training_step(config, module, facts.num_examples // config.train.batch_size)


def _counted(config: Config, facts: Examples, num_chips: int) -> tuple[counts.Counts, Any]:
    """One step as one chip sees it, with its part of the batch; and the abstract state."""
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.batch_norm.devices = "global"  # no collectives are to be traced
    state, step = _parts(alone, facts)
    part = config.train.batch_size // num_chips
    images = jax.ShapeDtypeStruct((part, *facts.image_shape), jnp.float32)
    program = jax.make_jaxpr(step)(state, images, jax.ShapeDtypeStruct((part,), jnp.int32))
    return counts.count(program), state


def _lowered(config: Config, facts: Examples, layout: sharding.Layout) -> Any:
    """The program of a dispatch, as ``training.feeding`` makes it, for the devices of the layout."""
    state, step = _parts(config, facts)
    if config.batch_norm.devices == "per_device":
        step = step_lib.per_device(step, layout)

    def on_each(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.replicated), tree)

    size = config.train.batch_size
    if config.data.pipeline == "stream":
        images = jax.ShapeDtypeStruct((size, *facts.image_shape), jnp.uint8, sharding=layout.batch)
        labels = jax.ShapeDtypeStruct((size,), jnp.int32, sharding=layout.batch)
        traced = step_lib.make_batch_dispatch(step, layout).trace(on_each(state), images, labels)
    else:
        count = facts.num_examples
        given = [
            jax.ShapeDtypeStruct((count, *facts.image_shape), jnp.uint8),
            jax.ShapeDtypeStruct((count,), jnp.int32),
            jax.ShapeDtypeStruct((config.train.log_every_steps, size), jnp.int32),
            jax.ShapeDtypeStruct((), jnp.int32),
        ]
        traced = step_lib.make_dispatch(step, layout).trace(on_each(state), *on_each(given))
    return traced.lower(lowering_platforms=("tpu",))


def _compiled(lower: Callable[[], Any], minutes: float) -> tuple[Memory | None, Any, str]:
    """Memory and collectives of the compiled program, or None twice and why there is none."""
    if minutes <= 0:
        return None, None, "only counted, as it was given no time"
    outcome: list[Any] = []

    def work() -> None:
        try:
            compiled = lower().compile()
            about = compiled.memory_analysis()
            fresh = about.output_size_in_bytes - about.alias_size_in_bytes
            parts = about.argument_size_in_bytes, about.temp_size_in_bytes, about.generated_code_size_in_bytes
            outcome.append((Memory(*parts, sum(parts) + fresh), hlo.collectives(compiled.as_text()), ""))
        except jax.errors.JaxRuntimeError as error:
            outcome.append((None, None, " ".join(str(error).split())[:400]))
        except BaseException as error:
            outcome.append(error)

    # The compiler cannot be interrupted. A thread can be left behind: it ends with the process.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60 * minutes)
    if not outcome:
        return None, None, f"not within {minutes:g} minutes"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _reported(reason: str) -> float:
    """The bytes that the compiler asked for in vain, 0 where it says nothing of them."""
    found = _EXHAUSTED.search(reason)
    return float(found[1]) * 1024 ** "KMG".index(found[2]) * 1024 if found else 0.0


def _mends(config: Config, facts: Examples, target: chips.Slice, scale: float) -> Iterator[tuple[str, float]]:
    """Of each way to need less memory the smallest step that fits, or else the largest.

    By our own count, times what the compiler makes of it.
    """
    size, least = config.train.batch_size, target.num_chips

    def variant(**changes: Any) -> Config:
        other = config.copy_and_resolve_references()
        with other.unlocked():
            for path, value in changes.items():
                section, key = path.split("__")
                other[section][key] = value
        return other

    ways: dict[str, list[tuple[str, Config, int]]] = {
        "remat": [("model.remat=True", variant(model__remat=True), least)] if not config.model.remat else [],
        "accumulation": [
            (f"train.accumulation={parts}", variant(train__accumulation=parts), least)
            for parts in (2**i for i in range(1, 8))
            if parts > config.train.accumulation and size % (parts * least) == 0
        ],
        "chips": [
            (f"{target.kind}-{more}", config, more)
            for more in (least * 2**i for i in range(1, 7))
            if more <= chips.MOST[target.kind] and size % (more * config.train.accumulation) == 0
        ],
    }
    data_bytes = _data_bytes(config, facts)
    if data_bytes > target.chip.memory / 4:
        counted, state = _counted(config, facts, least)
        yield "data.pipeline=stream", _bytes(state) + counted.held * scale
    for steps in ways.values():
        found = None
        for name, other, number in steps:
            counted, state = _counted(other, facts, number)
            found = name, _bytes(state) + data_bytes + counted.held * scale
            if found[1] <= target.chip.memory:
                break
        if found:
            yield found


def _page(plan: Plan) -> Iterator[str]:
    chip, n = plan.target.chip, plan.target.num_chips
    yield f"{plan.title}, for {n} chips of {plan.target.kind}, {plan.batch_per_chip} examples on each"
    yield f"memory a chip: {_gib(plan.needed)} of {_gib(chip.memory)}, which {'fits' if plan.fits else 'does not fit'}"
    if plan.memory is not None:
        memory = plan.memory
        rest = memory.total - memory.arguments - memory.temporaries - memory.program
        yield (
            f"  compiled: arguments {_gib(memory.arguments)}, temporaries {_gib(memory.temporaries)}, program "
            f"{_gib(memory.program)}, results elsewhere {_gib(rest)}"
        )
    else:
        yield f"  not compiled: {plan.not_compiled}"
    held = _gib(plan.counted.held)
    yield f"  by our own count: state {_gib(plan.state_bytes)}, data {_gib(plan.data_bytes)}, activations {held}"
    per_step, per_epoch = plan.counted.flops * n, plan.counted.flops * n * plan.steps_per_epoch
    yield (
        f"work: {_flop(plan.counted.flops)} a chip and step, {_flop(per_step)} a step, {_flop(per_epoch)} an epoch, "
        f"{_flop(per_epoch * plan.num_epochs)} the run"
    )
    if plan.counted.open_loops:
        yield f"  {plan.counted.open_loops} loops of unknown length are counted as one turn each"
    if plan.collectives is not None:
        listed = [f"{each.count:,} {kind} of {each.bytes / 1e6:,.1f} MB" for kind, each in plan.collectives.items()]
        yield f"collectives of a step: {', '.join(listed) or 'none'}"
    else:
        yield "collectives of a step: unknown, as nothing was compiled"
    seconds = plan.seconds
    which = max(seconds, key=seconds.__getitem__)
    least = seconds[which]
    listed = ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in seconds.items())
    yield f"a step takes at least {1e3 * least:.3g} ms, by {which} ({listed})"
    yield (
        f"  and {1e3 * plan.counted.traffic / chip.bandwidth:.3g} ms if every product reads its operands from memory "
        "and writes its result there"
    )
    yield (
        f"an epoch of {plan.steps_per_epoch:,} steps at least {_time(least * plan.steps_per_epoch)}, "
        f"the run of {plan.num_epochs:,} epochs {_time(least * plan.steps_per_epoch * plan.num_epochs)}"
    )
    for name, needed in plan.mends:
        verdict = "would fit" if needed <= chip.memory else "would not fit either"
        yield f"{name} {verdict}: about {_gib(needed)} a chip"


def _title(config: Config, facts: Examples) -> str:
    depth, width = config.model.depth, config.model.width
    size = f" {depth}-{width}" if depth else ""
    return (
        f"{config.model.name}{size} on {config.data.name} ({facts.num_examples:,} images), {config.objective.name}, "
        f"{config.attack.name}, batch {config.train.batch_size:,}, {config.model.dtype}"
    )


def _bytes(tree: Any) -> float:
    def size(leaf: Any) -> float:
        each = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        return float(leaf.size * each)

    return sum(map(size, jax.tree.leaves(tree)))


def _data_bytes(config: Config, facts: Examples) -> float:
    height, width, channels = facts.image_shape
    if config.data.pipeline == "stream":
        return 0.0
    return float(facts.num_examples * (height * width * channels + 4))


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _flop(count: float) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e9:.3g} GFLOP"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
