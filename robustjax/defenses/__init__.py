"""Defenses: pure functions on feature maps, and guards that attach them to the networks of ``robustjax.models``.

``sap.prune``, ``cas.suppress``, ``cifs.select``, ``fsr.separate``, ``sns.stabilizing_loss``, ``kwta.k_winners`` and
``meansparse.sparsify`` need nothing but arrays. ``create`` returns a ``Defense``, which a network takes as
``models.create(name, defense=...)``; ``compose`` makes one of several.
"""

from __future__ import annotations

import inspect
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from robustjax.defenses import cas, cifs, dropout, fsr, kwta, meansparse, noise, sap, sns
from robustjax.defenses.composition import compose
from robustjax.defenses.convention import Defense
from robustjax.types import InputError, nearest

DEFENSES = {
    "cas": cas.defense,
    "cifs": cifs.defense,
    "dropout": dropout.defense,
    "fsr": fsr.defense,
    "kwta": kwta.defense,
    "meansparse": meansparse.defense,
    "noise": noise.defense,
    "sap": sap.defense,
    "sns": sns.defense,
}


def create(name: str, *, sites: str | Sequence[str] = (), **options: Any) -> Defense:
    """A defense by its name, for :func:`robustjax.models.create`.

    Args:
        name: one of ``DEFENSES``.
        sites: where it guards, if not where it was published: names of the network's sites, or of groups of them such
            as "stage3", in a sequence or separated by commas. See ``Network.sites``.
        **options: of its module's ``defense``, as ``fraction`` of :func:`sap.defense`; what is not given has the
            published value.

    Returns:
        A :class:`Defense`.

    Raises:
        InputError: the name is unknown, the defense has no such option, or an option's value is out of range.

    Example:
        >>> create("cifs", beta=1.0).heads
        ('probe',)
        >>> list(create("cas", sites="stage2").guards({"stage2": ("block1", "block2")}, 10))
        ['block1', 'block2']
        >>> create("cas", alpha=1.0)
        Traceback (most recent call last):
        ...
        robustjax.types.InputError: defense 'cas' takes the options beta, attack_beta, sites, got alpha
    """
    if not isinstance(name, str) or name not in DEFENSES:
        raise InputError(f"defense must be one of {', '.join(DEFENSES)}, got {name!r}{nearest(name, DEFENSES)}")
    unknown = sorted(set(options) - set(options_of(name)))
    if unknown:
        raise InputError(f"defense {name!r} takes the options {', '.join(options_of(name))}, got {', '.join(unknown)}")
    known = options_of(name)
    for option, value in options.items():
        kind, fits = _kind(known[option])
        if not fits(value):
            raise InputError(f"{name}: {option} must be {kind}, got {value!r}; give one")
    if not (isinstance(sites, str) or (isinstance(sites, Sequence) and all(isinstance(site, str) for site in sites))):
        raise InputError(f"{name}: sites must be names, got {sites!r}; give them in a sequence or separated by commas")
    places = tuple(site.strip() for site in (sites.split(",") if isinstance(sites, str) else sites))
    if not all(places) or len(set(places)) < len(places):
        raise InputError(f"{name}: sites must be different names, separated by commas, got {','.join(places)!r}")
    return DEFENSES[name](**options)._replace(sites=places)


def _kind(default: Any) -> tuple[str, Callable[[Any], bool]]:
    """What an option with this default must be, in words, and whether a value is."""
    number = lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool)  # noqa: E731
    if isinstance(default, bool):
        return "True or False", lambda value: isinstance(value, bool)
    if isinstance(default, int):
        return "an integer", lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if isinstance(default, str):
        return "a string", lambda value: isinstance(value, str)
    return (
        ("a number or None", lambda value: value is None or number(value)) if default is None else ("a number", number)
    )


def options_of(name: str) -> dict[str, Any]:
    """Option -> default of a defense by its name, ``sites`` among them.

    Example:
        >>> options_of("kwta")
        {'fraction': 0.2, 'by_magnitude': False, 'sites': ''}
    """
    found = inspect.signature(DEFENSES[name]).parameters
    return {option: parameter.default for option, parameter in found.items()} | {"sites": ""}


def read_spec(text: str, *, source: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and options of each defense that a text spells, as "cas+sap:fraction=0.5,sites=stage1,stage2".

    Args:
        text: names separated by +, each with its options after a colon, separated by commas. What has no = belongs to
            the option before it.
        source: where it comes from, for the message.

    Raises:
        InputError: there is no such defense or option, or a value is of another type.

    Example:
        >>> read_spec("cas+sap:fraction=0.5,sites=stage1,stage2", source="--defense")
        [('cas', {}), ('sap', {'fraction': 0.5, 'sites': 'stage1,stage2'})]
    """
    found = []
    for part in re.split(r"\+(?=[a-z])", text):
        name, _, rest = part.partition(":")
        if name not in DEFENSES:
            none = "none or " if source.startswith("--") else ""  # of a config that is None
            names = f"{none}one of {', '.join(DEFENSES)}"
            raise InputError(f"{source} must be {names}, got {name!r}{nearest(name, DEFENSES)}")
        known, options = options_of(name), {}
        for item in filter(None, re.split(r",(?![^,=]*(?:,|$))", rest)):
            option, equals, value = item.partition("=")
            if not equals or option not in known:
                raise InputError(f"{source}={name}: options look like {'=..., '.join(known)}=..., got {item!r}")
            if option in options:
                raise InputError(f"{source}={name}: {option} must be given once, got {text!r}; leave one out")
            options[option] = _value(value, known[option], f"{source}={name}: {option}")
        found.append((name, options))
    return found


def _value(text: str, default: Any, option: str) -> Any:
    """What a text means for an option with this default; one without a default is a number."""
    kind = float if default is None else type(default)
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise InputError(f"{option} must be {kind.__name__}, got {text!r}") from None


def parse(text: str) -> tuple[str, Defense | None]:
    """Defenses as a command line names them.

    Args:
        text: names and options, as ``"sap:fraction=0.5,sampler=bernoulli"``, several separated by +, as
            ``"cas+sap:fraction=0.5"``; ``"none"`` is the network without any.

    Returns:
        The text in one spelling for each meaning, which records and folders are named by, and the defenses as one, or
        None.

    Raises:
        InputError: a defense or an option is unknown, or a value is out of range.

    Example:
        >>> parse("sap:sampler=bernoulli,fraction=0.50")[0]
        'sap:fraction=0.5,sampler=bernoulli'
    """
    if text == "none":
        return text, None
    found = read_spec(text, source="--defense")
    return spell(found), compose(*(create(name, **options) for name, options in found))


def spell(parts: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Defenses with their options in one spelling, which :func:`parse` reads.

    Example:
        >>> spell([("cas", {}), ("sap", {"sampler": "bernoulli", "fraction": 0.5})])
        'cas+sap:fraction=0.5,sampler=bernoulli'
    """
    spelled = []
    for name, options in parts:
        values = ",".join(f"{option}={options[option]}" for option in sorted(options))
        spelled.append(f"{name}:{values}" if options else name)
    return "+".join(spelled)


__all__ = [
    "DEFENSES",
    "Defense",
    "cas",
    "cifs",
    "compose",
    "create",
    "dropout",
    "fsr",
    "kwta",
    "meansparse",
    "noise",
    "options_of",
    "parse",
    "read_spec",
    "sap",
    "sns",
    "spell",
]
