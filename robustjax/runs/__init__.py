"""A run on disk: its config, its checkpoints, and the lock that allows one process to write to it.

:func:`train` trains a run and :func:`load` reads its network. Only ``checkpoint.py`` reads and writes checkpoints, also
when a run resumes (``training/loop.py``) or starts from the weights of another (``warm_start.py``).
"""

from robustjax.runs._load import Run, load
from robustjax.runs._train import train

__all__ = ["Run", "load", "train"]
