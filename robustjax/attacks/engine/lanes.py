"""Runs an attack over many images: batches of slots that never idle, on a CPU several of them at the same time."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry
from robustjax.attacks.engine import search as search_lib
from robustjax.attacks.engine import verify
from robustjax.attacks.engine.search import Search
from robustjax.types import Array, InputError, Key

# Batches come in few sizes, each a quarter of the one before: every size compiles every attack once more.
SHRINK, SMALLEST_BATCH = 4, 16
# Seconds that a smaller batch must promise to save: what compiling for it may take.
WORTH_COMPILING = 5.0
MOST_LANES = 4


class Stage(NamedTuple):
    """One attack of an ensemble.

    Attributes:
        search: a single run, in steps.
        num_targets: wrong classes to aim at one after the other; 1 for an untargeted attack.
        num_restarts: runs of each target.
        chunk: steps between two looks at who is broken.
        cost: of a step, in forward passes.
    """

    search: Search
    num_targets: int
    num_restarts: int
    chunk: int
    cost: int

    @property
    def num_runs(self) -> int:
        """Runs of an image that withstands them all."""
        return self.num_targets * self.num_restarts

    @property
    def passes(self) -> int:
        """Forward passes of all its runs."""
        return self.cost * self.search.num_steps * self.num_runs


class Run(NamedTuple):
    """What all stages share. Arrays are on the host; only what is worked on is on the device.

    Attributes:
        sizes: of a lane's batch, falling.
        num_lanes: batches at the same time, each driven by a thread if there are several.
        sharding: of a batch's leading axis, or None.
    """

    network: Any
    key: Key
    images: np.ndarray
    labels: np.ndarray
    epsilon: np.ndarray
    norm: str
    bounds: geometry.Bounds
    eot_samples: int
    sizes: tuple[int, ...]
    num_lanes: int
    sharding: jax.sharding.NamedSharding | None

    def classify(self) -> tuple[np.ndarray, np.ndarray]:
        """Which images are correctly classified as they are [N], and their likeliest wrong classes [R, N]."""
        wrong, targets = self._judge(self._key("clean"), np.arange(len(self.images)), self.images)
        return ~wrong, targets

    def attack(
        self, stage: Stage, key: Key, targets: np.ndarray, alive: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Runs a stage; yields images' indices as they break, their adversarial points, and steps still to be made."""
        size = self._size(len(alive))
        num_lanes = min(self.num_lanes, -(-len(alive) // size))
        # A network's noise is drawn for a batch as a whole: there a lane's images must not depend on who is quicker.
        shared = deque(alive.tolist())
        queues = [deque(alive[i::num_lanes].tolist()) if self.eot_samples else shared for i in range(num_lanes)]
        lanes = [
            self._lane(stage, key, targets, waiting, size, itertools.count(i, num_lanes))
            for i, waiting in enumerate(queues)
        ]
        left = len(alive) * stage.num_runs * stage.search.num_steps
        with contextlib.closing(merged(lanes)) as reports:
            for indices, points, done in reports:
                left -= done
                yield indices, points, left

    def compile(self, stage: Stage, targets: np.ndarray, count: int) -> None:
        """Compiles what a stage begins with, if there are so many images, by taking no step."""
        at = np.zeros(self._size(count), np.int64)
        run = at.astype(np.int32)
        rows_of = self._rows(stage, targets, at, run)
        fresh, state = np.ones(len(at), bool), _blank(stage.search, *rows_of[1:])
        _advance(stage.search, self.network, self.key, *self._split((*rows_of, run, run, state, fresh)), 0, np.int32(0))

    def _lane(
        self, stage: Stage, key: Key, targets: np.ndarray, waiting: deque[int], size: int, looks: Iterator[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Attacks what it takes from `waiting`; yields as `attack` does, but steps that need no longer be made."""
        num_runs, num_steps = stage.num_runs, stage.search.num_steps
        occupant, run, fresh = np.full(size, -1), np.zeros(size, np.int32), np.zeros(size, bool)
        state, seconds_a_step = None, 0.0
        for look in looks:
            for slot in np.flatnonzero(occupant < 0):
                with contextlib.suppress(IndexError):  # another lane may have been quicker
                    occupant[slot], run[slot], fresh[slot] = waiting.popleft(), 0, True
            taken = occupant >= 0
            if not taken.any():
                return
            count = np.zeros(size, np.int32) if state is None else np.where(fresh, 0, np.asarray(state.count))
            runs = np.where(taken, num_runs - run, 0)
            to_go = np.max(runs * num_steps - np.where(taken, count, 0))
            smaller = _fitting(int(taken.sum()), self.sizes)
            # Noise depends on a row's place, so with a stochastic network, slow as it is, the clock has no say.
            seconds = np.inf if self.eot_samples else seconds_a_step * to_go * (1 - smaller / size)
            if smaller < size and seconds > WORTH_COMPILING and state is not None:
                rows = np.argsort(~taken, kind="stable")[:smaller]
                occupant, run, fresh, taken, runs = (a[rows] for a in (occupant, run, fresh, taken, runs))
                state, size = _taken(state, rows), smaller
            rows_of = self._rows(stage, targets, np.where(taken, occupant, occupant[taken][0]), run)
            if state is None:
                state, fresh = _blank(stage.search, *rows_of[1:]), np.ones(size, bool)
            arguments = self._split((*rows_of, run, run % stage.num_restarts, state, fresh))
            started = time.perf_counter()
            state = _advance(stage.search, self.network, key, *arguments, stage.chunk, np.int32(look))
            share, over = np.asarray(state.best.share), np.asarray(state.count) >= num_steps
            # The quickest so far, as the first includes compilation.
            seconds = (time.perf_counter() - started) / stage.chunk
            seconds_a_step = min(seconds, seconds_a_step or seconds)
            fresh = ended = taken & (over | (share >= 1.0))
            broken = ended & (share > 0.5)
            points = self.images[:0]
            if broken.any():
                points = np.asarray(state.best.images)[broken]
                verdict, _ = self._judge(jax.random.fold_in(self._key("verify"), look), occupant[broken], points)
                broken[broken], points = verdict, points[verdict]
            indices = occupant[broken]
            run = np.where(ended, run + 1, run).astype(np.int32)
            gone = broken | (ended & (run >= num_runs))
            occupant[gone], run[gone] = -1, 0
            yield indices, points, int(runs.sum() - (num_runs - run)[occupant >= 0].sum()) * num_steps

    def _judge(self, key: Key, rows: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which points break the images of these rows, and their likeliest wrong classes; compiled for one size."""
        size, outcomes = self._size(len(self.images)), []
        for start in range(0, len(rows), size):
            part = np.arange(start, min(start + size, len(rows)))
            padded = np.resize(part, size)
            at = rows[padded]
            batch = self._split((self.images[at], points[padded], self.labels[at], self.epsilon[at]))
            options = {"norm": self.norm, "bounds": self.bounds, "eot_samples": self.eot_samples}
            broken, ranked = _judged(self.network, key, *batch, **options)
            outcomes.append((np.asarray(broken)[: len(part)], np.asarray(ranked)[:, : len(part)]))
        broken, ranked = zip(*outcomes, strict=True)
        return np.concatenate(broken), np.concatenate(ranked, axis=1)

    def _rows(self, stage: Stage, targets: np.ndarray, at: np.ndarray, run: np.ndarray) -> tuple[np.ndarray, ...]:
        """What images are attacked with: their number, pixels, label, target and epsilon."""
        return at, self.images[at], self.labels[at], targets[run // stage.num_restarts, at], self.epsilon[at]

    def _size(self, count: int) -> int:
        """The size to begin with: the largest whose slots rounds of the next smaller one would need as well."""
        each = -(-count // self.num_lanes)
        return next((size for size, less in itertools.pairwise(self.sizes) if each > size - less), self.sizes[-1])

    def _split(self, tree: Any) -> Any:
        """Arrays [B, ...] shared by the devices."""
        return tree if self.sharding is None else jax.device_put(tree, self.sharding)

    def _key(self, purpose: str) -> Key:
        return jax.random.fold_in(self.key, {"clean": 101, "verify": 102}[purpose])


def most_lanes(batch_size: int, sharding: jax.sharding.NamedSharding | None) -> int:
    """One for each core of a CPU, which leaves most operations of a small network to a single core; elsewhere one."""
    devices = jax.devices()[:1] if sharding is None else sharding.device_set
    if [device.platform for device in devices] != ["cpu"] or _is_set_in_this_thread_alone():
        return 1
    return max(min(cores(), MOST_LANES, batch_size // SMALLEST_BATCH), 1)


def _is_set_in_this_thread_alone() -> bool:
    """Whether jax is set by `with`, as to a precision or a mesh: other threads would compute something else."""
    settings = any(getattr(jax.config, name, value) != value for name, value in jax.config.values.items())
    return settings or not jax.sharding.get_abstract_mesh().empty


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batch_sizes(largest: int, num_devices: int) -> tuple[int, ...]:
    """Batch sizes, falling, that the devices can share."""
    least = -(-SMALLEST_BATCH // num_devices)
    sizes = [largest // num_devices]
    while sizes[-1] > least:
        sizes.append(max(-(-sizes[-1] // SHRINK), least))
    return tuple(size * num_devices for size in sizes)


def merged(lanes: Sequence[Iterator]) -> Iterator:
    """What the iterators yield, as it comes; each goes on in a thread until all end, one raises, or this is closed."""
    if len(lanes) < 2:
        yield from itertools.chain(*lanes)
        return
    with ThreadPoolExecutor(len(lanes)) as pool:
        pending = {pool.submit(next, lane, None): lane for lane in lanes}
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                lane, report = pending.pop(future), future.result()
                if report is not None:
                    pending[pool.submit(next, lane, None)] = lane
                    yield report


@contextlib.contextmanager
def meanwhile() -> Iterator[Callable]:
    """A function that has calls made one after the other in a thread; those not begun at the end are dropped."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


@functools.partial(jax.jit, static_argnums=(0,))
def _advance(
    search: Search, network: Any, key: Key, at: Array, images: Array, labels: Array, targets: Array, epsilon: Array,
    run: Array, restart: Array, state: Any, fresh: Array, num_steps: Array, look: Array,
) -> Any:  # fmt: skip
    """Begins the fresh rows and takes so many steps in all."""
    keys = search_lib.run_keys(jax.vmap(jax.random.fold_in, (None, 0))(key, at), run)
    posed = search_lib.problem(keys, images, labels, targets, epsilon, restart)
    begun = search.start(search.options, posed)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(fresh.reshape(fresh.shape + (1,) * (new.ndim - 1)), new, old)

    state = jax.tree.map(choose, begun, state)
    network_key = jax.random.fold_in(search_lib.network_key(key), look)
    return search_lib.advance(search, network, network_key, posed, state, num_steps)


def _taken(state: Any, rows: np.ndarray) -> Any:
    """Some rows of a state, on the host."""
    return jax.tree.map(lambda values: np.asarray(values)[rows], state)


def _blank(search: Search, images: Array, labels: Array, targets: Array, epsilon: Array) -> Any:
    """A state for every row to be begun over."""

    def begin(images: Array, labels: Array, targets: Array, epsilon: Array) -> Any:
        return search.start(search.options, search_lib.problem(jax.random.key(0), images, labels, targets, epsilon))

    return jax.tree.map(
        lambda rest: np.zeros(rest.shape, rest.dtype), jax.eval_shape(begin, images, labels, targets, epsilon)
    )


@functools.partial(jax.jit, static_argnames=("norm", "bounds", "eot_samples"))
def _judged(
    network: Any, key: Key, images: Array, points: Array, labels: Array, epsilon: Array, *,
    norm: str, bounds: geometry.Bounds, eot_samples: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Which points are valid and misclassified, in full float32, and the likeliest wrong classes [R, B]."""

    def draw(arguments: tuple) -> tuple[Array, Array]:
        outputs = network(points, *arguments)
        logits = getattr(outputs, "logits", outputs)
        if not isinstance(logits, jax.Array) or logits.ndim != 2 or logits.shape[1] < 2:
            given = f"shape {list(logits.shape)}" if isinstance(logits, jax.Array) else type(logits).__name__
            raise InputError(f"logits_fn: expected logits [B, K] with K >= 2, got {given}")
        logits = logits.astype(jnp.float32)
        return (~verify.is_correct(logits, labels)).astype(jnp.float32), logits

    with jax.default_matmul_precision("float32"):
        if eot_samples == 0:
            share, mean = draw(())
        else:
            draws = jax.lax.map(lambda key: draw((key,)), jax.random.split(key, eot_samples))
            share, mean = (jnp.mean(values, axis=0) for values in draws)
    valid = verify.is_valid(images, points, epsilon=epsilon, norm=norm, bounds=bounds)
    return valid & (share > 0.5), search_lib.likeliest_wrong(mean, labels, mean.shape[-1] - 1)


def _fitting(count: int, sizes: tuple[int, ...]) -> int:
    """The smallest size that holds so many, or the largest there is."""
    return min((size for size in sizes if size >= count), default=sizes[0])
