"""Folders of runs that were evaluated, without any network."""

import numpy as np

from robustjax import config
from robustjax.config import plain
from robustjax.evaluation.protocol import records
from robustjax.evaluation.protocol.outcome import Outcome
from robustjax.evaluation.protocol.protocols import CLEAN

CONDITIONS = {"dataset": "digits", "split": "test", "batch_norm": "running statistics", **records.conditions()}


def evaluated(folder, *, seed=0, robust=60, total=100, attacks=("clean", "pgd20"), **changes):
    """The folder of a run with records of so many robust images."""
    made = config.base()
    made.seed = seed
    for path, value in changes.items():
        section, key = path.split("__")
        made[section][key] = value
    right = (np.arange(total) < robust).astype(int)
    outcome = Outcome(right, 1, right, right, np.zeros((0, 8, 8, 1)), {}, 1.0)
    conditions = {**CONDITIONS, "config": plain(made)}
    entries = [
        records.record(
            attack, CLEAN, outcome, norm="linf", epsilon=0.2, conditions=conditions, labels=np.ones(total, int),
            num_classes=2,
        )
        for attack in attacks
    ]  # fmt: skip
    folder.mkdir()
    for entry in (*entries, records.worst_case(entries)):
        records.write(folder / "evaluation", entry["attack"], entry)
    (folder / "evaluation" / "something_else.json").write_text('{"attack": "of another kind"}')
    return folder
