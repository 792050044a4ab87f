"""All measurements and figures of one or several runs: what ``python -m robustjax.analysis`` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustjax import data, runs
from robustjax.analysis import plots
from robustjax.analysis._measure import measure
from robustjax.evaluation.protocol import records
from robustjax.evaluation.protocol.threats import Threat
from robustjax.runs import network
from robustjax.runtime import files
from robustjax.runtime.progress import Progress
from robustjax.types import InputError

TITLES = {
    "channels": "Magnitude and activation frequency of channels (CAS)",
    "relevance": "Activation of channels by their relevance to the class (CIFS)",
    "sensitivity": "Neuron sensitivity by layer (SNS)",
    "restoration": "Accuracy with the most sensitive neurons restored (SNS)",
    "separation": "Robust, non-robust and recalibrated features (FSR)",
    "calibration": "Calibration, dense and with SAP",
    "by_class": "Robustness and confusion by class",
    "curves": "Accuracy against epsilon and steps",
    "surface": "Loss along adversarial and random directions",
    "input_gradients": "Gradients at the image",
}


class Analysis(NamedTuple):
    """All measurements and figures of one or several runs.

    Attributes:
        figures: name -> matplotlib figure.
        estimates: figure's name -> network's name -> scalar's name -> :class:`Estimate`.
        skipped: figure's name -> network's name -> why it is left out.
        conditions: networks, data and threat, for records.
    """

    figures: Mapping[str, Any]
    estimates: Mapping[str, Mapping[str, Mapping[str, Any]]]
    skipped: Mapping[str, Mapping[str, str]]
    conditions: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            **self.conditions,
            "figures": [
                {
                    "name": name,
                    "title": TITLES[name],
                    "file": f"{name}.png",
                    "estimates": {
                        run: {scalar: value.plain() for scalar, value in found.items()}
                        for run, found in self.estimates[name].items()
                    },
                    "skipped": dict(self.skipped.get(name, {})),
                }
                for name in self.figures
            ],
        }

    def save(self, folder: str | Path) -> None:
        """Writes ``folder/<figure>.png`` and, with all scalars, ``folder/analysis.json``.

        Raises:
            WriteError: the folder cannot be written.
        """
        folder = files.place(folder)
        for name, figure in self.figures.items():
            plots.save(figure, folder / f"{name}.png")
        files.write(folder / "analysis.json", json.dumps(self.plain()) + "\n")


def analyse(
    workdirs: Sequence[str | Path],
    *,
    num_examples: int = 500,
    checkpoint: str | int = "best",
    seed: int = 0,
    progress: bool = False,
) -> Analysis:
    """Measures what happens inside the networks of runs, and draws the figures of the papers.

    All networks see the first ``num_examples`` test images of the first run's data set, attacked by PGD-20 with steps
    of epsilon / 10 from the image itself under the first run's threat. Of a stochastic network, features and gradients
    are those of one fixed draw, and attacks average over draws.

    Args:
        workdirs: of runs on the same data; the first is the one in question, the others stand beside it.
        num_examples: at least 2; all test images where there are fewer.
        checkpoint: of each run, as for :func:`robustjax.runs.load`.
        seed: of attacks, draws and the bootstrap.
        progress: show how far it is.

    Returns:
        An :class:`Analysis`.

    Raises:
        InputError: there is no such run, runs of different data or image sizes, or too few examples.
    """
    if isinstance(workdirs, str | Path):
        raise InputError(f"workdirs must be a sequence of folders, got {workdirs!r}; give [{str(workdirs)!r}]")
    if not workdirs or num_examples < 2:
        raise InputError(
            f"analysis must have a run and 2 examples at least, got {len(workdirs)} runs and {num_examples} examples"
        )
    loaded = {name: runs.load(path, checkpoint=checkpoint) for name, path in _names(workdirs).items()}
    first = next(iter(loaded.values()))
    for name, run in loaded.items():
        ours, theirs = (one.config.data for one in (first, run))
        if (ours.name, ours.image_size) != (theirs.name, theirs.image_size):
            raise InputError(
                f"runs must be on the same data, got {ours.name} and, in {name}, {theirs.name}; leave that out"
            )
    tests = first.test_data()
    tests = tests._replace(images=tests.images[:num_examples], labels=tests.labels[:num_examples])
    threat = Threat(first.config.attack.norm, first.config.attack.epsilon)
    found: dict[str, dict[str, Any]] = {}
    skipped: dict[str, dict[str, str]] = {}
    with Progress("analysis", total=len(loaded), shown=progress) as bar:
        for i, (name, run) in enumerate(loaded.items()):
            say = lambda part, name=name, i=i: bar.update(i, f"{name}: {part}")  # noqa: E731
            measured, missing = measure(run, tests, threat, seed=seed, say=say)
            for part, value in measured.items():
                found.setdefault(part, {})[name] = value
            for part, reason in missing.items():
                skipped.setdefault(part, {})[name] = reason
    conditions = {
        "networks": {
            name: {"workdir": str(path), "step": run.step, "weights": network.digest(run.variables)}
            for (name, path), run in zip(_names(workdirs).items(), loaded.values(), strict=True)
        },
        "dataset": tests.name,
        "num_examples": tests.num_examples,
        "attack": "PGD-20, steps of epsilon / 10 from the image",
        "norm": threat.norm,
        "epsilon": threat.epsilon,
        "seed": seed,
        **records.conditions(),
    }
    return Analysis(_figures(found, tests, threat), _estimates(found), skipped, conditions)


def _names(workdirs: Sequence[str | Path]) -> dict[str, Path]:
    """What figures call each run: its folder's name, or the whole path where two are called alike."""
    paths = [files.place(workdir) for workdir in workdirs]
    short = [path.resolve().name for path in paths]
    named = {name if short.count(name) == 1 else str(path): path for name, path in zip(short, paths, strict=True)}
    if len(named) < len(paths):
        raise InputError("runs must be different ones, got one twice; leave it out")
    return named


def _figures(found: Mapping[str, Mapping[str, Any]], tests: data.Dataset, threat: Threat) -> dict[str, Any]:
    robust = next(iter(found["by_class"].values()))
    weakest = int(robust.classes[np.argmin([accuracy.value for accuracy in robust.accuracies])])
    chosen = {"of_class": weakest, "name": tests.label_names[weakest]}
    drawn: dict[str, Any] = {"channels": plots.channels(found["channels"], **chosen)}
    if "relevance" in found:
        drawn["relevance"] = plots.relevance(found["relevance"], **chosen)
    drawn["sensitivity"] = plots.sensitivity(found["sensitivity"])
    if "restoration" in found:
        drawn["restoration"] = plots.restoration(found["restoration"])
    if "separation" in found:
        parts = {name: value[0] for name, value in found["separation"].items()}
        drawn["separation"] = plots.separation(parts, {name: value[1] for name, value in found["separation"].items()})
    drawn["calibration"] = plots.calibration(found["calibration"], epsilon=threat.epsilon)
    drawn["by_class"] = plots.by_class(found["by_class"], names=tests.label_names)
    drawn["curves"] = plots.curves(
        *({name: value[i] for name, value in found["curves"].items()} for i in (0, 1)),
        marked=threat.epsilon,
        chance=1 / tests.num_classes,
    )
    drawn["surface"] = plots.surfaces(found["surface"])
    drawn["input_gradients"] = plots.input_gradients(found["input_gradients"], np.asarray(data.to_float(tests.images)))
    return drawn


def _ways(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name + (f", {way}" if way else ""): points for name, ways in found.items() for way, points in ways.items()}


def _estimates(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figure's name -> network's name -> scalars."""
    read: dict[str, Callable[[Any], Mapping[str, Any]]] = {
        "separation": lambda value: {
            f"{which}_{name}": estimate for which, part in value[0].items() for name, estimate in part.estimates.items()
        },
        "curves": lambda value: {
            f"{kind}_{name}": estimate
            for kind, part in zip(("epsilon", "steps"), value, strict=True)
            for name, estimate in part.estimates.items()
        },
    }
    given = {**found, "calibration": _ways(found["calibration"])}
    read["calibration"] = lambda points: {
        f"{name}_at_{epsilon:.4g}": estimate
        for epsilon, part in points.items()
        for name, estimate in part.estimates.items()
    }
    plain = lambda value: value.estimates  # noqa: E731
    return {
        figure: {name: read.get(figure, plain)(value) for name, value in values.items()}
        for figure, values in given.items()
    }
