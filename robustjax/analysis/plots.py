"""The figures of the papers, of one or several networks: each returns a matplotlib ``Figure``.

Nothing here touches matplotlib's global state, so figures can be made in any process and any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from robustjax.analysis._by_class import ByClass
from robustjax.analysis._calibration import Calibration
from robustjax.analysis._canvas import grid, in_words, legend_below, look, panels, save
from robustjax.analysis._curve import Curve
from robustjax.analysis._landscape import InputGradients, Surface
from robustjax.analysis._plots_inside import GREY, NATURAL, channels, relevance, restoration, sensitivity, separation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "by_class",
    "calibration",
    "channels",
    "curves",
    "input_gradients",
    "relevance",
    "restoration",
    "save",
    "sensitivity",
    "separation",
    "surfaces",
]

# Examples of a bin of a reliability diagram, at least: fewer say nothing.
LEAST_IN_BIN = 5


def calibration(found: Mapping[str, Mapping[str, Mapping[float, Calibration]]], *, epsilon: float) -> Figure:
    """Reliability diagram, and calibration error and Brier score against epsilon; a row a network.

    Args:
        found: network's name -> how it predicts, "" for as it is -> epsilon of the attack -> calibration.
        epsilon: of the attack on the images of the diagram.

    Example:
        >>> from robustjax import analysis
        >>> seen = analysis.calibration(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]))
        >>> len(calibration({"at": {"": {0.0: seen, 0.1: seen}}}, epsilon=0.1).axes)
        3
    """
    figure, axes = grid(len(found), 3, width=3.4, height=2.5)
    every = list(dict.fromkeys(way for ways in found.values() for way in ways))
    highest = {
        scalar: max(seen.estimates[scalar].interval[1] for ways in found.values() for points in ways.values()
                    for seen in points.values())
        for scalar in ("ece", "brier")
    }  # fmt: skip
    for row, (name, ways) in zip(axes, found.items(), strict=True):
        diagram, *against = row
        diagram.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for way, points in ways.items():
            drawn = {"color": f"C{every.index(way)}", "marker": "o", "markersize": 3, "linewidth": 1.2}
            seen = points[epsilon]
            filled = seen.count >= LEAST_IN_BIN
            diagram.plot(seen.confidence[filled], seen.accuracy[filled], label=way or "dense", **drawn)
            at = sorted(points)
            for axis, scalar in zip(against, ("ece", "brier"), strict=True):
                values = [points[one].estimates[scalar] for one in at]
                axis.fill_between(at, *np.array([v.interval for v in values]).T, color=drawn["color"], alpha=0.15,
                                  linewidth=0)  # fmt: skip
                axis.plot(at, [v.value for v in values], **drawn)
        said = [f"{way or 'dense'}: {in_words(points[epsilon], 'ece')}" for way, points in ways.items()]
        against[0].set_title("\n".join([f"ECE at epsilon {epsilon:.4g}", *said]), fontsize=7)
        diagram.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
        diagram.set_title(f"{name}: reliability under FGSM", fontsize=8)
        for axis, scalar, label in zip(against, highest, ("expected calibration error", "Brier score"), strict=True):
            axis.axvline(epsilon, color=GREY, linestyle=":", linewidth=1)
            axis.set(xlabel="epsilon of FGSM", ylabel=label, ylim=(0, 1.05 * highest[scalar]))
        for axis in row:
            axis.xaxis.label.set_fontsize(8)
            axis.yaxis.label.set_fontsize(8)
    legend_below(figure, axes[:, 0])
    return figure


def by_class(found: Mapping[str, ByClass], *, names: Sequence[str]) -> Figure:
    """Accuracy of each class under attack with intervals, and confusion; a row a network.

    Example:
        >>> from robustjax import analysis
        >>> seen = analysis.by_class(np.array([0, 1]), np.array([0, 1]), num_classes=2)
        >>> len(by_class({"at": seen}, names=["zero", "one"]).axes)
        2
    """
    figure, axes = grid(len(found), 2, width=3.9, height=2.9)
    for row, (title, seen) in zip(axes, found.items(), strict=True):
        labels = [names[label] for label in seen.classes]
        values = np.array([accuracy.value for accuracy in seen.accuracies])
        ends = np.array([accuracy.interval for accuracy in seen.accuracies])
        row[0].bar(range(len(labels)), values, yerr=np.abs(ends.T - values), color=NATURAL, error_kw={"linewidth": 0.8})
        row[0].set_ylim(0, 1.05)
        row[0].set_xticks(range(len(labels)), labels, rotation=45 if max(map(len, labels)) > 2 else 0, fontsize=7)
        row[0].set_title(f"{title}: worst class {in_words(seen, 'worst_class')}", fontsize=8)
        row[0].set_ylabel("accuracy under attack,\nlines: 95 % intervals", fontsize=8)
        row[0].set_xlabel("class")
        row[1].set_title("share of a label's images", fontsize=8)
        row[1].imshow(seen.confusion, cmap="Blues", vmin=0, vmax=1)
        for (i, k), share in np.ndenumerate(seen.confusion):
            if share >= 0.05 and seen.confusion.shape[1] <= 12:
                row[1].text(k, i, f"{share:.2f}"[1:] if share < 1 else "1", ha="center", va="center", fontsize=6,
                            color="white" if share > 0.5 else "black")  # fmt: skip
        row[1].set_yticks(range(len(labels)), labels, fontsize=7)
        row[1].set_xticks(range(len(names)), names, rotation=45 if max(map(len, labels)) > 2 else 0, fontsize=7)
        row[1].set(xlabel="predicted under attack", ylabel="label")
    return figure


def curves(epsilon: Mapping[str, Curve], steps: Mapping[str, Curve], *, marked: float, chance: float) -> Figure:
    """Accuracy against the radius and against the steps of an attack, with intervals.

    Args:
        epsilon, steps: network's name -> its curve.
        marked: the epsilon that was trained with.
        chance: accuracy of guessing.

    Example:
        >>> from robustjax import analysis
        >>> seen = analysis.curve([0.0, 0.1], np.array([[True, True], [True, False]]))
        >>> len(curves({"at": seen}, {"at": seen}, marked=0.1, chance=0.1).axes)
        2
    """
    figure, axes = grid(1, 2, width=4.2, height=3.3)
    for axis, found, label in ((axes[0, 0], epsilon, "epsilon"), (axes[0, 1], steps, "steps")):
        for i, (name, seen) in enumerate(found.items()):
            ends = np.array([accuracy.interval for accuracy in seen.accuracies]).T
            axis.fill_between(seen.at, *ends, color=look(i)["color"], alpha=0.15, linewidth=0)
            axis.plot(seen.at, [a.value for a in seen.accuracies], marker="o", markersize=3, label=name, **look(i))
        axis.axhline(chance, color=GREY, linestyle="--", linewidth=1)
        axis.set(xlabel=label, ylim=(-0.02, 1.02))
        axis.grid(alpha=0.25)
    axes[0, 0].axvline(marked, color=GREY, linestyle=":", linewidth=1)
    axes[0, 0].set_ylabel("accuracy under PGD")
    axes[0, 1].set_xscale("log")
    legend_below(figure, axes[0])
    figure.suptitle("Accuracy against epsilon (dotted: the one trained with) and steps; dashed: chance", fontsize=9)
    return figure


def surfaces(found: Mapping[str, Surface]) -> Figure:
    """Mean loss along an adversarial and a random direction; a panel a network, one scale of colours each.

    Example:
        >>> from robustjax.analysis.estimate import Estimate
        >>> of = {name: Estimate(0.0, (0.0, 0.0), 2) for name in ("linearity_error", "loss_rise")}
        >>> len(surfaces({"at": Surface(np.linspace(-1, 1, 3), np.eye(3), of)}).axes)
        2
    """
    figure, axes = panels(len(found), 1, width=3.5, height=3.2)
    for (axis,), (title, seen) in zip(axes, found.items(), strict=True):
        drawn = axis.contourf(seen.at, seen.at, seen.loss, levels=15, cmap="magma")
        bar = figure.colorbar(drawn, ax=axis, shrink=0.8)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("cross-entropy / nats", fontsize=7)
        axis.set_title(f"{title}\nlinearity error {in_words(seen, 'linearity_error')}", fontsize=8)
        axis.set_xlabel("random direction / epsilon", fontsize=8)
        axis.set_xticks([-1, 0, 1])
        axis.set_yticks([-1, 0, 1])
        axis.set_ylabel("adversarial direction / epsilon", fontsize=8)
    figure.suptitle("Mean cross-entropy around the images, each network on its own scale", fontsize=10)
    return figure


def input_gradients(found: Mapping[str, InputGradients], images: np.ndarray, *, count: int = 8) -> Figure:
    """Images and, a row a network, the gradient of the margin at them: red raises it, blue lowers it.

    Args:
        found: network's name -> its gradients at the images.
        images: [N, H, W, C] in [0, 1].
        count: how many are shown.

    Example:
        >>> from robustjax import analysis
        >>> flat = lambda images: images.reshape(len(images), -1)
        >>> images = np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1)
        >>> len(input_gradients({"at": analysis.input_gradients(flat, images, np.arange(4))}, images, count=3).axes)
        6
    """
    count = min(count, len(images))
    figure, axes = grid(1 + len(found), count, width=1.1, height=1.25)
    for axis, image in zip(axes[0], images, strict=False):
        axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
    for row, seen in zip(axes[1:], found.values(), strict=True):
        for axis, gradient in zip(row, seen.gradients, strict=False):
            flat = gradient.sum(axis=-1)
            most = float(np.abs(flat).max()) or 1.0
            axis.imshow(flat, cmap="RdBu_r", vmin=-most, vmax=most)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].set_ylabel("image", fontsize=8)
    for row, (title, seen) in zip(axes[1:], found.items(), strict=True):
        row[0].set_ylabel(f"{title}\n{seen.estimates['alignment'].value:.2f}", fontsize=8)
    figure.suptitle(
        "Gradient of the margin at the image (red raises it, blue lowers it; each by its largest value), and the mean "
        "|cosine| of the two", fontsize=9, wrap=True,
    )  # fmt: skip
    return figure
