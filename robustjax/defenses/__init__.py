"""Defenses: pure functions on anyone's feature maps, and guards that attach them to the networks of
``robustjax.models``.

``sap.prune``, ``cas.suppress``, ``cifs.select``, ``fsr.separate``, ``sns.stabilizing_loss``, ``kwta.k_winners`` and
``meansparse.sparsify`` need nothing but arrays. ``create`` returns a ``Defense``, which a network takes as
``models.create(name, defense=...)``.
"""

from __future__ import annotations

import inspect
from typing import Any

from robustjax.defenses import cas, cifs, fsr, kwta, meansparse, sap, sns
from robustjax.defenses.convention import Defense
from robustjax.types import InputError

DEFENSES = {
    "cas": cas.defense,
    "cifs": cifs.defense,
    "fsr": fsr.defense,
    "kwta": kwta.defense,
    "meansparse": meansparse.defense,
    "sap": sap.defense,
    "sns": sns.defense,
}


def create(name: str, **options: Any) -> Defense:
    """A defense by its name, for :func:`robustjax.models.create`.

    Args:
        name: one of ``DEFENSES``.
        **options: of its module's ``defense``, as ``fraction`` of :func:`sap.defense`; what is not given has the
            published value.

    Returns:
        A :class:`Defense`.

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


def parse(text: str) -> tuple[str, Defense | None]:
    """A defense as a command line names it.

    Args:
        text: name and options, as ``"sap:fraction=0.5,sampler=bernoulli"``; ``"none"`` is the network without any.

    Returns:
        The text in one spelling for each meaning, which records and folders are named by, and the defense or None.

    Raises:
        InputError: the defense or an option is unknown, or a value is out of range.

    Example:
        >>> parse("sap:sampler=bernoulli,fraction=0.50")[0]
        'sap:fraction=0.5,sampler=bernoulli'
    """
    name, _, rest = text.partition(":")
    if name == "none" and not rest:
        return name, None
    if name not in DEFENSES:
        raise InputError(f"--defense must be none or one of {', '.join(DEFENSES)}, got {name!r}")
    known, options = inspect.signature(DEFENSES[name]).parameters, {}
    for item in filter(None, rest.split(",")):
        option, equals, value = item.partition("=")
        if not equals or option not in known:
            raise InputError(f"--defense={name}: options look like {'=..., '.join(known)}=..., got {item!r}")
        kind = type(known[option].default)
        try:
            options[option] = kind(value)
        except ValueError:
            raise InputError(f"--defense={name}: {option} must be {kind.__name__}, got {value!r}") from None
    spelling = ",".join(f"{option}={options[option]}" for option in sorted(options))
    return f"{name}:{spelling}" if options else name, create(name, **options)


__all__ = ["DEFENSES", "Defense", "cas", "cifs", "create", "fsr", "kwta", "meansparse", "parse", "sap", "sns"]
