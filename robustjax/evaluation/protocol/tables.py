"""Records as a table, for the terminal and as HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from robustjax.evaluation.protocol.threats import NO_BALL, UNION

WIDEST = 200


def of_records(entries: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each record of an evaluation, worst cases last."""
    first = entries[0]
    num_draws = first.get("num_draws", 1)
    threats = dict.fromkeys((entry["norm"], entry["epsilon"]) for entry in entries if entry["norm"] != NO_BALL)
    several = len(threats) > 1
    optional = {
        "threat": lambda entry: _threat(entry) if several else None,
        "target hit": lambda entry: f"{entry['target_hit']:.2%}" if entry.get("target_hit") is not None else None,
        "majority": lambda entry: f"{entry['majority_vote']:.2%}" if num_draws > 1 else None,
        f"worst of {num_draws}": lambda entry: f"{entry['worst_of_draws']:.2%}" if num_draws > 1 else None,
    }
    shown = {
        "attack": lambda entry: _name(entry, entries),
        "threat": optional["threat"],
        "steps": lambda entry: "" if entry["attack"] == "worst_case" else str(entry["num_steps"]),
        "accuracy": lambda entry: f"{entry['accuracy']:.2%}",
        "95 % interval": _interval,
        **{name: cell for name, cell in optional.items() if name != "threat"},
        "seconds": lambda entry: f"{entry['seconds']:.1f}",
    }
    columns = {name: cells for name, cell in shown.items() if any(cells := [cell(entry) for entry in entries])}
    table = _table(first, list(columns), several)
    worst = [entry["attack"] == "worst_case" for entry in entries]
    for i, cells in enumerate(zip(*columns.values(), strict=True)):
        last = i + 1 < len(entries) and worst[i + 1] and not worst[i]
        table.add_row(*[cell or "" for cell in cells], end_section=last)
    return table


def html_of_records(entries: Sequence[Mapping[str, Any]]) -> str:
    """The same as HTML, for notebooks."""
    rows = []
    for entry in entries:
        figures = [f"{entry['accuracy']:.2%}", _interval(entry), f"{entry['num_examples']:,}"]
        rows.append([_name(entry, entries), _threat(entry), *figures])
    return html_table(["attack", "threat", "accuracy", "95 % interval", "images"], rows)


def of_classes(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Accuracy by class under each attack, and the most frequent wrong prediction in the last record."""
    several = len({(entry["norm"], entry["epsilon"]) for entry in entries}) > 1
    headings = [entry["attack"].replace("worst_case", "worst case") + (f" {_threat(entry)}" if several else "")
                for entry in entries]  # fmt: skip
    table = Table(title="accuracy by class")
    for i, heading in enumerate(("class", "images", *headings, "mostly taken for")):
        table.add_column(heading, justify="right" if 0 < i <= len(headings) + 1 else "left")
    names = {part["class"]: part.get("name", str(part["class"])) for part in entries[-1]["per_class"]}
    for part in entries[-1]["per_class"]:
        label = part["class"]
        cells = [
            next((f"{other['accuracy']:.2%}" for other in entry["per_class"] if other["class"] == label), "")
            for entry in entries
        ]
        others = {k: n for k, n in enumerate(entries[-1]["confusion"][label]) if k != label and n}
        most = max(others, key=lambda k: others[k]) if others else None
        taken = "" if most is None else f"{names.get(most, str(most))} ({others[most]})"
        table.add_row(names[label], f"{part['num_examples']:,}", *cells, taken)
    return table


CSV_COLUMNS: tuple[str, ...] = (
    "attack", "norm", "epsilon", "num_steps", "num_restarts", "num_examples", "accuracy", "low_95", "high_95",
    "majority_vote", "worst_of_draws", "target_hit", "seconds", "network", "dataset", "split", "seed",
    "checkpoint_step", "commit",
)  # fmt: skip


def csv_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """A line for each record, under the names of :data:`CSV_COLUMNS`; empty where a record does not say."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        low, high = entry["interval_95"]
        writer.writerow({**entry, "network": network_name(entry), "low_95": low, "high_95": high})
    return text.getvalue()


def of_sweep(sweep: Mapping[str, Any]) -> Table:
    """A row for each point of a sweep."""
    option = {"epsilon": "epsilon", "steps": "num_steps"}[sweep["sweep"]]
    headings = ["attack", sweep["sweep"], "accuracy", "95 % interval", "seconds"]
    table = _table({**sweep["points"][0], **sweep}, headings)
    for i, point in enumerate(sweep["points"]):
        last = point["attack"] not in {later["attack"] for later in sweep["points"][i + 1 :]}
        cells = (point["attack"], f"{point[option]:.4g}", f"{point['accuracy']:.2%}", _interval(point))
        table.add_row(*cells, f"{point['seconds']:.1f}", end_section=last)
    return table


def html_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as an HTML table; whatever they hold is shown as text.

    Example:
        >>> html_table(["x"], [["<1"]])
        '<table><thead><tr><th scope="col">x</th></tr></thead><tbody><tr><td>&lt;1</td></tr></tbody></table>'
    """
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def show(table: RenderableType) -> None:
    """Prints the whole table, as wide as its figures need, whatever the width of the terminal."""
    console = Console()
    console.width = max(console.width, Console(width=WIDEST).measure(table).maximum)
    console.print(table)


def _table(conditions: Mapping[str, Any], headings: Sequence[str], several: bool = False) -> Table:
    """An empty table whose title says what was measured, as far as the records of a network tell."""
    table = Table(title=subject(conditions, several=several))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("attack", "threat") else "right")
    return table


def subject(conditions: Mapping[str, Any], *, several: bool = False) -> str:
    """Network, images and threat of a record in words, as far as it tells.

    Example:
        >>> subject({"num_examples": 1000, "split": "test", "dataset": "digits", "norm": "linf", "epsilon": 0.2})
        'network on 1,000 test images of digits, linf epsilon 0.2'
    """
    defended = f" with {conditions['defense']}" if conditions.get("defense") else ""
    dataset = f" of {conditions['dataset']}" if "dataset" in conditions else ""
    split = f"{conditions['split']} " if conditions.get("split") else ""
    threat = "several threats" if several else f"{conditions['norm']} epsilon {conditions['epsilon']:.4g}"
    step = f", checkpoint of step {conditions['checkpoint_step']:,}" if "checkpoint_step" in conditions else ""
    network = network_name(conditions) or "network"
    return f"{network}{defended} on {conditions['num_examples']:,} {split}images{dataset}, {threat}{step}"


def commit_name(commit: str) -> str:
    """A record's commit in short.

    >>> commit_name("c1e92f7706a1"), commit_name("c1e92f7706a1+changes")
    ('c1e92f7', 'c1e92f7 with changes')
    """
    digest, _, changed = commit.partition("+")
    return digest[:7] + (f" with {changed}" if changed else "")


def _name(entry: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> str:
    """A record's name; of a worst case also the attacks of earlier calls that it is over besides."""
    if entry["attack"] != "worst_case":
        return entry["attack"]
    shown = {other["attack"] for other in entries}
    before = [name for name in entry["attacks"] if name not in shown]
    return "worst case" + (f" (with {', '.join(before)} of earlier calls)" if before else "")


def network_name(conditions: Mapping[str, Any]) -> str:
    """The name of a record's network; empty where the record does not say."""
    config = conditions.get("config")
    return config["model"]["name"] if config else conditions.get("network", {}).get("model", "")


def _threat(entry: Mapping[str, Any]) -> str:
    if entry["norm"] in (NO_BALL, UNION):
        return {NO_BALL: "no ball", UNION: "union"}[entry["norm"]]
    return f"{entry['norm']} {entry['epsilon']:.4g}"


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval_95"]
    return f"{low:.2%} to {high:.2%}"
