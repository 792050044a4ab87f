"""Auto-PGD: projected gradient descent that chooses its step sizes itself."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax.attacks import geometry, losses
from robustjax.attacks._apgd_schedule import schedule
from robustjax.attacks.engine import inputs
from robustjax.attacks.engine.best import Best
from robustjax.attacks.engine.hyperplane import nearest_wrong
from robustjax.attacks.engine.precision import with_gradients_of
from robustjax.attacks.engine.search import Problem, Search, likeliest_wrong, network_key, solve
from robustjax.attacks.eot import expected_gradient_and_outcome, expected_logits_fn
from robustjax.ops import lookup
from robustjax.types import Array, InputError, Key, LogitsFn, LossFn

# What classes the targeted loss aims at: those of the largest logits, or of the nearest linearised boundaries.
TARGETS = ("logits", "linearised")
MOMENTUM = 0.75  # weight of the new step against the one before
RISING = 0.75  # share of steps that must raise the loss for a step size to be kept
# l1 (arXiv 2103.01208): share of pixels that a step moves at first, how much sparser the best point must have become
# for a full step, and what steps shrink by otherwise.
L1_DENSITY = 0.2
L1_SPARSER = 0.95
L1_SHRINK = 1.5
L1_LEAST_STEP = 0.1


class Options(NamedTuple):
    """What an attack depends on besides its problem."""

    norm: str
    loss: str | LossFn
    num_steps: int
    bounds: geometry.Bounds
    eot_samples: int
    targeted: bool = False


class State(NamedTuple):
    """The state between two steps; all arrays [B, ...].

    Attributes:
        count: points evaluated.
        best: strongest point in the ball, by (share of draws misclassified, loss).
        points, previous: the point to be evaluated next and the one before it.
        top_points, top_gradient, top_loss: where the loss was highest so far. A reduced step goes back there, not to
            ``best``.
        last_loss: of the point before.
        step_size: length of a step.
        rises: steps that raised the loss since the last checkpoint.
        checked_loss: top_loss at the last checkpoint.
        reduced: whether the step size was reduced there.
        density, nonzero: l1 only: share of pixels that a step moves, and pixels in which the best point differed.
    """

    count: Array
    best: Best
    points: Array
    previous: Array
    top_points: Array
    top_gradient: Array
    top_loss: Array
    last_loss: Array
    step_size: Array
    rises: Array
    checked_loss: Array
    reduced: Array
    density: Array
    nonzero: Array


def search(
    *,
    norm: str,
    loss: str | LossFn,
    num_steps: int,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
    targeted: bool = False,
) -> Search:
    """APGD from one random start, in steps."""
    options = Options(norm, loss, num_steps, bounds, eot_samples, targeted)
    return Search(start, step, len(schedule(norm, num_steps).radius) - 1, options)


def start(options: Options, problem: Problem) -> State:
    """A random point on the sphere of the (first) radius, nothing evaluated yet."""
    images = problem.images
    norm_ball = geometry.get(options.norm)
    radius = problem.epsilon * float(schedule(options.norm, options.num_steps).radius[0])
    draw = (
        functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0) if options.norm == "linf" else jax.random.normal
    )
    noise = jax.vmap(lambda key: draw(key, images.shape[1:], images.dtype))(problem.keys)
    if options.norm != "l1":  # there the projection alone makes the start sparse
        noise = noise * geometry.per_example(radius / (norm_ball.norm(noise) + 1e-12), images)
    points = norm_ball.project(images, images + noise, radius, options.bounds)
    zeros = jnp.zeros_like(problem.epsilon)
    return State(
        count=zeros.astype(jnp.int32),
        best=Best.none(images),
        points=points,
        previous=points,
        top_points=points,
        top_gradient=jnp.zeros_like(points),
        top_loss=zeros - jnp.inf,
        last_loss=zeros,
        step_size=zeros,
        rises=zeros,
        checked_loss=zeros,
        reduced=zeros > 0,
        density=zeros,
        nonzero=zeros,
    )


def step(options: Options, logits_fn: LogitsFn, key: Key, problem: Problem, state: State) -> State:
    """Evaluates the point, keeps it if it is the best, at a checkpoint perhaps reduces the step, and moves on."""
    images, bounds = problem.images, options.bounds
    project = geometry.get(options.norm).project
    table = schedule(options.norm, options.num_steps)
    row = jnp.minimum(state.count, len(table.radius) - 1)
    phase_start, in_ball = lookup(table.phase_start, row), lookup(table.in_ball, row)
    interval = lookup(table.interval, row)
    radius = problem.epsilon * lookup(jnp.asarray(table.radius, jnp.float32), row)

    if options.norm == "l1":
        # A phase starts at the best point of the previous one, projected into its smaller ball.
        restarted = project(images, state.top_points, radius, bounds)
        again = phase_start & (state.count > 0)
        points = _where(again, restarted, state.points)
        state = state._replace(
            points=points,
            previous=_where(again, restarted, state.previous),
            top_loss=jnp.where(again, -jnp.inf, state.top_loss),
        )
    points = state.points

    sign, named = -1.0 if options.targeted else 1.0, _loss(options.loss)
    gradient, share, value = expected_gradient_and_outcome(
        logits_fn, key, points, problem.labels, num_samples=options.eot_samples, targeted=options.targeted,
        loss=lambda outputs, labels: sign * named(outputs, labels, problem.targets),
    )  # fmt: skip
    best = state.best.or_better(points, jnp.where(in_ball, share, -1.0), jnp.where(in_ball, value, -jnp.inf))
    higher = value > state.top_loss
    top_points = _where(higher, points, state.top_points)
    top_gradient = _where(higher, gradient, state.top_gradient)
    top_loss = jnp.where(higher, value, state.top_loss)
    first = 1.0 if options.norm == "l1" else 2.0
    step_size = jnp.where(phase_start, first * radius, state.step_size)
    rises = state.rises + (value > state.last_loss).astype(jnp.float32)
    at_checkpoint = interval > 0

    if options.norm == "l1":
        size = math.prod(images.shape[1:])
        nonzero = jnp.sum(top_points != images, axis=tuple(range(1, images.ndim)), dtype=jnp.float32)
        reduce = at_checkpoint & (nonzero < L1_SPARSER * state.nonzero)
        shrunk = jnp.clip(step_size / L1_SHRINK, L1_LEAST_STEP * radius, radius)
        step_size = jnp.where(reduce, radius, jnp.where(at_checkpoint, shrunk, step_size))
        initial = jnp.where(state.count == 0, L1_DENSITY, nonzero / (1.5 * size))
        density = jnp.where(phase_start, initial, jnp.where(at_checkpoint, nonzero / (1.5 * size), state.density))
        nonzero = jnp.where(phase_start & (state.count == 0), float(size), nonzero)
        nonzero = jnp.where(phase_start | at_checkpoint, nonzero, state.nonzero)
    else:
        stalled = ~state.reduced & (state.checked_loss >= top_loss)
        reduce = at_checkpoint & ((rises <= RISING * interval.astype(jnp.float32)) | stalled)
        step_size = jnp.where(reduce, 0.5 * step_size, step_size)
        density, nonzero = state.density, state.nonzero

    here = _where(reduce, top_points, points)
    gradient_here = _where(reduce, top_gradient, gradient)
    length = geometry.per_example(step_size, images)
    if options.norm == "l1":
        moved = project(images, here + length * _sparse_sign(gradient_here, density), radius, bounds)
    else:
        direction = geometry.get(options.norm).steepest(gradient_here, here, bounds)
        moved = project(images, here + length * direction, radius, bounds)
        weight = geometry.per_example(jnp.where(phase_start, 1.0, MOMENTUM), images)
        moved = here + weight * (moved - here) + (1.0 - weight) * (here - state.previous)
        moved = project(images, moved, radius, bounds)
    return State(
        count=state.count + 1,
        best=best,
        points=moved,
        previous=here,
        top_points=top_points,
        top_gradient=top_gradient,
        top_loss=top_loss,
        last_loss=value,
        step_size=step_size,
        rises=jnp.where(at_checkpoint | phase_start, 0.0, rises),
        checked_loss=jnp.where(at_checkpoint | phase_start, top_loss, state.checked_loss),
        reduced=jnp.where(at_checkpoint, reduce, state.reduced) | phase_start,
        density=density,
        nonzero=nonzero,
    )


def apgd(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    norm: str = "linf",
    num_steps: int = 100,
    num_restarts: int = 1,
    loss: str | LossFn = "ce",
    num_targets: int = 9,
    targets: str = "logits",
    bfloat16_fn: LogitsFn | None = None,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
    targeted: bool = False,
) -> Array:
    r"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690; in l1, 2021, arXiv 2103.01208).

    .. math:: z = \Pi(x_t + \eta \cdot \mathrm{steepest}(\nabla L)), \quad
              x_{t+1} = \Pi\bigl(x_t + 0.75 (z - x_t) + 0.25 (x_t - x_{t-1})\bigr)

    The step :math:`\eta` starts at 2 epsilon and is halved at a checkpoint, and the run goes back to its best point,
    when the loss rose in at most three quarters of the steps since the checkpoint before, or when neither step nor best
    loss has changed since. In l1 steps are sparse, as sparse as the best point allows, and the radius comes down from 3
    epsilon. Runs end early only once every example is misclassified in every draw.

    Args:
        logits_fn: images -> outputs; with ``eot_samples >= 1``, (images, key) -> outputs. Outputs are logits [B, K],
            K >= 2, or carry them as ``.logits``, or are any pytree that a ``loss`` of your own accepts.
        key: a typed key; or one for each example [B], which makes an example's start independent of its batch.
        images: float [B, H, W, C] inside bounds (any rank with a leading batch works). The network is called in the
            dtype given; the attack computes in float32.
        labels: integers [B].
        epsilon: radius of the ball, a number >= 0 or one per example [B].
        norm: "linf", "l2" or "l1".
        num_steps: gradient steps of a restart.
        num_restarts: runs, from independent starts, of each target.
        loss: "ce"; "dlr"; "dlr-targeted", against ``num_targets`` wrong classes one after the other; or (outputs,
            labels) -> [B]. With fewer classes than a ratio needs (3, targeted 4) the margin takes its place.
        num_targets: for "dlr-targeted"; at most K - 1 are used.
        targets: which classes "dlr-targeted" aims at first: "logits", those of the largest logits; or "linearised",
            those whose decision boundaries, linearised at the image, are nearest in the norm, among the 100 of the
            largest logits (MALT, Melamed et al. 2024, arXiv 2407.02240). That costs a backward pass for each of these,
            once, and the first few then find what nine by logits find.
        bfloat16_fn: the same network computing in bfloat16, called as ``logits_fn`` is: gradients are taken through it,
            at the logits of ``logits_fn``, which alone decide on step sizes and success. For devices with bfloat16
            units; a CPU imitates it, at more time than is saved. None: all in the precision of ``logits_fn``.
        bounds: box of valid pixels: two numbers, or two arrays of one number for each channel.
        eot_samples: n >= 1 averages every gradient and comparison over n fresh keys; 0 for deterministic networks.
        targeted: labels are targets, to be reached, and the loss is minimised; not with "dlr-targeted".

    Returns:
        Each example's best point of all runs, by (share of draws misclassified, loss), inside ball and box, in the
        dtype given. An empty batch is returned as it is.

    Raises:
        InputError: for an unknown norm, loss or order of targets, a loss that has targets of its own where labels are
            targets, counts below 1, outputs of ``bfloat16_fn`` unlike those of ``logits_fn``, or arguments of the wrong
            shape, dtype or value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> apgd(linear, jax.random.key(0), images, labels, epsilon=0.1, num_steps=10).ravel().round(3)
        Array([0.4, 0.4], dtype=float32)
    """
    inputs.static(1, num_steps=num_steps, num_targets=num_targets)
    inputs.at_least(1, num_restarts=num_restarts)
    inputs.are_flags(targeted=targeted)
    _loss(loss)
    if targeted and loss == "dlr-targeted":
        raise InputError("loss must be ce, dlr or a function where labels are targets, got 'dlr-targeted'; use 'dlr'")
    if not isinstance(targets, str) or targets not in TARGETS:
        raise InputError(f"targets must be one of {', '.join(TARGETS)}, got {targets!r}; choose one of these")
    network = logits_fn
    if bfloat16_fn is not None:
        inputs.check_network(bfloat16_fn, images, (key,) if eot_samples else (), eot_samples, name="bfloat16_fn")
        network = functools.partial(with_gradients_of, bfloat16_fn, logits_fn)
    given = inputs.check(
        network, key, images, labels, norm=norm, bounds=bounds, radii={"epsilon": epsilon},
        loss=loss if callable(loss) else losses.cross_entropy, eot_samples=eot_samples, keys_per_example=True,
    )  # fmt: skip
    if given.is_empty:
        return given.given
    if loss == "dlr-targeted":
        expected = expected_logits_fn(given.logits_fn, network_key(key), num_samples=eot_samples)
        if targets == "logits":
            classes = likeliest_wrong(expected(given.images), given.labels, num_targets)
        else:
            classes = nearest_wrong(expected, given.images, given.labels, num_targets, norm=norm)
    else:
        classes = given.labels[None]
    used = given.loss if callable(loss) else loss
    best = solve(
        search(
            norm=norm, loss=used, num_steps=num_steps, bounds=given.bounds, eot_samples=eot_samples, targeted=targeted
        ),
        given.logits_fn,
        key,
        given.images,
        given.labels,
        targets=classes,
        epsilon=epsilon,
        num_restarts=num_restarts,
        run_all=False,
    )
    return given.returned(best.images)


def _loss(loss: str | LossFn):
    """(outputs, labels, targets) -> [B] of a loss's name."""
    if callable(loss):
        return lambda outputs, labels, targets: loss(outputs, labels)

    def cross_entropy(logits: Array, labels: Array, targets: Array) -> Array:
        return losses.cross_entropy(logits, labels)

    def dlr(logits: Array, labels: Array, targets: Array) -> Array:
        return (losses.dlr if logits.shape[-1] >= 3 else losses.margin)(logits, labels)

    def targeted_dlr(logits: Array, labels: Array, targets: Array) -> Array:
        return (losses.targeted_dlr if logits.shape[-1] >= 4 else losses.targeted_margin)(logits, labels, targets)

    named = {"ce": cross_entropy, "dlr": dlr, "dlr-targeted": targeted_dlr}
    if not isinstance(loss, str) or loss not in named:
        raise InputError(f"loss must be one of {', '.join(named)}, or a function, got {loss!r}; choose one of these")
    return lambda outputs, labels, targets: named[loss](getattr(outputs, "logits", outputs), labels, targets)


def _sparse_sign(gradient: Array, density: Array) -> Array:
    """The signs of each gradient's strongest entries, a share ``density`` of them, with l1 norm 1."""
    magnitude = jnp.abs(gradient).reshape(gradient.shape[0], -1)
    size = magnitude.shape[1]
    place = jnp.clip((1.0 - density) * size, 0, size - 1).astype(jnp.int32)
    weakest = jnp.take_along_axis(jnp.sort(magnitude, axis=1), place[:, None], axis=1)
    sign = jnp.sign(gradient) * (magnitude >= weakest).reshape(gradient.shape).astype(gradient.dtype)
    count = jnp.sum(jnp.abs(sign), axis=tuple(range(1, gradient.ndim)))
    return sign / geometry.per_example(count + 1e-10, gradient)


def _where(rows: Array, chosen: Array, other: Array) -> Array:
    return jnp.where(rows.reshape(rows.shape + (1,) * (chosen.ndim - 1)), chosen, other)
