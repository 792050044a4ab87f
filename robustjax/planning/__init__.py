"""A run's training step compiled for TPUs that are not there: whether it fits, and how long a step takes at least.

:func:`plan` needs libtpu, which compiles for a TPU on any machine, and no TPU. ``python -m robustjax.train
--plan=v5e-16`` prints what it returns.
"""

from robustjax.planning._plan import plan
from robustjax.planning.chips import CHIPS, Chip, Slice, parse
from robustjax.planning.page import Plan

__all__ = ["CHIPS", "Chip", "Plan", "Slice", "parse", "plan"]
