"""Compiles the training step of a run for a TPU slice without having one: does it fit, and how long is a step at least?

:func:`plan` needs libtpu, which compiles on any machine, but no TPU. ``python -m robustjax.train --plan=v5e-16`` prints
its result. ``programs.py`` compiles, ``counts.py`` counts where nothing is compiled, and ``page.py`` turns both into
the figures that are printed.
"""

from robustjax.planning._plan import plan
from robustjax.planning.chips import CHIPS, Chip, Slice, parse
from robustjax.planning.page import Plan

__all__ = ["CHIPS", "Chip", "Plan", "Slice", "parse", "plan"]
