"""The outcome of an attack on images, of a batch and as a whole."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robustjax.attacks.engine import verify


class Unit(NamedTuple):
    """The outcome of a protocol on a batch, or of a driver on a chunk of several.

    Attributes:
        arrays: by name, all but ``adversarial`` with the examples leading: ``right`` and ``clean_right``, in how many
            draws the network is right after and before the attack; ``predictions`` and ``clean_predictions``, the most
            frequent; ``nonfinite`` and ``clean_nonfinite``, whether logits are NaN or infinite; ``adversarial``, those
            of the data set's first images that are here; of an ensemble ``by_attack.NAME``; and of an attack that aims
            at classes ``targets`` (the last), ``hits`` and ``tries``.
        seconds: without compiling what the runner compiles.
    """

    arrays: dict[str, np.ndarray]
    seconds: float


class Outcome(NamedTuple):
    """The outcome of an attack on a data set.

    Attributes:
        right: int [N], in how many draws the network is right on the image as it is and after the attack, whichever
            is fewer. A deterministic network is asked once.
        num_draws: how often it was asked.
        clean_predictions, predictions: int [N], the classes before and after the attack, most frequent over the draws.
        adversarial: the first images, float32 [min(N, num_kept), H, W, C].
        by_attack: of an ensemble, its attacks' names -> bool [N], what it held for robust after each.
        seconds: of all batches, whenever they ran, without compiling what the runner compiles.
        by_clean: bool [N], whether the image as it is decides ``right``: it is misclassified in more draws.
        nonfinite, clean_nonfinite: bool [N], whether logits are NaN or infinite, after and before the attack.
        targets: of an attack that aims at classes, int [N], the class aimed at last; None of any other.
        tries, hits: int [N], how many wrong classes it aimed at, and at how many the prediction arrived.
    """

    right: np.ndarray
    num_draws: int
    clean_predictions: np.ndarray
    predictions: np.ndarray
    adversarial: np.ndarray
    by_attack: dict[str, np.ndarray]
    seconds: float
    by_clean: np.ndarray | None = None
    nonfinite: np.ndarray | None = None
    clean_nonfinite: np.ndarray | None = None
    targets: np.ndarray | None = None
    tries: np.ndarray | None = None
    hits: np.ndarray | None = None

    @property
    def robust(self) -> np.ndarray:
        """bool [N]: not misclassified, by the majority of the draws."""
        return ~verify.is_misclassified(1.0 - self.right / self.num_draws)

    @property
    def deciding_predictions(self) -> np.ndarray:
        """int [N], the class of the image that decides ``right``: the attack's, or the image as it is."""
        if self.by_clean is None:
            return self.predictions
        return np.where(self.by_clean, self.clean_predictions, self.predictions)
