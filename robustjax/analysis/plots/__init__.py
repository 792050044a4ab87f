"""The figures of the papers, of one or several networks: each returns a matplotlib ``Figure``.

Nothing here touches matplotlib's global state, so figures can be made in any process and any thread.
"""

from robustjax.analysis._canvas import save
from robustjax.analysis.plots._features import channels, relevance, restoration, sensitivity, separation
from robustjax.analysis.plots._predictions import by_class, calibration, curves, input_gradients, surfaces

__all__ = [
    "by_class",
    "calibration",
    "channels",
    "curves",
    "input_gradients",
    "relevance",
    "restoration",
    "save",
    "sensitivity",
    "separation",
    "surfaces",
]
