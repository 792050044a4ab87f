"""One training step, attack and update in a single compiled program, and several such steps per dispatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from robustjax.attacks.engine.verify import is_correct
from robustjax.data import augment as augment_lib
from robustjax.data import spread
from robustjax.defenses.convention import Defense, own_loss
from robustjax.objectives import VIEWS, Objective
from robustjax.runtime.sharding import Layout
from robustjax.training import alignment, awp
from robustjax.training.state import TrainState, carries_perturbations
from robustjax.types import AnyArray, Array, Key, Outputs

# (key, float images) -> float images
Augment = Callable[[Key, Array], Array]
# (logits_fn, key, images, labels, *, loss, scale of epsilon) -> images
ScaledAttack = Callable[..., Array]
# (state, images, labels) -> state; where perturbations are carried also the examples' places in the data set.
Step = Callable[..., TrainState]

# Metrics of a step rather than means over its examples.
OF_STEP = ("steps", "gradient_norm")


def views_of(objective: Objective, defense: Defense | None) -> tuple[str, ...]:
    """The images that an update passes through the network, in this order: the objective's and the defense's."""
    read = {*objective.views, *(defense.views if defense else ())}
    return tuple(view for view in VIEWS if view in read)


def metric_names(objective: Objective, defense: Defense | None) -> tuple[str, ...]:
    """The metrics whose sums a step adds to, "steps" counting them."""
    return (*OF_STEP, "loss", *(f"{view}_accuracy" for view in views_of(objective, defense)))


class Extras(NamedTuple):
    """Training options of an update, all off by default.

    Attributes:
        awp_gamma, awp_from_step: of :func:`robustjax.training.awp.move`, and the first update with it.
        alignment: weight of :func:`robustjax.training.alignment.misalignment`, added to the loss.
        cutmix: share of the images that :func:`robustjax.data.augment.cutmix` mixes. Attack and loss weigh the terms of
            both labels by their shares of the pixels; guards and accuracies have the label with the larger one.
        natural_share: of a batch whose adversarial images are left natural, in [0, 1).
        carries: whether the attack starts at perturbations that ``state.carried`` keeps for each example, in units of
            epsilon, and the update puts those that it ended at in their place. They are carried as the images lie in
            the data set; what augmentation moves out of the picture is lost.
        epsilon: of the attack, which ``alignment`` and ``carries`` need.
    """

    awp_gamma: float = 0.0
    awp_from_step: int = 0
    alignment: float = 0.0
    cutmix: float = 0.0
    natural_share: float = 0.0
    carries: bool = False
    epsilon: float = 0.0


class _Labels(NamedTuple):
    """Two labels an image, and the share of the first."""

    first: Array
    second: Array
    share: Array

    @property
    def larger(self) -> Array:
        return jnp.where(self.share >= 0.5, self.first, self.second)

    def mean_of(self, values: Callable[[Array], Array]) -> Array:
        return self.share * values(self.first) + (1.0 - self.share) * values(self.second)


def make_step(
    module: Any,
    objective: Objective,
    attack: ScaledAttack | None,
    optimizer: optax.GradientTransformation,
    *,
    defense: Defense | None,
    augment: Augment,
    ramp: Callable[[Array], Array],
    attack_statistics: str,
    update_statistics: str,
    ema_decay: float,
    accumulation: int = 1,
    axis: str | None = None,
    extras: Extras = Extras(),  # noqa: B008 - a tuple
) -> Step:
    """The pure function ``(state, images float32 [B, H, W, C], labels [B]) -> state`` of one update.

    Args:
        module: the network.
        objective: what to minimise.
        attack: the inner maximisation, None where the objective needs none.
        optimizer: of the parameters.
        defense: whose guards the network has; it says what its heads add to the loss.
        augment: of the images, before the attack.
        ramp: step -> factor in (0, 1] on the attack's epsilon.
        attack_statistics: BatchNorm during the attack, "running" or "batch".
        update_statistics: BatchNorm during the update, "batch" or "running" (which leaves them as they are).
        ema_decay: d of the average a <- d a + (1 - d) w, or 0 for none. Early on d is min(d, (1 + t) / (10 + t)).
        accumulation: micro-batches of equal size that a batch is cut into; its gradient is their mean. BatchNorm and
            whatever else looks at a whole batch sees one micro-batch after another, augmentation and attack draw anew.
        axis: name of the mapped axis where the step runs under ``shard_map`` or ``pmap``, each device with its part of
            the batch. BatchNorm then sees that part, every device draws for itself, and gradient, metrics and running
            statistics are means over the devices.
        extras: training options; by default none.
    """

    def apply(variables: Mapping[str, Any], images: Array, labels: Array | None, key: Key, statistics: str):
        """Outputs and the running statistics that follow from them."""
        call = partial(module.apply, variables, images, labels, rngs={"defense": key})
        if statistics == "running":
            return call(train=False), variables["batch_stats"]
        outputs, updated = call(train=True, mutable=["batch_stats"])
        return outputs, updated.get("batch_stats", {})

    total = own_loss if defense is None else defense.loss
    tracker = None if defense is None else defense.tracker
    view_names = views_of(objective, defense)
    climbed = own_loss if defense is None else defense.inner_loss

    def of_labels(values: Callable[[Array], Array], labels: Array | _Labels) -> Array:
        return labels.mean_of(values) if isinstance(labels, _Labels) else values(labels)

    def maximise(state: TrainState, key: Key, images: Array, labels: Array | _Labels, prior: Array | None) -> Array:
        key_attack, key_defense = jax.random.split(key)
        inner = objective.inner
        assert attack is not None and inner is not None  # an objective that is trained with an attack has this term

        def outputs_fn(points: Array) -> Outputs:
            return apply(state.variables, points, None, key_defense, attack_statistics)[0]

        fixed = {"natural": outputs_fn(images)} if "natural" in objective.inner_views else {}

        def loss(outputs: Outputs, _: Array) -> Array:
            views = {**fixed, "adversarial": outputs}
            return of_labels(lambda own: climbed(views, own, term=inner), labels)

        shown = labels.larger if isinstance(labels, _Labels) else labels
        start = key_attack if prior is None else prior
        return jax.lax.stop_gradient(attack(outputs_fn, start, images, shown, loss=loss, scale=ramp(state.step)))

    def differentiate(
        state: TrainState,
        key: Key,
        images: Array,
        given: Array,
        statistics: Any,
        carried: Any,
        prior: Array | None = None,
    ):
        """The gradient and the metrics of a (micro-)batch, and what follows from it: statistics, what the defense
        carries, and perturbations where they are carried."""
        key_augment, key_attack, key_defense = jax.random.split(key, 3)
        moved = partial(augment, key_augment)
        inputs = {"natural": moved(images)}
        labels: Array | _Labels = given
        if extras.cutmix:
            mixed, own = augment_lib.cutmix(jax.random.fold_in(key, 3), inputs["natural"], share=extras.cutmix)
            inputs["natural"], labels = mixed, _Labels(given, jnp.roll(given, 1), own)
        if prior is not None:
            prior = jnp.clip(inputs["natural"] + extras.epsilon * ramp(state.step) * moved(prior), 0.0, 1.0)
            inputs["prior"] = prior
        if attack is not None:
            inputs["adversarial"] = found = maximise(state, key_attack, inputs["natural"], labels, prior)
            if extras.natural_share:
                stays = spread(round(extras.natural_share * len(images)), len(images))
                inputs["adversarial"] = jnp.where(stays[:, None, None, None], inputs["natural"], inputs["adversarial"])
        shown = labels.larger if isinstance(labels, _Labels) else labels

        def loss_fn(params: Any) -> tuple[Array, tuple[dict[str, Outputs], Any, Any]]:
            views, after, now, extra = {}, statistics, carried, {}
            for i, view in enumerate(view_names):
                variables = {"params": params, "batch_stats": after}
                key = jax.random.fold_in(key_defense, i)
                views[view], after = apply(variables, inputs[view], shown, key, update_statistics)
            if tracker is not None:
                now = tracker.update(views, carried, state.step)
                extra = {"carried": now}
            values = of_labels(lambda own: total(views, own, term=objective.term(views), **extra), labels)
            loss = jnp.mean(values)
            if extras.alignment:
                loss += extras.alignment * jnp.mean(turned(params))
            return loss, (views, after, now)

        def turned(params: Any) -> Array:
            variables = {"params": params, "batch_stats": statistics}
            key_noise = jax.random.fold_in(key, 4)

            def logits_fn(points: Array) -> Array:
                return apply(variables, points, shown, key_defense, update_statistics)[0].logits

            radius = extras.epsilon * ramp(state.step)
            return alignment.misalignment(logits_fn, key_noise, inputs["natural"], shown, epsilon=radius)

        def perturbed(params: Any) -> Any:
            slope = jax.grad(loss_fn, has_aux=True)(params)[0]
            return awp.move(params, jax.lax.pmean(slope, axis) if axis else slope, gamma=extras.awp_gamma)

        params = state.variables["params"]
        if extras.awp_gamma:
            params = jax.lax.cond(state.step >= extras.awp_from_step, perturbed, lambda params: params, params)
        (loss, (views, after, now)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        means = {"loss": loss}
        for view, outputs in views.items():
            means[f"{view}_accuracy"] = jnp.mean(is_correct(outputs.logits, shown), dtype=jnp.float32)
        if prior is None:
            return (gradient, means), (after, now)
        # Back to where the pixels lie in the data set: what moves images is linear, and its transpose moves them back.
        reached = (found - inputs["natural"]) / (extras.epsilon * ramp(state.step))
        (reached,) = jax.linear_transpose(moved, images)(reached)
        return (gradient, means), (after, (now, reached))

    def accumulate(state: TrainState, key: Key, images: Array, labels: Array, statistics: Any, carried: Any):
        """As ``differentiate``, of the whole batch, with the memory of a micro-batch."""

        def cut(array: Array) -> Array:
            # Every so many examples rather than so many in a row: each device keeps the examples that it has.
            return array.reshape(-1, accumulation, *array.shape[1:]).swapaxes(0, 1)

        def add(held: Any, part: Any) -> tuple[Any, None]:
            sums, (statistics, carried) = held
            i, images, labels = part
            found, after = differentiate(state, jax.random.fold_in(key, i), images, labels, statistics, carried)
            return (jax.tree.map(jnp.add, sums, found), after), None

        means = {name: jnp.zeros((), jnp.float32) for name in metric_names(objective, defense) if name not in OF_STEP}
        start = (jax.tree.map(jnp.zeros_like, state.variables["params"]), means), (statistics, carried)
        parts = jnp.arange(accumulation), cut(images), cut(labels)
        (sums, after), _ = jax.lax.scan(add, start, parts)
        return jax.tree.map(lambda total: total / accumulation, sums), after

    def step(state: TrainState, images: Array, labels: Array, places: Array | None = None) -> TrainState:
        key = jax.random.fold_in(state.key, state.step)
        if axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        before: tuple = state.variables["batch_stats"], state.carried
        if extras.carries:
            kept = state.carried["perturbations"]
            before = before[0], state.carried["defense"], kept[places].astype(jnp.float32)
        gradient_of = differentiate if accumulation == 1 else accumulate
        (gradient, means), (statistics, carried) = gradient_of(state, key, images, labels, *before)
        if extras.carries:
            now, reached = carried
            carried = {"defense": now, "perturbations": kept.at[places].set(reached.astype(kept.dtype))}
        if axis is not None:
            gradient, means, statistics = jax.lax.pmean((gradient, means, statistics), axis)
        params = state.variables["params"]
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, params)
        updates = jax.tree.map(lambda update: state.rate_factor * update, updates)  # exact: 1, or a power of 2
        variables = {"params": optax.apply_updates(params, updates), "batch_stats": statistics}
        metrics = {"steps": jnp.ones((), jnp.float32), "gradient_norm": optax.tree.norm(gradient), **means}
        return TrainState(
            state.step + 1,
            state.key,
            variables,
            optimizer_state,
            _averaged(state.average, variables, state.step, ema_decay),
            jax.tree.map(jnp.add, state.sums, metrics),
            state.rate_factor,
            carried,
        )

    return step


def per_device(step: Step, layout: Layout) -> Step:
    """A step of ``make_step(axis="data")`` over all devices: of a global batch, each updates by its own part."""
    whole, part = PartitionSpec(), PartitionSpec("data")
    # Unchecked, gradients are each device's own until the step takes their mean, as they are under pmap.
    return jax.shard_map(step, mesh=layout.mesh, in_specs=(whole, part, part), out_specs=whole, check_vma=False)


def make_dispatch(step: Step, layout: Layout) -> Callable[[TrainState, Array, Array, AnyArray, int], TrainState]:
    """Several steps in one compiled loop: ``(state, all images, all labels, order [L, B], count) -> state``.

    The state is donated. The data set stays on the device as it is (uint8) and ``order`` says which examples make a
    batch. Only the first ``count`` rows are used; as the loop's length is not part of the program, any count up to L
    runs without compiling again.
    """

    @partial(jax.jit, donate_argnums=0)
    def dispatch(state: TrainState, images: Array, labels: Array, order: Array, count: Array) -> TrainState:
        def body(i: Array, state: TrainState) -> TrainState:
            chosen = layout.constrain_batch(order[i])
            batch = images[chosen].astype(jnp.float32) / 255.0
            places = (chosen,) if carries_perturbations(state) else ()
            return step(state, *layout.constrain_batch((batch, labels[chosen])), *places)

        return jax.lax.with_sharding_constraint(jax.lax.fori_loop(0, count, body, state), layout.replicated)

    return dispatch


def make_batch_dispatch(step: Step, layout: Layout) -> Callable[[TrainState, Array, Array], TrainState]:
    """One step on a batch from the host: ``(state, uint8 images, labels) -> state``. The state is donated."""

    @partial(jax.jit, donate_argnums=0)
    def dispatch(state: TrainState, images: Array, labels: Array) -> TrainState:
        batch = images.astype(jnp.float32) / 255.0
        return jax.lax.with_sharding_constraint(
            step(state, *layout.constrain_batch((batch, labels))), layout.replicated
        )

    return dispatch


def _averaged(average: Any, variables: Any, step: Array, decay: float) -> Any:
    if average is None:
        return None
    t = step.astype(jnp.float32)
    weight = jnp.minimum(decay, (1.0 + t) / (10.0 + t))
    return jax.tree.map(lambda a, v: weight * a + (1.0 - weight) * v, average, variables)
