"""The loop around the compiled step: it orders the examples and writes metrics and checkpoints."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax.runtime import hosts, sharding
from robustjax.runtime.progress import Progress, duration
from robustjax.runtime.signals import stop_signals
from robustjax.training import feeding, metrics, step, validation
from robustjax.training.experiment import CheckpointStore, Experiment
from robustjax.training.pace import Pace
from robustjax.training.state import TrainState
from robustjax.types import InputError

# The part of a run after which a network should be better than a guess.
WARN_OF_CHANCE_AFTER = 0.1

# A run that is not finite at a thousandth of its learning rate has another fault.
MOST_HALVINGS = 10


class Stopped(NamedTuple):
    """How a run ended: after ``step`` of ``num_steps`` updates, complete or on a signal.

    Attributes:
        step, num_steps: updates made, and updates of the whole run.
        warning: what is wrong with a network whose newest validation accuracy is at chance; else "".
    """

    step: int
    num_steps: int
    warning: str = ""

    @property
    def complete(self) -> bool:
        return self.step == self.num_steps


class NotFiniteError(FloatingPointError):
    """A metric or the state of a run is not finite. ``rate_factor`` is the factor on the learning rate it had then."""

    def __init__(self, what: str, rate_factor: float):
        super().__init__(what)
        self.rate_factor = rate_factor


def check(config: Mapping[str, Any], layout: sharding.Layout) -> None:
    """Raises InputError unless the devices can share the batches of training and validation evenly.

    Likewise if the part of a batch that is left natural is none of what is attacked together, or all of it.

    Args:
        config: of a run, every key, as plain data.
        layout: of the devices.
    """
    settings = config["train"]
    layout.check_batch_size("train.batch_size", settings["batch_size"], parts=settings["accumulation"])
    layout.check_batch_size("validation.batch_size", config["validation"]["batch_size"])
    parts = layout.num_devices if config["batch_norm"]["devices"] == "per_device" else 1
    at_once = settings["batch_size"] // (settings["accumulation"] * parts)
    share = config["objective"]["natural_share"]
    if share and not 0 < round(share * at_once) < at_once:
        raise InputError(
            f"objective.natural_share must be 0, or leave at least one of the {at_once} images that are attacked "
            f"together natural, and one not, got {share}"
        )


def run(
    experiment: Experiment,
    workdir: str | Path,
    checkpoints: CheckpointStore,
    *,
    initial_variables: Callable[[], dict[str, Any]] | None = None,
) -> Stopped:
    """Trains until the last epoch or a signal, from the newest intact checkpoint where there is one.

    Args:
        experiment: what to train.
        workdir: receives the metrics.
        checkpoints: what to go on from, and where states are kept.
        initial_variables: () -> variables that a run without a checkpoint begins with.

    Raises:
        InputError: none of the checkpoints is intact, or the devices cannot share a batch.
        FloatingPointError: a loss that is not finite, with the step and the checkpoint to go back to.
        WriteError: the disk is full or gone; what was saved before is intact.
    """
    settings, layout = experiment.config["train"], sharding.layout()
    check(experiment.config, layout)
    with (
        stop_signals() as stopping,
        Progress("training", total=experiment.num_steps, shown=hosts.is_first()) as display,
    ):
        per_device = experiment.config["batch_norm"]["devices"] == "per_device"
        update = step.per_device(experiment.step, layout) if per_device else experiment.step
        programs = Programs(
            layout,
            feeding.make_advance(
                experiment.train,
                update,
                seed=experiment.config["seed"],
                batch_size=settings["batch_size"],
                most=settings["log_every_steps"],
                layout=layout,
                extra=experiment.extra,
                extra_ratio=experiment.config["data"]["extra_ratio"],
            ),
            validation.make_validation(
                experiment.module,
                experiment.validation_attacks,
                experiment.validation,
                batch_size=experiment.config["validation"]["batch_size"],
                layout=layout,
            ),
        )
        start = partial(_start, experiment, checkpoints, layout, display, initial_variables)
        state, at = start()
        display.say(_opening(experiment, layout, at))
        while True:
            try:
                at = _train(experiment, workdir, state, at, programs, checkpoints, display, stopping)
                return Stopped(at, experiment.num_steps, _chance_warning(experiment, workdir))
            except NotFiniteError as error:
                if settings["on_nonfinite"] == "stop":
                    raise FloatingPointError(f"{error}; {_last_good(checkpoints)}") from None
                factor = error.rate_factor / 2
                if factor < 2.0**-MOST_HALVINGS:
                    tried = f"although the learning rate was halved {MOST_HALVINGS} times"
                    raise FloatingPointError(f"{error}, {tried}; {_last_good(checkpoints)}") from None
                # A checkpoint that a signal left is passed over: a run without the signal would not have it.
                state, at = start(validated=True)
                state = state._replace(rate_factor=layout.replicate(np.float32(factor)))
                display.say(f"warning: {error}; back to step {at}, with the learning rate times {factor:g}")


class Programs(NamedTuple):
    """What a run compiles once."""

    layout: sharding.Layout
    advance: feeding.Advance
    validate: Callable[[Any, Any], dict[str, float]]


def _train(
    experiment: Experiment,
    workdir: str | Path,
    state: TrainState,
    at: int,
    programs: Programs,
    checkpoints: CheckpointStore,
    display: Progress,
    stopping: Callable[[], bool],
) -> int:
    """Trains from step ``at`` and returns the step at which it ended. Consumes the state."""
    settings = experiment.config["train"]
    pace = Pace(most=settings["log_every_steps"])
    accuracies, warned_of_chance = "", False
    with metrics.MetricsWriter(workdir, after_step=at) if hosts.is_first() else contextlib.nullcontext() as writer:
        display.update(at, "")
        while at < experiment.num_steps:
            # One process says how many steps, and any may have been asked to stop.
            agreed = hosts.gather(min(pace.steps(), _next_line(experiment, at) - at), stopping())
            if agreed[:, 1].any():
                break
            count = int(agreed[0, 0])
            started = time.perf_counter()
            state = programs.advance(state, at, count)
            jax.block_until_ready(state.step)
            pace.record(count, time.perf_counter() - started)
            at += count
            rate = f"{settings['batch_size'] * pace.steps_per_second:,.0f} images/s"
            display.update(at, f"{rate}{accuracies}")

            if at == _next_line(experiment, at - 1):
                state = _log(experiment, state, at, writer, pace, programs.layout)
            if at % experiment.steps_per_epoch == 0 and _validation_due(experiment, at):
                figures = programs.validate(state.evaluated, jax.random.fold_in(state.key, at))
                accuracies = "".join(
                    f", {name.removesuffix('_accuracy')} {value:.1%}" for name, value in figures.items()
                )
                epoch = f"epoch {at // experiment.steps_per_epoch}/{settings['num_epochs']}"
                left = pace.seconds(experiment.num_steps - at)
                to_go = f"; about {duration(left)} to go" if left else ""
                display.say(f"{epoch}: validation{accuracies[1:]}; {rate}{to_go}")
                if writer:
                    writer.write("validation", at, at / experiment.steps_per_epoch, figures)
                    _warn_of_overfitting(workdir, display)
                    due = not warned_of_chance and at >= WARN_OF_CHANCE_AFTER * experiment.num_steps
                    if due and (warning := _chance_warning(experiment, workdir)):
                        display.say(f"warning: {warning}")
                        warned_of_chance = True
                _save(checkpoints, at, state, figures)
        if at < experiment.num_steps and checkpoints.latest() != at:
            _means(state, at)  # would not be worth keeping
            _save(checkpoints, at, state)
    return at


def _start(
    experiment: Experiment,
    checkpoints: CheckpointStore,
    layout: sharding.Layout,
    display: Progress,
    initial_variables: Callable[[], dict[str, Any]] | None,
    *,
    validated: bool = False,
) -> tuple[TrainState, int]:
    """The state to go on from: of the newest intact checkpoint (that was validated), or from before the first step."""
    abstract = jax.eval_shape(experiment.create_state)
    found = checkpoints.restore_newest(abstract, layout, warn=display.say, validated=validated)
    if found is not None:
        return found
    state = jax.jit(experiment.create_state, out_shardings=layout.replicated)()
    if initial_variables is not None:
        variables = jax.device_get(initial_variables())
        average = None if state.average is None else layout.replicate(jax.tree.map(np.array, variables))
        state = state._replace(variables=layout.replicate(variables), average=average)
    return state, 0


def _next_line(experiment: Experiment, at: int) -> int:
    """The first step after ``at`` with a line of metrics: every so many steps of an epoch, and at its end."""
    every = experiment.config["train"]["log_every_steps"]
    epoch, done = divmod(at, experiment.steps_per_epoch)
    return epoch * experiment.steps_per_epoch + min((done // every + 1) * every, experiment.steps_per_epoch)


def _log(
    experiment: Experiment,
    state: TrainState,
    at: int,
    writer: metrics.MetricsWriter | None,
    pace: Pace,
    layout: sharding.Layout,
) -> TrainState:
    """Writes the means since the last line, and starts their sums anew."""
    means = _means(state, at)
    means["learning_rate"] = float(experiment.schedule(at - 1)) * float(state.rate_factor)
    if writer:
        writer.write("train", at, at / experiment.steps_per_epoch, means)
        rate = pace.steps_per_second * experiment.config["train"]["batch_size"]
        writer.plot("train", at, {"images_per_second": rate})
    # Zeros that lie on the devices as the sums do, or the next dispatch would be compiled for another layout.
    return state._replace(sums=layout.replicate(jax.tree.map(lambda sum: np.zeros(sum.shape, sum.dtype), state.sums)))


def _means(state: TrainState, at: int) -> dict[str, float]:
    """The means since the last line, all finite."""
    sums = {name: float(value) for name, value in jax.device_get(state.sums).items()}
    count = sums.pop("steps")
    means = {name: value / max(count, 1.0) for name, value in sums.items()}
    for name, value in means.items():
        if not math.isfinite(value):
            what = f"{name} is {value} in the {count:.0f} steps up to step {at}"
            raise NotFiniteError(what, float(state.rate_factor))
    return means


def _save(checkpoints: CheckpointStore, at: int, state: TrainState, figures: dict[str, float] | None = None) -> None:
    try:
        checkpoints.save(at, state, figures)
    except FloatingPointError as error:
        raise NotFiniteError(f"{error} after step {at}", float(state.rate_factor)) from None


def _last_good(checkpoints: CheckpointStore) -> str:
    latest = checkpoints.latest()
    return "no checkpoint was written yet" if latest is None else f"the checkpoint of step {latest} is good"


def _validation_due(experiment: Experiment, at: int) -> bool:
    epoch = at // experiment.steps_per_epoch
    return epoch % experiment.config["validation"]["every_epochs"] == 0 or at == experiment.num_steps


def _warn_of_overfitting(workdir: str | Path, display: Progress) -> None:
    history = [line for line in metrics.read(workdir) if line["split"] == "validation"]
    if validation.catastrophic_overfitting(history):
        display.say(
            "warning: catastrophic overfitting: FGSM accuracy {fgsm_accuracy:.1%}, PGD accuracy {pgd_accuracy:.1%}; "
            "the training attack no longer finds what PGD finds (try attack.name=pgd or n_fgsm)".format(**history[-1])
        )


def _chance_warning(experiment: Experiment, workdir: str | Path) -> str:
    """That the newest validation found a network no better than a guess, in words; "" if it did not."""
    lines = [line for line in metrics.read(workdir) if line["split"] == "validation"]
    labels = experiment.validation.labels
    if not lines or not validation.at_chance(lines[-1]["clean_accuracy"], labels):
        return ""
    epoch = f"epoch {lines[-1]['epoch']:.0f} of {experiment.config['train']['num_epochs']}"
    return (
        f"after {epoch} the clean validation accuracy is {lines[-1]['clean_accuracy']:.1%}, which is at chance: naming "
        f"the commonest class for each of the {len(labels):,} images is right for "
        f"{validation.guess_accuracy(labels):.1%}; try another optimizer.learning_rate, a longer "
        "attack.warmup_epochs or a network with BatchNorm"
    )


def _opening(experiment: Experiment, layout: sharding.Layout, at: int) -> str:
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(experiment.create_state).variables["params"]))
    device = f"{layout.num_devices} {jax.devices()[0].device_kind}"
    return (
        f"{experiment.config['model']['name']} ({size:,} parameters) on {experiment.train.name} "
        f"({experiment.train.num_examples:,} images{_more(experiment)}), {device}, "
        + (f"going on after step {at:,} of" if at else f"{_beginning(experiment)},")
        + f" {experiment.num_steps:,}{'' if at else ' steps'}; compiling"
    )


def _more(experiment: Experiment) -> str:
    return f" and {experiment.extra.num_examples:,} of {experiment.extra.name}" if experiment.extra else ""


def _beginning(experiment: Experiment) -> str:
    source = experiment.config["init_from"]
    return f"from the weights of {source}" if source else "from the start"
