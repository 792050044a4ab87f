"""Training objectives against NumPy in float64, and their gradients against finite differences."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from robustjax import build, config, objectives
from robustjax.types import Outputs

RNG = np.random.default_rng(1)
NATURAL = RNG.normal(0, 2, (32, 5))
ADVERSARIAL = NATURAL + RNG.normal(0, 1, (32, 5))
LABELS = RNG.integers(0, 5, 32)
ROWS = np.arange(32)


def _probabilities(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def _jax(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def _trades(natural, adversarial, beta, smoothing=0.0):
    p, q = _probabilities(natural), _probabilities(adversarial)
    target = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
    return -np.sum(target * np.log(p), 1) + beta * np.sum(p * np.log(p / q), 1)


def _mart(natural, adversarial, beta):
    p, q = _probabilities(natural), _probabilities(adversarial)
    wrong = np.where(np.eye(5)[LABELS] == 1, 0, q).max(1)
    boosted = -np.log(q[ROWS, LABELS]) - np.log(1.0001 - wrong + 1e-12)
    return boosted + beta * np.sum(p * np.log(p / q), 1) * (1 - p[ROWS, LABELS])


def _nuat(natural, adversarial, beta):
    return _trades(natural, natural, 0.0) + beta * np.linalg.norm(adversarial - natural, "nuc") / len(natural)


def _pgi(prior, adversarial, beta):
    return _trades(adversarial, adversarial, 0.0) + beta * ((adversarial - prior) ** 2).mean(1)


ORACLES = {
    "trades": (partial(objectives.trades, beta=6.0), lambda a, b: _trades(a, b, 6.0)),
    "smoothed": (partial(objectives.trades, beta=1.0, label_smoothing=0.1), lambda a, b: _trades(a, b, 1.0, 0.1)),
    "mart": (partial(objectives.mart, beta=5.0), lambda a, b: _mart(a, b, 5.0)),
    "pgi": (partial(objectives.pgi, beta=10.0), lambda a, b: _pgi(a, b, 10.0)),
}


class ObjectivesTest(chex.TestCase):
    @chex.all_variants
    @parameterized.parameters(*ORACLES)
    def test_values_and_gradients_match_numpy(self, name):
        objective, oracle = ORACLES[name]
        natural, adversarial = _jax(NATURAL, ADVERSARIAL)
        labels = jnp.asarray(LABELS)
        values = self.variant(objective)(natural, adversarial, labels)
        np.testing.assert_allclose(values, oracle(NATURAL, ADVERSARIAL), rtol=1e-4)
        total = jax.grad(lambda a, b, labels: objective(a, b, labels).sum(), argnums=(0, 1))
        for i, gradient in enumerate(self.variant(total)(natural, adversarial, labels)):
            direction = RNG.normal(size=NATURAL.shape)
            step = 1e-5 * direction
            pair = lambda sign, i=i, step=step: [  # noqa: E731
                logits + sign * step * (i == j) for j, logits in enumerate((NATURAL, ADVERSARIAL))
            ]
            slope = (oracle(*pair(1)) - oracle(*pair(-1))) / 2e-5
            np.testing.assert_allclose(np.sum(gradient * direction, 1), slope, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("beta", [1.0, 6.0])
def test_without_a_perturbation_only_the_natural_term_is_left(beta):
    (natural,), labels = _jax(NATURAL), jnp.asarray(LABELS)
    expected = objectives.smoothed_cross_entropy(natural, labels)
    np.testing.assert_allclose(objectives.trades(natural, natural, labels, beta=beta), expected, atol=1e-5)
    expected = objectives.mart(natural, natural, labels, beta=0.0)
    np.testing.assert_allclose(objectives.mart(natural, natural, labels, beta=beta), expected, atol=1e-5)


@pytest.mark.parametrize("objective", [partial(objectives.trades, beta=6.0), partial(objectives.mart, beta=5.0)])
def test_extreme_logits_keep_values_and_gradients_finite(objective):
    natural, adversarial = jnp.array([[500.0, 0.0, -500.0]] * 2), jnp.array([[-500.0, 0.0, 500.0]] * 2)
    value, gradients = jax.value_and_grad(lambda a, b: objective(a, b, jnp.array([0, 2])).sum(), argnums=(0, 1))(
        natural, adversarial
    )
    assert bool(jnp.isfinite(value)) and all(bool(jnp.all(jnp.isfinite(gradient))) for gradient in gradients)


def test_label_smoothing_is_cross_entropy_against_soft_labels():
    (logits,), labels = _jax(NATURAL), jnp.asarray(LABELS)
    expected = -np.sum((0.8 * np.eye(5)[LABELS] + 0.04) * np.log(_probabilities(NATURAL)), 1)
    np.testing.assert_allclose(
        objectives.smoothed_cross_entropy(logits, labels, label_smoothing=0.2), expected, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("objective", "views", "oracle"),
    [
        (objectives.standard_objective(label_smoothing=0.0), ("natural",), lambda: _trades(NATURAL, NATURAL, 0.0)),
        (
            objectives.adversarial_objective(label_smoothing=0.1),
            ("adversarial",),
            lambda: _trades(ADVERSARIAL, ADVERSARIAL, 0.0, 0.1),
        ),
        (
            objectives.trades_objective(beta=6.0, label_smoothing=0.0),
            ("natural", "adversarial"),
            lambda: _trades(NATURAL, ADVERSARIAL, 6.0),
        ),
        (objectives.mart_objective(beta=5.0), ("natural", "adversarial"), lambda: _mart(NATURAL, ADVERSARIAL, 5.0)),
        (
            objectives.nuat_objective(beta=4.0, label_smoothing=0.0),
            ("natural", "adversarial"),
            lambda: _nuat(NATURAL, ADVERSARIAL, 4.0),
        ),
        (
            objectives.pgi_objective(beta=10.0, label_smoothing=0.0),
            ("prior", "adversarial"),
            lambda: _pgi(NATURAL, ADVERSARIAL, 10.0),
        ),
    ],
)
def test_objectives_need_the_views_they_name_and_no_more(objective, views, oracle):
    assert objective.views == views
    logits = dict(zip(("natural", "prior", "adversarial"), _jax(NATURAL, NATURAL, ADVERSARIAL), strict=True))
    outputs = {view: Outputs(logits[view], {}, {}) for view in views}
    own = {view: output.logits for view, output in outputs.items()}
    np.testing.assert_allclose(objective.term(outputs)(own, jnp.asarray(LABELS)), oracle(), rtol=1e-4)


def test_of_other_logits_mart_keeps_the_weight_of_the_networks_own():
    natural, adversarial, head = _jax(NATURAL, ADVERSARIAL, NATURAL[:, ::-1])
    outputs = {"natural": Outputs(natural, {}, {}), "adversarial": Outputs(adversarial, {}, {})}
    term = objectives.mart_objective(beta=5.0).term(outputs)
    ours = term({"natural": head, "adversarial": adversarial}, jnp.asarray(LABELS))
    p, q = _probabilities(NATURAL[:, ::-1]), _probabilities(ADVERSARIAL)
    own = 1 - _probabilities(NATURAL)[ROWS, LABELS]
    expected = _mart(NATURAL, ADVERSARIAL, 0.0) + 5.0 * np.sum(p * np.log(p / q), 1) * own
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_attacks_climb_cross_entropy_or_the_divergence():
    natural, adversarial = _jax(NATURAL, ADVERSARIAL)
    logits, labels = {"natural": natural, "adversarial": adversarial}, jnp.asarray(LABELS)
    expected = _trades(ADVERSARIAL, ADVERSARIAL, 0.0)
    np.testing.assert_allclose(objectives.climb_cross_entropy(logits, labels), expected, rtol=1e-5)
    expected = _trades(NATURAL, ADVERSARIAL, 1.0) - _trades(NATURAL, ADVERSARIAL, 0.0)
    np.testing.assert_allclose(objectives.climb_divergence(logits, labels), expected, rtol=1e-4, atol=1e-5)
    nuat = objectives.nuat_objective(beta=4.0, label_smoothing=0.0)
    expected = _nuat(ADVERSARIAL, 2 * ADVERSARIAL - NATURAL, 4.0)  # the same difference, from the adversarial logits
    np.testing.assert_allclose(nuat.inner(logits, labels), expected, rtol=1e-4)
    assert nuat.inner_views == ("natural", "adversarial")


def test_the_nuclear_norm_has_the_gradient_of_its_singular_vectors():
    difference = ADVERSARIAL - NATURAL
    u, _, vt = np.linalg.svd(difference, full_matrices=False)
    np.testing.assert_allclose(jax.grad(objectives.nuclear_norm)(*_jax(difference)), u @ vt, atol=1e-4)


def test_the_nuclear_norm_of_few_directions_pushes_along_them_alone():
    """The attack of NuAT may start at the image itself, where there is none; natural images have none either."""
    np.testing.assert_array_equal(jax.grad(objectives.nuclear_norm)(jnp.zeros((6, 4))), np.zeros((6, 4)))
    a, b = np.array([0.0, 0.0, 3.0, 4.0, 0.0]), np.array([2.0, 2.0, 1.0])
    for scale in (1.0, 1e-20):
        found, slope = jax.value_and_grad(objectives.nuclear_norm)(jnp.asarray(scale * np.outer(a, b), jnp.float32))
        np.testing.assert_allclose(found, scale * 15.0, rtol=1e-5)
        np.testing.assert_allclose(slope, np.outer(a, b) / 15.0, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "start"),
    [("standard", None), ("adversarial", None), ("trades", "gaussian"), ("mart", "gaussian"), ("nuat", None),
     ("pgi", None)],
)  # fmt: skip
def test_only_trades_and_mart_start_where_their_papers_say(objective, start):
    made = config.digits()
    made.objective.name = objective
    assert build.objective(made).start == start


@pytest.mark.parametrize("attack", ["pgd", "friendly"])
@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize(
    ("objective", "start"),
    [("standard", None), ("adversarial", None), ("trades", "gaussian"), ("mart", "gaussian")],
)
def test_the_training_attack_starts_where_config_or_paper_say(key, objective, start, random_start, attack):
    """Standard training with SNS looks at natural images too, and starts as attack.random_start says all the same."""
    made = config.digits()
    made.objective.name, made.defense.name, made.attack.name = objective, "sns", attack
    made.attack.random_start, made.attack.num_steps = random_start, 1
    train_attack = build.training_attack(made, build.objective(made))
    seen = []

    def outputs_fn(images):
        jax.debug.callback(lambda distance: seen.append(float(distance)), jnp.abs(images - 0.5).max())
        return Outputs(jnp.stack([images.sum((1, 2, 3)), jnp.zeros(len(images))], axis=1), {}, {})

    images, labels = jnp.full((4, 3, 3, 1), 0.5), jnp.zeros(4, jnp.int32)
    train_attack(outputs_fn, key, images, labels, loss=lambda outputs, _: outputs.logits[:, 0], scale=jnp.float32(1.0))
    jax.effects_barrier()
    distance = seen[0]
    if start == "gaussian":
        assert 0 < distance < 0.01
    elif random_start:
        assert 0.1 < distance <= made.attack.epsilon + 1e-6
    else:
        assert distance == 0
