"""Charts as inline SVG, in the page's colours and without a script.

Every chart has a description for screen readers and a table of its data. Text is escaped.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from robustjax.evaluation.protocol.tables import html_table

NUM_COLOURS = 8
_WIDTH, _HEIGHT = 380, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 40


class Series(NamedTuple):
    """Points (x, y) by rising x, with the ends of y's intervals where there are any."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] | None = None


class Bar(NamedTuple):
    """A value in [0, 1] with its interval."""

    name: str
    value: float
    interval: tuple[float, float]


def text(value: object) -> str:
    """Any value as text that HTML shows as it is.

    Example:
        >>> text('<img src="x">')
        '&lt;img src=&quot;x&quot;&gt;'
    """
    return html.escape(str(value), quote=True)


def foldable(value: object) -> str:
    """The same for narrow columns, which may break it where an option, a folder or a part of a name begins.

    Example:
        >>> foldable("transfer:runs/at_0, defense.weight=10.0")
        'transfer:<wbr>runs/<wbr>at_<wbr>0, defense.<wbr>weight=<wbr>10.0'
    """
    return "<wbr>".join(text(part) for part in re.split(r"(?<=[:=/@_])(?=\w)|(?<=[a-z]\.)(?=[a-z])", str(value)))


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str = "accuracy",
    marked: float | None = None,
    chance: float | None = None,
) -> str:
    """A chart of lines from 0 to 1, with bands where series have intervals.

    Args:
        series: at least one point between them.
        title: heads the chart.
        x_label, y_label: of the axes.
        marked: an x at which a dotted line stands.
        chance: a y at which a dashed line lies.

    Example:
        >>> "<svg" in lines([Series("at", [(0.0, 1.0), (0.1, 0.5)])], title="accuracy", x_label="epsilon")
        True
    """
    every = [x for one in series for x, _ in one.points]
    low, high = min(every), max(every)
    high = high if high > low else low + 1
    across = lambda x: _LEFT + (x - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)  # noqa: E731
    parts = [_frame(y_label), *(_x_tick(across(x), f"{x:.4g}") for x in _ticks(low, high)), _x_title(x_label)]
    if chance is not None:
        parts.append(_line(_LEFT, _up(chance), _WIDTH - _RIGHT, _up(chance), "rule dash"))
    if marked is not None and low <= marked <= high:
        parts.append(_line(across(marked), _TOP, across(marked), _HEIGHT - _BOTTOM, "rule dot"))
    for i, one in enumerate(series):
        look = f"c{i % NUM_COLOURS} d{i // NUM_COLOURS % 3}"
        if one.intervals:
            ends = [(across(x), _up(v)) for (x, _), (_, v) in zip(one.points, one.intervals, strict=True)]
            ends += [(across(x), _up(v)) for (x, _), (v, _) in reversed([*zip(one.points, one.intervals, strict=True)])]
            parts.append(f'<polygon class="band {look}" points="{_path(ends)}"/>')
        places = [(across(x), _up(y)) for x, y in one.points]
        parts.append(f'<polyline class="line {look}" points="{_path(places)}"/>')
        if len(places) <= 30:
            parts += [
                f'<circle class="point {look}" cx="{px:.1f}" cy="{py:.1f}" r="2.6">'
                f"<title>{text(one.name)}: {y:.1%} at {x:.4g}</title></circle>"
                for (px, py), (x, y) in zip(places, one.points, strict=True)
            ]
    rows = [[one.name, f"{x:.4g}", f"{y:.2%}"] for one in series for x, y in one.points]
    ends = "; ".join(f"{one.name} from {one.points[0][1]:.1%} to {one.points[-1][1]:.1%}" for one in series)
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><line class="line c{i % NUM_COLOURS} '
        f'd{i // NUM_COLOURS % 3}" x1="1" y1="4" x2="23" y2="4"/></svg>{text(one.name)}</li>'
        for i, one in enumerate(series)
    )
    describing = f"{y_label} against {x_label}: {ends}."
    return _figure(title, describing, parts, [x_label, y_label], rows, f'<ul class="legend">{legend}</ul>')


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], *, title: str, y_label: str = "accuracy") -> str:
    """Bars from 0 to 1 with intervals, side by side for each name; the groups share the names.

    Args:
        groups: (name of the group, its bars).
        title: heads the chart.
        y_label: of the axis.

    Example:
        >>> "clean, cat: 50.0%" in bars([("clean", [Bar("cat", 0.5, (0.3, 0.7))])], title="by class")
        True
    """
    names = [bar.name for bar in groups[0][1]]
    room = (_WIDTH - _LEFT - _RIGHT) / len(names)
    width = 0.8 * room / len(groups)
    parts = [_frame(y_label)]
    turned = max(map(len, names)) * 6 > room
    for i, name in enumerate(names):
        place = _LEFT + (i + 0.5) * room
        shown = name[:8] if turned else name
        turn = f' transform="rotate(-35 {place:.1f} {_HEIGHT - _BOTTOM + 13})" text-anchor="end"' if turned else ""
        parts.append(f'<text class="tick" x="{place:.1f}" y="{_HEIGHT - _BOTTOM + 13}"{turn}>{text(shown)}</text>')
    for which, (group, own) in enumerate(groups):
        for i, bar in enumerate(own):
            left, top = _LEFT + (i + 0.1) * room + which * width, _up(bar.value)
            parts.append(
                f'<rect class="bar c{which % NUM_COLOURS}" x="{left:.1f}" y="{top:.1f}" width="{width * 0.94:.1f}" '
                f'height="{_up(0) - top:.1f}"><title>{text(group)}, {text(bar.name)}: {bar.value:.1%}</title></rect>'
            )
            middle = left + width * 0.47
            parts.append(_line(middle, _up(bar.interval[0]), middle, _up(bar.interval[1]), "whisker"))
    rows = [
        [group, bar.name, f"{bar.value:.2%}", f"{bar.interval[0]:.2%} to {bar.interval[1]:.2%}"]
        for group, own in groups
        for bar in own
    ]
    parts += [] if turned else [_x_title("class")]  # turned names stand there, and are none but classes
    worst = "; ".join(f"{group}: lowest {min(own, key=lambda b: b.value).name} at {min(b.value for b in own):.1%}"
                      for group, own in groups)  # fmt: skip
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><rect class="bar c{i % NUM_COLOURS}" x="4" y="0" '
        f'width="16" height="8"/></svg>{text(group)}</li>'
        for i, (group, _) in enumerate(groups)
    )
    headings = ["class", y_label, "95 % interval"]
    return _figure(title, f"{y_label} by class. {worst}.", parts, headings, rows, f'<ul class="legend">{legend}</ul>')


def interval(value: float, ends: tuple[float, float]) -> str:
    """A value in [0, 1] and its interval as a mark on a short scale; the text beside it says the same.

    Example:
        >>> interval(0.5, (0.25, 0.75)).count("<line")
        2
    """
    across = lambda share: 2 + 76 * share  # noqa: E731
    return (
        '<svg class="scale" viewBox="0 0 80 10" aria-hidden="true">'
        + _line(2, 5, 78, 5, "axis")
        + _line(across(ends[0]), 5, across(ends[1]), 5, "range")
        + f'<circle class="value" cx="{across(value):.1f}" cy="5" r="1.8"/></svg>'
    )


def _figure(
    title: str, description: str, parts: Sequence[str], headings: list[str], rows: list[list[str]], legend: str
) -> str:
    return (
        f'<figure class="chart"><figcaption>{text(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(f"{title}. {description}")}">'
        f"{''.join(parts)}</svg>"
        f'{legend}<details class="data"><summary>Data of this chart</summary>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Data: {text(title)}">'
        f"{html_table(['series', *headings], rows)}</div></details></figure>"
    )


def _frame(y_label: str) -> str:
    grid = "".join(
        _line(_LEFT, _up(y), _WIDTH - _RIGHT, _up(y), "grid")
        + f'<text class="tick left" x="{_LEFT - 6}" y="{_up(y) + 3.5:.1f}">{y:.0%}</text>'
        for y in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return grid + f'<text class="label" x="9" y="{middle}" transform="rotate(-90 9 {middle})">{text(y_label)}</text>'


def _x_tick(x: float, name: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 14}">{text(name)}</text>'


def _x_title(name: str) -> str:
    return f'<text class="label" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}">{text(name)}</text>'


def _up(y: float) -> float:
    return _HEIGHT - _BOTTOM - y * (_HEIGHT - _BOTTOM - _TOP)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, four to eight of them, inside a range."""
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (size * factor) <= 6)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
