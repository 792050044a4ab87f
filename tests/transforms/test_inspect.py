"""Findings name what hides a gradient, with the user's own line, whatever library wrote the network; and only that."""

from functools import partial

import hidden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import defenses, models
from robustjax.evaluation.verdict import goals, relaxations
from robustjax.transforms import Finding, Findings, inspect, quicken


@pytest.mark.parametrize("library", hidden.LIBRARIES)
def test_the_users_own_line_is_named(library):
    if library == "equinox":
        pytest.importorskip("equinox")
    network = hidden.LIBRARIES[library]()
    found = inspect(network, hidden.IMAGES)
    assert [each[:2] for each in found] == [("step", "round")]
    file, line = found[0].where.split(":")
    assert file.endswith("tests/transforms/hidden.py") and line == hidden.HIDDEN
    # As a verdict reads it, through frames of its own.
    assert relaxations.find(goals.as_logits_fn(network), hidden.IMAGES, ()) == found


def test_a_line_that_is_traced_again_elsewhere_keeps_its_own_name():
    # jnp.round is traced once for each shape: the second use must not be given the first one's line.
    def first(x):
        return jnp.round(x)

    def second(x):
        return jnp.round(first(2.0 * x) + x)

    lines = {each.where.split(":")[1] for each in inspect(lambda x: hidden.linear(second(x)), hidden.IMAGES)}
    assert lines == {hidden.line_of(first), hidden.line_of(second)}


@pytest.mark.parametrize("name", hidden.HIDES)
def test_what_hides_is_found(name):
    function, kinds = hidden.HIDES[name]
    found = inspect(function, hidden.IMAGES)
    # Of a gradient that vanishes rounding may be left, which is another without the softmax's own stop_gradient.
    rounding = {"detached"} if name == "saturated softmax" else set()
    assert {each.kind for each in found} - rounding == kinds
    assert all("hidden.py:" in each.where for each in found), found


@pytest.mark.parametrize("name", hidden.HONEST)
def test_what_only_looks_like_it_is_not(name):
    assert inspect(hidden.HONEST[name], hidden.IMAGES) == ()


def test_a_working_folder_that_was_deleted_shortens_no_path(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    (found,) = inspect(lambda x: hidden.linear(jnp.round(x)), hidden.IMAGES)
    assert found.where.startswith("/") and "test_inspect.py:" in found.where


def test_a_rule_that_raises_is_none_of_its_function():
    (found,) = inspect(lambda x: hidden.linear(hidden.raising(x)), hidden.IMAGES)
    assert found.kind == "custom_rule" and "(<lambda>)" in found.where


def test_an_honest_rule_that_takes_a_mask_and_a_key_is_not_accused():
    found = inspect(
        lambda x: hidden.linear(hidden.honest_masked(x, jnp.ones(x.shape, bool), hidden.KEY)), hidden.IMAGES
    )
    assert "custom_rule" not in {each.kind for each in found}


def test_only_what_depends_on_the_image_and_reaches_the_logits_counts():
    def network(images, key, scale):
        noise = jax.random.uniform(key, images.shape)
        _ = jnp.sign(images)
        return hidden.linear(images + noise) * jnp.round(scale)

    (found,) = inspect(network, hidden.IMAGES, hidden.KEY, np.float32(2.0))
    assert found.kind == "random" and "stochastic=True" in found.remedy


def test_randomness_that_no_argument_explains_is_said_to_be_undeclared():
    generator = np.random.default_rng(0)
    drawn = inspect(lambda x: hidden.linear(x + generator.normal(size=x.shape).astype(np.float32)), hidden.IMAGES)
    own = inspect(hidden.HIDES["own key"][0], hidden.IMAGES)
    for (found,) in (drawn, own):
        assert found.kind == "random" and found.remedy.startswith("undeclared")


def test_only_the_branch_that_is_taken_is_read():
    branches = [hidden.linear, lambda x: hidden.linear(jnp.round(x)), lambda x: hidden.linear(jnp.sign(x))]

    @jax.jit
    def switched(index, x):
        return jax.lax.switch(index, branches, x)

    def kinds(*indices):
        return [each.primitive for each in inspect(lambda x: sum(switched(i, x) for i in indices), hidden.IMAGES)]

    assert kinds(jnp.int32(0)) == [] and kinds(jnp.int32(1)) == ["round"]
    # One program serves both calls.
    assert set(kinds(jnp.int32(1), jnp.int32(0), jnp.int32(2))) == {"round", "sign"}


def test_an_operation_that_is_not_known_is_reported():
    from jax.extend.core import Primitive
    from jax.interpreters import ad, mlir

    strange = Primitive("strange")
    strange.def_impl(lambda x: x)
    strange.def_abstract_eval(lambda x: x)
    ad.deflinear2(strange, lambda slope, x: [slope])
    mlir.register_lowering(strange, lambda context, x: [x])
    (found,) = inspect(lambda x: hidden.linear(strange.bind(x)), hidden.IMAGES)
    assert found[:2] == ("unknown", "strange")


def test_a_transpose_that_jax_does_not_check_is_reported():
    def network(x):
        return hidden.linear(jax.custom_derivatives.linear_call(lambda _, x: x, lambda _, slope: 0.0 * slope, (), x))

    assert [each[:2] for each in inspect(network, hidden.IMAGES)] == [("unknown", "linear_call")]


@pytest.mark.parametrize("bounded", [jax.nn.relu6, jax.nn.hard_sigmoid, lambda x: jax.nn.relu(x - 1e4)])
def test_activations_that_nothing_passes_are_reported_where_they_leave_no_gradient(bounded):
    (found,) = inspect(lambda x: hidden.linear(bounded(hidden.steep(x))), hidden.IMAGES)
    assert found.kind == "selection" and "identity" in found.remedy
    assert inspect(lambda x: hidden.linear(x + bounded(hidden.steep(x))), hidden.IMAGES) == ()


IMAGES = jnp.asarray(np.random.default_rng(2).uniform(size=(2, 16, 16, 3)), jnp.float32)


def network_of(name, guard=None):
    module = models.create(name, defense=guard)
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)
    return lambda images, *key: module.apply(variables, images, rngs={"defense": key[0]} if key else None)


@pytest.mark.parametrize("name", ["small_cnn", "resnet20"])
def test_an_honest_network_has_no_finding(name):
    network = network_of(name)
    assert inspect(network, IMAGES) == ()
    assert inspect(quicken(network), IMAGES) == ()


@pytest.mark.parametrize(
    ("guard", "kinds"),
    [
        ("sap", {"random", "detached", "selection"}),
        ("cas", {"selection"}),
        ("cifs", {"detached", "selection"}),
        ("kwta", {"integer", "selection"}),
    ],
)
def test_the_librarys_own_guards_are_found_out(guard, kinds):
    options = {"cifs": {"hidden": 4}}.get(guard, {})
    created = defenses.create(guard, **options)
    keys = (jax.random.key(1),) if created.stochastic else ()
    found = inspect(network_of("small_cnn", created), IMAGES, *keys)
    assert kinds <= {each.kind for each in found}


def test_findings_print_as_a_table():
    found = Findings([Finding("step", "round", "net.py:3 (f<g>)", 2, "the identity")])
    assert str(found).splitlines()[1].split("  ")[0] == "step" and "zero gradient" in repr(found)
    assert "<td>net.py:3 (f&lt;g&gt;)</td>" in found._repr_html_()
    assert "nothing hides" in Findings()._repr_html_()


@pytest.mark.torch
def test_the_line_of_a_pytorch_module_is_named():
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchax")
    from robustjax.transforms import from_torch_module

    def cut(x):
        return torch.round(4.0 * x) / 4.0

    def prepared(x):
        return cut(torch.square(x))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(16, 3)

        def forward(self, images):
            return self.dense(torch.relu(prepared(images)).flatten(1))

    network = from_torch_module(Network().eval())
    (found,) = inspect(network, hidden.IMAGES)
    assert found.kind == "step" and found.where.endswith(hidden.line_of(cut))
    assert relaxations.find(goals.as_logits_fn(network), hidden.IMAGES, ()) == (found,)
    assert inspect(partial(from_torch_module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval())),
                   hidden.IMAGES) == ()  # fmt: skip
