"""The image of each example that decides the worst case over attacks, kept for others to check."""

from __future__ import annotations

import numpy as np

from robustjax.evaluation.protocol.outcome import Outcome


class Deciding:
    """The images on which the network is right exactly where the worst case says so.

    Of an example that is not robust, the image that is misclassified in most draws: the image as it is, or the first
    attack's; of a robust one the last attack's.

    Attributes:
        images: float32 [N, H, W, C].
        predictions: int [N], the classes that the network sees in them.
        clean_predictions: int [N], those that it sees in the images as they are.
        robust: attack's name -> bool [N].
    """

    def __init__(self, clean_images: np.ndarray):
        self.clean_images = clean_images
        self.images = clean_images.copy()
        self.predictions = self.clean_predictions = np.zeros(0, int)
        self.robust: dict[str, np.ndarray] = {}
        self._right = np.full(len(clean_images), np.iinfo(np.int32).max)

    def add(self, name: str, outcome: Outcome) -> None:
        """Adds the outcome of an attack, which holds all of its images."""
        if not self.robust:
            self.predictions = self.clean_predictions = outcome.clean_predictions
        fewer = outcome.right < self._right
        takes = fewer | ((outcome.right == self._right) & (outcome.right == outcome.num_draws))
        by_clean = np.zeros(len(takes), bool) if outcome.by_clean is None else outcome.by_clean
        images = np.where(by_clean[:, None, None, None], self.clean_images, outcome.adversarial)
        self.images[takes] = images[takes]
        self.predictions = np.where(takes, outcome.deciding_predictions, self.predictions)
        self._right = np.minimum(self._right, outcome.right)
        self.robust[name] = outcome.robust
