"""One report of a verdict, as data, Markdown and table: what was measured, whether to trust it, and what it cost.

Every ``verdict`` is a :class:`robustjax.evaluation.Verdict`, whose methods call these functions. The explanations of
flags are written where flags are decided: :mod:`red_flags` and :mod:`comparisons`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from robustjax.evaluation.protocol import tables
from robustjax.runtime import files
from robustjax.statistics import wilson_interval

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "na": "dim"}
CAVEAT = (
    "The list of flags is neither necessary nor sufficient (Carlini et al. 2019): a network without one is not proven "
    "robust, only the known mistakes were not seen."
)

WORDS = "What each flag and the name of each attack means is said in docs/flags.md of robustjax."


def sentence(verdict: Any) -> str:
    """The verdict in one sentence."""
    robust, n = int(verdict.robust.sum()), len(verdict.robust)
    low, high = wilson_interval(robust, n)
    threat = f"{verdict.threat['norm']} epsilon {verdict.threat['epsilon']:.4g}"
    figure = (
        f"{verdict.worst_case:.2%} of {n:,} examples (95 % interval {low:.2%} to {high:.2%}) are robust against "
        f"everything that was tried within {threat}"
    )
    fired = {
        status: [name for name, flag in verdict.flags.items() if flag.status == status] for status in ("fail", "warn")
    }
    if fired["fail"]:
        return f"Do not trust this figure: {figure}, but attacks failed on the way ({', '.join(fired['fail'])})."
    if fired["warn"]:
        return f"Take this figure with care: {figure}, with warnings ({', '.join(fired['warn'])})."
    return f"{figure}, and no red flag was raised."


def to_json(verdict: Any, *, protocol: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A verdict as plain data.

    Args:
        verdict: of :func:`robustjax.evaluation.judge`.
        protocol: records of the evaluation that the paper describes, as :func:`records.record` returns them.
    """
    robust, n = int(verdict.robust.sum()), len(verdict.robust)
    return {
        "verdict": sentence(verdict),
        "num_examples": n,
        **verdict.threat,
        "clean": verdict.clean,
        "autoattack": verdict.autoattack,
        "worst_case": verdict.worst_case,
        "interval_95": wilson_interval(robust, n),
        "protocol": {record["attack"]: record["accuracy"] for record in protocol},
        "acceptance": {name: value._asdict() for name, value in verdict.acceptance.items()},
        "flags": {name: {"name": name, **flag._asdict()} for name, flag in verdict.flags.items()},
        "attacks": {
            name: {
                "misclassified": int(misclassified.sum()),
                "won": verdict.won_by.count(name),
                "seconds": round(verdict.seconds_by_attack.get(name, 0.0), 3),
            }
            for name, misclassified in verdict.misclassified_by.items()
        },
        "seconds": {part: round(seconds, 3) for part, seconds in verdict.seconds.items()},
        "findings": [finding._asdict() for finding in verdict.findings],
        "remedies": [remedy._asdict() | {"finding": remedy.finding._asdict()} for remedy in verdict.remedies],
        "caveat": CAVEAT,
        "robust": verdict.robust.tolist(),
        "won_by": verdict.won_by,
    }


def markdown(
    verdict: Any, *, protocol: Sequence[dict[str, Any]] = (), conditions: Mapping[str, Any] = MappingProxyType({})
) -> str:
    """A verdict as a Markdown page.

    Args:
        verdict, protocol: as of :func:`to_json`.
        conditions: of what network, on what images and by what versions, as far as they are known; see :func:`write`.
    """
    parts = [f"# Trust report\n\n{_subject(verdict, conditions)}\n\n{sentence(verdict)}\n\n{CAVEAT}\n"]
    for title, headings, rows in _tables(verdict, protocol):
        lines = [f"## {title}\n", _line(headings), _line(["---"] * len(headings)), *map(_line, rows)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, f"{WORDS}\n"])


def table(verdict: Any, *, protocol: Sequence[dict[str, Any]] = ()) -> Group:
    """A verdict for the terminal, to be printed by a ``rich.console.Console``; arguments as of :func:`to_json`."""
    parts = []
    for title, headings, rows in _tables(verdict, protocol):
        shown = Table(title=title, title_justify="left")
        for heading in headings:
            shown.add_column(heading, justify="right" if heading in ("accuracy", "value", "seconds", "n") else "left")
        for row in rows:
            style = next((STYLES[cell] for cell in row if cell in STYLES), None)
            shown.add_row(*map(escape, row), style=style)
        parts.append(shown)
    return Group(*parts, sentence(verdict), CAVEAT, WORDS)


def write(folder: str | Path, verdict: Any, *, protocol: Sequence[dict[str, Any]] = (), **conditions: Any) -> Path:
    """Writes ``folder/trust.json`` and ``trust.md``, each whole or not at all; returns the path of the first.

    Args:
        folder: of the records of an evaluation.
        verdict, protocol: as of :func:`to_json`.
        **conditions: what else the report says of itself, such as ``**records.conditions()``; plain data.
    """
    folder = files.place(folder)
    texts = {
        "trust.json": json.dumps(to_json(verdict, protocol=protocol) | conditions) + "\n",
        "trust.md": markdown(verdict, protocol=protocol, conditions=conditions),
    }
    for name, text in texts.items():
        files.write(folder / name, text)
    return folder / "trust.json"


def _subject(verdict: Any, conditions: Mapping[str, Any]) -> str:
    """Of what the report is: network, images, threat and budget, and by which versions."""
    of = tables.subject({"num_examples": len(verdict.robust), **verdict.threat, **conditions})
    low, high = verdict.threat["bounds"]
    made = [f"{name} {conditions['versions'][name]}" for name in ("robustjax", "jax") if "versions" in conditions]
    commit = conditions.get("commit")
    made += [f"commit {tables.commit_name(commit)}"] if commit else []
    by = f"; {', '.join(made)}" if made else ""
    return f"Evaluated: {of}, pixels in [{low}, {high}], budget {verdict.threat['budget']}{by}."


def _tables(verdict: Any, protocol: Sequence[dict[str, Any]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, headings, rows of text) of each part."""
    extra = verdict.seconds["red flags"] + verdict.seconds["adaptive"]
    figures = [["clean", f"{verdict.clean:.2%}", f"{verdict.seconds['clean']:.1f}"]]
    figures += [
        [record["attack"], f"{record['accuracy']:.2%}", f"{record['seconds']:.1f}"]
        for record in protocol
        if (record["attack"], record["accuracy"]) != ("clean", verdict.clean)
    ]
    figures += [
        [_ensemble(verdict), f"{verdict.autoattack:.2%}", f"{verdict.seconds['autoattack']:.1f}"],
        ["worst case, adaptive attacks and checks included", f"{verdict.worst_case:.2%}", f"{extra:.1f}"],
    ]
    parts = [("Accuracy", ["under", "accuracy", "seconds"], figures)]
    if verdict.acceptance:
        rows = [
            [
                name.replace("_", " "), _with_interval(part.expected, part.interval_95),
                _with_interval(part.majority, part.majority_interval_95),
                _with_interval(part.worst, part.worst_interval_95), str(part.num_draws),
            ]
            for name, part in verdict.acceptance.items()
        ]  # fmt: skip
        headings = ["on fresh draws (95 % intervals)", "expected", "majority vote", "every draw", "draws"]
        parts.append(("Accuracy over the draws of the network", headings, rows))
    attacks = [
        [name, str(int(misclassified.sum())), str(verdict.won_by.count(name)),
         f"{verdict.seconds_by_attack[name]:.1f}" if name in verdict.seconds_by_attack else ""]
        for name, misclassified in verdict.misclassified_by.items()
    ]  # fmt: skip
    parts.append(("Attacks", ["attack", "examples misclassified", "first to succeed", "seconds"], attacks))
    flags = [
        [name, flag.status, "" if flag.value is None else f"{flag.value:.4g}",
         "" if flag.threshold is None else f"{flag.threshold:.4g}", str(flag.n), flag.explanation]
        for name, flag in verdict.flags.items()
    ]  # fmt: skip
    parts.append(("Red flags", ["flag", "status", "value", "threshold", "n", "explanation"], flags))
    if verdict.findings:
        headings = ["finding", "where", "gradient hidden for", "misclassified once relaxed alone", "remedy"]
        parts.append(("What the network's program hides", headings, _findings(verdict)))
    costs = [[part, f"{seconds:.1f}"] for part, seconds in verdict.seconds.items()]
    parts.append(("Cost", ["part", "seconds"], costs))
    return parts


def _findings(verdict: Any) -> list[list[str]]:
    remedies = {remedy.finding: remedy for remedy in verdict.remedies}
    rows = []
    for finding in verdict.findings:
        remedy, times = remedies.get(finding), f" ({finding.count} times)" if finding.count > 1 else ""
        hidden = "" if remedy is None else f"{remedy.hidden} of {remedy.num_images} images"
        found = "" if remedy is None else f"{remedy.misclassified} of {remedy.tried} that were left"
        rows.append([f"{finding.kind}: {finding.primitive}{times}", finding.where, hidden, found, finding.remedy])
    return rows


def _with_interval(accuracy: float, interval: tuple[float, float]) -> str:
    return f"{accuracy:.2%} ({interval[0]:.2%} to {interval[1]:.2%})"


def _ensemble(verdict: Any) -> str:
    if verdict.threat["budget"] == "full":
        return "AutoAttack"
    return f"AutoAttack's APGD{'' if verdict.acceptance else ' and Square'}, shortened"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
