"""All measurements of one network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from robustjax import data, defenses, runs
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
from robustjax.evaluation.protocol import sweeps
from robustjax.evaluation.protocol.threats import Threat
from robustjax.runs import network
from robustjax.types import LogitsFn

STEPS = (1, 2, 5, 10, 20, 50, 100)
CALIBRATION_MULTIPLES = (0.0, 0.25, 0.5, 1.0, 2.0)
# Of a stochastic network: draws over which attacks average, and draws whose probabilities are averaged.
EOT_SAMPLES, NUM_DRAWS = 10, 20
# Images of the surface, each of which is classified 441 times.
SURFACE_IMAGES = 100


def measure(
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
    site, weights = _before_head(variables, seen)
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


def _before_head(variables: Any, seen: Observed) -> tuple[str | None, np.ndarray | None]:
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
