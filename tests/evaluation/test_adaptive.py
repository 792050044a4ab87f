"""Adaptive attacks from what is declared: each finds what was hidden for it, and none finds more where nothing was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import verdict_toys as toys

from robustjax import defenses, models
from robustjax.evaluation import Hints, judge
from robustjax.evaluation.verdict import diagnostics, goals
from robustjax.evaluation.verdict.budgets import BUDGETS
from robustjax.evaluation.verdict.goals import Networks
from robustjax.evaluation.verdict.hints import hints_of
from robustjax.evaluation.verdict.trial import Trial

IMAGES, LABELS = toys.digits()[1]


def declared(*, surrogate, heads, undefended):
    """Hints of toys by their names; one structure, so that one compilation serves all."""
    known = toys.toys()
    return Hints(
        surrogate_fn=known[surrogate],
        auxiliary_fn=toys.heads_of(heads),
        undefended_fn=known[undefended],
        trained_fn=known["robust"],
        bfloat16_fn=known[undefended],
    )


# network, what is declared of it -> the flags that compare with it
DECLARED = {
    "honest": (
        "robust",
        {"surrogate": "robust", "heads": "robust", "undefended": "robust"},
        {"surrogate": "pass", "auxiliary": "pass", "transfer": "pass", "bfloat16": "pass"},
    ),
    "masked": (
        "masked",
        {"surrogate": "undefended", "heads": "masked", "undefended": "undefended"},
        {"surrogate": "fail", "auxiliary": "pass", "transfer": "fail", "bfloat16": "warn"},
    ),
    "betrayed by its heads": (
        "misleading",
        {"surrogate": "misleading", "heads": "undefended", "undefended": "misleading"},
        {"surrogate": "pass", "auxiliary": "fail"},
    ),
}
FLAGS = {
    "surrogate": "surrogate_helps",
    "auxiliary": "auxiliary_attack_helps",
    "transfer": "transfer_beats_white_box",
    "bfloat16": "bfloat16_disagrees",
}


@pytest.fixture(scope="module")
def verdicts():
    return {
        case: judge(toys.toys()[name], toys.KEY, IMAGES, LABELS, epsilon=toys.EPSILON, hints=declared(**hints))
        for case, (name, hints, _) in DECLARED.items()
    }


@pytest.mark.parametrize("case", DECLARED)
def test_what_is_declared_helps_where_it_should(verdicts, case):
    flags = verdicts[case].flags
    assert {family: flags[FLAGS[family]].status for family in DECLARED[case][2]} == DECLARED[case][2]


def test_an_honest_network_gets_a_clean_report(verdicts):
    flags = verdicts["honest"].flags
    assert {name: flag.status for name, flag in flags.items() if flag.status not in ("pass", "na")} == {}
    missing = [name for name, flag in flags.items() if flag.status == "na"]
    assert missing == [
        "label_only_beats_white_box",
        "relaxation_helps",
        "eot_not_converged",
        "frozen_key_resists",
    ]
    assert all(flag.explanation for flag in flags.values())


def test_adaptive_attacks_find_what_autoattack_leaves(verdicts):
    assert verdicts["honest"].worst_case > verdicts["honest"].autoattack - 0.03
    for case in ("masked", "betrayed by its heads"):
        assert verdicts[case].worst_case < verdicts[case].autoattack - 0.05
    assert any(str(won).startswith("surrogate:") for won in verdicts["masked"].won_by)
    assert any(str(won).startswith("auxiliary:") for won in verdicts["betrayed by its heads"].won_by)


def test_the_weight_is_swept_with_both_losses_on_the_same_examples(verdicts):
    names = [name for name in verdicts["honest"].misclassified_by if name.startswith("auxiliary:")]
    weights = ("0", "0.1", "1", "2", "10", "100", "only")
    assert names == [f"auxiliary:{loss}:{weight}" for weight in weights for loss in ("ce", "margin")]
    # The heads alone know the way here, so the more they count the more is found.
    found = [
        int(verdicts["betrayed by its heads"].misclassified_by[f"auxiliary:ce:{weight}"].sum()) for weight in weights
    ]
    assert found[0] < 3 and found[2] > 10 and found[-1] > 20


@pytest.fixture(scope="module")
def stochastic():
    networks = toys.stochastic_toys()
    return toys.Verdicts(
        lambda name: judge(
            networks[name],
            toys.KEY,
            *toys.examples(name),
            epsilon=toys.EPSILON,
            hints=Hints(stochastic=True, undefended_fn=networks[name]),
        )
    )


def test_a_smoothed_network_gets_a_clean_report(stochastic):
    flags = stochastic["noisy"].flags
    assert {name: flag.status for name, flag in flags.items() if flag.status not in ("pass", "na")} == {}
    assert flags["randomness"].value > 1e-4 and flags["eot_not_converged"].status == "pass"
    assert flags["frozen_key_resists"].status == "pass"


def test_randomness_that_hides_the_gradient_is_found_out(stochastic):
    assert stochastic["few pixels"].flags["frozen_key_resists"].status == "fail"
    assert stochastic["noisy gradient"].flags["eot_not_converged"].status == "fail"
    # Its outputs do not depend on the key, so averaging recovers the robustness of the network inside.
    assert stochastic["few pixels"].worst_case < 0.5


def test_acceptance_is_by_fresh_draws_each_under_its_name(stochastic):
    verdict = stochastic["noisy"]
    assert {"eot-1", "eot-2", "eot-4", "eot-8", "eot-16", "eot-frozen"} <= set(verdict.misclassified_by)
    for part in verdict.acceptance.values():
        assert part.num_draws == 20 and part.interval_95[0] < part.expected < part.interval_95[1]
        assert part.worst <= part.majority and part.worst <= part.expected
    worst = verdict.acceptance["worst_case"]
    assert worst.worst < worst.majority  # draws differ, so demanding all of them is more
    assert worst.expected < verdict.acceptance["clean"].expected
    # Outputs that do not depend on the draw are all or nothing.
    still = stochastic["few pixels"].acceptance["worst_case"]
    assert still.worst == still.majority == stochastic["few pixels"].worst_case == pytest.approx(still.expected)


@pytest.mark.slow
def test_attacks_that_move_nothing_leave_the_clean_accuracy(stochastic):
    # Right in seven draws of ten, so by majority of 20 with probability 0.952, whatever an attack does.
    coin = stochastic["coin"]
    assert coin.worst_case == coin.autoattack == coin.clean >= 0.85
    assert coin.acceptance["worst_case"] == coin.acceptance["clean"]
    assert not any(misclassified.any() for misclassified in coin.misclassified_by.values())


def test_other_draws_for_every_attacks_image_are_no_more_chances(stochastic):
    # Right in seven draws of ten, so by majority of 20 with probability 0.952, whatever an attack does. Two images of
    # each example are put to the test, the one as given and the strongest, and not one for each attack: 0.952 of those
    # correct as given remain, with 3.3 standard deviations.
    tossed = stochastic["content coin"]
    assert tossed.clean >= 0.85 and tossed.worst_case >= 0.88 * tossed.clean


@pytest.mark.parametrize("name", toys.marked(["coin", "content coin"], slow={"coin"}))
def test_chance_among_many_draws_accuses_no_network(stochastic, name):
    flags = stochastic[name].flags
    compared = (
        "one_step_beats_many", "more_steps_help", "more_restarts_help", "accuracy_rises_with_epsilon",
        "black_box_beats_white_box", "transfer_beats_white_box", "random_search_succeeds", "eot_not_converged",
        "frozen_key_resists", "batch_dependent",
    )  # fmt: skip
    assert {flag: flags[flag].status for flag in compared if flags[flag].status != "pass"} == {}


@pytest.mark.parametrize("name", toys.marked(toys.stochastic_toys(), slow={"coin"}))
def test_what_is_said_of_a_stochastic_network_is_consistent(stochastic, name):
    verdict = stochastic[name]
    assert verdict.worst_case <= verdict.autoattack <= verdict.clean and verdict.worst_case == verdict.robust.mean()
    assert verdict.won_by.count("clean") == round((1 - verdict.clean) * toys.COUNT)
    for i, won in enumerate(verdict.won_by):
        by = [attack for attack, misclassified in verdict.misclassified_by.items() if misclassified[i]]
        assert verdict.robust[i] == (won is None) and (won in by if by else won in (None, "clean"))


@pytest.mark.parametrize("stochastic", [False, True])
def test_probes_compute_in_float32_in_x64_too(stochastic):
    images, labels, _ = toys.linear_examples(8, "linf")
    weights = toys.linear_weights().astype(np.float64)

    def network(images, *key):
        noise = 0.01 * jax.random.normal(key[0], images.shape, jnp.float64) if key else 0.0
        return ((images.astype(jnp.float64) + noise).reshape(len(images), -1) - 0.5) @ weights

    with jax.enable_x64(True):
        trial = Trial(
            Networks(goals.as_logits_fn(network)), toys.KEY, images, labels, epsilon=0.05, norm="linf",
            bounds=(0.0, 1.0), stochastic=stochastic, budget=BUDGETS["quick"], batch_size=8, report=print,
        )  # fmt: skip
        rows = np.arange(8)
        share, record = trial.recorded_pgd("pgd", rows, step_size=0.25, num_steps=10)
        found = trial.random_search("random", rows)
        flags = diagnostics.gradients(trial, rows, "")
    assert record.images.dtype == record.loss.dtype == record.margin.dtype == share.dtype == found.dtype == np.float32
    assert share.all() and trial.candidates.points.dtype == np.float32
    assert {flag.status for flag in flags.values()} == {"pass"}


def test_the_draws_of_an_example_do_not_depend_on_which_others_are_classified():
    name, budget = "coin", BUDGETS["quick"]
    images, labels = toys.examples(name)
    trial = Trial(
        Networks(goals.as_logits_fn(toys.stochastic_toys()[name])), toys.KEY, images, labels, epsilon=0.1, norm="linf",
        bounds=(0.0, 1.0), stochastic=True, budget=budget, batch_size=64, report=print,
    )  # fmt: skip
    every, few = np.arange(len(images)), np.array([3, 64, 90])
    shares = trial.classified(every, images)[1]
    assert len(set(shares)) > 3 and 0.2 < shares.mean() < 0.4
    np.testing.assert_array_equal(trial.classified(few, images[few])[1], shares[few])
    fresh = trial.classified(every, images, key=trial.key())[1]
    assert not np.array_equal(fresh, shares)
    # An example goes on being attacked until chance alone does not explain that most draws are misclassified.
    trial.shares["some attack"] = np.where(every == 0, 0.75, np.where(every == 1, 0.7, 0.0))
    assert trial.remaining().tolist() == [i for i in np.flatnonzero(trial.attacked) if i != 0] and trial.attacked[1]


def build(defense):
    return models.create("small_cnn", defense=defense)


@pytest.mark.parametrize("name", ["cas", "cifs", "fsr", "kwta", "meansparse", "sap"])
def test_a_defense_of_the_library_declares_itself(name):
    options = {"cifs": {"hidden": 5}, "fsr": {"width": 3}, "kwta": {"fraction": 0.3}, "sap": {"sampler": "bernoulli"}}
    defense = defenses.create(name, **options.get(name, {}))
    images = jnp.asarray(IMAGES[:2])
    shapes = jax.eval_shape(build(defense).init, toys.KEY, images)
    rng = np.random.default_rng(0)
    # Variances have to be positive.
    least = {"params": -0.2, "batch_stats": 0.1, "statistics": 0.1}
    variables = {
        name: jax.tree.map(
            lambda leaf, low=least[name]: jnp.asarray(rng.uniform(low, 0.3, leaf.shape), "float32"), tree
        )
        for name, tree in shapes.items()
    }
    logits_fn, hints = hints_of(build, defense, variables)
    key = (toys.KEY,) if defense.stochastic else ()
    assert hints.stochastic == defense.stochastic == (name == "sap")

    @jax.jit
    def everything(images):
        functions = {"direct": logits_fn, "surrogate": hints.surrogate_fn, "undefended": hints.undefended_fn}
        views = {
            view: (function(images, *key), jax.grad(lambda x, f=function: f(x, *key)[:, 0].sum())(images))
            for view, function in functions.items()
        }
        heads = None if hints.auxiliary_fn is None else hints.auxiliary_fn(images, *key)
        return views, heads, build(defense).apply(variables, images, rngs={"defense": toys.KEY})

    views, heads, outputs = everything(images)
    np.testing.assert_array_equal(views["direct"][0], outputs.logits)
    np.testing.assert_allclose(views["direct"][0], views["surrogate"][0], rtol=1e-4, atol=1e-5)
    assert float(jnp.max(jnp.abs(views["direct"][1] - views["surrogate"][1]))) > 1e-7
    assert float(jnp.max(jnp.abs(views["direct"][0] - views["undefended"][0]))) > 1e-7
    # The head of FSR that is trained to be wrong is not one to attack.
    kinds = [outputs.auxiliary[kind] for kind in defense.heads if kind != "nonrobust"]
    assert (heads is None) == (not kinds)
    if kinds:
        np.testing.assert_allclose(heads, jnp.concatenate(kinds), rtol=1e-4, atol=1e-5)


def test_a_network_without_a_defense_declares_nothing():
    variables = jax.jit(build(None).init)(toys.KEY, jnp.asarray(IMAGES[:1]))
    logits_fn, hints = hints_of(build, None, variables)
    assert hints == Hints() and jax.eval_shape(logits_fn, IMAGES[:1]).shape == (1, 10)
