"""The grammar that every public attack and defense obeys."""

import inspect

import pytest

from robustjax import attacks

ATTACKS = [value for name, value in vars(attacks).items() if inspect.isfunction(value) and name in attacks.__all__]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attacks_take_the_network_a_key_arrays_and_then_options_by_keyword(attack):
    parameters = list(inspect.signature(attack).parameters.values())
    assert [parameter.name for parameter in parameters[:4]] == ["logits_fn", "key", "images", "labels"]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[4:])


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_epsilon_is_never_defaulted(attack):
    epsilon = inspect.signature(attack).parameters.get("epsilon")
    assert epsilon is None or epsilon.default is epsilon.empty


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_docstrings_have_an_example_that_runs(attack):
    assert ">>> " in attack.__doc__
