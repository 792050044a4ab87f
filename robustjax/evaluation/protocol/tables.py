"""Records as a person reads them first: one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

WIDEST = 200


def print_records(entries: Sequence[dict[str, Any]]) -> None:
    """A row for each record of an evaluation, the worst case last."""
    first = entries[0]
    num_draws = first.get("num_draws", 1)
    middle = ["majority", f"worst of {num_draws}"] if num_draws > 1 else []
    table = _table(first, ["attack", "steps", "accuracy", "95 % interval", *middle, "seconds"])
    for entry in entries:
        middle = [f"{entry[name]:.2%}" for name in ("majority_vote", "worst_of_draws") if name in entry]
        table.add_row(
            entry["attack"].replace("_", " "),
            str(entry["num_steps"]) if entry["attack"] != "worst_case" else "",
            f"{entry['accuracy']:.2%}",
            _interval(entry),
            *middle,
            f"{entry['seconds']:.1f}",
            end_section=entry is entries[-2],
        )
    print_whole(table)


def print_sweep(sweep: dict[str, Any]) -> None:
    """A row for each point of a sweep."""
    option = {"epsilon": "epsilon", "steps": "num_steps"}[sweep["sweep"]]
    headings = ["attack", sweep["sweep"], "accuracy", "95 % interval", "seconds"]
    table = _table({**sweep["points"][0], **sweep}, headings)
    for i, point in enumerate(sweep["points"]):
        last = point["attack"] not in {later["attack"] for later in sweep["points"][i + 1 :]}
        cells = (point["attack"], f"{point[option]:.4g}", f"{point['accuracy']:.2%}", _interval(point))
        table.add_row(*cells, f"{point['seconds']:.1f}", end_section=last)
    print_whole(table)


def _table(conditions: dict[str, Any], headings: Sequence[str]) -> Table:
    defended = f" with {conditions['defense']}" if conditions["defense"] else ""
    title = (
        f"{conditions['config']['model']['name']}{defended} on {conditions['num_examples']:,} test images of "
        f"{conditions['dataset']}, {conditions['norm']} epsilon {conditions['epsilon']:.4g}, "
        f"checkpoint of step {conditions['checkpoint_step']:,}"
    )
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    return table


def print_whole(table: RenderableType) -> None:
    """The whole of it as wide as its figures need, whatever the terminal."""
    console = Console()
    console.width = max(console.width, Console(width=WIDEST).measure(table).maximum)
    console.print(table)


def _interval(entry: dict[str, Any]) -> str:
    low, high = entry["interval_95"]
    return f"{low:.2%} to {high:.2%}"
