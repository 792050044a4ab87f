"""The attacks of an evaluation as data: what runs, what it costs, and what may change without compiling it again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from robustjax import attacks
from robustjax.attacks import losses
from robustjax.attacks._autoattack import most_passes
from robustjax.types import InputError, LossFn

# The loss of C&W as the evaluated papers run it.
CW_MARGIN = partial(losses.margin, confidence=50.0)
# Where and with what a driver runs, none of it a setting of the attack.
GIVEN_TO_DRIVERS = ("batch_size", "sharding", "quicken", "progress")


class Protocol(NamedTuple):
    """An attack of an evaluation.

    Attributes:
        attack: ``(logits_fn, key, images, labels, **options) -> images``, compiled by the runner; None: clean accuracy.
        options: numbers that are arguments of the compiled program: attacks that differ in them alone compile once.
            Where ``epsilon`` is among them, it is also the ball that images are checked against.
        num_steps, num_restarts: of the attack; of the longest part of an ensemble.
        passes: forward passes that it costs for each example, at most, a gradient counting as two further ones.
        whole: whether it is a driver like ``attacks.autoattack``, which compiles by itself, takes many images at once,
            and further ``batch_size``, ``sharding`` and ``progress``.
    """

    attack: Callable[..., Any] | None
    options: Mapping[str, float] = MappingProxyType({})
    num_steps: int = 0
    num_restarts: int = 0
    passes: float = 0
    whole: bool = False


CLEAN = Protocol(None)


class Threat(NamedTuple):
    """What an adversary may do to an image: anything within a ball around it and inside the box of valid pixels.

    Attributes:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        epsilon: radius of the ball, in units of pixels.
        bounds: of the pixels.
    """

    norm: str
    epsilon: float
    bounds: tuple[float, float] = (0.0, 1.0)


def fgsm(threat: Threat, *, num_classes: int = 0, eot_samples: int = 0) -> Protocol:
    """One step of length epsilon, from the image itself."""
    options = {"epsilon": threat.epsilon}
    return _of_gradients(attacks.fgsm, threat, num_steps=1, eot_samples=eot_samples, settings={}, options=options)


def pgd(
    threat: Threat,
    *,
    num_steps: int,
    loss: LossFn = losses.cross_entropy,
    num_classes: int = 0,
    eot_samples: int = 0,
) -> Protocol:
    """Steps of epsilon / 10 from the image itself, as the evaluated papers share them; C&W is PGD on the margin."""
    return _of_gradients(
        attacks.pgd,
        threat,
        num_steps=num_steps,
        eot_samples=eot_samples,
        settings={"loss": loss, "random_start": False},
        options={"epsilon": threat.epsilon, "step_size": threat.epsilon / 10, "num_steps": num_steps},
    )


def autoattack(threat: Threat, *, num_classes: int, eot_samples: int = 0) -> Protocol:
    """AutoAttack ``standard``; ``rand`` for a stochastic network."""
    stochastic = eot_samples > 0
    settings = {"norm": threat.norm, "version": "rand" if stochastic else "standard", "eot_samples": eot_samples}
    return Protocol(
        # The network that an evaluation hands over is quickened, or not, for all of its attacks.
        _bound(attacks.autoattack, bounds=threat.bounds, quicken=False, **settings),
        {"epsilon": threat.epsilon},
        num_steps=100 if stochastic else 5000,  # of its longest part, which is Square's 5000 queries
        num_restarts=1,
        passes=most_passes(num_classes=num_classes, **settings),
        whole=True,
    )


# Name of an attack -> (threat, num_classes, eot_samples) -> its protocol. With `eot_samples` >= 1 the network is
# stochastic, and attacks average over so many draws.
PROTOCOLS = {
    "clean": lambda threat, **network: CLEAN,
    "fgsm": fgsm,
    "pgd20": partial(pgd, num_steps=20),
    "cw": partial(pgd, num_steps=30, loss=CW_MARGIN),
    "pgd100": partial(pgd, num_steps=100),
    "autoattack": autoattack,
}
# The attack that is a verdict of its own, by :func:`robustjax.evaluation.judge`.
ADAPTIVE = "adaptive"


def by_name(names: Sequence[str], threat: Threat, *, num_classes: int, eot_samples: int = 0) -> dict[str, Protocol]:
    """The attacks of an evaluation by name, in the given order; "adaptive" is none of them, but ``evaluation.judge``.

    Args:
        names: of :data:`PROTOCOLS`, or ``"adaptive"``.
        threat: that the network is to withstand.
        num_classes: K.
        eot_samples: draws over which attacks average a stochastic network; 0 for a deterministic one.

    Raises:
        InputError: naming every unknown attack and the known ones.
    """
    known = (*PROTOCOLS, ADAPTIVE)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(f"attacks must be some of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
    settings = {"num_classes": num_classes, "eot_samples": eot_samples}
    return {name: PROTOCOLS[name](threat, **settings) for name in names if name != ADAPTIVE}


def _of_gradients(
    attack: Callable[..., Any],
    threat: Threat,
    *,
    num_steps: int,
    eot_samples: int,
    settings: dict[str, Any],
    options: dict[str, float],
) -> Protocol:
    bound = _bound(attack, norm=threat.norm, bounds=threat.bounds, eot_samples=eot_samples, **settings)
    return Protocol(bound, options, num_steps, 1, passes=3 * num_steps * max(eot_samples, 1))


@functools.cache
def _bound(attack: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """The same object for the same settings, so that attacks which differ in traced options alone compile once."""
    return partial(attack, **settings)
