"""The attacks of an evaluation as data: the function, its cost, and the options that are traced arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax import attacks
from robustjax.attacks import losses
from robustjax.attacks._autoattack import attack_names, most_passes
from robustjax.evaluation.protocol import specs, wrappers
from robustjax.evaluation.protocol.specs import Spec
from robustjax.evaluation.protocol.threats import Threat
from robustjax.types import InputError, LogitsFn, LossFn

# The loss of C&W as the evaluated papers run it.
CW_MARGIN = partial(losses.margin, confidence=50.0)
# Where and with what a driver runs, none of it a setting of the attack.
GIVEN_TO_DRIVERS = ("batch_size", "sharding", "quicken", "progress")
# Options that are arguments of what is compiled; of the others a change compiles anew.
TRACED = {
    "pgd": ("step_size", "num_steps"),
    "multi_targeted": ("step_size", "num_steps"),
    "optimized_pgd": ("step_size",),
}
# Attacks that look for the nearest image wherever it is.
MINIMUM_NORM = ("cw_l2", "deepfool")


class Protocol(NamedTuple):
    """An attack of an evaluation.

    Attributes:
        attack: ``(logits_fn, key, images, labels, **options) -> images``, compiled by the runner; None: the images are
            there, those of the data set (clean accuracy) or ``images``.
        options: numbers that are arguments of the compiled program: attacks that differ in them alone compile once.
            Where ``epsilon`` is among them, it is also the ball that images are checked against.
        num_steps, num_restarts: of the attack; of the longest part of an ensemble.
        passes: forward passes that it costs for each example, at most, a gradient counting as two further ones.
        whole: whether it is a driver like ``attacks.autoattack``, which compiles by itself, takes many images at once,
            and further ``batch_size``, ``sharding`` and ``progress``.
        toward: the classes that it aims at, as in :func:`wrappers.toward`; ``attack`` then returns them as well, and
            for "all" runs ``rounds`` times with another ``offset``. None: any wrong class.
        rounds: how often it runs.
        images: float32 or uint8 [N, H, W, C], others' adversarial images, to be verified.
        source: the deterministic network that is attacked; None: the one that is evaluated, by which images are
            verified in any case.
        about: what records say of given images and of a source.
    """

    attack: Callable[..., Any] | None
    options: Mapping[str, float] = MappingProxyType({})
    num_steps: int = 0
    num_restarts: int = 0
    passes: float = 0
    whole: bool = False
    toward: str | int | None = None
    rounds: int = 1
    images: np.ndarray | None = None
    source: LogitsFn | None = None
    about: Mapping[str, Any] = MappingProxyType({})

    @property
    def changes_images(self) -> bool:
        """Whether the images that are classified are others than the data set's."""
        return self.attack is not None or self.images is not None


CLEAN = Protocol(None)


def pgd(
    threat: Threat,
    *,
    num_steps: int,
    loss: LossFn = losses.cross_entropy,
    eot_samples: int = 0,
) -> Protocol:
    """Steps of epsilon / 10 from the image itself, as the evaluated papers share them; C&W is PGD on the margin."""
    settings = {"norm": threat.norm, "bounds": threat.bounds, "eot_samples": eot_samples, "loss": loss}
    return Protocol(
        _bound(attacks.pgd, random_start=False, **settings),
        {"epsilon": threat.epsilon, "step_size": threat.epsilon / 10, "num_steps": num_steps},
        num_steps=num_steps,
        num_restarts=1,
        passes=3 * num_steps * max(eot_samples, 1),
    )


# The attacks whose every option is settled: name -> (threat, eot_samples) -> protocol. With `eot_samples`
# >= 1 the network is stochastic, and attacks average over so many draws.
PROTOCOLS = {
    "clean": lambda threat, eot_samples: CLEAN,
    "pgd20": partial(pgd, num_steps=20),
    "cw": partial(pgd, num_steps=30, loss=CW_MARGIN),
    "pgd100": partial(pgd, num_steps=100),
}
# The attack that is a verdict of its own, by :func:`robustjax.evaluation.judge`.
ADAPTIVE = "adaptive"


def of_specs(chosen: Sequence[Spec], threat: Threat, *, num_classes: int, eot_samples: int = 0) -> dict[str, Protocol]:
    """The attacks that are named, under a threat; those without a protocol, as "adaptive", are left out.

    Args:
        chosen: attacks with their options, of :func:`specs.parse`.
        threat: that the network is to withstand.
        num_classes: K.
        eot_samples: draws over which attacks average a stochastic network; 0 for a deterministic one.

    Returns:
        Their spelling -> protocol, in the order given.

    Raises:
        InputError: naming every value that an attack refuses.
    """
    found, problems = {}, []
    for spec in chosen:
        try:
            if spec.name in PROTOCOLS:
                found[spec.spelling] = PROTOCOLS[spec.name](threat, eot_samples=eot_samples)
            elif spec.name in specs.ATTACKS:
                found[spec.spelling] = _public(spec, threat, num_classes=num_classes, eot_samples=eot_samples)
        except InputError as error:
            problems.append(f"{spec.spelling}: {error}")
    if problems:
        raise InputError("; ".join(problems))
    return found


def _public(spec: Spec, threat: Threat, *, num_classes: int, eot_samples: int) -> Protocol:
    """A public attack with the options that were asked for, under a threat.

    Raises:
        InputError: the attack refuses an option or the norm, or an option is for other networks.
    """
    function = specs.ATTACKS[spec.name]
    parameters = specs.options_of(spec.name)
    options = {name: value * threat.epsilon if isinstance(value, specs.OfEpsilon) else value
               for name, value in spec.options.items()}  # fmt: skip
    if "eot_samples" in options and not (eot_samples and options["eot_samples"]):
        kind = "stochastic" if eot_samples else "deterministic"
        raise InputError(f"eot_samples must be {'from 1' if eot_samples else 'left out'} for a {kind} network")
    if isinstance(spec.toward, int) and spec.toward >= num_classes:
        raise InputError(f"toward must be a class 0 to {num_classes - 1}, got {spec.toward}")
    if "step_size" in parameters:
        options.setdefault("step_size", threat.epsilon / 10)
    if "eot_samples" in parameters and eot_samples:
        options.setdefault("eot_samples", eot_samples)
    signature = specs.signature(spec.name)
    norm = {"norm": threat.norm} if "norm" in signature else {}
    if spec.name == "autoattack":
        return _ensemble(options, threat, num_classes)
    if spec.name == "optimized_pgd":
        function = wrappers.by_optimizer
    _refuse(function, threat, {**norm, **options}, minimum_norm=spec.name in MINIMUM_NORM)
    traced = {name: options.pop(name) for name in TRACED.get(spec.name, ()) if name in options}
    draws = options.pop("eot_samples", 0)
    if spec.name in MINIMUM_NORM:
        unbounded = _bound(function, **norm, **options)
        base = _bound(wrappers.within, base=unbounded, norm=threat.norm, bounds=threat.bounds)
    else:
        base = _bound(function, **norm, bounds=threat.bounds, **options)
    if spec.toward is None:
        attack = _bound(base, eot_samples=draws) if draws else base
    else:
        own = "targeted" in signature and options.get("loss") != "dlr-targeted"
        aim = {"classes": spec.toward, "own": own, "eot_samples": draws}
        attack = _bound(wrappers.toward, base=base, **aim)
    every: dict[str, Any] = {name: each.default for name, each in parameters.items()} | options | traced
    rounds = num_classes - 1 if spec.toward == "all" else 1
    return Protocol(
        attack,
        {"epsilon": threat.epsilon, **traced},
        num_steps=_num_steps(spec.name, every),
        num_restarts=every.get("num_restarts", 1),
        passes=rounds * max(draws, 1) * _passes(spec.name, every, num_classes),
        toward=spec.toward,
        rounds=rounds,
    )


def _ensemble(options: dict[str, Any], threat: Threat, num_classes: int) -> Protocol:
    """AutoAttack: ``rand`` for a stochastic network, else ``standard``, unless another version is asked for."""
    draws = options.get("eot_samples", 0)
    version = options.setdefault("version", "rand" if draws else "standard")
    if version == "rand" and not draws:
        raise InputError("version must not be rand for a deterministic network, whose draws are all the same")
    _refuse(attacks.autoattack, threat, {"norm": threat.norm, **options})
    return Protocol(
        # The network that an evaluation hands over is quickened, or not, for all of its attacks.
        _bound(attacks.autoattack, norm=threat.norm, bounds=threat.bounds, quicken=False, **options),
        {"epsilon": threat.epsilon},
        num_steps=5000 if "square" in attack_names(version) else 100,  # of its longest part, Square's queries
        num_restarts=1,
        passes=most_passes(norm=threat.norm, version=version, num_classes=num_classes, eot_samples=draws),
        whole=True,
    )


def _refuse(
    function: Callable[..., Any], threat: Threat, options: dict[str, Any], *, minimum_norm: bool = False
) -> None:
    """Has an attack itself check its options, on no image at all: it then returns before it calls a network."""
    images, labels = np.zeros((0, 1, 1, 1), np.float32), np.zeros(0, np.int32)
    ball = {} if minimum_norm else {"epsilon": threat.epsilon}
    function(lambda points, *keys: points, jax.random.key(0), images, labels, **ball, **options)


def _num_steps(name: str, options: Mapping[str, Any]) -> int:
    if name == "fgsm":
        return 1
    return options["num_queries"] if name == "square" else options["num_steps"]


def _passes(name: str, options: Mapping[str, Any], num_classes: int) -> float:
    """Forward passes of a public attack for each example, at most, of one draw."""
    steps, restarts, wrong = _num_steps(name, options), options.get("num_restarts", 1), num_classes - 1
    targets = min(options.get("num_targets") or wrong, wrong)
    if name == "apgd":
        return 3 * steps * restarts * (targets if options["loss"] == "dlr-targeted" else 1)
    if name == "fab":
        of_step = 4 * targets if options["num_targets"] is not None else 2 * (1 + wrong)
        return steps * restarts * of_step
    return {
        "square": steps * restarts,
        "hopskipjump": options.get("num_queries", 0),
        "cw_l2": 3 * steps * options.get("num_searches", 1),
        "deepfool": 2 * (1 + wrong) * steps,
        "multi_targeted": 3 * steps * targets,
    }.get(name, 3 * steps * restarts)


@functools.lru_cache(maxsize=256)
def _bound(attack: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """The same object for the same settings, so that attacks which differ in traced options alone compile once."""
    return partial(attack, **settings)
