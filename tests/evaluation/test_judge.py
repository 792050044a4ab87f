"""Verdicts on networks with a known answer; one compilation serves nearly all of them."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import verdict_toys as toys

from robustjax.evaluation import Hints, Verdict, judge
from robustjax.evaluation.verdict import diagnostics, goals, red_flags, trust
from robustjax.types import InputError, Outputs

# Toy -> flags that have to fire. The honest ones come first: nothing may.
FIRES = {
    "robust": {},
    "undefended": {},
    "masked": {
        "zero_gradients": "fail",
        "black_box_beats_white_box": "fail",
        "random_search_succeeds": "fail",
        "unbounded_attack_fails": "fail",
        "relaxation_helps": "fail",
    },
    "saturated": {"zero_gradients": "fail"},
    "softmax": {"probabilities": "fail"},
    "nan gradient": {"nonfinite_gradients": "fail", "shattered_gradients": "fail"},
    "nan logits": {"nonfinite_logits": "fail"},
    "misleading": {
        "shattered_gradients": "fail",
        "black_box_beats_white_box": "fail",
        "relaxation_helps": "fail",
    },
    "constant": {"zero_gradients": "fail", "unbounded_attack_fails": "fail"},
    "hill": {"one_step_beats_many": "fail"},
    "watershed": {"more_restarts_help": "fail"},
    "spike": {"accuracy_rises_with_epsilon": "fail"},
    "gates": {"more_steps_help": "fail", "step_size_sensitive": "warn"},
    "crowd": {"loss_and_margin_disagree": "warn"},
    "of batch": {"batch_dependent": "fail"},
}


CASES = toys.marked(FIRES, slow={"saturated", "misleading", "constant"})


@pytest.fixture(scope="module")
def verdicts():
    networks = toys.toys()
    return toys.Verdicts(lambda name: judge(networks[name], toys.KEY, *toys.examples(name), epsilon=toys.EPSILON))


def fired(verdict):
    return {name: flag.status for name, flag in verdict.flags.items() if flag.status in ("warn", "fail")}


@pytest.mark.parametrize("name", CASES)
def test_flags_fire_where_they_should(verdicts, name):
    found = fired(verdicts[name])
    assert FIRES[name].items() <= found.items()
    if not FIRES[name]:
        assert not found


@pytest.mark.parametrize("name", CASES)
def test_figures_are_consistent(verdicts, name):
    verdict = verdicts[name]
    assert isinstance(verdict, Verdict) and list(verdict.flags) == list(red_flags.NAMES)
    assert verdict.worst_case <= verdict.autoattack <= verdict.clean
    assert verdict.robust.dtype == bool and verdict.worst_case == verdict.robust.mean()
    lost = np.logical_or.reduce(list(verdict.misclassified_by.values()))
    for i, won in enumerate(verdict.won_by):
        first = next((attack for attack, rows in verdict.misclassified_by.items() if rows[i]), None)
        assert won == ("clean" if first is None and not verdict.robust[i] else first)
        assert verdict.robust[i] == (won is None) and lost[i] == (won not in (None, "clean"))
    assert verdict.won_by.count("clean") == round((1 - verdict.clean) * toys.COUNT)
    assert verdict.seconds["total"] == pytest.approx(sum(verdict.seconds.values()) / 2)
    read = json.loads(json.dumps(trust.to_json(verdict)))
    assert read["robust"] == verdict.robust.tolist() and read["won_by"] == verdict.won_by


def test_worst_cases_are_those_that_were_built_in(verdicts):
    # Misclassified at u = 1; at the spike; and eight classes never reach the first.
    expected = {"hill": 0.0, "watershed": 0.0, "spike": 0.0, "gates": 0.0, "crowd": 1.0}
    assert {name: verdicts[name].worst_case for name in expected} == expected
    # A monotonous change of the logits changes no robustness; masking a gradient gives none.
    assert verdicts["softmax"].worst_case == verdicts["robust"].worst_case
    assert verdicts["masked"].worst_case < verdicts["masked"].clean - 0.3
    assert verdicts["robust"].worst_case > verdicts["undefended"].worst_case + 0.2


@pytest.mark.slow
def test_worst_cases_without_a_gradient_are_those_that_were_built_in(verdicts):
    assert verdicts["constant"].worst_case == 1.0
    # Half of the attacks have no gradient here, so a random start may cost an example.
    assert verdicts["saturated"].worst_case == pytest.approx(verdicts["robust"].worst_case, abs=1.5 / toys.COUNT)


def test_a_linear_network_in_closed_form_in_l2():
    images, labels, distances = toys.linear_examples(64, "l2")
    epsilon = float(np.median(distances)) * 1.01
    labels[0] = (labels[0] + 1) % 4

    class Network:
        """A callable object without a hash, as some libraries' modules are."""

        __hash__ = None

        def __call__(self, images):
            return Outputs(toys.linear(images).astype(jnp.float64), {}, {})

    # Lists as bounds, float64 images and logits and a network that returns more than logits are fine.
    images = images.astype(np.float64)
    began = time.perf_counter()
    with jax.enable_x64(True):
        verdict = judge(Network(), toys.KEY, images, labels, epsilon=epsilon, norm="l2", bounds=[0, 1])
    expected = distances > epsilon
    expected[0] = False
    np.testing.assert_array_equal(verdict.robust, expected)
    assert verdict.won_by[0] == "clean" and verdict.clean == 63 / 64
    assert not fired(verdict) and not verdict.findings
    assert 0.0 < verdict.seconds["total"] <= time.perf_counter() - began


@pytest.mark.parametrize("dtype", toys.marked(["float16", "bfloat16", "float64"], slow={"float16", "float64"}))
def test_images_of_another_dtype_are_evaluated_as_float32(verdicts, dtype):
    images, labels = toys.examples("robust")  # sixteenths, exact in every dtype
    images = images.astype(jnp.dtype(dtype))
    verdict = judge(toys.toys()["robust"], toys.KEY, images, labels, epsilon=toys.EPSILON)
    np.testing.assert_array_equal(verdict.robust, verdicts["robust"].robust)
    assert verdict.adversarial.dtype == np.float32


def test_a_batch_dependent_network_is_told_from_one_that_is_not():
    images, _, _ = toys.linear_examples(16, "linf")

    def status(network, *keys):
        return diagnostics.batch_dependence(goals.as_logits_fn(network), images, (0.0, 1.0), keys).status

    def centred(images):
        return toys.linear(images - jnp.mean(images, axis=0, keepdims=True))

    def noisy(images, key):
        return toys.linear(images + 0.1 * jax.random.normal(key, images.shape))

    assert (status(toys.linear), status(centred)) == ("pass", "fail")
    # Noise that depends on the key and on the place in the batch does not depend on the other images.
    assert status(noisy, toys.KEY) == "pass"
    assert status(lambda images, key: centred(images) + noisy(images, key), toys.KEY) == "fail"


def test_a_flag_says_what_to_do_about_a_batch_dependent_network(verdicts):
    assert "inference mode" in verdicts["of batch"].flags["batch_dependent"].explanation


def test_what_cannot_be_differentiated_or_repeated_is_attacked_and_flagged():
    rng = np.random.default_rng(0)

    def noise(images):
        return np.round(np.asarray(images) * 16) / 16 + 0.02 * rng.normal(size=images.shape).astype(np.float32)

    def network(images):
        # A shape alone, so that JAX neither knows of the noise nor has a derivative.
        return toys.linear(jax.pure_callback(noise, jax.ShapeDtypeStruct(images.shape, jnp.float32), images))

    images, labels, _ = toys.linear_examples(32, "linf")
    verdict = judge(network, toys.KEY, images, labels, epsilon=0.02)
    found = fired(verdict)
    assert found["randomness"] == found["zero_gradients"] == "fail"
    assert verdict.flags["batch_dependent"].status == "na"
    assert "cannot be differentiated" in verdict.flags["zero_gradients"].explanation
    assert verdict.worst_case < verdict.clean


def out_of_order(images):
    def host(images):
        raise ValueError("the sensor is off")

    return toys.linear(jax.pure_callback(host, jax.ShapeDtypeStruct(images.shape, jnp.float32), images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"logits_fn": out_of_order},
            r"calls back, got ValueError: the sensor is off in tests.*test_judge.py:\d+ \(host",
        ),
        ({"budget": "huge"}, "budget must be one of quick, full, got 'huge'"),
        ({"budget": ["quick"]}, "budget must be one of quick, full, got"),
        ({"norm": "l3"}, "norm.*linf, l2, l1.*'l3'"),
        ({"epsilon": -1.0}, "epsilon.*-1"),
        ({"epsilon": 8}, "epsilon must be at most 1 for linf, .*got 8; 8/255 is 0.0313"),
        ({"epsilon": float("nan")}, "epsilon.*nan"),
        ({"epsilon": np.full(2, 0.1)}, r"epsilon must be a number, got shape \[2\]"),
        ({"epsilon": None}, "^epsilon must be a number >= 0, got None; give one number for all"),
        ({"images": np.full((2, 8, 8, 1), 2.0, np.float32)}, r"images.*\[0.0, 1.0\]"),
        ({"images": np.full((2, 8, 8, 1), np.nan, np.float32)}, "images.*nan"),
        ({"images": np.zeros((2, 8, 8, 1), np.uint8)}, "images.*float.*uint8"),
        ({"labels": np.array([0, 4])}, "labels must be classes 0 to 3, as there are logits, got 0 to 4"),
        ({"labels": np.array([0])}, r"labels.*\[2\]"),
        ({"labels": np.eye(4, dtype=np.float32)[:2]}, "labels.*float32"),
        ({"key": jax.random.PRNGKey(0)}, r"`?key.*uint32"),
        (
            {"logits_fn": lambda images: images},
            r"logits_fn must return float logits \[2, K\] with K >= 2, got float32 \[2, 8, 8, 1\]",
        ),
        ({"logits_fn": lambda images: toys.linear(images)[:, :1]}, r"logits_fn.*K >= 2, got float32 \[2, 1\]"),
        (
            {"logits_fn": lambda images: toys.linear(images)[:1]},
            r"logits_fn must return float logits \[2, K\] with K >= 2, got float32 \[1, 4\]",
        ),
        (
            {"logits_fn": lambda images, key: toys.linear(images)},
            r"logits_fn must take \(images\), got \(images, key\)",
        ),
        ({"hints": Hints(stochastic=True)}, r"logits_fn must take \(images, key\), as the hints say stochastic"),
        ({"hints": {"stochastic": False}}, r"hints must be Hints\(...\), got dict"),
        ({"hints": Hints(stochastic="no")}, "hints.stochastic must be True or False, got 'no'"),
        ({"hints": Hints(undefended_fn=3)}, r"hints.undefended_fn must be a function of \(images\), got int"),
        (
            {"hints": Hints(auxiliary_fn=toys.linear)},
            r"hints.auxiliary_fn must return logits \[S, B, K\] with B = 2 and K = 4, got shape \[2, 4\]",
        ),
        (
            {"hints": Hints(surrogate_fn=lambda images: toys.linear(images)[:, :3])},
            r"hints.surrogate_fn must return logits \[2, 4\] as logits_fn does, got shape \[2, 3\]",
        ),
    ],
)
def test_mistakes_are_named(change, message):
    images, labels, _ = toys.linear_examples(2, "linf")
    arguments = {"logits_fn": toys.linear, "key": toys.KEY, "images": images, "labels": labels, "epsilon": 0.1} | change
    call = [arguments.pop(name) for name in ("logits_fn", "key", "images", "labels")]
    with pytest.raises(InputError, match=message) as caught:
        judge(*call, **arguments)
    assert "\n" not in str(caught.value)
