"""Matplotlib figures without its global state: made, shown in notebooks, and written to a file."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110


def save(figure: Figure, path: Any) -> None:
    """Writes a figure as PNG.

    Raises:
        WriteError: the file cannot be written; what was there before is intact.
    """
    from robustjax.runtime import files

    with files.replacing(path) as file:
        figure.savefig(file, format="png", dpi=DPI)


def grid(
    rows: int, columns: int, *, width: float, height: float, ratios: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    """A figure and its panels [rows, columns], each so many inches wide and high."""
    size = (width * (sum(ratios) if ratios else columns) + 0.4, height * rows + 0.5)
    figure = _class()(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"width_ratios": ratios} if ratios else None)
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
    return figure, axes


def panels(count: int, rows: int, *, width: float, height: float, most: int = 3) -> tuple[Figure, list[list[Any]]]:
    """A figure with a column of panels for each network; more than ``most`` networks continue in a further row.

    Returns:
        The figure, and of each network its panels from above.
    """
    blocks_below = -(-count // most)
    figure, axes = grid(rows * blocks_below, -(-count // blocks_below), width=width, height=height)
    lines = [axes[rows * i : rows * (i + 1)] for i in range(len(axes) // rows)]
    blocks = [line[:, i] for line in lines for i in range(line.shape[1])]
    for unused in blocks[count:]:
        for axis in unused:
            axis.remove()
    return figure, [list(own) for own in blocks[:count]]


@functools.cache
def _class() -> type[Figure]:
    from matplotlib.figure import Figure  # not at the top: it takes a second

    class Shown(Figure):
        """A figure that notebooks show whether or not a backend was chosen."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=DPI)
            return buffer.getvalue()

    return Shown


def look(i: int) -> dict[str, str]:
    """Colour and dashes of the i-th of several lines; after ten the colours repeat with other dashes.

    Example:
        >>> look(0), look(11)
        ({'color': 'C0', 'linestyle': '-'}, {'color': 'C1', 'linestyle': '--'})
    """
    return {"color": f"C{i % 10}", "linestyle": ("-", "--", "-.", ":")[i // 10 % 4]}


def legend_below(figure: Figure, axes: Sequence[Any]) -> None:
    """One legend for all panels, below them, with each name once."""
    named = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    columns = max(1, min(len(named), int(figure.get_figwidth() * 13 / (4 + max(map(len, named))))))
    figure.legend(
        list(named.values()), list(named), loc="outside lower center", ncols=columns, fontsize=7, frameon=False
    )


def in_words(found: Any, name: str) -> str:
    """An estimate with its interval for a title, with a third digit where two would not tell the ends apart."""
    estimate = found.estimates[name]
    low, high = estimate.interval
    digits = 3 if high - low < 0.02 else 2
    return f"{estimate.value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
