"""What the rows of TABLE.md support, in sentences that follow by rule from the records, and what of each abstract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from cells import (
    PAPERS,
    SCALES,
    VERDICTS,
    Cell,
    Difference,
    Scale,
    beyond,
    by_name,
    pairs,
    read,
    seeds,
)

# Outcome under PGD-20, outcome in the worst case -> what follows.
SUPPORTED = {
    ("gain", "gain"): "A gain under PGD-20, and a gain against all attacks together.",
    ("gain", "undecided"): "What is gained under PGD-20 is not seen against stronger attacks.",
    ("gain", "loss"): "What is gained under PGD-20 becomes a loss against stronger attacks.",
    ("undecided", "gain"): "A gain against stronger attacks that PGD-20 does not show.",
    ("undecided", "undecided"): "No difference from the baseline is seen; one inside the intervals is not excluded.",
    ("undecided", "loss"): "A loss against stronger attacks that PGD-20 does not show.",
    ("loss", "gain"): "A gain against stronger attacks, though a loss under PGD-20.",
    ("loss", "undecided"): "A loss under PGD-20 that is not seen against stronger attacks.",
    ("loss", "loss"): "A loss under PGD-20 and against stronger attacks.",
}  # fmt: skip


def of_rows(results: str | Path, name: str, scale: Scale) -> Iterator[str]:
    """What each row with a defense supports, of those that are complete."""
    lines = []
    for cell_name, of_seeds in by_name(scale).items():
        whole = _attacked_in_full(results, name, of_seeds)
        worst = beyond(pairs(results, name, whole))
        usual = beyond(pairs(results, name, whole, "pgd20"))
        if worst is None or usual is None:
            continue
        cell = of_seeds[0]
        assert cell.base is not None
        lines.append(
            f"- `{cell_name}`, {PAPERS[cell.defense]}, against `{cell.base.name}`, points: {usual} under PGD-20 "
            f"(n = {usual.n:,}), {worst} in the worst case (n = {worst.n:,}), of {seeds(len(whole))}. "
            + " ".join(_supported(results, name, whole, usual, worst))
        )
    if lines:
        yield "What each row supports, of these networks:\n"
        yield from lines


def _supported(
    results: str | Path, name: str, whole: Sequence[Cell], usual: Difference, worst: Difference
) -> Iterator[str]:
    """The sentences that follow from a row's two differences, and what makes them less certain."""
    own, base = _clean(pairs(results, name, whole, "clean"))
    if not _learned(own, base):
        yield (
            f"It has not learned its task: without an attack it is right on {100 * own:.1f} % of the images, its "
            f"baseline on {100 * base:.1f} %. This compares no defenses."
        )
        return
    yield SUPPORTED[usual.outcome, worst.outcome]
    if worst.outcome == "undecided" != usual.outcome and worst.low <= usual.value <= worst.high:
        yield f"A {usual.outcome} as large is inside the interval."
    where = [place for place, each in (("under PGD-20", usual), ("in the worst case", worst)) if each.of_both_signs]
    if where:
        yield f"Seeds differ in sign {' and '.join(where)}."
    doubtful = _doubtful(results, name, whole, worst)
    if doubtful:
        yield f"Flags failed on `{doubtful}`: better attacks may leave less of this {worst.outcome}."


def _doubtful(results: str | Path, name: str, whole: Sequence[Cell], worst: Difference) -> str:
    """The network whose flags say that a gain or a loss may be smaller than measured, or "".

    An accuracy under attacks that failed is too high: of the network itself it makes a gain, of its baseline a loss.
    """
    if worst.outcome == "undecided":
        return ""
    inflated = [cell if worst.outcome == "gain" else cell.base for cell in whole]
    records = [read(results, name, cell) for cell in inflated if cell is not None]
    failed = any(record[part]["failed"] for record in records for part in VERDICTS if part in record)
    return inflated[0].name if failed and inflated[0] is not None else ""


def _attacked_in_full(results: str | Path, name: str, of_seeds: Sequence[Cell]) -> list[Cell]:
    """The seeds of which both the network with a defense and its baseline have a worst case.

    Differences that stand side by side are then of the same networks; a seed without verdicts is in none.
    """
    return [cell for cell in of_seeds if beyond(pairs(results, name, [cell]))]


# Defense -> what its abstract says of robustness, in our words, and what must be known of our networks beside that.
ABSTRACTS = {
    "sap": (
        "pruning activations at random, smaller ones more often, makes networks that are already trained more robust",
        "it draws with the published marginal probabilities and attacks go through means over many draws",
    ),
    "cas": (
        "suppressing redundant channels makes adversarially trained networks more robust",
        "it guards the last layers only, on MNIST with weight 0.5, and attacks on its heads count, as in its paper",
    ),
    "cifs": (
        "selecting channels by their importance makes adversarially trained networks more robust",
        "networks are trained from the start, not from a naturally trained one, and attacks pass through the mask",
    ),
    "fsr": (
        "recalibrating non-robust features makes adversarial training more robust, by up to 8.57 %",
        "the network and attack that the 8.57 belongs to were not at hand",
    ),
    "sns": (
        "stabilizing the most sensitive neurons makes networks more robust",
        "weight, layers and schedule are ours, as the paper's are not public",
    ),
}


PREFACE = """\
Differences from the same network without the defense, in points, of all networks above that were attacked in full and
learned their task: one that is right without an attack on fewer than half as many images as its baseline is left out.
Where several seeds were trained, a difference is their mean, and says of how many. It is a gain or a loss as in the
tables, by its 95 % interval (printed above for those under attack) and the sign of each seed, and otherwise not
significant. Of twenty comparisons of networks that do not differ about one comes out as a gain or a loss by chance. \\*
stands at a gain whose network, or a loss whose baseline, has flags that failed: better attacks may leave less of it.
Networks and images of the papers are others, most of them larger and harder: what follows is of the networks above, and
no measurement of those. What the notes above say holds here too: on MNIST CAS, CIFS and FSR are not set as in their
papers, and TRADES and MART are not as published.
"""


def of_abstracts(results: str | Path) -> Iterator[str]:
    """One sentence on each of the five papers: what its abstract says, and what every cell shows of it."""
    yield "## What this says of each abstract\n"
    left_out = [f"`{whole[0].name}` on {name}" for name, whole, learned in _complete(results) if not learned]
    yield PREFACE
    if left_out:
        yield f"Left out: {', '.join(left_out)}.\n"
    for defense, (claim, setting) in ABSTRACTS.items():
        shown = [
            f"{when} {difference}"
            for attack, when in (
                ("clean", "without an attack"),
                ("pgd20", "under PGD-20"),
                (None, "against all attacks together"),
            )
            if (difference := _grouped(results, defense, attack))
        ]
        if shown:
            yield f"- {PAPERS[defense]} says that {claim}; here, where {setting}, the table shows {'; '.join(shown)}."


DOUBTFUL = "\\*"
OUTCOMES = {"gain": "a gain", "undecided": "no significant difference", "loss": "a loss"}


def _complete(results: str | Path) -> Iterator[tuple[str, list[Cell], bool]]:
    """Of the five papers: scale, the seeds that were attacked in full, and whether these have learned their task."""
    for name, scale in SCALES.items():
        for of_seeds in by_name(scale).values():
            if of_seeds[0].defense in ABSTRACTS and (whole := _attacked_in_full(results, name, of_seeds)):
                yield name, whole, _learned(*_clean(pairs(results, name, whole, "clean")))


def _grouped(results: str | Path, defense: str, attack: str | None) -> str:
    """Of the complete cells with a defense, gains first: "a gain on digits (`at_cas` +17.5), a loss on ..."."""
    found: dict[str, dict[str, list[str]]] = {outcome: {} for outcome in OUTCOMES}
    for name, whole, learned in _complete(results):
        if whole[0].defense == defense and learned:
            difference = beyond(pairs(results, name, whole, attack))
            assert difference is not None  # as the worst case has the protocol's images
            doubtful = attack is None and _doubtful(results, name, whole, difference)
            text = f"`{whole[0].name}` {difference.points(difference.value)}{DOUBTFUL if doubtful else ''}"
            text += f" of {seeds(len(whole))}" if len(whole) > 1 else ""
            found[difference.outcome].setdefault(name, []).append(text)
    return ", ".join(
        f"{OUTCOMES[outcome]} on " + " and ".join(f"{name} ({', '.join(rows)})" for name, rows in of_scale.items())
        for outcome, of_scale in found.items()
        if of_scale
    )


def _clean(pairs: Sequence[tuple[np.ndarray | None, np.ndarray | None]]) -> tuple[float, float]:
    """Accuracies of networks and of their baselines, means over the seeds that both have.

    >>> half, most = np.arange(10) < 5, np.arange(10) < 9
    >>> _clean([(half, most), (None, half)])
    (0.5, 0.9)
    """
    whole = [(own.mean(), base.mean()) for own, base in pairs if own is not None and base is not None]
    own, base = np.mean(whole, axis=0).tolist()
    return own, base


def _learned(own: float, base: float) -> bool:
    """Whether networks are right at least half as often as their baselines: of others a comparison says nothing."""
    return own >= 0.5 * base
