"""The description of a defense as data: where it stands, what it trains, and what an adversary should know.

A defense is a :class:`Defense`; its guards are modules with the call of :class:`robustjax.types.Guard`. Networks know
their sites and call the guards there, whatever the defense. What the judge is told about a defense follows from its
``Defense``, in ``robustjax/evaluation/verdict/hints.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax

from robustjax.types import Array, InputError, Outputs, Term, nearest

# "active": the defense as published. "surrogate": the same outputs with a gradient that is of use to an attacker.
# "off": features pass unchanged, heads still answer. Parameters are the same in all three.
Mode = Literal["active", "surrogate", "off"]

# The collection of what guards hold of the training set's features, besides trained parameters.
STATISTICS = "statistics"

# The images that an update sees, by name ("natural", "adversarial"), and what the network makes of them.
Views = Mapping[str, Outputs]


def own_loss(views: Views, labels: Array, *, term: Term) -> Array:
    """The term of the network's own logits: the loss of a defense that trains no heads.

    Example:
        >>> import jax.numpy as jnp
        >>> views = {"natural": Outputs(jnp.array([[1.0, 3.0]]), {}, {})}
        >>> own_loss(views, jnp.array([0]), term=lambda logits, labels: logits["natural"].sum(1))
        Array([4.], dtype=float32)
    """
    return term({view: outputs.logits for view, outputs in views.items()}, labels)


def joint_loss(views: Views, labels: Array, *, term: Term, kind: str, beta: float, scale: float = 1.0) -> Array:
    r"""The term of the network's own logits and, weighted, the mean of the same term over the heads of a kind.

    .. math:: \mathrm{scale} \cdot \Bigl[J(z, y) + \frac{\beta}{S} \sum_s J(a_s, y)\Bigr]

    The term decides what that means: with cross-entropy it is the loss of CAS and CIFS, with TRADES both the natural
    and the divergence term gain theirs. Whatever should stay that of the network's own logits, such as the weight of
    MART's divergence, the term closes over.

    Args:
        views: view -> outputs, all with heads of this kind.
        labels: integers [B], handed to the term.
        term: J.
        kind: of the heads, a key of ``Outputs.auxiliary``.
        beta: weight of the heads.
        scale: of the whole.

    Returns:
        float32 [B].

    Example:
        >>> import jax.numpy as jnp
        >>> outputs = Outputs(jnp.array([[1.0]]), {"probe": jnp.array([[[2.0]], [[4.0]]])}, {})
        >>> value = lambda logits, labels: logits["natural"][:, 0]
        >>> joint_loss({"natural": outputs}, jnp.array([0]), term=value, kind="probe", beta=2.0)
        Array([7.], dtype=float32)
    """
    num_heads = len(next(iter(views.values())).auxiliary[kind])
    heads = [
        term({view: outputs.auxiliary[kind][head] for view, outputs in views.items()}, labels)
        for head in range(num_heads)
    ]
    return scale * (own_loss(views, labels, term=term) + beta * sum(heads) / num_heads)


class Tracker(NamedTuple):
    """State that a defense carries from one update to the next.

    Attributes:
        initial: (site -> features, of which only the shapes count) -> arrays, before the first update.
        update: (views, carried, step) -> carried, constant for the gradient; it precedes the loss of the same update.
    """

    initial: Callable[[Mapping[str, Any]], Any]
    update: Callable[[Views, Any, Array], Any]


class Defense(NamedTuple):
    """A defense whose options are bound.

    Attributes:
        name: as in ``defenses.create``.
        role: of the sites it guards by default: "activation" (every one), "preactivation" (before every one), "late"
            (the last stage's) or "final" (the last).
        build: (sites, num_classes, mode) -> a guard for each site; none where the defense changes training only.
        loss: ``(views, labels, *, term) -> [B]``: what training minimises when ``term`` is the objective's own loss;
            with a tracker also given ``carried``.
        views: the images that the loss reads whether or not the objective does.
        tracker: what the loss needs from earlier updates.
        heads: the kinds of auxiliary logits, to be attacked together with the network's own.
        inner_loss: ``(views, labels, *, term) -> [B]``: what the training attack maximises when ``term`` is the
            objective's own. By default that of the network's own logits; with heads that are to be attacked too, theirs
            beside it.
        inference_only: whether it guards networks that were trained without it.
        stochastic: whether inference draws from the rng stream "defense"; attacks then average over draws.
        statistics: whether its guards hold statistics of the training set, which :func:`with_statistics` measures.
        gradient: where the forward pass is not differentiable, is detached or saturates, and what ``surrogate`` does.
        mode: of the guards that ``guards`` returns.
        sites: in place of those of ``role``: names of sites, or of groups of them, such as "stage3" and "late".
        parts: the defenses that this one consists of, as :func:`robustjax.defenses.compose` makes it; () for one alone.
    """

    name: str
    role: str
    build: Callable[[tuple[str, ...], int, Mode], Mapping[str, Any]]
    gradient: str
    loss: Callable[..., Array] = own_loss
    views: tuple[str, ...] = ()
    tracker: Tracker | None = None
    heads: tuple[str, ...] = ()
    inner_loss: Callable[..., Array] = own_loss
    inference_only: bool = False
    stochastic: bool = False
    statistics: bool = False
    mode: Mode = "active"
    sites: tuple[str, ...] = ()
    parts: tuple[Defense, ...] = ()

    def guards(self, sites: Mapping[str, tuple[str, ...]], num_classes: int) -> Mapping[str, Any]:
        """A guard for each of this defense's sites; see :class:`robustjax.types.Guards`.

        Args:
            sites: the network's groups of sites by name, each in the order in which it passes them.
            num_classes: K.

        Raises:
            InputError: the network has no such site.
        """
        found: dict[str, Any] = {}
        for part in self.parts or (self,):
            for site, guard in part.build(part.places(sites), num_classes, self.mode).items():
                before = sum(key.partition("+")[0] == site for key in found)
                found[f"{site}+{before}" if before else site] = guard
        return found

    def places(self, sites: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """The names of this defense's sites in a network, in the order in which they are given.

        Args:
            sites: as for ``guards``.

        Raises:
            InputError: the network has no such site.
        """
        if not self.sites and not sites.get(self.role):
            groups = ", ".join(name for name, members in sites.items() if members) or "none"
            raise InputError(
                f"defense {self.name!r} needs a network with {self.role!r} sites, this one has {groups}; "
                f"choose another network or defense"
            )
        known = dict.fromkeys(site for members in sites.values() for site in members)
        found: dict[str, None] = {}
        for name in self.sites or (self.role,):
            if not sites.get(name) and name not in known:
                groups = ", ".join(group for group, members in sites.items() if members)
                raise InputError(
                    f"{self.name}: sites must be some of {', '.join(known)}, or groups of them ({groups}), got {name!r}"
                    f"{nearest(name, [*known, *sites])}"
                )
            found |= dict.fromkeys(sites.get(name) or (name,))
        if "weights" in found and (self.heads or self.statistics):
            raise InputError(f"{self.name}: sites must be those of features, got 'weights'; leave it out")
        return tuple(found)

    def tracker_in(self, sites: Mapping[str, tuple[str, ...]]) -> Tracker | None:
        """The tracker, of the features at this defense's sites only where some are given; ``sites`` as for ``guards``.

        Raises:
            InputError: the network has no such site, or returns no features of it.
        """
        for part in self.parts or (self,):
            if part.tracker is not None and part.sites:
                return part.tracker._replace(initial=partial(_initial_at, part, part.places(sites)))
        return self.tracker

    @property
    def surrogate(self) -> Defense:
        """The same outputs with a useful gradient (BPDA); trained variables load into its networks."""
        return self._replace(mode="surrogate")

    @property
    def switched_off(self) -> Defense:
        """The twin without the defense's effect on the features; trained variables load into its networks."""
        return self._replace(mode="off", stochastic=False)


def _initial_at(defense: Defense, places: tuple[str, ...], features: Mapping[str, Any]) -> Any:
    """What the defense's tracker carries before the first update, of the features at some sites."""
    missing = [site for site in places if site not in features]
    if missing or defense.tracker is None:
        raise InputError(
            f"{defense.name}: sites must be some of {', '.join(features)}, whose features are compared, "
            f"got {', '.join(missing)}"
        )
    return defense.tracker.initial({site: features[site] for site in places})


def with_statistics(module: Any, variables: Mapping[str, Any], batches: Iterable[Array]) -> dict[str, Any]:
    """A network's variables with the statistics of its guards, measured in one pass over the training set.

    Guards let everything pass meanwhile, and each statistic is the mean of those of the batches, weighted by their
    sizes. Runs on the host and compiles by itself, once for each size of batch.

    Args:
        module: with guards of a defense with ``statistics``.
        variables: of the network, as trained.
        batches: images [B, H, W, C] in [0, 1], at least one batch.

    Returns:
        The variables with the collection "statistics".

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustjax import defenses, models
        >>> module = models.create("small_cnn", defense=defenses.create("meansparse"))
        >>> images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
        >>> measured = with_statistics(module, module.init(jax.random.key(1), images), [images[:3], images[3:]])
        >>> measured["statistics"]["guards_conv1_input"]["mean"].shape
        (16,)
    """

    @jax.jit
    def measure(variables: Mapping[str, Any], images: Array) -> Any:
        draws = {"defense": jax.random.key(0)}  # of stochastic guards beside those that are measured
        _, measured = module.apply(variables, images, train=False, rngs=draws, mutable=[STATISTICS])
        return measured[STATISTICS]

    total, count = None, 0
    for images in batches:
        size, part = len(images), measure(variables, images)
        part = jax.tree.map(lambda mean, size=size: mean * size, part)
        total = part if total is None else jax.tree.map(lambda a, b: a + b, total, part)
        count += size
    return {**variables, STATISTICS: jax.tree.map(lambda value: value / count, total)}
