"""A run on disk: its config, its checkpoints, and who may write to it.

:func:`load` reads the network of a checkpoint; checkpoints are read and written by ``checkpoint.py`` alone, also where
a run goes on (``training/loop.py``) or begins with the weights of another (``warm_start.py``).
"""

from robustjax.runs._load import Run, load
from robustjax.runs._train import train

__all__ = ["Run", "load", "train"]
