"""Runs side by side as one HTML page that needs nothing but a browser, and as Markdown.

:func:`page` lists the sections of the page; ``_leaderboard.py`` and ``_sections.py`` write them, ``svg.py`` draws the
charts, and ``page.html`` is the template with its style and script. The page loads nothing. A content security policy
allows its own script alone, by digest, so whatever configs, files and data sets hold stays text. Without the script all
of it can be read; the script makes tables sort and filter.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustjax.analysis import _files, _leaderboard, _sections
from robustjax.analysis.summary import GIVEN, Cell, Row, data_of
from robustjax.analysis.svg import text


def markdown(rows: Sequence[Row]) -> str:
    """The table, accuracies as mean and 95 % interval in per cent.

    Example:
        >>> row = Row("at", (0,), {"clean": Cell((0.5,), 100)}, (Path("run"),), {}, {}, Path("run/evaluation"))
        >>> print(markdown([row]))
        | | seeds | clean |
        |---|---|---|
        | at | 0 | 50.0 (40.4 to 59.6) |
    """
    attacks = attacks_of(rows)
    heads = [_leaderboard.attack_name(attack).replace("|", "\\|") for attack in attacks]
    lines = ["| | seeds | " + " | ".join(heads) + " |"]
    lines.append("|---|" + "---|" * (len(attacks) + 1))
    for row in rows:
        cells = [_plain(row.cells.get(attack)) for attack in attacks]
        label = row.label.replace("|", "\\|")
        lines.append(f"| {label} | {', '.join(map(str, row.seeds))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(rows: Sequence[Row]) -> str:
    """The page: leaderboard, curves, flags and findings, examples, classes, figures, configs and provenance.

    Raises:
        InputError: a file of a run is damaged.
    """
    shown = [(row, _files.read(row.workdirs[0], row.folder)) for row in rows]
    parts = [part for part in _parts(rows, shown) if part[2]]
    contents = "".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title, _ in parts)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{text(title)}</h2>{content}'
        "</section>"
        for name, title, content in parts
    )
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    # Before anything is filled in, so that no text of a run can become part of what the policy allows.
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    filled = {"digest": digest, "lead": _lead(rows), "contents": contents, "body": body}
    return re.sub(r"<!--(\w+)-->", lambda found: filled[found[1]], template.replace("DIGEST", "<!--digest-->"))


def attacks_of(rows: Sequence[Row]) -> list[str]:
    """The attacks in the order of columns: clean, the usual protocol, others, AutoAttack, adaptive, the worst case."""
    names = dict.fromkeys(attack for row in rows for attack in row.cells)
    first, last = ("clean", "fgsm", "pgd", "cw"), ("autoattack", "adaptive", "worst_case")

    def place(name: str) -> tuple[int, int]:
        for group in (first, last):
            for i, beginning in enumerate(group):
                if name.startswith(beginning):  # PGD-20 before PGD-100
                    return i + (len(first) + 1 if group is last else 0), len(name) if beginning == "pgd" else 0
        return len(first), 0

    return sorted(names, key=place)


def _plain(cell: Cell | None) -> str:
    if cell is None:
        return ""
    low, high = cell.interval
    return f"{100 * cell.mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _lead(rows: Sequence[Row]) -> str:
    """What the page is about, in a sentence or two."""
    data = dict.fromkeys(_images(row.record) for row in rows)
    threats = dict.fromkeys(threat for row in rows for threat in row.threats)
    count = sum(len(row.seeds) for row in rows)
    runs = "" if count == 0 else "1 run, " if count == 1 else f"{count} runs, "
    configs = "1 network" if len(rows) == 1 else f"{len(rows)} networks"
    return (
        f"<p>{runs}{configs}, on {text(' and '.join(data))}, under {text(' and '.join(threats))}. "
        f"Accuracies are in per cent, {'means over seeds, ' if count else ''}with 95 % intervals for the number of "
        "images. "
        "Every attack gives an upper bound on robustness: the lowest of them counts.</p>"
    )


def _images(record: Mapping[str, Any]) -> str:
    name, count = data_of(record), f"{record['num_examples']:,}"
    return f"{count} {name}" if name == GIVEN else f"{count} images of {name}"


def _parts(rows: Sequence[Row], shown: Sequence[tuple[Row, _files.Files]]) -> Iterator[tuple[str, str, str]]:
    """(id, title, HTML) of each section; empty HTML where there is nothing to show."""
    yield "leaderboard", "Leaderboard", _leaderboard.leaderboard(shown)
    yield "attacks", "Every attack", _leaderboard.every_attack(shown, attacks_of(rows))
    yield "epsilon", "Epsilon", _sections.epsilon(shown)
    yield "flags", "Flags and findings", _sections.flags(shown)
    yield "examples", "Adversarial examples", _sections.examples(shown)
    yield "classes", "Classes", _sections.classes(rows)
    yield "training", "Training", _sections.training(shown)
    yield "inside", "Inside the networks", _sections.figures(shown)
    yield "configs", "Configs", _sections.configs(rows)
    yield "provenance", "Provenance", _sections.provenance(shown)
