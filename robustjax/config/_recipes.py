"""Names such as "trades_fsr", which config files take after a colon: an objective and a defense."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from robustjax.types import Config, InputError, nearest

OBJECTIVES: dict[str, dict[str, Any]] = {
    "standard": {"name": "standard"},
    "at": {"name": "adversarial"},
    "trades": {"name": "trades", "beta": 6.0},
    "mart": {"name": "mart", "beta": 5.0},
}
DEFENSES = ("", "cas", "cifs", "fsr", "sns", "kwta", "sap", "meansparse")

# Config files of an earlier version -> what has taken their place.
RENAMED = {
    f"cifar10_{name}": f"cifar10:{name}"
    for name in (
        "at_cas", "at_cifs", "at_fsr", "at_sns", "trades", "trades_cas", "trades_cifs", "trades_fsr", "mart",
        "mart_cas", "mart_cifs", "mart_fsr",
    )
}  # fmt: skip


def apply_recipe(config: Config, name: str, *, file: str, defenses: Collection[str] = DEFENSES) -> None:
    """Sets objective and defense of a config by a name such as "at", "trades" or "mart_cas".

    Args:
        config: changed in place.
        name: an objective of "standard", "at", "trades" and "mart", alone or followed by _ and a defense.
        file: for the message.
        defenses: those that the file has, "" being none.

    Raises:
        InputError: there is no such name.

    Example:
        >>> from robustjax import config as config_lib
        >>> made = config_lib.cifar10()
        >>> config_lib.apply_recipe(made, "trades_fsr", file="mine.py")
        >>> made.objective.name, made.defense.name
        ('trades', 'fsr')
    """
    objective, _, defense = name.partition("_")
    if objective not in OBJECTIVES or defense not in defenses or name.endswith("_"):
        names = f"{', '.join(OBJECTIVES)}, alone or followed by _ and {', '.join(filter(None, defenses))}"
        every = [f"{one}_{other}".rstrip("_") for one in OBJECTIVES for other in defenses]
        raise InputError(f"{file} has {names}; got {name!r}{nearest(name, every)}")
    config.objective.update(OBJECTIVES[objective])
    config.defense.name = defense or None


def renamed(argument: str) -> str:
    """Today's spelling of a --config whose file an earlier version had; any other unchanged.

    Example:
        >>> renamed("cifar10_trades_fsr"), renamed("configs/cifar10_mart.py"), renamed("quickstart")
        ('cifar10:trades_fsr', 'cifar10:mart', 'quickstart')
    """
    path = Path(argument)
    shipped = path.name == argument or (path.parent == Path("configs") and not path.exists())
    return RENAMED.get(path.stem if path.suffix == ".py" else argument, argument) if shipped else argument
