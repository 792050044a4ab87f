"""The strongest adversarial images of each example, kept while attacks go on."""

from __future__ import annotations

import numpy as np


class StrongestImages:
    """The strongest valid images of each example so far, each of another attack.

    Attributes:
        points: float32 [C, N, H, W, C'].
        share: float32 [C, N], of draws in which they are misclassified; -1 where there is none yet.
        attack: object [C, N], the attack's name.
    """

    def __init__(self, images: np.ndarray, number: int):
        self.points = np.repeat(images[None], number, axis=0)
        self.share = np.full((number, len(images)), -1.0, np.float32)
        self.attack = np.full((number, len(images)), None, object)

    def add(self, name: str, rows: np.ndarray, points: np.ndarray, share: np.ndarray) -> None:
        """Keeps images that are misclassified in more draws than the weakest, or than the same attack's; ties stay."""
        same = self.attack[:, rows] == name
        slots = np.where(same.any(axis=0), same.argmax(axis=0), self.share[:, rows].argmin(axis=0))
        better = share > self.share[slots, rows]
        places = slots[better], rows[better]
        self.points[places], self.share[places], self.attack[places] = points[better], share[better], name

    def strongest(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each example the image misclassified in most draws [N, H, W, C], and its attack's name [N]."""
        places = self.share.argmax(axis=0), np.arange(self.share.shape[1])
        return self.points[places], self.attack[places]
