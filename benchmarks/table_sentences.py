"""What the rows of TABLE.md support, in sentences that follow by rule from the records, and what of each abstract."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    robust,
    seeds,
    worst_case,
)

# Outcome under PGD-20, outcome in the worst case -> what follows.
SUPPORTED = {
    ("higher", "higher"): "More robust under PGD-20 and in the worst case.",
    ("higher", "undecided"): "What is gained under PGD-20 is not seen in the worst case.",
    ("higher", "lower"): "More robust under PGD-20, less robust in the worst case.",
    ("undecided", "higher"): "More robust in the worst case, which PGD-20 does not show.",
    ("undecided", "undecided"): "No difference from the baseline is seen; one inside the intervals is not excluded.",
    ("undecided", "lower"): "Less robust in the worst case, which PGD-20 does not show.",
    ("lower", "higher"): "Less robust under PGD-20, more robust in the worst case.",
    ("lower", "undecided"): "Less robust under PGD-20, which is not seen in the worst case.",
    ("lower", "lower"): "Less robust under PGD-20 and in the worst case.",
}  # fmt: skip
# What is compared, None being everything together -> how it is called.
COMPARED = {
    "clean": "without an attack",
    "pgd20": "under PGD-20",
    "autoattack": "under AutoAttack",
    None: "in the worst case",
}
# Accuracy in the worst case below which two networks are as good as at 0 alike.
FLOOR = 0.01


def of_rows(results: str | Path, name: str, scale: Scale) -> Iterator[str]:
    """What each row with a defense supports, of those that are complete."""
    lines, between_seeds = [], _between_seeds(results, name, scale)
    for cell_name, of_seeds in by_name(scale).items():
        whole = _attacked_in_full(results, name, of_seeds)
        differences = {attack: beyond(pairs(results, name, whole, attack)) for attack in COMPARED}
        if any(difference is None for difference in differences.values()):
            continue
        shown = {attack: difference for attack, difference in differences.items() if difference and attack != "clean"}
        cell = of_seeds[0]
        assert cell.base is not None
        told = [f"{each} {COMPARED[attack]} (n = {each.n:,})" for attack, each in shown.items()]
        lines.append(
            f"- `{cell_name}`, {PAPERS[cell.defense]}, against `{cell.base.name}`, points: {', '.join(told)}, of "
            f"{seeds(len(whole))}. "
            + " ".join(_supported(results, name, whole, shown["pgd20"], shown[None], between_seeds))
        )
    if lines:
        yield "What each row supports, of these networks:\n"
        yield from lines
        yield from _of_seeds_alone(between_seeds)


def _supported(
    results: str | Path,
    name: str,
    whole: Sequence[Cell],
    usual: Difference,
    worst: Difference,
    between_seeds: Mapping[str | None, Sequence[Difference]],
) -> Iterator[str]:
    """The sentences that follow from a row's two differences, and what makes them less certain."""
    own, base = _accuracies(pairs(results, name, whole, "clean"))
    if not _learned(own, base):
        yield (
            f"It has not learned its task: without an attack it is right on {100 * own:.1f} % of the images, its "
            f"baseline on {100 * base:.1f} %. This compares no defenses."
        )
        return
    if _at_the_floor(results, name, whole):
        yield f"Both are right on fewer than {100 * FLOOR:g} % in the worst case, where nothing can be compared."
        return
    slower = sorted({_rate(read(results, name, cell)) for cell in whole} - {1.0})
    if slower:
        yield f"It diverged, and was trained at {slower[0]:g} of the config's learning rate from there."
    yield SUPPORTED[usual.outcome, worst.outcome]
    if worst.outcome == "undecided" != usual.outcome and worst.low <= usual.value <= worst.high:
        yield "A difference as large as under PGD-20 is inside the interval of the worst case."
    where = [place for place, each in (("under PGD-20", usual), ("in the worst case", worst)) if each.of_both_signs]
    if where:
        yield f"Seeds differ in sign {' and '.join(where)}."
    if len(whole) == 1 and not whole[0].switched_on:
        within = [
            COMPARED[attack]
            for attack, each in (("pgd20", usual), (None, worst))
            if each.outcome != "undecided" and abs(each.value) <= _widest(between_seeds.get(attack, ()))
        ]
        if within:
            yield f"Two seeds of one baseline differ as much {' and '.join(within)}."
    doubtful, both = _doubtful(results, name, whole, worst)
    if doubtful:
        yield (
            "Flags failed on both: better attacks may leave less or more of this difference."
            if both
            else f"Flags failed on `{doubtful}`: better attacks may leave less of this difference."
        )


def _rate(record: Mapping[str, Any]) -> float:
    """The factor on the learning rate with which training ended."""
    return record.get("training", {}).get("rate_factor", 1.0)


def _between_seeds(results: str | Path, name: str, scale: Scale) -> dict[str | None, list[Difference]]:
    """What is compared -> the differences between any two networks without a defense that differ in seed alone."""
    found: dict[str | None, list[Difference]] = {}
    for of_seeds in by_name(scale).values():
        records = [read(results, name, cell) for cell in of_seeds if cell.base is None]
        for attack in ("clean", "pgd20", None):
            bits = [worst_case(each) if attack is None else robust(each, "protocol", attack) for each in records]
            both = [beyond([pair]) for pair in itertools.combinations(bits, 2)]
            found[attack] = found.get(attack, []) + [each for each in both if each]
    return found


def _widest(differences: Sequence[Difference]) -> float:
    return max((abs(each.value) for each in differences), default=0.0)


def _of_seeds_alone(found: Mapping[str | None, Sequence[Difference]]) -> Iterator[str]:
    """How often networks that differ in seed alone come out as higher or lower, which is what one seed is worth."""
    every = [each for differences in found.values() for each in differences]
    if every:
        apart = sum(each.outcome != "undecided" for each in every)
        yield (
            f"\nBy the same rule, networks without a defense that differ in seed alone are higher or lower than each "
            f"other in {apart} of {len(every)} comparisons without an attack, under PGD-20 and in the worst case, "
            f"there by up to {100 * _widest(found[None]):.1f} points. So of one seed, a difference of a few points "
            "between two networks that were trained apart says nothing of the defense."
        )


def _doubtful(results: str | Path, name: str, whole: Sequence[Cell], worst: Difference) -> tuple[str, bool]:
    """The network whose flags say that a difference may be smaller than measured, or "", and whether both have some.

    An accuracy under attacks that failed is too high, which matters of the network that came out higher.
    """
    if worst.outcome == "undecided":
        return "", False
    sides = [whole, [cell.base for cell in whole]]
    upper, below = sides if worst.outcome == "higher" else sides[::-1]

    def failed(side: Sequence[Cell | None]) -> bool:
        records = [read(results, name, cell) for cell in side if cell is not None]
        return any(record[part]["failed"] for record in records for part in VERDICTS if part in record)

    return (upper[0].name, failed(below)) if failed(upper) and upper[0] is not None else ("", False)


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
        "it guards the last layers only, on MNIST with a quarter of the paper's weight, and attacks on its heads count "
        "in the worst case alone",
    ),
    "cifs": (
        "selecting channels by their importance makes adversarially trained networks more robust",
        "networks are trained from the start, not from a naturally trained one, and attacks go through the mask, which "
        "the published code detaches, in the worst case alone",
    ),
    "fsr": (
        "recalibrating non-robust features makes adversarial training more robust, by up to 8.57 %",
        "its two networks are a quarter as wide on MNIST as in the paper, and the network and attack that the 8.57 "
        "belongs to were not at hand",
    ),
    "sns": (
        "stabilizing the most sensitive neurons makes networks more robust",
        "weight, layers and schedule are ours, as the paper's are not public",
    ),
}


PREFACE = """\
Differences from the same network without the defense, in points, of all networks above that were attacked in full. Left
out is a network that is right without an attack on fewer than half as many images as its baseline, and one that is at 0
in the worst case as its baseline is. Where several seeds were trained, a difference is their mean, and says of how
many. It is higher or lower as in the tables, by its 95 % interval (printed above for those under attack) and the sign
of each seed, and otherwise not significant. Of twenty comparisons of two fixed networks that do not differ about one
comes out so by chance; of networks that were trained apart many more do, as is counted above for MNIST. \\* stands
where the network that came out higher has flags that failed: better attacks may leave less of the difference. Networks
and images of the papers are others, most of them larger and harder: what follows is of the networks above, and no
measurement of those. What the notes above say holds here too: on MNIST CAS, CIFS and FSR are not set as in their
papers, and TRADES and MART are not as published.
"""


def of_abstracts(results: str | Path) -> Iterator[str]:
    """One sentence on each of the five papers: what its abstract says, and what every cell shows of it."""
    yield "## What this says of each abstract\n"
    left_out = [
        f"`{whole[0].name}` on {name}" for name, whole in _complete(results) if incomparable(results, name, whole)
    ]
    yield PREFACE
    if left_out:
        yield f"Left out: {', '.join(left_out)}.\n"
    for defense, (claim, setting) in ABSTRACTS.items():
        shown = [
            f"{when} {difference}"
            for attack, when in COMPARED.items()
            if (difference := _grouped(results, defense, attack))
        ]
        if shown:
            yield f"- {PAPERS[defense]} says that {claim}; here, where {setting}, the table shows {'; '.join(shown)}."


DOUBTFUL = "\\*"
OUTCOMES = {"higher": "higher", "undecided": "no significant difference", "lower": "lower"}


def _complete(results: str | Path) -> Iterator[tuple[str, list[Cell]]]:
    """Of the five papers: scale, and the seeds that were attacked in full."""
    for name, scale in SCALES.items():
        for of_seeds in by_name(scale).values():
            if of_seeds[0].defense in ABSTRACTS and (whole := _attacked_in_full(results, name, of_seeds)):
                yield name, whole


def incomparable(results: str | Path, name: str, of_seeds: Sequence[Cell]) -> str:
    """Why networks that were attacked in full are not compared with their baselines, or ""."""
    if not _learned(*_accuracies(pairs(results, name, of_seeds, "clean"))):
        return "has not learned its task"
    return "both at 0" if _at_the_floor(results, name, of_seeds) else ""


def _at_the_floor(results: str | Path, name: str, of_seeds: Sequence[Cell]) -> bool:
    return max(_accuracies(pairs(results, name, of_seeds))) < FLOOR


def _grouped(results: str | Path, defense: str, attack: str | None) -> str:
    """Of the complete cells with a defense, those above first: "higher on digits (`at_cas` +17.5), lower on ..."."""
    found: dict[str, dict[str, list[str]]] = {outcome: {} for outcome in OUTCOMES}
    for name, whole in _complete(results):
        if whole[0].defense == defense and not incomparable(results, name, whole):
            difference = beyond(pairs(results, name, whole, attack))
            assert difference is not None  # as the worst case has the protocol's images
            doubtful = attack is None and _doubtful(results, name, whole, difference)[0]
            text = f"`{whole[0].name}` {difference.points(difference.value)}{DOUBTFUL if doubtful else ''}"
            text += f" of {seeds(len(whole))}" if len(whole) > 1 else ""
            found[difference.outcome].setdefault(name, []).append(text)
    return ", ".join(
        f"{OUTCOMES[outcome]} on " + " and ".join(f"{name} ({', '.join(rows)})" for name, rows in of_scale.items())
        for outcome, of_scale in found.items()
        if of_scale
    )


def _accuracies(pairs: Sequence[tuple[np.ndarray | None, np.ndarray | None]]) -> tuple[float, float]:
    """Accuracies of networks and of their baselines, means over the seeds that both have.

    >>> half, most = np.arange(10) < 5, np.arange(10) < 9
    >>> _accuracies([(half, most), (None, half)])
    (0.5, 0.9)
    """
    whole = [(own.mean(), base.mean()) for own, base in pairs if own is not None and base is not None]
    own, base = np.mean(whole, axis=0).tolist()
    return own, base


def _learned(own: float, base: float) -> bool:
    """Whether networks are right at least half as often as their baselines: of others a comparison says nothing."""
    return own >= 0.5 * base
