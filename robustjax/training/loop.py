"""The loop around the compiled step: order of examples in, metrics and checkpoints out."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax import data
from robustjax.training import metrics, sharding, step, validation
from robustjax.training.checkpoint import Checkpoints
from robustjax.training.progress import Display
from robustjax.training.state import TrainState
from robustjax.types import Attack, InputError

# How long the host leaves the device alone: long enough that dispatching costs nothing, short enough that a signal is
# answered and the bar moves.
SECONDS_PER_DISPATCH = 1.0


class Experiment(NamedTuple):
    """A run as functions and data; `build.experiment` makes one from a config.

    Attributes:
        config: every key of the run, as plain data.
        train, validation: data sets.
        module: the network.
        create_state: () -> the state before the first step.
        warm_start: () -> variables that take the place of that state's, or None.
        step: one update.
        schedule: step -> learning rate.
        validation_attacks: name -> attack, None for clean accuracy.
    """

    config: dict[str, Any]
    train: data.Dataset
    validation: data.Dataset
    module: Any
    create_state: Callable[[], TrainState]
    warm_start: Callable[[], dict[str, Any]] | None
    step: step.Step
    schedule: Callable[[int], Any]
    validation_attacks: Mapping[str, Attack | None]

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch; what is left over is in another place of the order next time."""
        return len(self.train.labels) // self.config["train"]["batch_size"]

    @property
    def num_steps(self) -> int:
        return self.config["train"]["num_epochs"] * self.steps_per_epoch


class Stopped(NamedTuple):
    """How a run ended: after `step` of `num_steps` updates, complete or on a signal."""

    step: int
    num_steps: int

    @property
    def complete(self) -> bool:
        return self.step == self.num_steps


def run(experiment: Experiment, workdir: str | Path) -> Stopped:
    """Trains until the last epoch or a signal, from the newest checkpoint in workdir where there is one.

    Raises:
        InputError: workdir belongs to a run of another config, or the devices cannot share a batch.
        FloatingPointError: a loss that is not finite, with the step and the checkpoint to go back to.
    """
    settings = experiment.config["train"]
    layout = sharding.layout()
    layout.check_batch_size("train.batch_size", settings["batch_size"])
    layout.check_batch_size("validation.batch_size", experiment.config["validation"]["batch_size"])
    variables = None
    if experiment.warm_start is not None and not any(Path(workdir).glob("checkpoints/*")):
        variables = experiment.warm_start()  # before anything is written: it may not fit
    _claim(Path(workdir), experiment.config)

    with (
        Checkpoints(workdir, keep=settings["keep_checkpoints"]) as checkpoints,
        _stop_signals() as stopping,
    ):
        state, at = _start(experiment, checkpoints, layout, variables)
        dispatch = step.make_dispatch(experiment.step, layout)
        validate = validation.make_validation(
            experiment.module,
            experiment.validation_attacks,
            experiment.validation,
            batch_size=experiment.config["validation"]["batch_size"],
            layout=layout,
        )
        images, labels = layout.replicate((experiment.train.images, experiment.train.labels))
        pace = Pace(most=settings["log_every_steps"])
        with (
            metrics.MetricsWriter(workdir, after_step=at) as writer,
            Display("training", total=experiment.num_steps, done=at) as display,
        ):
            display.say(_opening(experiment, layout, at))
            accuracies = ""
            while at < experiment.num_steps and not stopping():
                order = _order(experiment, at, rows=settings["log_every_steps"])
                count = min(pace.steps(), _next_line(experiment, at) - at)
                started = time.perf_counter()
                state = dispatch(state, images, labels, order, count)
                jax.block_until_ready(state.step)
                pace.record(count, time.perf_counter() - started)
                at += count
                rate = f"{settings['batch_size'] * pace.steps_per_second:,.0f} images/s"
                display.update(at, f"{rate}{accuracies}")

                if at == _next_line(experiment, at - 1):
                    state = _log(experiment, state, at, writer, pace, checkpoints)
                if at % experiment.steps_per_epoch == 0 and _validation_due(experiment, at):
                    figures = validate(state.judged, jax.random.fold_in(state.key, at))
                    writer.write("validation", at, at / experiment.steps_per_epoch, figures)
                    accuracies = "".join(
                        f", {name.removesuffix('_accuracy')} {value:.1%}" for name, value in figures.items()
                    )
                    epoch = f"epoch {at // experiment.steps_per_epoch}/{settings['num_epochs']}"
                    display.say(f"{epoch}: validation{accuracies[1:]}; {rate}")
                    _warn_of_overfitting(workdir, display)
                    checkpoints.save(at, state, figures)
            if at < experiment.num_steps and checkpoints.latest() != at:
                checkpoints.save(at, state)
    return Stopped(at, experiment.num_steps)


class Pace:
    """How many steps make a dispatch of about `SECONDS_PER_DISPATCH`. The first, with compilation, is a single step."""

    def __init__(self, *, most: int):
        self._most = most
        self._seconds_per_step: float | None = None
        self._compiled = False

    @property
    def steps_per_second(self) -> float:
        return 1.0 / self._seconds_per_step if self._seconds_per_step else 0.0

    def steps(self) -> int:
        if self._seconds_per_step is None:
            return 1
        return max(1, min(self._most, round(SECONDS_PER_DISPATCH / self._seconds_per_step)))

    def record(self, count: int, seconds: float) -> None:
        if self._compiled:
            self._seconds_per_step = seconds / count
        self._compiled = True


def _claim(workdir: Path, config: dict[str, Any]) -> None:
    """Makes workdir this run's, or finds that it is already."""
    path = workdir / "config.json"
    if path.exists():
        differing = sorted(_differing_keys(json.loads(path.read_text()), config))
        if differing:
            raise InputError(
                f"{workdir} holds a run of another config, differing in {', '.join(differing)}; "
                "give another --workdir, or the config it was started with"
            )
        return
    if (workdir / "checkpoints").exists():
        raise InputError(f"{workdir} holds checkpoints but no config.json to tell of what; give another --workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        part = path.with_name("config.json.part")
        part.write_text(json.dumps(config, indent=2) + "\n")
        part.replace(path)
    except OSError as error:
        raise InputError(f"--workdir {workdir} cannot be written: {error.strerror}") from error


def _differing_keys(a: Any, b: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from _differing_keys(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
    elif a != b:
        yield prefix


def _start(
    experiment: Experiment, checkpoints: Checkpoints, layout: sharding.Layout, variables: dict[str, Any] | None
) -> tuple[TrainState, int]:
    latest = checkpoints.latest()
    if latest is not None:
        return checkpoints.restore(latest, jax.eval_shape(experiment.create_state), layout), latest
    state = jax.jit(experiment.create_state, out_shardings=layout.replicated)()
    if variables is not None:
        average = None if state.average is None else layout.replicate(jax.tree.map(np.array, variables))
        state = state._replace(variables=layout.replicate(variables), average=average)
    return state, 0


def _order(experiment: Experiment, at: int, *, rows: int) -> np.ndarray:
    """The next `rows` batches of the epoch as indices [rows, batch size], the last ones zeros where it ends before."""
    size = experiment.config["train"]["batch_size"]
    epoch, done = divmod(at, experiment.steps_per_epoch)
    order = data.epoch_order(experiment.config["seed"], epoch, len(experiment.train.labels))
    order = order[: experiment.steps_per_epoch * size].reshape(-1, size)[done : done + rows]
    return np.concatenate([order, np.zeros((rows - len(order), size), order.dtype)])


def _next_line(experiment: Experiment, at: int) -> int:
    """The first step after `at` at which a line of metrics is due: every so many steps of an epoch, and at its end."""
    every = experiment.config["train"]["log_every_steps"]
    epoch, done = divmod(at, experiment.steps_per_epoch)
    return epoch * experiment.steps_per_epoch + min((done // every + 1) * every, experiment.steps_per_epoch)


def _log(
    experiment: Experiment,
    state: TrainState,
    at: int,
    writer: metrics.MetricsWriter,
    pace: Pace,
    checkpoints: Checkpoints,
) -> TrainState:
    """Writes the means since the last line, and starts their sums anew."""
    sums = {name: float(value) for name, value in jax.device_get(state.sums).items()}
    count = sums.pop("steps")
    means = {name: value / count for name, value in sums.items()}
    for name, value in means.items():
        if not math.isfinite(value):
            latest = checkpoints.latest()
            raise FloatingPointError(
                f"{name} is {value} in the {count:.0f} steps up to step {at}; "
                + (
                    f"the checkpoint of step {latest} is good"
                    if latest is not None
                    else "no checkpoint was written yet"
                )
            )
    means["learning_rate"] = float(experiment.schedule(at - 1))
    writer.write("train", at, at / experiment.steps_per_epoch, means)
    writer.plot("train", at, {"images_per_second": pace.steps_per_second * experiment.config["train"]["batch_size"]})
    # Zeros that lie on the devices as the sums do, or the next dispatch would be compiled for another layout.
    return state._replace(
        sums=jax.tree.map(lambda sums: jax.device_put(np.zeros_like(sums), sums.sharding), state.sums)
    )


def _validation_due(experiment: Experiment, at: int) -> bool:
    epoch = at // experiment.steps_per_epoch
    return epoch % experiment.config["validation"]["every_epochs"] == 0 or at == experiment.num_steps


def _warn_of_overfitting(workdir: str | Path, display: Display) -> None:
    history = [line for line in metrics.read(workdir) if line["split"] == "validation"]
    if validation.catastrophic_overfitting(history):
        display.say(
            "warning: catastrophic overfitting: FGSM accuracy {fgsm_accuracy:.1%}, PGD accuracy {pgd_accuracy:.1%}; "
            "the training attack no longer finds what PGD finds (try attack.name=pgd or n_fgsm)".format(**history[-1])
        )


def _opening(experiment: Experiment, layout: sharding.Layout, at: int) -> str:
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(experiment.create_state).variables["params"]))
    device = f"{layout.num_devices} {jax.devices()[0].device_kind}"
    return (
        f"{experiment.config['model']['name']} ({size:,} parameters) on {experiment.train.name} "
        f"({len(experiment.train.labels):,} images), {device}, "
        + (f"going on after step {at:,}" if at else _beginning(experiment))
        + f" of {experiment.num_steps:,}; compiling"
    )


def _beginning(experiment: Experiment) -> str:
    return f"from the weights of {experiment.config['init_from']}" if experiment.warm_start else "from the start"


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM or SIGINT has come. The second one has its usual effect."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        for number, handler in previous.items():
            signal.signal(number, handler)

    with contextlib.suppress(ValueError):  # only the main thread may set handlers; a notebook's thread goes without
        previous.update({number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)})
    try:
        yield lambda: bool(received)
    finally:
        if not received:
            for number, handler in previous.items():
                signal.signal(number, handler)
