"""Every key of a run, with its default and meaning; and ``validate``, which finds every mistake before anything starts.

A config file in ``configs/`` calls ``base()`` and assigns what differs. The result is locked: an unknown key is an
error that names the nearest one, and a value keeps its type.
"""

from robustjax.config._check import defense_options, problems, validate
from robustjax.config._given import check_overrides, from_plain, plain
from robustjax.config._presets import base, cifar10, digits, imagenet, mnist, speedrun
from robustjax.config._recipes import apply_recipe, renamed

__all__ = [
    "apply_recipe",
    "base",
    "check_overrides",
    "cifar10",
    "defense_options",
    "digits",
    "from_plain",
    "imagenet",
    "mnist",
    "plain",
    "problems",
    "renamed",
    "speedrun",
    "validate",
]
