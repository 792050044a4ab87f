"""A run before it starts: its functions, its data, and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from robustjax import data
from robustjax.runtime import sharding
from robustjax.training import step
from robustjax.training.state import TrainState
from robustjax.types import Attack


class Experiment(NamedTuple):
    """A run as functions and data; ``build.experiment`` makes one from a config.

    Attributes:
        config: every key of the run, as plain data.
        train, validation: data sets.
        extra: further images, of which each batch holds the share ``config["data"]["extra_ratio"]``, or None.
        module: the network.
        create_state: () -> the state before the first step.
        step: one update.
        schedule: step -> learning rate.
        validation_attacks: name -> attack, None for clean accuracy.
    """

    config: dict[str, Any]
    train: data.Dataset | data.Stream
    validation: data.Dataset
    module: Any
    create_state: Callable[[], TrainState]
    step: step.Step
    schedule: Callable[[int], Any]
    validation_attacks: Mapping[str, Attack | None]
    extra: data.Dataset | data.Stream | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch; what is left over is in another place of the order next time. With further images
        an epoch is as long as without them.
        """
        return self.train.num_examples // self.config["train"]["batch_size"]

    @property
    def num_steps(self) -> int:
        return self.config["train"]["num_epochs"] * self.steps_per_epoch


class CheckpointStore(Protocol):
    """Where a run keeps its states; :class:`robustjax.runs.checkpoint.Checkpoints` is one."""

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None: ...

    def restore_newest(
        self, abstract_state: Any, layout: sharding.Layout, *, warn: Callable[[str], None], validated: bool = False
    ) -> tuple[TrainState, int] | None: ...

    def latest(self) -> int | None: ...
