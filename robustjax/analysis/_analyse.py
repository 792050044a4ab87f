"""All measurements and figures of one or several runs: what ``python -m robustjax.analysis`` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax import data, defenses, runs
from robustjax.analysis import plots
from robustjax.analysis._by_class import by_class
from robustjax.analysis._calibration import Calibration, calibration
from robustjax.analysis._channels import channels
from robustjax.analysis._curve import curve
from robustjax.analysis._landscape import input_gradients, surface
from robustjax.analysis._observe import Observed, attacked, observe
from robustjax.analysis._relevance import relevance
from robustjax.analysis._sensitivity import restoration, sensitivity
from robustjax.analysis._separation import KINDS, fsr_masks, separation
from robustjax.defenses import composition
from robustjax.evaluation.protocol import records, sweeps
from robustjax.evaluation.protocol.threats import Threat
from robustjax.runs import network
from robustjax.runtime import files
from robustjax.runtime.progress import Progress
from robustjax.types import InputError, LogitsFn

STEPS = (1, 2, 5, 10, 20, 50, 100)
CALIBRATION_MULTIPLES = (0.0, 0.25, 0.5, 1.0, 2.0)
# Of a stochastic network: draws over which attacks average, and draws whose probabilities are averaged.
EOT_SAMPLES, NUM_DRAWS = 10, 20
# Images of the surface, each of which is classified 441 times.
SURFACE_IMAGES = 100
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
        """As JSON holds it."""
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
        for name, figure in self.figures.items():
            plots.save(figure, Path(folder) / f"{name}.png")
        files.write(Path(folder) / "analysis.json", json.dumps(self.plain()) + "\n")


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

    Raises:
        InputError: there is no such run, runs of different data or image sizes, or too few examples.
    """
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
            measured, missing = _measure(run, tests, threat, seed=seed, say=say)
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
    paths = [Path(workdir) for workdir in workdirs]
    short = [path.resolve().name for path in paths]
    named = {name if short.count(name) == 1 else str(path): path for name, path in zip(short, paths, strict=True)}
    if len(named) < len(paths):
        raise InputError("runs must be different ones, got one twice; leave it out")
    return named


def _measure(
    run: runs.Run, tests: data.Dataset, threat: Threat, *, seed: int, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Figure's name -> what was measured, and -> why nothing was."""
    key, module, variables = jax.random.key(seed), run.module, run.variables
    rngs = {"defense": jax.random.fold_in(key, 1)}
    outputs_fn = jax.tree_util.Partial(lambda variables, images: module.apply(variables, images, rngs=rngs), variables)
    logits_fn = jax.tree_util.Partial(lambda variables, images: outputs_fn.func(variables, images).logits, variables)
    images, labels = np.asarray(data.to_float(tests.images)), tests.labels

    given = {"norm": threat.norm, "eot_samples": EOT_SAMPLES if run.stochastic else 0}
    attack = partial(attacked, run.logits_fn, key, images, labels, **given)
    say("adversarial images")
    seen = observe(outputs_fn, images, attack(epsilon=threat.epsilon), labels)
    found: dict[str, Any] = {"by_class": by_class(seen.predictions[1], labels, num_classes=tests.num_classes)}
    missing: dict[str, str] = {}

    say("inside")
    site, weights = _before_head(variables, seen, module)
    last = module.sites()["activation"][-1] if site is None else site
    found["channels"] = channels(np.maximum(seen.pooled[last][0], 0), np.maximum(seen.pooled[last][1], 0), labels)
    if site is None or weights is None:
        missing["relevance"] = "its classifier is not a linear layer on the averages of a site"
    else:
        found["relevance"] = relevance(seen.pooled[site][0], seen.pooled[site][1], labels, weights, seen.right[1])
    sites = [name for name in module.sites()["activation"] if name in seen.movement]
    found["sensitivity"] = sensitivity(
        {name: seen.movement[name] for name in sites}, {name: seen.magnitude[name] for name in sites}
    )
    free = [name for name in sites if name not in (module.guards or {})]
    if free and not run.stochastic:
        found["restoration"] = restoration(module, variables, images, seen.adversarial, labels, sites=free)
    else:
        missing["restoration"] = "every activation of it is guarded"
    masks = fsr_masks(module, variables, seen.adversarial[:50])
    if masks and set(KINDS) <= seen.auxiliary.keys():
        parts = {
            which: separation({kind: seen.auxiliary[kind][i] for kind in KINDS}, labels)
            for i, which in enumerate(("natural", "adversarial"))
        }
        found["separation"] = (parts, next(iter(masks.values())))
    else:
        missing["separation"] = "it has no FSR guard"

    say("curves")
    right = lambda points: np.asarray(_predicted(logits_fn, points)) == labels  # noqa: E731
    radii = sorted({m * threat.epsilon for m in sweeps.MULTIPLES} | {sweeps.grey_radius(threat, images.shape[1:])})
    by_radius = np.stack([right(attack(epsilon=radius)) for radius in radii])
    lengths = {steps: min(1.0, 2.5 / steps) * threat.epsilon for steps in STEPS}
    by_steps = np.stack(
        [right(attack(epsilon=threat.epsilon, num_steps=steps, step_size=lengths[steps])) for steps in STEPS]
    )
    found["curves"] = (curve(radii, by_radius), curve(STEPS, by_steps))

    say("calibration")
    found["calibration"] = _calibrations(run, images, labels, threat, seed=seed)

    say("landscape")
    few = slice(SURFACE_IMAGES)
    found["surface"] = surface(
        logits_fn, images[few], labels[few], seen.adversarial[few], epsilon=threat.epsilon, seed=seed
    )
    found["input_gradients"] = input_gradients(logits_fn, images, labels)
    return found, missing


def _predicted(logits_fn: LogitsFn, images: np.ndarray, size: int = 250) -> np.ndarray:
    size = min(size, len(images))
    parts = []
    for start in range(0, len(images), size):
        chosen = np.minimum(np.arange(start, start + size), len(images) - 1)
        parts.append(np.asarray(_classes(logits_fn, images[chosen])))
    return np.concatenate(parts)[: len(images)]


@jax.jit
def _classes(logits_fn: LogitsFn, images: Any) -> Any:
    return logits_fn(images).argmax(axis=-1)


@jax.jit
def _probabilities(logits_fn: LogitsFn, images: Any, *keys: Any) -> Any:
    return jax.nn.softmax(logits_fn(images, *keys))


def _calibrations(
    run: runs.Run, images: np.ndarray, labels: np.ndarray, threat: Threat, *, seed: int
) -> dict[str, dict[float, Calibration]]:
    """How the network predicts -> epsilon of FGSM -> calibration; with SAP where the network has no other guards."""
    key, plain = jax.random.key(seed), run.module
    ways: dict[str, tuple[LogitsFn, int]] = {}
    pruning = run.stochastic or not run.module.guards
    if run.stochastic:
        plain = run.with_defense(composition.deterministic(run.defense))
    ways[""] = (network.logits_fn(plain, stochastic=False), 0)
    if pruning:
        sap = run.module if run.stochastic else run.with_defense(defenses.create("sap", sampler="bernoulli"))
        drawn = network.logits_fn(sap, stochastic=True)
        name = str(run.spelling) if run.stochastic and "sap" not in str(run.spelling) else "SAP"
        ways[f"{name}, single draw"] = (drawn, EOT_SAMPLES)
        average = network.logits_fn(sap, stochastic=True, prediction_draws=NUM_DRAWS)
        ways[f"{name}, {NUM_DRAWS} draws"] = (average, EOT_SAMPLES)
    found: dict[str, dict[float, Calibration]] = {}
    points: dict[tuple[int, float], np.ndarray] = {}
    for way, (predict, eot) in ways.items():
        logits_fn = jax.tree_util.Partial(predict, run.variables)
        for multiple in CALIBRATION_MULTIPLES:
            epsilon = multiple * threat.epsilon
            if (eot, epsilon) not in points:  # averaging is how it predicts; the attack on single draws is the same
                points[eot, epsilon] = attacked(
                    logits_fn, key, images, labels, epsilon=epsilon, step_size=epsilon, num_steps=1, norm=threat.norm,
                    eot_samples=eot,
                )  # fmt: skip
            keys = (jax.random.fold_in(key, 2),) if eot else ()
            probabilities = np.asarray(_probabilities(logits_fn, points[eot, epsilon], *keys))
            found.setdefault(way, {})[epsilon] = calibration(probabilities, labels)
    return found


def _before_head(variables: Any, seen: Observed, module: Any) -> tuple[str | None, np.ndarray | None]:
    """The site whose averages over positions the last linear layer is given, and that layer's weights [C, K].

    It is found by what it computes: the averages times the weights are the logits.
    """
    head = variables["params"].get("head", {})
    if "kernel" not in head:
        return None, None
    kernel, bias = (np.asarray(head[name], np.float64) for name in ("kernel", "bias"))
    for site, pooled in seen.pooled.items():
        if pooled.shape[-1] == len(kernel):
            logits = pooled[0].astype(np.float64) @ kernel + bias
            if np.allclose(logits, seen.logits[0], rtol=1e-3, atol=1e-3 * np.abs(seen.logits[0]).max()):
                return site, kernel
    return None, None


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
    ways = _ways(found["calibration"])
    at_epsilon = {name: points[max(e for e in points if e <= threat.epsilon)] for name, points in ways.items()}
    drawn["calibration"] = plots.calibration(at_epsilon, against=ways)
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
