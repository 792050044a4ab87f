"""What FSR's mask keeps and drops, and what the classifier can read from each part (FSR, figures 1 and 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.analysis.estimate import Estimate, bootstrap, proportion
from robustjax.defenses import fsr
from robustjax.types import AnyArray, InputError

KINDS = ("robust", "nonrobust", "recalibrated")


class Separation(NamedTuple):
    """What a classifier reads from each kind of features.

    Attributes:
        right: kind of features -> whether their head names the label, bool [N].
        estimates: "robust", "nonrobust" and "recalibrated", accuracies of the head; "robust_gap" and
            "recalibration_gain", of the first and third over the second.
    """

    right: Mapping[str, np.ndarray]
    estimates: Mapping[str, Estimate]


def separation(auxiliary: Mapping[str, np.ndarray], labels: np.ndarray) -> Separation:
    """Accuracy of FSR's shared head on robust, non-robust and recalibrated features.

    The claims of Kim et al. (2023, arXiv 2303.13846): of adversarial images the non-robust features lead to the wrong
    class, the robust ones do not, and recalibration makes the non-robust ones speak for the right class again.

    Args:
        auxiliary: "robust", "nonrobust" and "recalibrated" -> logits [N, K], or [S, N, K] of several sites; N at
            least 2.
        labels: integers [N].

    Returns:
        A :class:`Separation`.

    Raises:
        InputError: a kind is missing.

    Example:
        >>> right, wrong = np.array([[1.0, 0.0]] * 2), np.array([[0.0, 1.0]] * 2)
        >>> seen = separation({"robust": right, "nonrobust": wrong, "recalibrated": right}, np.array([0, 0]))
        >>> seen.estimates["recalibration_gain"].value
        1.0
    """
    missing = [kind for kind in KINDS if kind not in auxiliary]
    if missing:
        raise InputError(f"auxiliary must hold logits of {', '.join(KINDS)}, got none of {', '.join(missing)}")
    logits = {kind: np.asarray(auxiliary[kind]).reshape(-1, *np.shape(auxiliary[kind])[-2:]) for kind in KINDS}
    right = {kind: logits[kind].mean(axis=0).argmax(axis=-1) == labels for kind in KINDS}
    gains = {"robust_gap": "robust", "recalibration_gain": "recalibrated"}
    differences = {
        name: right[kind].astype(np.float64) - right["nonrobust"].astype(np.float64) for name, kind in gains.items()
    }
    found = bootstrap(
        lambda chosen: {name: float(values[chosen].mean()) for name, values in differences.items()},
        len(labels),
        meanings={name: f"accuracy of the {kind} features minus that of the non-robust ones; above 0 as FSR claims"
                  for name, kind in gains.items()},
    )  # fmt: skip
    accuracies = {kind: proportion(right[kind], f"accuracy of the head on {kind} features") for kind in KINDS}
    return Separation(right, {**accuracies, **found})


def fsr_masks(module: Any, variables: Any, images: AnyArray) -> dict[str, np.ndarray]:
    """The masks by which a network's FSR guards separate features in inference.

    Args:
        module: a network of :func:`robustjax.models.create`.
        variables: of the network.
        images: float32 [N, H, W, C].

    Returns:
        Guarded site -> mask [N, H, W, C] in [0, 1]; empty for a network without FSR guards.

    Example:
        >>> from robustjax import defenses, models
        >>> images = np.zeros((2, 8, 8, 1), np.float32)
        >>> module = models.create("small_cnn", defense=defenses.create("fsr", width=2))
        >>> variables = jax.jit(module.init)({"params": jax.random.key(0), "defense": jax.random.key(1)}, images)
        >>> fsr_masks(module, variables, images)["conv2"].shape
        (2, 2, 2, 32)
    """
    guards = {
        site: guard
        for site, guard in (module.guards or {}).items()
        if isinstance(guard, fsr.FSR) and guard.parts != "recalibration"  # which has no mask
    }
    if not guards:
        return {}

    def scores(variables: Any, images: Any) -> dict[str, Any]:
        wanted = lambda inner, _: inner.name == "separation"  # noqa: E731
        _, kept = module.apply(variables, images, capture_intermediates=wanted, mutable=["intermediates"])
        return {site: kept["intermediates"][f"guards_{site}"]["separation"]["__call__"][0] for site in guards}

    found = jax.jit(scores)(variables, jnp.asarray(images))
    return {site: np.asarray(jax.nn.sigmoid(found[site] / guards[site].temperature)) for site in guards}
