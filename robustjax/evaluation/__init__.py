"""Evaluations of networks under attack (:func:`evaluate`) and verdicts on their robustness (:func:`judge`)."""

from robustjax.evaluation._evaluate import evaluate
from robustjax.evaluation._evaluate_run import evaluate_run
from robustjax.evaluation._options import Options
from robustjax.evaluation._result import Evaluation
from robustjax.evaluation.protocol.threats import Threat
from robustjax.evaluation.verdict import red_flags
from robustjax.evaluation.verdict._judge import Verdict, judge
from robustjax.evaluation.verdict.hints import Hints
from robustjax.evaluation.verdict.red_flags import Flag

__all__ = [
    "Evaluation",
    "Flag",
    "Hints",
    "Options",
    "Threat",
    "Verdict",
    "evaluate",
    "evaluate_run",
    "judge",
    "red_flags",
]
