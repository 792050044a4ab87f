"""The attacks of an evaluation as a user names them, with their options: ``apgd:loss=dlr,num_steps=50``.

An attack is a name, or a name, a colon and options with commas between them. A list of attacks has commas between them
as well: a part that holds an ``=`` and no colon before it is an option of the attack before it, so that
``clean,apgd:loss=dlr,num_steps=50,square`` are three attacks. Options are those of the function's signature, read as
the type that it declares.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from robustjax import attacks
from robustjax.attacks import losses
from robustjax.attacks._autoattack import VERSIONS
from robustjax.evaluation.protocol import threats
from robustjax.types import InputError, nearest

# Every public attack that an evaluation can run. C&W's own has another name, as "cw" is PGD on its margin loss.
ATTACKS: dict[str, Callable[..., Any]] = {
    "fgsm": attacks.fgsm,
    "pgd": attacks.pgd,
    "apgd": attacks.apgd,
    "fab": attacks.fab,
    "square": attacks.square,
    "hopskipjump": attacks.hopskipjump,
    "cw_l2": attacks.cw,
    "deepfool": attacks.deepfool,
    "multi_targeted": attacks.multi_targeted,
    "optimized_pgd": attacks.optimized_pgd,
    "autoattack": attacks.autoattack,
}
# Attacks that are refused by their own names, and what to use instead.
INSTEAD = {"n_fgsm": "it leaves the ball, and is for training; use fgsm:random_start=true"}
# Without options: the usual protocol of papers, and a verdict.
FIXED = ("clean", "pgd20", "cw", "pgd100", "adaptive")
# What stands after the colon is a file or a data set.
GIVEN = {"saved": "FILE.npz", "corruption": "DATA"}
# An attack on another network, whose images this one is evaluated on: transfer:SOURCE, or transfer:ATTACK@SOURCE.
TRANSFER, TRANSFERRED = "transfer", "apgd"
# Given by the threat and by the evaluation.
OF_EVALUATION = frozenset({"epsilon", "norm", "bounds", "batch_size", "sharding", "progress", "quicken", "targeted"})
TOWARD = ("next", "random", "likeliest", "least_likely", "all")
OPTIMIZERS = ("momentum", "adam")
LOSSES = {"cross_entropy": losses.cross_entropy, "margin": losses.margin, "dlr": losses.dlr}
LOSS_NAMES = ("ce", "dlr", "dlr-targeted")


class OfEpsilon(float):
    """A length in units of epsilon, as ``step_size=epsilon/10`` asks for."""


class Spec(NamedTuple):
    """One attack of an evaluation, as it was asked for.

    Attributes:
        spelling: of the attack and its options, in one order: the name of its records.
        name: of the attack; "saved", "corruption" or "transfer".
        options: by name, read.
        argument: of "saved" the file, of "corruption" the data set, of "transfer" the source.
        toward: the classes that it aims at, one of :data:`TOWARD` or a class; None: any wrong one.
        on_source: of "transfer", the attack on the source.
    """

    spelling: str
    name: str
    options: Mapping[str, Any] = MappingProxyType({})
    argument: str = ""
    toward: str | int | None = None
    on_source: Spec | None = None


def parse(names: Sequence[str]) -> list[Spec]:
    """The attacks that a list names, each once, in its order.

    Raises:
        InputError: naming every mistake, with the nearest valid name.

    Example:
        >>> [spec.spelling for spec in parse(["clean", "apgd:num_steps=50", "loss=dlr", "square"])]
        ['clean', 'apgd:loss=dlr,num_steps=50', 'square']
        >>> parse(["pgd21", "apgd:losss=dlr"])
        Traceback (most recent call last):
        robustjax.types.InputError: attacks must be names with their options, as in clean,apgd:loss=dlr,num_steps=50,
        got 2 mistakes: 'pgd21' is unknown (nearest: 'pgd20'); apgd has no option 'losss' (nearest: 'loss')
    """
    problems: list[str] = []
    specs = [_spec(item, problems) for item in _grouped(names, problems)]
    if not specs and not problems:
        problems.append("no attack is named")
    if problems:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise InputError(
            "attacks must be names with their options, as in clean,apgd:loss=dlr,num_steps=50, got "
            f"{count}: {'; '.join(problems)}"
        )
    return list({spec.spelling: spec for spec in specs if spec is not None}.values())


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """The options of an attack that a user may set."""
    return {
        option: parameter
        for option, parameter in signature(name).items()
        if parameter.kind is parameter.KEYWORD_ONLY and option not in (*OF_EVALUATION, *OF_PYTHON)
    } | ({"step_size": _STEP_SIZE} if name == "optimized_pgd" else {})


def signature(name: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of an attack's function."""
    return inspect.signature(ATTACKS[name]).parameters


# Functions and arrays, which only Python can give.
OF_PYTHON = ("bfloat16_fn", "start")
# Of the optimizer, which a command line names.
_STEP_SIZE = inspect.Parameter("step_size", inspect.Parameter.KEYWORD_ONLY, annotation="Array | float")


def _grouped(names: Sequence[str], problems: list[str]) -> Iterator[str]:
    """Each attack with its options, which a comma may have parted from it."""
    pending: str | None = None
    for name in names:
        given = not isinstance(name, str) or name.partition(":")[0] in GIVEN  # a file's name may hold commas
        for part in [name] if given else name.split(","):
            part = part.strip() if isinstance(part, str) else part
            if isinstance(part, str) and "=" in part and ":" not in part.partition("=")[0]:
                if pending is None or ":" not in pending:
                    problems.append(f"{part!r} belongs to no attack (write NAME:{part})")
                else:
                    pending = f"{pending},{part}"
                continue
            if pending is not None:
                yield pending
            pending = part
    if pending is not None:
        yield pending


def _spec(item: str, problems: list[str]) -> Spec | None:
    """One attack; what is wrong with it is added to the problems."""
    name, colon, rest = item.partition(":") if isinstance(item, str) else (item, "", "")
    if name in GIVEN:
        if not rest:
            problems.append(f"{name} must name what to judge, as {name}:{GIVEN[name]}")
        return Spec(item, name, argument=rest)
    if name == TRANSFER:
        return _transfer(item, rest, problems)
    if name in FIXED and not colon:
        return Spec(name, name)
    if name in FIXED:
        others = {"cw": "pgd:loss=margin or cw_l2", "pgd20": "pgd:num_steps=20", "pgd100": "pgd:num_steps=100"}
        problems.append(f"{name} takes no options" + (f" (use {others[name]})" if name in others else ""))
        return None
    if name not in ATTACKS:
        problems.append(f"{name!r} is unknown{_instead(name)}")
        return None
    return _with_options(name, rest, problems) if colon else _checked(name, {}, {}, problems)


def _transfer(item: str, text: str, problems: list[str]) -> Spec | None:
    """``SOURCE`` or ``ATTACK@SOURCE``; a source may hold an @ itself."""
    attack, at, source = text.partition("@")
    if not (at and attack.partition(":")[0] in (*ATTACKS, *FIXED)):
        attack, source = TRANSFERRED, text
    if not source:
        problems.append("transfer must name a source, as transfer:SOURCE or transfer:apgd@SOURCE")
        return None
    if attack in ("clean", "adaptive"):
        problems.append(f"{item}: {attack} makes no images to transfer (use for example apgd)")
        return None
    on_source = _spec(attack, problems)
    if on_source is None:
        return None
    return Spec(f"{TRANSFER}:{on_source.spelling}@{source}", TRANSFER, argument=source, on_source=on_source)


def _instead(name: Any) -> str:
    if name in INSTEAD:
        return f" ({INSTEAD[name]})"
    known = (*FIXED, *ATTACKS, *GIVEN, TRANSFER)
    return nearest(str(name).lower(), known) or f" (there are {', '.join(known)})"


def _with_options(name: str, text: str, problems: list[str]) -> Spec | None:
    known, written, options = options_of(name), {}, {}
    for item in text.split(","):
        option, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not option:
            problems.append(f"{name}: options look like {next(iter(known))}=VALUE, got {item!r}")
        elif option in written:
            problems.append(f"{name}: {option} is given twice")
        elif option in OF_EVALUATION - {"targeted"}:
            problems.append(f"{name}: {option} is set for all attacks alike (by --threat, --epsilon, --norm, --bounds)")
        elif option == "toward" or option in known:
            written[option] = value
            try:
                options[option] = _toward(value) if option == "toward" else _read(value, known[option].annotation)
            except ValueError as error:
                problems.append(f"{name}: {option} must be {error}, got {value!r}")
        else:
            hint = nearest(option, [*known, "toward"]) or f" (it has {', '.join([*known, 'toward'])})"
            if option == "targeted":
                hint = f" (use toward={'|'.join(TOWARD)} or a class)"
            problems.append(f"{name} has no option {option!r}{hint}")
    return _checked(name, written, options, problems)


def _checked(name: str, written: dict[str, str], options: dict[str, Any], problems: list[str]) -> Spec | None:
    """A spec, unless an option is missing or two do not go together."""
    for option, parameter in options_of(name).items():
        # Steps have the length of the usual protocol where nothing else is said.
        if parameter.default is parameter.empty and option not in (*written, "step_size"):
            problems.append(f"{name} must be given {option}, as in {name}:{option}={_example(option)}")
    if name == "autoattack" and "toward" in written:
        problems.append("autoattack aims at several classes by itself (use apgd, fab or square with toward)")
    spelled = ",".join(f"{option}={written[option]}" for option in sorted(written))
    toward = options.pop("toward", None)
    return Spec(f"{name}:{spelled}" if written else name, name, MappingProxyType(options), toward=toward)


def _example(option: str) -> str:
    return OPTIMIZERS[0] if option == "optimizer" else "20"


def _toward(text: str) -> str | int:
    if text in TOWARD:
        return text
    if text.isdecimal():
        return int(text)
    raise ValueError(f"one of {', '.join(TOWARD)}, or a class from 0")


def _read(text: str, annotation: str) -> Any:
    """A value as the type that a signature declares; ValueError says what it must be."""
    return _READERS[annotation](text)


def _integer(text: str) -> int:
    try:
        return operator.index(int(text))
    except ValueError:
        raise ValueError("an integer") from None


def _integer_or_none(text: str) -> int | None:
    return None if text.lower() == "none" else _integer(text)


def _number(text: str) -> float:
    try:
        return threats.number(text)
    except ValueError:
        raise ValueError("a number") from None


def _length(text: str) -> float:
    """A number, or a part of epsilon."""
    name, slash, part = text.partition("/")
    try:
        if name == "epsilon":
            return OfEpsilon(threats.number(f"1/{part}") if slash else 1.0)
        return threats.number(text)
    except ValueError:
        raise ValueError("a number, or a part of epsilon such as epsilon/10") from None


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def _boolean_or_word(text: str) -> bool | str:
    return text.lower() == "true" if text.lower() in ("true", "false") else text


def _loss(text: str) -> Callable[..., Any]:
    if text not in LOSSES:
        raise ValueError(f"one of {', '.join(LOSSES)}")
    return LOSSES[text]


def _named_loss(text: str) -> str | Callable[..., Any]:
    if text in LOSS_NAMES:
        return text
    try:
        return _loss(text)
    except ValueError:
        raise ValueError(f"one of {', '.join(dict.fromkeys((*LOSS_NAMES, *LOSSES)))}") from None


def _version(text: str) -> str | tuple[str, ...]:
    """A version of AutoAttack, or attacks with a plus between them."""
    return text if text in VERSIONS else tuple(text.split("+"))


def _optimizer(text: str) -> str:
    if text not in OPTIMIZERS:
        raise ValueError(f"one of {', '.join(OPTIMIZERS)}")
    return text


# By the annotation in an attack's signature.
_READERS: dict[str, Callable[[str], Any]] = {
    "int": _integer,
    "int | None": _integer_or_none,
    "float": _number,
    "Array | float": _length,
    "bool": _boolean,
    "bool | str": _boolean_or_word,
    "str": str,
    "LossFn": _loss,
    "str | LossFn": _named_loss,
    "str | Sequence[str]": _version,
    "optax.GradientTransformation": _optimizer,
}
