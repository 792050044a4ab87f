"""Whether `judge` accuses networks that deserve no accusation.

python benchmarks/honest.py [--only=seed_0,linear] [--keys=1] [--runs=runs/honest] [--output=results/honest.json]

Networks of configs/quickstart.py, adversarially trained with five seeds, and the same trained on clean images, attacked
within its radius and within one that leaves some images robust: trained where ``--runs`` lacks them. And a linear
network, each of whose images is known to be robust or not: over a box a linear score is least pixel by pixel. No flag
may be raised on any, and of the linear network every image must come out as known. Attacks draw their starts, so that a
flag raised by chance is seen with ``--keys`` of more than one. Rows that the output holds are not measured again.
"""

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from sklearn.linear_model import LogisticRegression

from robustjax import build, cli, config, evaluation, runs
from robustjax.evaluation.protocol import records
from robustjax.runtime import files
from robustjax.types import Array

ONLY = flags.DEFINE_list("only", [], "Networks to judge; empty: all.")
RUNS = flags.DEFINE_string("runs", "runs/honest", "Folder of the trained networks.")
KEYS = flags.DEFINE_integer("keys", 1, "With how many keys, from 1 on, each network is judged.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", "results/honest.json", "File of the results, which it goes on with.")
SEEDS = range(5)
_ONE: dict[str, Any] = {}
LINEAR_RADIUS, SMALL_RADIUS = 0.05, 0.04


class Case(NamedTuple):
    """A network, the images and the radius of its verdict, and what is robust where that is known, bool [N]."""

    logits_fn: Any
    images: np.ndarray
    labels: np.ndarray
    epsilon: float
    robust: np.ndarray | None = None


def trained(name: str, *, seed: int, objective: str = "adversarial", epsilon: float | None = None) -> Case:
    """A network of configs/quickstart.py."""
    workdir = Path(RUNS.value) / name
    if not (workdir / "checkpoints").exists():
        settings = config.digits()
        settings.seed, settings.objective.name = seed, objective
        runs.train(settings, workdir)
    run = runs.load(workdir)
    data = run.test_data()
    # One function for all, whose variables are arguments: what is compiled for one network serves the others.
    logits_fn = jax.tree_util.Partial(_ONE.setdefault("quickstart", run.logits_fn.func), run.variables)
    return Case(logits_fn, pixels(data.images), data.labels, epsilon or run.config.attack.epsilon)


def linear() -> Case:
    """Logistic regression on the pixels."""
    settings = config.digits()
    train, test = (build.test_dataset(settings, split=split) for split in ("train", "test"))
    images = pixels(test.images)
    fitted = LogisticRegression(C=0.1, max_iter=1000).fit(
        pixels(train.images).reshape(len(train.images), -1), train.labels
    )
    weights, bias = fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32)
    robust = linear_certificate(weights, bias, images, test.labels, LINEAR_RADIUS)
    return Case(jax.tree_util.Partial(_linear, weights, bias), images, test.labels, LINEAR_RADIUS, robust)


def linear_certificate(
    weights: np.ndarray, bias: np.ndarray, images: np.ndarray, labels: np.ndarray, epsilon: float
) -> np.ndarray:
    r"""Which images of a linear network no point of ball and box misclassifies, bool [N]; in linf, exact.

    .. math:: \min_{x'} (w_y - w_k) \cdot x' + b_y - b_k > 0 \text{ for all } k \neq y

    Example:
        >>> linear_certificate(np.eye(2), np.zeros(2), np.array([[0.6, 0.4], [0.9, 0.1]]), np.array([0, 0]), 0.2)
        array([False,  True])
    """
    flat, weights = images.reshape(len(images), -1).astype(np.float64), weights.astype(np.float64)
    low, high = np.clip(flat - epsilon, 0.0, 1.0), np.clip(flat + epsilon, 0.0, 1.0)
    robust = np.ones(len(flat), bool)
    for k in range(weights.shape[1]):
        slope = weights[:, labels].T - weights[:, k]
        least = np.sum(np.minimum(slope * low, slope * high), axis=1) + bias[labels] - bias[k]
        robust &= (least > 0) | (labels == k)
    return robust


def _linear(weights: Array, bias: Array, images: Array) -> Array:
    return images.reshape(images.shape[0], -1) @ weights + bias[None]


def pixels(images: np.ndarray) -> np.ndarray:
    """Images as float32 in [0, 1]."""
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images


CASES = {f"seed_{seed}": lambda seed=seed: trained(f"seed_{seed}", seed=seed) for seed in SEEDS}
CASES |= {
    "standard": lambda: trained("standard", seed=0, objective="standard"),
    "standard_small_radius": lambda: trained("standard", seed=0, objective="standard", epsilon=SMALL_RADIUS),
    "linear": linear,
}


def measure(case: Case, seed: int) -> dict[str, Any]:
    """A row: accuracies, and every flag that was raised, which should be none."""
    verdict = evaluation.judge(case.logits_fn, jax.random.key(seed), case.images, case.labels, epsilon=case.epsilon)
    planted = verdict.flags["planted_examples_missed"]
    row: dict[str, Any] = {
        "epsilon": case.epsilon,
        "num_examples": len(case.labels),
        "clean": verdict.clean,
        "worst_case": verdict.worst_case,
        "raised": {
            name: f"{flag.status}: {flag.explanation}"
            for name, flag in verdict.flags.items()
            if flag.status in ("warn", "fail")
        },
        "planted_found": [planted.value, planted.n],
        "findings": [f"{finding.kind}: {finding.primitive} at {finding.where}" for finding in verdict.findings],
        "seconds": {part: round(seconds, 1) for part, seconds in verdict.seconds.items()},
    }
    if case.robust is not None:
        row |= {"known": float(case.robust.mean()), "not_as_known": int(np.sum(case.robust != verdict.robust))}
    return row


def main() -> int:
    """Judges what the output lacks, and prints what was raised; exit status 1 where anything was."""
    path = Path(OUTPUT.value)
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    for network, seed in itertools.product(ONLY.value or CASES, range(1, KEYS.value + 1)):
        name = network if seed == 1 else f"{network}, key {seed}"
        if name not in rows:
            rows[name] = {**measure(CASES[network](), seed), "commit": records.conditions()["commit"]}
            files.write(path, json.dumps({**records.conditions(), "rows": rows}, indent=1) + "\n")
            print(f"{name}: {rows[name]}", flush=True)
    accused = {name: row["raised"] for name, row in rows.items() if row["raised"] or row.get("not_as_known")}
    print(f"{len(rows)} verdicts, {len(accused)} accusations: {accused}")
    return int(bool(accused))


if __name__ == "__main__":
    cli.run(main)
