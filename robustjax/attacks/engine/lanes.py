"""Runs an attack over many images in batches whose slots are refilled; on a CPU several batches at the same time.

A batch has a slot for each image. As soon as an image is misclassified, or its attack is over, another image, or the
same image's next target or restart, takes its slot. What the shapes of batches depend on
(:mod:`robustjax.attacks.engine.sizes`) holds no clock, so no result depends on how busy the machine is.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry
from robustjax.attacks.engine import inputs, output_warnings, threads, verify
from robustjax.attacks.engine import search as search_lib
from robustjax.attacks.engine.hyperplane import nearest_wrong
from robustjax.attacks.engine.search import Search
from robustjax.attacks.engine.sizes import Sizes
from robustjax.attacks.engine.verify import Verified
from robustjax.attacks.eot import expected_logits_fn
from robustjax.types import Array, Key

# Draws at least by which an image of a stochastic network is found misclassified in all.
LEAST_CHECK_DRAWS = 20


class Stage(NamedTuple):
    """One attack of an ensemble.

    Attributes:
        search: a single run, in steps.
        num_targets: wrong classes to aim at one after the other; 1 for an untargeted attack.
        num_restarts: runs of each target.
        chunk: steps per compiled call; success is checked between calls.
        cost: of a step, in forward passes.
        num_linearised: wrong classes whose boundaries are linearised to aim at the nearest ones; 0 to aim at those of
            the largest logits.
    """

    search: Search
    num_targets: int
    num_restarts: int
    chunk: int
    cost: int
    num_linearised: int = 0

    @property
    def num_runs(self) -> int:
        """Runs of an image that stays correctly classified in all of them."""
        return self.num_targets * self.num_restarts

    @property
    def passes(self) -> int:
        """Forward passes of all its runs, and of choosing targets, at most."""
        return self.cost * (self.search.num_steps * self.num_runs + self.num_linearised)


class Report(NamedTuple):
    """The progress of some images since the last report.

    Attributes:
        indices: of images, [n], for which a point was found that is valid and misclassified in some draw.
        points: those points, in the dtype of the images.
        share: float32 [n], share of fresh draws in which they are misclassified; 1 for a deterministic network.
        loss: float32 [n], the attack's own.
        nonfinite: bool [n], whether logits are NaN or infinite there.
        steps: steps that need not be made any more, of all images.
    """

    indices: np.ndarray
    points: np.ndarray
    share: np.ndarray
    loss: np.ndarray
    nonfinite: np.ndarray
    steps: int


class Driver(NamedTuple):
    """What all stages share. Arrays stay on the host; only the current batches are on the device.

    Attributes:
        network, key, images, labels, epsilon, norm, bounds, eot_samples: as :func:`robustjax.attacks.autoattack` was
            given them, checked; images in their own dtype.
        num_draws: draws that decide on a stochastic network in the end.
        sizes: of a lane's batch.
        num_lanes: batches at the same time, each driven by a thread if there are several.
        sharding: of a batch's leading axis, or None.
        attacked_fn: what attacks call: the outputs of ``network``, perhaps with other gradients.
    """

    network: Any
    key: Key
    images: np.ndarray
    labels: np.ndarray
    epsilon: np.ndarray
    norm: str
    bounds: geometry.Bounds
    eot_samples: int
    num_draws: int
    sizes: Sizes
    num_lanes: int
    sharding: jax.sharding.NamedSharding | None
    attacked_fn: Any

    def decide(self, points: np.ndarray, purpose: str = "decide") -> Verified[np.ndarray]:
        """Classifies one point for each image: to "choose" among candidates, or finally to "decide".

        Every call for a purpose has the same draws, none of which an attack has seen. So points that differ from the
        images by nothing have exactly the images' outcome.
        """
        return self._verified(self._key(purpose), np.arange(len(self.images)), points, self.num_draws)

    def output_warnings(self, logits: np.ndarray) -> Iterator[str]:
        """What is wrong with the network's outputs, by these clean logits and a few images."""
        return output_warnings.output_warnings(
            self.network, self._key("output_warnings"), self.images, logits, bounds=self.bounds,
            stochastic=self.eot_samples > 0, size=self.sizes.common[-1], split=self._on_devices,
        )  # fmt: skip

    def attack(self, stage: Stage, key: Key, targets: np.ndarray, indices: np.ndarray) -> Generator[Report, None, None]:
        """Runs a stage on the images with these indices."""
        if stage.num_linearised and len(indices):
            targets = self._nearest(stage.num_targets, targets, indices)
        size = self._size(len(indices))
        num_lanes = min(self.num_lanes, -(-len(indices) // size))
        # Each lane has images of its own: if they shared them, who takes which would depend on the clock.
        queues = [deque(indices[i::num_lanes].tolist()) for i in range(num_lanes)]
        lanes = [
            self._lane(stage, key, targets, queue, size, itertools.count(i, num_lanes))
            for i, queue in enumerate(queues)
        ]
        with contextlib.closing(threads.merged(lanes)) as reports:
            yield from reports

    def compile(self, stage: Stage, targets: np.ndarray, count: int) -> None:
        """Compiles what a stage begins with, if there are so many images, by taking no step."""
        at = np.zeros(self._size(count), np.int32)
        rows = self._rows(stage, targets, at, at)
        fresh, state = np.ones(len(at), bool), _blank(stage.search, *rows[1:])
        arguments = self._on_devices((*rows, at, at, state, fresh))
        _advance(stage.search, self.bounds, self.attacked_fn, self.key, *arguments, np.int32(0), np.int32(0))

    def _lane(
        self, stage: Stage, key: Key, targets: np.ndarray, queue: deque[int], size: int, calls: Iterator[int]
    ) -> Iterator[Report]:
        """Attacks the images of a queue; ``calls`` numbers the compiled calls, over all lanes."""
        num_runs, num_steps = stage.num_runs, stage.search.num_steps
        occupant, run, fresh = np.full(size, -1, np.int32), np.zeros(size, np.int32), np.zeros(size, bool)
        state = None
        for call in calls:
            for slot in np.flatnonzero(occupant < 0)[: len(queue)]:
                occupant[slot], run[slot], fresh[slot] = queue.popleft(), 0, True
            taken = occupant >= 0
            if not taken.any():
                return
            count = np.zeros(size, np.int32) if state is None else np.where(fresh, 0, np.asarray(state.count))
            runs = np.where(taken, num_runs - run, 0)
            passes = stage.cost * int(np.max(runs * num_steps - np.where(taken, count, 0)))
            smaller = self.sizes.smaller(size, int(taken.sum()), passes)
            if smaller < size and state is not None:
                rows = np.argsort(~taken, kind="stable")[:smaller]
                occupant, run, fresh, taken, runs = (a[rows] for a in (occupant, run, fresh, taken, runs))
                state, size = _taken(state, rows), smaller
            rows_of = self._rows(stage, targets, np.where(taken, occupant, occupant[taken][0]), run)
            if state is None:
                state, fresh = _blank(stage.search, *rows_of[1:]), np.ones(size, bool)
            arguments = self._on_devices((*rows_of, run, run % stage.num_restarts, state, fresh))
            steps = np.int32(stage.chunk)
            state = _advance(stage.search, self.bounds, self.attacked_fn, key, *arguments, steps, np.int32(call))
            share, loss = np.asarray(state.best.share), np.asarray(state.best.loss)
            over = np.asarray(state.count) >= num_steps
            ended = taken & (over | (share >= 1.0))
            found = ended & (share > 0.0)
            points, shares, nonfinite = self.images[:0], share[:0], found[:0]
            if found.any():
                points, shares, nonfinite = self._checked(call, occupant[found], np.asarray(state.best.images)[found])
                if self.eot_samples:
                    # The draws of the run were chosen as the worst of many steps. The fresh share takes
                    # their place, and where it is not 1 the run goes on.
                    share = share.copy()
                    share[found] = shares
                    state = state._replace(best=state.best._replace(share=share))
                    ended = taken & (over | (share >= 1.0))
            misclassified = np.zeros(size, bool)
            misclassified[found] = shares >= 1.0
            indices, losses = occupant[found], loss[found]
            fresh = ended
            run = np.where(ended, run + 1, run).astype(np.int32)
            gone = misclassified | (ended & (run >= num_runs))
            occupant[gone], run[gone] = -1, 0
            kept = shares > 0.0
            steps_less = int(runs.sum() - (num_runs - run)[occupant >= 0].sum()) * num_steps
            yield Report(indices[kept], points[kept], shares[kept], losses[kept], nonfinite[kept], steps_less)

    def _checked(self, call: int, rows: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points in the dtype of these images, the share of fresh draws misclassified, 0 for invalid ones, and where
        logits are NaN or infinite.
        """
        num_draws = max(self.eot_samples, LEAST_CHECK_DRAWS) if self.eot_samples else 0
        images = self.images[rows]
        if images.dtype != np.float32:
            points = np.asarray(inputs.in_dtype_of(jnp.asarray(images), jnp.asarray(points), self.bounds))
        found = self._verified(jax.random.fold_in(self._key("check"), call), rows, points, num_draws)
        nonfinite = verify.has_no_maximum(found.logits)
        return points, np.where(found.valid, found.share, 0.0), nonfinite

    def _verified(self, key: Key, rows: np.ndarray, points: np.ndarray, num_draws: int) -> Verified[np.ndarray]:
        """:func:`verify.verify` of points for the images of these rows, compiled for one size."""
        size, parts = self._size(len(self.images)), []
        for start in range(0, len(rows), size):
            part = np.arange(start, min(start + size, len(rows)))
            padded = np.resize(part, size)
            at = rows[padded]
            batch = self._on_devices((self.images[at], points[padded], self.labels[at], self.epsilon[at]))
            options = {"norm": self.norm, "bounds": self.bounds, "num_draws": num_draws}
            found = _verify(self.network, jax.random.fold_in(key, start), *batch, **options)
            parts.append(_taken(found, np.arange(len(part))))
        return jax.tree.map(lambda *values: np.concatenate(values), *parts)

    def _nearest(self, count: int, targets: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Targets [count, N] with those of these images in the order of their linearised boundaries."""
        targets, size = targets[:count].copy(), self._size(len(indices))
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            at = np.resize(part, size)
            batch = self._on_devices((self.images[at], self.labels[at]))
            options = {"count": count, "norm": self.norm, "eot_samples": self.eot_samples}
            found = _nearest_wrong(self.attacked_fn, jax.random.fold_in(self._key("targets"), start), *batch, **options)
            targets[:, part] = np.asarray(found)[:, : len(part)]
        return targets

    def _rows(self, stage: Stage, targets: np.ndarray, at: np.ndarray, run: np.ndarray) -> tuple[np.ndarray, ...]:
        """What images are attacked with: their number, pixels, label, target and epsilon."""
        return at, self.images[at], self.labels[at], targets[run // stage.num_restarts, at], self.epsilon[at]

    def _size(self, count: int) -> int:
        return self.sizes.first(count, self.num_lanes)

    def _on_devices(self, tree: Any) -> Any:
        """Arrays [B, ...], divided between the devices."""
        return tree if self.sharding is None else jax.device_put(tree, self.sharding)

    def _key(self, purpose: str) -> Key:
        return jax.random.fold_in(
            self.key, {"decide": 101, "check": 102, "output_warnings": 103, "targets": 104, "choose": 105}[purpose]
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _advance(
    search: Search, bounds: geometry.Bounds, network: Any, key: Key, at: Array, images: Array, labels: Array,
    targets: Array, epsilon: Array, run: Array, restart: Array, state: Any, fresh: Array, num_steps: Array, call: Array,
) -> Any:  # fmt: skip
    """Begins the fresh rows and takes so many steps in all."""
    keys = search_lib.run_keys(jax.vmap(jax.random.fold_in, (None, 0))(key, at), run)
    problem = search_lib.problem(keys, images.astype(jnp.float32), labels, targets, epsilon, restart)
    begun = search.start(search.options, problem)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(fresh.reshape(fresh.shape + (1,) * (new.ndim - 1)), new, old)

    def in_own_dtype(points: Array, *keys: Key) -> Any:
        return network(inputs.in_dtype_of(images, points, bounds), *keys)

    state = jax.tree.map(choose, begun, state)
    network_key = jax.random.fold_in(search_lib.network_key(key), call)
    return search_lib.advance(search, in_own_dtype, network_key, problem, state, num_steps)


@functools.partial(jax.jit, static_argnames=("norm", "bounds", "num_draws"))
def _verify(network: Any, key: Key, images: Array, points: Array, labels: Array, epsilon: Array, **options: Any):
    return verify.verify(network, key, images, points, labels, epsilon=epsilon, **options)


@functools.partial(jax.jit, static_argnames=("count", "norm", "eot_samples"))
def _nearest_wrong(
    network: Any, key: Key, images: Array, labels: Array, *, count: int, norm: str, eot_samples: int
) -> Array:
    def in_own_dtype(points: Array, *keys: Key) -> Any:
        return network(points.astype(images.dtype), *keys)

    logits_fn = expected_logits_fn(in_own_dtype, key, num_samples=eot_samples)
    return nearest_wrong(logits_fn, images.astype(jnp.float32), labels, count, norm=norm)


def _taken(tree: Any, rows: np.ndarray) -> Any:
    """Some rows of a pytree of arrays, on the host."""
    return jax.tree.map(lambda values: np.asarray(values)[rows], tree)


def _blank(search: Search, images: np.ndarray, labels: np.ndarray, targets: np.ndarray, epsilon: np.ndarray) -> Any:
    """A state for every row to be begun over."""

    def begin(images: Array, labels: Array, targets: Array, epsilon: Array) -> Any:
        images = images.astype(jnp.float32)
        return search.start(search.options, search_lib.problem(jax.random.key(0), images, labels, targets, epsilon))

    return jax.tree.map(
        lambda rest: np.zeros(rest.shape, rest.dtype), jax.eval_shape(begin, images, labels, targets, epsilon)
    )
