"""The tables of the report page that hold accuracies, as HTML text: the leaderboard, and every attack."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from robustjax.analysis._files import Files
from robustjax.analysis.summary import Cell, Row
from robustjax.analysis.svg import foldable, interval, text

# The attacks that papers evaluate with, by the beginning of their names.
PROTOCOL = ("fgsm", "pgd", "cw")
# Attacks, and the clean accuracy, that the heads of the leaderboard name.
NAMED = ("clean", "autoattack", "adaptive", "worst_case")
NOTHING = '<td data-value="-1">&ndash;</td>'
NO_FLAG = '<span class="badge pass">none</span>'


def leaderboard(shown: Sequence[tuple[Row, Files]]) -> str:
    """A row for each network; sorted by any column, filtered by its text."""
    columns = {
        "Clean": lambda row: _named(row, ["clean"]),
        "Paper's protocol": lambda row: _named(row, _attacks(row, PROTOCOL)),
        "AutoAttack": lambda row: _named(row, _attacks(row, ("autoattack",))),
        "Adaptive": lambda row: _named(row, _attacks(row, ("adaptive",))),
        "Worst case": lambda row: _named(row, ["worst_case"]),
    }
    present = {name: read for name, read in columns.items() if any(read(row) for row, _ in shown)}
    seeded = any(row.seeds for row, _ in shown)  # runs among them
    headings = ["Network", *(["Seeds"] if seeded else []), *present, "Flags"]
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button" data-column="{i}">{text(name)}</button></th>'
        for i, name in enumerate(headings)
    )
    body = []
    for row, files in shown:
        cells = [_network(row, files)]
        if seeded:
            cells.append(f'<td class="narrow">{", ".join(map(str, row.seeds))}</td>')
        for read in present.values():
            found = read(row)
            # Which attack it is, where the head of the column does not say it.
            cells.append(_accuracy(*found, told=found[0].split(" (")[0] not in NAMED) if found else NOTHING)
        cells.append(_flag_cell(files.trust))
        body.append(f"<tr>{''.join(cells)}</tr>")
    missing = ",".join(name.lower() for name in ("AutoAttack", "Adaptive") if name not in present)
    said = {
        "autoattack,adaptive": "No network has AutoAttack or adaptive attacks: these figures are upper bounds by "
        "the usual attacks, and not yet to be trusted",
        "autoattack": "No network has AutoAttack, by which others compare",
        "adaptive": "No network has adaptive attacks, which say whether the figures can be trusted",
    }
    note = (
        f'<p class="note">{said[missing]}; <code>evaluate --attacks={missing}</code> adds '
        f"{'it' if missing == 'autoattack' else 'them'}.</p>"
        if missing
        else ""
    )
    return (
        '<div class="tools"><label for="filter">Filter networks</label> '
        '<input id="filter" type="search" autocomplete="off" placeholder="name, seed, flag …"> '
        f'<span id="count" role="status">{len(shown)} of {len(shown)} shown</span></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Leaderboard"><table id="board" class="board">'
        f'<caption class="hidden">Accuracy of each network in per cent; the column heads sort</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def every_attack(shown: Sequence[tuple[Row, Files]], attacks: Sequence[str]) -> str:
    """Mean, spread over seeds and interval of every attack."""
    head = "".join(
        f'<th scope="col" title="{text(attack)}">{foldable(_short(attack_name(attack)))}</th>' for attack in attacks
    )
    body = ""
    for row, files in shown:
        cells = "".join(_accuracy(attack, row.cells[attack]) if attack in row.cells else NOTHING for attack in attacks)
        body += f"<tr>{_network(row, files)}{cells}</tr>"
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Accuracy under every attack"><table class="board">'
        f'<thead><tr><th scope="col">Network</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def of_draws(row: Row, trust: Mapping[str, Any] | None) -> str:
    """How the accuracies of a stochastic network are counted; empty for a deterministic one.

    Records hold the expected accuracy; a verdict, of which alone some rows are made, decides by majority.
    """
    if (row.record.get("num_draws") or 1) > 1:
        return "expected accuracy of one draw"
    return "majority of draws" if trust is not None and trust.get("acceptance") else ""


def _network(row: Row, files: Files) -> str:
    """The head of a row."""
    drawn = of_draws(row, files.trust)
    note = f"<small>stochastic: {drawn}</small>" if drawn else ""
    return f'<th scope="row">{foldable(row.label)}{note}</th>'


def attack_name(attack: str) -> str:
    """The heading of an attack: its spelling unchanged, as options and files may have underscores.

    Example:
        >>> attack_name("worst_case"), attack_name("transfer:runs/at_0")
        ('worst case', 'transfer:runs/at_0')
    """
    return attack.replace("worst_case", "worst case", 1) if attack.startswith("worst_case") else attack


def _short(attack: str) -> str:
    """Without the folders in which the source of a transfer lies, for the head of a column.

    Example:
        >>> _short("transfer:apgd@/home/me/runs/at_0"), _short("pgd:step_size=2/255")
        ('transfer:apgd@…/at_0', 'pgd:step_size=2/255')
    """
    return re.sub("@.*/", "@…/", attack)


def _attacks(row: Row, beginnings: Sequence[str]) -> list[str]:
    return [attack for attack in row.cells if attack.startswith(tuple(beginnings))]


def _named(row: Row, attacks: Sequence[str]) -> tuple[str, Cell] | None:
    """The attack that leaves least accuracy, and its cell."""
    cells = [(attack, row.cells[attack]) for attack in attacks if attack in row.cells]
    return min(cells, key=lambda pair: pair[1].mean) if cells else None


def _accuracy(attack: str, cell: Cell, *, told: bool = False) -> str:
    low, high = cell.interval
    spread = f" ± {100 * cell.spread:.1f}" if len(cell.accuracies) > 1 else ""
    which = f"<small>{foldable(attack.removeprefix('autoattack:'))}</small>" if told else ""
    return (
        f'<td data-value="{cell.mean:.6f}"><b>{100 * cell.mean:.1f}</b>{spread}'
        f"<small>{100 * low:.1f} to {100 * high:.1f}</small>{which}{interval(cell.mean, cell.interval)}</td>"
    )


def _flag_cell(trust: Mapping[str, Any] | None) -> str:
    if trust is None:
        return '<td data-value="-1">not evaluated</td>'
    flags = trust["flags"].values()
    counts = {status: [f["name"] for f in flags if f["status"] == status] for status in ("fail", "warn")}
    badges = "".join(
        f'<span class="badge {status}" title="{text(", ".join(names))}">{len(names)} {word}</span>'
        for (status, names), word in zip(counts.items(), ("failed", "warned"), strict=True)
        if names
    )
    found = trust.get("findings") or []
    count = "1 finding" if len(found) == 1 else f"{len(found)} findings"
    where = f"<small>{count} in the program</small>" if found else ""
    names = text(", ".join(name.replace("_", " ") for name in counts["fail"]))
    order = len(counts["fail"]) + len(counts["warn"]) / 100
    return f'<td data-value="{order}">{badges or NO_FLAG}<small>{names}</small>{where}</td>'
