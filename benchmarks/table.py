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

Accuracy in per cent; of several seeds the mean, with the standard deviation over the seeds. AutoAttack is `fast`
(`rand` for SAP). "Transfer" are images that APGD made for the network without the defense. "Judge" is `judge` on the
network's program alone, "with hints" the same with what the defense declares. The worst case is over everything in the
row, on the images of the verdicts, with Wilson's 95 % interval; of SAP, whose draws differ from attack to attack, that
with hints alone. The last column compares it with that of the same network without the defense, image by image and
over the parts that both have, with the 95 % interval of Agresti and Min (2005). Intervals are over images, not seeds.
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
        found = [read(results, name, cell) for cell in of_seeds]
        done = [record for record in found if "protocol" in record]
        if not done:
            missing.append(f"`{cell_name}`")
            continue
        if first:
            yield f"| {' | '.join(TITLES)} |"
            yield "|---|---|---|" + "--:|" * (len(TITLES) - 5) + "---|---|"
            first = False
        at |= set().union(*(commits(record) for record in done))
        fields = [f"`{cell_name}`", f"{len(done)} of {len(of_seeds)}", _images(done)]
        for attack in ATTACKS:
            if attack == "transfer" and of_seeds[0].base is None:
                fields.append("")
            else:
                fields.append(_spread([robust(record, "protocol", attack) for record in found]))
        fields += [_spread([robust(record, part) for record in found]) for part in VERDICTS]
        fields.append(_spread([worst_case(record) for record in found], interval=True))
        verdicts = [record[part] for record in found for part in VERDICTS if part in record]
        failed = sorted({flag for verdict in verdicts for flag in verdict["failed"]})
        fields.append((", ".join(failed) or "none") if verdicts else MISSING)
        if of_seeds[0].base is None:
            fields.append("")
        else:
            difference = beyond(pairs(results, name, of_seeds))
            fields.append(f"{difference.outcome}: {difference}" if difference else MISSING)
        yield f"| {' | '.join(fields)} |"
    if at:
        yield f"\nMeasured at commit {', '.join(sorted(at))}."
    if missing:
        yield f"\nMissing: {', '.join(missing)}."


def _images(records: Sequence[Mapping[str, Any]]) -> str:
    """Numbers of images, of the protocol and where they are others of the verdicts."""
    sizes = sorted({record[part]["n"] for record in records for part in PARTS[1:] if part in record}, reverse=True)
    return " / ".join(f"{size:,}" for size in sizes) or MISSING


def _spread(several: Sequence[np.ndarray | None], *, interval: bool = False) -> str:
    """Mean and standard deviation over seeds, in per cent.

    >>> _spread([np.array([True, False]), None]), _spread([None])
    ('50.0', 'missing')
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
        n = next(len(bits) for bits in several if bits is not None)
        low, high = wilson_interval(float(np.mean(shares)) * n, n)
        text += f" ({100 * low:.1f} to {100 * high:.1f})"
    return text


# Outcome under PGD-20, outcome in the worst case -> what follows.
SUPPORTED = {
    ("gain", "gain"): "A gain under PGD-20, and a gain against every attack that was tried.",
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
            f"(n = {usual.n:,}), {worst} in the worst case (n = {worst.n:,}). "
            + SUPPORTED[usual.outcome, worst.outcome]
        )
    if lines:
        yield "What each row supports, of these networks on these images:\n"
        yield from lines


def _attacked_in_full(results: str | Path, name: str, of_seeds: Sequence[Cell]) -> list[Cell]:
    """The seeds of which both the network with a defense and its baseline have a worst case.

    Differences that stand side by side are then of the same networks; a seed without verdicts is in none.
    """
    return [cell for cell in of_seeds if beyond(pairs(results, name, [cell]))]


# Defense -> what its abstract says of robustness, in our words, and what must be known of our networks beside that.
ABSTRACTS = {
    "sap": (
        "pruning the smaller activations at random makes networks that are already trained more robust",
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
learned their task: one that is right on fewer than half as many images without an attack is left out. The 95 %
intervals under attack are above. Networks and images of the papers are others, most of them larger and harder: what
follows is of the networks above, and no measurement of those. What the notes above say holds here too: on MNIST CAS,
CIFS and FSR are not set as in their papers, and TRADES and MART are not as published.
"""


def abstracts(results: str | Path) -> Iterator[str]:
    """One sentence on each of the five papers: what its abstract says, and what every cell shows of it."""
    yield "## What this says of each abstract\n"
    yield PREFACE
    for defense, (claim, setting) in ABSTRACTS.items():
        shown = [
            f"{when} {difference}"
            for attack, when in (
                ("clean", "without an attack"),
                ("pgd20", "under PGD-20"),
                (None, "against all attacks"),
            )
            if (difference := _grouped(results, defense, attack))
        ]
        if shown:
            yield f"- {PAPERS[defense]} says that {claim}; here, where {setting}, the table shows {'; '.join(shown)}."


OUTCOMES = {"gain": "a gain", "undecided": "no significant difference", "loss": "a loss"}


def _grouped(results: str | Path, defense: str, attack: str | None) -> str:
    """Of the complete cells with a defense, gains first: "a gain on digits (`at_cas` +17.5), a loss on ..."."""
    found: dict[str, dict[str, list[str]]] = {outcome: {} for outcome in OUTCOMES}
    for name, scale in SCALES.items():
        for cell_name, of_seeds in by_name(scale).items():
            whole = _attacked_in_full(results, name, of_seeds)
            if of_seeds[0].defense == defense and whole and _learned(pairs(results, name, whole, "clean")):
                difference = beyond(pairs(results, name, whole, attack))
                assert difference is not None  # as the worst case has the protocol's images
                found[difference.outcome].setdefault(name, []).append(f"`{cell_name}` {100 * difference.value:+.1f}")
    return ", ".join(
        f"{OUTCOMES[outcome]} on " + " and ".join(f"{name} ({', '.join(rows)})" for name, rows in of_scale.items())
        for outcome, of_scale in found.items()
        if of_scale
    )


def _learned(clean: Sequence[tuple[np.ndarray | None, np.ndarray | None]]) -> bool:
    """Whether networks are right at least half as often as their baselines: of others a comparison says nothing.

    >>> half, most = np.arange(10) < 5, np.arange(10) < 9
    >>> _learned([(half, most), (None, most)]), _learned([(~most, most)])
    (True, False)
    """
    whole = [(own.mean(), base.mean()) for own, base in clean if own is not None and base is not None]
    own, base = np.mean(whole, axis=0)
    return bool(own >= 0.5 * base)


def reported(published: Path) -> Iterator[str]:
    """The papers' figures, each with setting and source."""
    yield "None of these is ours. Settings differ from those above throughout: other data, networks and radii."
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
