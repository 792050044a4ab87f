"""The grammar of attacks with options: what is told apart, what is refused, and that no public attack is left out."""

import inspect

import pytest

from robustjax import attacks
from robustjax.attacks import losses
from robustjax.evaluation.protocol import protocols, specs
from robustjax.evaluation.protocol.protocols import Threat
from robustjax.types import InputError

THREAT = Threat("linf", 0.1)


def spelled(*names):
    return [spec.spelling for spec in specs.parse(names)]


def test_every_public_attack_has_a_name_and_every_option_a_reader():
    public = {value for name, value in vars(attacks).items() if inspect.isfunction(value) and name in attacks.__all__}
    assert (
        public - set(specs.ATTACKS.values()) == {attacks.n_fgsm} == {getattr(attacks, name) for name in specs.INSTEAD}
    )
    for name in specs.ATTACKS:
        for option, parameter in specs.options_of(name).items():
            assert parameter.annotation in specs._READERS, (name, option, parameter.annotation)


def test_attacks_and_options_are_told_apart_by_their_first_colon_or_equals():
    assert spelled("clean", "apgd:loss=dlr", "num_steps=50", "square") == [
        "clean",
        "apgd:loss=dlr,num_steps=50",
        "square",
    ]
    assert spelled("clean,apgd:num_steps=50,loss=dlr,square") == ["clean", "apgd:loss=dlr,num_steps=50", "square"]
    assert spelled("saved:a=1,b=2.npz", "clean") == ["saved:a=1,b=2.npz", "clean"]
    assert spelled("corruption:cifar10_corrupted/brightness_1:1.0.0") == [
        "corruption:cifar10_corrupted/brightness_1:1.0.0"
    ]
    assert spelled("pgd20", "clean", "pgd20") == ["pgd20", "clean"]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("apgd:num_steps=7,loss=dlr-targeted", {"num_steps": 7, "loss": "dlr-targeted"}),
        ("apgd:loss=margin", {"loss": losses.margin}),
        (
            "pgd:num_steps=3,step_size=2/255,random_start=false",
            {"num_steps": 3, "step_size": 2 / 255, "random_start": False},
        ),
        (
            "pgd:num_steps=3,random_start=gaussian,keep_best=True",
            {"num_steps": 3, "random_start": "gaussian", "keep_best": True},
        ),
        ("fab:num_targets=none", {"num_targets": None}),
        ("autoattack:version=apgd-ce+square", {"version": ("apgd-ce", "square")}),
        ("autoattack:version=plus", {"version": "plus"}),
        ("optimized_pgd:num_steps=3,optimizer=adam", {"num_steps": 3, "optimizer": "adam"}),
        ("cw_l2:confidence=1e-1", {"confidence": 0.1}),
    ],
)
def test_values_are_read_as_the_signature_declares_them(text, options):
    (spec,) = specs.parse([text])
    assert dict(spec.options) == options
    assert {name: type(value) for name, value in spec.options.items()} == {k: type(v) for k, v in options.items()}


def test_lengths_may_be_parts_of_epsilon():
    for text, part in (("epsilon/4", 0.25), ("epsilon", 1.0)):
        made = protocols.of_specs(specs.parse([f"pgd:num_steps=3,step_size={text}"]), THREAT, num_classes=10)
        (protocol,) = made.values()
        assert protocol.options["step_size"] == pytest.approx(part * 0.1)


@pytest.mark.parametrize(
    ("names", "causes"),
    [
        ([], ["no attack is named"]),
        ([""], ["'' is unknown (there are clean, "]),
        (["pgd21"], ["'pgd21' is unknown (nearest: 'pgd20')"]),
        (["Clean", "sqare"], ["2 mistakes", "nearest: 'clean'", "nearest: 'square'"]),
        (["apgd:losss=dlr,num_step=3"], ["2 mistakes", "no option 'losss' (nearest: 'loss')", "nearest: 'num_steps'"]),
        (["apgd:num_steps=x", "square:num_queries=1.5"], ["num_steps must be an integer, got 'x'", "got '1.5'"]),
        (["apgd:loss=ce2"], ["loss must be one of ce, dlr, dlr-targeted, cross_entropy, margin"]),
        (["pgd:num_steps=3,loss=ce"], ["loss must be one of cross_entropy, margin, dlr, got 'ce'"]),
        (["pgd:num_steps=3,step_size=epsilon/0"], ["step_size must be a number, or a part of epsilon"]),
        (["pgd:num_steps=3,step_size=nan"], ["step_size must be a number"]),
        (["pgd:num_steps=3,keep_best=1"], ["keep_best must be true or false"]),
        (
            ["pgd", "optimized_pgd:num_steps=3"],
            ["pgd must be given num_steps", "optimized_pgd must be given optimizer"],
        ),
        (["optimized_pgd:num_steps=3,optimizer=sgd"], ["optimizer must be one of momentum, adam"]),
        (["apgd:epsilon=0.1"], ["epsilon is set for all attacks alike"]),
        (["apgd:num_steps=3,num_steps=4"], ["num_steps is given twice"]),
        (["apgd:num_steps"], ["options look like"]),
        (["pgd20:num_steps=3"], ["pgd20 takes no options (use pgd:num_steps=20)"]),
        (["cw:num_steps=3"], ["use pgd:loss=margin or cw_l2"]),
        (["clean", "num_steps=3"], ["'num_steps=3' belongs to no attack"]),
        (["n_fgsm"], ["it leaves the ball", "fgsm:random_start=true"]),
        (["pgd:num_steps=3,targeted=true"], ["no option 'targeted' (use toward="]),
        (["apgd:toward=nearest"], ["toward must be one of next, random, likeliest, least_likely, all, or a class"]),
        (["autoattack:toward=random"], ["autoattack aims at several classes by itself"]),
        (["saved:", "corruption"], ["saved must name what to judge, as saved:FILE.npz", "as corruption:DATA"]),
        ([3], ["3 is unknown"]),
    ],
    ids=str,
)
def test_mistakes_are_named_all_at_once(names, causes):
    with pytest.raises(InputError) as caught:
        specs.parse(names)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("attacks must be names with their options")
    for cause in causes:
        assert cause in str(caught.value)


@pytest.mark.parametrize(
    ("names", "eot_samples", "causes"),
    [
        (
            ["apgd:num_steps=0", "square:num_queries=0"],
            0,
            ["apgd:num_steps=0: num_steps must be at least 1", "num_queries must be at least 1"],
        ),
        (["pgd:num_steps=3,random_start=middle"], 0, ["random_start must be True, False or 'gaussian'"]),
        (["pgd:num_steps=3,step_size=-1"], 0, ["step_size must be a number >= 0"]),
        (["autoattack:version=pluss"], 0, ["version must be one of standard, plus, rand"]),
        (["autoattack:version=rand"], 0, ["version must not be rand for a deterministic network"]),
        (["apgd:eot_samples=3"], 0, ["eot_samples must be left out for a deterministic network"]),
        (["apgd:eot_samples=0"], 20, ["eot_samples must be from 1 for a stochastic network"]),
        (["apgd:toward=10"], 0, ["toward must be a class 0 to 9, got 10"]),
        (["deepfool"], 0, ["norm must be l2 or linf, got 'l1'"]),
    ],
    ids=str,
)
def test_what_an_attack_refuses_is_said_before_anything_runs(names, eot_samples, causes):
    with pytest.raises(InputError) as caught:
        protocols.of_specs(specs.parse(names), Threat("l1", 0.1), num_classes=10, eot_samples=eot_samples)
    for cause in causes:
        assert cause in str(caught.value)


def test_costs_are_those_of_the_attacks():
    def passes(name, **network):
        (protocol,) = protocols.of_specs(specs.parse([name]), THREAT, **{"num_classes": 10, **network}).values()
        return protocol.passes

    assert passes("pgd:num_steps=7") == passes("pgd:num_steps=7,loss=margin") == 21 and passes("fgsm") == 3
    assert passes("pgd20") == passes("pgd:num_steps=20,random_start=false")
    assert passes("apgd:loss=dlr-targeted") == 9 * passes("apgd") == 2700
    assert passes("apgd:loss=dlr-targeted", num_classes=4) == 3 * passes("apgd")
    assert passes("apgd:toward=all,num_steps=5") == 9 * passes("apgd:num_steps=5")
    assert passes("apgd:num_steps=5", eot_samples=8) == 8 * passes("apgd:num_steps=5")
    assert passes("square:num_queries=30,num_restarts=2") == 60
    assert passes("autoattack:version=apgd-ce") == 303 < passes("autoattack") < passes("autoattack:version=plus")
