"""Adversarial robustness of image classifiers in JAX: attacks, robust training, honest evaluation."""

from robustjax.runtime import signals

signals.interrupts_end_commands()  # before the rest, which imports jax; in no process but that of a command

from robustjax import attacks, defenses, objectives  # noqa: E402
from robustjax.version import __version__  # noqa: E402

__all__ = ["__version__", "attacks", "defenses", "objectives"]
