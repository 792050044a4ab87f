"""The result of a plan: ``Plan.needed`` is the memory per chip, ``page`` the lines that ``train --plan`` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from robustjax.planning import chips, counts, hlo

_EXHAUSTED = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG])")


class Memory(NamedTuple):
    """Bytes on a chip. ``total`` counts a result that takes the place of an argument once."""

    arguments: float
    temporaries: float
    program: float
    total: float


class Plan(NamedTuple):
    """The result of :func:`plan`; ``str(plan)`` is the page that ``train --plan`` prints.

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
        """Bytes per chip: those of the compiled program, or else those counted by :mod:`counts`."""
        if self.memory is not None:
            return self.memory.total
        return reported(self.not_compiled) or self.state_bytes + self.data_bytes + self.counted.held

    @property
    def fits(self) -> bool:
        return self.needed <= self.target.chip.memory

    @property
    def seconds(self) -> dict[str, float]:
        """Lower bounds of a step's time by resource: "compute", "state" (read and written once), "interconnect".

        The last is known of a compiled program only.
        """
        chip, n = self.target.chip, self.target.num_chips
        seconds = {"compute": self.counted.flops / chip.flops, "state": 2 * self.state_bytes / chip.bandwidth}
        if self.collectives is not None:
            # An all-reduce sends what it takes twice, for the sum and for its copies; others send theirs once at least.
            passes = {kind: 2 if kind == "all-reduce" else 1 for kind in self.collectives}
            sent = sum(passes[kind] * each.bytes for kind, each in self.collectives.items()) * (n - 1) / n
            seconds["interconnect"] = sent / chip.interconnect
        return seconds

    def __str__(self) -> str:
        return "\n".join(page(self))


def reported(reason: str) -> float:
    """The bytes that the compiler needed and did not get, read off its message; 0 where it does not say."""
    found = _EXHAUSTED.search(reason)
    return float(found[1]) * 1024 ** "KMG".index(found[2]) * 1024 if found else 0.0


def page(plan: Plan) -> Iterator[str]:
    """The lines that ``train --plan`` prints."""
    chip, n = plan.target.chip, plan.target.num_chips
    yield f"{plan.title}, for {n} chips of {plan.target.kind}, {plan.batch_per_chip} examples on each"
    counted = plan.memory is None and not reported(plan.not_compiled)
    # The compiler pads and copies, and computes again what it has no room for: a count errs on both sides.
    verdicts = ("may fit", "may not fit") if counted else ("fits", "does not fit")
    about = "about " if counted else ""
    yield f"memory a chip: {about}{_gib(plan.needed)} of {_gib(chip.memory)}, which {verdicts[not plan.fits]}"
    if plan.memory is not None:
        memory = plan.memory
        rest = memory.total - memory.arguments - memory.temporaries - memory.program
        yield (
            f"  compiled: arguments {_gib(memory.arguments)}, temporaries {_gib(memory.temporaries)}, program "
            f"{_gib(memory.program)}, results that replace no argument {_gib(rest)}"
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
    listed = ", ".join(f"{name} {_time(value)}" for name, value in seconds.items())
    yield f"a step takes at least {_time(least)}, by {which} ({listed})"
    yield (
        f"  and {_time(plan.counted.traffic / chip.bandwidth)} if every product reads its operands from memory "
        "and writes its result there"
    )
    yield (
        f"an epoch of {plan.steps_per_epoch:,} steps at least {_time(least * plan.steps_per_epoch)}, "
        f"the run of {plan.num_epochs:,} epochs {_time(least * plan.steps_per_epoch * plan.num_epochs)}"
    )
    for name, needed in plan.mends:
        verdict = "would fit" if needed <= chip.memory else "would not fit either"
        yield f"{name} {verdict}: about {_gib(needed)} a chip"


def _gib(size: float) -> str:
    return f"{size / chips.GIB:.2f} GiB" if size >= chips.GIB / 10 else f"{size / 2**20:.1f} MiB"


def _flop(count: float) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e9:.3g} GFLOP"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
