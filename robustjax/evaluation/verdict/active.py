"""The active test of a verdict: adversarial examples that are known to exist, for its own attacks to find.

Each example of a sample gets a head of its own in place of the classes (:class:`goals.Plant`), affine in the network's
logits. Its direction is random, and its boundary lies halfway between the two highest values that were found in the
ball without any gradient: one at a point that random points suggest together, the other mostly that of the best random
point. So the image is classified correctly, one known point of its ball is not, and an attack that cannot follow the
network's gradient hardly reaches it. After the active tests of Zimmermann et al. 2022 (arXiv 2206.13991), whose heads
are trained.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax.evaluation.verdict import red_flags
from robustjax.evaluation.verdict.goals import Plant
from robustjax.evaluation.verdict.red_flags import Flag
from robustjax.evaluation.verdict.relaxations import Relaxations, draws_of
from robustjax.evaluation.verdict.trial import Trial

# Random points of each ball at which the network is asked for its values.
NUM_POINTS = 256
# The least distance of the two highest values, in units of the largest: less is rounding.
LEAST_GAP = 1e-4


class Planted(NamedTuple):
    """Heads under which each of some examples has an adversarial example.

    Attributes:
        rows: of the examples, integers [n].
        plant: of all examples, [N, ...]; zero but for those. h is -1 at the image, and above 0 at ``points``.
        points: float32 [n, H, W, C], inside ball and box.
        num_tried: examples for which that was tried.
    """

    rows: np.ndarray
    plant: Plant
    points: np.ndarray
    num_tried: int

    def found(self, trial: Trial, rows: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Whether images of some of the examples are adversarial, bool, in a forward pass apart from any attack."""
        valid, _, logits = trial.classified(rows, points)
        with np.errstate(invalid="ignore"):
            height = np.sum(self.plant.weights[rows] * logits, axis=1) - self.plant.threshold[rows]
        return valid & (height > 0)


def plant(trial: Trial, rows: np.ndarray) -> Planted:
    """Plants an adversarial example into the ball of each of some examples, where the network's values allow it.

    Args:
        trial: the examples.
        rows: those to plant at.
    """
    generator = np.random.default_rng(np.asarray(jax.random.key_data(trial.key())))
    directions = generator.normal(size=(len(trial.images), trial.num_classes)).astype(np.float32)
    said = trial.random_points(rows, NUM_POINTS, weights=directions)
    candidates = np.asarray(said.highest), np.asarray(said.suggested)
    seen = [trial.classified(rows, points) for points in (trial.images[rows], *candidates)]
    with np.errstate(invalid="ignore"):  # of logits that are not finite
        values = np.stack([np.sum(directions[rows] * logits, axis=1, dtype=np.float64) for _, _, logits in seen])
    valid = np.stack([valid for valid, _, _ in seen])
    values[~valid | ~np.isfinite(values)] = -np.inf
    ranked = np.argsort(-values, axis=0, kind="stable")
    highest, second = (np.take_along_axis(values, ranked[i : i + 1], axis=0)[0] for i in range(2))
    fine = (ranked[0] > 0) & np.isfinite(second) & np.isfinite(values[0])
    highest, second, at_image = (np.where(fine, each, 0.0) for each in (highest, second, values[0]))
    threshold = 0.5 * (highest + second)
    fine &= highest - second > LEAST_GAP * np.maximum(np.abs(highest), np.abs(second))
    # In units of the way from the image to the boundary: whatever the scale of the logits, h is -1 at the image.
    unit = np.where(fine, threshold - at_image, 1.0)
    chosen = rows[fine]
    planted = Plant(np.zeros_like(directions), np.zeros(len(directions), np.float32))
    planted.weights[chosen] = directions[chosen] / unit[fine, None]
    planted.threshold[chosen] = (threshold / unit)[fine]
    points = np.where((ranked[0] == 1)[:, None, None, None], *candidates)[fine]
    return Planted(chosen, planted, points, len(rows))


def test(trial: Trial, planted: Planted, relaxations: Relaxations) -> np.ndarray:
    """Whether the verdict's gradient-based attacks find what was planted, bool [n].

    They are APGD on the network's own gradient, on that of the declared surrogate, and on that of the relaxed network,
    each with the steps and draws that it has in the verdict, on what those before it left.

    Args:
        trial: the examples.
        planted: of :func:`plant`.
        relaxations: of the network's program, for the relaxed network.
    """
    ways: list[dict[str, Any]] = [{"view": view} for view in ("direct", "surrogate") if view in trial.networks.views()]
    if relaxations.networks is not None:
        ways.append({"view": "direct", "networks": relaxations.networks, "num_draws": draws_of(trial)})
    found = np.zeros(len(planted.rows), bool)
    for way in ways:
        for loss in ("ce", "margin"):
            left = np.flatnonzero(~found)
            if len(left):
                points = trial.planted_apgd(planted.rows[left], planted.plant, loss=loss, **way)
                found[left] = planted.found(trial, planted.rows[left], points)
    return found


def flag(trial: Trial, rows: np.ndarray, relaxations: Relaxations) -> Flag:
    """The flag of planted adversarial examples, of the first of the examples ``rows``."""
    if not len(rows):
        return Flag.not_applicable("no example is classified correctly")
    planted = plant(trial, rows[: trial.budget.num_tried])
    if not len(planted.rows):
        return Flag.not_applicable("the outputs do not change at random points of the ball, so nothing can be planted")
    return red_flags.planted_examples_missed(test(trial, planted, relaxations))
