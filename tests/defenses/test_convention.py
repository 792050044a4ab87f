"""A defense's loss on top of every objective, against sums written out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import defenses, objectives
from robustjax.attacks.losses import cross_entropy, kl
from robustjax.defenses.convention import joint_loss, own_loss
from robustjax.types import InputError, Outputs

B, K, S = 5, 4, 3
RNG = np.random.default_rng(0)
LABELS = jnp.asarray(RNG.integers(0, K, B))


def _outputs():
    logits, heads = RNG.normal(size=(B, K)), RNG.normal(size=(S, B, K))
    return Outputs(jnp.asarray(logits, jnp.float32), {"probe": jnp.asarray(heads, jnp.float32)}, {})


NATURAL, ADVERSARIAL = _outputs(), _outputs()
VIEWS = {"natural": NATURAL, "adversarial": ADVERSARIAL}


def _mean_over_heads(value):
    return np.mean([value(NATURAL.auxiliary["probe"][s], ADVERSARIAL.auxiliary["probe"][s]) for s in range(S)], axis=0)


@pytest.mark.parametrize(("name", "scale"), [("cas", 1.0), ("cifs", 3 / 1.5)])
def test_adversarial_training_and_its_attack(name, scale):
    def term(logits, labels):
        return cross_entropy(logits["adversarial"], labels)

    defense = defenses.create(name, beta=0.5)
    heads = _mean_over_heads(lambda natural, adversarial: cross_entropy(adversarial, LABELS))
    expected = scale * (cross_entropy(ADVERSARIAL.logits, LABELS) + 0.5 * heads)
    np.testing.assert_allclose(defense.loss({"adversarial": ADVERSARIAL}, LABELS, term=term), expected, rtol=1e-5)
    np.testing.assert_allclose(defense.inner_loss({"adversarial": ADVERSARIAL}, LABELS, term=term), expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "scale"), [("cas", 1.0), ("cifs", 3 / 4.5)])
def test_the_attack_may_weigh_the_heads_by_itself(name, scale):
    def term(logits, labels):
        return cross_entropy(logits["adversarial"], labels)

    apart, views = defenses.create(name, beta=0.5, attack_beta=3.5), {"adversarial": ADVERSARIAL}
    heads = _mean_over_heads(lambda natural, adversarial: cross_entropy(adversarial, LABELS))
    expected = scale * (cross_entropy(ADVERSARIAL.logits, LABELS) + 3.5 * heads)
    np.testing.assert_allclose(apart.inner_loss(views, LABELS, term=term), expected, rtol=1e-5)
    same = defenses.create(name, beta=0.5)
    np.testing.assert_array_equal(apart.loss(views, LABELS, term=term), same.loss(views, LABELS, term=term))
    with pytest.raises(InputError, match=f"{name}: attack_beta must be at least 0 and finite, got -1"):
        defenses.create(name, attack_beta=-1)


def test_trades_gains_both_of_its_terms():
    def term(logits, labels):
        return objectives.trades(logits["natural"], logits["adversarial"], labels, beta=6.0)

    natural = cross_entropy(NATURAL.logits, LABELS) + 2.0 * _mean_over_heads(lambda a, _: cross_entropy(a, LABELS))
    divergence = kl(ADVERSARIAL.logits, jax.nn.softmax(NATURAL.logits)) + 2.0 * _mean_over_heads(
        lambda a, b: kl(b, jax.nn.softmax(a))
    )
    value = joint_loss(VIEWS, LABELS, term=term, kind="probe", beta=2.0)
    np.testing.assert_allclose(value, natural + 6.0 * divergence, rtol=1e-5)


def test_a_term_may_keep_what_belongs_to_the_networks_own_logits():
    """MART's divergence on the heads keeps the weight of the network's own natural prediction."""
    weight = 1.0 - jnp.take_along_axis(jax.nn.softmax(NATURAL.logits), LABELS[:, None], axis=1)[:, 0]

    def term(logits, labels):
        boosted = objectives.mart(logits["natural"], logits["adversarial"], labels, beta=0.0)
        return boosted + 5.0 * weight * kl(logits["adversarial"], jax.nn.softmax(logits["natural"]))

    own = objectives.mart(NATURAL.logits, ADVERSARIAL.logits, LABELS, beta=5.0)
    heads = _mean_over_heads(
        lambda a, b: objectives.mart(a, b, LABELS, beta=0.0) + 5.0 * weight * kl(b, jax.nn.softmax(a))
    )
    value = joint_loss(VIEWS, LABELS, term=term, kind="probe", beta=2.0)
    np.testing.assert_allclose(value, own + 2.0 * heads, rtol=1e-5)


def test_defenses_without_heads_leave_the_objective_alone():
    term = partial(lambda logits, labels: cross_entropy(logits["natural"], labels))
    for name in ("sap", "kwta", "meansparse", "dropout", "noise"):
        defense = defenses.create(name)
        assert defense.loss is own_loss
        np.testing.assert_array_equal(defense.loss(VIEWS, LABELS, term=term), cross_entropy(NATURAL.logits, LABELS))


def test_declarations():
    stochastic = {name for name in defenses.DEFENSES if defenses.create(name).stochastic}
    joint = {name for name in defenses.DEFENSES if defenses.create(name).inner_loss is not own_loss}
    assert (stochastic, joint) == ({"sap", "dropout", "noise"}, {"cas", "cifs"})
    for name in defenses.DEFENSES:
        defense = defenses.create(name)
        assert (defense.name, defense.mode) == (name, "active") and defense.gradient
        assert (defense.surrogate.mode, defense.switched_off.mode) == ("surrogate", "off")
        assert defense.surrogate.stochastic == defense.stochastic and not defense.switched_off.stochastic
