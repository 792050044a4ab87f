"""Pictures of an evaluation: adversarial examples, and curves of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

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
    (black) through 0 (grey) to epsilon (white), or over its own range where it is smaller than that; the picture says
    which.

    Args:
        path: of the PNG.
        images, adversarial: [N, H, W, C] in [0, 1].
        predictions, adversarial_predictions, labels: integers [N].
        label_names: of the classes.
        title: above everything.
        epsilon: the radius of the ball.
    """
    count = len(images)
    from matplotlib.figure import Figure  # not at the top: it takes a second, and most evaluations draw nothing

    figure = Figure(figsize=(1.25 * count + 1.2, 4.9), dpi=130, layout="constrained")
    figure.suptitle(f"{title}; predictions: green right, red wrong", fontsize=10)
    delta = adversarial - images
    span = min(epsilon, float(np.abs(delta).max())) or 1.0
    rows = {"image": images, "perturbation": np.clip(0.5 + delta / (2 * span), 0, 1), "adversarial": adversarial}
    scale = {"perturbation": f"\nblack -{span:.3g}, white +{span:.3g}"}
    predicted = {"image": predictions, "adversarial": adversarial_predictions}
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name + scale.get(name, ""), fontsize=9 if name not in scale else 7.5)
        for i, (axis, picture) in enumerate(zip(row, pictures, strict=True)):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            if name in predicted:
                guess = predicted[name][i]
                colour = "tab:green" if guess == labels[i] else "tab:red"
                axis.set_title(label_names[guess][:MAX_NAME], fontsize=9, color=colour, pad=3)
    figure.savefig(path)


def save_sweep(
    path: str | Path,
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]],
    *,
    quantity: str,
    marked: float | None,
    chance: float,
    title: str,
) -> None:
    """Accuracy against a strength of attack as a PNG, with intervals and the level of chance.

    Args:
        path: of the PNG.
        curves: attack's name -> points (strength, accuracy, lower and upper end of the interval), by rising strength.
        quantity: what the strength is.
        marked: the strength of the run's own threat, up to which the axis is linear; or None. It is
            logarithmic from there on.
        chance: accuracy of guessing.
        title: above everything.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=130, layout="constrained")
    axis = figure.subplots()
    for i, (name, points) in enumerate(curves.items()):
        at, accuracy, low, high = np.array(points, np.float64).T
        axis.fill_between(at, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
        axis.errorbar(at, accuracy, (accuracy - low, high - accuracy), fmt="o-", markersize=4, capsize=3, label=name)
    axis.axhline(chance, color="grey", linestyle="--", linewidth=1, label=f"chance ({chance:.0%})")
    if marked is not None:
        axis.axvline(marked, color="grey", linestyle=":", linewidth=1, label=f"{quantity} of the run ({marked:.4g})")
    if marked is None:
        axis.set_xscale("log")
    else:
        axis.set_xscale("symlog", linthresh=marked, linscale=0.6)
        axis.set_xlim(left=0.0)
    axis.set_xticks(at, [f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in at], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel(quantity)
    axis.set_ylabel("accuracy, with 95 % intervals")
    axis.set_ylim(-0.02, 1.02)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)
