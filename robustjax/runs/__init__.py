"""A run on disk: its config, its checkpoints, and who may write to it."""

from robustjax.runs._load import Run, load
from robustjax.runs._train import train

__all__ = ["Run", "load", "train"]
