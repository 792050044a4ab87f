"""A verdict as a notebook shows it."""

from __future__ import annotations

from typing import Any

from robustjax.evaluation.protocol.tables import html_table
from robustjax.statistics import wilson_interval


def html(verdict: Any) -> str:
    """Accuracies with intervals, the attacks that succeeded, and the flags that were raised, as HTML.

    Args:
        verdict: a :class:`robustjax.evaluation.Verdict`.
    """
    n = len(verdict.robust)
    figures = {"clean": verdict.clean, "AutoAttack": verdict.autoattack, "worst case": verdict.worst_case}
    rows = []
    for name, accuracy in figures.items():
        low, high = wilson_interval(accuracy * n, n)
        rows.append([name, f"{accuracy:.2%}", f"{low:.2%} to {high:.2%}"])
    threat = f"{verdict.threat['norm']} epsilon {verdict.threat['epsilon']:.4g}"
    parts = [f"<p>{n:,} images, {threat}</p>", html_table(["under", "accuracy", "95 % interval"], rows)]
    won = {name: verdict.won_by.count(name) for name in verdict.misclassified_by}
    succeeded = [[name, count] for name, count in sorted(won.items(), key=lambda pair: -pair[1]) if count]
    if succeeded:
        parts.append(html_table(["attack", "first to succeed on"], succeeded))
    raised = [
        [name, flag.status, flag.explanation] for name, flag in verdict.flags.items() if flag.status in ("fail", "warn")
    ]
    parts.append(html_table(["flag", "status", "what it means"], raised) if raised else "<p>No flag was raised.</p>")
    if verdict.findings:
        parts.append(f"<p>What the network's program hides:</p>{verdict.findings._repr_html_()}")
    return "".join(parts)
