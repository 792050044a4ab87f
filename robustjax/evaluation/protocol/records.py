"""Records: the accuracy under an attack, the result for each example, and all that is needed to repeat it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robustjax import version
from robustjax.attacks.engine.verify import is_misclassified
from robustjax.evaluation.protocol.outcome import Outcome
from robustjax.evaluation.protocol.protocols import GIVEN_TO_DRIVERS, Protocol
from robustjax.evaluation.protocol.threats import UNION
from robustjax.runtime import files
from robustjax.statistics import wilson_interval

PACKAGE = Path(version.__file__).resolve().parent
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def figures(right: np.ndarray, num_draws: int) -> dict[str, Any]:
    """Accuracy, interval and the result of each example, from how often the network was right.

    The network of ``num_draws`` > 1 is stochastic. Its accuracy is the expected one, the mean share of draws in which
    it is right. Draws of one example are not further examples, so the interval is Wilson's for so many examples: the
    variance of a share is at most that of a coin with the same mean, hence it holds with 95 % at least. Beside it stand
    the accuracies of the majority vote (``robust``: right in more than half of the draws) and of the worst draw.

    Args:
        right: int [N], in how many draws.
        num_draws: of each example.

    Example:
        >>> values = figures(np.array([10, 6, 0, 0]), 10)
        >>> values["accuracy"], values["majority_vote"], values["worst_of_draws"], values["robust"]
        (0.4, 0.5, 0.25, [True, True, False, False])
    """
    total = len(right)
    robust, accuracy = ~is_misclassified(1.0 - right / num_draws), float(right.sum() / (num_draws * total))
    of_draws = {
        "num_draws": num_draws,
        "majority_vote": float(robust.mean()),
        "majority_vote_interval_95": wilson_interval(int(robust.sum()), total),
        "worst_of_draws": float((right == num_draws).mean()),
        "worst_of_draws_interval_95": wilson_interval(int((right == num_draws).sum()), total),
        "right_draws": right.tolist(),
    }
    return {
        "num_examples": total,
        "accuracy": accuracy,
        "interval_95": wilson_interval(accuracy * total, total),
        "interval_method": "Wilson, over examples",
        **(of_draws if num_draws > 1 else {}),
        "robust": robust.tolist(),
    }


def classified(
    labels: np.ndarray, predictions: np.ndarray, robust: np.ndarray, *, num_classes: int, class_names: Any = None
) -> dict[str, Any]:
    """Accuracy by class and confusion, from the prediction on each example's deciding image.

    Args:
        labels: integers [N].
        predictions: int [N]; of a stochastic network the class that most draws predict.
        robust: bool [N]. An example that is not robust though its label is predicted, whose logits are not numbers or
            which loses by a tie of draws, counts as predicted for no class, -1.
        num_classes: K.
        class_names: K strings, if they are known.

    Returns:
        ``labels``, ``predictions``, ``per_class`` (of classes that occur) and ``confusion``, K rows for the labels of K
        numbers of examples by predicted class, without those of class -1.

    Example:
        >>> robust = np.array([True, False, True])
        >>> found = classified(np.array([0, 0, 1]), np.array([0, 1, 1]), robust, num_classes=2)
        >>> found["confusion"], [entry["accuracy"] for entry in found["per_class"]]
        ([[1, 1], [0, 1]], [0.5, 1.0])
    """
    predictions = np.where((predictions == labels) & ~robust, -1, predictions)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    known = predictions >= 0
    np.add.at(confusion, (labels[known], predictions[known]), 1)
    per_class = []
    for label in np.unique(labels).tolist():
        right, total = int(robust[labels == label].sum()), int((labels == label).sum())
        per_class.append(
            {
                "class": label,
                **({"name": class_names[label]} if class_names and label < len(class_names) else {}),
                "num_examples": total,
                "accuracy": right / total,
                "interval_95": wilson_interval(right, total),
            }
        )
    return {
        "labels": labels.tolist(),
        "predictions": predictions.tolist(),
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def record(
    attack: str,
    protocol: Protocol,
    outcome: Outcome,
    *,
    norm: str,
    epsilon: float,
    conditions: dict[str, Any],
    labels: np.ndarray,
    num_classes: int,
    class_names: Any = None,
) -> dict[str, Any]:
    """One attack's outcome as plain data.

    Args:
        attack: its name.
        protocol, outcome: what ran, and what came of it.
        norm, epsilon: the threat.
        conditions: what all records of an evaluation share (``conditions``, and what the caller adds).
        labels: integers [N].
        num_classes, class_names: see :func:`classified`.
    """
    by_attack = {name: float(flags.mean()) for name, flags in outcome.by_attack.items()}
    values = figures(outcome.right, outcome.num_draws)
    return {
        "attack": attack,
        "norm": norm,
        "epsilon": epsilon,
        "num_steps": protocol.num_steps,
        "num_restarts": protocol.num_restarts,
        "settings": resolved(protocol),
        "seconds": round(outcome.seconds, 3),
        **conditions,
        **({"by_attack": by_attack} if by_attack else {}),
        **(_towards(protocol, outcome) if protocol.toward is not None else {}),
        **values,
        **classified(
            labels,
            outcome.deciding_predictions,
            np.array(values["robust"], bool),
            num_classes=num_classes,
            class_names=class_names,
        ),
    }


def _towards(protocol: Protocol, outcome: Outcome) -> dict[str, Any]:
    """How often an attack reaches the class that it aims at; images of that very class are left out."""
    assert outcome.tries is not None and outcome.hits is not None and outcome.targets is not None
    tried = int((outcome.tries > 0).sum())
    share = float(outcome.hits.sum() / max(outcome.tries.sum(), 1))
    return {
        "toward": protocol.toward,
        "target_hit": share if tried else None,
        # Several classes of one example are not further examples.
        "target_hit_interval_95": wilson_interval(share * tried, tried) if tried else None,
        "target_tries": outcome.tries.tolist(),
        "target_hits": outcome.hits.tolist(),
        **({} if protocol.rounds > 1 else {"targets": outcome.targets.tolist()}),
    }


# Of one attack, and not of the worst case over several.
OF_ATTACK = (
    "settings", "by_attack", "toward", "target_hit", "target_hit_interval_95", "target_tries", "target_hits", "targets",
)  # fmt: skip


def worst_case(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record of an adversary who picks the best attack for each example: robust only where every attack fails.

    Of a stochastic network each example counts with the fewest draws in which it was right against any attack. Over
    several threats its ``norm`` is "union", its ``epsilon`` None, and ``threats`` lists theirs.
    """
    num_draws = records[0].get("num_draws", 1)
    every = np.array([record["right_draws" if num_draws > 1 else "robust"] for record in records], int)
    right, decides = every.min(axis=0), every.argmin(axis=0)
    shared = {name: value for name, value in records[0].items() if name not in OF_ATTACK}
    threats = list({(record["norm"], record["epsilon"]): None for record in records})
    labels = np.array(records[0]["labels"], int)
    predictions = np.array([record["predictions"] for record in records])[decides, np.arange(len(labels))]
    values = figures(right, num_draws)
    names = {entry["class"]: entry["name"] for entry in shared["per_class"] if "name" in entry}
    num_classes = len(shared["confusion"])
    return {
        **shared,
        **(_union(threats) if len(threats) > 1 else {}),
        "attack": "worst_case",
        "attacks": list(dict.fromkeys(record["attack"] for record in records)),
        "num_steps": max(record["num_steps"] for record in records),
        "num_restarts": max(record["num_restarts"] for record in records),
        "seconds": round(sum(record["seconds"] for record in records), 3),
        **values,
        **classified(
            labels,
            predictions,
            np.array(values["robust"], bool),
            num_classes=num_classes,
            class_names=[names.get(label, str(label)) for label in range(num_classes)] if names else None,
        ),
    }


def _union(threats: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """What a record says of several threats in place of one."""
    listed = [{"norm": norm, "epsilon": epsilon} for norm, epsilon in threats]
    return {"norm": UNION, "epsilon": None, "threats": listed}


def resolved(protocol: Protocol) -> dict[str, Any]:
    """Every setting of a protocol by name, defaults included, as JSON can hold it.

    Example:
        >>> def attack(logits_fn, key, images, labels, *, epsilon, num_steps=10, loss=abs): ...
        >>> resolved(Protocol(attack, {"epsilon": 0.5}))
        {'attack': 'attack', 'num_steps': 10, 'loss': 'abs', 'epsilon': 0.5}
    """
    given = dict(protocol.about)
    return given if protocol.attack is None else given | _resolved(protocol.attack, "attack", dict(protocol.options))


def _resolved(function: Callable[..., Any], kind: str, given: dict[str, Any]) -> dict[str, Any]:
    if isinstance(function, functools.partial):
        return _resolved(function.func, kind, {**function.keywords, **given})
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
    settings = {name: value for name, value in {**defaults, **given}.items() if name not in GIVEN_TO_DRIVERS}
    return {kind: function.__name__, **{name: _plain(value) for name, value in settings.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return _resolved(value, "function", {})
    return value.__name__ if callable(value) else value


def conditions() -> dict[str, Any]:
    """Source, versions and hardware of this process."""
    return {
        "commit": _commit(),
        "source": source_digest(),
        "versions": {
            "robustjax": version.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "hardware": {
            "platform": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "num_devices": jax.device_count(),
            "host": platform.machine(),
            "host_cpus": os.cpu_count(),
        },
    }


def write(folder: str | Path, name: str, record: dict[str, Any]) -> None:
    """A record to ``folder/<name>.json``, whole or not at all."""
    files.write(Path(folder) / f"{name}.json", json.dumps(record) + "\n")


@functools.cache
def source_digest() -> str:
    """A checksum of this package's source, so that results of changed code are told apart whatever the version."""
    sha = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        sha.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, marked where files differ from it; None if installed."""
    root = PACKAGE.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # installed into another repository
        # A record that was added to results/ changes nothing about how the next one comes out.
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None
