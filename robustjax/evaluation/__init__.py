"""How robust is this network really: attacks over a data set, verdicts, and records that say under which conditions."""

from robustjax.evaluation.adaptive import Hints
from robustjax.evaluation.judge import Verdict, judge
from robustjax.evaluation.red_flags import Flag

__all__ = ["Flag", "Hints", "Verdict", "judge"]
