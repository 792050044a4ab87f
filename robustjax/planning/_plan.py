"""The plan of a run: one training step compiled or counted for a TPU slice, with its memory and time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from robustjax import config as config_lib
from robustjax.ops import check_number
from robustjax.planning import chips, programs
from robustjax.planning.facts import Facts, facts_of
from robustjax.planning.page import Plan, reported
from robustjax.runtime import sharding
from robustjax.training import loop
from robustjax.types import Config, InputError


def plan(config: Config, target: chips.Slice | str, *, minutes: float = 30.0) -> Plan:
    """Compiles the training step of a config for a TPU slice without having one, and says what it needs.

    The step is the one that ``train`` would run there: attack, update, averaging and collectives, in the same loop over
    the steps of a dispatch.

    Args:
        config: of the run. Its data set need not be there if it is one of the usual ones.
        target: such as "v5e-16".
        minutes: how long the compiler may take; then the plan is by our own count alone. 0: nothing is compiled.

    Returns:
        A :class:`Plan`; ``print`` shows it as a page.

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
    check_number("minutes (--plan_minutes)", minutes, "[0, inf)")
    config_lib.validate(config)
    layout = sharding.layout(chips.devices(target))
    loop.check(config_lib.plain(config), layout)
    facts = facts_of(config)
    if facts.num_examples < config.train.batch_size:
        raise InputError(
            f"train.batch_size must be at most the {facts.num_examples} training examples, "
            f"got {config.train.batch_size}"
        )
    counted, state = programs.counted(config, facts, target.num_chips)
    memory, collectives, reason = programs.compiled(lambda: programs.lowered(config, facts, layout), minutes)
    # What the compiler takes over our own count, by which what was not compiled is estimated. At least 1: short of
    # memory it computes again what it can, and where there is room it does not.
    held = reported(reason) if memory is None else memory.temporaries
    state_bytes, data_bytes = _bytes(state), _data_bytes(config, facts)
    if memory is None and held:
        held -= state_bytes + data_bytes
    scale = max(held / counted.held, 1.0) if counted.held else 1.0
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


def _mends(config: Config, facts: Facts, target: chips.Slice, scale: float) -> Iterator[tuple[str, float]]:
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
        counted, state = programs.counted(config, facts, least)
        yield "data.pipeline=stream", _bytes(state) + counted.held * scale
    for steps in ways.values():
        found = None
        for name, other, number in steps:
            counted, state = programs.counted(other, facts, number)
            found = name, _bytes(state) + data_bytes + counted.held * scale
            if found[1] <= target.chip.memory:
                break
        if found:
            yield found


def _title(config: Config, facts: Facts) -> str:
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


def _data_bytes(config: Config, facts: Facts) -> float:
    height, width, channels = facts.image_shape
    if config.data.pipeline == "stream":
        return 0.0
    return float((facts.num_examples + facts.num_extra) * (height * width * channels + 4))
