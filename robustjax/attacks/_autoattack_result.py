"""What AutoAttack returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Self

import jax
import numpy as np

from robustjax.attacks.engine.verify import Acceptance


@partial(jax.tree_util.register_dataclass, data_fields=["images", "robust", "by_attack", "acceptance"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AutoAttackResult:
    """The result of AutoAttack, which unpacks into ``images, robust, by_attack``.

    Attributes:
        images: [N, H, W, C] in the dtype given, adversarial where one was found, else as given.
        robust: bool [N], correctly classified as given, and no attack succeeded.
        by_attack: attack's name -> bool [N], what was robust after it and all before it, in their order.
        acceptance: of a stochastic network, "clean" and "worst_case" (the images of the strongest candidates) ->
            expected accuracy, that of the majority and that of the worst draw, with intervals; else empty. Not one of
            the three that unpack.

    Example:
        >>> images, robust, by_attack = AutoAttackResult(np.zeros((1, 2, 2, 1)), np.array([True]), {})
        >>> robust
        array([ True])
    """

    images: np.ndarray
    robust: np.ndarray
    by_attack: dict[str, np.ndarray]
    acceptance: Mapping[str, Acceptance] = dataclasses.field(default_factory=dict)

    def _three(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        return self.images, self.robust, self.by_attack

    def __iter__(self) -> Iterator[Any]:
        return iter(self._three())

    def __getitem__(self, index: Any) -> Any:
        return self._three()[index]

    def __len__(self) -> int:
        return len(self._three())

    def _replace(self, **fields: Any) -> Self:
        """With other values in these fields, as of a named tuple."""
        return dataclasses.replace(self, **fields)

    def __str__(self) -> str:
        """What is left after each attack, in a line."""
        count = len(self.robust)
        if not count:
            return "no image"
        left = ", ".join(f"{np.mean(robust):.2%} after {name}" for name, robust in self.by_attack.items())
        return f"{np.mean(self.robust):.2%} of {count:,} images are robust: {left}"

    def __repr__(self) -> str:
        """In short: arrays of images would fill a screen many times."""
        return f"<{type(self).__name__}: {self}>"
