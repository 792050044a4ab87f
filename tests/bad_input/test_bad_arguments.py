"""Functions of arrays with arguments that would be cut off, wrapped, broadcast or averaged over nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bad_input.refusals import one_line
from robustjax import (
    analysis,
    attacks,
    data,
    defenses,
    evaluation,
    interop,
    models,
    objectives,
    runs,
    statistics,
    transforms,
)
from robustjax.attacks import losses
from robustjax.defenses import cas, cifs, dropout, fsr, kwta, meansparse, noise, sap, sns
from robustjax.types import InputError

pytestmark = pytest.mark.bad_input
KEY = jax.random.key(0)
FEATURES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 4)), jnp.float32)
WEIGHTS, BIASES = np.ones((4, 3), np.float32), np.zeros(3, np.float32)
INTEGERS = FEATURES.astype(jnp.int32)
CLASSES = [jnp.array([-1, 0]), jnp.array([3, 0]), jnp.array([0.0, 1.0]), jnp.array([0]), jnp.array([[0], [1]])]
LOGITS = jnp.ones((2, 3))
IMAGES, LABELS = np.full((2, 2, 2, 1), 0.5, np.float32), np.array([0, 1])
THREAT = evaluation.Threat("linf", 0.1)


def probe(features):
    return features.mean((1, 2)) @ WEIGHTS


def linear(images):
    return images.reshape(len(images), -1)


WRONG = [
    # Integers, to which the result would be cut off.
    *((f"{name}: ", call) for name, call in {
        "sap": lambda: sap.prune(KEY, INTEGERS),
        "kwta": lambda: kwta.k_winners(INTEGERS, fraction=0.5),
        "cas": lambda: cas.suppress(INTEGERS, WEIGHTS, BIASES),
        "cifs": lambda: cifs.select(probe, INTEGERS),
        "fsr": lambda: fsr.separate(INTEGERS, INTEGERS),
        "meansparse": lambda: meansparse.sparsify(INTEGERS, BIASES, BIASES, alpha=0.1),
    }.items()),
    ("got list", lambda: sap.prune(KEY, [[1.0]])),
    ("with 2 axes or more", lambda: cas.suppress(FEATURES[0, 0, 0], WEIGHTS, BIASES)),
    # Classes that indexing would wrap or clip.
    *(("labels must be integers [2] of cl", lambda labels=labels: cas.suppress(FEATURES, WEIGHTS, BIASES, labels))
      for labels in CLASSES),
    *(("labels must be integers [2] of cl", lambda labels=labels: cifs.select(probe, FEATURES, labels))
      for labels in CLASSES),
    # Shapes that would be broadcast.
    ("mean must be [4]", lambda: meansparse.sparsify(FEATURES, jnp.zeros(1), jnp.ones(4), alpha=0.1)),
    ("of one shape", lambda: objectives.trades(LOGITS, LOGITS[:1], jnp.array([0, 1]), beta=1.0)),
    ("labels must be integers", lambda: objectives.trades(LOGITS, LOGITS, jnp.array([0, -1]), beta=1.0)),
    ("labels must be integers", lambda: objectives.mart(LOGITS, LOGITS, jnp.array([0.0, 1.0]), beta=1.0)),
    ("labels must be integers", lambda: objectives.nuat(LOGITS, LOGITS, jnp.array([0, LOGITS.shape[1]]), beta=1.0)),
    ("labels must be integers", lambda: objectives.pgi(LOGITS, LOGITS, jnp.array([0]), beta=1.0)),
    ("of one shape", lambda: objectives.mart(LOGITS, LOGITS[:1], jnp.array([0, 1]), beta=1.0)),
    ("of one shape", lambda: statistics.paired_difference(np.ones(10, bool), np.ones(1, bool))),
    ("of one shape", lambda: statistics.paired_difference(np.ones((2, 10), bool), np.ones(10, bool))),
    ("must be integers, at least 0, got -1 and 2", lambda: statistics.mcnemar(-1, 2)),
    ("must be integers, at least 0, got 0.5 and 2", lambda: statistics.mcnemar(0.5, 2)),
    ("one for each of 3 images, got 2", lambda: next(data.batches(np.zeros((3, 1, 1, 1)), np.zeros(2, int), 2))),
    # Nothing to average over.
    ("at least one example", lambda: statistics.wilson_interval(0, 0)),
    ("got 3 and 5", lambda: statistics.wilson_interval(5, 3)),
    ("got 3 and nan", lambda: statistics.wilson_interval(float("nan"), 3)),
    ("bool [n]", lambda: statistics.paired_difference(np.zeros(0, bool), np.zeros(0, bool))),
    ("bool [n]", lambda: statistics.paired_difference(np.array([5.0]), np.array([1.0]))),
    ("at least one example", lambda: analysis.proportion(np.zeros(0, bool))),
    ("one example at least", lambda: sns.sensitivity(FEATURES[:0], FEATURES[:0])),
    # Floats that would be divided by 255.
    ("images must be uint8", lambda: data.to_float(np.ones((1, 2, 2, 1), np.float32))),
    # Numbers out of their interval, or none.
    *((name, lambda call=call, value=value: call(value))
      for value in ("0.5", float("nan"), -1.0, np.full(2, 0.5), np.ones(1), True, 0.5j)
      for name, call in [
        ("kwta: fraction", lambda value: kwta.k_winners(FEATURES, fraction=value)),
        ("kwta: fraction", lambda value: kwta.defense(fraction=value)),
        ("sap: fraction", lambda value: sap.prune(KEY, FEATURES, fraction=value)),
        ("sns: fraction", lambda value: sns.select_sensitive(jnp.ones(3), fraction=value)),
        ("sns: weight", lambda value: sns.defense(weight=value)),
        ("sns: refresh_steps", lambda value: sns.defense(refresh_steps=value)),
        ("meansparse: alpha", lambda value: meansparse.defense(alpha=value)),
        ("noise: deviation", lambda value: noise.defense(deviation=value)),
        ("dropout: rate", lambda value: dropout.defense(rate=value)),
        ("cas: beta", lambda value: cas.defense(beta=value)),
        ("cas: attack_beta", lambda value: cas.defense(attack_beta=value)),
        ("cifs: beta", lambda value: cifs.defense(beta=value)),
        ("cifs: attack_beta", lambda value: cifs.defense(attack_beta=value)),
        ("cifs: hidden", lambda value: cifs.defense(hidden=value)),
        ("cifs: top_k", lambda value: cifs.defense(top_k=value)),
        ("cifs: top_k", lambda value: cifs.importance(probe, FEATURES, top_k=value)),
        ("cifs: scale", lambda value: cifs.select(probe, FEATURES, scale=value)),
        ("cifs: temperature", lambda value: cifs.defense(temperature=value)),
        ("cifs: class_mix", lambda value: cifs.defense(class_mix=value)),
        ("fsr: temperature", lambda value: fsr.separate(FEATURES, FEATURES, temperature=value)),
        ("fsr: temperature", lambda value: fsr.separate(FEATURES, FEATURES, backward_temperature=value)),
        ("fsr: temperature", lambda value: fsr.defense(temperature=value)),
        ("fsr: separation_weight", lambda value: fsr.defense(separation_weight=value)),
        ("fsr: recalibration_weight", lambda value: fsr.defense(recalibration_weight=value)),
        ("fsr: width", lambda value: fsr.defense(width=value)),
        ("beta", lambda value: objectives.trades(LOGITS, LOGITS, LABELS, beta=value)),
        ("beta", lambda value: objectives.mart(LOGITS, LOGITS, LABELS, beta=value)),
        ("beta", lambda value: objectives.nuat(LOGITS, LOGITS, LABELS, beta=value)),
        ("beta", lambda value: objectives.pgi(LOGITS, LOGITS, LABELS, beta=value)),
        ("label_smoothing", lambda value: objectives.smoothed_cross_entropy(LOGITS, LABELS, label_smoothing=value)),
        ("label_smoothing", lambda value: objectives.trades(LOGITS, LOGITS, LABELS, beta=1.0, label_smoothing=value)),
    ]),
    *((f"{name} must be at least 1 and finite, got 1.5; give an integer", call) for name, call in [
        ("sns: refresh_steps", lambda: sns.defense(refresh_steps=1.5)),
        ("cifs: hidden", lambda: cifs.defense(hidden=1.5)),
        ("cifs: top_k", lambda: cifs.select(probe, FEATURES, top_k=1.5)),
        ("fsr: width", lambda: fsr.defense(width=1.5)),
    ]),
    ("kwta: fraction must be in (0, 1], got 1.5", lambda: kwta.defense(fraction=1.5)),
    ("dropout: rate must be in [0, 1), got 1.0", lambda: dropout.defense(rate=1.0)),
    ("fsr: temperature must be above 0 and finite, got 0.0", lambda: fsr.defense(temperature=0.0)),
    ("beta must be at least 0 and finite, got inf", lambda: objectives.trades(LOGITS, LOGITS, LABELS, beta=np.inf)),
    # Options of another type.
    *((name, lambda name=name, options=options: defenses.create(name, **options)) for name, options in [
        ("cas", {"beta": "2"}), ("cas", {"beta": None}), ("cifs", {"top_k": 1.5}), ("fsr", {"width": True}),
        ("fsr", {"hard_mask": "no"}), ("sap", {"sampler": 3}), ("cas", {"sites": 3}),
    ]),
    ("remat must be True or False", lambda: models.create("small_cnn", remat="no")),
    ("defense must be one of defenses.create", lambda: models.create("small_cnn", defense="cas")),
    ("model must be one of", lambda: models.create(["small_cnn"])),
    ("sides divisible by 4", lambda: jax.eval_shape(
        models.create("deepmind_wide_resnet", depth=10, width=1).init, KEY, jnp.zeros((1, 10, 12, 3)))),
    ("num_examples must be an integer, got 1.5", lambda: data.load("digits", "test", num_examples=1.5)),
    ("validation_examples must be an integer", lambda: data.load("digits", "train", validation_examples="x")),
    ("data set must be a name", lambda: data.load(3, "test")),
    ("subset_seed must be an integer", lambda: data.read_images("digits", num_examples=3, subset_seed="a")),
    ("got 3; name one", lambda: data.read_images(3)),
    ("workdir must be a folder, got None", lambda: runs.train(None, None)),
    ("workdir must be the folder of a run, got None", lambda: runs.load(None)),
    ("model must be ", lambda: interop.load_network(None)),
    # Names that no mapping can hold.
    ("source must be one of", lambda: interop.from_torch({}, ["cas"])),
    ("importance must be one of", lambda: cifs.select(probe, FEATURES, importance=["softmax"])),
    # Drivers on the host, within jit.
    *(("must be known by value, got traced ones; call what compiles by itself outside jit", call) for call in [
        lambda: jax.jit(lambda images: evaluation.judge(linear, KEY, images, LABELS, epsilon=0.1).robust)(IMAGES),
        lambda: jax.jit(lambda x: x * evaluation.judge(linear, KEY, IMAGES, LABELS, epsilon=0.1).clean)(1.0),
        lambda: jax.vmap(lambda radius: attacks.autoattack(linear, KEY, IMAGES, LABELS, epsilon=radius))(jnp.ones(2)),
        lambda: jax.jit(lambda images: evaluation.evaluate(linear, KEY, images, LABELS, threat=THREAT))(IMAGES),
    ]),
    ("budget must be one of", lambda: evaluation.judge(linear, KEY, IMAGES, LABELS, epsilon=0.1, budget=["quick"])),
    ("budget must be one of", lambda: evaluation.evaluate(linear, KEY, IMAGES, LABELS, threat=THREAT, budget=["full"])),
    # Networks as programs.
    ("images must be an array, got float", lambda: transforms.inspect(linear, 0.3)),
    ("images must be an array, got nothing", lambda: transforms.inspect(linear)),
    *(("temperature must be above 0 and finite, got ", lambda wrong=wrong: transforms.relax(linear, temperature=wrong))
      for wrong in (None, "1", [1.0], 0, np.float32(0), jnp.float32(-1), float("nan"))),
    ("kinds must be findings or of step", lambda: transforms.relax(linear, kinds=3)),
    ("class_names must be a sequence of strings, got 3", lambda: evaluation.evaluate(
        linear, KEY, IMAGES, LABELS, threat=THREAT, class_names=3)),
    # Flags that would count as True.
    *((f"{name} must be True or False, got 'no'", lambda name=name: evaluation.judge(
        linear, KEY, IMAGES, LABELS, epsilon=0.1, **{name: "no"})) for name in ("quicken", "progress")),
    ("progress must be True or False", lambda: evaluation.evaluate(
        linear, KEY, IMAGES, LABELS, threat=THREAT, progress="no")),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "call"), WRONG)
def test_one_line(cause, call):
    with pytest.raises(InputError) as caught:
        call()
    one_line(str(caught.value), cause)


STEPS = {"epsilon": 0.1, "step_size": 0.1, "num_steps": 2}
ADAM = {"epsilon": 0.1, "optimizer": optax.adam(0.1), "num_steps": 1}
OF_ATTACKS = [
    ("images must be an array, got list", attacks.pgd, {**STEPS, "images": [[[1.0, 2.0], [3.0]]]}),
    ("images must be an array, got one with a mask", attacks.pgd, {**STEPS, "images": np.ma.masked_array(IMAGES)}),
    ("epsilon must be an array, got list", attacks.pgd, {**STEPS, "epsilon": [0.1, [0.1]]}),
    ("for each of 2 examples, got 1e+39", attacks.pgd, {**STEPS, "epsilon": 1e39}),
    ("targeted must be True or False, got 'no'", attacks.pgd, {**STEPS, "targeted": "no"}),
    ("keep_best must be True or False", attacks.pgd, {**STEPS, "keep_best": 1}),
    ("random_start must be True, False", attacks.pgd, {**STEPS, "random_start": np.array([True, False])}),
    ("random_start must be True or False", attacks.optimized_pgd, {**ADAM, "random_start": "gaussian"}),
    ("optimizer must be one of optax", attacks.optimized_pgd, {**ADAM, "optimizer": "adam"}),
    ("num_steps must be a Python integer", attacks.apgd, {"epsilon": 0.1, "num_steps": jnp.int32(2)}),
    ("num_queries must be a Python integer", attacks.square, {"epsilon": 0.1, "num_queries": np.array(2)}),
    ("eot_samples must be a Python integer", attacks.pgd, {**STEPS, "eot_samples": jnp.int32(2)}),
    ("num_steps must be at least 1, got True", attacks.cw, {"num_steps": True}),
    ("norm must be one of linf, l2, l1, got ['l2']", attacks.hopskipjump, {"epsilon": 0.1, "norm": ["l2"]}),
    *(
        (f"{name} must be a number >= 0", attacks.cw, {name: wrong})
        for name in ("learning_rate", "initial_weight", "confidence")
        for wrong in (float("nan"), -1.0, "x", None)
    ),
]


@pytest.mark.parametrize(("cause", "attack", "options"), OF_ATTACKS)
def test_one_line_of_an_attack(cause, attack, options):
    images = options.get("images", IMAGES)
    with pytest.raises(InputError) as caught:
        attack(linear, KEY, images, LABELS, **{name: value for name, value in options.items() if name != "images"})
    one_line(str(caught.value), cause)


def test_counts_that_decide_what_is_compiled_are_not_traced():
    with pytest.raises(InputError, match="num_steps must be a Python integer, got an array"):
        jax.jit(lambda n: attacks.apgd(linear, KEY, IMAGES, LABELS, epsilon=0.1, num_steps=n))(2)


@pytest.mark.parametrize("options", [{"step_size": -1.0}, {"decay": float("nan")}, {"bounds": (1.0, 0.0)}], ids=str)
def test_momentum_out_of_range(options):
    with pytest.raises(InputError, match=f"{next(iter(options))} must be"):
        attacks.momentum(**{"step_size": 0.1, **options})


def test_a_number_of_jax_is_a_number_within_a_trace_too():
    beta = jnp.float32(2)
    loss = lambda logits: objectives.trades(logits, LOGITS, LABELS, beta=beta)  # noqa: E731
    np.testing.assert_array_equal(jax.jit(loss)(LOGITS), loss(LOGITS))


def test_images_of_another_byte_order_are_the_same():
    options = {**STEPS, "random_start": False}
    expected = attacks.pgd(linear, KEY, IMAGES, LABELS, **options)
    for images in (IMAGES.astype(">f4"), IMAGES.astype(np.longdouble)):
        np.testing.assert_array_equal(attacks.pgd(linear, KEY, images, LABELS.astype(">i8"), **options), expected)


def test_empty_maps_stay_empty():
    for shape in ((0, 3, 3, 4), (2, 3, 3, 0)):
        empty = jnp.zeros(shape)
        assert sap.prune(KEY, empty).shape == kwta.k_winners(empty, fraction=0.5).shape == shape
    module = models.create("small_cnn", num_classes=3)
    variables = module.init(KEY, jnp.zeros((1, 8, 8, 1)))
    assert module.apply(variables, jnp.zeros((0, 8, 8, 1))).logits.shape == (0, 3)


def test_a_movement_that_is_not_finite_is_no_zero():
    for value in (np.nan, np.inf):
        for norm in ("l1", "l2", "linf"):
            found = sns.sensitivity(FEATURES.at[0, 0, 0, 0].set(value), FEATURES, norm=norm)
            np.testing.assert_array_equal(found, [value, 0, 0, 0])


def test_classes_that_are_masked_spoil_no_divergence():
    masked = jnp.array([[1.0, -jnp.inf, 0.0]])
    target = jax.nn.softmax(jnp.array([[0.0, -jnp.inf, 2.0]]))
    value, gradient = jax.value_and_grad(lambda logits: losses.kl(logits, target)[0])(masked)
    two = losses.kl(masked[:, ::2], target[:, ::2])[0]
    np.testing.assert_allclose(value, two, rtol=1e-6)
    np.testing.assert_allclose(gradient, (jax.nn.softmax(masked) - target), atol=1e-6)
    both = jax.grad(lambda logits: objectives.trades(logits, masked, jnp.array([0]), beta=6.0)[0])(masked + 1.0)
    assert np.isfinite(both).all()
