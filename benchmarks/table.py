"""TABLE.md, of the records that benchmarks/reproduce.py writes and of what papers report; nothing else is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import table_picture  # the modules beside this one
import table_sentences
from cells import (
    ATTACKS,
    PAPERS,
    PARTS,
    SCALES,
    VERDICTS,
    Scale,
    beyond,
    by_name,
    commits,
    pairs,
    read,
    robust,
    seeds,
    worst_case,
)

from robustjax.runtime import files
from robustjax.statistics import wilson_interval


def write_table(results: str | Path, *, published: Path) -> Path:
    """TABLE.md of the records that there are, and a picture of each scale that was measured.

    Args:
        results: folder of the records, and of TABLE.md.
        published: a JSON list of what papers report, each with ``defense``, ``setting``, ``figures`` and ``source``.
    """
    text = ["# The table of defenses\n", EXPLAINED]
    for name, scale in SCALES.items():
        text += [f"## {name}: {scale.about}\n", *([f"{scale.note}\n"] if scale.note else [])]
        text += [*rows(results, name, scale), ""]
        picture = table_picture.write(results, name, scale)
        if picture is not None:
            text.append(f"![Accuracies of the networks of {name}, as in the table]({picture.relative_to(results)})\n")
        text += [*table_sentences.of_rows(results, name, scale), ""]
    text += [*table_sentences.of_abstracts(results), ""]
    text += ["## What the papers report, and where this differs\n", *reported(published)]
    path = Path(results) / "TABLE.md"
    files.write(path, "\n".join(text) + "\n")
    return path


EXPLAINED = """\
Networks trained by one schedule, alone and with a defense (what had to differ is said above each table), evaluated by
the papers' protocol, by AutoAttack and by adaptive attacks. A name is how a network was trained, `standard` (natural
images), `at` (adversarial training, PGD), `trades` or `mart`, and a defense. Made by `launch/reproduce.sh` of the
records in `table/`, which have one bit for each image and attack; beside each record lies a card of the network. A part
that was not measured is shown as missing.

Accuracy in per cent; of several seeds the mean, with the standard deviation over the seeds, and their number where it
is smaller than that of the row. Two figures in the column n are the images of the attacks and those of the verdicts.
FGSM, PGD, C&W and AutoAttack attack the network's own logits, as the defense's code computes them. AutoAttack is
`fast`, which is APGD alone, on the cross-entropy and against four classes (`rand` for SAP). "Transfer" are images that
APGD made for the network without the defense. "Judge" is [`judge`](../docs/judging.md) on the network's program alone,
"with hints" the same with what the defense declares; [flags](../docs/flags.md), signs that attacks failed, are those
that failed in one of these two verdicts, of several seeds in how many. The worst case is over everything in the row, on
the images of the verdicts, with Wilson's 95 % interval, as of one network on these images; of SAP, whose draws differ
from attack to attack, it is the verdict with hints alone.

The last column compares the worst case with that of the network of the same seed without the defense, on the images and
over the parts that both have (of SAP, over the verdicts with hints of both; transfer images, which a baseline has not,
count for the network with the defense), image by image, with the 95 % interval of Agresti and Min (2005); of several
seeds it is that of each image's mean over them. It says "higher" or "lower" where the interval excludes 0 and no seed
has the other sign, and "undecided" elsewhere. All intervals are over images, of the networks that were trained, and not
over seeds: of one seed nothing tells how another would come out, of several the differences by seed do, as far as so
few can. A network that was right on fewer than half as many images as its baseline without an attack has not learned
its task, and is not compared; nor are two that are both at 0.

The pictures show the columns clean, PGD-20, AutoAttack and worst case, which has its interval; of several seeds small
dots are the worst case of each. Bars reach from PGD-20 to the worst case. The dashed line is the baseline's worst case,
drawn as far from the network's as the last column says: on the seeds, images and parts that both have.
"""
TITLES = (
    "network", "seeds", "n", *ATTACKS.values(), "judge", "with hints", "worst case", "flags that failed",
    "worst case minus its baseline's",
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
            if difference is None:
                fields.append(MISSING)
            elif reason := table_sentences.incomparable(results, name, of_seeds):
                fields.append(f"not compared: {reason}")
            else:
                fewer = _fewer(len(difference.by_seed), len(found))
                fields.append(f"{difference.outcome}: {difference}{fewer}")
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
    return "" if count == of else f", {seeds(count)}"


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


def reported(published: Path) -> Iterator[str]:
    """The papers' figures, each with setting and source."""
    yield "None of these is ours, and none has the setting of a row above: data, radius, network or schedule differ."
    yield ""
    yield "| defense | setting | figures, per cent | source | where ours differs |"
    yield "|---|---|---|---|---|"
    for entry in json.loads(published.read_text()):
        fields = [PAPERS[entry["defense"]], entry["setting"], entry["figures"], entry["source"], entry["differs"]]
        yield f"| {' | '.join(fields)} |"
