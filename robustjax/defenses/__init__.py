"""Defenses: pure functions on anyone's feature maps, and guards that attach them to the networks of `robustjax.models`.

`sap.prune`, `cas.suppress`, `cifs.select`, `fsr.separate`, `sns.stabilizing_loss` and `kwta.k_winners` need nothing but
arrays. `create` returns a `Defense`, which a network takes as `models.create(name, defense=...)`.
"""

from __future__ import annotations

import inspect
from typing import Any

from robustjax.defenses import cas, cifs, fsr, kwta, sap, sns
from robustjax.defenses.convention import Defense
from robustjax.types import InputError

DEFENSES = {
    "cas": cas.defense,
    "cifs": cifs.defense,
    "fsr": fsr.defense,
    "kwta": kwta.defense,
    "sap": sap.defense,
    "sns": sns.defense,
}


def create(name: str, **options: Any) -> Defense:
    """A defense by its name, with its options.

    Raises:
        InputError: the name is unknown, the defense has no such option, or an option's value is out of range.

    Example:
        >>> create("cifs", beta=1.0).heads
        ('probe',)
        >>> create("cas", alpha=1.0)
        Traceback (most recent call last):
        ...
        robustjax.types.InputError: defense 'cas' takes the options beta, got alpha
    """
    if name not in DEFENSES:
        raise InputError(f"defense must be one of {', '.join(DEFENSES)}, got {name!r}")
    known = inspect.signature(DEFENSES[name]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"defense {name!r} takes the options {', '.join(known)}, got {', '.join(unknown)}")
    return DEFENSES[name](**options)


__all__ = ["DEFENSES", "Defense", "cas", "cifs", "create", "fsr", "kwta", "sap", "sns"]
