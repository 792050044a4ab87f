"""The keys of a config by name, and the one that a wrong name most likely meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

from robustjax.types import Config


def keys(config: Config, section: str = "") -> Iterator[tuple[str, type]]:
    """Every key as "section.key", with its type."""
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from keys(config[key], f"{section}{key}.")
        else:
            yield f"{section}{key}", config.get_type(key)


def nearest_key(path: str, keys: Iterable[str]) -> str:
    """The key that was most likely meant: the one with the most similar last part, preferably in the given section.

    Example:
        >>> nearest_key("epochs", ["seed", "train.num_epochs", "validation.every_epochs"])
        'train.num_epochs'
    """
    section, _, last = path.rpartition(".")

    def likeness(key: str) -> tuple[float, float]:
        its_section, _, its_last = key.rpartition(".")
        same_section = 0.25 * (section == its_section and section != "")
        return _likeness(last, its_last) + same_section, _likeness(path, key)

    return max(keys, key=likeness)


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
