"""Attacks on any network, one record each, in one call: what ``python -m robustjax.evaluate`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from robustjax import data, transforms
from robustjax.attacks.engine import inputs
from robustjax.evaluation.protocol import protocols, records, session, tables
from robustjax.evaluation.protocol.protocols import Protocol, Threat
from robustjax.evaluation.protocol.runner import Outcome, Runner
from robustjax.evaluation.protocol.store import Store, open_store
from robustjax.evaluation.verdict import trust
from robustjax.evaluation.verdict._judge import Verdict, check_functions, checked_hints, judge
from robustjax.evaluation.verdict.hints import Hints
from robustjax.evaluation.verdict.trial import BUDGETS
from robustjax.runtime import hosts, sharding
from robustjax.types import AnyArray, InputError, Key, LogitsFn

# Draws over which attacks average a stochastic network, and fresh ones on which each of its images is classified.
EOT_SAMPLES, NUM_DRAWS = 20, 10
DEFAULT_ATTACKS = ("clean", "fgsm", "pgd20", "cw", "pgd100")


class Subject(NamedTuple):
    """A network and the images it is evaluated on, with all that its records say of them.

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
        )

    def protocols(self, names: Sequence[str], threat: Threat) -> dict[str, Protocol]:
        """The named attacks against this network."""
        return protocols.by_name(names, threat, num_classes=self.num_classes, eot_samples=self.eot_samples)

    def task(self, name: str, protocol: Protocol, runner: Runner) -> session.Task:
        """An attack with the place where its results are stored."""
        return session.Task(name, protocol, self._store(name, protocol, runner))

    def _store(self, name: str, protocol: Protocol, runner: Runner) -> Store | None:
        if self.stores is None:
            return None
        own = {"attack": records.resolved(protocol), "examples_per_batch": runner.unit_size(protocol)}
        opened = partial(open_store, self.stores, name, {**self.settings, "norm": runner.threat.norm, **own})
        hosts.first_only(opened)
        return opened()


class Evaluation(NamedTuple):
    """What attacks did to a network.

    Attributes:
        records: one for each attack and threat, as they are written to disk: ``attack``, ``norm``, ``epsilon``,
            ``accuracy``, ``interval_95``, ``robust`` and what else describes the measurement.
        worst_case: the record of an adversary who picks the best of all attacks for each image.
        outcomes: of each record, the predictions and the first adversarial images.
        conditions: what all records share.
        verdict: of the adaptive attacks under the last threat, where they were asked for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustjax import evaluation
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 2.0)], axis=1)
        >>> images = jnp.stack([jnp.full((2, 2, 1), 0.55), jnp.full((2, 2, 1), 0.8)])
        >>> threat = evaluation.Threat("linf", 0.1)
        >>> result = evaluation.evaluate(linear, jax.random.key(0), images, jnp.array([0, 0]), threat=threat,
        ...                              attacks=("clean", "pgd20"), progress=False)
        >>> [(record["attack"], record["accuracy"]) for record in result.records], result.worst_case["robust"]
        ([('clean', 1.0), ('pgd20', 0.5)], [False, True])
    """

    records: list[dict[str, Any]]
    worst_case: dict[str, Any]
    outcomes: list[Outcome]
    conditions: Mapping[str, Any]
    verdict: Verdict | None = None

    def table(self) -> Table:
        """A row for each record, the worst case last; ``rich.print(evaluation.table())`` shows it."""
        return tables.of_records([*self.records, self.worst_case])

    def save(self, folder: str | Path) -> None:
        """Writes each record to ``folder/<attack>.json``, and ``worst_case.json``; ``trust.json`` of a verdict.

        Several threats share a folder: a record's name then ends in its own threat, as in ``pgd20-l2-0.5.json``.

        Raises:
            WriteError: the folder cannot be written.
        """
        several = len({(record["norm"], record["epsilon"]) for record in self.records}) > 1
        for record in self.records:
            threat = f"-{record['norm']}-{record['epsilon']:.9g}" if several else ""
            records.write(folder, record["attack"] + threat, record)
        records.write(folder, "worst_case", self.worst_case)
        if self.verdict is not None:
            trust.write(folder, self.verdict, protocol=self.usual_records, **self.conditions)

    @property
    def usual_records(self) -> list[dict[str, Any]]:
        """The records of all but the adaptive attacks, under the last threat."""
        last = self.records[-1]
        return [
            record
            for record in self.records
            if record["attack"] != protocols.ADAPTIVE
            and (record["norm"], record["epsilon"]) == (last["norm"], last["epsilon"])
        ]


def evaluate(
    logits_fn: LogitsFn,
    key: Key,
    images: AnyArray,
    labels: AnyArray,
    *,
    threat: Threat | Sequence[Threat],
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    hints: Hints = Hints(),  # noqa: B008
    budget: str = "quick",
    batch_size: int = 500,
    eot_samples: int = EOT_SAMPLES,
    num_draws: int = NUM_DRAWS,
    quicken: bool = True,
    progress: bool = False,
) -> Evaluation:
    """Runs attacks on a network and reports what is left of its accuracy, with intervals and all settings.

    Every adversarial image is checked against ball and box, and classified again in float32 by a forward pass apart
    from the attack's. Every device takes part.

    Args:
        logits_fn: images [B, H, W, C] -> logits [B, K]; (images, key) -> logits where ``hints.stochastic``.
        key: a typed key; each attack draws from it by its name, whichever others run.
        images: float [N, H, W, C] inside the threat's bounds, or uint8 in 0..255 for bounds of (0, 1).
        labels: integers [N].
        threat: what the network is to withstand; of several, every attack runs under each, and the worst case is over
            all.
        attacks: of ``"clean"``, ``"fgsm"``, ``"pgd20"``, ``"cw"``, ``"pgd100"``, ``"autoattack"`` and ``"adaptive"``,
            which is :func:`judge`.
        hints: what the network's author declares; used by ``"adaptive"``, but for ``stochastic``.
        budget: of ``"adaptive"``, ``"quick"`` or ``"full"``.
        batch_size: images at a time, over all devices, which have to divide it.
        eot_samples: draws over which attacks average a stochastic network.
        num_draws: fresh draws on which each image of a stochastic network is classified.
        quicken: run the network by :func:`robustjax.transforms.quicken`: the same outputs and gradients to rounding, in
            less time on a CPU if it is not of this library.
        progress: show how far it is and how long it takes.

    Returns:
        An :class:`Evaluation`.

    Raises:
        InputError: for an unknown attack, norm or budget, images outside bounds or not finite, labels that are not
            classes, or arguments or outputs of the wrong shape.

    Example:
        See :class:`Evaluation`.
    """
    if isinstance(attacks, str):
        raise InputError(f"attacks must be a sequence of names, got {attacks!r}; give ({attacks!r},)")
    if budget not in BUDGETS:
        raise InputError(f"budget must be one of {', '.join(BUDGETS)}, got {budget!r}; choose among these")
    stochastic = checked_hints(hints).stochastic
    inputs.check_key(key)
    inputs.at_least(1, batch_size=batch_size)
    if stochastic:
        inputs.at_least(1, eot_samples=eot_samples, num_draws=num_draws)
    if getattr(images, "dtype", None) == np.uint8:
        images = np.asarray(data.to_float(images))
    threats = [_checked_threat(each, images) for each in ([threat] if isinstance(threat, Threat) else _listed(threat))]
    if len({(each.norm, each.epsilon) for each in threats}) < len(threats):
        raise InputError(
            "threat must be threats of different norm or epsilon, got one twice; evaluate them in two calls"
        )
    for each in threats:
        host_images, host_labels, _ = inputs.on_host(images, labels, each.epsilon, each.norm, each.bounds)
    layout = sharding.layout()
    layout.check_batch_size("batch_size", batch_size)
    num_classes = check_functions(hints, logits_fn, host_images[:2], host_labels, (key,) if stochastic else ()).shape[1]
    about = records.conditions()
    conditions = {"key": jax.random.key_data(key).tolist(), "batch_norm": "as the network has it"}
    if stochastic:
        conditions |= {"num_draws": num_draws, "eot_samples": eot_samples}
    network = inputs.as_pytree(logits_fn)
    subject = Subject(
        network=transforms.quicken(network) if quicken else network,
        hints=hints,
        adaptive_fn=logits_fn,
        images=host_images,
        labels=host_labels,
        num_classes=num_classes,
        key=key,
        batch_size=batch_size,
        eot_samples=eot_samples if stochastic else 0,
        num_draws=num_draws if stochastic else 0,
        conditions={**conditions, **about},
        settings={},
        stores=None,
        quicken=quicken,
    )
    return run(subject, threats, attacks, budget=budget, progress=progress)


def _listed(threat: Any) -> list[Any]:
    if isinstance(threat, (list, tuple)) and threat and all(isinstance(each, Threat) for each in threat):
        return list(threat)
    raise InputError(
        f"threat must be a Threat or a list of them, got {threat!r}; give evaluation.Threat(norm, epsilon)"
    )


def _checked_threat(threat: Threat, images: Any) -> Threat:
    """The threat with plain numbers in it, which records and compiled programs need."""
    if np.ndim(threat.epsilon):
        shape = list(np.shape(threat.epsilon))
        raise InputError(f"epsilon must be a number, got shape {shape}; evaluate under one radius at a time")
    channels = np.shape(images)[-1] if np.ndim(images) else 1
    return Threat(threat.norm, float(threat.epsilon), inputs.box(threat.bounds, channels))


def run(
    subject: Subject,
    threats: Sequence[Threat],
    names: Sequence[str],
    *,
    budget: str,
    progress: bool,
    on_record: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Evaluation:
    """Runs the named attacks under each threat; ``on_record`` is given each record as soon as it is there."""
    chosen = [subject.protocols(names, threat) for threat in threats]  # unknown names are refused before anything runs
    entries, outcomes, verdict = [], [], None

    def keep(name: str, protocol: Protocol, outcome: Outcome, threat: Threat) -> None:
        shared = {"norm": threat.norm, "epsilon": threat.epsilon, "conditions": dict(subject.conditions)}
        entries.append(records.record(name, protocol, outcome, **shared))
        outcomes.append(outcome)
        on_record(entries[-1])

    for threat, by_name in zip(threats, chosen, strict=True):
        runner = subject.runner(threat)
        tasks = [subject.task(name, protocol, runner) for name, protocol in by_name.items()]
        found = session.outcomes(runner, tasks, key=subject.key, progress=progress)
        for task, outcome in zip(tasks, found, strict=True):
            keep(task.name, task.protocol, outcome, threat)
        if protocols.ADAPTIVE in names:
            verdict, protocol, outcome = _adaptive(subject, runner, budget=budget, progress=progress)
            keep(protocols.ADAPTIVE, protocol, outcome, threat)
    return Evaluation(entries, records.worst_case(entries), outcomes, subject.conditions, verdict)


def _adaptive(subject: Subject, runner: Runner, *, budget: str, progress: bool) -> tuple[Verdict, Protocol, Outcome]:
    """The verdict of :func:`judge`, and its strongest images verified like those of every other attack."""
    threat = runner.threat
    attack = partial(
        judge, budget=budget, epsilon=threat.epsilon, norm=threat.norm, bounds=threat.bounds, quicken=subject.quicken
    )
    images = subject.images
    images = np.asarray(data.to_float(images)) if images.dtype == np.uint8 else images
    key = session.attack_key(subject.key, protocols.ADAPTIVE)
    verdict = attack(subject.adaptive_fn, key, images, subject.labels, hints=subject.hints, progress=progress)

    left, by_attack = np.ones(len(images), bool), {}
    for name, misclassified in verdict.misclassified_by.items():
        left = left & ~misclassified
        by_attack[name] = left
    protocol = Protocol(attack, num_steps=BUDGETS[budget].num_steps, num_restarts=1, whole=True)
    units = [
        runner.verify_unit(
            protocol, key, i, verdict.adversarial[rows], {name: flags[rows] for name, flags in by_attack.items()}
        )
        for i, rows in enumerate(runner.examples(protocol))
    ]
    return verdict, protocol, runner.outcome(protocol, units)._replace(seconds=verdict.seconds["total"])
