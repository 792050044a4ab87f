"""Records as a person reads them first: one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

WIDEST = 200


def of_records(entries: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each record of an evaluation, the worst case last."""
    first = entries[0]
    num_draws = first.get("num_draws", 1)
    several = len({(entry["norm"], entry["epsilon"]) for entry in entries[:-1]}) > 1
    draws = ["majority", f"worst of {num_draws}"] if num_draws > 1 else []
    threat = ["threat"] if several else []
    table = _table(first, ["attack", *threat, "steps", "accuracy", "95 % interval", *draws, "seconds"], several)
    for entry in entries:
        worst = entry["attack"] == "worst_case"
        table.add_row(
            entry["attack"].replace("_", " "),
            *(["all" if worst else f"{entry['norm']} {entry['epsilon']:.4g}"] if several else []),
            "" if worst else str(entry["num_steps"]),
            f"{entry['accuracy']:.2%}",
            _interval(entry),
            *[f"{entry[name]:.2%}" for name in ("majority_vote", "worst_of_draws") if name in entry],
            f"{entry['seconds']:.1f}",
            end_section=entry is entries[-2],
        )
    return table


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


def show(table: RenderableType) -> None:
    """Prints the whole of it, as wide as its figures need, whatever the terminal."""
    console = Console()
    console.width = max(console.width, Console(width=WIDEST).measure(table).maximum)
    console.print(table)


def _table(conditions: Mapping[str, Any], headings: Sequence[str], several: bool = False) -> Table:
    """An empty table whose title says what was measured, as far as the records of a network tell."""
    config = conditions.get("config")
    network = config["model"]["name"] if config else "network"
    defended = f" with {conditions['defense']}" if conditions.get("defense") else ""
    dataset = f" of {conditions['dataset']}" if "dataset" in conditions else ""
    split = f"{conditions['split']} " if "split" in conditions else ""
    threat = "several threats" if several else f"{conditions['norm']} epsilon {conditions['epsilon']:.4g}"
    step = f", checkpoint of step {conditions['checkpoint_step']:,}" if "checkpoint_step" in conditions else ""
    title = f"{network}{defended} on {conditions['num_examples']:,} {split}images{dataset}, {threat}{step}"
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("attack", "threat") else "right")
    return table


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval_95"]
    return f"{low:.2%} to {high:.2%}"
