"""The evaluator of programs: what has no rule stays as it is, wherever it stands, and what has one is replaced."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import primitives

from robustjax import transforms
from robustjax.transforms import _program
from robustjax.transforms._program import rewritten
from robustjax.types import InputError

X = jnp.linspace(0.1, 1.2, 6).reshape(2, 3)
DIRECTION = jnp.linspace(-1.0, 2.0, 6).reshape(2, 3)
KEY = jax.random.key(3)


def nothing(equation):
    return None


def cosine_for_sine(equation):
    """A rule that changes values, so that it shows where it was applied."""
    return (lambda equation, x: jnp.cos(x)) if equation.primitive is primitives.sin_p else None


def functions(sin):
    """Programs with `sin` inside and outside of what each is named after; rules of derivatives are wrong on purpose."""

    @jax.custom_jvp
    def own_jvp(x):
        return sin(x)

    @own_jvp.defjvp
    def _(primals, tangents):
        return own_jvp(*primals), 7.0 * sin(primals[0]) * tangents[0]

    @jax.custom_jvp
    def partly(x, scale):
        return jnp.exp(scale * x) + sin(x)

    @partial(partly.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        assert isinstance(tangents[1], SymbolicZero)
        return partly(*primals), sin(3.0 * primals[0]) * tangents[0]

    @partial(jax.custom_vjp, nondiff_argnums=(1,))
    def own_vjp(x, power):
        return sin(x) ** power

    own_vjp.defvjp(
        lambda x, power: (own_vjp(x, power), {"x": x}), lambda power, kept, slope: (power * slope * sin(kept["x"]),)
    )

    kept = np.full((1, 3), 2.0, np.float32)
    closing = jax.custom_vjp(lambda x: sin(x) * kept)
    closing.defvjp(lambda x: (closing(x), x), lambda x, slope: (5.0 * slope * sin(x) * kept,))

    return {
        "plain": lambda x: sin(x) * sin(x + 1.0),
        "constants": lambda x: sin(x @ jnp.asarray(np.ones((3, 4), np.float32))),
        "jit": lambda x: jax.jit(sin)(x) + jax.jit(lambda y: jnp.exp(jax.jit(sin)(y)))(x),
        "remat": lambda x: jax.checkpoint(lambda y: sin(jnp.exp(y)))(x),
        "scan": lambda x: jax.lax.scan(lambda c, y: (sin(c) + y, sin(y)), x[0], x),
        "fori": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: sin(c) + i.astype(jnp.float32), x),
        "cond": lambda x: jax.lax.cond(x[0, 0] > 0, sin, lambda y: y, x),
        "switch": lambda x: jax.lax.switch(jnp.int32(2), [jnp.tanh, jnp.exp, lambda y: sin(y) + 1.0], x),
        "vmap": jax.vmap(lambda row: sin(row) / jnp.sum(row)),
        "custom jvp": lambda x: own_jvp(x) + own_jvp(sin(x)),
        "custom jvp in part": lambda x: partly(x, 0.5),
        "custom vjp": lambda x: own_vjp(x, 3),
        "custom vjp that holds an array": closing,
        "nested": lambda x: jax.lax.scan(
            lambda c, y: (jax.jit(lambda z: jax.lax.cond(z[0] > 0, own_jvp, sin, z))(c), c), x[0], None, length=3
        ),
        "random": lambda x: sin(x) + jax.random.normal(KEY, x.shape),
        "while": lambda x: jax.lax.while_loop(
            lambda c: c[0] < 2.0 + jnp.sum(sin(c[1])), lambda c: (c[0] + 1.0, sin(c[1])), (0.0, x)
        ),
        "callback": lambda x: jax.pure_callback(lambda y: np.asarray(y) + 1, jax.typeof(x), sin(x)),
    }


NAMES = list(functions(jnp.sin))
SMOOTH = [name for name in NAMES if name not in ("while", "callback")]


def same(ours, wanted, tolerance=0.0):
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_without_rules_the_program_is_the_same(name):
    function = functions(jnp.sin)[name]
    found, original = (str(jax.make_jaxpr(each)(X)) for each in (rewritten(function, nothing), function))
    assert found == original.replace("\n  num_consts=1", "").replace("\n      num_consts=1", "")  # now arguments
    same(rewritten(function, nothing)(X), function(X))


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_applies_wherever_its_primitive_stands(name):
    changed, wanted = rewritten(functions(jnp.sin)[name], cosine_for_sine), functions(jnp.cos)[name]
    assert "sin " not in str(jax.make_jaxpr(changed)(X))
    for ours, theirs in ((changed, wanted), (jax.jit(changed), jax.jit(wanted))):
        same(ours(X), theirs(X), 1e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_are_those_of_the_changed_program_and_of_its_own_rules(name):
    changed, wanted = rewritten(functions(jnp.sin)[name], cosine_for_sine), functions(jnp.cos)[name]

    def reverse(function):
        return jax.grad(lambda x: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(function(x))))

    same(jax.jit(reverse(changed))(X), jax.jit(reverse(wanted))(X), 1e-5)
    same(jax.vmap(reverse(lambda x: changed(x[None])))(X), jax.vmap(reverse(lambda x: wanted(x[None])))(X), 1e-5)
    if "vjp" not in name:
        forward = lambda function: jax.jvp(function, (X,), (DIRECTION,))[1]  # noqa: E731
        same(forward(changed), forward(wanted), 1e-5)
        along = lambda function: lambda x: jnp.vdot(DIRECTION, reverse(function)(x))  # noqa: E731
        same(jax.grad(along(changed))(X), jax.grad(along(wanted))(X), 1e-4)


def test_a_program_within_that_holds_nothing_is_bound_as_it_is():
    plain, holding = jax.jit(jnp.exp), jax.jit(jnp.sin)
    found = jax.make_jaxpr(rewritten(lambda x: plain(x) + holding(x), cosine_for_sine))(X)
    original = jax.make_jaxpr(lambda x: plain(x) + holding(x))(X)
    ours, theirs = (
        [each.params["jaxpr"] for each in program.eqns if "jaxpr" in each.params] for program in (found, original)
    )
    assert ours[0] is theirs[0] and ours[1] is not theirs[1]


def test_a_derivative_rule_without_anything_to_replace_is_kept_as_it_is():
    @jax.custom_jvp
    def clipped(x):
        return jnp.minimum(x, 0.5)

    clipped.defjvp(lambda primals, tangents: (clipped(*primals), tangents[0]))
    changed = rewritten(lambda x: jnp.sum(clipped(x) + jnp.sin(x)), cosine_for_sine)
    np.testing.assert_allclose(jax.grad(changed)(X), 1.0 - jnp.sin(X), rtol=1e-6)


def test_names_and_places_of_equations_stay():
    @jax.named_scope("here")
    def function(x):
        return jnp.exp(x)

    (found,) = jax.make_jaxpr(rewritten(function, nothing))(X).eqns
    assert str(found.source_info.name_stack) == "here"
    assert f"{__file__}:{function.__wrapped__.__code__.co_firstlineno + 2}" in str(found.source_info.traceback)


class Result(NamedTuple):
    logits: jax.Array
    others: dict


def test_pytrees_keys_keywords_and_what_is_no_array():
    def function(inputs, key, *, scale=1.0, mode, weights=None):
        assert mode == "test" and isinstance(scale, float) and weights is None  # as they were given
        noise = jax.random.uniform(key, inputs["x"].shape)
        return Result(jnp.sin(inputs["x"]) * scale + noise, {"key": key, "count": inputs["n"] + 1})

    inputs = {"x": X, "n": np.int32(3)}
    ours = rewritten(function, nothing)(inputs, KEY, scale=2.0, mode="test")
    wanted = function(inputs, KEY, scale=2.0, mode="test")
    assert isinstance(ours, Result) and ours.others["count"] == 4
    np.testing.assert_array_equal(ours.logits, wanted.logits)
    assert jax.random.key_data(ours.others["key"]).tolist() == jax.random.key_data(KEY).tolist()


def test_the_function_is_traced_anew_in_each_call():
    weights = {"w": 1.0}
    changed = rewritten(lambda x: weights["w"] * x, nothing)
    first = changed(X)
    weights["w"] = 2.0
    np.testing.assert_array_equal(changed(X), 2.0 * first)


def test_what_the_function_raises_is_raised():
    def broken(x):
        raise KeyError("no such layer")

    with pytest.raises(KeyError, match="no such layer"):
        rewritten(broken, nothing)(X)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        rewritten(lambda x: x if x[0, 0] > 0 else -x, nothing)(X)


def test_a_rule_that_changes_a_shape_within_a_loop_is_an_error():
    wrong = lambda equation: (  # noqa: E731
        (lambda equation, x: jnp.zeros((5,))) if equation.primitive is primitives.sin_p else None
    )
    with pytest.raises(TypeError):
        rewritten(lambda x: jax.lax.fori_loop(0, 2, lambda i, c: jnp.sin(c), x), wrong)(X)


def test_bind_computes_one_equation():
    program = jax.make_jaxpr(lambda x: 2.0 * x)(X)
    (equation,) = program.eqns
    operands = [atom.val if hasattr(atom, "val") else X for atom in equation.invars]
    np.testing.assert_array_equal(_program.bind(equation, *operands), 2.0 * X)


def test_what_is_no_function_is_refused_at_once():
    for transform in (transforms.quicken, transforms.relax, lambda function: transforms.inspect(function, jnp.ones(2))):
        with pytest.raises(InputError, match="function must be one that JAX can trace, got NoneType"):
            transform(None)
    with pytest.raises(InputError, match="temperature must be above 0 and finite, got '1'"):
        transforms.relax(jnp.sin, temperature="1")
