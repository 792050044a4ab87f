"""Reads configs from flags and from the config.json of a run, and checks the names and types of their keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from robustjax.config._check import problems, validate
from robustjax.config._keys import keys, nearest_key
from robustjax.config._presets import base
from robustjax.types import Config, InputError


def from_plain(stored: Any, *, source: object) -> Config:
    """A config from its plain data. Keys and sections that are missing have their defaults.

    That way the runs of an earlier version, which lack newer keys, go on and are evaluated.

    Args:
        stored: nested dicts, as :func:`plain` returns them.
        source: where they come from, for the message.

    Returns:
        A locked config like that of :func:`base`.

    Raises:
        InputError: one line that lists every problem.

    Example:
        >>> from_plain({"attack": {"epsilon": 0.1}}, source="config.json").attack.epsilon
        0.1
    """
    config = base()
    misfits = list(_fill(config, stored))
    if misfits:
        raise InputError(f"{source} is not a config of this version: {'; '.join([*misfits, *problems(config)])}")
    validate(config)
    return config


def plain(config: Config) -> dict[str, Any]:
    """A config as plain data for JSON: dicts, lists, numbers, strings, None.

    Example:
        >>> plain(base())["optimizer"]["boundaries"]
        [75.0, 90.0]
    """
    return json.loads(config.to_json_best_effort())


def check_overrides(
    arguments: Sequence[str], others: Callable[[list[str]], Iterable[str]] = lambda rest: ()
) -> list[str]:
    """Checks every ``--config.KEY=VALUE`` of a command line, before any of them is used.

    ml_collections would name only the first wrong one, and knows no fractions.

    Args:
        arguments: the whole command line.
        others: the command line without its wrong overrides -> what else is wrong with it; asked where some are wrong,
            so that all is said at once.

    Returns:
        The same, with fractions, as in ``--config.attack.epsilon=8/255``, as the numbers that they are.

    Raises:
        InputError: one line that lists every unknown key, with the nearest, every value of a wrong type, and what
            ``others`` finds.

    Example:
        >>> check_overrides(["--config.attack.num_stepz=3", "--config.epochs=5", "--config.seed=one"])
        Traceback (most recent call last):
        ...
        robustjax.types.InputError: command line has 3 problems: --config.attack.num_stepz is unknown (nearest:
        --config.attack.num_steps); --config.epochs is unknown (nearest: --config.train.num_epochs); --config.seed must
        be of type int, got 'one'
        >>> check_overrides(["--config.attack.epsilon=1/4"])
        ['--config.attack.epsilon=0.25']
    """
    numbers = list(map(_with_number, arguments))
    wrong = list(_wrong_overrides(numbers))
    if wrong:
        left_out = {i for places, _ in wrong for i in places}
        rest = [argument for i, argument in enumerate(numbers) if i not in left_out]
        InputError.raise_if("command line", [*(problem for _, problem in wrong), *others(rest)])
    return numbers


def _with_number(argument: str) -> str:
    """An override by a fraction as one by a number; anything else as it is."""
    override = re.fullmatch(r"(--?config\.([^=]+)=)([\d.]+)/([\d.]+)", argument)
    if override is None or dict(keys(base())).get(override[2]) is not float:
        return argument
    try:
        return f"{override[1]}{float(override[3]) / float(override[4])!r}"
    except (ValueError, ZeroDivisionError):
        return argument  # which is refused as it was written


def _wrong_overrides(arguments: list[str]) -> Iterator[tuple[range, str]]:
    """The places of each override that is wrong, of its value too where that is the next argument, and the problem."""
    parsers = {int: flags.IntegerParser(), float: flags.FloatParser(), bool: flags.BooleanParser()}
    types = dict(keys(base()))
    sections = {path.rpartition(".")[0] for path in types}
    for i, argument in enumerate(arguments):
        override = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if override is None:
            continue
        negated, path, value = override.groups()
        known, kind = path in types or path in sections, types.get(path)
        places = range(i, i + 1)
        if value is None and kind is not bool and i + 1 < len(arguments):  # `--config.seed 1`
            value = arguments[i + 1]
            if known or not value.startswith("-"):
                places = range(i, i + 2)
        if not known:
            yield places, f"--config.{path} is unknown (nearest: --config.{nearest_key(path, types)})"
            continue
        if kind is None or kind not in parsers or value is None or negated:
            continue
        try:
            parsers[kind].parse(value)
        except (TypeError, ValueError):
            yield places, f"--config.{path} must be of type {kind.__name__}, got {value!r}"


def _fill(config: Config, stored: Any, section: str = "") -> Iterator[str]:
    """Puts what JSON holds in its places; yields what has none, or is of another type."""
    if not isinstance(stored, dict):
        yield f"{section or 'it'} must be an object, got {_short(stored)}"
        return
    for key, value in stored.items():
        path = f"{section}.{key}" if section else key
        if key not in config:
            known = [name for name, _ in keys(base())]
            # A whole section that is unknown may be a misspelt one.
            near = nearest_key(path, {name.partition(".")[0] for name in known} if type(value) is dict else known)
            yield f"{path} is unknown (nearest: {near})"
        elif isinstance(config[key], ConfigDict):
            yield from _fill(config[key], value, path)
        else:
            kind = config.get_type(key)
            if isinstance(value, list) and kind is tuple:
                value = tuple(value)  # which JSON does not have
            elif type(value) is int and kind is float:
                value = float(value)
            if type(value) is kind or (value is None and config[key] is None):
                config[key] = value
            else:
                yield f"{path} must be of type {kind.__name__}, got {_short(value)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
