"""Counts, lowers and compiles the training step of a config for a TPU slice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robustjax import build
from robustjax.planning import counts, hlo
from robustjax.planning.facts import Facts
from robustjax.planning.page import Memory
from robustjax.runtime import sharding
from robustjax.training import step as step_lib
from robustjax.training.state import carries_perturbations
from robustjax.types import Config


def _parts(config: Config, facts: Facts) -> tuple[Any, Callable]:
    """The abstract state of a run, and its step."""
    module = build.model(config, facts.num_classes)
    count = facts.num_examples + facts.num_extra
    state = jax.eval_shape(build.initial_state(config, module, facts.image_shape, num_examples=count))
    return state, build.training_step(config, module, facts.num_examples // config.train.batch_size)


def counted(config: Config, facts: Facts, num_chips: int) -> tuple[counts.Counts, Any]:
    """One step as one chip sees it, with its part of the batch; and the abstract state."""
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.batch_norm.devices = "global"  # no collectives are to be traced
    state, step = _parts(alone, facts)
    part = config.train.batch_size // num_chips
    images, numbers = (
        jax.ShapeDtypeStruct((part, *facts.image_shape), jnp.float32),
        jax.ShapeDtypeStruct((part,), "int32"),
    )
    places = (numbers,) if carries_perturbations(state) else ()
    program = jax.make_jaxpr(step)(state, images, numbers, *places)
    return counts.count(program), state


def lowered(config: Config, facts: Facts, layout: sharding.Layout) -> Any:
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
        count = facts.num_examples + facts.num_extra
        given = [
            jax.ShapeDtypeStruct((count, *facts.image_shape), jnp.uint8),
            jax.ShapeDtypeStruct((count,), jnp.int32),
            jax.ShapeDtypeStruct((config.train.log_every_steps, size), jnp.int32),
            jax.ShapeDtypeStruct((), jnp.int32),
        ]
        traced = step_lib.make_dispatch(step, layout).trace(on_each(state), *on_each(given))
    return traced.lower(lowering_platforms=("tpu",))


def compiled(lower: Callable[[], Any], minutes: float) -> tuple[Memory | None, Any, str]:
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
    thread.join(min(60 * minutes, threading.TIMEOUT_MAX))
    if not outcome:
        return None, None, f"not within {minutes:g} minutes"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
