"""The card of each network of the table, of its record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cells import ATTACKS, SCALES, VERDICTS, Cell, Scale, commits, place, read, robust, worst_case

from robustjax.runtime import files
from robustjax.statistics import wilson_interval


def write(results: str | Path, name: str, cell: Cell) -> None:
    """The card of a record, beside it."""
    files.write(place(results, name, cell).with_suffix(".md"), text(SCALES[name], cell, read(results, name, cell)))


def text(scale: Scale, cell: Cell, record: Mapping[str, Any]) -> str:
    """A network's card: what it is, what was measured, and what it is and is not for."""
    about, conditions = record.get("network", {}), record.get("conditions", {})
    lines = [f"# {cell.name}, seed {cell.seed}", "", f"A network of [the table](../../TABLE.md): {scale.about}.", ""]
    lines += [f"- {title}: {about[key]}" for key, title in DESCRIBED.items() if key in about]
    if "training" in record:
        accuracy = record["training"][f"{cell.checkpoint}_validation_pgd"]
        lines.append(f"- checkpoint: the {cell.checkpoint} of {record['training']['epochs']} epochs, "
                     f"{100 * accuracy:.1f} % of the validation images under PGD")  # fmt: skip
        if (factor := record["training"].get("rate_factor", 1.0)) != 1.0:
            lines.append(f"- learning rate: {factor:g} of the config's at the end, as training diverged")
    if conditions:
        versions = ", ".join(f"{name} {conditions['versions'][name]}" for name in ("robustjax", "jax", "flax"))
        lines.append(f"- measured with {versions}, commit {', '.join(sorted(commits(record)))}")
    lines += ["", "| attack | n | accuracy | 95 % interval |", "|---|--:|--:|---|"]
    measured = {title: robust(record, "protocol", attack) for attack, title in ATTACKS.items()}
    measured |= {"judge": robust(record, "judge"), "judge with hints": robust(record, "judge_with_hints")}
    measured["worst case"] = worst_case(record)
    for title, bits in measured.items():
        if bits is None:
            lines += [f"| {title} | | missing | |"] if title != "transfer" or cell.base else []
            continue
        low, high = wilson_interval(int(bits.sum()), len(bits))
        lines.append(f"| {title} | {len(bits):,} | {100 * bits.mean():.1f} % | {100 * low:.1f} to {100 * high:.1f} % |")
    lines.append("")
    for part in VERDICTS:
        if part in record:
            verdict = record[part]
            for kind in ("failed", "warned"):
                lines.append(f"- flags that {kind}, {part.replace('_', ' ')}: {', '.join(verdict[kind]) or 'none'}")
    findings = record.get("judge", {}).get("findings", ())
    if findings:
        lines.append(f"- found in its program: {'; '.join(findings)}")
    return "\n".join([*lines, "", LIMITS])


DESCRIBED = {
    "config": "config",
    "data": "data",
    "model": "network",
    "threat": "threat",
    "training_attack": "attack in training",
    "defense": "defense",
}
LIMITS = """\
Intended use: to compare defenses under attacks, and to test attacks and evaluations. It is no classifier for use: a
small network, on small images of one data set, robust at most against perturbations of the norm and radius above. An
accuracy under attack is an upper bound on robustness, of these images and this seed; a flag that failed says that an
attack did. Nothing is said of other data, of shifts that are no such perturbation, or of single images.
"""
