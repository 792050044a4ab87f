"""The evaluation of a trained run, as one call: what ``python -m robustjax.evaluate`` does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax import build, data, runs
from robustjax import config as config_lib
from robustjax.evaluation import _evaluate
from robustjax.evaluation._evaluate import Evaluation, Subject
from robustjax.evaluation.protocol import pictures, protocols, records, session, sweeps, tables
from robustjax.evaluation.protocol.protocols import Threat
from robustjax.evaluation.verdict import trust
from robustjax.evaluation.verdict.hints import hints_of
from robustjax.runs import network
from robustjax.runtime import hosts, sharding
from robustjax.types import InputError, LogitsFn


class Options(NamedTuple):
    """How a run is evaluated; each is a flag of ``python -m robustjax.evaluate``.

    Attributes:
        workdir: of the run.
        attacks: in the order in which they run; None: clean, fgsm, pgd20, cw and pgd100, of a sweep pgd20.
        num_examples: only the first so many images; None: all.
        split: of the data set.
        checkpoint: ``"best"`` by robust validation accuracy, ``"last"``, or a step.
        batch_size: images at a time, over all devices.
        seed: of attacks that draw.
        budget: of the adaptive attacks, ``"quick"`` or ``"full"``.
        transfer_from: folder of another run on the same data, from whose network adaptive attacks transfer.
        sweep: ``"epsilon"`` or ``"steps"``: accuracy against them in place of records.
        defense: evaluate the network with a defense switched on, as ``"sap:fraction=0.5"``, or with ``"none"`` off.
        eot_samples, num_draws, prediction_draws: of a stochastic network: draws over which attacks average (20), fresh
            ones on which each image is classified (10), and draws whose probabilities one prediction averages (1).
    """

    workdir: str
    attacks: Sequence[str] | None = None
    num_examples: int | None = None
    split: str = "test"
    checkpoint: str = "best"
    batch_size: int = 500
    seed: int = 0
    budget: str = "quick"
    transfer_from: str | None = None
    sweep: str | None = None
    defense: str | None = None
    eot_samples: int | None = None
    num_draws: int | None = None
    prediction_draws: int | None = None


def evaluate_run(options: Options) -> Evaluation | dict[str, Any]:
    """Evaluates the network of a run under the threat it was trained for; goes on where it was stopped.

    Writes ``<attack>.json``, ``worst_case.json`` and ``examples.png`` to ``workdir/evaluation`` (with a ``defense`` to
    a folder of it below), of adaptive attacks ``trust.json`` and ``trust.md``, of a sweep ``sweep_<kind>.json`` and
    ``.png`` instead, and prints a table.

    Returns:
        The evaluation, or the sweep as it is written.

    Raises:
        InputError: no such run or checkpoint, options that contradict each other, or a defense that the network lacks.
    """
    names = options.attacks or (["pgd20"] if options.sweep else list(_evaluate.DEFAULT_ATTACKS))
    run = runs.load(options.workdir, checkpoint=options.checkpoint, defense=options.defense)
    dataset = hosts.together(lambda: run.test_data(options.num_examples, split=options.split))
    threat = Threat(run.config.attack.norm, run.config.attack.epsilon)
    subject = _subject(options, run, dataset)
    chosen = subject.protocols(names, threat)
    single = not options.sweep and not hosts.several() and (options.prediction_draws or 1) == 1
    if protocols.ADAPTIVE in names and not single:
        raise InputError(
            "--attacks=adaptive judges single draws of a network at one epsilon in one process; "
            "leave out --sweep, --prediction_draws and several processes"
        )
    folder = Path(options.workdir) / "evaluation"
    if options.defense:
        folder = folder / str(run.spelling)
    if options.split != "test":  # records of other images must not mix with those of the test images
        folder = folder / f"split={options.split}"
    if options.sweep:
        return _sweep(options.sweep, subject, dataset, threat, chosen, folder)
    evaluation = _evaluate.run(
        subject,
        [threat],
        names,
        budget=options.budget,
        progress=True,
        on_record=lambda record: records.write(folder, record["attack"], record) if hosts.is_first() else None,
    )
    if hosts.is_first():
        evaluation.save(folder)
        if evaluation.verdict is not None:
            tables.show(trust.table(evaluation.verdict, protocol=evaluation.usual_records))
            print(f"verdict: {folder / 'trust.json'}")
        tables.show(evaluation.table())
        picture = _save_picture(evaluation, dataset, folder)
        print(f"records: {folder}" + (f"; picture: {picture}" if picture else ""))
    return evaluation


def _subject(options: Options, run: runs.Run, dataset: data.Dataset) -> Subject:
    """The network of a run on its test images, with what its defense declares."""
    layout = sharding.layout()
    layout.check_batch_size("--batch_size", options.batch_size)
    draws = {"num_draws": (options.num_draws, _evaluate.NUM_DRAWS)}
    draws |= {"eot_samples": (options.eot_samples, _evaluate.EOT_SAMPLES)}
    draws |= {"prediction_draws": (options.prediction_draws, 1)}
    if not run.stochastic:
        for name, (given, _) in draws.items():
            if given is not None:
                flag = "draws" if name == "num_draws" else name
                raise InputError(f"--{flag}: the network is deterministic, and has no draws; leave the flag out")
    drawn = {name: given or default for name, (given, default) in draws.items()} if run.stochastic else {}
    about = records.conditions()
    config = config_lib.plain(run.config)
    conditions = {
        "dataset": dataset.name,
        "split": options.split,
        "seed": options.seed,
        "checkpoint_step": run.step,
        "weights": network.digest(run.variables),
        "batch_norm": "running statistics",
        "defense": run.spelling,
        **drawn,
    }
    settings = {
        **conditions,
        "batch_size": options.batch_size,
        "model": config["model"],
        "trained_defense": config["defense"],
        "source": about["source"],
        "jax": about["versions"]["jax"],
        "device": about["hardware"]["device"],
    }
    logits_fn, hints = hints_of(run.with_defense, run.defense, run.variables)
    if config["model"]["dtype"] == "bfloat16":  # what its users compute in, while it is evaluated in float32
        coarse = run.module.clone(dtype="bfloat16")
        hints = hints._replace(bfloat16_fn=hints_of(partial(build.guarded, coarse), run.defense, run.variables)[0])
    if options.transfer_from:
        hints = hints._replace(trained_fn=_without_draws(runs.load(options.transfer_from)))
    predict = network.logits_fn(
        run.module, stochastic=run.stochastic, prediction_draws=drawn.get("prediction_draws", 1)
    )
    return Subject(
        network=jax.tree_util.Partial(predict, run.variables),
        hints=hints,
        adaptive_fn=logits_fn,
        images=dataset.images,
        labels=dataset.labels,
        num_classes=dataset.num_classes,
        key=jax.random.key(options.seed),
        batch_size=options.batch_size,
        eot_samples=drawn.get("eot_samples", 0),
        num_draws=drawn.get("num_draws", 0),
        conditions=conditions | {**about, "config": config},
        settings=settings,
        stores=Path(options.workdir) / "evaluation" / "batches",
    )


def _without_draws(run: runs.Run) -> LogitsFn:
    """The network that a run trained, without the draws that a stochastic defense would make."""
    module = run.with_defense(None) if run.stochastic else run.module
    return jax.tree_util.Partial(lambda variables, images, *key: module.apply(variables, images).logits, run.variables)


def _sweep(
    kind: str,
    subject: Subject,
    dataset: data.Dataset,
    threat: Threat,
    chosen: dict[str, protocols.Protocol],
    folder: Path,
) -> dict[str, Any]:
    runner = subject.runner(threat)
    swept = sweeps.points(kind, chosen, threat=threat, image_shape=dataset.image_shape)
    tasks = [subject.task(point.attack, point.protocol, runner) for point in swept]
    outcomes = list(session.outcomes(runner, tasks, key=subject.key))
    conditions = {"norm": threat.norm, "epsilon": threat.epsilon, **subject.conditions}
    sweep = sweeps.summary(kind, swept, outcomes, num_classes=subject.num_classes, conditions=conditions)
    if not hosts.is_first():
        return sweep
    records.write(folder, f"sweep_{kind}", sweep)
    tables.show(tables.of_sweep(sweep))
    picture = folder / f"sweep_{kind}.png"
    curves = {name: [] for name in chosen}
    for point, entry in zip(swept, sweep["points"], strict=True):
        curves[point.attack].append((point.at, entry["accuracy"], *entry["interval_95"]))
    pictures.save_sweep(
        picture,
        curves,
        quantity=kind,
        marked=threat.epsilon if kind == "epsilon" else None,
        chance=sweep["chance"],
        title=(
            f"{sweep['config']['model']['name']} on {len(dataset.labels):,} test images of {dataset.name}, "
            f"{threat.norm}" + (f" epsilon {threat.epsilon:.4g}" if kind == "steps" else "")
        ),
    )
    print(f"sweep: {folder / f'sweep_{kind}.json'}; picture: {picture}")
    return sweep


def _save_picture(evaluation: Evaluation, dataset: data.Dataset, folder: Path) -> Path | None:
    """The first images under the strongest attack, the one that leaves least accuracy; None where nothing attacked."""
    attacks = [pair for pair in zip(evaluation.records, evaluation.outcomes, strict=True) if pair[0]["num_steps"] > 0]
    if not attacks:
        return None
    strongest, outcome = min(attacks, key=lambda pair: pair[0]["accuracy"])
    shown = slice(len(outcome.adversarial))
    path = folder / "examples.png"
    pictures.save_examples(
        path,
        np.asarray(data.to_float(dataset.images[shown])),
        outcome.adversarial,
        outcome.clean_predictions[shown],
        outcome.predictions[shown],
        dataset.labels[shown],
        label_names=dataset.label_names,
        title=(
            f"{strongest['attack']}, {strongest['norm']} epsilon {strongest['epsilon']:.4g}: "
            f"{strongest['accuracy']:.1%} robust"
        ),
        epsilon=strongest["epsilon"],
    )
    return path
