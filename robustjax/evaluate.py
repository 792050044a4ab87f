"""Judges a trained network: `python -m robustjax.evaluate --workdir=DIR [--attacks=clean,fgsm,pgd20,cw,pgd100]`.

Writes DIR/evaluation/<attack>.json, worst_case.json and examples.png, and prints a table. `--sweep=epsilon` and
`--sweep=steps` write sweep_<kind>.json and .png instead. The threat (norm and epsilon) is the one of the run's config.
Results are stored batch by batch: the same command goes on where it was stopped, and runs nothing again.

`--attacks=adaptive` gives a verdict by attacks that know the network's defense, and writes trust.json and trust.md.

`--defense=sap:fraction=0.5` switches a defense without parameters of its own on (or, `--defense=none`, off); what
comes of it lies in DIR/evaluation/<defense>/.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from robustjax import build, cli, data
from robustjax import config as config_lib
from robustjax.analysis import plots
from robustjax.defenses import Defense
from robustjax.evaluation import judge
from robustjax.evaluation.protocol import records, runner, session, sweeps, tables
from robustjax.evaluation.protocol.protocols import Protocol, Threat
from robustjax.evaluation.protocol.store import Store, open_store
from robustjax.evaluation.verdict import trust
from robustjax.evaluation.verdict.hints import Hints, hints_of
from robustjax.evaluation.verdict.trial import BUDGETS
from robustjax.runs import network
from robustjax.runs.checkpoint import Checkpoints
from robustjax.runtime import hosts, sharding
from robustjax.types import InputError, LogitsFn

ATTACKS = flags.DEFINE_list(
    "attacks", None, "Attacks, in the order in which they run; by default clean,fgsm,pgd20,cw,pgd100, of a sweep pgd20."
)
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", None, "Judge only the first so many test images.", lower_bound=1)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by robust validation accuracy), last, or a step.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 500, "Images at a time, over all devices.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of attacks that draw.")
BUDGET = flags.DEFINE_enum("budget", "quick", list(BUDGETS), "Of the adaptive attacks and the checks around them.")
TRANSFER_FROM = flags.DEFINE_string(
    "transfer_from", None, "Folder of another run on the same data, from whose network adaptive attacks transfer."
)
SWEEP = flags.DEFINE_enum("sweep", None, sweeps.KINDS, "Accuracy against epsilon, or against the steps of an attack.")
DEFENSE = flags.DEFINE_string("defense", None, "Judge the network with sap or kwta, as in sap:fraction=0.5, or none.")
EOT_SAMPLES = flags.DEFINE_integer(
    "eot_samples", None, "Draws over which attacks average a stochastic network; by default 20.", lower_bound=1
)
DRAWS = flags.DEFINE_integer(
    "draws", None, "Fresh draws that judge each image of a stochastic network; by default 10.", lower_bound=1
)
PREDICTION_DRAWS = flags.DEFINE_integer(
    "prediction_draws", None, "Draws whose probabilities one prediction averages; by default 1.", lower_bound=1
)


class Found(NamedTuple):
    """What a driver returns, of images that are there already."""

    images: np.ndarray
    by_attack: dict[str, np.ndarray]


class Judged(NamedTuple):
    """What is judged, and what all its records say of it.

    Attributes:
        runner: the network on the test images.
        logits_fn, hints: the network as `evaluation.judge` takes it, with what its defense declares.
        threat: against which.
        dataset: the test images.
        conditions: of every record.
        settings: on which every result depends, further to the attack's own.
        folder: of the records.
        stores: folder of the batches.
    """

    runner: runner.Runner
    logits_fn: LogitsFn
    hints: Hints
    threat: Threat
    dataset: data.Dataset
    conditions: dict[str, Any]
    settings: dict[str, Any]
    folder: Path
    stores: Path

    def store(self, name: str, protocol: Protocol) -> Store:
        """Where the results of an attack lie."""
        own = {"attack": records.resolved(protocol), "examples_per_batch": self.runner.unit_size(protocol)}
        opened = partial(open_store, self.stores, name, {**self.settings, **own})
        hosts.first_only(opened)
        return opened()


def main() -> int:
    """Runs the evaluation that the flags describe."""
    judged = _judged()
    default = ["pgd20"] if SWEEP.value else ["clean", "fgsm", "pgd20", "cw", "pgd100"]
    names = default if ATTACKS.value is None else ATTACKS.value
    protocols = build.evaluation_attacks(names, judged.threat)
    with_adaptive = build.ADAPTIVE in names
    if with_adaptive and (SWEEP.value or hosts.several() or (PREDICTION_DRAWS.value or 1) > 1):
        raise InputError(
            "--attacks=adaptive judges single draws of a network at one epsilon in one process; "
            "leave out --sweep, --prediction_draws and several processes"
        )
    try:
        if SWEEP.value:
            _sweep(judged, protocols)
        else:
            _evaluate(judged, protocols, with_adaptive=with_adaptive)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the next batch")
        return 130
    return 0


def _judged() -> Judged:
    """The network that the flags name, on its test images.

    Raises:
        InputError: no such run or checkpoint, flags that contradict each other, a defense that the network lacks.
    """
    workdir = Path(cli.WORKDIR.value)
    config = config_lib.read(workdir)
    cli.join_hosts()
    layout = sharding.layout()
    layout.check_batch_size("--batch_size", BATCH_SIZE.value)
    spelling, defense = (config.defense.name, build.defense(config))
    if DEFENSE.value:
        spelling, defense = build.parsed_defense(DEFENSE.value)
    stochastic = defense is not None and defense.stochastic
    draws, eot_samples, prediction_draws = (
        _of_stochastic(flag, stochastic, default)
        for flag, default in ((DRAWS, 10), (EOT_SAMPLES, 20), (PREDICTION_DRAWS, 1))
    )
    dataset = hosts.together(lambda: build.test_dataset(config, num_examples=NUM_EXAMPLES.value))
    threat = Threat(config.attack.norm, config.attack.epsilon, dataset.num_classes, eot_samples)
    module, variables, step = _network(config, dataset, defense, layout)

    about = records.conditions()
    config = build.plain(config)
    conditions = {
        "dataset": dataset.name,
        "split": "test",
        "seed": SEED.value,
        "checkpoint_step": step,
        "weights": network.digest(variables),
        "batch_norm": "running statistics",
        "defense": spelling,
    }
    if stochastic:
        conditions |= {"num_draws": draws, "eot_samples": eot_samples, "prediction_draws": prediction_draws}
    settings = {
        **conditions,
        "norm": threat.norm,
        "batch_size": BATCH_SIZE.value,
        "model": config["model"],
        "trained_defense": config["defense"],
        "source": about["source"],
        "jax": about["versions"]["jax"],
        "device": about["hardware"]["device"],
    }
    run = runner.make_runner(
        network.logits_fn(module, stochastic=stochastic, prediction_draws=prediction_draws),
        variables,
        dataset,
        epsilon=threat.epsilon,
        norm=threat.norm,
        batch_size=BATCH_SIZE.value,
        layout=layout,
        draws=draws,
    )
    folder = workdir / "evaluation"
    conditions |= {**about, "config": config}
    own_folder = folder / spelling if DEFENSE.value else folder
    logits_fn, hints = hints_of(partial(build.guarded, module), defense, variables)
    if config["model"]["dtype"] == "bfloat16":  # what its users compute in, while it is judged in float32
        coarse = partial(build.guarded, module.clone(dtype="bfloat16"))
        hints = hints._replace(bfloat16_fn=hints_of(coarse, defense, variables)[0])
    if TRANSFER_FROM.value:
        hints = hints._replace(trained_fn=_other_network(Path(TRANSFER_FROM.value), dataset, layout))
    return Judged(run, logits_fn, hints, threat, dataset, conditions, settings, own_folder, folder / "batches")


def _network(
    config: ConfigDict, dataset: data.Dataset, defense: Defense | None, layout: sharding.Layout
) -> tuple[Any, Any, int]:
    """The network with this defense, the weights of the checkpoint that the flags name, and its step."""
    trained = build.model(config, dataset.num_classes, dtype="float32")  # whatever it was trained in
    module = build.guarded(trained, defense)
    if DEFENSE.value and defense is not None and not module.guards:
        raise InputError(f"--defense={DEFENSE.value}: it changes training only, there is nothing to switch on")
    shape = dataset.images.shape[1:]
    abstract, needed = (jax.eval_shape(build.initial_state(config, net, shape)) for net in (trained, module))
    if jax.tree.structure(needed.judged) != jax.tree.structure(abstract.judged):
        raise InputError(
            f"--defense={DEFENSE.value}: the run was trained with {config.defense.name or 'no defense'}, and one of "
            "the two has trained parameters, which cannot be switched on or off; set config.defense.name in training"
        )
    with Checkpoints(cli.WORKDIR.value, read_only=True) as checkpoints:
        step = checkpoints.find(CHECKPOINT.value)
        return module, hosts.together(lambda: checkpoints.restore(step, abstract, layout)).judged, step


def _other_network(workdir: Path, dataset: data.Dataset, layout: sharding.Layout) -> LogitsFn:
    """The network of another run, without the draws that a stochastic defense would make."""
    config = config_lib.read(workdir)
    module = build.model(config, dataset.num_classes, dtype="float32")
    abstract = jax.eval_shape(build.initial_state(config, module, dataset.images.shape[1:]))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        variables = checkpoints.restore(checkpoints.find("best"), abstract, layout).judged
    return jax.tree_util.Partial(lambda variables, images, *key: module.apply(variables, images).logits, variables)


def _of_stochastic(flag: flags.FlagHolder, stochastic: bool, default: int) -> int:
    """A flag that only stochastic networks have; 0 for others."""
    if not stochastic and flag.value is not None:
        raise InputError(f"--{flag.name}: the network is deterministic, and has no draws; leave the flag out")
    return (flag.value or default) if stochastic else 0


def _evaluate(judged: Judged, protocols: dict[str, Protocol], *, with_adaptive: bool) -> None:
    tasks = [session.Task(name, protocol, judged.store(name, protocol)) for name, protocol in protocols.items()]
    threat = {"norm": judged.threat.norm, "epsilon": judged.threat.epsilon}
    outcomes, entries = [], []
    for task, outcome in zip(tasks, session.outcomes(judged.runner, tasks, seed=SEED.value), strict=True):
        outcomes.append(outcome)
        entries.append(records.record(task.name, task.protocol, outcome, conditions=judged.conditions, **threat))
        if hosts.is_first():
            records.write(judged.folder, task.name, entries[-1])
    if not hosts.is_first():
        return
    if with_adaptive:
        outcome, entry = _adaptive(judged, entries)
        outcomes.append(outcome)
        entries.append(entry)
    entries.append(records.worst_case(entries))
    records.write(judged.folder, "worst_case", entries[-1])
    tables.print_records(entries)
    picture = _save_picture(judged, entries[:-1], outcomes)
    print(f"records: {judged.folder}" + (f"; picture: {picture}" if picture else ""))


def _adaptive(judged: Judged, protocol_entries: Sequence[dict[str, Any]]) -> tuple[runner.Outcome, dict[str, Any]]:
    """The verdict of the adaptive attacks: writes and prints the trust report; returns a record like the others."""
    threat = {"norm": judged.threat.norm, "epsilon": judged.threat.epsilon}
    attack = partial(judge, budget=BUDGET.value, **threat)
    images, labels = np.asarray(data.to_float(judged.dataset.images)), judged.dataset.labels
    key = session.attack_key(SEED.value, "adaptive")
    verdict = attack(judged.logits_fn, key, images, labels, hints=judged.hints, progress=True)
    path = trust.write(judged.folder, verdict, protocol=protocol_entries, **judged.conditions)
    trust.print_verdict(verdict, protocol=protocol_entries)
    print(f"verdict: {path}")

    left, by_attack = np.ones(len(labels), bool), {}
    for name, misclassified in verdict.misclassified_by.items():
        left = left & ~misclassified
        by_attack[name] = left

    # Its adversarial images are classified by the same forward passes and draws as every other attack's.
    budget = BUDGETS[BUDGET.value]
    protocol = Protocol(attack, num_steps=budget.num_steps, num_restarts=1, whole=True)
    units = []
    for i, rows in enumerate(judged.runner.examples(protocol)):
        found = Found(verdict.adversarial[rows], {name: flags[rows] for name, flags in by_attack.items()})
        given = protocol._replace(attack=lambda *_, found=found, **__: found)
        units.append(judged.runner.run_unit(given, key, i, lambda *_: None))
    outcome = judged.runner.outcome(protocol, units)._replace(seconds=verdict.seconds["total"])
    entry = records.record("adaptive", protocol, outcome, conditions=judged.conditions, **threat)
    records.write(judged.folder, "adaptive", entry)
    return outcome, entry


def _save_picture(judged: Judged, entries: Sequence[dict[str, Any]], outcomes: Sequence[runner.Outcome]) -> Path | None:
    """The first images under the attack that the network fares worst against; None where nothing attacked."""
    attacks = [pair for pair in zip(entries, outcomes, strict=True) if pair[0]["num_steps"] > 0]
    if not attacks:
        return None
    worst, outcome = min(attacks, key=lambda pair: pair[0]["accuracy"])
    shown = slice(len(outcome.adversarial))
    path = judged.folder / "examples.png"
    plots.save_examples(
        path,
        np.asarray(data.to_float(judged.dataset.images[shown])),
        outcome.adversarial,
        outcome.clean_predictions[shown],
        outcome.predictions[shown],
        judged.dataset.labels[shown],
        label_names=judged.dataset.label_names,
        title=f"{worst['attack']}, {worst['norm']} epsilon {worst['epsilon']:.4g}: {worst['accuracy']:.1%} robust",
        epsilon=worst["epsilon"],
    )
    return path


def _sweep(judged: Judged, protocols: dict[str, Protocol]) -> None:
    kind, threat = SWEEP.value, judged.threat
    shape = judged.dataset.images.shape[1:]
    swept = sweeps.points(kind, protocols, epsilon=threat.epsilon, norm=threat.norm, image_shape=shape)
    tasks = [session.Task(point.attack, point.protocol, judged.store(point.attack, point.protocol)) for point in swept]
    outcomes = list(session.outcomes(judged.runner, tasks, seed=SEED.value))
    if not hosts.is_first():
        return
    conditions = {"norm": threat.norm, "epsilon": threat.epsilon, **judged.conditions}
    sweep = sweeps.summary(kind, swept, outcomes, num_classes=threat.num_classes, conditions=conditions)
    records.write(judged.folder, f"sweep_{kind}", sweep)
    tables.print_sweep(sweep)
    picture = judged.folder / f"sweep_{kind}.png"
    curves = {name: [] for name in protocols}
    for point, entry in zip(swept, sweep["points"], strict=True):
        curves[point.attack].append((point.at, entry["accuracy"], *entry["interval_95"]))
    plots.save_sweep(
        picture,
        curves,
        quantity=kind,
        marked=threat.epsilon if kind == "epsilon" else None,
        chance=sweep["chance"],
        title=(
            f"{sweep['config']['model']['name']} on {len(judged.dataset.labels):,} test images of "
            f"{judged.dataset.name}, {threat.norm}" + (f" epsilon {threat.epsilon:.4g}" if kind == "steps" else "")
        ),
    )
    print(f"sweep: {judged.folder / f'sweep_{kind}.json'}; picture: {picture}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    cli.run(main)
