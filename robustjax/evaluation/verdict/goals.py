"""Whose gradient an attack follows, and on which loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax.attacks import losses
from robustjax.attacks.engine import inputs
from robustjax.types import AnyArray, Array, Key

LOSSES = ("ce", "margin", "dlr", "targeted")


class Networks(NamedTuple):
    """Networks whose gradients an attack may follow, as pytrees (:func:`as_logits_fn`), or None.

    Each maps images, or (images, key), to logits [B, K].

    Attributes:
        direct: the network under evaluation.
        surrogate: the same outputs with useful gradients.
        auxiliary: auxiliary heads, images -> [S, B, K]; attacked jointly with the surrogate's logits, or the network's
            own where there is no surrogate.
        undefended: the same network with its defense switched off.
        trained: another network, to transfer from.
    """

    direct: Any
    surrogate: Any = None
    auxiliary: Any = None
    undefended: Any = None
    trained: Any = None

    def views(self) -> tuple[str, ...]:
        """The names that ``Goal.view`` indexes; "auxiliary" stands for logits and heads together.

        Without ``direct`` that is the only one.
        """
        if self.direct is None:
            return ("auxiliary",)
        return tuple(name for name, network in self._asdict().items() if network is not None)

    def only(self, view: str) -> Networks:
        """What one view needs: the derivative of a choice between networks would cost as much as those of all."""
        if view == "auxiliary":
            surrogate = self.direct if self.surrogate is None else self.surrogate
            return Networks(None, surrogate=surrogate, auxiliary=self.auxiliary)
        return Networks(getattr(self, view))


class Plant(NamedTuple):
    r"""A head of each example's own, affine in the network's logits z, under which class 0 is right where h < 0:

    .. math:: h(x) = w \cdot z(x) - t

    Attributes:
        weights: w, float32 [B, K].
        threshold: t, float32 [B].
    """

    weights: AnyArray
    threshold: AnyArray

    def logits(self, logits: Array) -> Array:
        """The head's logits [B, K]: -h of class 0, h of class 1, and less than either of the others."""
        height = jnp.sum(self.weights * logits, axis=1) - self.threshold
        others = jax.lax.stop_gradient(-jnp.abs(height) - 1.0)
        columns = [-height, height] + [others] * (logits.shape[1] - 2)
        return jnp.stack(columns, axis=1)


class Goal(NamedTuple):
    """What an attack maximizes: a weighted sum of the loss of the logits and the mean loss of the auxiliary heads.

    Attributes:
        view: int32, index into ``Networks.views()``.
        loss: int32, index into ``LOSSES``.
        logits_weight, heads_weight: float32.
        targets: integers [B], the target classes of the targeted loss.
        planted: bool, whether ``plant`` takes the place of the network's own logits.
        plant: of the active test (:mod:`active`).
    """

    view: Array
    loss: Array
    logits_weight: Array
    heads_weight: Array
    targets: AnyArray
    planted: Array
    plant: Plant


class ViewOutputs(NamedTuple):
    """Logits [B, K] and auxiliary logits [S, B, K] of a view, both float32, and the goal they are computed for."""

    logits: Array
    heads: Array
    goal: Goal


def view_outputs(networks: Networks, goal: Goal, images: Array, *key: Key) -> ViewOutputs:
    """Logits and heads of the view that a goal names; the heads are zeros except in the view "auxiliary".

    The logits are those of the goal's plant where it says so.
    """
    shape = (0, 0, 0) if networks.auxiliary is None else jax.eval_shape(networks.auxiliary, images, *key).shape

    def alone(network: Any) -> Callable[[Array], tuple[Array, Array]]:
        return lambda points: (network(points, *key), jnp.zeros(shape, jnp.float32))

    def joint(points: Array) -> tuple[Array, Array]:
        network = networks.direct if networks.surrogate is None else networks.surrogate
        return network(points, *key), networks.auxiliary(points, *key).astype(jnp.float32)

    branches = [joint if name == "auxiliary" else alone(getattr(networks, name)) for name in networks.views()]
    logits, heads = branches[0](images) if len(branches) == 1 else jax.lax.switch(goal.view, branches, images)
    # Logits that are not finite must not reach the head that is not asked for: its gradient would not be, either.
    planted = goal.plant.logits(jnp.where(goal.planted, logits, 0.0))
    return ViewOutputs(jnp.where(goal.planted, planted, logits), heads, goal)


def goal_loss(outputs: ViewOutputs, labels: Array) -> Array:
    """The loss of a goal, [B]. With too few classes for the DLR the margin takes its place."""
    logits, heads, goal = outputs
    num_heads = heads.shape[0]
    every = jnp.concatenate([logits, *heads]) if num_heads else logits
    repeated = [jnp.tile(classes, 1 + num_heads) for classes in (labels, goal.targets)]
    branches = [lambda z, y, t: losses.cross_entropy(z, y), lambda z, y, t: _margin_or_ratio(z, y, t, goal.loss)]
    values = jax.lax.switch(jnp.minimum(goal.loss, 1), branches, every, *repeated).reshape(1 + num_heads, -1)
    total = goal.logits_weight * values[0]
    return total + goal.heads_weight * jnp.mean(values[1:], axis=0) if num_heads else total


def _margin_or_ratio(logits: Array, labels: Array, targets: Array, loss: Array) -> Array:
    """All of ``LOSSES`` but the first, which are quicker to compile as one: the two ratios divide a margin by a spread.

    With too few classes for a spread the margin is what it is.
    """
    is_targeted = loss == LOSSES.index("targeted")
    gap = jnp.where(is_targeted, losses.targeted_margin(logits, labels, targets), losses.margin(logits, labels))
    if logits.shape[1] < 3:
        return gap
    top = jax.lax.top_k(logits.astype(jnp.float32), min(4, logits.shape[1]))[0]
    spread = top[:, 0] - jnp.where(is_targeted, 0.5 * (top[:, 2] + top[:, -1]), top[:, 2])
    divides = jnp.isfinite(spread) & ((loss == LOSSES.index("dlr")) | (is_targeted & (logits.shape[1] >= 4)))
    return gap / jnp.where(divides, spread + 1e-12, 1.0)


def as_logits_fn(network: Any) -> Any:
    """The network as a pytree whose outputs are read by :func:`float_logits`; None stays None."""
    return None if network is None else jax.tree_util.Partial(_float_logits_of, inputs.as_pytree(network))


def _float_logits_of(network: Any, images: Array, *key: Key) -> Array:
    return float_logits(network(images, *key))


def float_logits(outputs: Any) -> Array:
    """Logits float32 [B, K] of a network's outputs, which are logits or have a field ``logits``.

    Raises:
        InputError: they are not logits of at least two classes.
    """
    shape = getattr(getattr(outputs, "logits", outputs), "shape", ())
    return inputs.logits_of(outputs, shape[0] if shape else 0).astype(jnp.float32)
