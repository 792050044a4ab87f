"""Where defenses stand: sites by name, and several defenses in one network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import defenses, models
from robustjax.attacks.losses import cross_entropy
from robustjax.defenses.composition import deterministic, trained
from robustjax.evaluation.verdict.hints import hints_of
from robustjax.models.layers import Pass, with_inputs
from robustjax.models.resnet import ResNet
from robustjax.types import InputError, Outputs

NETWORKS = {
    "resnet18": {},
    "preact_resnet18": {},
    "wide_resnet": {"depth": 10, "width": 1},
    "vgg16": {},
    "small_cnn": {},
}
PLAIN = ResNet(num_classes=3, blocks=(1, 1), widths=(4, 6))
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 4, 4, 1)), jnp.float32)
KEY = jax.random.key(0)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_group_and_every_site_is_guarded_by_its_name(name):
    sites = models.create(name, **NETWORKS[name]).sites()
    for group, members in sites.items():
        assert tuple(defenses.create("kwta", sites=group).guards(sites, 10)) == members
        for site in members[:2]:
            assert list(defenses.create("kwta", sites=[site]).guards(sites, 10)) == [site]
    assert defenses.create("kwta", sites="late, final").places(sites) == tuple(
        dict.fromkeys((*sites["late"], *sites["final"]))
    )


def test_stages_are_what_their_blocks_pass_on():
    sites = models.create("resnet18").sites()
    assert sites["stage4"] == sites["late"] == ("stage4_block1", "stage4_block2")
    assert models.create("wide_resnet", depth=16, width=1).sites()["stage2"] == ("stage2_block1", "stage2_block2")
    vgg = models.create("vgg16").sites()
    assert vgg["group5"] == vgg["late"] and vgg["group4"][-1:] == vgg["final"]


def test_of_the_sites_given_the_last_has_cifss_linear_probe():
    sites = models.create("resnet18").sites()
    guards = defenses.create("cifs", hidden=7, sites="stage4_block2,stage3_block2").guards(sites, 10)
    assert {site: guard.hidden for site, guard in guards.items()} == {"stage4_block2": 7, "stage3_block2": None}


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("stage5", r"cas: sites must be some of stem, .*stage4_block2.* or groups of them \(activation, preactivation, "
                   r"late, final, stage1, stage2, stage3, stage4, weights\), got 'stage5' \(nearest: 'stage"),
        ("late,conv1", "got 'conv1'"),
    ],
)  # fmt: skip
def test_sites_that_a_network_lacks_are_refused_with_those_it_has(sites, message):
    with pytest.raises(InputError, match=message):
        models.create("resnet18", defense=defenses.create("cas", sites=sites))


def test_sites_must_be_names():
    for wrong in ("", "late,", "late,late"):
        with pytest.raises(InputError, match=f"cas: sites must be different names, separated by commas, got '{wrong}'"):
            defenses.create("cas", sites=wrong)
    with pytest.raises(InputError, match=r"fsr: features must be \[B, H, W, C\], got \(1, 100\); choose another site"):
        module = models.create("small_cnn", defense=defenses.create("fsr", sites="dense"))
        jax.eval_shape(module.init, KEY, jnp.zeros((1, 8, 8, 1)))


BOTH = defenses.compose(
    defenses.create("kwta", fraction=0.5, sites="stage1"),
    defenses.create("sap", sampler="bernoulli"),
    defenses.create("cas", sites="stage1,stage2"),
)


def test_parts_at_one_site_follow_each_other_and_those_trained_come_first():
    guards = BOTH.guards(PLAIN.sites(), 3)
    assert {key: type(guard).__name__ for key, guard in guards.items()} == {
        "stage1_block1": "KWTA",
        "stage1_block1+1": "CAS",
        "stage2_block1": "CAS",
        "stem": "SAP",
        "stage1_block1_act1": "SAP",
        "stage1_block1+2": "SAP",
        "stage2_block1_act1": "SAP",
        "stage2_block1+1": "SAP",
    }
    # One after the other, in this order: as if each had been called by hand on what the one before left.
    features = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 2, 4)), jnp.float32)

    class Site(models.Network):
        def __call__(self, images):
            net = Pass(self, IMAGES, None, False)
            return net.site("stage1_block1", images)

    guards = {key: guard for key, guard in guards.items() if key.startswith("stage1_block1+1") or "KWTA" in repr(guard)}
    variables = {"params": {"guards_stage1_block1+1": {"kernel": jnp.arange(12.0).reshape(4, 3), "bias": jnp.zeros(3)}}}
    found = Site(guards=guards).apply(variables, features)
    kept = defenses.kwta.k_winners(features, fraction=0.5)
    expected, _ = defenses.cas.suppress(kept, *variables["params"]["guards_stage1_block1+1"].values())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_network_trained_with_some_parts_takes_the_others_without_new_names():
    part = trained(BOTH)
    assert part.name == "kwta+cas" and not part.stochastic and deterministic(BOTH).name == "kwta+cas"
    assert trained(defenses.create("sap")) is None and trained(None) is None
    shapes = [
        jax.eval_shape(
            PLAIN.clone(guards=defense.guards(PLAIN.sites(), 3)).init, {"params": KEY, "defense": KEY}, IMAGES
        )
        for defense in (part, BOTH)
    ]
    assert shapes[0] == shapes[1]


def test_what_a_judge_is_told_is_said_of_all_parts():
    assert (BOTH.stochastic, BOTH.inference_only, BOTH.heads) == (True, False, ("probe",))
    assert "kwta: discontinuous" in BOTH.gradient and "sap: mask" in BOTH.gradient
    for mode, defense in (("surrogate", BOTH.surrogate), ("off", BOTH.switched_off)):
        assert {guard.mode for guard in defense.guards(PLAIN.sites(), 3).values()} == {mode}
    build = lambda defense: PLAIN.clone(guards=defense and defense.guards(PLAIN.sites(), 3))  # noqa: E731
    variables = jax.eval_shape(build(BOTH).init, {"params": KEY, "defense": KEY}, IMAGES)
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), variables)
    logits_fn, hints = hints_of(build, BOTH, variables)
    assert hints.stochastic and jax.eval_shape(hints.auxiliary_fn, IMAGES, KEY).shape == (2, 2, 3)
    assert jax.eval_shape(logits_fn, IMAGES, KEY).shape == jax.eval_shape(hints.undefended_fn, IMAGES).shape == (2, 3)


def _outputs(seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    kinds = ("probe", "robust", "nonrobust", "recalibrated")
    return Outputs(draw(4, 3), {kind: draw(2, 4, 3) for kind in kinds}, {"conv": draw(4, 2, 2, 5)})


def test_each_part_adds_to_the_loss_what_it_adds_alone():
    views, labels = {"natural": _outputs(0), "adversarial": _outputs(1)}, jnp.array([0, 1, 2, 1])
    carried = {"carried": {"conv": jnp.array([True, False, False, True, False])}}
    term = lambda logits, labels: cross_entropy(logits["adversarial"], labels)  # noqa: E731
    parts = [defenses.create(name) for name in ("cifs", "fsr", "sns", "kwta")]
    own = term({view: outputs.logits for view, outputs in views.items()}, labels)
    for order in (parts, parts[::-1]):
        both = defenses.compose(*order)
        given = [{"term": term, **(carried if part.name == "sns" else {})} for part in parts]
        added = [part.loss(views, labels, **one) - own for part, one in zip(parts, given, strict=True)]
        np.testing.assert_allclose(both.loss(views, labels, term=term, **carried), own + sum(added), rtol=1e-5)
        np.testing.assert_allclose(
            both.inner_loss(views, labels, term=term), parts[0].inner_loss(views, labels, term=term), rtol=1e-5
        )
        assert both.views == ("natural", "adversarial") and both.tracker is not None
    assert defenses.compose(parts[0]) is parts[0]


def test_what_does_not_go_together_is_refused():
    with pytest.raises(InputError, match="defenses must have heads of their own, got cas and cifs with heads 'probe'"):
        defenses.compose(defenses.create("cas"), defenses.create("cifs"))
    with pytest.raises(InputError, match="one defense at most may carry something between updates, got sns and sns"):
        defenses.compose(defenses.create("sns"), defenses.create("sns", sites="late"))


def test_sns_compares_the_layers_that_it_is_given():
    sites, features = PLAIN.sites(), {"stem": jnp.zeros((2, 4)), "stage1_block1": jnp.zeros((2, 6))}
    every, some = defenses.create("sns"), defenses.create("sns", sites="stage1")
    assert set(every.tracker_in(sites).initial(features)) == set(features)
    for defense in (some, defenses.compose(defenses.create("cas"), some)):
        assert {site: len(chosen) for site, chosen in defense.tracker_in(sites).initial(features).items()} == {
            "stage1_block1": 6
        }
    assert defenses.create("cas").tracker_in(sites) is None
    with pytest.raises(InputError, match=r"sns: sites must be some of stem, stage1_block1, whose .* got stem_input"):
        defenses.create("sns", sites="stem_input").tracker_in(sites).initial(features)


def test_a_specification_is_read_and_spelled():
    text = "cas:attack_beta=0.0,beta=1e+1+dropout:in_training=True,rate=0.5,sites=stage1,stem"
    read = defenses.read_spec(text, source="--defense")
    assert read == [
        ("cas", {"attack_beta": 0.0, "beta": 10.0}),
        ("dropout", {"in_training": True, "rate": 0.5, "sites": "stage1,stem"}),
    ]
    assert defenses.read_spec(defenses.spell(read), source="--defense") == read
    spelling, both = defenses.parse(text)
    assert spelling == text.replace("1e+1", "10.0") and both.parts[1].sites == ("stage1", "stem")
    assert defenses.parse("none") == ("none", None)
    off = defenses.read_spec("fsr:hard_mask=FALSE,gumbel_noise=false,width=8", source="--defense")
    assert off == [("fsr", {"hard_mask": False, "gumbel_noise": False, "width": 8})]
    for wrong, message in {
        "cas+kwt": "--defense must be none or one of cas, .*, got 'kwt' .nearest: 'kwta'",
        "cas+none": "got 'none'",
        "fsr:hard_mask=2": "--defense=fsr: hard_mask must be bool, got '2'",
        "cifs:class_mix=x": "--defense=cifs: class_mix must be float, got 'x'",
        "sap:fraction=0.5,fraction=0.7": "fraction must be given once",
        "cas:sites": "options look like beta=..., attack_beta=..., sites=..., got 'sites'",
        "sap:fraction=0.5,stage1": "fraction must be float, got '0.5,stage1'",
    }.items():
        with pytest.raises(InputError, match=message):
            defenses.parse(wrong)


class Tiny(models.Network):
    def sites(self):
        return with_inputs(("conv", "dense"), late=("conv",), final=("conv",))

    @nn.compact
    def __call__(self, images, labels=None, train=False):
        net = Pass(self, images, labels, train)
        x = net.act("conv", net.norm("norm", net.conv("conv", net.images, 2, 2)))
        return net.outputs(net.act("dense", net.dense("hidden", x.reshape(len(x), -1), 2)))


def test_the_kernels_of_all_layers_pass_the_site_of_weights():
    """Against a network whose kernels are pruned by hand: the larger half of each layer, in absolute value."""
    network, rng = Tiny(num_classes=2), np.random.default_rng(3)
    shapes = jax.eval_shape(network.init, KEY, IMAGES)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), shapes)
    pruned = jax.tree.map(lambda leaf: leaf, variables)
    for layer in ("conv", "hidden", "head"):
        kernel = variables["params"][layer]["kernel"]
        kernel *= np.sign(rng.normal(size=kernel.shape)).astype(np.float32)
        kept = np.abs(kernel) >= np.median(np.abs(kernel))
        pruned["params"][layer] = pruned["params"][layer] | {"kernel": np.where(kept, kernel, np.float32(0))}

    def logits(defense):
        module = network if defense is None else network.clone(guards=defense.guards(network.sites(), 2))
        return jax.jit(lambda variables, key: module.apply(variables, IMAGES, rngs={"defense": key}).logits)

    plain = logits(None)
    half = logits(defenses.create("kwta", sites="weights", fraction=0.5, by_magnitude=True))(variables, KEY)
    np.testing.assert_allclose(half, plain(pruned, KEY), rtol=1e-5)
    assert np.all(np.abs(half - plain(variables, KEY)) > 1e-3)

    # What is drawn differs from call to call.
    noisy = logits(defenses.create("noise", sites="weights", relative=True))
    assert np.all(np.abs(noisy(variables, KEY) - noisy(variables, jax.random.key(1))) > 1e-6)
    for name in ("cas", "meansparse"):
        with pytest.raises(InputError, match=f"{name}: sites must be those of features, got 'weights'"):
            logits(defenses.create(name, sites="weights"))
