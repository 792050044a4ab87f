"""The result of an evaluation, with its tables and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from robustjax import data
from robustjax.evaluation.protocol import card, folder, protocols, records, requirements, tables
from robustjax.evaluation.protocol.deciding import Deciding
from robustjax.evaluation.protocol.outcome import Outcome
from robustjax.evaluation.protocol.threats import NO_BALL, Threat
from robustjax.evaluation.verdict import trust
from robustjax.evaluation.verdict._judge import Verdict
from robustjax.types import InputError


class Evaluation(NamedTuple):
    """The result of :func:`evaluate`.

    Attributes:
        records: one for each attack and threat, as they are written to disk: ``attack``, ``norm``, ``epsilon``,
            ``accuracy``, ``interval_95``, ``robust``, ``labels``, ``predictions``, ``per_class``, ``confusion`` and
            what else describes the measurement. Predictions are those of the image that decides: the attack's, or the
            image as it is where that is misclassified already.
        worst_case: the record of an adversary who picks the best of all attacks for each image; of several threats
            under any of them: its ``norm`` is then ``"union"``, its ``epsilon`` None, and ``threats`` lists them.
            Images of other data sets (``corruption:``) are not part of it.
        outcomes: of each record, the predictions and the first adversarial images.
        conditions: what all records share.
        verdict: of the adaptive attacks under the last threat, where they were asked for.
        by_threat: of several threats, the worst case under each.
        deciding: the images that decide the worst case, where they were kept.
        labels: integers [N].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustjax import evaluation
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 2.0)], axis=1)
        >>> images = jnp.stack([jnp.full((2, 2, 1), 0.55), jnp.full((2, 2, 1), 0.8)])
        >>> threat = evaluation.Threat("linf", 0.1)
        >>> result = evaluation.evaluate(linear, jax.random.key(0), images, jnp.array([0, 0]), threat=threat,
        ...                              attacks=("clean", "pgd20", "apgd:loss=margin,num_steps=10"))
        >>> [(record["attack"], record["accuracy"]) for record in result.records], result.worst_case["robust"]
        ([('clean', 1.0), ('pgd20', 0.5), ('apgd:loss=margin,num_steps=10', 0.5)], [False, True])
        >>> result.unmet(["pgd20>=0.6"])
        ['pgd20>=0.6 does not hold: accuracy is 50.00%, 10.00 points too low (95 % interval 9.45% to 90.55% for 2
        images; the bound is inside it)']
    """

    records: list[dict[str, Any]]
    worst_case: dict[str, Any]
    outcomes: list[Outcome]
    conditions: Mapping[str, Any]
    verdict: Verdict | None = None
    by_threat: Sequence[dict[str, Any]] = ()
    deciding: Deciding | None = None
    labels: np.ndarray | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All records, worst cases last."""
        return [*self.records, *self.by_threat, self.worst_case]

    @property
    def several_threats(self) -> bool:
        """Whether attacks ran under more than one threat."""
        return len(_threats(self.records)) > 1

    def table(self) -> Table:
        """A row for each record, the worst case last; ``rich.print(evaluation.table())`` shows it."""
        return tables.of_records(self.rows)

    def _repr_html_(self) -> str:
        """The table, as notebooks show it."""
        return tables.html_of_records(self.rows)

    def class_table(self) -> Table:
        """A row for each class: accuracy under each attack, and the most frequent wrong prediction."""
        return tables.of_classes([record for record in self.rows if record["norm"] != NO_BALL])

    def unmet(self, expressions: Sequence[str]) -> list[str]:
        """A line for each requirement that does not hold: by how much, and the interval.

        Args:
            expressions: as ``"autoattack>=0.5"`` or ``"worst_case>=45%"``; of several threats every one must hold it.

        Raises:
            InputError: naming every expression that is wrong.
        """
        found = requirements.parse(expressions, [record["attack"] for record in self.records])
        entries = [*self.records, self.worst_case]
        return [line for requirement in found for line in requirement.unmet(entries)]

    def card(self) -> dict[str, Any]:
        """A leaderboard card in RobustBench's form, of the records of "clean" and "autoattack".

        Raises:
            InputError: one of the two was not run, or the threat is not one in linf or l2.
        """
        threats = [Threat(norm, epsilon) for norm, epsilon in _threats(self.records)]
        card.check([record["attack"] for record in self.records], threats)
        return card.of_records(self.records, self.worst_case)

    def save(self, path: str | Path) -> None:
        """Writes each record to ``path/<attack>.json``, ``worst_case.json``, and all as ``results.csv``.

        Several threats share a folder: a record's name then ends in its own threat, as in ``pgd20-l2-0.5.json``. A
        verdict goes to ``trust.json`` and ``trust.md``.

        Raises:
            WriteError: the folder cannot be written.
        """
        folder.write(path, self.rows, several=self.several_threats)
        if self.verdict is not None:
            trust.write(path, self.verdict, protocol=self.usual_records, **self.conditions)

    def save_images(self, path: str | Path) -> None:
        """Writes the images that decide the worst case to an .npz, see :func:`robustjax.data.save_images`.

        The network's own predictions for them give the accuracy of the worst case.

        Raises:
            InputError: they were not kept (``evaluate(keep_images=True)``), or the name is another.
            WriteError: the file cannot be written.
        """
        if self.deciding is None or self.labels is None:
            raise InputError("images must have been kept, got an evaluation without; give keep_images=True")
        threat = {name: self.worst_case[name] for name in ("norm", "epsilon", "threats") if name in self.worst_case}
        data.save_images(
            path,
            self.deciding.images,
            self.labels,
            clean_images=self.deciding.clean_images,
            predictions=self.deciding.predictions,
            clean_predictions=self.deciding.clean_predictions,
            robust=self.deciding.robust,
            about={**threat, **self.conditions},
        )

    @property
    def usual_records(self) -> list[dict[str, Any]]:
        """The records of all but the adaptive attacks, under the last threat."""
        last = _threats(self.records)[-1]
        return [
            record
            for record in self.records
            if record["attack"] == "clean"
            or (record["attack"] != protocols.ADAPTIVE and (record["norm"], record["epsilon"]) == last)
        ]


def worst_case(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The worst case over the records of images inside a ball."""
    return records.worst_case([entry for entry in entries if entry["norm"] != NO_BALL])


def by_threat(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of several threats and attacks the worst case under each threat."""
    threats, found = _threats(entries), []
    attacks = {entry["attack"] for entry in entries if entry["norm"] != NO_BALL} - {"clean"}
    for norm, epsilon in threats if min(len(threats), len(attacks)) > 1 else ():
        own = [
            entry
            for entry in entries
            if entry["attack"] == "clean" or (entry["norm"], entry["epsilon"]) == (norm, epsilon)
        ]
        record = records.worst_case(own) | {"norm": norm, "epsilon": epsilon}
        found.append({name: value for name, value in record.items() if name != "threats"})
    return found


def _threats(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    balls = [(entry["norm"], entry["epsilon"]) for entry in entries if entry["norm"] != NO_BALL]
    return list(dict.fromkeys(balls))
