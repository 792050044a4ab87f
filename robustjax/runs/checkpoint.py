"""Checkpoints of a run, through Orbax: the newest ones to resume from, and the best one to evaluate.

A manifest beside the arrays holds the checksum of each, so that damage is noticed whatever the storage does.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from robustjax.runtime import files, hosts
from robustjax.runtime.sharding import Layout
from robustjax.training.state import TrainState, with_perturbations
from robustjax.types import InputError

# What "best" means: the metric of a validation by which checkpoints are ranked.
BEST_BY = "pgd_accuracy"


class DamagedError(InputError):
    """A checkpoint is not what was written."""


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints in ``workdir/checkpoints``, one folder a step. Writes happen in the background until ``close``.

    Several processes call every method together; they need a common file system. The first one writes, by itself: what
    goes wrong there is known at once, while Orbax's processes would wait for each other. Each reads for itself.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 1, read_only: bool = False):
        """Opens the folder; with ``read_only`` nothing is created or deleted.

        Args:
            workdir: of the run.
            keep: how many of the newest validated checkpoints stay, besides the newest of all and the best.
            read_only: for evaluation.
        """
        self.directory = files.place(workdir).absolute() / "checkpoints"
        self._keep = keep
        if read_only:
            self._open(read_only=True)
        else:
            self._in_first(self._open, "the folder of the checkpoints")
            if not hosts.is_first():
                self._open(read_only=True)
        self._metrics = {step: self._metrics_of(step) for step in self.steps()}

    def _open(self, *, read_only: bool = False) -> None:
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
        process = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else self,
            create=False,
            # Orbax warns whenever it is told to only read. It does so by itself while it is asked for nothing else.
            cleanup_tmp_directories=not read_only,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
            ),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def _in_first(self, work: Callable[[], object], what: object) -> None:
        """Writes in the first process; WriteError in all where it fails."""

        def write() -> None:
            with files.writing(what):
                work()

        hosts.first_only(write, error=files.WriteError)

    def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Starts to write a state; ``metrics`` of a validation of this very state make it a candidate for the best.

        Raises:
            FloatingPointError: the state is not finite: no checkpoint is better than such a one.
            WriteError: this or the write before failed.
        """
        host = jax.tree.map(_on_host, state)
        for name, array in _by_name(host):
            if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
                raise FloatingPointError(f"{name} holds a value that is not finite")
        manifest = {"arrays": _checksums(host), "metrics": metrics}
        manifest = {**manifest, "checksum": _checksum_of_text(manifest)}
        self._metrics[step] = metrics
        args = ocp.args.Composite(state=ocp.args.StandardSave(host), manifest=ocp.args.JsonSave(manifest))
        self._in_first(lambda: self._manager.save(step, args=args), f"the checkpoint of step {step}")

    def restore(self, step: int, abstract_state: Any, layout: Layout) -> Any:
        """The state of a step, its arrays on every device. ``abstract_state`` gives structure, shapes and dtypes.

        Raises:
            DamagedError: what was read is not what was written.
            InputError: it is the state of another network.
        """
        written = self._manifest(step)["arrays"]
        target = jax.tree.map(_space, abstract_state)
        form = {name: text.rpartition(" ")[0] for name, text in written.items()}
        wanted = {name: _form(array) for name, array in _by_name(target)}
        if form != wanted:
            differing = sorted(name for name in form.keys() | wanted.keys() if form.get(name) != wanted.get(name))
            raise InputError(f"{self.directory / str(step)} is of another network, differing in {', '.join(differing)}")
        try:
            host = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise
        except Exception as error:  # readers raise anything on damaged files
            raise DamagedError(self._damaged(step, f"{type(error).__name__}: {error}")) from None
        differing = [name for name, text in _checksums(host).items() if text != written[name]]
        if differing:
            raise DamagedError(self._damaged(step, f"other bits than were written in {', '.join(sorted(differing))}"))
        wrap = lambda leaf, array: jax.random.wrap_key_data(array) if _is_key(leaf) else array  # noqa: E731
        return jax.tree.map(wrap, abstract_state, layout.replicate(host))

    def evaluated(self, step: int, abstract_state: TrainState, layout: Layout) -> dict[str, Any]:
        """The variables that the state of a step is evaluated by, as :meth:`restore` reads them.

        Where it carries perturbations, ``abstract_state`` is without them: their number is that of the training images,
        which need not be there.
        """
        if form := self._manifest(step)["arrays"].get("carried/perturbations"):
            shape = json.loads(form[form.index("[") : form.index("]") + 1])
            abstract_state = with_perturbations(abstract_state, jax.ShapeDtypeStruct(shape, jnp.float16))
        return self.restore(step, abstract_state, layout).evaluated

    def restore_newest(
        self, abstract_state: Any, layout: Layout, *, warn: Callable[[str], None], validated: bool = False
    ) -> tuple[Any, int] | None:
        """The state and the step of the newest checkpoint that is intact; None where there is none at all.

        Newer ones make way: damaged ones are set aside in ``workdir/damaged_checkpoints``, others are deleted.

        Args:
            abstract_state, layout: as in ``restore``.
            warn: takes a line for every damaged checkpoint.
            validated: only those that ``save`` got metrics with.

        Raises:
            InputError: there are checkpoints, and all are damaged. They stay where they are.
        """
        self._in_first(self._manager.wait_until_finished, "the newest checkpoint")
        self._manager.reload()
        damaged = {}
        for step in reversed(self.steps()):
            if validated and self._metrics[step] is None:
                continue
            try:
                state = hosts.together(lambda step=step: self.restore(step, abstract_state, layout), error=DamagedError)
            except DamagedError as error:
                damaged[step] = error
                continue
            for error in damaged.values():
                warn(f"warning: {error}; going on from the one of step {step}")
            self._make_way(step, damaged)
            return state, step
        if damaged:
            raise InputError(
                f"no checkpoint in {self.directory} is intact ({'; '.join(map(str, damaged.values()))}); "
                "restore one from a backup, or give another --workdir to begin anew"
            )
        self._make_way(-1, ())
        return None

    def _make_way(self, step: int, damaged: Collection[int]) -> None:
        """Leaves no checkpoint after ``step``; the damaged ones are set aside."""
        aside = self.directory.with_name("damaged_checkpoints")
        newer = [other for other in self.steps() if other > step]

        def move() -> None:
            for other in newer:
                if other not in damaged:
                    self._manager.delete(other)
                    continue
                shutil.rmtree(aside / str(other), ignore_errors=True)  # of an earlier time
                aside.mkdir(exist_ok=True)
                (self.directory / str(other)).rename(aside / str(other))

        if newer:
            self._in_first(move, aside)
            self._manager.reload()
            self._metrics = {other: metrics for other, metrics in self._metrics.items() if other <= step}

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, rising."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self._metrics, default=None)

    def validated(self) -> int | None:
        """The newest step that was validated, or None."""
        return max((step for step in self.steps() if self._metrics[step] is not None), default=None)

    def best(self) -> int | None:
        """The step of the highest robust validation accuracy; the newest where nothing was validated."""
        return self._best(self.steps()) if self.validated() is not None else self.latest()

    def find(self, name: str) -> int:
        """The step that "best", "last" or a number means.

        Raises:
            InputError: naming the steps there are.
        """
        steps = self.steps()
        if not steps:
            raise InputError(f"{self.directory.parent} holds no checkpoint; train first, or give another --workdir")
        if name in ("best", "last"):
            best = self._best(steps) if name == "best" else None
            return steps[-1] if best is None else best  # the newest where nothing was validated
        if not name.isdecimal() or int(name) not in steps:
            raise InputError(f"checkpoint must be best, last or one of {', '.join(map(str, steps))}, got {name!r}")
        return int(name)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Called by Orbax: a checkpoint that a signal caused must not displace one that the run may return to."""
        steps = [info.step for info in checkpoints]
        validated = [step for step in steps if self._metrics[step] is not None]
        kept = {steps[-1], *validated[-self._keep :], self._best(steps)}
        return [step in kept for step in steps]

    def close(self) -> None:
        """Waits for the writes under way."""
        self._in_first(self._manager.close, "the newest checkpoint")

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, (InputError, FloatingPointError) if hosts.several() else Exception):
            with contextlib.suppress(files.WriteError):  # what went wrong first is what to tell
                self.close()
        # Neither a second Ctrl-C waits, nor one process of several for others that may be gone.

    def _best(self, steps: Sequence[int]) -> int | None:
        ranks = {step: (found[BEST_BY], step) for step in steps if (found := self._metrics[step]) is not None}
        return max(ranks, key=ranks.__getitem__, default=None)

    def _metrics_of(self, step: int) -> dict[str, float] | None:
        try:
            return self._manifest(step)["metrics"]
        except DamagedError:
            return None

    def _manifest(self, step: int) -> dict[str, Any]:
        # The file itself, for Orbax would wait for the other processes, and choke on a damaged one.
        path = self.directory / str(step) / "manifest" / "metadata"
        try:
            manifest = json.loads(path.read_text())
            checksum = manifest.pop("checksum")
            if checksum == _checksum_of_text(manifest):
                return manifest
        except (OSError, ValueError, KeyError, AttributeError):
            pass
        raise DamagedError(self._damaged(step, "its manifest is missing or damaged"))

    def _damaged(self, step: int, how: str) -> str:
        return f"the checkpoint of step {step} in {self.directory} is damaged ({' '.join(how.split())[:200]})"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _on_host(leaf: jax.Array) -> np.ndarray:
    """A copy, whatever becomes of the buffer of the leaf; of a key, its data."""
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _space(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array as ``_on_host`` makes of such a leaf."""
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return np.empty(data.shape, data.dtype)


def _checksums(host: Any) -> dict[str, str]:
    """Name of every array -> its dtype, shape and CRC-32, which notices every flipped bit and every burst of them."""
    return {name: f"{_form(array)} {_crc(array)}" for name, array in _by_name(host)}


def _form(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _crc(array: np.ndarray) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data):08x}"


def _by_name(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _checksum_of_text(manifest: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}"
