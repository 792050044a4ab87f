"""Threats: norm, radius and box of an adversary, and how a user writes them, ``linf:8/255``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robustjax.attacks.geometry import GEOMETRIES
from robustjax.types import InputError, nearest

# The norm of a record whose images are within no ball around those of the data set, and of one over several threats,
# which lists them as ``threats``.
NO_BALL, UNION = "none", "union"


class Threat(NamedTuple):
    """A threat: an adversary may choose any image in a ball around the original and inside the box of valid pixels.

    Attributes:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        epsilon: radius of the ball, in units of pixels.
        bounds: of the pixels.
    """

    norm: str
    epsilon: float
    bounds: tuple[float, float] = (0.0, 1.0)


def number(text: str | float) -> float:
    """A finite number as a user writes it, also as a fraction.

    Raises:
        ValueError: it is none.

    Example:
        >>> number("0.5"), number("8/255") == 8 / 255
        (0.5, True)
        >>> number("8_255")
        Traceback (most recent call last):
        ValueError: not a finite number: 8_255
    """
    above, slash, below = text.partition("/") if isinstance(text, str) else (text, "", "")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (TypeError, ZeroDivisionError):
        value = math.nan
    # Python reads 8_255 as 8255, which here is more likely a slip of 8/255.
    if not math.isfinite(value) or "_" in str(text):
        raise ValueError(f"not a finite number: {text}")
    return value


def radius(name: str, value: str | float) -> float:
    """A radius, at least 0.

    Example:
        >>> radius("epsilon", "-1")
        Traceback (most recent call last):
        robustjax.types.InputError: epsilon must be a number >= 0 in the units of the pixels, got '-1'; give for example
        8/255
    """
    try:
        radius = number(value)
    except ValueError:
        radius = -1.0
    if radius < 0:
        wanted = "a number >= 0 in the units of the pixels"
        raise InputError(f"{name} must be {wanted}, got {value!r}; give for example 8/255")
    return radius


def check_width(threat: Threat) -> None:
    """Refuses an l-infinity ball larger than the box; most likely epsilon / 255 was meant.

    Example:
        >>> check_width(Threat("linf", 8.0))
        Traceback (most recent call last):
        robustjax.types.InputError: epsilon must be at most 1 for linf, as far as pixels are from each other in bounds
        0,1, got 8; 8/255 is 0.0313725
    """
    norm, epsilon, (low, high) = threat
    widest = float(np.max(np.asarray(high) - np.asarray(low)))
    if norm != "linf" or epsilon <= widest:
        return
    ends = f"{low:g},{high:g}" if np.ndim(low) == 0 else f"{low},{high}"
    hint = f"{epsilon:g}/255 is {epsilon / 255:g}" if 1 < epsilon <= 255 else "give a smaller one"
    raise InputError(
        f"epsilon must be at most {widest:g} for linf, as far as pixels are from each other in bounds {ends}, got "
        f"{epsilon:g}; {hint}"
    )


def of_record(record: Mapping[str, Any]) -> list[str]:
    """The threats of a record in words: several for a union, none for images without a ball.

    Example:
        >>> of_record({"norm": "linf", "epsilon": 0.1})
        ['linf epsilon 0.1']
    """
    threats = [] if record["norm"] == NO_BALL else record.get("threats") or [record]
    return [f"{threat['norm']} epsilon {threat['epsilon']:.4g}" for threat in threats]


def parse(entries: str | Sequence[str], bounds: tuple[float, float] = (0.0, 1.0)) -> list[Threat]:
    """Threats as a command line names them, norm and radius with a colon between them.

    Args:
        entries: as ``"linf:8/255,l2:0.5"``, or a list of them.
        bounds: of the pixels, for all.

    Raises:
        InputError: naming every entry that is wrong, with the nearest norm.

    Example:
        >>> parse("l2:0.5,l1:12")
        [Threat(norm='l2', epsilon=0.5, bounds=(0.0, 1.0)), Threat(norm='l1', epsilon=12.0, bounds=(0.0, 1.0))]
        >>> parse("l3:0.5")
        Traceback (most recent call last):
        robustjax.types.InputError: threat must be norms with a radius each, as in linf:8/255,l2:0.5, got 'l3:0.5' (the
        norms are linf, l2, l1)
    """
    entries = entries.split(",") if isinstance(entries, str) else list(entries)
    threats, wrong = [], []
    for entry in entries:
        norm, _, epsilon = str(entry).partition(":")
        if norm not in GEOMETRIES:
            hint = nearest(norm.lower(), GEOMETRIES) or f" (the norms are {', '.join(GEOMETRIES)})"
            wrong.append(f"{entry!r}{hint}")
            continue
        try:
            threats.append(Threat(norm, radius("epsilon", epsilon), bounds))
        except InputError:
            wrong.append(f"{entry!r} (its radius must be a number >= 0)")
    if wrong or not threats:
        got = "; ".join(wrong) or "none"
        raise InputError(f"threat must be norms with a radius each, as in linf:8/255,l2:0.5, got {got}")
    return threats
