"""How robust is this network really: attacks over a data set, verdicts, and records that say under which conditions."""

from robustjax.evaluation.verdict import red_flags
from robustjax.evaluation.verdict._judge import Verdict, judge
from robustjax.evaluation.verdict.hints import Hints
from robustjax.evaluation.verdict.red_flags import Flag

__all__ = ["Flag", "Hints", "Verdict", "judge", "red_flags"]
