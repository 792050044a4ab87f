"""`evaluate` on networks whose every answer is known, and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import evaluation
from robustjax.evaluation import Hints, Threat
from robustjax.types import InputError, Outputs

LEVELS = np.array([20, 90, 120, 140, 200, 250, 130, 108], np.float32) / 255
IMAGES = np.tile(LEVELS.reshape(8, 1, 1, 1), (1, 2, 2, 1))
LABELS = (LEVELS > 0.5).astype(np.int64)


def network(images):
    score = images.mean(axis=(1, 2, 3)) - 0.5
    return jnp.stack([-score, score], axis=1)


def evaluate(logits_fn=network, **options):
    options = {"threat": Threat("linf", 0.1), "attacks": ("clean", "pgd20"), "batch_size": 4, **options}
    return evaluation.evaluate(logits_fn, jax.random.key(0), IMAGES, LABELS, **options)


def test_records_hold_the_closed_form_and_the_contracts_fields():
    result = evaluate()
    clean, attacked = result.records
    assert clean["accuracy"] == 1.0
    np.testing.assert_array_equal(attacked["robust"], np.abs(LEVELS - 0.5) > 0.1)
    assert result.worst_case["robust"] == attacked["robust"] and result.worst_case["attack"] == "worst_case"
    fields = {"attack", "norm", "epsilon", "num_steps", "num_restarts", "num_examples", "accuracy", "robust"}
    assert fields | {"seconds", "config", "commit", "versions", "hardware"} <= attacked.keys()


def test_several_threats_have_a_record_each_and_one_worst_case(tmp_path):
    threats = [Threat("linf", 0.02), Threat("l2", 0.2)]  # the second is linf 0.1 for four equal pixels
    result = evaluate(threat=threats, attacks=("pgd20",))
    assert [(record["norm"], record["epsilon"]) for record in result.records] == [("linf", 0.02), ("l2", 0.2)]
    np.testing.assert_array_equal(result.worst_case["robust"], np.abs(LEVELS - 0.5) > 0.1)
    assert (result.worst_case["norm"], result.worst_case["epsilon"]) == ("union", None)
    assert result.worst_case["threats"] == [{"norm": "linf", "epsilon": 0.02}, {"norm": "l2", "epsilon": 0.2}]
    result.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"pgd20-linf-0.02.json", "pgd20-l2-0.2.json", "worst_case.json", "results.csv"}
    assert "l2 0.2" in text(result.table()) and "union" in text(result.table())
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [
        ["pgd20", "linf", "0.02"], ["pgd20", "l2", "0.2"], ["worst_case", "union", ""],
    ]  # fmt: skip


def text(table):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_networks_may_return_outputs_and_callables_need_no_hash():
    class Model:
        __hash__ = None

        def __call__(self, images):
            return Outputs(network(images), {}, {})

    assert evaluate(Model()).worst_case["robust"] == evaluate().worst_case["robust"]


def test_bounds_are_the_threats_own():
    wide = evaluation.evaluate(
        lambda images: network((images + 1) / 2), jax.random.key(0), 2 * IMAGES - 1, LABELS,
        threat=Threat("linf", 0.2, (-1.0, 1.0)), attacks=("pgd20",), batch_size=4,
    )  # fmt: skip
    assert wide.worst_case["robust"] == evaluate().worst_case["robust"]


def test_bytes_are_images_too():
    images = np.round(255 * IMAGES).astype(np.uint8)
    options = {"threat": Threat("linf", 0.1), "attacks": ("pgd20",), "batch_size": 4}
    result = evaluation.evaluate(network, jax.random.key(0), images, LABELS, **options)
    assert result.worst_case["robust"] == evaluate().worst_case["robust"]


def test_a_stochastic_network_is_classified_on_fresh_draws():
    def noisy(images, key):
        return network(images) * jnp.where(jax.random.bernoulli(key, 0.8, (images.shape[0], 1)), 1.0, -1.0)

    (clean,) = evaluate(noisy, hints=Hints(stochastic=True), num_draws=400, attacks=("clean",)).records
    assert clean["num_draws"] == 400 and abs(clean["accuracy"] - 0.8) < 0.04 and clean["majority_vote"] == 1.0


def test_a_verdict_is_one_of_the_records():
    result = evaluate(attacks=("clean", "adaptive"))
    assert result.records[-1]["attack"] == "adaptive" and result.verdict.worst_case == result.records[-1]["accuracy"]
    np.testing.assert_array_equal(result.records[-1]["robust"], np.abs(LEVELS - 0.5) > 0.1)


@pytest.mark.parametrize(
    ("key", "labels", "message"),
    [
        (0, LABELS, "key must be a typed key"),
        (jax.random.split(jax.random.key(0), 8), LABELS, "key must be a typed key"),
        (jax.random.key(0), LABELS + 1, "labels must be classes 0 to 1"),
    ],
)
def test_wrong_keys_and_labels_are_one_line(key, labels, message):
    with pytest.raises(InputError, match=message):
        evaluation.evaluate(network, key, IMAGES, labels, threat=Threat("linf", 0.1), batch_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ("pgd21",)}, "pgd21"),
        ({"threat": Threat("linf2", 0.1)}, "linf2"),
        ({"threat": Threat("linf", -0.1)}, "epsilon"),
        ({"threat": Threat("linf", 8.0)}, "epsilon must be at most 1 for linf, .*got 8; 8/255 is 0.0313"),
        ({"threat": Threat(["linf"], 0.1)}, r"norm must be one of linf, l2, l1, got \['linf'\]"),
        ({"threat": []}, "threat"),
        ({"threat": ("linf", 0.1)}, "threat must be a Threat"),
        ({"threat": None}, "threat must be a Threat"),
        ({"threat": Threat("linf", np.full(8, 0.1))}, "epsilon must be a number"),
        ({"threat": [Threat("linf", 0.1), Threat("linf", 0.1, (-1.0, 2.0))]}, "got one twice"),
        ({"attacks": "pgd20"}, "attacks must be a sequence of names"),
        ({"budget": "huge"}, "budget must be one of quick, full"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"hints": None}, "hints must be Hints"),
        ({"hints": Hints(stochastic=True)}, r"logits_fn must take \(images, key\)"),
        ({"logits_fn": lambda images, key: network(images)}, r"logits_fn must take \(images\)"),
        ({"logits_fn": lambda images: (network(images),)}, "logits_fn must return"),
        ({"logits_fn": lambda images: network(images).sum()}, "logits_fn must return"),
        ({"batch_size": 3}, "batch_size must be divisible by the 4 devices"),
        ({"threat": Threat("linf", 0.1, (0.0, 0.2))}, "images"),
    ],
)
def test_wrong_input_is_one_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        evaluate(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threat": Threat("linf", None)}, "epsilon must be a number >= 0"),
        ({"threat": Threat("linf", "8_255")}, "epsilon must be a number >= 0 in the units of the pixels, got '8_255'"),
        ({"threat": Threat("linf", 8.0, (0.0, 255.0))}, "images must be floats inside the threat's bounds .*got uint8"),
        ({"class_names": "ab"}, "class_names must be a sequence of strings"),
        ({"class_names": ("dark",)}, "class_names must be 2 names, one for each class of the network, got 1"),
        ({"attacks": None}, "attacks must be a sequence of names, got None"),
        ({"sources": [network]}, "sources must be a mapping from names to networks, got list"),
        ({"quicken": "no"}, "quicken must be True or False, got 'no'"),
        ({"batch_size": np.array(4)}, "batch_size must be a Python integer"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),  # no address in a name
)
def test_odd_arguments_are_one_line(options, message):
    images = np.round(255 * IMAGES).astype(np.uint8)
    given = {"threat": Threat("linf", 0.1), "attacks": ("clean",)} | options
    with pytest.raises(InputError, match=message):
        evaluation.evaluate(network, jax.random.key(0), images, LABELS, **given)


def test_names_of_classes_and_a_radius_as_text():
    result = evaluate(attacks=("clean",), class_names=np.array(["dark", "light"]), threat=Threat("linf", "1/10"))
    assert result.worst_case["epsilon"] == 0.1 and result.records[0]["per_class"][0]["name"] == "dark"
    assert result.unmet("clean>=0") == []


def test_records_of_other_images_say_which(tmp_path):
    np.savez(tmp_path / "dark.npz", images=0.5 * IMAGES, labels=LABELS)
    spec = f"corruption:{tmp_path / 'dark.npz'}"
    (_, other) = evaluate(attacks=("clean", spec)).records
    assert other["dataset"] == other["data"]["spec"] == str(tmp_path / "dark.npz") and other["data"]["n"] == len(LABELS)


def test_more_attacks_on_a_stochastic_network_are_no_more_chances():
    """No attack can move anything: the network ignores the image, and each draw is right with probability 0.7."""

    def blind(images, key):
        right = jax.random.uniform(key, (images.shape[0],)) < 0.7
        return jnp.where(right[:, None] == (jnp.arange(2) == 0)[None], 3.0, 1.0) + 0 * images.mean((1, 2, 3))[:, None]

    images, labels = np.full((50, 2, 2, 1), 0.5, np.float32), np.zeros(50, int)
    result = evaluation.evaluate(
        blind, jax.random.key(0), images, labels, threat=[Threat("linf", 0.1), Threat("l2", 0.1)], batch_size=48,
        attacks=("clean", "fgsm", "pgd:num_steps=2", "autoattack:version=apgd-ce"), hints=Hints(stochastic=True),
        eot_samples=1, num_draws=5,
    )  # fmt: skip
    clean = result.records[0]
    assert 0.6 < clean["majority_vote"] < 1
    assert all(record["right_draws"] == clean["right_draws"] for record in [*result.records, result.worst_case])


def test_logits_that_are_no_numbers_are_told_of_once_and_those_that_an_attack_makes_by_its_name():
    """Of the darkest image as it is, and of the brightest where PGD has made it darker."""

    def poisoned(images):
        mean = images.mean(axis=(1, 2, 3))[:, None]
        return jnp.where((mean < 0.1) | ((mean > 0.85) & (mean < 0.95)), jnp.nan, network(images))

    with pytest.warns(UserWarning) as caught:
        result = evaluate(poisoned, attacks=("clean", "fgsm", "pgd20"))
    clean, made = (str(each.message) for each in caught if "fgsm" not in str(each.message))
    assert clean.startswith("logits are not finite for 1 of 8 images: NaN counts as misclassified")
    assert made.startswith("logits are not finite for 1 of 8 images of pgd20:")
    assert result.records[0]["accuracy"] == 7 / 8
    masked = lambda images: jnp.concatenate([network(images), jnp.full((len(images), 1), -jnp.inf)], axis=1)  # noqa: E731
    assert evaluate(masked).worst_case["robust"] == evaluate().worst_case["robust"]  # where warnings are errors


def test_an_evaluation_compiles_also_where_jit_is_switched_off():
    with jax.disable_jit():
        assert evaluate().worst_case["robust"] == evaluate(attacks=("pgd20",)).worst_case["robust"]
