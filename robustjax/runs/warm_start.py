"""Starts a run from the weights of another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from robustjax import build
from robustjax.runs import config_file
from robustjax.runs.checkpoint import Checkpoints
from robustjax.runtime import sharding
from robustjax.training import state
from robustjax.types import Config, InputError


def warm_start(config: Config, module: Any, image_shape: tuple[int, int, int]) -> Callable[[], dict] | None:
    """() -> variables to begin with: the newest ones of the run in config.init_from, weights and statistics only.

    Whatever only this network's guards have begins anew; anything else has to be there, and of the same shape.

    Raises:
        InputError: when called; there is no such run, or its network does not fit, naming every entry.
    """
    if config.init_from is None:
        return None

    def variables() -> dict[str, Any]:
        other = config_file.read(config.init_from)
        with Checkpoints(config.init_from, read_only=True) as checkpoints:
            source = build.initial_state(other, build.model(other, module.num_classes), image_shape)
            try:
                found = checkpoints.evaluated(checkpoints.find("last"), jax.eval_shape(source), sharding.layout())
            except ValueError as error:  # other images or classes
                raise InputError(f"init_from {config.init_from} does not fit: {error}") from error
        own = jax.jit(build.initial_state(config, module, image_shape))().variables
        return state.merge(own, found, source=f"init_from {config.init_from}", may_begin_anew="guards_")

    return variables
