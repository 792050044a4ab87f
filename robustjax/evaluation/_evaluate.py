"""Evaluates any network under several attacks, from Python. ``evaluate_run`` does what the command line does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from robustjax import data
from robustjax.attacks import geometry
from robustjax.attacks.engine import inputs
from robustjax.attacks.engine.output_warnings import not_finite
from robustjax.evaluation._result import Evaluation, by_threat, worst_case
from robustjax.evaluation._subject import EOT_SAMPLES, NUM_DRAWS, Subject, of_function
from robustjax.evaluation.protocol import protocols, records, session, specs
from robustjax.evaluation.protocol.deciding import Deciding
from robustjax.evaluation.protocol.outcome import Outcome
from robustjax.evaluation.protocol.protocols import CLEAN, Protocol
from robustjax.evaluation.protocol.runner import NUM_KEPT, Runner, floats
from robustjax.evaluation.protocol.specs import Spec
from robustjax.evaluation.protocol.threats import NO_BALL, Threat, check_width, radius
from robustjax.evaluation.verdict._judge import Verdict, checked_hints, judge
from robustjax.evaluation.verdict.budgets import BUDGETS
from robustjax.evaluation.verdict.hints import Hints
from robustjax.runtime import hosts
from robustjax.types import AnyArray, InputError, Key, LogitsFn

DEFAULT_ATTACKS = ("clean", "fgsm", "pgd20", "cw", "pgd100")


def evaluate(
    logits_fn: LogitsFn,
    key: Key,
    images: AnyArray,
    labels: AnyArray,
    *,
    threat: Threat | Sequence[Threat],
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    hints: Hints = Hints(),  # noqa: B008
    budget: str = "quick",
    batch_size: int = 500,
    eot_samples: int = EOT_SAMPLES,
    num_draws: int = NUM_DRAWS,
    class_names: Sequence[str] | None = None,
    sources: Mapping[str, LogitsFn] = MappingProxyType({}),
    keep_images: bool = False,
    quicken: bool = True,
    progress: bool = False,
) -> Evaluation:
    """Runs attacks on a network and returns its accuracy under each, with intervals and all settings.

    Every adversarial image is checked against ball and box, and classified again in float32 by a forward pass apart
    from the attack's. All devices are used.

    An attack is a name, or a name and options as its function takes them: ``"apgd:loss=dlr,num_steps=50"``. There are

    - ``"clean"``, and the usual protocol of papers: ``"fgsm"``, ``"pgd20"``, ``"cw"`` (PGD on the margin loss) and
      ``"pgd100"``, of steps epsilon / 10 from the image itself;
    - every public attack: ``fgsm``, ``pgd``, ``apgd``, ``fab``, ``square``, ``hopskipjump``, ``multi_targeted``,
      ``optimized_pgd`` (with ``optimizer=momentum`` or ``adam``), ``autoattack``, and the minimum-norm attacks
      ``cw_l2`` and ``deepfool``, whose images count where they are inside the ball. Lengths may be given as
      ``step_size=epsilon/4``;
    - the same aimed at a class, ``"apgd:toward=random"``, or ``next``, ``likeliest``, ``least_likely``, ``all`` (one
      after the other), or a class's number. Records then hold how often the prediction becomes that class, besides
      how often it leaves the label;
    - ``"transfer:NAME"`` or ``"transfer:pgd100@NAME"``, the attack (``apgd`` unless said) on another network, one of
      ``sources``, whose images this one is evaluated on;
    - ``"adaptive"``, which is :func:`judge`;
    - ``"saved:FILE.npz"``, adversarial images from a file, verified like those of an attack;
    - ``"corruption:cifar10_corrupted/brightness_1"``, as many test images of another data set, classified as they are.

    Args:
        logits_fn: images [B, H, W, C] -> logits [B, K]; (images, key) -> logits where ``hints.stochastic``.
        key: a typed key; each attack draws from it by its name, whichever others run.
        images: float [N, H, W, C] inside the threat's bounds, or uint8 in 0..255 for bounds of (0, 1).
        labels: integers [N].
        threat: a :class:`Threat`, or several: every attack then runs under each, and the worst case is over their
            union.
        attacks: see above.
        hints: what the network's author declares about it. ``stochastic`` concerns every attack, the rest only
            ``"adaptive"``.
        budget: of ``"adaptive"``, ``"quick"`` or ``"full"``.
        batch_size: images at a time, over all devices, which have to divide it.
        eot_samples: draws over which attacks average a stochastic network.
        num_draws: fresh draws on which each image of a stochastic network is classified, the same after every attack,
            so that more attacks are not more chances.
        class_names: K strings, for records to name classes by.
        sources: name -> a deterministic network to transfer from, images -> logits [B, K].
        keep_images: keep the images that decide the worst case, for ``Evaluation.save_images``.
        quicken: run the network by :func:`robustjax.transforms.quicken`: the same outputs and gradients to rounding, in
            less time on a CPU if it is not of this library.
        progress: show a progress bar with the remaining time.

    Returns:
        An :class:`Evaluation`.

    Raises:
        InputError: for unknown attacks or options (all at once), an unknown norm or budget, images outside bounds or
            not finite, labels that are not classes, or arguments or outputs of the wrong shape.

    Warns:
        UserWarning: where logits are NaN (which counts as misclassified) or infinite, or where the channels of images
            come first.

    Example:
        See :class:`Evaluation`.
    """
    if isinstance(class_names, str) or not (class_names is None or isinstance(class_names, Iterable)):
        raise InputError(f"class_names must be a sequence of strings, got {class_names!r}; give one for each class")
    names = None if class_names is None else [str(name) for name in class_names]
    if isinstance(attacks, str) or not isinstance(attacks, Iterable):
        raise InputError(f"attacks must be a sequence of names, got {attacks!r}; give for example ('clean', 'pgd20')")
    if not isinstance(sources, Mapping):
        got = type(sources).__name__
        raise InputError(f"sources must be a mapping from names to networks, got {got}; give {{NAME: logits_fn}}")
    chosen = specs.parse(attacks)
    if not isinstance(budget, str) or budget not in BUDGETS:
        raise InputError(f"budget must be one of {', '.join(BUDGETS)}, got {budget!r}; choose among these")
    stochastic = checked_hints(hints).stochastic
    inputs.check_key(key)
    inputs.static(1, batch_size=batch_size)
    inputs.are_flags(keep_images=keep_images, quicken=quicken, progress=progress)
    if stochastic:
        inputs.static(1, eot_samples=eot_samples, num_draws=num_draws)
    images = inputs.as_array("images", images)
    are_bytes = images.dtype == np.uint8
    if are_bytes:
        images = floats(np.asarray(images))
    threats = [_checked_threat(each, images) for each in ([threat] if isinstance(threat, Threat) else _listed(threat))]
    if len({(each.norm, each.epsilon) for each in threats}) < len(threats):
        raise InputError(
            "threat must be threats of different norm or epsilon, got one twice; evaluate them in two calls"
        )
    if are_bytes and (other := [each.bounds for each in threats if each.bounds != (0.0, 1.0)]):
        raise InputError(
            f"images must be floats inside the threat's bounds {list(other[0])}, got uint8, which stand for [0, 1]; "
            "scale them yourself, or leave the bounds out"
        )
    for each in threats:
        host_images, host_labels, *_ = inputs.on_host(images, labels, each.epsilon, each.norm, each.bounds)

    def first_others(spec: str) -> Any:
        return data.read_images(spec, num_examples=len(host_labels))

    def named_source(name: str) -> tuple[LogitsFn, Any]:
        if name not in sources:
            known = ", ".join(sources) or "none"
            raise InputError(f"transfer must be from one of sources, {known}, got {name!r}; give sources={{NAME: fn}}")
        return sources[name], name

    subject = of_function(
        logits_fn,
        key,
        host_images,
        host_labels,
        hints=hints,
        batch_size=batch_size,
        eot_samples=eot_samples,
        num_draws=num_draws,
        conditions={},
        class_names=names,
        read_others=first_others,
        read_source=named_source,
        keep_images=keep_images,
        quicken=quicken,
    )
    if names is not None and len(names) != subject.num_classes:
        wanted = f"{subject.num_classes} names, one for each class of the network"
        raise InputError(f"class_names must be {wanted}, got {len(names)}; name them all")
    return evaluate_subject(subject, threats, chosen, budget=budget, progress=progress)


def _listed(threat: Any) -> list[Any]:
    if isinstance(threat, (list, tuple)) and threat and all(isinstance(each, Threat) for each in threat):
        return list(threat)
    raise InputError(
        f"threat must be a Threat or a list of them, got {threat!r}; give evaluation.Threat(norm, epsilon)"
    )


def _checked_threat(threat: Threat, images: Any) -> Threat:
    """The threat with plain numbers in it, which records and compiled programs need."""
    geometry.get(threat.norm)
    if not isinstance(threat.epsilon, str) and np.ndim(threat.epsilon):
        shape = list(np.shape(threat.epsilon))
        raise InputError(f"epsilon must be a number, got shape {shape}; evaluate under one radius at a time")
    channels = np.shape(images)[-1] if np.ndim(images) else 1
    checked = Threat(threat.norm, radius("epsilon", threat.epsilon), inputs.box(threat.bounds, channels, images.dtype))
    check_width(checked)
    return checked


def evaluate_subject(
    subject: Subject,
    threats: Sequence[Threat],
    chosen: Sequence[Spec],
    *,
    budget: str,
    progress: bool,
    on_record: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Evaluation:
    """Runs the attacks under each threat; calls ``on_record`` with each record as soon as it is complete.

    Raises:
        InputError: an attack refuses its options, or images that it names are not there or do not fit; before anything
            runs.
    """
    if all(spec.name == "corruption" for spec in chosen):
        raise InputError("attacks must hold one on the images themselves, such as clean, got other data sets alone")
    named = [subject.protocols(chosen, threat) for threat in threats]
    others = {spec.spelling: subject.corrupted(spec) for spec in chosen if spec.name == "corruption"}
    entries, outcomes, verdict = [], [], None
    deciding = Deciding(floats(subject.images)) if subject.keep_images else None
    told: set[str] = set()

    def keep(subject: Subject, name: str, protocol: Protocol, outcome: Outcome, norm: str, epsilon: float) -> None:
        entry = records.record(
            name,
            protocol,
            outcome,
            norm=norm,
            epsilon=epsilon,
            conditions=dict(subject.conditions),
            labels=subject.labels,
            num_classes=subject.num_classes,
            class_names=subject.class_names,
        )
        if deciding is not None and norm != NO_BALL:
            deciding.add(name, outcome)
        for warning in _not_finite(name, outcome):
            if warning not in told and hosts.is_first():
                warnings.warn(warning, stacklevel=3)
            told.add(warning)
        entries.append(entry)
        outcomes.append(outcome._replace(adversarial=outcome.adversarial[:NUM_KEPT]))
        on_record(entry)

    adaptive = any(spec.name == protocols.ADAPTIVE for spec in chosen)
    beside = "adaptive attacks" if adaptive else ""
    for i, (threat, by_name) in enumerate(zip(threats, named, strict=True)):
        runner = subject.runner(threat)
        # Images as they are are the same under every threat.
        wanted = {name: protocol for name, protocol in by_name.items() if i == 0 or protocol.changes_images}
        tasks = [subject.task(name, protocol, runner) for name, protocol in wanted.items()]
        found = session.outcomes(runner, tasks, key=subject.key, progress=progress, beside=beside)
        for task, outcome in zip(tasks, found, strict=True):
            keep(subject, task.name, task.protocol, outcome, threat.norm, threat.epsilon)
        if adaptive:
            verdict, protocol, outcome = _adaptive(subject, runner, budget=budget, progress=progress)
            keep(subject, protocols.ADAPTIVE, protocol, outcome, threat.norm, threat.epsilon)
    for name, other in others.items():
        runner = other.runner(Threat("linf", 0.0, threats[0].bounds))
        task = other.task(name, CLEAN._replace(about={"images": name}), runner)
        (outcome,) = session.outcomes(runner, [task], key=subject.key, progress=progress)
        keep(other, name, task.protocol, outcome, NO_BALL, 0.0)
    return Evaluation(
        entries,
        worst_case(entries),
        outcomes,
        subject.conditions,
        verdict=verdict,
        by_threat=by_threat(entries),
        deciding=deciding,
        labels=subject.labels,
    )


def _not_finite(name: str, outcome: Outcome) -> Iterator[str]:
    """A sentence where logits are NaN or infinite, of images as they are and of those that an attack made so."""
    if outcome.nonfinite is None or outcome.clean_nonfinite is None:
        return
    made = outcome.nonfinite & ~outcome.clean_nonfinite
    for found, what in ((outcome.clean_nonfinite, "images"), (made, f"images of {name}")):
        if found.any():
            yield not_finite(int(found.sum()), len(found), what)


def _adaptive(subject: Subject, runner: Runner, *, budget: str, progress: bool) -> tuple[Verdict, Protocol, Outcome]:
    """The verdict of :func:`judge`, and its strongest images verified like those of every other attack."""
    threat = runner.threat
    attack = partial(
        judge, budget=budget, epsilon=threat.epsilon, norm=threat.norm, bounds=threat.bounds, quicken=subject.quicken
    )
    images = floats(subject.images)
    key = session.attack_key(subject.key, protocols.ADAPTIVE)
    verdict = attack(subject.adaptive_fn, key, images, subject.labels, hints=subject.hints, progress=progress)

    left, by_attack = np.ones(len(images), bool), {}
    for name, misclassified in verdict.misclassified_by.items():
        left = left & ~misclassified
        by_attack[name] = left
    protocol = Protocol(attack, num_steps=BUDGETS[budget].num_steps, num_restarts=1, whole=True)
    units = [
        runner.verify_unit(
            protocol, key, i, verdict.adversarial[rows], {name: flags[rows] for name, flags in by_attack.items()}
        )
        for i, rows in enumerate(runner.examples(protocol))
    ]
    return verdict, protocol, runner.outcome(protocol, units)._replace(seconds=verdict.seconds["total"])
