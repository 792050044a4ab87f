"""What every defense says of itself, as data: where it guards, what it trains, and what an adversary should know.

A defense is a :class:`Defense`; its guards are modules with the call of :class:`robustjax.types.Guard`. Networks know
sites and call whatever guards them; they know no defense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax

from robustjax.types import Array, InputError, Outputs, Term

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
    """What a defense carries from one update to the next.

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
        role: of the sites it guards: "activation" (every one), "preactivation" (before every one), "late" (the last
            stage's) or "final" (the last).
        build: (sites, num_classes, mode) -> a guard for each site; none where the defense changes training only.
        loss: ``(views, labels, *, term) -> [B]``: what training minimises when ``term`` is the objective's own loss;
            with a tracker also given ``carried``.
        views: the images that the loss reads whether or not the objective does.
        tracker: what the loss needs from earlier updates.
        heads: the kinds of auxiliary logits, to be attacked together with the network's own.
        joint: whether the heads take part in all that the network's own logits do, so that the training attack
            maximises ``loss`` too; otherwise it maximises its term of the network's own logits.
        inference_only: whether it guards networks that were trained without it.
        stochastic: whether inference draws from the rng stream "defense"; attacks then average over draws.
        statistics: whether its guards hold statistics of the training set, which :func:`with_statistics` measures.
        gradient: where the forward pass is not differentiable, is detached or saturates, and what ``surrogate`` does.
        mode: of the guards that ``guards`` returns.
    """

    name: str
    role: str
    build: Callable[[tuple[str, ...], int, Mode], Mapping[str, Any]]
    gradient: str
    loss: Callable[..., Array] = own_loss
    views: tuple[str, ...] = ()
    tracker: Tracker | None = None
    heads: tuple[str, ...] = ()
    joint: bool = False
    inference_only: bool = False
    stochastic: bool = False
    statistics: bool = False
    mode: Mode = "active"

    def guards(self, sites: Mapping[str, tuple[str, ...]], num_classes: int) -> Mapping[str, Any]:
        """A guard for each site of this defense's role.

        Args:
            sites: role -> names of the network's sites, in the order in which it passes them.
            num_classes: K.

        Raises:
            InputError: the network has no site of that role.
        """
        if not sites.get(self.role):
            roles = ", ".join(role for role, names in sites.items() if names) or "none"
            raise InputError(
                f"defense {self.name!r} needs a network with {self.role!r} sites, this one has {roles}; "
                f"choose another network or defense"
            )
        return self.build(tuple(sites[self.role]), num_classes, self.mode)

    @property
    def surrogate(self) -> Defense:
        """The same outputs with a useful gradient (BPDA); trained variables load into its networks."""
        return self._replace(mode="surrogate")

    @property
    def switched_off(self) -> Defense:
        """The twin without the defense's effect on the features; trained variables load into its networks."""
        return self._replace(mode="off", stochastic=False)


def with_statistics(module: Any, variables: Mapping[str, Any], batches: Iterable[Array]) -> dict[str, Any]:
    """A network's variables with what its guards hold of the training set: one pass over it in inference mode.

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
        _, measured = module.apply(variables, images, train=False, mutable=[STATISTICS])
        return measured[STATISTICS]

    total, count = None, 0
    for images in batches:
        size, part = len(images), measure(variables, images)
        part = jax.tree.map(lambda mean, size=size: mean * size, part)
        total = part if total is None else jax.tree.map(lambda a, b: a + b, total, part)
        count += size
    return {**variables, STATISTICS: jax.tree.map(lambda value: value / count, total)}
