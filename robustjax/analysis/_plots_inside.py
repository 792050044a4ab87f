"""Figures of what happens inside networks: channels, their relevance, neurons and FSR's features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from robustjax.analysis._canvas import grid, in_words, legend_below, look, panels
from robustjax.analysis._channels import Channels
from robustjax.analysis._relevance import Relevance
from robustjax.analysis._sensitivity import Restoration, Sensitivity
from robustjax.analysis._separation import KINDS, Separation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NATURAL, ADVERSARIAL = "#2b6cb0", "#c53030"
GREY = "0.55"
# Panels of the neurons' sensitivity, and classes that have names on an axis, at most.
MOST_LAYERS, MOST_NAMED = 24, 20


def channels(found: Mapping[str, Channels], *, of_class: int, name: str | None = None) -> Figure:
    """Magnitude and activation frequency of one class's channels, ordered by natural frequency; two panels a network.

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
    figure, axes = panels(len(found), 2, width=3.6, height=2.5)
    for (above, below), (title, seen) in zip(axes, found.items(), strict=True):
        place = int(np.flatnonzero(seen.classes == of_class)[0])
        order = np.argsort(-seen.frequency[0, place], kind="stable")
        for axis, values in ((above, seen.magnitude), (below, seen.frequency)):
            for which, colour, label in ((0, NATURAL, "natural"), (1, ADVERSARIAL, "adversarial")):
                drawn, places = values[which, place][order], np.arange(len(order))
                axis.step(places, drawn, where="mid", color=colour, label=label, linewidth=1)
                axis.fill_between(places, drawn, step="mid", color=colour, alpha=0.15, linewidth=0)
            axis.set_ylim(bottom=0)
        ratio, gap = (in_words(seen, name) for name in ("magnitude_ratio", "l1_gap"))
        above.set_title(f"{title}\nadversarial / natural, all classes: {ratio}", fontsize=8)
        above.set_ylabel("mean magnitude", fontsize=8)
        below.set_title(f"gap of frequencies, all classes: {gap}", fontsize=8)
        below.set_ylim(0, 1.05)
        below.set_ylabel("activation frequency", fontsize=8)
        below.set_xlabel("channel, by natural frequency", fontsize=8)
    legend_below(figure, axes[0][:1])
    figure.suptitle(f"Channels for images of class {name or of_class}, each panel on its own scale", fontsize=10)
    return figure


def relevance(found: Mapping[str, Relevance], *, of_class: int, name: str | None = None) -> Figure:
    """Activation of channels ordered by their weight for one class, and over-activation of all classes by robustness.

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
    figure, axes = panels(len(found), 2, width=3.6, height=2.6)
    for (above, below), (title, seen) in zip(axes, found.items(), strict=True):
        place = int(np.flatnonzero(seen.classes == of_class)[0])
        order = np.argsort(-seen.weights[place], kind="stable")
        for which, colour, label in ((0, NATURAL, "natural"), (1, ADVERSARIAL, "adversarial")):
            above.plot(seen.activation[which, place][order], color=colour, linewidth=1.2, label=label)
        above.axvline((seen.weights[place] > 0).sum() - 0.5, color=GREY, linestyle=":", linewidth=1)
        above.set_title(
            f"{title}\nrank correlation of activation and weight:\n{seen.rank_correlation[0, place]:.2f} natural, "
            f"{seen.rank_correlation[1, place]:.2f} adversarial",
            fontsize=8,
        )
        above.set_xlabel("channel, largest weight first (dotted: weight 0)", fontsize=8)
        above.set_ylabel("mean activation", fontsize=8)
        _halves(below, seen)
        below.set_title(
            f"less robust half of the classes (red)\nminus the other: {in_words(seen, 'over_activation_gap')}",
            fontsize=8,
        )
        below.set_xlabel("class and its accuracy under attack / %", fontsize=8)
        below.set_ylabel("rise of channels of negative\nweight / mean magnitude", fontsize=8)
    legend_below(figure, axes[0][:1])
    figure.suptitle(
        f"Above: channels ordered by their weight for class {name or of_class}. Below: all classes,\n"
        "the least robust one first (dashed: means of the halves)",
        fontsize=9, wrap=True,
    )  # fmt: skip
    return figure


def _halves(axis: Any, seen: Relevance) -> None:
    """Over-activation of each class, the least robust one first, and the mean of either half of them."""
    order = np.argsort(seen.robust_accuracy, kind="stable")
    half = len(order) // 2
    for places, colour in ((range(half), ADVERSARIAL), (range(half, len(order)), GREY)):
        values = seen.over_activation[order[places.start : places.stop]]
        axis.bar(places, values, color=colour, alpha=0.8)
        if np.isfinite(values).any():
            axis.hlines(np.nanmean(values), places.start - 0.5, places.stop - 0.5, color="black", linestyle="--",
                        linewidth=1)  # fmt: skip
    axis.axhline(0, color="black", linewidth=0.8)
    if len(order) <= MOST_NAMED:
        names = [f"{seen.classes[i]}\n{100 * seen.robust_accuracy[i]:.0f}" for i in order]
        axis.set_xticks(range(len(order)), names)
    else:
        axis.set_xticks([])


def sensitivity(found: Mapping[str, Sensitivity]) -> Figure:
    """Histograms of the neurons' relative sensitivity layer by layer, the networks that have a layer above each other.

    Example:
        >>> from robustjax import analysis
        >>> seen = analysis.sensitivity({"dense": np.ones((2, 4))}, {"dense": np.ones((2, 4))})
        >>> len(sensitivity({"at": seen}).axes)
        1
    """
    sites = list(dict.fromkeys(site for seen in found.values() for site in seen.relative))[:MOST_LAYERS]
    columns = min(4, len(sites))
    figure, axes = grid(-(-len(sites) // columns), columns, width=2.9, height=0.7 + 0.32 * len(found))
    named = [f"{name}: {in_words(seen, 'relative_sensitivity')}" for name, seen in found.items()]
    for i, (axis, site) in enumerate(zip(axes.flat, sites, strict=False)):
        own = [seen.relative[site] for seen in found.values() if site in seen.relative]
        bins = np.linspace(0, max(float(np.quantile(values, 0.95)) for values in own) * 1.05 or 1.0, 41)
        for row, seen in enumerate(found.values()):
            if site not in seen.relative:
                continue
            counts, _ = np.histogram(np.minimum(seen.relative[site], bins[-1]), bins=bins)
            heights = np.append(counts, counts[-1]) / max(counts.max(), 1) * 0.85
            axis.fill_between(bins, row, row - heights, step="post", color=look(row)["color"], alpha=0.6, linewidth=0)
            mean = seen.relative[site].mean()
            axis.plot([mean, mean], [row, row - 0.85], color="black", linewidth=1.2)
        axis.set_ylim(len(found) - 0.9, -1)  # the first network above
        axis.set_xlim(0, bins[-1])
        axis.set_yticks(range(len(found)), named if i % columns == 0 else [""] * len(found), fontsize=7)
        axis.set_title(site, fontsize=9)
    for axis in list(axes.flat)[len(sites) :]:
        axis.remove()
    figure.supxlabel(
        "mean |F(x) - F(x')| of a neuron / mean |F(x)| of its layer (the last bar holds what lies beyond)", fontsize=8
    )
    figure.suptitle(
        "Relative sensitivity of the neurons of each layer (line: mean of the layer), and the mean of all layers",
        fontsize=9, wrap=True,
    )  # fmt: skip
    return figure


def restoration(found: Mapping[str, Restoration]) -> Figure:
    """Accuracy under attack with each layer's most sensitive neurons restored, against random ones; a panel a network.

    Example:
        >>> from robustjax.analysis.estimate import Estimate
        >>> right = np.ones(3, bool)
        >>> gap = {"restoration_gap": Estimate(0.0, (0.0, 0.0), 3)}
        >>> len(restoration({"at": Restoration(right, {"dense": right}, {"dense": right}, 0.1, gap)}).axes)
        1
    """
    figure, axes = panels(len(found), 1, width=5.2, height=2.3, most=2)
    for (axis,), (title, seen) in zip(axes, found.items(), strict=True):
        places = np.arange(len(seen.sensitive))
        for shift, values, colour, label in (
            (-0.2, seen.random, GREY, f"random {seen.fraction:.0%}"),
            (0.2, seen.sensitive, ADVERSARIAL, f"most sensitive {seen.fraction:.0%}"),
        ):
            heights = [np.mean(right) for right in values.values()]
            axis.bar(places + shift, heights, width=0.38, color=colour, label=label)
        axis.axhline(seen.attacked.mean(), color="black", linestyle="--", linewidth=1, label="none restored")
        axis.set_xticks(places, list(seen.sensitive), rotation=30, ha="right", fontsize=7)
        axis.set_ylim(0, 1.05)
        axis.set_yticks(np.linspace(0, 1, 6))
        axis.set_ylabel("accuracy under attack", fontsize=8)
        axis.set_title(f"{title}: gain over random ones {in_words(seen, 'restoration_gap')}", fontsize=9)
    legend_below(figure, axes[0])
    figure.suptitle(
        "Neurons of one layer get the values that the natural image gives them (layers with a guard are left out)",
        fontsize=9, wrap=True,
    )  # fmt: skip
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
        5
    """
    shown = min(4, *(len(mask) for mask in masks.values()))
    figure, axes = grid(len(found), 2 + shown, width=1.7, height=2.3, ratios=[1.6, 1.6] + [1] * shown)
    for row, (title, parts) in zip(axes, found.items(), strict=True):
        for shift, which, colour in ((-0.2, "natural", NATURAL), (0.2, "adversarial", ADVERSARIAL)):
            values = [parts[which].estimates[kind] for kind in KINDS]
            errors = np.array([[v.value - v.interval[0], v.interval[1] - v.value] for v in values]).T
            row[0].bar(np.arange(3) + shift, [v.value for v in values], 0.38, yerr=errors, color=colour, label=which,
                       error_kw={"linewidth": 0.8})  # fmt: skip
        row[0].set_xticks(range(3), ["robust", "non-robust", "recalibrated"], rotation=25, ha="right", fontsize=7)
        row[0].set_ylim(0, 1.05)
        row[0].set_ylabel("accuracy", fontsize=8)
        row[0].set_title(f"{title}: accuracy of the head", fontsize=8)
        mask = masks[title]
        row[1].hist(mask.ravel(), bins=np.linspace(0, 1, 31), color=GREY, weights=np.full(mask.size, 1 / mask.size))
        row[1].set_title(f"values of the mask: mean {mask.mean():.2f}", fontsize=8)
        row[1].set_xlabel("0: dropped, 1: kept", fontsize=8)
        row[1].set_ylabel("share of the values", fontsize=8)
        row[1].set_xlim(-0.02, 1.02)
        for i, (axis, example) in enumerate(zip(row[2:], mask, strict=False)):
            drawn = axis.imshow(example.mean(axis=-1), vmin=0, vmax=1, cmap="viridis")
            axis.set_axis_off()
            axis.set_title(f"mask of image {i}", fontsize=7)
        bar = figure.colorbar(drawn, ax=list(row[2:]), shrink=0.7, pad=0.01)
        bar.set_label("mean over channels", fontsize=7)
        bar.ax.tick_params(labelsize=7)
    legend_below(figure, axes[0, :1])
    return figure
