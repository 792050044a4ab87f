"""Types and interfaces that the packages share.

Packages agree through the aliases below, whose names show the flow of data.
``B`` is the batch, ``H, W, C`` the height, width and channels of an image or of a feature map, ``K`` the number of
classes, ``S`` the number of guarded sites.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

# A ml_collections.ConfigDict: its keys are read as attributes, which its own annotations do not allow.
Config = Any

Array = jax.Array
AnyArray = jax.Array | np.ndarray  # on the devices or on the host
ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)  # either, and the same wherever it stands
Key = jax.Array  # a typed key: jax.random.key(seed)

# images -> outputs, or (images, key) -> outputs when the network is stochastic. The outputs are logits [B, K], or any
# pytree that the loss accepts.
LogitsFn = Callable[..., Any]

# (outputs, labels) -> one number per example, larger is worse for the network: attacks climb it.
LossFn = Callable[[Any, Array], Array]


# (view -> logits [B, K], labels [B]) -> [B]: an objective's loss, or what a training attack climbs. The views are the
# images that an update passes through the network, of ``robustjax.objectives.VIEWS``.
Term = Callable[[Mapping[str, Array], Array], Array]


class Attack(Protocol):
    """An attack whose options are bound: images in, images of the same shape out."""

    def __call__(self, logits_fn: LogitsFn, key: Key, images: Array, labels: Array) -> Array: ...


class Batch(NamedTuple, Generic[ArrayT]):
    """Images [B, H, W, C], integer labels [B], and a boolean mask [B] that is False where an example is padding."""

    images: ArrayT
    labels: ArrayT
    mask: ArrayT


class Outputs(NamedTuple):
    """What a network returns.

    Attributes:
        logits: float32 [B, K].
        auxiliary: logits of the guards' heads by kind ("probe", or "robust", "nonrobust", "recalibrated"), each
            [S, B, K]; empty without a defense that has heads.
        features: what the network passed on at each named site, [B, H, W, C] or [B, C].
    """

    logits: Array
    auxiliary: Mapping[str, Array]
    features: Mapping[str, Array]


class InputError(ValueError):
    """Something a user gave is wrong. The message is one line: what, where, expected, received, how to mend it.

    The command lines print it and exit with status 2; everything else is a defect and keeps its traceback.
    """

    @classmethod
    def raise_if(cls, what: str, problems: Sequence[str]) -> None:
        """Raises one error that lists all problems of a thing, if there are any."""
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise cls(f"{what} has {count}: {'; '.join(problems)}")


def nearest(value: object, valid: Iterable[str]) -> str:
    """A hint for a message about an unknown name: the known name that is most similar, or nothing.

    Example:
        >>> nearest("resnet81", ["small_cnn", "resnet18"]), nearest("x", ["small_cnn"])
        (" (nearest: 'resnet18')", '')
    """
    near = difflib.get_close_matches(str(value), list(valid), n=1)
    return f" (nearest: {near[0]!r})" if near else ""


class Guard(Protocol):
    """A defense at one named site of a network.

    ``labels`` are the true labels in training and None in inference. Returns the features that the network goes on with
    (same shape and dtype) and the logits [B, K] of the guard's own heads by kind, empty when it has none. A stochastic
    guard draws from the rng stream "defense".
    """

    def __call__(
        self, features: Array, labels: Array | None = None, train: bool = False
    ) -> tuple[Array, Mapping[str, Array]]: ...


class Guards(Protocol):
    """Chooses guards for a network that knows its sites and no defense, as :class:`robustjax.defenses.Defense` does."""

    def guards(self, sites: Mapping[str, tuple[str, ...]], num_classes: int) -> Mapping[str, Any]:
        """Site -> guard module, for a network's groups of sites: "activation", "preactivation", "late", "final" and
        others. Where several guards are at a site, in this order, their keys are "site", "site+1", "site+2"."""
        ...
