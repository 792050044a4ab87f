"""The strongest points that several attacks have found, a few for each image."""

from __future__ import annotations

import numpy as np


class Candidates:
    """Points ranked by (share of draws misclassified, loss), the strongest few of each image over all attacks.

    Attributes:
        points: [R, N, ...], as the images are where there is no candidate.
        share: float32 [R, N], -1 where there is none.
        loss: float32 [R, N].
        attack: int [R, N], the number of the attack that found it.
    """

    def __init__(self, images: np.ndarray, count: int):
        self.points = np.stack([images] * count)
        self.share = np.full((count, len(images)), -1.0, np.float32)
        self.loss = np.full((count, len(images)), -np.inf, np.float32)
        self.attack = np.full((count, len(images)), -1)

    def add(self, indices: np.ndarray, points: np.ndarray, share: np.ndarray, loss: np.ndarray, *, attack: int) -> None:
        """Takes in points of these images, each in place of its image's weakest if it is stronger."""
        weakest = np.lexsort((self.loss[:, indices], self.share[:, indices]), axis=0)[0]
        old_share, old_loss = self.share[weakest, indices], self.loss[weakest, indices]
        stronger = (share > old_share) | ((share == old_share) & (loss > old_loss))
        at = weakest[stronger], indices[stronger]
        self.points[at], self.share[at], self.loss[at] = points[stronger], share[stronger], loss[stronger]
        self.attack[at] = attack
