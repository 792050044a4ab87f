"""Several defenses as one, each with guards at its own sites and its own terms of the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from robustjax.defenses.convention import Defense, Views, own_loss
from robustjax.types import Array, InputError, Term


def compose(*parts: Defense) -> Defense:
    r"""One defense of several.

    .. math:: J + \sum_i (L_i - J)

    is its loss, :math:`L_i` being that of part i for the objective's own term J, so that each part adds what it adds
    alone, in any order; likewise what the training attack maximises. A site that several parts guard passes their
    guards in the order of the parts, those that take no part in training last: that way a network is trained with some
    of them, and the others are switched on at its evaluation.

    Args:
        *parts: one or more, each with heads of its own; a composed one stands for its parts.

    Returns:
        The defense itself where there is but one.

    Raises:
        InputError: two parts train heads of the same kind, or carry something from update to update.

    Example:
        >>> from robustjax import defenses
        >>> both = compose(defenses.create("sap", sites="late"), defenses.create("cas"))
        >>> both.name, both.heads, both.stochastic, both.inference_only
        ('cas+sap', ('probe',), True, False)
        >>> [type(guard).__name__ for guard in both.guards({"late": ("a", "b")}, 10).values()]
        ['CAS', 'CAS', 'SAP', 'SAP']
    """
    if len(parts) == 1:
        return parts[0]
    every = [one for part in parts for one in part.parts or (part,)]
    ordered = tuple(sorted(every, key=lambda part: part.inference_only))
    heads = [kind for part in ordered for kind in part.heads]
    for kind, count in Counter(heads).items():
        if count > 1:
            owners = " and ".join(part.name for part in ordered if kind in part.heads)
            raise InputError(f"defenses must have heads of their own, got {owners} with heads {kind!r}; leave one out")
    trackers = [part.tracker for part in ordered if part.tracker is not None]
    if len(trackers) > 1:
        owners = " and ".join(part.name for part in ordered if part.tracker is not None)
        raise InputError(f"one defense at most may carry something between updates, got {owners}; leave one out")

    def loss(views: Views, labels: Array, *, term: Term, **carried: Any) -> Array:
        losses = [part.loss for part in ordered]
        given = [carried if part.tracker is not None else {} for part in ordered]
        return _sum(losses, given, views, labels, term)

    def inner_loss(views: Views, labels: Array, *, term: Term) -> Array:
        return _sum([part.inner_loss for part in ordered], [{}] * len(ordered), views, labels, term)

    return Defense(
        name="+".join(part.name for part in ordered),
        role="",
        build=lambda sites, num_classes, mode: {},
        gradient="; ".join(f"{part.name}: {part.gradient}" for part in ordered),
        loss=loss,
        inner_loss=inner_loss,
        views=tuple(dict.fromkeys(view for part in ordered for view in part.views)),
        tracker=trackers[0] if trackers else None,
        heads=tuple(heads),
        inference_only=all(part.inference_only for part in ordered),
        stochastic=any(part.stochastic for part in ordered),
        statistics=any(part.statistics for part in ordered),
        parts=ordered,
    )


def trained(defense: Defense | None) -> Defense | None:
    """The defenses that take part in training, as one; None if there is none.

    Example:
        >>> from robustjax import defenses
        >>> trained(compose(defenses.create("sap"), defenses.create("cas"))).name
        'cas'
    """
    return _only(defense, lambda part: not part.inference_only)


def deterministic(defense: Defense | None) -> Defense | None:
    """The defenses that make no draws in inference, as one; None if there is none.

    Example:
        >>> from robustjax import defenses
        >>> deterministic(compose(defenses.create("sap"), defenses.create("cas"))).name
        'cas'
    """
    return _only(defense, lambda part: not part.stochastic)


def _only(defense: Defense | None, wanted: Callable[[Defense], bool]) -> Defense | None:
    parts = [] if defense is None else [part for part in defense.parts or (defense,) if wanted(part)]
    return compose(*parts) if parts else None


def _sum(
    losses: list[Callable[..., Array]], given: list[dict[str, Any]], views: Views, labels: Array, term: Term
) -> Array:
    own = own_loss(views, labels, term=term)
    added = [
        loss(views, labels, term=term, **extra) - own
        for loss, extra in zip(losses, given, strict=True)
        if loss is not own_loss
    ]
    return own + sum(added)
