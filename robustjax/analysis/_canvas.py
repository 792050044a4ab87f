"""Figures of matplotlib without its global state: made, shown by notebooks, and written to a file."""

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


def in_words(found: Any, name: str) -> str:
    """An estimate with its interval, as titles say it."""
    estimate = found.estimates[name]
    return f"{estimate.value:.2f} ({estimate.interval[0]:.2f} to {estimate.interval[1]:.2f})"
