"""The picture of a scale of TABLE.md: what usual attacks leave of each network, and what all attacks together leave."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cells import Cell, Scale, beyond, by_name, pairs, read, robust, worst_case

from robustjax.runtime import files
from robustjax.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Attack of the protocol -> its mark.
MARKS = {
    "clean": {"marker": "|", "color": "0.5", "markersize": 9, "label": "no attack"},
    "pgd20": {"marker": "o", "color": "C0", "markerfacecolor": "white", "label": "PGD-20"},
    "autoattack": {"marker": "D", "color": "C1", "markersize": 5, "markerfacecolor": "white", "label": "AutoAttack"},
}
BASELINE = {"color": "0.4", "linewidth": 0.8, "linestyle": "--"}


def write(results: str | Path, name: str, scale: Scale) -> Path | None:
    """Draws the cells of a scale that have a worst case; None, and no file, where there is none."""
    figure = draw(results, name, scale)
    if figure is None:
        return None
    path = Path(results) / "table" / f"{name}.png"
    with files.replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
    return path


def draw(results: str | Path, name: str, scale: Scale) -> Figure | None:
    """The figure that ``write`` saves."""
    shown = {}
    for cell_name, of_seeds in by_name(scale).items():
        records = [record for cell in of_seeds if worst_case(record := read(results, name, cell)) is not None]
        if records:
            shown[cell_name] = of_seeds, records
    if not shown:
        return None
    from matplotlib.figure import Figure  # not at the top: it takes a second

    figure = Figure(figsize=(7.5, 1.1 + 0.24 * len(shown)), layout="constrained")
    axis = figure.subplots()
    rows = _places([of_seeds[0] for of_seeds, _ in shown.values()])
    for row, (of_seeds, records) in zip(rows, shown.values(), strict=True):
        worst = _row(axis, row, records)
        # Not the baseline's own dot, which may be of other seeds, images and attacks than those that are compared.
        difference = beyond(pairs(results, name, of_seeds))
        if difference is not None:
            baseline = worst - 100 * difference.value
            axis.plot([baseline, baseline], [row - 0.5, row + 0.5], label="worst case of its baseline", **BASELINE)
    axis.set_yticks(rows, list(shown), fontsize=8)
    axis.set_ylim(max(rows) + 0.7, -0.7)  # the first row above
    axis.set_xlim(-2, 102)
    axis.set_xlabel("accuracy, per cent", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    handles, labels = axis.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _row(axis: Any, row: float, records: Sequence[Mapping[str, Any]]) -> float:
    """Draws a network of one or several seeds, and returns its mean worst case in per cent."""
    means = {}
    for attack in MARKS:
        each = [100 * bits.mean() for record in records if (bits := robust(record, "protocol", attack)) is not None]
        if each:
            means[attack] = float(np.mean(each))
    worst = [bits for record in records if (bits := worst_case(record)) is not None]
    each = [100 * float(bits.mean()) for bits in worst]
    mean, n = float(np.mean(each)), min(map(len, worst))
    if "pgd20" in means:
        axis.barh(row, means["pgd20"] - mean, left=mean, height=0.35, color="C0", alpha=0.25, linewidth=0)
    for attack, value in means.items():
        axis.plot(value, row, linestyle="none", zorder=3, **MARKS[attack])
    low, high = wilson_interval(mean / 100 * n, n)
    axis.plot([100 * low, 100 * high], [row, row], color="black", linewidth=1.2)
    axis.plot(mean, row, "o", color="black", markersize=5, label="worst case", zorder=4)
    if len(each) > 1:
        dots = {"color": "black", "markersize": 3, "label": "worst case of each seed"}
        axis.plot(each, [row + 0.33] * len(each), ".", **dots)
    return mean


def _places(cells: list[Cell]) -> list[float]:
    """Where the rows are, from above, with a gap between networks of different baselines.

    >>> _places([Cell("at", "", 0), Cell("at_cas", "", 0), Cell("trades", "", 0)])
    [0.0, 1.0, 2.5]
    """
    gaps = np.cumsum([0, *(a.objective != b.objective for a, b in itertools.pairwise(cells))])
    return (np.arange(len(cells)) + 0.5 * gaps).tolist()
