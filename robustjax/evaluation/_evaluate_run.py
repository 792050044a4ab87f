"""What ``python -m robustjax.evaluate`` does, as one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from robustjax.attacks.engine import inputs
from robustjax.evaluation import _evaluate, _named, _options
from robustjax.evaluation._options import Options
from robustjax.evaluation._result import Evaluation, by_threat, worst_case
from robustjax.evaluation._subject import Subject
from robustjax.evaluation.protocol import (
    card,
    folder,
    pictures,
    protocols,
    records,
    requirements,
    session,
    specs,
    sweeps,
    tables,
)
from robustjax.evaluation.protocol.runner import floats
from robustjax.evaluation.protocol.specs import Spec
from robustjax.evaluation.protocol.threats import NO_BALL, Threat
from robustjax.evaluation.verdict import trust
from robustjax.runtime import files, hosts
from robustjax.types import InputError

# Options that name places, which may have other names on other machines.
PLACES = ("workdir", "output", "data_dir", "weights", "card", "save_images")


def evaluate_run(options: Options) -> Evaluation | dict[str, Any]:
    """Evaluates the network of a run or a ``model`` and prints a table; for a run it resumes where it was stopped.

    The results of a run are written to ``workdir/evaluation`` (with a ``defense``, other ``data`` or another ``split``
    to a folder of it below), those of a model to ``output`` if it is given: ``<attack>.json``, ``worst_case.json``,
    ``results.csv`` and ``examples.png``, of adaptive attacks ``trust.json`` and ``trust.md``, of a sweep
    ``sweep_<kind>.json`` and ``.png`` instead. The folder holds records of one set of conditions: those of others, such
    as fewer images or another threat, are put aside in ``earlier/`` and come back when they are evaluated again. The
    worst case of a run is over all records of its conditions, also those of calls before; of a ``model``, which may
    have changed, the records are those of one call.

    Args:
        options: an :class:`Options`, whose attributes are the flags of the command.

    Returns:
        An :class:`Evaluation`; of a sweep the dict that is written.

    Raises:
        InputError: options that contradict each other, no such run, checkpoint, model or data, unknown attacks, a
            network that does not fit the images, or a defense that it lacks.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "mine.py"
        >>> text = "def network(): return lambda images: images.reshape(len(images), -1)[:, 20:30]"
        >>> _ = file.write_text(text)
        >>> options = Options(model=f"{file}:network", data="digits", num_examples=20, epsilon="0.1", batch_size=20)
        >>> result = evaluate_run(options._replace(attacks=["clean", "pgd20"]))
        estimated...
        >>> result.worst_case["accuracy"]
        0.1
    """
    _options.check(options)
    hosts.agree({name: value for name, value in options._asdict().items() if name not in PLACES})
    sweep = sweeps.parse(options.sweep) if options.sweep is not None else None
    default = _evaluate.DEFAULT_ATTACKS if sweep is None else ("pgd20",)
    chosen = specs.parse(default if options.attacks is None else options.attacks)
    requirements.parse(options.require, [spec.spelling for spec in chosen])
    if options.workdir is not None:
        subject, trained, place = _named.of_run(options)
    else:
        subject, trained = _named.of_model(options), None
        place = files.place(options.output) if options.output else None
    if place is not None:
        hosts.first_only(partial(files.check_target, "--workdir" if options.workdir else "--output", place))
    threats = _options.threats_of(options, trained)
    _refuse(options, chosen, threats)
    if any(threat.bounds != (0.0, 1.0) for threat in threats):
        for threat in threats:
            inputs.on_host(floats(subject.images), subject.labels, threat.epsilon, threat.norm, threat.bounds)
    own = folder.mark(subject.conditions, threats, len(subject.labels))
    hosts.agree({"network and images": own})
    subject = subject._replace(conditions={**subject.conditions, folder.MARK: own})
    if sweep is not None:
        found = subject.protocols(chosen, threats[0])
        return _sweep(*sweep, subject, threats[0], found, lambda: _settled(place, own))
    several = len(threats) > 1
    anew = options.model is not None  # nothing tells whether it is the network that it was in an earlier call

    def on_record(record: dict[str, Any]) -> None:
        nonlocal anew
        if place is None or not hosts.is_first():
            return
        with folder.held(place):
            folder.settle(place, own, anew=anew)  # each time: other evaluations may write there meanwhile
            records.write(place, folder.record_name(record, several=several), record)
        anew = False

    evaluation = _evaluate.evaluate_subject(
        subject, threats, chosen, budget=options.budget, progress=True, on_record=on_record
    )
    if not hosts.is_first():
        return evaluation
    with folder.held(place) if place is not None else contextlib.nullcontext():
        if place is not None:
            folder.settle(place, own)
        before = _of_before(evaluation, place, own, several=several) if options.workdir is not None and place else []
        if before:
            every = [*before, *evaluation.records]
            evaluation = evaluation._replace(worst_case=worst_case(every), by_threat=by_threat(every))
        _write(evaluation, before, subject, options, place)
    return evaluation


def _refuse(options: Options, chosen: Sequence[Spec], threats: Sequence[Threat]) -> None:
    """What only the threats and attacks together tell, before anything runs."""
    single = options.sweep is None and not hosts.several() and (options.prediction_draws or 1) == 1
    if any(spec.name == protocols.ADAPTIVE for spec in chosen) and not single:
        raise InputError(
            "--attacks=adaptive judges single draws of a network at one epsilon in one process; "
            "leave out --sweep, --prediction_draws and several processes"
        )
    if options.card is not None:
        card.check([spec.spelling for spec in chosen], threats)
    if options.save_images is not None and len(threats) > 1:
        raise InputError("--save_images must be of images in one ball, got several threats; give one --threat")
    if options.sweep is not None:
        if len(threats) > 1:
            raise InputError("--sweep must be of one threat, got several; give one --threat")
        given = [spec.spelling for spec in chosen if spec.name in specs.GIVEN]
        if given:
            raise InputError(f"--sweep must be of attacks, got {', '.join(given)}, whose images are what they are")


def _of_before(evaluation: Evaluation, place: Path, own: str, *, several: bool) -> list[dict[str, Any]]:
    """The records of earlier calls under the same conditions, of attacks that this one did not run."""
    ran = {folder.record_name(record, several=several) for record in evaluation.records}
    return [record for record in folder.read(place, own) if folder.record_name(record, several=several) not in ran]


def _settled(place: Path | None, own: str) -> Path | None:
    """The folder of the results, ready for them, in the process that writes."""
    if place is None or not hosts.is_first():
        return None
    with folder.held(place):
        folder.settle(place, own)
    return place


def _write(
    evaluation: Evaluation,
    before: Sequence[dict[str, Any]],
    subject: Subject,
    options: Options,
    place: Path | None,
) -> None:
    """Files and tables of an evaluation."""
    if place is not None:
        evaluation.save(place)
        if before:
            files.write(place / "results.csv", tables.csv_text([*before, *evaluation.rows]))
    if evaluation.verdict is not None:
        tables.show(trust.table(evaluation.verdict, protocol=evaluation.usual_records))
        if place is not None:
            print(f"trust report: {place / 'trust.md'}")
    tables.show(evaluation.table())
    if options.per_class:
        tables.show(evaluation.class_table())
    if place is not None:
        picture = _save_picture(evaluation, subject, place)
        print(f"records: {place}" + (f"; picture: {picture}" if picture else ""))
    if options.save_images is not None:
        evaluation.save_images(options.save_images)
        print(f"images: {options.save_images}" + (", of the attacks of this call alone" if before else ""))
    if options.card is not None:
        card.write(options.card, evaluation.card())
        print(f"card: {options.card}; to be filled in: {', '.join(card.TO_FILL_IN)}")


def _sweep(
    kind: str,
    values: Sequence[float] | None,
    subject: Subject,
    threat: Threat,
    chosen: dict[str, protocols.Protocol],
    settled: Callable[[], Path | None],
) -> dict[str, Any]:
    runner = subject.runner(threat)
    swept = sweeps.points(kind, chosen, threat=threat, image_shape=subject.images.shape[1:], values=values)
    tasks = [subject.task(point.attack, point.protocol, runner) for point in swept]
    outcomes = list(session.outcomes(runner, tasks, key=subject.key))
    conditions = {"norm": threat.norm, "epsilon": threat.epsilon, **subject.conditions}
    sweep = sweeps.summary(kind, swept, outcomes, num_classes=subject.num_classes, conditions=conditions)
    if not hosts.is_first():
        return sweep
    tables.show(tables.of_sweep(sweep))
    place = settled()
    if place is None:
        return sweep
    records.write(place, f"sweep_{kind}", sweep)
    picture = place / f"sweep_{kind}.png"
    curves = {name: [] for name in chosen}
    for point, entry in zip(swept, sweep["points"], strict=True):
        curves[point.attack].append((point.at, entry["accuracy"], *entry["interval_95"]))
    with files.writing(picture):
        pictures.save_sweep(
            picture,
            curves,
            quantity=kind,
            marked=threat.epsilon if kind == "epsilon" else None,
            chance=sweep["chance"],
            title=(
                f"{tables.network_name(sweep)} on {len(subject.labels):,} images of {sweep['dataset']}, {threat.norm}"
                + (f" epsilon {threat.epsilon:.4g}" if kind == "steps" else "")
            ),
        )
    print(f"sweep: {place / f'sweep_{kind}.json'}; picture: {picture}")
    return sweep


def _save_picture(evaluation: Evaluation, subject: Subject, place: Path) -> Path | None:
    """The first images under the strongest attack, the one that leaves least accuracy; None where nothing attacked."""
    attacks = [
        (record, outcome)
        for record, outcome in zip(evaluation.records, evaluation.outcomes, strict=True)
        if record["attack"] != "clean" and record["norm"] != NO_BALL
    ]
    if not attacks:
        return None
    strongest, outcome = min(attacks, key=lambda pair: pair[0]["accuracy"])
    shown = slice(len(outcome.adversarial))
    path = place / "examples.png"
    names = [*(subject.class_names or ())]
    with files.writing(path):
        pictures.save_examples(
            path,
            np.asarray(floats(subject.images[shown])),
            outcome.adversarial,
            outcome.clean_predictions[shown],
            outcome.predictions[shown],
            subject.labels[shown],
            label_names=names + [str(label) for label in range(len(names), subject.num_classes)],
            title=(
                f"the first images under {strongest['attack']}, {strongest['norm']} epsilon "
                f"{strongest['epsilon']:.4g}, which leaves {strongest['accuracy']:.1%} of all"
            ),
            epsilon=strongest["epsilon"],
        )
    return path
