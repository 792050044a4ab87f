"""What becomes of the claims of five abstracts, on networks that train on the digits: writes docs/claims.md.

    python benchmarks/claims.py [--runs=runs/table] [--results=results] [--seed=0] [--page]

Accuracies under attack are those of the table's records, and the networks are the table's: what ``--runs`` does not
hold is trained by ``benchmarks/reproduce.py``, and what has no record counts as not measured. What happens inside the
networks is measured by ``python -m robustjax.analysis``, within ten minutes on two CPU cores, and kept in
results/claims.json; ``--page`` makes the page of that file and the records alone.

A claim is a difference, or a scalar against a value of no effect: confirmed where its 95 % interval lies on the claimed
side, refuted where it lies on the other, and undecided where it holds no effect. Differences of accuracies under attack
are paired, image by image (Agresti and Min 2005). Other differences of two scalars have Newcombe's interval, made of
each one's own as if they were independent: too wide where both are of the same images.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cells  # the module beside this one
import jax

from robustjax import defenses, models
from robustjax.evaluation.protocol import tables
from robustjax.planning import counts
from robustjax.runtime import files

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURES = ROOT / "docs" / "claims.md", ROOT / "docs" / "claims"
SCALE = "digits"
NAMES = ("at", "standard", "at_cas", "at_cifs", "at_fsr", "at_sns")
# What FSR is compared with, which mends what they switch off.
DEACTIVATING = {"kWTA": "at_kwta", "CAS": "at_cas"}
# Figure -> the paper under which it stands, and what it shows.
SHOWN = {
    "calibration": ("SAP", "Confidence against accuracy under FGSM, and calibration error and Brier score against "
                    "epsilon, dense and, where the network has no other guard, with SAP: of one draw, and of the mean "
                    "of 20. Names end in the seed."),
    "channels": ("CAS", "Channels of one class in the order of their natural frequency: mean magnitude, and the share "
                 "of images in which the channel is active, of natural and of adversarial images. The ratios and gaps "
                 "are means over all classes."),
    "relevance": ("CIFS", "Above, channels in the order of the classifier's weight for one class: mean activation of "
                  "natural and of adversarial images. Below, over-activation of each class, the least robust one "
                  "first, and the means of the less robust half and of the other."),
    "sensitivity": ("SNS", "Sensitivity of the neurons, which are a layer's channels, relative to the layer's mean "
                    "magnitude, layer by layer; the claims are of the mean over the layers, beside the names."),
    "restoration": ("SNS", "Accuracy under attack when, at one layer, the most sensitive neurons or as many random "
                    "ones get the values that the natural image gives them."),
    "separation": ("FSR", "Accuracy of the head on robust, non-robust and recalibrated features, for each of which the "
                   "losses of FSR train it, and what the mask keeps."),
}  # fmt: skip


class Scalar(NamedTuple):
    """A measured value with its 95 % interval and the number of images."""

    value: float
    low: float
    high: float
    n: int


class Claim(NamedTuple):
    """What a paper says, the scalar that decides it, and which side of ``no_effect`` the paper claims."""

    says: str
    measured: str
    found: Scalar | None
    above: bool = True
    no_effect: float = 0.0

    @property
    def outcome(self) -> str:
        """ "confirmed", "refuted", "undecided" or "not measured"."""
        if self.found is None or math.isnan(self.found.value):
            return "not measured"
        beyond, below = self.found.low > self.no_effect, self.found.high < self.no_effect
        if not (beyond or below):
            return "undecided"
        return "confirmed" if beyond == self.above else "refuted"


def difference(one: Scalar | None, other: Scalar | None) -> Scalar | None:
    """one - other with Newcombe's interval (1998, method 10): from the distances of each value to its own ends."""
    if one is None or other is None:
        return None
    value = one.value - other.value
    down = math.hypot(one.value - one.low, other.high - other.value)
    up = math.hypot(one.high - one.value, other.value - other.low)
    return Scalar(value, value - down, value + up, min(one.n, other.n))


def from_one(ratio: Scalar | None) -> Scalar | None:
    """How far a ratio is from 1, on whichever side.

    >>> from_one(Scalar(0.5, 0.25, 0.75, 9)), from_one(Scalar(1.0, 0.5, 1.25, 9))
    (Scalar(value=0.5, low=0.25, high=0.75, n=9), Scalar(value=0.0, low=0.0, high=0.5, n=9))
    """
    if ratio is None:
        return None
    ends = abs(ratio.low - 1), abs(ratio.high - 1)
    low = 0.0 if ratio.low <= 1 <= ratio.high else min(ends)
    return Scalar(abs(ratio.value - 1), low, max(ends), ratio.n)


def claims(
    analysis: Mapping[str, Any],
    gains: Mapping[str, Mapping[str, Scalar]],
    added: Scalar | None = None,
    *,
    seed: int,
) -> dict[str, list[Claim]]:
    """Paper -> its claims.

    Args:
        analysis: of analysis.json, of networks named as in ``NAMES``, each with its seed.
        gains: cell -> "pgd20" or "worst_case" -> how much more accurate it is than ``at``, and "worst_case over CELL"
            -> than that cell.
        added: the share of multiply-adds that FSR adds to ResNet-18.
        seed: of the networks.
    """
    figures = {figure["name"]: figure["estimates"] for figure in analysis["figures"]}
    epsilon = f"{analysis['epsilon']:.4g}"

    def read(figure: str, scalar: str, name: str, way: str = "") -> Scalar | None:
        found = figures.get(figure, {}).get(f"{name}_{seed}{way}", {}).get(scalar)
        if found is None or None in (found["value"], *found["interval_95"]):
            return None
        return Scalar(found["value"], *found["interval_95"], found["n"])

    def between(figure: str, scalar: str, one: str, other: str) -> Scalar | None:
        return difference(read(figure, scalar, one), read(figure, scalar, other))

    def attacked(figure: str, scalar: str, name: str) -> Scalar | None:
        return difference(read(figure, f"{scalar}_adversarial", name), read(figure, f"{scalar}_natural", name))

    def pruned(scalar: str, name: str) -> Scalar | None:
        scalar = f"{scalar}_at_{epsilon}"
        return difference(read("calibration", scalar, name, ", SAP, 20 draws"), read("calibration", scalar, name))

    def robust(name: str, says: str) -> list[Claim]:
        found, base = gains.get(name, {}), name.partition("_")[0]
        return [
            Claim(f"{says} (under PGD-20)", f"accuracy under PGD-20, minus that of `{base}`", found.get("pgd20")),
            Claim(
                f"{says} (against all attacks)",
                f"worst case, adaptive attacks included, minus that of `{base}`",
                found.get("worst_case"),
            ),
        ]

    return {
        "SAP (Dhillon et al. 2018)": [
            Claim("pruning raises the accuracy of a standard network under FGSM",
                  "accuracy of `standard` under FGSM, pruned (20 draws) minus dense", pruned("accuracy", "standard")),
            Claim("pruning raises the accuracy of an adversarially trained network under FGSM",
                  "the same of `at`", pruned("accuracy", "at")),
            Claim("pruning calibrates a standard network better under FGSM",
                  "expected calibration error of `standard` under FGSM, pruned (20 draws) minus dense",
                  pruned("ece", "standard"), above=False),
            Claim("pruning calibrates an adversarially trained network better under FGSM", "the same of `at`",
                  pruned("ece", "at"), above=False),
            *robust("standard_sap", "pruning makes a standard network more robust"),
            *robust("at_sap", "pruning makes an adversarially trained network more robust"),
        ],
        "CAS (Bai et al. 2021)": [
            Claim("attacks activate channels more strongly", "magnitude ratio of `standard`, against 1",
                  read("channels", "magnitude_ratio", "standard"), no_effect=1.0),
            Claim("attacks activate channels more uniformly",
                  "entropy of the frequencies of `standard`, adversarial minus natural",
                  attacked("channels", "entropy", "standard")),
            Claim("adversarial training aligns adversarial with natural magnitudes",
                  "distance of the magnitude ratio from 1, `at` minus `standard`",
                  difference(*(from_one(read("channels", "magnitude_ratio", name)) for name in ("at", "standard"))),
                  above=False),
            Claim("after adversarial training attacks still activate channels more uniformly",
                  "entropy of the frequencies of `at`, adversarial minus natural",
                  attacked("channels", "entropy", "at")),
            Claim("CAS suppresses what attacks activate", "gap of the frequencies under PGD-20, `at_cas` minus `at`",
                  between("channels", "l1_gap", "at_cas", "at"), above=False),
            *robust("at_cas", "CAS makes adversarial training more robust"),
        ],
        "CIFS (Yan et al. 2021)": [
            Claim("adversarial training aligns adversarial with natural activation",
                  "gap of the channels' frequencies, `at` minus `standard`",
                  between("channels", "l1_gap", "at", "standard"), above=False),
            Claim("after adversarial training attacks still over-activate channels that speak against the class",
                  "over-activation of `at`", read("relevance", "over_activation", "at")),
            Claim("attacks misalign activation and relevance", "rank correlation of `at`, adversarial minus natural",
                  attacked("relevance", "rank_correlation", "at"), above=False),
            Claim("adversarial training leaves classes of different robustness",
                  "variance of the classes' accuracies under PGD-20 beyond chance, of `at`",
                  read("by_class", "class_variance", "at")),
            Claim("in robust classes activation and relevance go together more than in others",
                  "rank correlation under attack of `at`, less robust half of the classes minus the other",
                  read("relevance", "rank_correlation_gap", "at"), above=False),
            Claim("attacks over-activate channels that speak against the class most in the least robust classes",
                  "over-activation gap of `at`", read("relevance", "over_activation_gap", "at")),
            *robust("at_cifs", "CIFS makes adversarial training more robust"),
        ],
        "SNS (Zhang et al. 2021)": [
            Claim("sensitive neurons contribute most to wrong predictions",
                  "accuracy of `standard` with the most sensitive tenth of a layer restored, minus a random tenth",
                  read("restoration", "restoration_gap", "standard")),
            Claim("adversarial training lowers sensitivity", "relative sensitivity, `at` minus `standard`",
                  between("sensitivity", "relative_sensitivity", "at", "standard"), above=False),
            Claim("stabilizing lowers sensitivity further", "relative sensitivity, `at_sns` minus `at`",
                  between("sensitivity", "relative_sensitivity", "at_sns", "at"), above=False),
            *robust("at_sns", "stabilizing makes adversarial training more robust"),
        ],
        "FSR (Kim et al. 2023)": [
            Claim("under attack robust features name the right class more often",
                  "accuracy of the head of `at_fsr` on robust minus on non-robust features",
                  read("separation", "adversarial_robust_gap", "at_fsr")),
            Claim("recalibration restores cues in non-robust features",
                  "accuracy of the same head on recalibrated minus on non-robust features",
                  read("separation", "adversarial_recalibration_gain", "at_fsr")),
            *(
                Claim(f"recalibrating withstands more than deactivating, as {defense} does",
                      f"worst case, adaptive attacks included, `at_fsr` minus `{name}`",
                      gains.get("at_fsr", {}).get(f"worst_case over {name}"))
                for defense, name in DEACTIVATING.items()
            ),
            Claim("FSR costs little", "multiply-adds that it adds to ResNet-18, as a share, against 0.05", added,
                  above=False, no_effect=0.05),
            *robust("at_fsr", "FSR makes adversarial training more robust"),
        ],
    }  # fmt: skip


def markdown(found: Mapping[str, list[Claim]], analysis: Mapping[str, Any]) -> str:
    """The page."""
    drawn = {figure["name"] for figure in analysis["figures"]}
    threat = f"{analysis['norm']} epsilon {analysis['epsilon']:.4g}"
    lines = [
        "# What becomes of the papers' claims",
        "",
        "Made by `python benchmarks/claims.py`, on networks that train within minutes (`configs/digits.py`, one seed): "
        f"{analysis['num_examples']} test images of {analysis['dataset']}, {threat}, commit "
        f"{tables.commit_name(analysis['commit'])}. A claim is confirmed or refuted where the 95 % interval of the "
        "scalar that decides it lies on one side of no effect, and undecided otherwise. The papers' networks are "
        "larger, and their images are CIFAR-10 or larger: what is refuted here is refuted of these networks, and the "
        "same for what is confirmed. Intervals are over test images, not over seeds. Inside the networks, adversarial "
        "images are those of PGD-20, which fool CAS far less often than adaptive attacks do. The accuracies are those "
        "of the same seed in `results/table`. What happens inside is of networks of the same configs and seed, whose "
        "weights depend on the processor that trained them, so that a claim near the edge of its interval may come out "
        "otherwise on another. [How to read the figures](read_the_figures.md) says what each scalar is.",
        "",
        *(f"- **{paper}**: {summary(own)}" for paper, own in found.items()),
    ]
    for paper, own in found.items():
        lines += ["", f"## {paper}", "", "| the paper says | decided by | value | 95 % interval | n | outcome |"]
        lines.append("|---|---|--:|---|--:|---|")
        for claim in own:
            scalar, figures = claim.found, " | | "
            if scalar is not None:
                figures = f"{scalar.value:.3g} | {scalar.low:.3g} to {scalar.high:.3g} | {scalar.n}"
            lines.append(f"| {claim.says} | {claim.measured} | {figures} | **{claim.outcome}** |")
        for name, (under, text) in SHOWN.items():
            if under == paper.split()[0] and name in drawn:
                lines += ["", f"![{text}](claims/{name}.png)", "", text]
    return "\n".join(lines) + "\n"


def summary(own: list[Claim]) -> str:
    """What came of a paper's claims, in a line.

    >>> summary([Claim("a", "", Scalar(1, 0.5, 2, 9)), Claim("b", "", None), Claim("c", "", None)])
    'confirmed: a. Not measured: b; c.'
    """
    parts = []
    for outcome in ("confirmed", "refuted", "undecided", "not measured"):
        says = [claim.says for claim in own if claim.outcome == outcome]
        if says:
            parts.append(f"{outcome.capitalize() if parts else outcome}: {'; '.join(says)}.")
    return " ".join(parts)


def gains(results: Path, seed: int) -> dict[str, dict[str, Scalar]]:
    """What :func:`claims` takes as ``gains``, of the table's records."""
    found: dict[str, dict[str, Scalar]] = {}
    for name, of_seeds in cells.by_name(cells.SCALES[SCALE]).items():
        own = [cell for cell in of_seeds if cell.seed == seed and cell.base is not None]
        compared = {"pgd20": cells.pairs(results, SCALE, own, "pgd20"), "worst_case": cells.pairs(results, SCALE, own)}
        if name == "at_fsr":
            for other in DEACTIVATING.values():
                compared[f"worst_case over {other}"] = cells.pairs(results, SCALE, own, other=other)
        for which, pairs in compared.items():
            gain = cells.beyond(pairs)
            if gain is not None:
                found.setdefault(name, {})[which] = Scalar(*gain[:4])
    return found


def added_by_fsr() -> Scalar:
    """The share of multiply-adds that FSR adds to ResNet-18 on CIFAR-10, which is counted and has no interval."""
    image, flops = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"), []
    for defense in (None, defenses.create("fsr")):
        network = models.create("resnet18", defense=defense)
        variables = jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)), image)
        flops.append(counts.count(jax.make_jaxpr(network.apply)(variables, image)).flops)
    share = flops[1] / flops[0] - 1.0
    return Scalar(share, share, share, 1)


def _command(*arguments: str) -> None:
    print(f"python {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def analyse(runs: Path, results: Path, seed: int) -> None:
    """Trains what is missing, measures what happens inside, and keeps scalars and figures."""
    _command("benchmarks/reproduce.py", f"--scale={SCALE}", f"--only={','.join(NAMES)}", f"--seeds={seed}",
             "--parts=training", f"--runs={runs}", f"--results={results}")  # fmt: skip
    first, *others = (str(runs / SCALE / f"{name}_{seed}") for name in NAMES)
    folder = Path(first) / "analysis"
    _command("-m", "robustjax.analysis", f"--workdir={first}", f"--against={','.join(others)}", f"--output={folder}")
    measured = json.loads((folder / "analysis.json").read_text())
    for network in measured["networks"].values():
        del network["workdir"]
    files.write(results / "claims.json", json.dumps(measured, indent=1) + "\n")
    FIGURES.mkdir(exist_ok=True)
    for name in SHOWN:
        shutil.copyfile(folder / f"{name}.png", FIGURES / f"{name}.png")


def main() -> None:
    """Measures what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default=str(ROOT / "runs" / "table"), help="folder of the table's runs")
    parser.add_argument("--results", default=str(ROOT / "results"), help="folder of the table's records")
    parser.add_argument("--seed", type=int, default=0, help="of the networks")
    parser.add_argument("--page", action="store_true", help="make the page of results/claims.json, and run nothing")
    given = parser.parse_args()
    results = Path(given.results).resolve()
    if not given.page:
        analyse(Path(given.runs).resolve(), results, given.seed)
    measured = json.loads((results / "claims.json").read_text())
    found = claims(measured, gains(results, given.seed), added_by_fsr(), seed=given.seed)
    files.write(PAGE, markdown(found, measured))
    print(f"claims: {PAGE}")


if __name__ == "__main__":
    main()
