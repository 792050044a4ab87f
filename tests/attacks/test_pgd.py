"""FGSM, N-FGSM and PGD: closed forms on linear networks, invariants on random ones, every way of calling them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from robustjax.attacks import fgsm, geometry, losses, n_fgsm, pgd
from robustjax.attacks.engine.best import Best
from robustjax.attacks.engine.verify import is_correct, is_robust, is_valid
from robustjax.types import InputError, Outputs

SHAPE = (8, 4, 3, 2)
SIZE = 24
EPSILON = {"linf": 0.05, "l2": 0.2, "l1": 0.25}
NORMS = tuple(EPSILON)
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
RNG = np.random.default_rng(0)
WEIGHTS = jnp.asarray(RNG.normal(size=(SIZE, 5)), jnp.float32)
HIDDEN = jnp.asarray(RNG.normal(size=(SIZE, 16)) / 5, jnp.float32)
READOUT = jnp.asarray(RNG.normal(size=(16, 5)), jnp.float32)
IMAGES = jnp.asarray(RNG.uniform(0.3, 0.7, SHAPE), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 5, SHAPE[0]))


def network(images):
    return jnp.tanh(images.reshape(-1, SIZE) @ HIDDEN) @ READOUT


def binary(images):
    """Two classes: the score of class 1 against class 0 is linear."""
    score = images.reshape(-1, SIZE) @ WEIGHTS[:, 0]
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_reaches_the_closed_form_optimum_of_a_linear_network(norm, key):
    # Away from the box, a linear score changes by at most epsilon times the dual norm of its weights.
    epsilon = EPSILON[norm]
    labels = jnp.ones(SHAPE[0], jnp.int32)
    adversarial = pgd(
        binary, key, IMAGES, labels, epsilon=epsilon, step_size=epsilon / 4, num_steps=60, norm=norm, loss=losses.margin
    )
    change = binary(IMAGES)[:, 1] - binary(adversarial)[:, 1]
    np.testing.assert_allclose(change, epsilon * np.linalg.norm(WEIGHTS[:, 0], DUAL[norm]), rtol=1e-3)


@pytest.mark.parametrize("num_restarts", [1, 2, 3])
def test_every_restart_is_a_draw_of_its_own(num_restarts, key):
    # The largest of n uniform draws in [-1, 1] is (n - 1) / (n + 1) on average.
    brightness = lambda images: jnp.stack([jnp.sum(images, axis=(1, 2, 3)) + 9.0, jnp.zeros(len(images))], axis=1)  # noqa: E731
    images, labels = jnp.full((4000, 1, 1, 1), 0.5), jnp.zeros(4000, jnp.int32)
    started = pgd(
        brightness, key, images, labels, epsilon=0.2, step_size=0.1, num_steps=0, num_restarts=num_restarts,
        loss=losses.margin,
    )  # fmt: skip
    expected = (num_restarts - 1) / (num_restarts + 1)
    np.testing.assert_allclose(np.mean(0.5 - started) / 0.2, expected, atol=0.05)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_exact_on_a_linear_network(norm, key):
    epsilon = EPSILON[norm]
    adversarial = fgsm(binary, key, IMAGES, jnp.zeros(SHAPE[0], jnp.int32), epsilon=epsilon, norm=norm)
    change = binary(adversarial)[:, 1] - binary(IMAGES)[:, 1]
    np.testing.assert_allclose(change, epsilon * np.linalg.norm(WEIGHTS[:, 0], DUAL[norm]), rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", [{}, {"num_restarts": 3}, {"keep_best": True}, {"random_start": "gaussian"}])
def test_results_are_valid_keep_their_dtype_and_raise_the_loss(norm, options, key):
    images = jnp.round(IMAGES)  # every pixel at a wall
    epsilon = EPSILON[norm]
    adversarial = pgd(
        network, key, images, LABELS, epsilon=epsilon, step_size=epsilon / 4, num_steps=8, norm=norm, **options
    )
    assert adversarial.shape == images.shape and adversarial.dtype == images.dtype
    assert bool(jnp.all(is_valid(images, adversarial, epsilon=epsilon, norm=norm)))
    before, after = (losses.cross_entropy(network(points), LABELS) for points in (images, adversarial))
    assert float(jnp.mean(after)) > float(jnp.mean(before))


def test_pgd_matches_numpy_step_by_step(key):
    points = np.asarray(IMAGES, np.float64)
    weights, labels = np.asarray(WEIGHTS, np.float64), np.asarray(LABELS)
    for _ in range(5):
        logits = points.reshape(-1, SIZE) @ weights
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        gradient = (probabilities - np.eye(5)[labels]) @ weights.T
        points = points + 0.02 * np.sign(gradient).reshape(points.shape)
        points = np.clip(np.clip(points, IMAGES - 0.05, IMAGES + 0.05), 0, 1)
    linear = lambda images: images.reshape(-1, SIZE) @ WEIGHTS  # noqa: E731
    ours = pgd(linear, key, IMAGES, LABELS, epsilon=0.05, step_size=0.02, num_steps=5, random_start=False)
    np.testing.assert_allclose(ours, points, atol=1e-6)
    # Every step raises a convex loss here, so the last point is the best.
    options = {"epsilon": 0.05, "step_size": 0.01, "num_steps": 5, "random_start": False}
    last, best = (pgd(linear, key, IMAGES, LABELS, keep_best=kept, **options) for kept in (False, True))
    np.testing.assert_array_equal(best, last)


def test_targeted_pgd_moves_towards_the_target(key):
    target = (LABELS + 1) % 5
    options = {"epsilon": 0.1, "step_size": 0.02, "num_steps": 10, "targeted": True, "num_restarts": 2}
    adversarial = pgd(network, key, IMAGES, target, **options)
    before, after = (losses.cross_entropy(network(points), target) for points in (IMAGES, adversarial))
    assert bool(jnp.all(after < before))


def test_more_restarts_never_hurt_an_example(key):
    options = {"epsilon": 0.1, "step_size": 0.1, "num_steps": 1}
    scores = []
    for restarts in (1, 2, 6):
        # The first restart of several is the single one of `num_restarts=2`, so outcomes are nested.
        adversarial = pgd(network, key, IMAGES, LABELS, num_restarts=max(2, restarts), **options)
        wrong = ~is_correct(network(adversarial), LABELS)
        scores.append(np.asarray(jnp.where(wrong, 100.0, 0.0) + losses.cross_entropy(network(adversarial), LABELS)))
    assert np.all(scores[2] >= scores[1] - 1e-6) and np.any(scores[2] > scores[1] + 1e-4)


def test_misclassified_beats_a_higher_loss():
    images = jnp.zeros((1, 1))
    best = Best.none(images).or_better(images + 1, jnp.array([1.0]), jnp.array([0.7]))
    assert best.or_better(images + 2, jnp.array([0.0]), jnp.array([0.8])).images == 1
    assert best.or_better(images + 3, jnp.array([1.0]), jnp.array([0.8])).images == 3


def test_keep_best_is_at_least_as_strong_as_the_last_iterate(key):
    # Steps as long as the ball make the last iterate jump from wall to wall.
    options = {"epsilon": 0.2, "step_size": 0.4, "num_steps": 9, "random_start": False, "loss": losses.margin}
    last = losses.margin(network(pgd(network, key, IMAGES, LABELS, **options)), LABELS)
    best = losses.margin(network(pgd(network, key, IMAGES, LABELS, keep_best=True, **options)), LABELS)
    assert np.all(best >= last - 1e-5)


def test_non_finite_gradients_do_not_stop_or_spoil_the_attack(key):
    def poisoned(images):
        logits = network(images)
        return logits + 0.0 * jnp.sum(jnp.sqrt(jnp.maximum(images[:, :1, :1, 0] - 2.0, 0.0)))

    gradient = jax.grad(lambda images: jnp.sum(poisoned(images)))(IMAGES)
    assert not bool(jnp.all(jnp.isfinite(gradient)))  # the trap is set
    adversarial = pgd(poisoned, key, IMAGES, LABELS, epsilon=0.05, step_size=0.01, num_steps=10)
    assert bool(jnp.all(is_valid(IMAGES, adversarial, epsilon=0.05)))
    before, after = (losses.cross_entropy(network(points), LABELS) for points in (IMAGES, adversarial))
    assert bool(jnp.all(after > before))


def test_a_saturated_network_is_still_attacked(key):
    def sure(images):
        score = 100.0 * (jnp.mean(images, axis=(1, 2, 3)) - 0.2)
        return jnp.stack([jnp.zeros_like(score), score], axis=1)

    labels = jnp.ones(SHAPE[0], jnp.int32)
    # The probability of the right class is exactly 1 in float32, and p (1 - p) exactly 0, however they are compiled.
    usual = lambda logits, labels: -jax.nn.sigmoid(logits[:, 1] - logits[:, 0])  # noqa: E731
    options = {"epsilon": 0.4, "step_size": 0.1, "num_steps": 10, "random_start": False}
    assert bool(jnp.all(is_correct(sure(pgd(sure, key, IMAGES, labels, loss=usual, **options)), labels)))
    assert not bool(jnp.any(is_correct(sure(pgd(sure, key, IMAGES, labels, **options)), labels)))


def test_eot_averages_over_fresh_keys(key):
    # The gradient's sign is right in 7 of 10 draws only: a single draw walks at random, an average does not.
    def noisy(images, key):
        sign = jnp.where(jax.random.bernoulli(key, 0.7), 1.0, -1.0)
        return binary(IMAGES) + sign * (binary(images) - binary(IMAGES))

    labels = jnp.ones(SHAPE[0], jnp.int32)
    options = {"epsilon": 0.05, "step_size": 0.05, "num_steps": 1, "random_start": False, "loss": losses.margin}
    fixed = lambda samples: pgd(noisy, key, IMAGES, labels, eot_samples=samples, **options)  # noqa: E731
    change = binary(IMAGES)[:, 1] - binary(fixed(64))[:, 1]
    np.testing.assert_allclose(change, 0.05 * np.sum(np.abs(WEIGHTS[:, 0])), rtol=1e-4)
    assert bool(jnp.all(is_valid(IMAGES, fixed(1), epsilon=0.05)))
    restarted = pgd(noisy, key, IMAGES, labels, eot_samples=2, num_restarts=2, **options)
    assert bool(jnp.all(is_valid(IMAGES, restarted, epsilon=0.05)))


def test_outputs_may_be_a_pytree_that_the_loss_accepts(key):
    def with_head(images):
        return Outputs(network(images), {"probe": network(images[:, ::-1])[None]}, {})

    def joint(outputs, labels):
        return losses.cross_entropy(outputs.logits, labels) + losses.cross_entropy(
            outputs.auxiliary["probe"][0], labels
        )

    options = {"epsilon": 0.05, "step_size": 0.02, "num_steps": 5, "num_restarts": 2}
    adversarial = pgd(with_head, key, IMAGES, LABELS, loss=joint, **options)
    assert bool(jnp.all(joint(with_head(adversarial), LABELS) > joint(with_head(IMAGES), LABELS)))
    pair = pgd(lambda x: (network(x), x), key, IMAGES, LABELS, loss=lambda o, y: losses.margin(o[0], y), **options)
    assert bool(jnp.all(is_valid(IMAGES, pair, epsilon=0.05)))


def test_kl_against_the_networks_own_distribution_grows_from_the_gaussian_start(key):
    natural = jax.nn.softmax(network(IMAGES))
    attack = partial(pgd, network, key, IMAGES, natural, epsilon=0.05, step_size=0.02, random_start="gaussian")
    start, end = (losses.kl(network(attack(num_steps=steps, loss=losses.kl)), natural) for steps in (0, 5))
    assert bool(jnp.all(end > 100 * start)) and bool(jnp.all(start > 0))


def test_zero_epsilon_and_zero_steps_return_the_images(key):
    np.testing.assert_array_equal(pgd(network, key, IMAGES, LABELS, epsilon=0.0, step_size=0.1, num_steps=3), IMAGES)
    np.testing.assert_array_equal(
        pgd(network, key, IMAGES, LABELS, epsilon=0.1, step_size=0.1, num_steps=0, random_start=False), IMAGES
    )


def test_another_box_is_respected(key):
    images = 4.0 * IMAGES - 2.0
    adversarial = pgd(network, key, images, LABELS, epsilon=3.0, step_size=1.0, num_steps=3, bounds=(-2.0, 2.0))
    assert float(adversarial.min()) == -2.0 and float(adversarial.max()) == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l7"}, "norm must be one of"),
        ({"num_steps": -1}, "num_steps must be at least 0"),
        ({"num_restarts": 0}, "num_restarts must be at least 1"),
        ({"eot_samples": -1}, "eot_samples must be at least 0"),
        ({"random_start": "uniform"}, "random_start must be"),
        ({"epsilon": jnp.zeros(3)}, "epsilon must be a number >= 0, or one for each of 8 examples"),
    ],
)
def test_wrong_options_are_named(options, message, key):
    with pytest.raises(ValueError, match=message):
        pgd(network, key, IMAGES, LABELS, **{"epsilon": 0.1, "step_size": 0.1, "num_steps": 1, **options})


def test_n_fgsm_steps_from_noise_and_stays_in_the_box(key):
    adversarial = n_fgsm(network, key, jnp.round(IMAGES), LABELS, epsilon=0.1)
    delta = np.abs(adversarial - jnp.round(IMAGES))
    assert 0.1 < delta.max() <= 0.3 + 1e-6
    assert float(adversarial.min()) >= 0 and float(adversarial.max()) <= 1


def _transformed(attack):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    batch = PartitionSpec("data")
    split = lambda x: x.reshape(4, x.shape[0] // 4, *x.shape[1:])  # noqa: E731
    yield "jit", jax.jit(attack)(IMAGES, LABELS)
    sharded = jax.device_put((IMAGES, LABELS), NamedSharding(mesh, batch))
    yield "jit over a mesh", jax.jit(attack)(*sharded)
    mapped = jax.shard_map(attack, mesh=mesh, in_specs=(batch, batch), out_specs=batch)
    yield "shard_map", jax.jit(mapped)(IMAGES, LABELS)
    yield "pmap", jax.pmap(attack)(split(IMAGES), split(LABELS)).reshape(IMAGES.shape)
    yield "vmap", jax.vmap(attack)(split(IMAGES), split(LABELS)).reshape(IMAGES.shape)


@pytest.mark.parametrize(("norm", "restarts"), [("linf", 2), ("l2", 1), pytest.param("l1", 1, marks=pytest.mark.slow)])
def test_every_transformation_gives_the_eager_result(norm, restarts, key):
    # A deterministic start: shards of a batch draw other noise than the whole.
    def attack(images, labels):
        return pgd(
            network, key, images, labels, epsilon=EPSILON[norm], step_size=EPSILON[norm] / 4, num_steps=4, norm=norm,
            random_start=False, num_restarts=restarts,
        )  # fmt: skip

    expected = attack(IMAGES, LABELS)
    for name, result in _transformed(attack):
        np.testing.assert_allclose(result, expected, atol=2e-6, err_msg=name)


def test_eot_runs_under_every_transformation(key):
    noisy = lambda images, key: network(images) + 1e-3 * jax.random.normal(key, (images.shape[0], 5))  # noqa: E731

    def attack(images, labels):
        return pgd(noisy, key, images, labels, epsilon=0.05, step_size=0.02, num_steps=2, num_restarts=2, eot_samples=3)

    for name, result in _transformed(attack):
        assert bool(jnp.all(is_valid(IMAGES, result, epsilon=0.05))), name


def test_vmap_over_keys_gives_independent_starts(key):
    attack = partial(pgd, network, images=IMAGES, labels=LABELS, epsilon=0.05, step_size=0.01, num_steps=1)
    several = jax.vmap(lambda key: attack(key=key))(jax.random.split(key, 3))
    assert several.shape == (3, *SHAPE) and len(np.unique(np.asarray(several), axis=0)) == 3


def test_a_new_batch_of_the_same_shape_is_not_compiled_again(key):
    traces = 0

    @jax.jit
    def attack(images, labels, epsilon):
        nonlocal traces
        traces += 1
        return pgd(network, key, images, labels, epsilon=epsilon, step_size=epsilon / 4, num_steps=3)

    for i in range(3):
        attack(IMAGES + 0.01 * i, LABELS, 0.01 * (i + 1))
    assert traces == 1


def test_verification_sees_what_is_invalid():
    images = jnp.full((5, 2, 2, 1), 0.95)
    changed = images.at[0].add(0.0).at[1].add(0.101).at[2].add(-0.1).at[3].set(jnp.nan).at[4, 0, 0, 0].set(1.04)
    np.testing.assert_array_equal(is_valid(images, changed, epsilon=0.1), [True, False, True, False, False])


def test_survivors_are_right_before_and_after(key):
    away = lambda logits_fn, key, images, labels: 1.0 - images  # noqa: E731
    logits = jnp.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    labels = jnp.array([0, 0, 1])
    np.testing.assert_array_equal(is_robust(lambda x: x, None, key, logits, labels), [True, False, False])
    np.testing.assert_array_equal(is_robust(lambda x: x, away, key, logits, labels), [False, False, False])


def test_geometry_is_exported():
    assert set(geometry.GEOMETRIES) == set(NORMS)


@pytest.mark.parametrize("norm", NORMS)
def test_a_widened_ball_shrinks_in_the_first_four_fifths_of_the_steps(norm, key):
    epsilon, size, count = EPSILON[norm], EPSILON[norm] / 3, 5
    options = {"epsilon": epsilon, "step_size": size, "num_steps": count, "norm": norm, "random_start": False}
    ours = pgd(network, key, IMAGES, LABELS, widened=3.0, **options)
    ball, points = geometry.get(norm), IMAGES
    loss = lambda points: jnp.sum(losses.cross_entropy(network(points), LABELS))  # noqa: E731
    for factor in (3**0.75, 3**0.5, 3**0.25, 1.0, 1.0):
        points = points + factor * size * ball.steepest(jax.grad(loss)(points), points, (0.0, 1.0))
        points = ball.project(IMAGES, points, factor * epsilon, (0.0, 1.0))
    np.testing.assert_allclose(ours, points, atol=2e-6)


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"num_steps": 3, "keep_best": True}, {"num_steps": 3}])
def test_from_a_widened_ball_everything_ends_in_the_ball(options, key):
    flat = lambda images: jnp.zeros((len(images), 5))  # noqa: E731
    given = {"epsilon": 0.05, "step_size": 0.0, "loss": losses.margin, "widened": np.float32(4.0), **options}
    moved = np.asarray(pgd(flat, key, IMAGES, LABELS, **given) - IMAGES)
    assert np.abs(moved).max() <= 0.05 + 1e-7
    np.testing.assert_allclose(np.mean(np.abs(moved) > 0.0499), 0.75, atol=0.1)  # began uniformly within 0.2
    if not options.get("keep_best"):
        unwidened = pgd(flat, key, IMAGES, LABELS, **given | {"widened": 1.0}) - IMAGES
        np.testing.assert_allclose(moved, np.clip(4 * np.asarray(unwidened), -0.05, 0.05), atol=1e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize("widened", [0.5, float("nan"), float("inf"), "4"])
def test_a_ball_that_is_not_widened_is_refused(widened, key):
    with pytest.raises(InputError, match="widened must be a number from 1, got"):
        pgd(network, key, IMAGES, LABELS, epsilon=0.1, step_size=0.1, num_steps=1, widened=widened)
