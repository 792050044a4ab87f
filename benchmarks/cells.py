"""The cells of benchmarks/reproduce.py, their records, and comparisons of two of them.

A record, results/table/SCALE/CELL_SEED.json, holds one bit for each image and attack, so that a network is compared
with the one that it is derived from on the same images.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustjax.evaluation.protocol import tables
from robustjax.runtime import files
from robustjax.statistics import paired_difference

OBJECTIVES = ("at", "trades", "mart")
IN_TRAINING = ("cas", "cifs", "fsr", "sns")
# Switched on for a network that was trained without it.
AT_EVALUATION = {"sap": "sap:sampler=bernoulli", "meansparse": "meansparse:alpha=0.2"}
# Attack of the protocol -> its heading in the table.
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
PARTS = ("training", "protocol", "judge", "judge_with_hints")
VERDICTS = PARTS[2:]


class Scale(NamedTuple):
    """How large a table is.

    Attributes:
        config: of a cell, by the name of its variant.
        about: what all cells share, in words.
        test_examples: images of the protocol; None: the whole test split.
        verdict_examples: images of the verdicts.
        stochastic_examples: images of both, of networks whose every gradient is a mean over draws.
        seeds: of adversarial training alone and with each defense; every other cell has the first.
        checkpoints: of each network, each of which is a cell.
        note: what else must be known of all cells, a sentence or more.
    """

    config: str
    about: str
    test_examples: int | None
    verdict_examples: int
    stochastic_examples: int
    seeds: tuple[int, ...] = (0, 1, 2)
    checkpoints: tuple[str, ...] = ("best",)
    note: str = ""


CIFAR10_SMALL = "CIFAR-10 (JPEG), linf 8/255, WideResNet-10-2, 5 epochs of PGD-2 with steps of 5/255"
CIFAR10_FULL = "CIFAR-10 (JPEG), linf 8/255, ResNet-18, 60 epochs of PGD-10: the papers' schedule, halved"
ABOUT_DIGITS = """\
The verdicts are those of the judge before commit d0d1933, which did not yet start APGD anew on what is left at the
end."""
ABOUT_SMALL = """\
What two CPU cores train in 25 minutes: some 100 images/s a core, each at the cost of seven forward passes. Chosen by a
pilot of 5 to 7 minutes of one core, PGD-20 on 500 test images: WideResNet-10-2 with PGD-2 reached 23.4 % (19.9 to
27.3) after 27,000 images (313 s of CPU time, compilation included), WideResNet-10-1 with PGD-3 23.8 % (20.3 to 27.7)
after 69,000 (407 s), at some 190 images/s a core. Of two that come as far in about as long the larger one was taken.
Those 500 are among the test images below; no setting of a defense was chosen by them. So short a schedule does not
suit all alike: after 27,000 images 35.9 % of the validation images are right without an attack, and 24.4 % with CIFS,
whose paper starts from a naturally trained network. The test images are the first 1,000. CIFAR-10 (JPEG) is a
re-encoding, whose figures are not those of the original files."""
ABOUT_MNIST = """\
Four settings are what this small network asks for, by validation images and by cost: CAS and CIFS guard the last
convolution only (with all layers CAS stayed at 36 % without an attack), FSR's two networks have 16 channels inside
(the paper's 64 would cost ten times the network that they guard), SNS has weight 1 (with 10, as on the digits,
training falls to chance), and CAS's auxiliary terms have weight 0.5. Nothing bounds CAS's factors: with the paper's
weight, 2, the loss grows without bound in the first epoch of TRADES, of MART and of two of three seeds of AT, and with
1 still in that of MART. The one seed of AT that trained with 2 came out higher than the same seed does with 0.5: 90.8
% without an attack, 88.4 % under PGD-20, 74.7 % under AutoAttack and 42.6 % in the worst case (record of commit
e84053f, by the judge of that time). TRADES has the weight of its authors' experiments on MNIST, 1, and the ten steps
of all others (they have 40 smaller ones, and no BatchNorm). It was taken after the test images had been seen with 6,
the weight on CIFAR-10: its gradients mislead here, as FGSM and the flags show, and with 6 even more (seed 0: 33.6 % in
the worst case, where AutoAttack `fast` alone left 67.0 %). MART's, with its authors' weight on CIFAR-10, 5, mislead
likewise. The rows say nothing of TRADES and MART as published. CAS and CIFS lose accuracy even without an attack.
`mart_fsr` has not learned the task, as its accuracy without an attack shows. `trades_fsr` diverges in its second epoch
(its gradient grows from 33 at step 501 to 1.7e14 at step 507) and goes on from the first with half the learning rate
of its baseline; that rule was made for it, after CAS's weight had been chosen, and CAS with 2 was not trained by it.
The verdicts of seed 0 of `at_fsr`, `at_sns` and `at_kwta` are those of the judge before commit d0d1933, which did not
yet start APGD anew on what is left at the end; made again, those of `at` went from 91.4 and 91.4 to 91.1 and 91.4 %,
those of `at_cifs` from 63.0 and 62.9 to 62.9 and 62.8 %."""
ABOUT_FULL = """\
For a machine with a GPU: the whole test split, and each network's best and last checkpoint (@last), which are rows of
their own. Learning rate, schedule and weight decay are the same for all networks, and not each paper's own."""
SCALES = {
    "digits": Scale(
        "digits",
        "handwritten digits, linf 0.2, WideResNet-10-1, 50 epochs of PGD-10",
        None,
        360,
        120,
        note=ABOUT_DIGITS,
    ),
    "mnist": Scale(
        "mnist", "MNIST, linf 0.3, small_cnn with BatchNorm, 12 epochs of PGD-10", None, 1000, 250, note=ABOUT_MNIST
    ),
    "cifar10": Scale("cifar10_small", CIFAR10_SMALL, 1000, 1000, 250, (0,), note=ABOUT_SMALL),
    "full": Scale("cifar10_full", CIFAR10_FULL, None, 10_000, 1000, (0,), ("best", "last"), ABOUT_FULL),
}


class Cell(NamedTuple):
    """A network of the table.

    Attributes:
        trained: the variant of the config that it is trained by.
        switched_on: the defense that is switched on when it is evaluated, or none.
        seed: of training and of everything after it.
        checkpoint: "best" by robust validation accuracy, or "last".
    """

    trained: str
    switched_on: str
    seed: int
    checkpoint: str = "best"

    @property
    def name(self) -> str:
        """
        >>> Cell("at_cas", "", 0).name, Cell("at", "sap", 0, "last").name
        ('at_cas', 'at_sap@last')
        """
        switched_on = f"_{self.switched_on}" if self.switched_on else ""
        return self.trained + switched_on + ("" if self.checkpoint == "best" else f"@{self.checkpoint}")

    @property
    def objective(self) -> str:
        return self.trained.partition("_")[0]

    @property
    def defense(self) -> str:
        return self.switched_on or self.trained.partition("_")[2]

    @property
    def base(self) -> Cell | None:
        """The network without the defense; None for one that has none."""
        return Cell(self.objective, "", self.seed, self.checkpoint) if self.defense else None


def cells(scale: Scale) -> Iterator[Cell]:
    """The cells of a table, in order of value."""
    first, *others = scale.seeds
    by_defense = [("at", ""), *((f"at_{defense}", "") for defense in IN_TRAINING)]
    switched_on = lambda objective: [  # noqa: E731
        *((objective, defense) for defense in AT_EVALUATION),
        (f"{objective}_kwta", ""),
    ]
    every = [(*pair, first) for pair in (*by_defense, *switched_on("at"))]
    every += [(*pair, seed) for seed in others for pair in by_defense]
    for objective in OBJECTIVES[1:]:
        every += [(objective, "", first), *((f"{objective}_{defense}", "", first) for defense in IN_TRAINING)]
    every += [(*pair, first) for pair in (("standard", ""), *switched_on("standard"))]
    for cell in every:
        yield from (Cell(*cell, checkpoint) for checkpoint in scale.checkpoints)


def by_name(scale: Scale) -> dict[str, list[Cell]]:
    """Name -> the cells of its seeds."""
    found: dict[str, list[Cell]] = {}
    for cell in cells(scale):
        found.setdefault(cell.name, []).append(cell)
    return found


def place(results: str | Path, scale: str, cell: Cell) -> Path:
    """The file of a cell's record."""
    return Path(results) / "table" / scale / f"{cell.name}_{cell.seed}.json"


def read(results: str | Path, scale: str, cell: Cell) -> dict[str, Any]:
    """The record of a cell as far as it goes."""
    path = place(results, scale, cell)
    return json.loads(path.read_text()) if path.exists() else {"cell": cell.name, "seed": cell.seed}


def write(results: str | Path, scale: str, cell: Cell, record: Mapping[str, Any]) -> None:
    path = place(results, scale, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(record, indent=1) + "\n")


def commits(record: Mapping[str, Any]) -> set[str]:
    """The commits at which the parts of a record were measured, in short.

    >>> parts = {"training": {"commit": "c1e92f7706a1+changes"}, "judge": {}}
    >>> sorted(commits(parts | {"conditions": {"commit": "0fab31477aa"}}))
    ['0fab314', 'c1e92f7 with changes']
    """
    last = record.get("conditions", {}).get("commit")  # at which the last part was measured
    found = {record[part].get("commit", last) for part in PARTS if part in record}
    return {tables.commit_name(commit) for commit in found if commit}


def seeds(count: int) -> str:
    """
    >>> seeds(1), seeds(3)
    ('1 seed', '3 seeds')
    """
    return "1 seed" if count == 1 else f"{count} seeds"


def packed(robust: Sequence[bool] | np.ndarray) -> str:
    """One bit for each image, as text.

    >>> unpacked(packed([True, False, True]), 3)
    array([ True, False,  True])
    """
    return base64.b64encode(np.packbits(np.asarray(robust, bool)).tobytes()).decode()


def unpacked(text: str, n: int) -> np.ndarray:
    """The bits that :func:`packed` packed."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=n).astype(bool)


def robust(record: Mapping[str, Any], part: str, attack: str | None = None) -> np.ndarray | None:
    """One bool for each image, or None where that was not measured."""
    if part not in record:
        return None
    bits = record[part]["robust"] if attack is None else record[part]["robust"].get(attack)
    return None if bits is None else unpacked(bits, record[part]["n"])


def worst_case(record: Mapping[str, Any], parts: Sequence[str] = PARTS) -> np.ndarray | None:
    """Which of the images of the verdicts withstand everything; None without a protocol or a verdict with hints.

    Of a stochastic network the verdict with hints alone decides: each more attack would be one more chance that a
    majority of draws is wrong by accident.

    Args:
        record: of a cell.
        parts: that count beside the verdict with hints, of those that the record has.
    """
    found = robust(record, "judge_with_hints")
    if found is None or "protocol" not in record:
        return None
    if record["judge_with_hints"].get("stochastic"):
        return found
    others = [robust(record, "protocol", name) for name in record["protocol"]["robust"]] if "protocol" in parts else []
    others += [robust(record, "judge")] if "judge" in parts else []
    return np.logical_and.reduce([found, *(bits[: len(found)] for bits in others if bits is not None)])


class Difference(NamedTuple):
    """How much more often networks are right than their baselines on the same images.

    Attributes:
        value: the mean over images and seeds.
        low, high: its 95 % interval over images, of these networks; how those of other seeds differ is not in it.
        n: images.
        by_seed: the difference of each seed.
    """

    value: float
    low: float
    high: float
    n: int
    by_seed: tuple[float, ...]

    @property
    def outcome(self) -> str:
        """ "higher" or "lower": the side of no difference on which the interval lies, and no seed lies on the other.

        >>> [Difference(0.2, 0.1, 0.3, 99, by_seed).outcome for by_seed in ((0.2,), (0.0, 0.4), (-0.1, 0.5))]
        ['higher', 'higher', 'undecided']
        >>> [Difference(-0.2, -0.3, -0.1, 99, by_seed).outcome for by_seed in ((-0.2,), (0.0, -0.4), (0.1, -0.5))]
        ['lower', 'lower', 'undecided']
        """
        if self.low > 0 and min(self.by_seed) >= 0:
            return "higher"
        return "lower" if self.high < 0 and max(self.by_seed) <= 0 else "undecided"

    @property
    def of_both_signs(self) -> bool:
        """Whether one seed is above its baseline and another below."""
        return min(self.by_seed) < 0 < max(self.by_seed)

    def points(self, value: float) -> str:
        """A share in points, with as many decimals as leave no figure of this difference at 0 that is not 0.

        >>> whole, fine = Difference(0.2, 0.1, 0.3, 99, (0.2,)), Difference(0.0015, 0.0001, 0.003, 9999, (0.0015,))
        >>> whole.points(whole.value), fine.points(fine.low)
        ('+20.0', '+0.01')
        """
        figures = (self.value, self.low, self.high, *self.by_seed)
        zero = lambda decimals: any(share and not float(f"{100 * share:.{decimals}f}") for share in figures)  # noqa: E731
        decimals = next((decimals for decimals in (1, 2) if not zero(decimals)), 3)
        return f"{100 * value:+.{decimals}f}"

    def __str__(self) -> str:
        value, low, high, *by_seed = map(self.points, (self.value, self.low, self.high, *self.by_seed))
        return f"{value} ({low} to {high}{'; by seed ' + ', '.join(by_seed) if len(by_seed) > 1 else ''})"


def beyond(pairs: Sequence[tuple[np.ndarray | None, np.ndarray | None]]) -> Difference | None:
    """The paired difference of a network's bits and its baseline's, of several seeds; None where there is no pair.

    Both have the first images of one test split, so that where one has fewer these are compared.
    """
    whole = [(own, base) for own, base in pairs if own is not None and base is not None]
    if not whole:
        return None
    n = min(len(bits) for pair in whole for bits in pair)
    own, base = (np.stack([bits[:n] for bits in side]) for side in zip(*whole, strict=True))
    value, (low, high) = paired_difference(own, base)
    by_seed = (own.sum(axis=1, dtype=int) - base.sum(axis=1, dtype=int)) / n
    return Difference(value, low, high, n, tuple(by_seed.tolist()))


def pairs(
    results: str | Path, name: str, of_seeds: Sequence[Cell], attack: str | None = None, *, other: str | None = None
) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
    """Bits of each seed's network and of its baseline: under an attack of the protocol, or in the worst case.

    The worst case is over the parts that both have, as more attacks find more; where one is stochastic, over the
    verdicts with hints of both, as that alone decides of it. With ``other``, the network that is trained by that
    variant of the config stands in the baseline's place.
    """
    found = []
    for cell in of_seeds:
        base = cell.base if other is None else Cell(other, "", cell.seed, cell.checkpoint)
        if base is not None:
            both = [read(results, name, one) for one in (cell, base)]
            parts = [part for part in PARTS if all(part in record for record in both)]
            if any(record.get("judge_with_hints", {}).get("stochastic") for record in both):
                parts = ["judge_with_hints"]
            bits = [worst_case(one, parts) if attack is None else robust(one, "protocol", attack) for one in both]
            found.append((bits[0], bits[1]))
    return found
