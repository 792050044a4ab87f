"""AutoAttack: the ensemble by which the field compares robustness, run so that a broken image costs nothing more."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry, verify
from robustjax.attacks import search as search_lib
from robustjax.attacks.apgd import search as apgd_search
from robustjax.attacks.fab import search as fab_search
from robustjax.attacks.progress import Bar
from robustjax.attacks.search import Search
from robustjax.attacks.square import search as square_search
from robustjax.types import Array, InputError, Key, LogitsFn

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
RAND_EOT_SAMPLES = 20
# A CPU is quickest where a batch's activations stay in its caches.
DEFAULT_BATCH_SIZE, DEFAULT_BATCH_SIZE_ON_CPU = 512, 64
# Batches come in few sizes, each a quarter of the one before: every size compiles every attack once more.
SHRINK, SMALLEST_BATCH = 4, 16
# Seconds that a smaller batch must promise to save: what compiling for it may take.
WORTH_COMPILING = 5.0


class AutoAttackResult(NamedTuple):
    """What is left of a network's accuracy.

    Attributes:
        images: float32 [N, H, W, C], adversarial where one was found, else as given.
        robust: bool [N], correctly classified as given, and no attack succeeded.
        by_attack: attack's name -> bool [N], what was robust after it and all before it, in their order.
    """

    images: np.ndarray
    robust: np.ndarray
    by_attack: dict[str, np.ndarray]


class Stage(NamedTuple):
    """One attack of the ensemble.

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
    def passes(self) -> int:
        """Forward passes of all its runs."""
        return self.cost * self.search.num_steps * self.num_targets * self.num_restarts


def autoattack(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    norm: str = "linf",
    version: str | Sequence[str] = "standard",
    batch_size: int | None = None,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int | None = None,
    sharding: jax.sharding.NamedSharding | None = None,
    progress: bool | Callable[[str, float, int], None] = False,
) -> AutoAttackResult:
    """AutoAttack (Croce and Hein 2020, arXiv 2003.01690): each attack sees only what survived those before.

    This is a driver on the host and compiles by itself, each attack once for each of a few batch sizes; call it outside
    `jit`, with all images at once. Attacks run in steps, and a batch has a slot per image: as soon as an image is
    broken, or its attack is over, the next one (or the image's next target or restart) takes its slot. Every success is
    checked anew in a float32 forward pass apart from the attack's, against ball and box as well; what fails is no
    success. Draws are keyed by an image's place among all images, so they do not depend on the size of batches.

    Args:
        logits_fn: images -> logits [B, K], K >= 2; with EOT, (images, key) -> logits. Given as
            `jax.tree_util.Partial(apply, variables)`, the variables are arguments of what is compiled: other variables
            of the same shapes compile nothing.
        key: a typed key.
        images: float [N, H, W, C] inside bounds.
        labels: integers [N]. Images that are misclassified as they are count as broken, and are not attacked.
        epsilon: radius of the ball, a number >= 0 or one per image [N].
        norm: "linf", "l2" or "l1".
        version: "standard": apgd-ce, apgd-t, fab-t, square; "plus": further apgd-dlr and untargeted fab, with five
            restarts; "rand", for stochastic networks: apgd-ce and apgd-dlr with 20 EOT samples in gradient, loss and
            acceptance; or a list of attacks' names. In l1 apgd-ce restarts five times and apgd-t takes five targets, as
            published.
        batch_size: images at a time, over all devices; by default 512 on each, and 64 on a CPU, whose caches hold no
            more.
        bounds: box of valid pixels.
        eot_samples: for stochastic networks outside "rand". An image is then broken where more than half of as many
            fresh draws are misclassified.
        sharding: how the leading axis of a batch is split between devices, which divide batch_size; by default one
            device does it all. Weights in a `Partial` are copied to each.
        progress: show a bar with the images left, the accuracy so far and the time to go; or a function that is told
            the attack's name, the share of the work that is done, at least, and the number of images left.

    Returns:
        An `AutoAttackResult` of NumPy arrays.

    Raises:
        InputError: for an unknown version, attack or norm, images outside bounds or not finite, labels that are not
            classes, or arguments of the wrong shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 2.0)], axis=1)
        >>> images = jnp.stack([jnp.full((2, 2, 1), 0.55), jnp.full((2, 2, 1), 0.8)])
        >>> result = autoattack(linear, jax.random.key(0), images, jnp.array([0, 0]), epsilon=0.1, version=["apgd-ce"])
        >>> result.robust
        array([False,  True])
    """
    images, labels, epsilon = checked(images, labels, epsilon, norm, bounds)
    names = VERSIONS.get(version) if isinstance(version, str) else tuple(version)
    if not names or not set(names) <= set(ATTACKS):
        raise InputError(
            f"version: expected one of {', '.join(VERSIONS)}, or a list of {', '.join(ATTACKS)}, got {version!r}"
        )
    if eot_samples is None:
        eot_samples = RAND_EOT_SAMPLES if version == "rand" else 0
    num_devices = 1 if sharding is None else sharding.num_devices
    batch_size = default_batch_size() * num_devices if batch_size is None else batch_size
    if batch_size < 1 or batch_size % num_devices:
        devices = "" if num_devices == 1 else f" and a multiple of the {num_devices} devices"
        raise InputError(f"batch_size: expected at least 1{devices}, got {batch_size}")
    network = logits_fn if isinstance(logits_fn, jax.tree_util.Partial) else jax.tree_util.Partial(logits_fn)
    if sharding is not None:
        network = jax.device_put(network, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))
    sizes = _sizes(batch_size, num_devices)
    run = _Run(network, key, images, labels, epsilon, norm, bounds, eot_samples, sizes, sharding)
    robust, targets = run.classify()
    if np.min(labels) < 0 or np.max(labels) > len(targets):
        given = f"{np.min(labels)} to {np.max(labels)}"
        raise InputError(f"labels: expected classes 0 to {len(targets)}, as there are logits, got {given}")
    adversarial, by_attack = images.copy(), {}
    stages = {name: _stage(name, norm, version, bounds, eot_samples, targets.shape[0]) for name in names}
    costs = [stage.passes for stage in stages.values()]
    most = sum(costs) * int(robust.sum())
    with Bar(enabled=progress is True, num_images=len(images)) as bar:
        for i, (name, stage) in enumerate(stages.items()):
            later = sum(costs[i + 1 :])
            attack = run.attack(stage, jax.random.fold_in(key, ATTACKS.index(name)), targets, np.flatnonzero(robust))
            for broken, points, left in attack:
                robust[broken] = False
                adversarial[broken] = points
                count = int(robust.sum())
                work = left * stage.cost + later * count
                bar.update(name, left=work, robust=count)
                if callable(progress):
                    progress(name, 1.0 - work / most, count)
            by_attack[name] = robust.copy()
    return AutoAttackResult(adversarial, robust, by_attack)


def default_batch_size() -> int:
    """Images at a time on one device, if a caller does not say."""
    return DEFAULT_BATCH_SIZE_ON_CPU if jax.default_backend() == "cpu" else DEFAULT_BATCH_SIZE


def most_passes(*, norm: str, version: str, num_classes: int, eot_samples: int = 0) -> int:
    """Forward passes that an image costs which withstands everything, a gradient counting as two further ones.

    Example:
        >>> most_passes(norm="linf", version="standard", num_classes=10)
        11630
    """
    stages = [_stage(name, norm, version, (0.0, 1.0), eot_samples, num_classes - 1) for name in VERSIONS[version]]
    return sum(stage.passes for stage in stages)


class _Run(NamedTuple):
    """What all stages share. Arrays are on the host; only what is worked on is on the device."""

    network: Any
    key: Key
    images: np.ndarray
    labels: np.ndarray
    epsilon: np.ndarray
    norm: str
    bounds: geometry.Bounds
    eot_samples: int
    sizes: tuple[int, ...]
    sharding: jax.sharding.NamedSharding | None

    def classify(self) -> tuple[np.ndarray, np.ndarray]:
        """Which images are correctly classified as they are [N], and their likeliest wrong classes [R, N]."""
        correct, targets = [], []
        for start in range(0, len(self.images), self.sizes[0]):
            rows = np.arange(start, min(start + self.sizes[0], len(self.images)))
            padded = np.resize(rows, _fitting(len(rows), self.sizes))
            batch = self._split((self.images[padded], self.labels[padded]))
            wrong, ranked = _classify(self.network, self._key("clean"), *batch, eot_samples=self.eot_samples)
            correct.append(~np.asarray(wrong)[: len(rows)])
            targets.append(np.asarray(ranked)[:, : len(rows)])
        return np.concatenate(correct), np.concatenate(targets, axis=1)

    def attack(
        self, stage: Stage, key: Key, targets: np.ndarray, alive: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Runs a stage; yields images' indices as they break, their adversarial points, and steps still to be made."""
        num_runs, num_steps = stage.num_targets * stage.num_restarts, stage.search.num_steps
        waiting = deque(alive.tolist())
        size = _full(len(waiting), self.sizes)
        occupant, run, fresh = np.full(size, -1), np.zeros(size, np.int32), np.zeros(size, bool)
        state, looks, seconds_a_step = None, 0, 0.0
        while True:
            for slot in np.flatnonzero(occupant < 0)[: len(waiting)]:
                occupant[slot], run[slot], fresh[slot] = waiting.popleft(), 0, True
            taken = occupant >= 0
            if not taken.any():
                return
            count = np.zeros(size, np.int32) if state is None else np.where(fresh, 0, np.asarray(state.count))
            to_go = np.where(taken, (num_runs - run) * num_steps - count, 0)
            smaller = _fitting(int(taken.sum()), self.sizes)
            if smaller < size and seconds_a_step * to_go.max() * (1 - smaller / size) > WORTH_COMPILING:
                rows = np.argsort(~taken, kind="stable")[:smaller]
                occupant, run, fresh, taken = occupant[rows], run[rows], fresh[rows], taken[rows]
                state, size = _taken(state, rows), smaller
            at = np.where(taken, occupant, alive[0])
            rows_of = (at, self.images[at], self.labels[at], targets[run // stage.num_restarts, at], self.epsilon[at])
            if state is None:
                state, fresh = _blank(stage.search, *rows_of[1:]), np.ones(size, bool)
            rows_of, *changing = self._split((rows_of, run, run % stage.num_restarts, state, fresh))
            started = time.perf_counter()
            state = _advance(stage.search, self.network, key, *rows_of, *changing, stage.chunk, np.int32(looks))
            looks += 1
            fresh = np.zeros(size, bool)
            share, over = np.asarray(state.best.share), np.asarray(state.count) >= num_steps
            # The quickest so far, as the first includes compilation.
            seconds = (time.perf_counter() - started) / stage.chunk
            seconds_a_step = min(seconds, seconds_a_step) if looks > 1 else seconds
            ended = taken & (over | (share >= 1.0))
            broken = ended & (share > 0.5)
            if broken.any():
                points = state.best.images
                verdict = _verify(
                    self.network, jax.random.fold_in(self._key("verify"), looks), rows_of[1], points, rows_of[2],
                    rows_of[4], norm=self.norm, bounds=self.bounds, eot_samples=self.eot_samples,
                )  # fmt: skip
                broken = broken & np.asarray(verdict)
            indices = occupant[broken]
            run = np.where(ended, run + 1, run).astype(np.int32)
            fresh |= ended
            gone = broken | (ended & (run >= num_runs))
            occupant[gone], run[gone] = -1, 0
            left = (len(waiting) * num_runs + int((num_runs - run)[occupant >= 0].sum())) * num_steps
            yield indices, np.asarray(state.best.images)[broken] if broken.any() else self.images[:0], left

    def _split(self, tree: Any) -> Any:
        """Arrays [B, ...] shared by the devices."""
        return tree if self.sharding is None else jax.device_put(tree, self.sharding)

    def _key(self, purpose: str) -> Key:
        return jax.random.fold_in(self.key, {"clean": 101, "verify": 102}[purpose])


@functools.partial(jax.jit, static_argnums=(0,))
def _advance(
    search: Search, network: Any, key: Key, at: Array, images: Array, labels: Array, targets: Array, epsilon: Array,
    run: Array, restart: Array, state: Any, fresh: Array, num_steps: Array, looks: Array,
) -> Any:  # fmt: skip
    """Begins the fresh rows and takes so many steps in all."""
    keys = search_lib.run_keys(jax.vmap(jax.random.fold_in, (None, 0))(key, at), run)
    posed = search_lib.problem(keys, images, labels, targets, epsilon, restart)
    begun = search.start(search.options, posed)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(fresh.reshape(fresh.shape + (1,) * (new.ndim - 1)), new, old)

    state = jax.tree.map(choose, begun, state)
    network_key = jax.random.fold_in(search_lib.network_key(key), looks)
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


@functools.partial(jax.jit, static_argnames=("eot_samples",))
def _classify(network: Any, key: Key, images: Array, labels: Array, *, eot_samples: int) -> tuple[Array, Array]:
    """Which rows are misclassified, and the likeliest wrong classes [R, B]."""
    share, mean = _judged(network, key, images, labels, eot_samples)
    return share > 0.5, search_lib.likeliest_wrong(mean, labels, mean.shape[-1] - 1)


@functools.partial(jax.jit, static_argnames=("norm", "bounds", "eot_samples"))
def _verify(
    network: Any, key: Key, images: Array, points: Array, labels: Array, epsilon: Array, *,
    norm: str, bounds: geometry.Bounds, eot_samples: int,
) -> Array:  # fmt: skip
    """Which rows are what an attack says they are: valid, and misclassified."""
    valid = verify.is_valid(images, points, epsilon=epsilon, norm=norm, bounds=bounds)
    return valid & (_judged(network, key, points, labels, eot_samples)[0] > 0.5)


def _judged(network: Any, key: Key, images: Array, labels: Array, eot_samples: int) -> tuple[Array, Array]:
    """The share of draws that are misclassified [B], and the mean logits, in full float32."""

    def draw(arguments: tuple) -> tuple[Array, Array]:
        outputs = network(images, *arguments)
        logits = getattr(outputs, "logits", outputs)
        if not isinstance(logits, jax.Array) or logits.ndim != 2 or logits.shape[1] < 2:
            given = f"shape {list(logits.shape)}" if isinstance(logits, jax.Array) else type(logits).__name__
            raise InputError(f"logits_fn: expected logits [B, K] with K >= 2, got {given}")
        logits = logits.astype(jnp.float32)
        return ~verify.is_correct(logits, labels), logits

    with jax.default_matmul_precision("float32"):
        if eot_samples == 0:
            wrong, logits = draw(())
            return wrong.astype(jnp.float32), logits
        wrong, logits = jax.lax.map(lambda key: draw((key,)), jax.random.split(key, eot_samples))
        return jnp.mean(wrong.astype(jnp.float32), axis=0), jnp.mean(logits, axis=0)


def _stage(
    name: str, norm: str, version: str | Sequence[str], bounds: geometry.Bounds, eot_samples: int, num_wrong: int
) -> Stage:
    common = {"norm": norm, "bounds": bounds, "eot_samples": eot_samples}
    restarts = 5 if version == "plus" else 1
    passes = max(eot_samples, 1)
    if name == "square":
        return Stage(square_search(num_queries=5000, **common), 1, 1, chunk=100, cost=passes)
    if name == "fab":
        search = fab_search(targeted=False, num_steps=100, **common)
        return Stage(search, 1, restarts, chunk=10, cost=2 * (1 + num_wrong) * passes)
    if name == "fab-t":
        search = fab_search(targeted=True, num_steps=100, **common)
        return Stage(search, min(9, num_wrong), 1, chunk=10, cost=4 * passes)
    loss = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}[name]
    search = apgd_search(loss=loss, num_steps=100, **common)
    if name == "apgd-t":
        return Stage(search, min(5 if norm == "l1" else 9, num_wrong), 1, chunk=10, cost=3 * passes)
    if norm == "l1" and name == "apgd-ce" and version == "standard":
        restarts = 5
    return Stage(search, 1, restarts, chunk=10, cost=3 * passes)


def _sizes(largest: int, num_devices: int) -> tuple[int, ...]:
    """Batch sizes, falling, that the devices can share."""
    least = -(-SMALLEST_BATCH // num_devices)
    sizes = [largest // num_devices]
    while sizes[-1] > least:
        sizes.append(max(-(-sizes[-1] // SHRINK), least))
    return tuple(size * num_devices for size in sizes)


def _fitting(count: int, sizes: tuple[int, ...]) -> int:
    """The smallest size that holds so many, or the largest there is."""
    return min((size for size in sizes if size >= count), default=sizes[0])


def _full(count: int, sizes: tuple[int, ...]) -> int:
    """The size to begin with: one that is at least three quarters full, or the smallest."""
    return next((size for size in sizes if count >= 0.75 * size), sizes[-1])


def checked(
    images: Array, labels: Array, epsilon: Array | float, norm: str, bounds: geometry.Bounds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays on the host, float32 and int32."""
    if norm not in geometry.GEOMETRIES:
        raise InputError(f"norm: expected one of {', '.join(geometry.GEOMETRIES)}, got {norm!r}")
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating) or not len(images):
        raise InputError(f"images: expected floats [N, H, W, C] with N >= 1, got {images.dtype} {list(images.shape)}")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels: expected integers [{len(images)}], got {labels.dtype} {list(labels.shape)}")
    if not (np.min(images) >= bounds[0] and np.max(images) <= bounds[1]):  # NaN fails as well
        raise InputError(
            f"images: expected pixels in {list(bounds)}, got [{np.min(images)}, {np.max(images)}]; "
            "scale them, or give bounds"
        )
    epsilon = np.asarray(epsilon, np.float32)
    if epsilon.ndim and epsilon.shape != labels.shape:
        raise InputError(f"epsilon: expected a number or [{len(images)}], got {list(epsilon.shape)}")
    if not np.all(epsilon >= 0):
        raise InputError(f"epsilon: expected at least 0, got {np.min(epsilon)}")
    return images.astype(np.float32), labels.astype(np.int32), np.broadcast_to(epsilon, labels.shape)
