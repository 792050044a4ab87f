"""Public attacks in an evaluation, against the same functions called by hand, and attacks that aim at a class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, evaluation
from robustjax.attacks import losses
from robustjax.evaluation import Hints, Threat
from robustjax.evaluation.protocol import protocols, runner, session, specs
from robustjax.runtime import sharding
from robustjax.types import InputError

# A linear network on three classes and images of four pixels: what a ball holds is found by a fine grid.
WEIGHTS = np.array([[3.0, 0.0, -1.0], [-1.0, 2.0, 0.0], [0.0, -1.0, 3.0], [1.0, 1.0, 0.0]], np.float32)
EPSILON = 0.1


def reachable(images, targets, epsilon=EPSILON):
    """Whether a class overtakes every other inside the linf ball."""
    steps = np.linspace(-epsilon, epsilon, 9)
    deltas = np.stack(np.meshgrid(*[steps] * 4), axis=-1).reshape(-1, 4)
    points = np.clip(images.reshape(-1, 1, 4) + deltas, 0, 1)
    return ((points @ WEIGHTS).argmax(axis=-1) == targets[:, None]).any(axis=1)


def clear(images):
    """Images of which a slightly smaller and a slightly larger ball hold the same classes."""
    small, large = (
        np.array([reachable(images, np.full(len(images), k), factor * EPSILON) for k in range(3)])
        for factor in (0.8, 1.2)
    )
    return images[(small == large).all(axis=0)]


IMAGES = clear(np.random.default_rng(0).uniform(0.2, 0.8, (60, 2, 2, 1)).astype(np.float32))[:12]
CLASSES = (IMAGES.reshape(12, 4) @ WEIGHTS).argmax(axis=1)
LABELS = np.where(np.arange(12) == 5, (CLASSES + 1) % 3, CLASSES)  # one is misclassified as it is


def network(images):
    return images.reshape(len(images), 4) @ WEIGHTS


def evaluate(*names, norm="linf", epsilon=EPSILON, **options):
    options = {"batch_size": 12, "quicken": False, **options}
    function = options.pop("logits_fn", network)
    return evaluation.evaluate(
        function, jax.random.key(0), IMAGES, LABELS, threat=Threat(norm, epsilon), attacks=names, **options
    )


REACHED = np.array([reachable(IMAGES, (LABELS + i) % 3) for i in (1, 2)])
ROBUST = (CLASSES == LABELS) & ~REACHED.any(axis=0)


def test_the_toy_has_all_kinds_of_examples():
    assert 0 < ROBUST.sum() < 11 and 0 < REACHED.sum() < REACHED.size
    assert REACHED.all(axis=0).sum() > 0  # one that can be driven to either class


@pytest.mark.parametrize(
    "name",
    [
        "pgd:num_steps=20,step_size=epsilon/4",
        "apgd:loss=dlr,num_restarts=4,num_steps=20",
        "apgd:loss=dlr-targeted,num_steps=20",
        "fab:num_steps=20,num_targets=none",
        "square:num_queries=200",
        "multi_targeted:num_steps=20",
        "optimized_pgd:num_steps=20,optimizer=momentum,step_size=0.03",
        "optimized_pgd:num_steps=20,optimizer=adam,step_size=0.03",
        "deepfool:num_steps=20",
        "autoattack:version=apgd-ce+square",
    ],
)
def test_attacks_find_what_there_is_to_be_found(name):
    (record,) = evaluate(name).records
    np.testing.assert_array_equal(record["robust"], ROBUST)
    assert record["attack"] == ",".join([name.partition(",")[0], *sorted(name.split(",")[1:])]) or ":" in name


def test_options_reach_the_attack_and_the_record():
    (record,) = evaluate("apgd:num_steps=3,loss=margin,num_restarts=2", norm="l2", epsilon=0.2).records
    settings = record["settings"]
    assert (settings["attack"], settings["norm"], settings["epsilon"]) == ("apgd", "l2", 0.2)
    assert (settings["num_steps"], settings["loss"], settings["num_restarts"]) == (3, "margin", 2)
    assert (record["num_steps"], record["num_restarts"]) == (3, 2)
    key = session.attack_key(jax.random.key(0), record["attack"])
    run = runner.Runner(network, IMAGES, LABELS, threat=Threat("l2", 0.2), batch_size=12, layout=sharding.layout())
    (protocol,) = protocols.of_specs(specs.parse([record["attack"]]), Threat("l2", 0.2), num_classes=3).values()
    by_hand = attacks.apgd(
        network, run._keys(key, 0)[0], IMAGES, jnp.asarray(LABELS), epsilon=0.2, norm="l2", num_steps=3, num_restarts=2,
        loss=losses.margin,
    )  # fmt: skip
    np.testing.assert_allclose(run(protocol, key).adversarial, by_hand[:8], atol=1e-6)


def test_a_minimum_norm_attack_counts_inside_the_ball_alone():
    (record,) = evaluate("cw_l2:num_steps=100,num_searches=6,learning_rate=0.05", norm="l2", epsilon=0.15).records
    (fab,) = evaluate("fab:num_steps=50", norm="l2", epsilon=0.15).records
    assert record["robust"] == fab["robust"] and 0 < sum(fab["robust"]) < 11


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("apgd:num_steps=20", "random"),
        ("pgd:num_steps=40", "next"),  # by its own option
        ("fab:num_steps=20", "likeliest"),
        ("square:num_queries=1000", "least_likely"),
        ("apgd:num_steps=20", "1"),
    ],
)
def test_an_attack_arrives_at_the_class_that_it_aims_at_where_it_can(name, classes):
    (record,) = evaluate(f"{name},toward={classes}").records
    targets = np.array(record["targets"])
    values = np.where(np.eye(3)[LABELS] > 0, np.nan, network(IMAGES))
    expected = {
        "next": (LABELS + 1) % 3,
        "likeliest": np.nanargmax(values, axis=1),
        "least_likely": np.nanargmin(values, axis=1),
        "1": np.ones(12),
    }.get(classes, targets)
    np.testing.assert_array_equal(targets, expected)
    tried = targets != LABELS
    np.testing.assert_array_equal(record["target_tries"], tried)
    hits = reachable(IMAGES, targets) & tried
    np.testing.assert_array_equal(record["target_hits"], hits)
    assert record["target_hit"] == pytest.approx(hits.sum() / tried.sum()) and record["toward"] in (classes, 1)
    if classes == "random":
        assert len(set(((targets - LABELS) % 3).tolist())) == 2 and tried.all()
    # Success at the class is success as such; an image whose label is the class is left as it is.
    robust = np.array(record["robust"])
    assert not robust[hits].any() and (robust[~tried] == (CLASSES == LABELS)[~tried]).all()
    low, high = record["target_hit_interval_95"]
    assert low < record["target_hit"] < high


def test_a_minimum_norm_attack_aims_by_its_own_option_and_counts_inside_the_ball():
    by_cw, by_fab = evaluate(
        "cw_l2:num_steps=100,num_searches=6,learning_rate=0.05,toward=next", "fab:num_steps=50,toward=next",
        norm="l2", epsilon=0.15,
    ).records  # fmt: skip
    assert by_cw["target_hits"] == by_fab["target_hits"] and 0 < sum(by_fab["target_hits"]) < 12


def test_aiming_at_all_classes_one_after_the_other_is_the_union():
    (record,) = evaluate("apgd:num_steps=20,toward=all").records
    np.testing.assert_array_equal(record["target_hits"], REACHED.sum(axis=0))
    np.testing.assert_array_equal(record["robust"], ROBUST)
    assert record["target_tries"] == [2] * 12 and "targets" not in record
    assert record["target_hit"] == pytest.approx(REACHED.mean())


def test_a_stochastic_network_is_aimed_at_over_its_draws():
    def noisy(images, key):
        return network(images) + 0.01 * jax.random.normal(key, (len(images), 3))

    (record,) = evaluate(
        "apgd:num_steps=10,toward=next", logits_fn=noisy, hints=Hints(stochastic=True), eot_samples=2, num_draws=5
    ).records
    assert record["settings"]["eot_samples"] == 2 and record["num_draws"] == 5
    np.testing.assert_array_equal(record["targets"], (LABELS + 1) % 3)
    assert 0 < record["target_hit"] < 1


def test_classes_and_confusion_are_those_of_the_images_that_decide():
    clean, attacked = evaluate("clean", "apgd:num_steps=20", class_names=("a", "b", "c")).records
    for record in (clean, attacked):
        labels, predictions = np.array(record["labels"]), np.array(record["predictions"])
        np.testing.assert_array_equal(labels, LABELS)
        np.testing.assert_array_equal(predictions == labels, record["robust"])
        confusion = np.zeros((3, 3), int)
        np.add.at(confusion, (labels, predictions), 1)
        np.testing.assert_array_equal(record["confusion"], confusion)
        for part in record["per_class"]:
            of_class = np.array(record["robust"])[labels == part["class"]]
            assert (part["num_examples"], part["accuracy"]) == (len(of_class), of_class.mean())
            assert part["name"] == "abc"[part["class"]] and len(part["interval_95"]) == 2
    np.testing.assert_array_equal(clean["predictions"], CLASSES)
    assert attacked["predictions"][5] == CLASSES[5] != LABELS[5]


def test_the_images_that_decide_give_the_worst_case_exactly():
    result = evaluate("clean", "fgsm", "apgd:num_steps=3", "square:num_queries=20", keep_images=True)
    assert result.deciding is not None
    predicted = np.asarray(network(jnp.asarray(result.deciding.images))).argmax(axis=1)
    np.testing.assert_array_equal(predicted, result.deciding.predictions)
    np.testing.assert_array_equal(predicted == LABELS, result.worst_case["robust"])
    np.testing.assert_array_equal(result.worst_case["predictions"] == LABELS, predicted == LABELS)
    np.testing.assert_array_equal(result.deciding.images[5], IMAGES[5])
    assert np.abs(result.deciding.images - IMAGES).max() <= EPSILON + 1e-6
    assert list(result.deciding.robust) == ["clean", "fgsm", "apgd:num_steps=3", "square:num_queries=20"]


def test_what_was_not_kept_cannot_be_saved():
    with pytest.raises(InputError, match="give keep_images=True"):
        evaluate("clean").save_images("images.npz")


def test_logits_that_are_not_numbers_are_of_no_class():
    def broken(images):
        return jnp.where(images.mean(axis=(1, 2, 3))[:, None] > 0.5, jnp.nan, network(images))

    with pytest.warns(UserWarning, match="not finite"):
        (record,) = evaluate("clean", logits_fn=broken).records
    dark = IMAGES.mean(axis=(1, 2, 3)) <= 0.5
    predictions = np.array(record["predictions"])
    np.testing.assert_array_equal(predictions[dark], CLASSES[dark])
    assert (predictions[~dark & (LABELS == 0)] == -1).all() and np.sum(record["confusion"]) == np.sum(predictions >= 0)
    np.testing.assert_array_equal(record["robust"], dark & (CLASSES == LABELS))
