"""Checkpoints of a run, through Orbax: the newest ones to go on from, and the best one to judge."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from robustjax.training.sharding import Layout
from robustjax.types import InputError

# What "best" means: the metric of a validation by which checkpoints are ranked.
BEST_BY = "pgd_accuracy"


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints in `workdir/checkpoints`, one folder a step. Writes happen in the background until `close`."""

    def __init__(self, workdir: str | Path, *, keep: int = 1, read_only: bool = False):
        """Opens the folder; with `read_only` nothing is created or deleted.

        Args:
            workdir: of the run.
            keep: how many of the newest checkpoints stay, besides the best.
            read_only: for evaluation.
        """
        self.directory = Path(workdir).absolute() / "checkpoints"
        # Orbax's own best_fn with max_to_keep would delete the latest step whenever it is not among the best.
        policy = AnyPreservationPolicy(
            [
                LatestN(keep),
                BestN(get_metric_fn=lambda m: m[BEST_BY], n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else policy,
            best_fn=lambda m: m[BEST_BY],
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Starts to write a state; `metrics` of a validation of this very state make it a candidate for the best."""
        self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

    def restore(self, step: int, abstract_state: Any, layout: Layout) -> Any:
        """The state of a step, its arrays on every device. `abstract_state` gives structure, shapes and dtypes."""
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.replicated), abstract_state
        )
        return self._manager.restore(step, args=ocp.args.StandardRestore(target))

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, rising."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step of the highest robust validation accuracy; the newest where nothing was validated."""
        step = self._manager.best_step()
        return self.latest() if step is None else step

    def find(self, name: str) -> int:
        """The step that "best", "last" or a number means.

        Raises:
            InputError: naming the steps there are.
        """
        steps = self.steps()
        if not steps:
            raise InputError(f"{self.directory.parent} holds no checkpoint; train first, or give another --workdir")
        if name in ("best", "last"):
            return self.best() if name == "best" else steps[-1]
        if not name.isdecimal() or int(name) not in steps:
            raise InputError(f"checkpoint must be best, last or one of {', '.join(map(str, steps))}, got {name!r}")
        return int(name)

    def close(self) -> None:
        """Waits for the writes under way."""
        self._manager.close()

    def __exit__(self, *exception: object) -> None:
        self.close()
