"""AutoAttack: the ensemble by which the field compares robustness, run so that a broken image costs nothing more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import NamedTuple

import jax
import numpy as np

from robustjax.attacks import geometry
from robustjax.attacks._apgd import search as apgd_search
from robustjax.attacks._fab import search as fab_search
from robustjax.attacks._square import search as square_search
from robustjax.attacks.engine import lanes
from robustjax.attacks.engine.lanes import Stage
from robustjax.runtime import compiler
from robustjax.runtime.progress import Progress
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
    checked anew in a forward pass apart from the attack's, in float32 as far as the network's own dtype allows, and
    against ball and box; what fails is no success. An attack's draws are keyed by an image's place among all images, so
    they do not depend on the size of batches; a stochastic network's own noise also depends on batches and lanes.

    On a CPU, most of whose cores a small network's operations leave idle, threads drive up to four batches, "lanes", at
    the same time, and compile the later attacks while the second runs. A function given as `logits_fn` is then traced
    and run in several threads. Settings made by `with`, which threads do not inherit, keep everything to one.

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
        batch_size: images at a time, over all devices, or all threads of a CPU, of 16 at least each; by default 512 on
            each device, and 64 on a CPU, whose caches hold no more.
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
    compiler.check()
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
    num_lanes = lanes.most_lanes(batch_size, sharding)
    sizes = lanes.batch_sizes(batch_size // num_lanes, num_devices)
    run = lanes.Run(network, key, images, labels, epsilon, norm, bounds, eot_samples, sizes, num_lanes, sharding)
    robust, targets = run.classify()
    if np.min(labels) < 0 or np.max(labels) > len(targets):
        given = f"{np.min(labels)} to {np.max(labels)}"
        raise InputError(f"labels: expected classes 0 to {len(targets)}, as there are logits, got {given}")
    adversarial, by_attack = images.copy(), {}
    stages = {name: _stage(name, norm, version, bounds, eot_samples, targets.shape[0]) for name in names}
    costs = [stage.passes for stage in stages.values()]
    most = sum(costs) * int(robust.sum())

    def left(count: int) -> str:
        return f"{count} images left, accuracy {count / len(images):.2%}"

    with (
        lanes.meanwhile() as begin,
        Progress("autoattack", total=most, counted=False, shown=progress is True) as bar,
    ):
        bar.update(0, left(int(robust.sum())))
        for i, (name, stage) in enumerate(stages.items()):
            later = sum(costs[i + 1 :])
            # Most of what the first attack leaves stays to the end, so now the size of later batches is known.
            if i == 1 and num_lanes > 1 and robust.any():
                for coming in list(stages.values())[2:]:
                    begin(run.compile, coming, targets, int(robust.sum()))
            attack = run.attack(stage, jax.random.fold_in(key, ATTACKS.index(name)), targets, np.flatnonzero(robust))
            with closing(attack):
                for broken, points, steps_left in attack:
                    robust[broken] = False
                    adversarial[broken] = points
                    count = int(robust.sum())
                    work = steps_left * stage.cost + later * count
                    bar.update(most - work, left(count), title=name)
                    if callable(progress):
                        progress(name, 1.0 - work / most, count)
            by_attack[name] = robust.copy()
        bar.say(f"autoattack: {left(int(robust.sum()))}")
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
