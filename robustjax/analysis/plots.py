"""Pictures of an evaluation, for looking rather than reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

# Names of classes longer than this are cut in titles.
MAX_NAME = 10


def save_examples(
    path: str | Path,
    images: np.ndarray,
    adversarial: np.ndarray,
    predictions: np.ndarray,
    adversarial_predictions: np.ndarray,
    labels: np.ndarray,
    *,
    label_names: Sequence[str],
    title: str,
    epsilon: float,
) -> None:
    """Three rows as a PNG: images, perturbations, adversarial images, each with the prediction.

    Predictions are green where they agree with the label and red elsewhere. A perturbation is shown from -epsilon
    (black) through 0 (grey) to epsilon (white), or over its own range where it is smaller than that.

    Args:
        path: of the PNG.
        images, adversarial: [N, H, W, C] in [0, 1].
        predictions, adversarial_predictions, labels: integers [N].
        label_names: of the classes.
        title: above everything.
        epsilon: the radius of the ball.
    """
    count = len(images)
    figure = Figure(figsize=(1.25 * count + 1.2, 4.9), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=10)
    delta = adversarial - images
    span = min(epsilon, float(np.abs(delta).max())) or 1.0
    rows = {"image": images, "perturbation": np.clip(0.5 + delta / (2 * span), 0, 1), "adversarial": adversarial}
    predicted = {"image": predictions, "adversarial": adversarial_predictions}
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name, fontsize=9)
        for i, (axis, picture) in enumerate(zip(row, pictures, strict=True)):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            if name in predicted:
                guess = predicted[name][i]
                colour = "tab:green" if guess == labels[i] else "tab:red"
                axis.set_title(label_names[guess][:MAX_NAME], fontsize=9, color=colour, pad=3)
    figure.savefig(path)
