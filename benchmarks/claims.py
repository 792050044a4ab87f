"""What becomes of the claims of five abstracts, on networks that train on the digits: writes docs/claims.md.

    python benchmarks/claims.py [--folder=runs/small_table] [--seed=0]

Trains, evaluates and analyses what ``--folder`` does not hold yet, by the commands that anyone would type, and goes on
where it was stopped. Half an hour on two CPU cores; a folder that ``launch/verdicts.sh`` has filled saves most of it.

A claim is a difference, or a scalar against a value of no effect: confirmed where its 95 % interval lies on the claimed
side, refuted where it lies on the other, and undecided where it holds no effect. Differences of two networks have
Newcombe's interval, made of each one's own.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from robustjax.runtime import files

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("at", "standard", "at_cas", "at_cifs", "at_fsr", "at_sns")
ATTACKS = "clean,pgd20,autoattack,adaptive"


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
        """ "confirmed", "refuted" or "undecided"."""
        if self.found is None or math.isnan(self.found.value):
            return "undecided (not measured)"
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


def claims(
    analysis: Mapping[str, Any], accuracies: Mapping[str, Mapping[str, Scalar]], *, suffix: str = ""
) -> dict[str, list[Claim]]:
    """Paper -> its claims.

    Args:
        analysis: of analysis.json, of networks named as in ``NAMES``.
        accuracies: name -> attack -> accuracy.
        suffix: of the networks' names in the analysis.
    """
    figures = {figure["name"]: figure["estimates"] for figure in analysis["figures"]}
    epsilon = f"{analysis['epsilon']:.4g}"

    def read(figure: str, scalar: str, name: str, way: str = "") -> Scalar | None:
        found = figures.get(figure, {}).get(f"{name}{suffix}{way}", {}).get(scalar)
        if found is None or None in (found["value"], *found["interval_95"]):
            return None
        return Scalar(found["value"], *found["interval_95"], found["n"])

    def between(figure: str, scalar: str, one: str, other: str) -> Scalar | None:
        return difference(read(figure, scalar, one), read(figure, scalar, other))

    def attacked(figure: str, scalar: str, name: str) -> Scalar | None:
        return difference(read(figure, f"{scalar}_adversarial", name), read(figure, f"{scalar}_natural", name))

    def pruned(scalar: str) -> Scalar | None:
        name = f"{scalar}_at_{epsilon}"
        return difference(read("calibration", name, "at", ", SAP, single draw"), read("calibration", name, "at"))

    def gain(name: str, attack: str) -> Scalar | None:
        return difference(accuracies.get(name, {}).get(attack), accuracies.get("at", {}).get(attack))

    def robust(name: str, words: str) -> list[Claim]:
        says = f"{words} is more robust than adversarial training alone"
        return [
            Claim(says, "accuracy under PGD-20, minus that of `at`", gain(name, "pgd20")),
            Claim(says, "worst case, adaptive attacks included, minus that of `at`", gain(name, "worst_case")),
        ]

    return {
        "SAP (Dhillon et al. 2018)": [
            Claim("pruning raises accuracy under FGSM", "accuracy of `at`, pruned minus dense", pruned("accuracy")),
            Claim("and calibrates better under attack", "ECE of `at`, pruned minus dense", pruned("ece"), above=False),
            *robust("at with SAP", "the pruned network"),
        ],
        "CAS (Bai et al. 2021)": [
            Claim("adversarial images activate channels more strongly", "magnitude ratio of `standard`, against 1",
                  read("channels", "magnitude_ratio", "standard"), no_effect=1.0),
            Claim("and more uniformly", "entropy of the frequencies of `standard`, adversarial minus natural",
                  attacked("channels", "entropy", "standard")),
            Claim("adversarial training mends the magnitudes", "magnitude ratio, `at` minus `standard`",
                  between("channels", "magnitude_ratio", "at", "standard"), above=False),
            Claim("CAS narrows the gap of the frequencies", "gap, `at_cas` minus `at`",
                  between("channels", "l1_gap", "at_cas", "at"), above=False),
            *robust("at_cas", "CAS"),
        ],
        "CIFS (Yan et al. 2021)": [
            Claim("attacks misalign channels and their relevance", "rank correlation of `at`, adversarial - natural",
                  attacked("relevance", "rank_correlation", "at"), above=False),
            Claim("channels that speak against the class rise most in the least robust classes",
                  "over-activation gap of `at`", read("relevance", "over_activation_gap", "at")),
            *robust("at_cifs", "CIFS"),
        ],
        "SNS (Zhang et al. 2021)": [
            Claim("adversarial training lowers sensitivity", "relative sensitivity, `at` minus `standard`",
                  between("sensitivity", "relative_sensitivity", "at", "standard"), above=False),
            Claim("the most sensitive neurons carry the attack", "restoration gap of `standard`",
                  read("restoration", "restoration_gap", "standard")),
            Claim("stabilizing lowers sensitivity further", "relative sensitivity, `at_sns` minus `at`",
                  between("sensitivity", "relative_sensitivity", "at_sns", "at"), above=False),
            *robust("at_sns", "SNS"),
        ],
        "FSR (Kim et al. 2023)": [
            Claim("under attack robust features name the right class more often than non-robust ones",
                  "difference of accuracies", read("separation", "adversarial_robust_gap", "at_fsr")),
            Claim("recalibration makes the non-robust ones speak for the right class",
                  "gain of accuracy", read("separation", "adversarial_recalibration_gain", "at_fsr")),
            *robust("at_fsr", "FSR"),
        ],
    }  # fmt: skip


def markdown(found: Mapping[str, list[Claim]], analysis: Mapping[str, Any]) -> str:
    """The page."""
    threat = f"{analysis['norm']} epsilon {analysis['epsilon']:.4g}"
    lines = [
        "# What becomes of the papers' claims",
        "",
        "Made by `python benchmarks/claims.py`, on networks that train within minutes (`configs/digits.py`, one seed): "
        f"{analysis['num_examples']} test images of {analysis['dataset']}, {threat}, commit "
        f"`{str(analysis['commit'])[:12]}`. A claim is confirmed or refuted where the 95 % interval of the scalar that "
        "decides it lies on one side of no effect, and undecided otherwise. Intervals are over test images, not over "
        "seeds; small networks on small images say little of ResNet-18 on CIFAR-10. "
        "[How to read the figures](read_the_figures.md) says what each scalar is.",
    ]
    for paper, own in found.items():
        lines += ["", f"## {paper}", "", "| claim | decided by | value | 95 % interval | n | outcome |"]
        lines.append("|---|---|--:|---|--:|---|")
        for claim in own:
            scalar, figures = claim.found, " | | "
            if scalar is not None:
                figures = f"{scalar.value:.3g} | {scalar.low:.3g} to {scalar.high:.3g} | {scalar.n}"
            lines.append(f"| {claim.says} | {claim.measured} | {figures} | **{claim.outcome}** |")
    return "\n".join(lines) + "\n"


def accuracies_of(folder: Path) -> dict[str, Scalar]:
    """Attack -> accuracy, of the records in a folder."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if "robust" in record and "attack" in record:
            found[record["attack"]] = Scalar(record["accuracy"], *record["interval_95"], record["num_examples"])
    return found


def _command(module: str, *arguments: str) -> None:
    print(f"python -m robustjax.{module} {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", f"robustjax.{module}", *arguments], cwd=ROOT, check=True)


def main() -> None:
    """Trains, evaluates and analyses what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="runs/small_table", help="where the runs lie")
    parser.add_argument("--seed", type=int, default=0, help="of the runs")
    given = parser.parse_args()
    folder, suffix = Path(given.folder).resolve(), f"_{given.seed}"
    runs = {name: folder / f"{name}{suffix}" for name in NAMES}
    for name, run in runs.items():
        _command("train", f"--config=digits:{name}", f"--config.seed={given.seed}", f"--workdir={run}")
        if not (run / "evaluation" / "adaptive.json").exists():
            _command("evaluate", f"--workdir={run}", f"--attacks={ATTACKS}")
    sap = runs["at"] / "evaluation" / "sap:sampler=bernoulli"
    if not (sap / "adaptive.json").exists():
        _command("evaluate", f"--workdir={runs['at']}", f"--attacks={ATTACKS}", "--defense=sap:sampler=bernoulli")
    others = ",".join(str(run) for name, run in runs.items() if name != "at")
    _command("analysis", f"--workdir={runs['at']}", f"--against={others}")
    analysis = json.loads((runs["at"] / "analysis" / "analysis.json").read_text())
    accuracies = {name: accuracies_of(run / "evaluation") for name, run in runs.items()}
    accuracies["at with SAP"] = accuracies_of(sap)
    found = claims(analysis, accuracies, suffix=suffix)
    files.write(ROOT / "docs" / "claims.md", markdown(found, analysis))
    print("claims: docs/claims.md")


if __name__ == "__main__":
    main()
