"""Figures of what is inside a network: channels, neurons and the masks over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from robustjax.analysis._canvas import ADVERSARIAL, GREY, NATURAL, grid, in_words
from robustjax.analysis._channels import Channels
from robustjax.analysis._relevance import Relevance
from robustjax.analysis._sensitivity import Restoration, Sensitivity
from robustjax.analysis._separation import KINDS, Separation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Panels of the neurons' sensitivity, at most.
MOST_LAYERS = 24


def channels(found: Mapping[str, Channels], *, of_class: int, name: str | None = None) -> Figure:
    """Magnitude and activation frequency of one class's channels, ordered by natural frequency; a column a network.

    Args:
        found: network's name -> its channels.
        of_class: the class.
        name: of the class.

    Example:
        >>> from robustjax import analysis
        >>> seen = analysis.channels(np.eye(3), np.ones((3, 3)), np.zeros(3, int))
        >>> len(channels({"at": seen}, of_class=0).axes)
        2
    """
    figure, axes = grid(2, len(found), width=3.6, height=2.5)
    for column, (title, seen) in enumerate(found.items()):
        place = int(np.flatnonzero(seen.classes == of_class)[0])
        order = np.argsort(-seen.frequency[0, place], kind="stable")
        for row, values in enumerate((seen.magnitude, seen.frequency)):
            axis = axes[row, column]
            for which, colour, label in ((0, NATURAL, "natural"), (1, ADVERSARIAL, "adversarial")):
                drawn, places = values[which, place][order], np.arange(len(order))
                axis.step(places, drawn, where="mid", color=colour, label=label, linewidth=1)
                axis.fill_between(places, drawn, step="mid", color=colour, alpha=0.15, linewidth=0)
            axis.set_ylim(bottom=0)
        axes[0, column].set_title(f"{title}\nadversarial / natural {in_words(seen, 'magnitude_ratio')}", fontsize=9)
        axes[1, column].set_title(f"mean gap {in_words(seen, 'l1_gap')}", fontsize=9)
        axes[1, column].set_ylim(0, 1.05)
        axes[1, column].set_xlabel("channel, by natural frequency")
    axes[0, 0].set_ylabel("mean magnitude")
    axes[1, 0].set_ylabel("activation frequency")
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"Channels of class {name or of_class}", fontsize=10)
    return figure


def relevance(found: Mapping[str, Relevance], *, of_class: int, name: str | None = None) -> Figure:
    """Activation of channels ordered by their weight for one class, and over-activation against robust accuracy.

    Args:
        found: network's name -> its relevance.
        of_class: the class.
        name: of the class.

    Example:
        >>> from robustjax import analysis
        >>> seen = analysis.relevance(np.eye(3), np.ones((3, 3)), np.zeros(3, int), np.eye(3), np.ones(3, bool))
        >>> len(relevance({"at": seen}, of_class=0).axes)
        2
    """
    figure, axes = grid(2, len(found), width=3.6, height=2.6)
    for column, (title, seen) in enumerate(found.items()):
        place = int(np.flatnonzero(seen.classes == of_class)[0])
        order = np.argsort(-seen.weights[place], kind="stable")
        axis = axes[0, column]
        for which, colour, label in ((0, NATURAL, "natural"), (1, ADVERSARIAL, "adversarial")):
            axis.plot(seen.activation[which, place][order], color=colour, linewidth=1.2, label=label)
        axis.axvline((seen.weights[place] > 0).sum() - 0.5, color=GREY, linestyle=":", linewidth=1)
        axis.set_title(
            f"{title}\nrank correlation {seen.rank_correlation[0, place]:.2f} natural, "
            f"{seen.rank_correlation[1, place]:.2f} adversarial",
            fontsize=9,
        )
        axis.set_xlabel("channel, by weight (dotted: 0)")
        axis = axes[1, column]
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.scatter(seen.robust_accuracy, seen.over_activation, color=ADVERSARIAL, s=18)
        for label, x, y in zip(seen.classes, seen.robust_accuracy, seen.over_activation, strict=True):
            axis.annotate(str(label), (x, y), xytext=(3, 3), textcoords="offset points", fontsize=7)
        axis.set_title(f"gap of classes {in_words(seen, 'over_activation_gap')}", fontsize=9)
        axis.set_xlabel("robust accuracy of the class")
    axes[0, 0].set_ylabel("mean activation")
    axes[1, 0].set_ylabel("over-activation of\nnegative channels")
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"Channels by their relevance to class {name or of_class}, and all classes", fontsize=10)
    return figure


def sensitivity(found: Mapping[str, Sensitivity]) -> Figure:
    """Histograms of the neurons' sensitivity layer by layer, the networks that have a layer over each other.

    Example:
        >>> from robustjax import analysis
        >>> seen = analysis.sensitivity({"dense": np.ones((2, 4))}, {"dense": np.ones((2, 4))})
        >>> len(sensitivity({"at": seen}).axes)
        1
    """
    sites = list(dict.fromkeys(site for seen in found.values() for site in seen.by_site))[:MOST_LAYERS]
    columns = min(4, len(sites))
    figure, axes = grid(-(-len(sites) // columns), columns, width=2.9, height=2.1)
    for axis, site in zip(axes.flat, sites, strict=False):
        values = [(i, name, seen.by_site[site]) for i, (name, seen) in enumerate(found.items()) if site in seen.by_site]
        bins = np.linspace(0, max(float(np.max(array)) for _, _, array in values) or 1.0, 25)
        for i, name, array in values:
            axis.hist(np.clip(array, 0, bins[-1]), bins=bins, histtype="step", color=f"C{i}", linewidth=1.4, label=name)
            axis.axvline(array.mean(), color=f"C{i}", linestyle=":", linewidth=1)
        axis.set_title(site, fontsize=9)
    for axis in list(axes.flat)[len(sites) :]:
        axis.remove()
    for axis in axes.flat[: len(sites)]:
        axis.legend(fontsize=6, frameon=False)
    figure.supxlabel("sensitivity of a neuron (dotted: mean)", fontsize=9)
    figure.supylabel("neurons", fontsize=9)
    figure.suptitle("Neuron sensitivity: " + "; ".join(f"{n} {in_words(s, 'sensitivity')}" for n, s in found.items()),
                    fontsize=9, wrap=True)  # fmt: skip
    return figure


def restoration(found: Mapping[str, Restoration]) -> Figure:
    """Accuracy under attack with each layer's most sensitive neurons restored, against random ones; a row a network.

    Example:
        >>> from robustjax.analysis.estimate import Estimate
        >>> right = np.ones(3, bool)
        >>> gap = {"restoration_gap": Estimate(0.0, (0.0, 0.0), 3)}
        >>> len(restoration({"at": Restoration(right, {"dense": right}, {"dense": right}, 0.1, gap)}).axes)
        1
    """
    figure, axes = grid(len(found), 1, width=7.4, height=2.3)
    for axis, (title, seen) in zip(axes[:, 0], found.items(), strict=True):
        places = np.arange(len(seen.sensitive))
        for shift, values, colour, label in (
            (-0.2, seen.random, GREY, f"random {seen.fraction:.0%}"),
            (0.2, seen.sensitive, ADVERSARIAL, f"most sensitive {seen.fraction:.0%}"),
        ):
            heights = [np.mean(right) for right in values.values()]
            axis.bar(places + shift, heights, width=0.38, color=colour, label=label)
        axis.axhline(seen.attacked.mean(), color="black", linestyle="--", linewidth=1, label="none restored")
        axis.set_xticks(places, list(seen.sensitive), rotation=30, ha="right", fontsize=7)
        axis.set_ylim(0, 1.25)
        axis.set_yticks(np.linspace(0, 1, 6))
        axis.set_ylabel("accuracy under attack", fontsize=8)
        axis.set_title(f"{title}: gain over random ones {in_words(seen, 'restoration_gap')}", fontsize=9)
    axes[0, 0].legend(fontsize=7, ncols=3, loc="upper left", frameon=False)
    return figure


def separation(found: Mapping[str, Mapping[str, Separation]], masks: Mapping[str, np.ndarray]) -> Figure:
    """Accuracy of the head on each kind of features, and the masks: their histogram and a few averaged over channels.

    Args:
        found: network's name -> "natural" and "adversarial" -> what the head makes of them.
        masks: network's name -> [N, H, W, C].

    Example:
        >>> from robustjax import analysis
        >>> seen = analysis.separation(dict.fromkeys(KINDS, np.eye(2)), np.array([0, 1]))
        >>> len(separation({"fsr": {"natural": seen, "adversarial": seen}}, {"fsr": np.ones((2, 2, 2, 3))}).axes)
        4
    """
    shown = min(4, *(len(mask) for mask in masks.values()))
    figure, axes = grid(len(found), 2 + shown, width=1.7, height=2.3, ratios=[1.6, 1.6] + [1] * shown)
    for row, (title, parts) in zip(axes, found.items(), strict=True):
        for shift, which, colour in ((-0.2, "natural", NATURAL), (0.2, "adversarial", ADVERSARIAL)):
            values = [parts[which].estimates[kind] for kind in KINDS]
            errors = np.array([[v.value - v.interval[0], v.interval[1] - v.value] for v in values]).T
            row[0].bar(np.arange(3) + shift, [v.value for v in values], 0.38, yerr=errors, color=colour, label=which,
                       error_kw={"linewidth": 0.8})  # fmt: skip
        row[0].set_xticks(range(3), KINDS, rotation=25, ha="right", fontsize=7)
        row[0].set_ylim(0, 1.05)
        row[0].set_title(f"{title}: accuracy of the head", fontsize=8)
        row[0].legend(fontsize=7, frameon=False)
        mask = masks[title]
        row[1].hist(mask.ravel(), bins=np.linspace(0, 1, 31), color=GREY)
        row[1].set_title(f"mask: mean {mask.mean():.2f}", fontsize=8)
        row[1].set_yticks([])
        for axis, example in zip(row[2:], mask, strict=False):
            axis.imshow(example.mean(axis=-1), vmin=0, vmax=1, cmap="viridis")
            axis.set_axis_off()
            axis.set_title("kept", fontsize=7)
    return figure
