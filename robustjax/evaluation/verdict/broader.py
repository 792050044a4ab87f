"""Changes of images that are no part of the threat: noise, shifts, rotations, contrast; for information."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy  # whose ndimage is read when it is first used: 0.2 s of every command

from robustjax.attacks.engine.verify import is_misclassified
from robustjax.evaluation.verdict.trial import Trial

# In units of the box, of the sides, in degrees, and the share of the contrast that is left.
NOISE, SHIFT, ANGLE, CONTRAST = 0.1, 0.1, 15.0, 0.5

Change = Callable[[np.ndarray], np.ndarray]


def accuracies(trial: Trial, rows: np.ndarray) -> dict[str, float]:
    """Accuracy under each kind of change, of several changes of a kind under the worst for each example.

    Args:
        trial: the examples.
        rows: those that are changed.
    """
    low, high = (np.asarray(wall, np.float32) for wall in trial.bounds)
    found = {}
    for kind, changes in _changes(low, high, trial.images.shape[1:3]).items():
        right = np.ones(len(rows), bool)
        for change in changes:
            points = np.clip(change(trial.images[rows]), low, high).astype(np.float32)
            right &= ~is_misclassified(trial.classified(rows, points)[1])
        found[kind] = float(right.mean())
    return found


def _changes(low: np.ndarray, high: np.ndarray, sides: tuple[int, ...]) -> dict[str, list[Change]]:
    rng = np.random.default_rng(0)
    down, right = (max(1.0, round(SHIFT * side)) for side in sides)

    def shifted(delta: tuple[float, float]) -> Change:
        return lambda images: scipy.ndimage.shift(images, (0, *delta, 0), order=1, mode="nearest")

    def rotated(angle: float) -> Change:
        return lambda images: scipy.ndimage.rotate(images, angle, axes=(1, 2), reshape=False, order=1, mode="nearest")

    middle = 0.5 * (low + high)
    return {
        f"Gaussian noise of {NOISE:g}": [
            lambda images: images + (NOISE * (high - low) * rng.normal(size=images.shape)).astype(np.float32)
        ],
        f"shifts by {SHIFT:.0%}": [shifted(delta) for delta in ((down, 0), (-down, 0), (0, right), (0, -right))],
        f"rotations by {ANGLE:g} degrees": [rotated(angle) for angle in (ANGLE, -ANGLE)],
        f"{CONTRAST:.0%} of the contrast": [lambda images: middle + np.float32(CONTRAST) * (images - middle)],
    }
