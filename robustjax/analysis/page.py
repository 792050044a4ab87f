"""A summary as a page that needs nothing but a browser, and as Markdown."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from robustjax.analysis.summary import Cell, Row

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
small { color: #666; display: block; }
img { max-width: 100%; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 0; }
"""


def markdown(rows: Sequence[Row]) -> str:
    """The table, accuracies as mean and 95 % interval in per cent."""
    attacks = _attacks(rows)
    lines = ["| | seeds | " + " | ".join(attack.replace("_", " ") for attack in attacks) + " |"]
    lines.append("|---|" + "---|" * (len(attacks) + 1))
    for row in rows:
        cells = [_text(row.cells.get(attack)) for attack in attacks]
        lines.append(f"| {row.label} | {', '.join(map(str, row.seeds))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(rows: Sequence[Row]) -> str:
    """HTML with the table, what it was measured under, and the pictures of each run."""
    attacks = _attacks(rows)
    head = "".join(f"<th>{html.escape(attack.replace('_', ' '))}</th>" for attack in attacks)
    body = "".join(_table_row(row, attacks) for row in rows)
    pictures = "".join(_pictures(row) for row in rows)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Robustness report</title><style>{STYLE}</style>'
        f"<h1>Robustness report</h1><table><tr><th></th><th>seeds</th>{head}</tr>{body}</table>"
        f"<p>Accuracy in per cent: mean over the seeds, 95 % interval for the number of test images, and the standard "
        f"deviation over seeds. Each attack gives an upper bound on robustness; the per-example worst case is the "
        f"lowest of them.</p>{''.join(map(_conditions, rows))}{pictures}</html>\n"
    )


def _attacks(rows: Sequence[Row]) -> list[str]:
    """In the order of the runs, clean first and the worst case last."""
    names = dict.fromkeys(attack for row in rows for attack in row.cells)
    return sorted(names, key=lambda name: {"clean": 0, "worst_case": 2}.get(name, 1))


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    low, high = cell.interval
    return f"{100 * cell.mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _table_row(row: Row, attacks: Sequence[str]) -> str:
    cells = []
    for attack in attacks:
        cell = row.cells.get(attack)
        spread = f" &plusmn; {100 * cell.spread:.1f}" if cell and len(cell.accuracies) > 1 else ""
        mean, _, interval = _text(cell).partition(" ")
        cells.append(f"<td>{mean}{spread}<small>{interval}</small></td>")
    return f"<tr><td>{html.escape(row.label)}</td><td>{', '.join(map(str, row.seeds))}</td>{''.join(cells)}</tr>"


def _conditions(row: Row) -> str:
    record = row.record
    facts = {
        "data": f"{record['dataset']}, {record['split']} split, {record['num_examples']:,} images",
        "threat": f"{record['norm']} epsilon {record['epsilon']:.4g}",
        "network": record["config"]["model"]["name"],
        "BatchNorm": record["batch_norm"],
        "code": f"commit {record['commit']}, " + ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
        "hardware": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in record["hardware"].items()),
        "runs": ", ".join(map(str, row.workdirs)),
    }
    items = "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items())
    return f"<details><summary>{html.escape(row.label)}: how it was measured</summary><dl>{items}</dl></details>"


def _pictures(row: Row) -> str:
    """Those of the row's first run, in the page itself."""
    parts = []
    for path in sorted(Path(row.workdirs[0], "evaluation").glob("*.png")):
        content = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<figure><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{content}"></figure>')
    return f"<h2>{html.escape(row.label)}</h2>{''.join(parts)}" if parts else ""
