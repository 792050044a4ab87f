"""A leaderboard card: a network's clean accuracy and AutoAttack's in the JSON form of RobustBench's model_info."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustjax.evaluation.protocol.threats import Threat
from robustjax.runtime import files
from robustjax.types import InputError

# RobustBench's fields that no evaluation knows: empty in the card, to be filled in by its author.
TO_FILL_IN = ("link", "name", "authors", "additional_data", "venue", "reported")
NORMS = ("linf", "l2")


def check(names: Sequence[str], threats: Sequence[Threat]) -> None:
    """Refuses attacks and threats of which no card can be made, before anything runs.

    Raises:
        InputError: clean or AutoAttack in the leaderboard's version, without options, does not run; or there are
            several threats, or one in a norm that it has no table for.
    """
    missing = [name for name in ("clean", "autoattack") if name not in names]
    if missing:
        raise InputError(
            f"card must be made of clean and autoattack, got attacks without {' and '.join(missing)}; add "
            f"{'it' if len(missing) == 1 else 'them'} to --attacks"
        )
    if len(threats) != 1 or threats[0].norm not in NORMS:
        got = ", ".join(f"{threat.norm}:{threat.epsilon:.4g}" for threat in threats)
        raise InputError(f"card must be of one threat in {' or '.join(NORMS)}, got {got}; evaluate one for each card")


def of_records(records: Sequence[Mapping[str, Any]], worst_case: Mapping[str, Any]) -> dict[str, Any]:
    """The card of an evaluation.

    ``clean_acc`` and ``autoattack_acc`` are percentages with two digits, ``eps`` a fraction of 255 where it is one.
    ``footnote`` says what the table has no column for. What no evaluation knows (:data:`TO_FILL_IN`) is left empty.

    Args:
        records: with those of "clean" and "autoattack".
        worst_case: over all that ran.
    """
    by_name = {record["attack"]: record for record in records}
    clean, attacked = by_name["clean"], by_name["autoattack"]
    low, high = attacked["interval_95"]
    config = attacked.get("config")
    network = config["model"]["name"] if config else attacked.get("network", {}).get("model", "")
    notes = [f"{attacked['num_examples']:,} images, 95 % interval {100 * low:.2f} to {100 * high:.2f}"]
    if worst_case["accuracy"] < attacked["accuracy"]:
        others = ", ".join(name for name in worst_case["attacks"] if name not in ("clean", "autoattack"))
        notes.append(f"{100 * worst_case['accuracy']:.2f} over {others} as well")
    return {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": None,
        "number_forward_passes": attacked.get("prediction_draws", 1),
        "dataset": attacked.get("dataset", ""),
        "venue": "",
        "architecture": network,
        "eps": _fraction(attacked["epsilon"]),
        "clean_acc": f"{100 * clean['accuracy']:.2f}",
        "reported": "",
        "autoattack_acc": f"{100 * attacked['accuracy']:.2f}",
        "footnote": "; ".join(notes),
    }


def write(path: str | Path, card: Mapping[str, Any]) -> None:
    """A card as a file, whole or not at all."""
    files.write(path, json.dumps(card, indent=2) + "\n")


def _fraction(epsilon: float) -> str:
    """A radius as the leaderboard writes it.

    Example:
        >>> _fraction(8 / 255), _fraction(0.5)
        ('8/255', '0.5')
    """
    steps = round(255 * epsilon)
    return f"{steps}/255" if steps and abs(255 * epsilon - steps) < 1e-6 else f"{epsilon:.6g}"
