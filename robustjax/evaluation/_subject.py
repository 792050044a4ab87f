"""A network and images, ready to be attacked: of a run, of a model that a command line names, or of a caller."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import data, transforms
from robustjax.attacks.engine import inputs, verify
from robustjax.evaluation.protocol import protocols, records, session
from robustjax.evaluation.protocol.folder import file_name
from robustjax.evaluation.protocol.protocols import Protocol
from robustjax.evaluation.protocol.runner import NUM_KEPT, Runner, floats
from robustjax.evaluation.protocol.specs import Spec
from robustjax.evaluation.protocol.store import Store, open_store
from robustjax.evaluation.protocol.threats import Threat
from robustjax.evaluation.verdict._judge import check_functions
from robustjax.evaluation.verdict.hints import Hints
from robustjax.runtime import hosts, sharding
from robustjax.types import InputError, Key, LogitsFn

# Draws over which attacks average a stochastic network, and fresh ones on which each of its images is classified.
EOT_SAMPLES, NUM_DRAWS = 20, 10


class Subject(NamedTuple):
    """A network and the images it is evaluated on, with what its records hold about both.

    Attributes:
        network: images -> logits, or (images, key) -> logits.
        hints: what its author declares of it; ``hints.stochastic`` where it takes a key.
        adaptive_fn: the network as adaptive attacks take it, where that is another function: single draws of one whose
            predictions average over several.
        images: uint8 in 0..255, or float32 inside the threat's bounds, [N, H, W, C].
        labels: integers [N].
        num_classes: K.
        key: of the attacks.
        batch_size: images at a time, over all devices.
        eot_samples, num_draws: of a stochastic network, else 0.
        conditions: what every record says besides.
        settings: all that results depend on, further to the attack's own; results are stored under it.
        stores: folder of the results batch by batch, or None to keep nothing.
        class_names: K strings, or None.
        read_others: data set -> its images, those of :func:`robustjax.data.read_images`, for "corruption:DATA".
        read_source: name -> a deterministic network and what records say of it, for "transfer:SOURCE".
        keep_images: whether outcomes hold all adversarial images, or the first few.
        quicken: whether :func:`judge` quickens the network; ``network`` is as it is to be run.
    """

    network: LogitsFn
    hints: Hints
    adaptive_fn: LogitsFn
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    key: Key
    batch_size: int
    eot_samples: int
    num_draws: int
    conditions: Mapping[str, Any]
    settings: Mapping[str, Any]
    stores: Path | None
    class_names: Sequence[str] | None = None
    read_others: Callable[[str], Any] | None = None
    read_source: Callable[[str], tuple[LogitsFn, Any]] | None = None
    keep_images: bool = False
    quicken: bool = True

    def runner(self, threat: Threat) -> Runner:
        """The network and the images, ready to be attacked."""
        return Runner(
            self.network,
            self.images,
            self.labels,
            threat=threat,
            batch_size=self.batch_size,
            layout=sharding.layout(),
            num_draws=self.num_draws,
            draws=session.attack_key(self.key, "verification"),
            num_kept=None if self.keep_images else NUM_KEPT,
        )

    def protocols(self, specs: Sequence[Spec], threat: Threat) -> dict[str, Protocol]:
        """The attacks against this network, in their order; others' images are read and checked."""
        found = protocols.of_specs(specs, threat, num_classes=self.num_classes, eot_samples=self.eot_samples)
        found |= {spec.spelling: self._saved(spec, threat) for spec in specs if spec.name == "saved"}
        found |= {spec.spelling: self._transferred(spec, threat) for spec in specs if spec.on_source is not None}
        return {spec.spelling: found[spec.spelling] for spec in specs if spec.spelling in found}

    def task(self, name: str, protocol: Protocol, runner: Runner) -> session.Task:
        """An attack with the place where its results are stored."""
        return session.Task(name, protocol, self._store(name, protocol, runner))

    def corrupted(self, spec: Spec) -> Subject:
        """The same network on the images of another data set.

        Raises:
            InputError: they are not there, of another size, or of classes that the network does not have.
        """
        assert self.read_others is not None
        others = self.read_others(spec.argument)
        if others.images.shape[1:] != self.images.shape[1:]:
            shapes = [list(images.shape[1:]) for images in (self.images, others.images)]
            raise InputError(f"{spec.spelling} must hold images {shapes[0]}, got {shapes[1]}; give a set of that size")
        inputs.labels_in_range(others.labels, self.num_classes)
        same = len(others.labels) == len(self.labels) and bool(np.all(others.labels == self.labels))
        about = {
            "dataset": spec.argument,
            "split": others.about.get("split"),
            "data": others.about,
            "no_attack": "images of another data set, classified as they are and within no ball",
            "labels_in_the_same_order": same,
        }
        return self._replace(
            images=others.images,
            labels=others.labels,
            class_names=others.class_names or self.class_names,
            conditions={**self.conditions, **about},
            settings={**self.settings, "dataset": spec.argument},
            keep_images=False,
        )

    def _saved(self, spec: Spec, threat: Threat) -> Protocol:
        """Others' adversarial images, all of which must be inside ball and box."""
        images = data.read_saved(spec.argument, self.images, bounds=threat.bounds)
        valid = np.concatenate(
            [
                verify.is_valid(
                    jnp.asarray(floats(self.images[i : i + 1000])),
                    jnp.asarray(images[i : i + 1000]),
                    epsilon=threat.epsilon,
                    norm=threat.norm,
                    bounds=threat.bounds,
                )
                for i in range(0, len(images), 1000)
            ]
        )
        if not valid.all():
            raise InputError(
                f"{spec.spelling} must hold images inside the {threat.norm} ball of {threat.epsilon:g} and the box, "
                f"got {np.sum(~valid)} of {len(valid)} outside, first that of example {np.argmin(valid)}; give the "
                "threat that they were made for"
            )
        digest = hashlib.sha256(images.tobytes()).hexdigest()
        return Protocol(None, images=images, about={"attack": "saved", "file": spec.argument, "sha256": digest})

    def _transferred(self, spec: Spec, threat: Threat) -> Protocol:
        """An attack on another network, whose images are verified on this one."""
        assert spec.on_source is not None and self.read_source is not None
        source, about = self.read_source(spec.argument)
        try:
            check_functions(Hints(), source, floats(self.images[:2]), self.labels, ())
        except InputError as error:
            raise InputError(f"{spec.spelling}: {error}") from error
        network = inputs.as_pytree(source)
        (protocol,) = protocols.of_specs([spec.on_source], threat, num_classes=self.num_classes).values()
        return protocol._replace(
            source=transforms.quicken(network) if self.quicken else network, about={**protocol.about, "source": about}
        )

    def _store(self, name: str, protocol: Protocol, runner: Runner) -> Store | None:
        if self.stores is None:
            return None
        own = {"attack": records.resolved(protocol), "examples_per_batch": runner.unit_size(protocol)}
        kept = {"images": "all"} if self.keep_images else {}
        settings = {**self.settings, "norm": runner.threat.norm, **own, **kept}
        opened = partial(open_store, self.stores, file_name(name), settings)
        hosts.first_only(opened)
        return opened()


def of_function(
    logits_fn: LogitsFn,
    key: Key,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    hints: Hints,
    batch_size: int,
    eot_samples: int = EOT_SAMPLES,
    num_draws: int = NUM_DRAWS,
    conditions: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    read_others: Callable[[str], Any] | None = None,
    read_source: Callable[[str], tuple[LogitsFn, Any]] | None = None,
    keep_images: bool = False,
    quicken: bool = True,
) -> Subject:
    """A caller's network on checked images; nothing is stored, as a function has no name to store results under.

    Raises:
        InputError: the devices cannot share a batch, or arguments or outputs of the network are not as declared.
    """
    sharding.layout().check_batch_size("batch_size", batch_size)
    stochastic = hints.stochastic
    keys = (key,) if stochastic else ()
    num_classes = check_functions(hints, logits_fn, floats(images[:2]), labels, keys).shape[1]
    about: dict[str, Any] = {"key": jax.random.key_data(key).tolist(), "batch_norm": "as the network has it"}
    if stochastic:
        about |= {"num_draws": num_draws, "eot_samples": eot_samples}
    network = inputs.as_pytree(logits_fn)
    return Subject(
        network=transforms.quicken(network) if quicken else network,
        hints=hints,
        adaptive_fn=logits_fn,
        images=images,
        labels=labels,
        num_classes=num_classes,
        key=key,
        batch_size=batch_size,
        eot_samples=eot_samples if stochastic else 0,
        num_draws=num_draws if stochastic else 0,
        conditions={**about, **conditions, **records.conditions(), "config": None},  # which runs have
        settings={},
        stores=None,
        class_names=class_names,
        read_others=read_others,
        read_source=read_source,
        keep_images=keep_images,
        quicken=quicken,
    )
