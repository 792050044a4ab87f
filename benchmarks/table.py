"""TABLE.md and a card of each network, of the records that benchmarks/reproduce.py writes; nothing else is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import (
    PARTS,
    SCALES,
    VERDICTS,
    Cell,
    Difference,
    Scale,
    beyond,
    by_name,
    commits,
    pairs,
    place,
    read,
    robust,
    worst_case,
)

from robustjax.runtime import files
from robustjax.statistics import wilson_interval

ATTACKS = {
    "clean": "clean", "fgsm": "FGSM", "pgd20": "PGD-20", "cw": "C&W", "pgd100": "PGD-100", "autoattack": "AutoAttack",
    "transfer": "transfer",
}  # fmt: skip
PAPERS = {
    "sap": "SAP (Dhillon et al. 2018)",
    "cas": "CAS (Bai et al. 2021)",
    "cifs": "CIFS (Yan et al. 2021)",
    "fsr": "FSR (Kim et al. 2023)",
    "sns": "SNS (Zhang et al. 2021)",
    "kwta": "kWTA (Xiao et al. 2020)",
    "meansparse": "MeanSparse (Amini et al. 2024)",
}


def write_table(results: str | Path, *, published: Path) -> Path:
    """TABLE.md of the records that there are.

    Args:
        results: folder of the records, and of TABLE.md.
        published: a JSON list of what papers report, each with ``defense``, ``setting``, ``figures`` and ``source``.
    """
    text = ["# The table of defenses\n", EXPLAINED]
    for name, scale in SCALES.items():
        text += [f"## {name}: {scale.about}\n", *([f"{scale.note}\n"] if scale.note else [])]
        text += [*rows(results, name, scale), "", *sentences(results, name, scale), ""]
    text += [*abstracts(results), ""]
    text += ["## What the papers report, and where this differs\n", *reported(published)]
    path = Path(results) / "TABLE.md"
    files.write(path, "\n".join(text) + "\n")
    return path


EXPLAINED = """\
Networks trained alike, alone and with a defense, evaluated by the papers' protocol, by AutoAttack and by adaptive
attacks. Made by `launch/reproduce.sh` of the records in `table/`, which have one bit for each image and attack; beside
each record lies a card of the network. A part that was not measured is shown as missing.

Accuracy in per cent; of several seeds the mean, with the standard deviation over the seeds, and their number where it
is smaller than that of the row. Two figures in the column n are the images of the attacks and those of the verdicts.
AutoAttack is `fast` (`rand` for SAP). "Transfer" are images that APGD made for the network without the defense. "Judge"
is `judge` on the network's program alone, "with hints" the same with what the defense declares; flags are those that
failed in one of these two verdicts, of several seeds in how many. The worst case is over everything in the row, on the
images of the verdicts, with Wilson's 95 % interval, as of one network on these images; of SAP, whose draws differ from
attack to attack, it is the verdict with hints alone.

The last column compares the worst case with that of the network of the same seed without the defense, on the images and
over the parts that both have (of SAP, over the verdicts with hints of both), image by image, with the 95 % interval of
Agresti and Min (2005); of several seeds it is that of each image's mean over them. It says "gain" or "loss" where the
interval excludes 0 and no seed has the other sign, and "undecided" elsewhere. All intervals are over images, of the
networks that were trained, and not over seeds: of one seed nothing tells how another would come out, of several the
differences by seed do, as far as so few can.
"""
TITLES = (
    "network", "seeds", "n", *ATTACKS.values(), "judge", "with hints", "worst case", "flags that failed",
    "worst case beyond its baseline",
)  # fmt: skip
MISSING = "missing"


def rows(results: str | Path, name: str, scale: Scale) -> Iterator[str]:
    """The lines of a table, and the cells that are missing as a whole."""
    missing, at, first = [], set(), True
    for cell_name, of_seeds in by_name(scale).items():
        found = [record for cell in of_seeds if "protocol" in (record := read(results, name, cell))]
        if not found:
            missing.append(f"`{cell_name}`")
            continue
        if first:
            yield f"| {' | '.join(TITLES)} |"
            yield "|---|---|---|" + "--:|" * (len(TITLES) - 5) + "---|---|"
            first = False
        at |= set().union(*(commits(record) for record in found))
        fields = [f"`{cell_name}`", f"{len(found)} of {len(of_seeds)}", _images(found)]
        for attack in ATTACKS:
            if attack == "transfer" and of_seeds[0].base is None:
                fields.append("")
            else:
                fields.append(_spread([robust(record, "protocol", attack) for record in found]))
        fields += [_spread([robust(record, part) for record in found]) for part in VERDICTS]
        fields.append(_spread([worst_case(record) for record in found], interval=True))
        fields.append(_flags(found))
        if of_seeds[0].base is None:
            fields.append("")
        else:
            difference = beyond(pairs(results, name, of_seeds))
            fewer = _fewer(len(difference.by_seed), len(found)) if difference else ""
            fields.append(f"{difference.outcome}: {difference}{fewer}" if difference else MISSING)
        yield f"| {' | '.join(fields)} |"
    if at:
        yield f"\nMeasured at commit {', '.join(sorted(at))}."
    if missing:
        yield f"\nMissing: {', '.join(missing)}." if not first else "Not measured yet."


def _images(records: Sequence[Mapping[str, Any]]) -> str:
    """Numbers of images, of the protocol and where they are others of the verdicts."""
    sizes = sorted({record[part]["n"] for record in records for part in PARTS[1:] if part in record}, reverse=True)
    return " / ".join(f"{size:,}" for size in sizes) or MISSING


def _spread(several: Sequence[np.ndarray | None], *, interval: bool = False) -> str:
    """Mean and standard deviation over seeds, in per cent; the interval is of as many images as one seed has.

    >>> _spread([np.array([True, False]), None]), _spread([None])
    ('50.0, 1 seed', 'missing')
    >>> _spread([np.array([True, False]), np.array([True, True])], interval=True)
    '75.0 ± 35.4 (19.8 to 97.3)'
    """
    shares = [float(bits.mean()) for bits in several if bits is not None]
    if not shares:
        return MISSING
    text = f"{100 * np.mean(shares):.1f}"
    if len(shares) > 1:
        text += f" ± {100 * np.std(shares, ddof=1):.1f}"
    if interval:
        n = min(len(bits) for bits in several if bits is not None)
        low, high = wilson_interval(float(np.mean(shares)) * n, n)
        text += f" ({100 * low:.1f} to {100 * high:.1f})"
    return text + _fewer(len(shares), len(several))


def _fewer(count: int, of: int) -> str:
    """How many seeds a figure is of, where it is not all of the row's."""
    return "" if count == of else f", {_seeds(count)}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _flags(records: Sequence[Mapping[str, Any]]) -> str:
    """The flags that failed in either verdict, and of how many seeds where not of all."""
    of_seeds = [
        {flag for verdict in verdicts for flag in verdict["failed"]}
        for record in records
        if (verdicts := [record[part] for part in VERDICTS if part in record])
    ]
    if not of_seeds:
        return MISSING
    texts = []
    for flag in sorted(set().union(*of_seeds)):
        count = sum(flag in failed for failed in of_seeds)
        texts.append(flag if count == len(of_seeds) else f"{flag} ({count} of {len(of_seeds)})")
    return ", ".join(texts) or "none"


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


def sentences(results: str | Path, name: str, scale: Scale) -> Iterator[str]:
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
            f"(n = {usual.n:,}), {worst} in the worst case (n = {worst.n:,}), of {_seeds(len(whole))}. "
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
        "it guards the last layers only, and attacks on its heads count, as they do in its paper",
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
tables, by its 95 % interval (those under attack are above) and the sign of each seed, and otherwise not significant. Of
twenty comparisons of networks that do not differ about one comes out as a gain or a loss by chance. \\* stands at a
gain whose network, or a loss whose baseline, failed flags: better attacks may leave less of it. Networks and images of
the papers are others, most of them larger and harder: what follows is of the networks above, and no measurement of
those. What the notes above say holds here too: on MNIST CAS, CIFS and FSR are not set as in their papers, and TRADES
and MART are not as published.
"""


def abstracts(results: str | Path) -> Iterator[str]:
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
            text += f" of {_seeds(len(whole))}" if len(whole) > 1 else ""
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


def reported(published: Path) -> Iterator[str]:
    """The papers' figures, each with setting and source."""
    yield "None of these is ours, and none has the setting of a row above: data, radius, network or schedule differ."
    yield ""
    yield "| defense | setting | figures, per cent | source | where ours differs |"
    yield "|---|---|---|---|---|"
    for entry in json.loads(published.read_text()):
        fields = [PAPERS[entry["defense"]], entry["setting"], entry["figures"], entry["source"], entry["differs"]]
        yield f"| {' | '.join(fields)} |"


def write_card(results: str | Path, name: str, cell: Cell) -> None:
    """The card of a record, beside it."""
    files.write(place(results, name, cell).with_suffix(".md"), card(SCALES[name], cell, read(results, name, cell)))


def card(scale: Scale, cell: Cell, record: Mapping[str, Any]) -> str:
    """A network's card: what it is, what was measured, and what it is and is not for."""
    about, conditions = record.get("network", {}), record.get("conditions", {})
    lines = [f"# {cell.name}, seed {cell.seed}", "", f"A network of [the table](../../TABLE.md): {scale.about}.", ""]
    lines += [f"- {title}: {about[key]}" for key, title in DESCRIBED.items() if key in about]
    if "training" in record:
        accuracy = record["training"][f"{cell.checkpoint}_validation_pgd"]
        lines.append(f"- checkpoint: the {cell.checkpoint} of {record['training']['epochs']} epochs, "
                     f"{100 * accuracy:.1f} % of the validation images under PGD")  # fmt: skip
    if conditions:
        versions = ", ".join(f"{name} {conditions['versions'][name]}" for name in ("robustjax", "jax", "flax"))
        lines.append(f"- measured with {versions}, commit {', '.join(sorted(commits(record)))}")
    lines += ["", "| attack | n | accuracy | 95 % interval |", "|---|--:|--:|---|"]
    measured = {title: robust(record, "protocol", attack) for attack, title in ATTACKS.items()}
    measured |= {"judge": robust(record, "judge"), "judge with hints": robust(record, "judge_with_hints")}
    measured["worst case"] = worst_case(record)
    for title, bits in measured.items():
        if bits is None:
            lines += [f"| {title} | | {MISSING} | |"] if title != "transfer" or cell.base else []
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
