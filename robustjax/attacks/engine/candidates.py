"""The strongest points that an ensemble has found, a few for each image."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np


class Strongest(NamedTuple):
    """One point for each image.

    Attributes:
        points: [N, ...], the image itself where no attack found anything.
        share: float32 [N], of draws in which it is misclassified; -1 where there is none.
        attack: object [N], the name of the attack that found it, or None.
    """

    points: np.ndarray
    share: np.ndarray
    attack: np.ndarray


class Candidates:
    """Points ranked by (share of draws misclassified, loss), the strongest few of each image over all attacks.

    A stochastic network misclassifies something by chance if it is asked often enough, so that the more attacks there
    are, the worse the network looks by the draws on which they were checked. So only a few points are kept,
    :meth:`choose` ranks them on draws of which no attack has seen any, and :meth:`strongest` names one point of each
    image, which other draws, common to all, then decide on. More attacks do not mean more chances.

    Attributes:
        images: [N, ...], as they were.
        points: [R, N, ...], as the images are where there is no candidate.
        share: float32 [R, N], -1 where there is none.
        loss: float32 [R, N].
        attack: object [R, N], the name of the attack that found it, or None.
    """

    def __init__(self, images: np.ndarray, count: int):
        self.images, self.points = images, np.stack([images] * count)
        self.share = np.full((count, len(images)), -1.0, np.float32)
        self.loss = np.full((count, len(images)), -np.inf, np.float32)
        self.attack = np.full((count, len(images)), None, object)

    def add(
        self, attack: str, rows: np.ndarray, points: np.ndarray, share: np.ndarray, loss: np.ndarray | None = None
    ) -> None:
        """Takes in points of these images, each in place of its image's weakest if it is stronger; ties stay."""
        loss = np.zeros(len(rows), np.float32) if loss is None else loss
        weakest = np.lexsort((self.loss[:, rows], self.share[:, rows]), axis=0)[0]
        old_share, old_loss = self.share[weakest, rows], self.loss[weakest, rows]
        stronger = (share > old_share) | ((share == old_share) & (loss > old_loss))
        at = weakest[stronger], rows[stronger]
        self.points[at], self.share[at], self.loss[at] = points[stronger], share[stronger], loss[stronger]
        self.attack[at] = attack

    def choose(self, share_of: Callable[[np.ndarray], np.ndarray]) -> None:
        """Ranks what was kept by the share of other draws, ``share_of(points [N, ...]) -> [N]``."""
        shares = np.stack([share_of(points) for points in self.points]).astype(np.float32)
        self.share = np.where(self.share < 0, np.float32(-1.0), shares)

    def strongest(self, attacks: Collection[str] | None = None) -> Strongest:
        """The strongest point of each image, of those that these attacks found; by default, that any did."""
        known = np.ones_like(self.share, bool) if attacks is None else np.isin(self.attack, list(attacks))
        share = np.where(known, self.share, np.float32(-1.0))
        # Of equals the first, which a stable sort of the reversed rows has last.
        place = len(share) - 1 - np.lexsort((self.loss[::-1], share[::-1]), axis=0)[-1]
        at = place, np.arange(share.shape[1])
        none = share[at] < 0
        points = np.where(none.reshape(none.shape + (1,) * (self.images.ndim - 1)), self.images, self.points[at])
        found_by = self.attack[at].astype(object)
        found_by[none] = None
        return Strongest(points, share[at], found_by)
