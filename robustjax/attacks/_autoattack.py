"""AutoAttack, the ensemble by which the field compares robustness; each attack runs on what the earlier ones left."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import transforms
from robustjax.attacks import geometry
from robustjax.attacks._apgd import search as apgd_search
from robustjax.attacks._autoattack_result import AutoAttackResult
from robustjax.attacks._fab import search as fab_search
from robustjax.attacks._square import search as square_search
from robustjax.attacks.engine import inputs, lanes, threads
from robustjax.attacks.engine import sizes as sizes_lib
from robustjax.attacks.engine.candidates import Candidates
from robustjax.attacks.engine.hyperplane import NUM_LINEARISED
from robustjax.attacks.engine.lanes import Stage
from robustjax.attacks.engine.output_warnings import not_finite
from robustjax.attacks.engine.precision import with_gradients_of
from robustjax.attacks.engine.search import likeliest_wrong
from robustjax.attacks.engine.verify import Acceptance, is_misclassified
from robustjax.runtime import compiler
from robustjax.runtime.progress import Progress
from robustjax.types import AnyArray, InputError, Key, LogitsFn

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "fast": ("apgd-ce", "apgd-t"),
}
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
RAND_EOT_SAMPLES = 20
# Classes that "fast" aims at, of those whose linearised boundaries are nearest.
FAST_TARGETS = 4
# Points of each image that are kept for the decision on a stochastic network.
NUM_CANDIDATES = 3
# A CPU is quickest where a batch's activations stay in its caches.
DEFAULT_BATCH_SIZE, DEFAULT_BATCH_SIZE_ON_CPU = 512, 64


def autoattack(
    logits_fn: LogitsFn,
    key: Key,
    images: AnyArray,
    labels: AnyArray,
    *,
    epsilon: AnyArray | float,
    norm: str = "linf",
    version: str | Sequence[str] = "standard",
    batch_size: int | None = None,
    bounds: geometry.Bounds = (0.0, 1.0),
    bfloat16_fn: LogitsFn | None = None,
    eot_samples: int | None = None,
    num_draws: int = 200,
    sharding: jax.sharding.NamedSharding | None = None,
    quicken: bool = True,
    progress: bool | Callable[[str, float, int], None] = False,
) -> AutoAttackResult:
    """AutoAttack (Croce and Hein 2020, arXiv 2003.01690): each attack runs on the images that the earlier ones left.

    This driver runs on the host and compiles by itself, each attack once for each of a few batch sizes. Call it outside
    ``jit``, with all images at once. Attacks run in steps, and a batch has a slot for each image: as soon as an image
    is misclassified, or its attack is over, the next one (or the image's next target or restart) takes its slot. Every
    success is verified in a forward pass apart from the attack's, in float32 as far as the network's own dtype allows,
    and against ball and box; images that fail do not count. An attack's draws are keyed by an image's place among all
    images, so they do not depend on the size of batches; a stochastic network's own noise also depends on batches and
    lanes.

    Of a stochastic network the strongest candidates of each image, by the share of fresh draws that misclassify them,
    are kept over all attacks. An image leaves the queue of later attacks only if all of at least 20 fresh draws
    misclassify a candidate: chance alone does that to an image that is right in most draws less than once in a million
    times, so no attack misses an image that it could have attacked. In the end ``num_draws`` draws that no attack has
    seen choose one candidate of each image, and as many others decide by majority on it and on the image as it was:
    attacks that move nothing change nothing, and more attacks do not mean more chances.

    On a CPU, most of whose cores a small network's operations leave idle, threads drive up to four batches, "lanes", at
    the same time, and compile the later attacks while the second runs. A function given as ``logits_fn`` is then traced
    and run in several threads. Settings made by ``with``, which threads do not inherit, keep everything to one.

    Args:
        logits_fn: images -> logits [B, K], K >= 2, or outputs that carry them as ``.logits``; with EOT, (images, key)
            -> those. Given as ``jax.tree_util.Partial(apply, variables)``, the variables are arguments of what is
            compiled: other variables of the same shapes compile nothing. A function that reads what has changed since
            the last call is compiled anew; one within a ``jax.jit`` of the caller's keeps what it read when it was
            traced, as with JAX everywhere.
        key: a typed key, as of ``jax.random.key(seed)``.
        images: float [N, H, W, C] inside bounds. The network is called in the dtype given; attacks compute in float32.
            Without any image the result is empty.
        labels: integers [N]. Images that are misclassified as they are count as not robust, and are not attacked.
        epsilon: radius of the ball, a number >= 0 or one for each image [N].
        norm: "linf", "l2" or "l1".
        version: "standard": apgd-ce, apgd-t, fab-t, square; "plus": further apgd-dlr and untargeted fab, with five
            restarts; "rand", for stochastic networks: apgd-ce and apgd-dlr with 20 EOT samples in gradient and loss;
            "fast": apgd-ce, and apgd-t against the few classes whose linearised decision boundaries are nearest (MALT,
            Melamed et al. 2024, arXiv 2407.02240), with no attack that does without gradients, so that it overrates
            networks that hide theirs; or a list of attacks' names. In l1 "standard" restarts apgd-ce five
            times and its apgd-t takes five targets, as published.
        batch_size: images at a time, over all devices, or all threads of a CPU, of 16 at least each; by default 512 on
            each device, and 64 on a CPU, whose caches hold no more. Smaller ones are used where few images are left.
        bounds: box of valid pixels: two numbers, or two arrays of one number for each channel.
        bfloat16_fn: the same network computing in bfloat16, called as ``logits_fn`` is: attacks take gradients through
            it, at the logits of ``logits_fn``, which alone decide on losses, step sizes and success. For devices with
            bfloat16 units; a CPU imitates it, at more time than is saved. None, everywhere the default: no half
            precision.
        eot_samples: for stochastic networks outside "rand": draws over which each gradient and loss are averaged.
        num_draws: for stochastic networks: fresh draws that decide in the end. A network that is right in 60 % of draws
            is right by majority of 200 draws on 997 of 1000 images, of 20 draws on 755.
        sharding: how the leading axis of a batch is split between devices, which divide batch_size; by default one
            device does it all. Weights in a ``Partial`` are copied to each. The network is called on Auto axes,
            whatever those of its mesh, or of a mesh that ``jax.set_mesh`` sets, are.
        quicken: run the network by :func:`robustjax.transforms.quicken`: the same outputs and gradients to rounding, in
            less time on a CPU if it is not of this library.
        progress: show a bar with the images left, the accuracy so far and the time to go; or a function that is called
            with the attack's name, the share of the work that is done, at least, and the number of images left.

    Returns:
        An :class:`AutoAttackResult` of NumPy arrays.

    Raises:
        InputError: for an unknown version, attack or norm, images outside bounds or not finite, labels that are not
            classes, outputs of ``bfloat16_fn`` unlike those of ``logits_fn``, or arguments of the wrong shape, dtype or
            value.

    Warns:
        UserWarning: where logits are NaN (which counts as misclassified) or infinite, or where outputs are
            probabilities, differ between two calls of a network that was not declared to be stochastic, or change with
            the rest of the batch.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 2.0)], axis=1)
        >>> images = jnp.stack([jnp.full((2, 2, 1), 0.55), jnp.full((2, 2, 1), 0.8)])
        >>> result = autoattack(linear, jax.random.key(0), images, jnp.array([0, 0]), epsilon=0.1, version=["apgd-ce"])
        >>> result.robust
        array([False,  True])
    """
    compiler.check()
    inputs.check_key(key)
    images, labels, epsilon, bounds = inputs.on_host(
        images, labels, epsilon, norm, bounds, keep_dtype=True, allow_empty=True
    )
    names = attack_names(version)
    if not names:
        wanted = f"one of {', '.join(VERSIONS)}, or a list of {', '.join(ATTACKS)}"
        raise InputError(f"version must be {wanted}, got {version!r}; choose among these")
    if eot_samples is None:
        eot_samples = RAND_EOT_SAMPLES if version == "rand" else 0
    inputs.static(0, eot_samples=eot_samples)
    inputs.static(1, num_draws=num_draws)
    inputs.are_flags(quicken=quicken)
    if not isinstance(sharding, jax.sharding.NamedSharding | None):
        wanted = "a jax.sharding.NamedSharding or None"
        raise InputError(f"sharding must be {wanted}, got {sharding!r}; leave it out for one device")
    mesh = None
    if sharding is not None:  # jax.make_mesh makes axes explicit, which a network of the user's need not know
        mesh = jax.sharding.Mesh(np.asarray(sharding.mesh.devices), sharding.mesh.axis_names)
        sharding = jax.sharding.NamedSharding(mesh, sharding.spec)
    num_devices = 1 if sharding is None else sharding.num_devices
    batch_size = default_batch_size() * num_devices if batch_size is None else batch_size
    inputs.static(1, batch_size=batch_size)
    if batch_size % num_devices:
        wanted = f"a multiple of the {num_devices} devices"
        raise InputError(f"batch_size must be {wanted}, got {batch_size}; give for example {num_devices}")
    if not len(images):
        return AutoAttackResult(images, np.zeros(0, bool), {name: np.zeros(0, bool) for name in names})
    keys = (key,) if eot_samples else ()
    inputs.check_network(logits_fn, images, keys, eot_samples)
    if bfloat16_fn is not None:
        inputs.check_network(bfloat16_fn, images, keys, eot_samples, name="bfloat16_fn")
    coarse = inputs.as_pytree(bfloat16_fn)
    network = inputs.as_pytree(logits_fn)
    heavy = sizes_lib.is_heavy(network, images[:1], keys)
    if quicken:
        network = transforms.quicken(network)
    with threads.set_mesh(mesh):
        if sharding is not None:
            everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
            network, coarse, key, keys = jax.device_put((network, coarse, key, keys), everywhere)
        attacked_fn = network
        if coarse is not None:
            attacked_fn = jax.tree_util.Partial(with_gradients_of, coarse, network)
            jax.eval_shape(attacked_fn, images[:1], *keys)  # which checks its outputs
        num_lanes = threads.most_lanes(batch_size, sharding, least=sizes_lib.SMALLEST_BATCH)
        sizes = sizes_lib.sizes_of(batch_size // num_lanes, num_devices, heavy=heavy)
        num_draws = num_draws if eot_samples else 0
        driver = lanes.Driver(
            network, key, images, labels, epsilon, norm, bounds, eot_samples, num_draws, sizes, num_lanes, sharding,
            attacked_fn,
        )  # fmt: skip
        with inputs.blaming("logits_fn", logits_fn, images[:2], *keys):
            as_given = driver.decide(images)
        num_classes = as_given.logits.shape[1]
        inputs.labels_in_range(labels, num_classes)
        for warning in driver.output_warnings(as_given.logits):
            warnings.warn(warning, stacklevel=2)
        correct = ~as_given.misclassified
        targets = np.asarray(likeliest_wrong(jnp.asarray(as_given.logits), jnp.asarray(labels), num_classes - 1))
        stages = {name: _stage(name, norm, version, bounds, eot_samples, num_classes - 1) for name in names}
        candidates = Candidates(images, NUM_CANDIDATES if eot_samples else 1)
        attacked, nonfinite = correct.copy(), np.zeros(len(images), bool)
        costs = [stage.passes for stage in stages.values()]
        most = sum(costs) * int(attacked.sum())

        def left(count: int) -> str:
            return f"{count} images left, accuracy {count / len(images):.2%}"

        with (
            inputs.blaming("logits_fn", logits_fn, images[:2], *keys),
            threads.Background() as background,
            Progress("autoattack", total=most, counted=False, shown=progress is True) as bar,
        ):
            bar.update(0, left(int(attacked.sum())))
            for i, (name, stage) in enumerate(stages.items()):
                later = sum(costs[i + 1 :])
                # Most of what the first attack leaves stays to the end, so now the size of later batches is known.
                if i == 1 and num_lanes > 1 and attacked.any() and not sizes.any_size:
                    for coming in list(stages.values())[2:]:
                        background.begin(driver.compile, coming, targets, int(attacked.sum()))
                rows = np.flatnonzero(attacked)
                steps_left = len(rows) * stage.num_runs * stage.search.num_steps
                attack = driver.attack(stage, jax.random.fold_in(key, ATTACKS.index(name)), targets, rows)
                with closing(attack):
                    for report in attack:
                        background.check()
                        candidates.add(name, report.indices, report.points, report.share, report.loss)
                        attacked[report.indices[report.share >= 1.0]] = False
                        nonfinite[report.indices] |= report.nonfinite
                        steps_left -= report.steps
                        count = int(attacked.sum())
                        work = steps_left * stage.cost + later * count
                        bar.update(most - work, left(count), title=name)
                        if callable(progress):
                            progress(name, 1.0 - work / most, count)
            if eot_samples:
                candidates.choose(lambda points: driver.decide(points, "choose").share)
            # From the last attack to the first: what is robust after all attacks was robust before.
            robust, by_attack, worst = np.zeros(len(images), bool), {}, as_given.share
            strongest = candidates.strongest()
            for i, name in reversed(list(enumerate(stages))):
                found = candidates.strongest(list(stages)[: i + 1])
                share = driver.decide(found.points).share if eot_samples else found.share
                worst = share if not by_attack else worst
                robust = robust | (correct & ~is_misclassified(share))
                by_attack[name] = robust
            by_attack = dict(reversed(by_attack.items()))
            robust = by_attack[names[-1]]
            bar.say(f"autoattack: {left(int(robust.sum()))}")
        if nonfinite.any():
            warnings.warn(not_finite(int(nonfinite.sum()), len(images), "adversarial images"), stacklevel=2)
        adversarial = np.where((correct & ~robust)[:, None, None, None], strongest.points, images)
        shares = {"clean": as_given.share, "worst_case": worst} if eot_samples else {}
        acceptance = {name: Acceptance.of(share, num_draws) for name, share in shares.items()}
        return AutoAttackResult(adversarial, robust, by_attack, acceptance)


def default_batch_size() -> int:
    """The default number of images at a time on one device."""
    return DEFAULT_BATCH_SIZE_ON_CPU if jax.default_backend() == "cpu" else DEFAULT_BATCH_SIZE


def attack_names(version: Any) -> tuple[str, ...]:
    """The attacks of a version, or those that are listed; empty where the version is unknown or one of them is."""
    if isinstance(version, str):
        return VERSIONS.get(version, ())
    names = tuple(version) if isinstance(version, list | tuple) else ()
    return names if all(name in ATTACKS for name in names) else ()


def most_passes(*, norm: str, version: str | Sequence[str], num_classes: int, eot_samples: int = 0) -> int:
    """Forward passes for an image that is robust against every attack; a gradient counts as two further ones.

    Example:
        >>> most_passes(norm="linf", version="standard", num_classes=10)
        11630
    """
    stages = [_stage(name, norm, version, (0.0, 1.0), eot_samples, num_classes - 1) for name in attack_names(version)]
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
        num_targets = FAST_TARGETS if version == "fast" else 5 if norm == "l1" else 9
        num_linearised = min(NUM_LINEARISED, num_wrong) if version == "fast" else 0
        return Stage(search, min(num_targets, num_wrong), 1, 10, 3 * passes, num_linearised)
    if norm == "l1" and name == "apgd-ce" and version == "standard":
        restarts = 5
    return Stage(search, 1, restarts, chunk=10, cost=3 * passes)
