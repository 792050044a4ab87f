"""Measurements inside networks, their plots, and the report page.

Measurements are pure functions of arrays and work on any network that returns its features: ``channels`` (CAS),
``relevance`` (CIFS), ``sensitivity`` and ``restoration`` (SNS), ``separation`` (FSR), ``calibration`` (SAP),
``by_class``, ``curve``, ``surface`` and ``input_gradients``. Each returns the scalars that decide a paper's claim, with
intervals. :mod:`plots` draws them. ``analyse`` does all of it for runs, as ``python -m robustjax.analysis`` does.
"""

from robustjax.analysis import plots
from robustjax.analysis._analyse import Analysis, analyse
from robustjax.analysis._by_class import ByClass, by_class
from robustjax.analysis._calibration import Calibration, calibration
from robustjax.analysis._channels import Channels, channels
from robustjax.analysis._curve import Curve, curve
from robustjax.analysis._landscape import InputGradients, Surface, input_gradients, surface
from robustjax.analysis._observe import Observed, attacked, observe
from robustjax.analysis._relevance import Relevance, relevance
from robustjax.analysis._sensitivity import Restoration, Sensitivity, restoration, sensitivity
from robustjax.analysis._separation import Separation, fsr_masks, separation
from robustjax.analysis.estimate import Estimate, bootstrap, proportion

__all__ = [
    "Analysis",
    "ByClass",
    "Calibration",
    "Channels",
    "Curve",
    "Estimate",
    "InputGradients",
    "Observed",
    "Relevance",
    "Restoration",
    "Sensitivity",
    "Separation",
    "Surface",
    "analyse",
    "attacked",
    "bootstrap",
    "by_class",
    "calibration",
    "channels",
    "curve",
    "fsr_masks",
    "input_gradients",
    "observe",
    "plots",
    "proportion",
    "relevance",
    "restoration",
    "sensitivity",
    "separation",
    "surface",
]
