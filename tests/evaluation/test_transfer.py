"""Images made for one network and judged on another: ``transfer:ATTACK@SOURCE``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, evaluation
from robustjax.evaluation import Hints, Threat, _named
from robustjax.evaluation.protocol import session, specs
from robustjax.types import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.2, 0.8, (12, 2, 2, 1)).astype(np.float32)
WEIGHTS = RNG.normal(size=(4, 3)).astype(np.float32)
OTHER = WEIGHTS + 0.7 * RNG.normal(size=(4, 3)).astype(np.float32)
LABELS = (IMAGES.reshape(12, 4) @ WEIGHTS).argmax(axis=1)
STEPS = "num_steps=10,random_start=false,step_size=0.05"


def masked(images):
    """A linear network whose gradient is zero."""
    return jax.lax.stop_gradient(images.reshape(len(images), 4)) @ WEIGHTS


def other(images):
    return images.reshape(len(images), 4) @ OTHER


def plain(images):
    return images.reshape(len(images), 4) @ WEIGHTS


def evaluate(*names, **options):
    options = {"batch_size": 4, "quicken": False, "sources": {"other": other, "plain": plain}, **options}
    function = options.pop("logits_fn", masked)
    return evaluation.evaluate(
        function, jax.random.key(0), IMAGES, LABELS, threat=Threat("linf", 0.2), attacks=names, **options
    )


def test_the_source_is_attacked_and_the_evaluated_network_judges():
    direct, by_other, by_plain = evaluate(
        f"pgd:{STEPS}", f"transfer:pgd:{STEPS}@other", f"transfer:pgd:{STEPS}@plain"
    ).records
    assert all(direct["robust"])  # no gradient, no success
    for record, source in ((by_other, other), (by_plain, plain)):
        moved = attacks.pgd(
            source, jax.random.key(0), IMAGES, LABELS, epsilon=0.2, step_size=0.05, num_steps=10, random_start=False
        )
        np.testing.assert_array_equal(record["robust"], np.argmax(masked(moved), axis=1) == LABELS)
    assert sum(by_plain["robust"]) < sum(by_other["robust"]) < 12
    assert by_other["attack"] == f"transfer:pgd:{STEPS}@other" and by_other["settings"]["source"] == "other"
    assert by_other["settings"]["attack"] == "pgd" and by_other["settings"]["num_steps"] == 10


def test_apgd_is_the_attack_unless_another_is_named_and_drivers_transfer_too():
    result = evaluate("transfer:plain", "transfer:autoattack:version=apgd-ce@plain", "transfer:apgd:toward=next@plain")
    assert [record["attack"] for record in result.records] == [
        "transfer:apgd@plain", "transfer:autoattack:version=apgd-ce@plain", "transfer:apgd:toward=next@plain",
    ]  # fmt: skip
    by_apgd, by_driver, towards = (np.array(record["robust"]) for record in result.records)
    np.testing.assert_array_equal(by_apgd, by_driver)
    assert np.all(by_apgd <= towards) and result.worst_case["accuracy"] == by_apgd.mean()


def test_images_for_a_stochastic_network_come_from_a_deterministic_source():
    noisy = lambda images, key: masked(images) + 1e-3 * jax.random.normal(key, (len(images), 3))  # noqa: E731
    (record,) = evaluate("transfer:plain", logits_fn=noisy, hints=Hints(stochastic=True), num_draws=5).records
    (clear,) = evaluate("transfer:plain").records
    assert abs(record["accuracy"] - clear["accuracy"]) < 0.1 and record["settings"]["eot_samples"] == 0


@pytest.mark.parametrize(
    ("names", "attack", "source", "spelling"),
    [
        (["transfer:runs/at"], "apgd", "runs/at", "transfer:apgd@runs/at"),
        (["transfer:runs/a@b"], "apgd", "runs/a@b", "transfer:apgd@runs/a@b"),
        (["transfer:pgd20@mine.py:two"], "pgd20", "mine.py:two", "transfer:pgd20@mine.py:two"),
        (
            ["transfer:apgd:num_steps=5", "loss=dlr@mine.py:two"], "apgd", "mine.py:two",
            "transfer:apgd:loss=dlr,num_steps=5@mine.py:two",
        ),
    ],
)  # fmt: skip
def test_how_a_transfer_is_spelled(names, attack, source, spelling):
    (spec,) = specs.parse(names)
    assert (spec.spelling, spec.argument, spec.on_source.name) == (spelling, source, attack)
    assert specs.parse([spelling]) == [spec]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("transfer:", "transfer must name a source, as transfer:SOURCE or transfer:apgd@SOURCE"),
        ("transfer:clean@other", "clean makes no images to transfer"),
        ("transfer:adaptive@other", "adaptive makes no images to transfer"),
        ("transfer:apgd:losss=dlr@other", r"apgd has no option 'losss' \(nearest: 'loss'\)"),
        ("transfer:nobody", "transfer must be from one of sources, other, plain, got 'nobody'"),
        ("transfer:wide", r"transfer:apgd@wide: logits_fn must return .* \[2, K\] .*, got float32 \[1, 3\]"),
    ],
)
def test_mistakes_are_named(name, cause):
    sources = {"other": other, "plain": plain} | ({"wide": lambda x: plain(x)[:1]} if "wide" in name else {})
    with pytest.raises(InputError, match=cause):
        evaluate(name, sources=sources)


def test_a_source_is_a_folder_or_a_model(tmp_path):
    (tmp_path / "mine.py").write_text("def network(): return lambda images: images.reshape(len(images), -1)")
    source, about = _named.read_source(f"{tmp_path / 'mine.py'}:network")
    assert source(jnp.ones((2, 3))).shape == (2, 3) and about["framework"] == "jax"
    with pytest.raises(InputError, match="transfer must be from the folder of a run or from a model"):
        _named.read_source("nowhere")
    with pytest.raises(InputError, match="workdir must be the folder of a run"):
        _named.read_source(str(tmp_path))


def test_the_draws_of_an_attack_are_those_of_its_name():
    """Two sources under one attack are two records with keys of their own."""
    keys = [session.attack_key(jax.random.key(0), f"transfer:apgd@{name}") for name in ("other", "plain")]
    assert not np.array_equal(*map(jax.random.key_data, keys))
