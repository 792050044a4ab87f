"""Accuracy against epsilon and against the number of steps.

All points of an attack are one compiled program: epsilon, step size and number of steps are its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from robustjax.evaluation.protocol import records
from robustjax.evaluation.protocol.outcome import Outcome
from robustjax.evaluation.protocol.protocols import Protocol
from robustjax.evaluation.protocol.threats import Threat, number
from robustjax.types import InputError

KINDS = ("epsilon", "steps")
MULTIPLES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
STEPS = (1, 2, 5, 10, 20, 50, 100, 200)


def parse(text: str) -> tuple[str, tuple[float, ...] | None]:
    """The kind of a sweep, and the values that a user chose for it, rising, or None.

    Raises:
        InputError: another kind, or values that it cannot have.

    Example:
        >>> parse("epsilon:0,0.5"), parse("steps")
        (('epsilon', (0.0, 0.5)), ('steps', None))
        >>> parse("steps:1.5")
        Traceback (most recent call last):
        robustjax.types.InputError: sweep must be epsilon or steps, alone or with values as in epsilon:0,2/255,4/255 and
        steps:1,10,100, got 'steps:1.5'; leave them out for the usual ones
    """
    kind, colon, rest = str(text).partition(":")
    try:
        values = sorted({_value(kind, value) for value in rest.split(",")}) if colon else None
    except ValueError:
        values = []
    fine = values is None or (len(values) > 0 and values[0] >= (1 if kind == "steps" else 0))
    if kind not in KINDS or not fine:
        raise InputError(
            "sweep must be epsilon or steps, alone or with values as in epsilon:0,2/255,4/255 and "
            f"steps:1,10,100, got {text!r}; leave them out for the usual ones"
        )
    return kind, None if values is None else tuple(values)


def _value(kind: str, text: str) -> float:
    return int(text) if kind == "steps" else number(text)


class Point(NamedTuple):
    """A protocol at one place of a sweep.

    Attributes:
        attack: its name.
        at: epsilon, or the number of steps.
        protocol: with that epsilon or number of steps.
    """

    attack: str
    at: float
    protocol: Protocol


def points(
    kind: str,
    protocols: Mapping[str, Protocol],
    *,
    threat: Threat,
    image_shape: Sequence[int],
    values: Sequence[float] | None = None,
) -> list[Point]:
    """The points of a sweep, attack by attack.

    "epsilon": multiples of the run's, and the radius at which every image can be turned into the same grey one, where
    no network can know more than chance; steps grow with epsilon. "steps": of the length that the attack has anyway.

    Args:
        kind: "epsilon" or "steps".
        protocols: by the attacks' names.
        threat: whose epsilon attacks have their steps for; above 0 in a sweep of epsilon.
        image_shape: (H, W, C).
        values: rising, in place of the usual ones.

    Raises:
        InputError: an attack has no epsilon, or not a number of steps to be set; or epsilon is 0.

    Example:
        >>> swept = points("epsilon", {"fgsm": Protocol(abs, {"epsilon": 0.1})}, threat=Threat("linf", 0.1),
        ...                image_shape=(8, 8, 1))
        >>> [round(point.at, 6) for point in swept]
        [0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.4, 0.5]
    """
    option = {"epsilon": "epsilon", "steps": "num_steps"}[kind]
    without = [name for name, protocol in protocols.items() if option not in protocol.options]
    if without:
        raise InputError(f"--sweep={kind}: {', '.join(without)} has no {option} to sweep; leave it out of --attacks")
    if kind == "steps":
        counts = STEPS if values is None else [int(value) for value in values]
        return [Point(name, count, _steps(base, count)) for name, base in protocols.items() for count in counts]
    if threat.epsilon <= 0:
        raise InputError(f"epsilon must be above 0 for --sweep=epsilon, got {threat.epsilon:g}; give the usual one")
    if values is None:
        values = sorted({threat.epsilon * multiple for multiple in MULTIPLES} | {grey_radius(threat, image_shape)})
    return [
        Point(name, at, _scaled(base, at, at / threat.epsilon)) for name, base in protocols.items() for at in values
    ]


def grey_radius(threat: Threat, image_shape: Sequence[int]) -> float:
    """The radius at which every image in the box can become the same grey image, in the middle of the box.

    Example:
        >>> grey_radius(Threat("l2", 0.1), (4, 4, 1))
        2.0
    """
    size, half = math.prod(image_shape), 0.5 * (threat.bounds[1] - threat.bounds[0])
    return half * {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[threat.norm]


def summary(
    kind: str, swept: Sequence[Point], outcomes: Sequence[Outcome], *, num_classes: int, conditions: Mapping[str, Any]
) -> dict[str, Any]:
    """A sweep as plain data: for each point accuracy, interval and number of examples, beside what all share."""
    rows = []
    for point, outcome in zip(swept, outcomes, strict=True):
        figures = records.figures(outcome.right, outcome.num_draws)
        rows.append(
            {
                "attack": point.attack,
                "epsilon": point.protocol.options["epsilon"],
                "num_steps": point.protocol.num_steps,
                **{name: value for name, value in figures.items() if name not in ("robust", "right_draws")},
                "seconds": round(outcome.seconds, 3),
                "settings": records.resolved(point.protocol),
            }
        )
    return {"sweep": kind, "chance": 1 / num_classes, **conditions, "points": rows}


def _scaled(base: Protocol, epsilon: float, factor: float) -> Protocol:
    """A protocol at another epsilon, its steps as much longer or shorter."""
    lengths = {"epsilon": epsilon}
    if "step_size" in base.options:
        lengths["step_size"] = base.options["step_size"] * factor if factor != 1.0 else base.options["step_size"]
    return base._replace(options={**base.options, **lengths})


def _steps(base: Protocol, count: int) -> Protocol:
    return base._replace(
        options={**base.options, "num_steps": count}, num_steps=count, passes=base.passes * count / base.num_steps
    )
