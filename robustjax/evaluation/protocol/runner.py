"""Runs attacks over a data set, batch by batch, and believes none: every image is checked and classified anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import data
from robustjax.attacks._autoattack import default_batch_size
from robustjax.attacks.engine import verify
from robustjax.evaluation.protocol.protocols import Protocol
from robustjax.runtime import hosts
from robustjax.runtime.sharding import Layout
from robustjax.types import Array, Key

# How many adversarial images an outcome keeps, to be looked at.
NUM_KEPT = 8
# A driver such as AutoAttack refills the slots of its batch as images break, until at the end of each of its attacks
# the last images leave slots empty. On a network that mostly holds, 8 batches at a time cost 12 % more forward passes
# than 32 did, 4 cost 25 % and 2 cost 98 % more; while a kill costs the chunk that was running.
BATCHES_PER_CHUNK = 8


class Unit(NamedTuple):
    """What a protocol did to a batch, or a driver to a chunk of several.

    Attributes:
        arrays: by name, all but `adversarial` with the examples leading: `right` and `clean_right`, in how many draws
            the network is right after and before the attack; `predictions` and `clean_predictions`, the most frequent;
            `adversarial`, those of the data set's first images that are here; and of an ensemble `by_attack.NAME`.
        seconds: without compiling what the runner compiles.
    """

    arrays: dict[str, np.ndarray]
    seconds: float


class Outcome(NamedTuple):
    """What an attack did to a data set.

    Attributes:
        right: int [N], in how many draws the network is right on the image as it is and after the attack, whichever
            is fewer. A deterministic network is asked once.
        num_draws: how often it was asked.
        clean_predictions, predictions: int [N], the classes before and after the attack, most frequent over the draws.
        adversarial: the first images, float32 [min(N, NUM_KEPT), H, W, C].
        by_attack: of an ensemble, its attacks' names -> bool [N], what it held for robust after each.
        seconds: of all batches, whenever they ran, without compiling what the runner compiles.
    """

    right: np.ndarray
    num_draws: int
    clean_predictions: np.ndarray
    predictions: np.ndarray
    adversarial: np.ndarray
    by_attack: dict[str, np.ndarray]
    seconds: float

    @property
    def robust(self) -> np.ndarray:
        """bool [N]: right in more than half of the draws."""
        return 2 * self.right > self.num_draws


class Runner(NamedTuple):
    """A network and a data set, ready to be attacked.

    Attributes:
        unit_size: `protocol -> examples` of a unit, a batch or a driver's chunk.
        examples: `protocol -> [slices]`, the units in which it runs. They and what is drawn in them do not depend on
            how many examples there are, but for the last one's length.
        run_unit: `(protocol, key, index, progress) -> Unit`. `progress(share, status)` hears how far a driver is.
        outcome: `(protocol, units) -> Outcome`.
        dataset: what is judged on.
        passes: `protocol -> forward passes` for each example, at most, checks included.
    """

    unit_size: Callable[[Protocol], int]
    examples: Callable[[Protocol], list[slice]]
    run_unit: Callable[..., Unit]
    outcome: Callable[[Protocol, list[Unit]], Outcome]
    dataset: data.Dataset
    passes: Callable[[Protocol], float]

    def __call__(self, protocol: Protocol, key: Key) -> Outcome:
        """Everything at once, nothing stored."""
        indices = range(len(self.examples(protocol)))
        return self.outcome(protocol, [self.run_unit(protocol, key, i, lambda share, status: None) for i in indices])


def make_runner(
    logits_fn: Callable[..., Array],
    variables: Any,
    dataset: data.Dataset,
    *,
    epsilon: float,
    norm: str,
    batch_size: int,
    layout: Layout,
    draws: int = 0,
) -> Runner:
    """A `Runner`: `runner(protocol, key) -> Outcome`, or unit by unit.

    Args:
        logits_fn: (variables, images) -> float32 logits [B, K]; (variables, images, key) for a stochastic network.
        variables: of the network.
        dataset: to be judged on.
        epsilon, norm: every adversarial image is checked against them.
        batch_size: examples at a time, shared by the devices. A driver takes fewer where that is quicker.
        layout: of the devices.
        draws: for a stochastic network, how many fresh draws judge each image, never an attack's own. 0 means a
            deterministic network.

    Example:
        >>> from robustjax.evaluation.protocol.protocols import Threat, pgd
        >>> from robustjax.runtime import sharding
        >>> images = np.array([[[[100]]], [[[140]]], [[[255]]]], np.uint8)
        >>> dataset = data.Dataset("greys", images, np.array([0, 1, 1], np.int32), 2, ("dark", "light"))
        >>> score = lambda weight, images: weight * (images[:, 0, 0] - 0.5)
        >>> logits_fn = lambda weight, images: jnp.concatenate([-score(weight, images), score(weight, images)], axis=1)
        >>> runner = make_runner(logits_fn, jnp.float32(2.0), dataset, epsilon=0.1, norm="linf", batch_size=4,
        ...                      layout=sharding.layout())
        >>> runner(pgd(Threat("linf", 0.1, 2), num_steps=10), jax.random.key(0)).robust
        array([ True, False,  True])
    """
    variables = layout.replicate(variables)
    # Few examples need no full batch; what is drawn for an example does not depend on how many follow it.
    padded_size = min(batch_size, -(-len(dataset.labels) // layout.num_devices) * layout.num_devices)
    driver_batch_size = min(batch_size, default_batch_size() * layout.num_devices)
    # Of several processes each does the whole of what a driver does, on devices of its own.
    network = jax.tree_util.Partial(logits_fn, jax.device_get(variables) if hosts.several() else variables)
    sharding = None if hosts.several() else layout.batch

    def in_batches(images: np.ndarray, labels: np.ndarray) -> Iterator[Any]:
        part = dataset._replace(images=images, labels=labels)
        for batch in data.batches(part, padded_size):
            yield layout.split_batch(batch)._replace(mask=batch.mask)  # the mask is the host's

    def classify(variables: Any, key: Key, images: Array, labels: Array) -> tuple[Array, Array]:
        """In how many draws the network is right [B], and what it says most often [B]; in full float32."""

        def draw(arguments: tuple[Key, ...]) -> tuple[Array, Array]:
            logits = logits_fn(variables, images, *arguments)
            votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.int32)
            return verify.is_correct(logits, labels).astype(jnp.int32), votes

        with jax.default_matmul_precision("float32"):
            if draws == 0:
                right, votes = draw(())
            else:
                per_draw = jax.lax.map(lambda key: draw((key,)), jax.random.split(key, draws))
                right, votes = jax.tree.map(lambda values: jnp.sum(values, axis=0), per_draw)
        return right, jnp.argmax(votes, axis=-1)

    compiled_apart = partial(_compiled_apart, layout=layout)

    @compiled_apart
    def judge(variables: Any, key: Key, images: Array, adversarial: Array, labels: Array, epsilon: Array):
        # The same draws for both, so that an attack that changes nothing changes nothing.
        clean_right, clean_predictions = classify(variables, key, images, labels)
        right, predictions = classify(variables, key, adversarial, labels)
        return {
            "valid": verify.is_valid(images, adversarial, epsilon=epsilon, norm=norm),
            "right": right,
            "clean_right": clean_right,
            "predictions": predictions,
            "clean_predictions": clean_predictions,
        }

    programs: dict[Any, Callable[..., Array]] = {}

    def program(attack: Callable[..., Array]) -> Callable[..., Array]:
        if attack not in programs:

            def perturb(variables: Any, key: Key, images: Array, labels: Array, options: dict[str, Array]) -> Array:
                network = jax.tree_util.Partial(logits_fn, variables)
                return attack(network, key, images, labels, **options)

            programs[attack] = compiled_apart(perturb)
        return programs[attack]

    def attacked(protocol: Protocol, key: Key, images: np.ndarray, labels: np.ndarray, progress: Callable):
        """The adversarial images, what an ensemble says of its attacks, and the seconds without compilation."""
        if protocol.attack is None:
            return images, {}, 0.0
        started = time.perf_counter()
        if protocol.whole:
            result = protocol.attack(
                network, key, images, labels,
                batch_size=driver_batch_size, sharding=sharding, progress=progress, **protocol.options,
            )  # fmt: skip
            return result.images, result.by_attack, time.perf_counter() - started
        (batch,) = in_batches(images, labels)
        arguments = (variables, key, batch.images, batch.labels, _arrays(protocol.options))
        moved, seconds = program(protocol.attack)(*arguments)
        return moved[batch.mask], {}, seconds

    def unit_size(protocol: Protocol) -> int:
        return driver_batch_size * BATCHES_PER_CHUNK if protocol.whole else batch_size

    def examples(protocol: Protocol) -> list[slice]:
        size, total = unit_size(protocol), len(dataset.labels)
        return [slice(start, min(start + size, total)) for start in range(0, total, size)]

    def run_unit(protocol: Protocol, key: Key, index: int, progress: Callable[[float, str], None]) -> Unit:
        rows = examples(protocol)[index]
        key_attack, key_judge = jax.random.split(jax.random.fold_in(key, index))
        images, labels = np.asarray(data.to_float(dataset.images[rows])), dataset.labels[rows]

        def heard(name: str, done: float, robust: int) -> None:
            progress(done, f"{name}: {robust} of {len(labels)} images left, accuracy {robust / len(labels):.2%}")

        adversarial, by_attack, seconds = attacked(protocol, key_attack, images, labels, heard)
        radius = np.float32(protocol.options.get("epsilon", epsilon))
        parts = []
        pairs = zip(in_batches(images, labels), in_batches(adversarial, labels), strict=True)
        for i, (batch, moved) in enumerate(pairs):
            key_batch = jax.random.fold_in(key_judge, i)
            verdict, spent = judge(variables, key_batch, batch.images, moved.images, batch.labels, radius)
            parts.append({name: values[batch.mask] for name, values in verdict.items()})
            seconds += spent
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if not (valid := arrays.pop("valid")).all():
            raise RuntimeError(
                f"an attack returned {np.sum(~valid)} images outside the {norm} ball of {radius:g} or the box, first "
                f"of example {rows.start + np.argmin(valid)}: its figure would be meaningless"
            )
        arrays |= {f"by_attack.{name}": flags for name, flags in by_attack.items()}
        return Unit(arrays | {"adversarial": adversarial[: max(NUM_KEPT - rows.start, 0)]}, seconds)

    def outcome(protocol: Protocol, units: list[Unit]) -> Outcome:
        counts = [rows.stop - rows.start for rows in examples(protocol)]

        def column(name: str) -> np.ndarray:
            return np.concatenate([unit.arrays[name][:count] for unit, count in zip(units, counts, strict=True)])

        ensemble = [name for name in units[0].arrays if name.startswith("by_attack.")]
        return Outcome(
            np.minimum(column("right"), column("clean_right")),
            max(draws, 1),
            column("clean_predictions"),
            column("predictions"),
            column("adversarial"),
            {name.removeprefix("by_attack."): column(name) for name in ensemble},
            sum(unit.seconds for unit in units),
        )

    def passes(protocol: Protocol) -> float:
        return protocol.passes + 2 * max(draws, 1)

    return Runner(unit_size, examples, run_unit, outcome, dataset, passes)


def _compiled_apart(function: Callable[..., Any], *, layout: Layout) -> Callable[..., tuple[Any, float]]:
    """`arguments -> (results on the host, seconds)`, the seconds without what compiling takes, once for all calls.

    The results are whole in each of several processes.
    """
    compiled = []

    def call(*arguments: Any) -> tuple[Any, float]:
        if not compiled:
            compiled.append(jax.jit(function, out_shardings=layout.replicated).lower(*arguments).compile())
        started = time.perf_counter()
        results = jax.device_get(compiled[0](*arguments))
        return results, time.perf_counter() - started

    return call


def _arrays(options: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Numbers as arguments of a compiled program: counts stay integers."""
    return {name: np.int32(value) if isinstance(value, int) else np.float32(value) for name, value in options.items()}
