"""Runs attacks over images, batch by batch, and verifies every image that they return."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import data
from robustjax.attacks._autoattack import default_batch_size
from robustjax.attacks.engine import inputs, verify
from robustjax.evaluation.protocol.outcome import Outcome, Unit
from robustjax.evaluation.protocol.protocols import Protocol, Threat
from robustjax.runtime import hosts
from robustjax.runtime.sharding import Layout
from robustjax.types import Array, Batch, Key, LogitsFn

# How many adversarial images an outcome keeps, to be looked at.
NUM_KEPT = 8
# A driver such as AutoAttack refills the slots of its batch as attacks succeed, until at the end of each of its attacks
# the last images leave slots empty. On a network that mostly holds, 8 batches at a time cost 12 % more forward passes
# than 32 did, 4 cost 25 % and 2 cost 98 % more; while a kill costs the chunk that was running.
BATCHES_PER_CHUNK = 8


class Runner:
    """A network and images, ready to be attacked: ``runner(protocol, key)``, or unit by unit.

    Every adversarial image is checked against ball and box and classified in float32 by a forward pass apart from the
    attack's.

    Args:
        network: images -> logits [B, K]; (images, key) -> logits for a stochastic network. As a
            ``jax.tree_util.Partial`` that holds its variables, they are arguments of what is compiled.
        images: uint8 in 0..255, or float32 inside the threat's bounds, [N, H, W, C].
        labels: integers [N].
        threat: every adversarial image is checked against it.
        batch_size: examples at a time, shared by the devices. A driver takes fewer where that is quicker.
        layout: of the devices.
        num_draws: for a stochastic network, on how many draws each image is classified, never an attack's own. 0 means
            a deterministic network.
        draws: the key of these draws, which are then the same for every attack, so that attacks that change nothing
            change nothing, however many they are. None: each call's own key.
        num_kept: how many of the first adversarial images outcomes hold; None: all.

    Attributes:
        images, labels, threat: as given.

    Example:
        >>> from robustjax.evaluation.protocol.protocols import Threat, pgd
        >>> from robustjax.runtime import sharding
        >>> images, labels = np.array([[[[100]]], [[[140]]], [[[255]]]], np.uint8), np.array([0, 1, 1])
        >>> score = lambda images: 2 * (images[:, 0, 0] - 0.5)
        >>> network = lambda images: jnp.concatenate([-score(images), score(images)], axis=1)
        >>> threat = Threat("linf", 0.1)
        >>> runner = Runner(network, images, labels, threat=threat, batch_size=4, layout=sharding.layout())
        >>> runner(pgd(threat, num_steps=10), jax.random.key(0)).robust
        array([ True, False,  True])
    """

    def __init__(
        self,
        network: LogitsFn,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        threat: Threat,
        batch_size: int,
        layout: Layout,
        num_draws: int = 0,
        draws: Key | None = None,
        num_kept: int | None = NUM_KEPT,
    ):
        self.images, self.labels, self.threat = images, labels, threat
        self._num_kept = len(labels) if num_kept is None else num_kept
        self._batch_size, self._layout, self._num_draws, self._draws = batch_size, layout, num_draws, draws
        network = inputs.as_pytree(network)
        self._network = layout.replicate(network)
        # Of several processes each does the whole of what a driver does, on devices of its own.
        self._driver_network = jax.device_get(self._network) if hosts.several() else self._network
        self._driver_sharding = None if hosts.several() else layout.batch
        self._driver_batch_size = min(batch_size, default_batch_size() * layout.num_devices)
        # Few examples need no full batch; what is drawn for an example does not depend on how many follow it.
        self._padded_size = min(batch_size, -(-len(labels) // layout.num_devices) * layout.num_devices)
        self._verify = _compiled_apart(self._verified, layout=layout)
        self._programs: dict[Any, Callable[..., tuple[np.ndarray, float]]] = {}
        self._sources: dict[int, tuple[Any, LogitsFn]] = {}  # the second, so that no other takes its place

    def __call__(self, protocol: Protocol, key: Key) -> Outcome:
        """Everything at once, nothing stored."""
        indices = range(len(self.examples(protocol)))
        return self.outcome(protocol, [self.run_unit(protocol, key, i, lambda share, status: None) for i in indices])

    def unit_size(self, protocol: Protocol) -> int:
        """Examples of a unit: a batch, or a driver's chunk of several."""
        return self._driver_batch_size * BATCHES_PER_CHUNK if protocol.whole else self._batch_size

    def examples(self, protocol: Protocol) -> list[slice]:
        """The units in which a protocol runs.

        They and what is drawn in them do not depend on how many examples there are, but for the last one's length.
        """
        size, total = self.unit_size(protocol), len(self.labels)
        return [slice(start, min(start + size, total)) for start in range(0, total, size)]

    def passes(self, protocol: Protocol) -> float:
        """Forward passes for each example, at most, verification included."""
        return protocol.passes + 2 * max(self._num_draws, 1)

    def run_unit(self, protocol: Protocol, key: Key, index: int, progress: Callable[[float, str], None]) -> Unit:
        """Attacks the examples of a unit; a driver reports by ``progress(share, status)``."""
        rows = self.examples(protocol)[index]
        key_attack, _ = self._keys(key, index)
        images, labels = self._floats(rows), self.labels[rows]

        def report(name: str, done: float, robust: int) -> None:
            progress(done, f"{name}: {robust} of {len(labels)} images left, accuracy {robust / len(labels):.2%}")

        network, draw = self._attacked_network(protocol), (key,) if self._num_draws else ()
        batch = jax.ShapeDtypeStruct((self._padded_size, *images.shape[1:]), images.dtype)
        with inputs.blaming("network", network, batch, *draw):
            if protocol.toward is not None:
                return self._run_toward(protocol, key, index, key_attack, progress)
            if protocol.images is not None:
                return self.verify_unit(protocol, key, index, floats(protocol.images[rows]))
            adversarial, by_attack, seconds = self._attacked(protocol, key_attack, images, labels, report)
            unit = self.verify_unit(protocol, key, index, adversarial, by_attack)
            return unit._replace(seconds=unit.seconds + seconds)

    def _run_toward(
        self, protocol: Protocol, key: Key, index: int, key_attack: Key, progress: Callable[[float, str], None]
    ) -> Unit:
        """The rounds of an attack that aims at classes, each verified; of each example the strongest round is kept."""
        rows = self.examples(protocol)[index]
        images, labels = self._floats(rows), self.labels[rows]
        program = self._program(protocol)
        kept, seconds = {}, 0.0
        tries, hits = (np.zeros(len(labels), np.int32) for _ in range(2))
        for i in range(1, protocol.rounds + 1):
            progress((i - 1) / protocol.rounds, f"class {i} of {protocol.rounds}" if protocol.rounds > 1 else "")
            (batch,) = self._batches(images, labels)
            options = _arrays(protocol.options) | {"offset": np.int32(i)}
            key_round = jax.random.fold_in(key_attack, i)
            arguments = (self._attacked_network(protocol), key_round, batch.images, batch.labels, options)
            (moved, targets), spent = program(*arguments)
            moved, targets = moved[batch.mask], targets[batch.mask]
            unit = self.verify_unit(protocol, key, index, moved)
            seconds += spent + unit.seconds
            aimed = targets != labels
            tries += aimed
            hits += aimed & (unit.arrays["predictions"] == targets)
            found = unit.arrays | {"targets": targets}
            if not kept:
                kept = found
                continue
            stronger = found["right"] < kept["right"]
            kept = {name: _chosen(stronger, found[name], values) for name, values in kept.items()}
        return Unit(kept | {"tries": tries, "hits": hits}, seconds)

    def verify_unit(
        self,
        protocol: Protocol,
        key: Key,
        index: int,
        adversarial: np.ndarray,
        by_attack: Mapping[str, np.ndarray] | None = None,
    ) -> Unit:
        """Checks and classifies images that an attack has made of the examples of a unit.

        Args:
            protocol: under which they were made.
            key: as of :meth:`run_unit`, so that a stochastic network is asked with the same draws.
            index: of the unit.
            adversarial: float32 [n, H, W, C], an image for each of its examples.
            by_attack: of an ensemble, attack's name -> bool [n], what was robust after it.

        Raises:
            RuntimeError: an image is outside ball or box, so that any figure would be meaningless.
        """
        rows = self.examples(protocol)[index]
        key_verify = self._keys(key, index)[1] if self._draws is None else self._draws
        images, labels = self._floats(rows), self.labels[rows]
        radius = np.float32(protocol.options.get("epsilon", self.threat.epsilon))
        parts, seconds = [], 0.0
        size = self._padded_size
        # An example has its place in a batch by its number, so that its draws are the same in units of any size.
        for i in range(rows.start // size, -(-rows.stop // size)):
            first, last = max(rows.start, i * size), min(rows.stop, (i + 1) * size)
            part, place = slice(first - rows.start, last - rows.start), slice(first - i * size, last - i * size)
            batch, moved = (self._placed(points[part], labels[part], place) for points in (images, adversarial))
            key_batch = jax.random.fold_in(key_verify, i)
            found, spent = self._verify(self._network, key_batch, batch.images, moved.images, batch.labels, radius)
            parts.append({name: values[place] for name, values in found.items()})
            seconds += spent
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if not (valid := arrays.pop("valid")).all():
            raise RuntimeError(
                f"an attack returned {np.sum(~valid)} images outside the {self.threat.norm} ball of {radius:g} or the "
                f"box, first of example {rows.start + np.argmin(valid)}: its figure would be meaningless"
            )
        arrays |= {f"by_attack.{name}": flags for name, flags in (by_attack or {}).items()}
        return Unit(arrays | {"adversarial": adversarial[: max(self._num_kept - rows.start, 0)]}, seconds)

    def outcome(self, protocol: Protocol, units: list[Unit]) -> Outcome:
        """The outcome of a protocol from all of its units."""
        counts = [rows.stop - rows.start for rows in self.examples(protocol)]

        def column(name: str) -> np.ndarray:
            return np.concatenate([unit.arrays[name][:count] for unit, count in zip(units, counts, strict=True)])

        ensemble = [name for name in units[0].arrays if name.startswith("by_attack.")]
        aimed = ("targets", "tries", "hits") if protocol.toward is not None else ()
        return Outcome(
            np.minimum(column("right"), column("clean_right")),
            max(self._num_draws, 1),
            column("clean_predictions"),
            column("predictions"),
            column("adversarial"),
            {name.removeprefix("by_attack."): column(name) for name in ensemble},
            sum(unit.seconds for unit in units),
            by_clean=column("clean_right") < column("right"),
            nonfinite=column("nonfinite"),
            clean_nonfinite=column("clean_nonfinite"),
            **{name: column(name) for name in aimed},
        )

    def _keys(self, key: Key, index: int) -> tuple[Key, Key]:
        """Those of an attack on a unit, and of its verification."""
        key_attack, key_verify = jax.random.split(jax.random.fold_in(key, index))
        return key_attack, key_verify

    def _floats(self, rows: slice) -> np.ndarray:
        return floats(self.images[rows])

    def _batches(self, images: np.ndarray, labels: np.ndarray) -> Iterator[Any]:
        for batch in data.batches(images, labels, self._padded_size):
            yield self._layout.split_batch(batch)._replace(mask=batch.mask)  # the mask is the host's

    def _placed(self, images: np.ndarray, labels: np.ndarray, place: slice) -> Batch[Array]:
        """A batch with these examples at a place, and black images of class 0 at all others."""
        whole = Batch(
            np.zeros((self._padded_size, *images.shape[1:]), images.dtype),
            np.zeros(self._padded_size, labels.dtype),
            np.zeros(self._padded_size, bool),
        )
        for values, own in zip(whole, (images, labels, True), strict=True):
            values[place] = own
        return self._layout.split_batch(whole)

    def _attacked(
        self, protocol: Protocol, key: Key, images: np.ndarray, labels: np.ndarray, progress: Callable
    ) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
        """The adversarial images, what an ensemble says of its attacks, and the seconds without compilation."""
        if protocol.attack is None:
            return images, {}, 0.0
        started = time.perf_counter()
        if protocol.whole:
            network = self._attacked_network(protocol, driver=True)
            result = protocol.attack(
                network, key, images, labels, batch_size=self._driver_batch_size,
                sharding=self._driver_sharding, progress=progress, **protocol.options,
            )  # fmt: skip
            return result.images, result.by_attack, time.perf_counter() - started
        (batch,) = self._batches(images, labels)
        network = self._attacked_network(protocol)
        arguments = (network, key, batch.images, batch.labels, _arrays(protocol.options))
        moved, seconds = self._program(protocol)(*arguments)
        return moved[batch.mask], {}, seconds

    def _program(self, protocol: Protocol) -> Callable[..., tuple[np.ndarray, float]]:
        attack = protocol.attack
        assert attack is not None
        name = (attack, id(protocol.source))  # another network is another program
        if name not in self._programs:

            def perturb(network: LogitsFn, key: Key, images: Array, labels: Array, options: dict[str, Array]) -> Array:
                return attack(network, key, images, labels, **options)

            self._programs[name] = _compiled_apart(perturb, layout=self._layout)
        return self._programs[name]

    def _attacked_network(self, protocol: Protocol, *, driver: bool = False) -> Any:
        """The network under evaluation, or the source of a transfer, which is moved to the devices once."""
        if protocol.source is None:
            return self._driver_network if driver else self._network
        source = protocol.source
        if id(source) not in self._sources:
            self._sources[id(source)] = self._layout.replicate(inputs.as_pytree(source)), source
        network, _ = self._sources[id(source)]
        return jax.device_get(network) if driver and hosts.several() else network

    def _verified(
        self, network: LogitsFn, key: Key, images: Array, adversarial: Array, labels: Array, epsilon: Array
    ) -> dict[str, Array]:
        threat = {"epsilon": epsilon, "norm": self.threat.norm, "bounds": self.threat.bounds}
        # The same draws for both, so that an attack that changes nothing changes nothing.
        clean, moved = (
            verify.verify(network, key, images, points, labels, num_draws=self._num_draws, **threat)
            for points in (images, adversarial)
        )
        return {
            "valid": moved.valid,
            "right": self._right_draws(moved.share),
            "clean_right": self._right_draws(clean.share),
            "predictions": jnp.argmax(moved.votes, axis=-1),
            "clean_predictions": jnp.argmax(clean.votes, axis=-1),
            "nonfinite": verify.has_no_maximum(moved.logits),
            "clean_nonfinite": verify.has_no_maximum(clean.logits),
        }

    def _right_draws(self, misclassified_share: Array) -> Array:
        """In how many draws the network is right, int32 [B]."""
        return jnp.round((1.0 - misclassified_share) * max(self._num_draws, 1)).astype(jnp.int32)


def _compiled_apart(function: Callable[..., Any], *, layout: Layout) -> Callable[..., tuple[Any, float]]:
    """``arguments -> (results on the host, seconds)``, the seconds without what compiling takes, once for all calls.

    The results are whole in each of several processes.
    """
    compiled = []

    @jax.disable_jit(False)  # which compiles ahead of time, also where a user debugs without jit
    def call(*arguments: Any) -> tuple[Any, float]:
        if not compiled:
            compiled.append(jax.jit(function, out_shardings=layout.replicated).lower(*arguments).compile())
        started = time.perf_counter()
        results = jax.device_get(compiled[0](*arguments))
        return results, time.perf_counter() - started

    return call


def floats(images: np.ndarray) -> np.ndarray:
    """Images as networks take them, float32."""
    return np.asarray(data.to_float(images)) if images.dtype == np.uint8 else np.asarray(images, np.float32)


def _chosen(rows: np.ndarray, chosen: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rows of the one or of the other, of as many as these are: images are kept of the first examples alone."""
    rows = rows[: len(other)]
    return np.where(rows.reshape(rows.shape + (1,) * (other.ndim - 1)), chosen, other)


def _arrays(options: Mapping[str, float]) -> dict[str, np.int32 | np.float32]:
    """Numbers as arguments of a compiled program: counts stay integers."""
    return {name: np.int32(value) if isinstance(value, int) else np.float32(value) for name, value in options.items()}
