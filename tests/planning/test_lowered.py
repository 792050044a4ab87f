"""A CPU's code stays out of the programs of other backends: which one it is, is asked where a program is lowered."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from robustjax import build, config, models
from robustjax.models.resnet import PreActResNet
from robustjax.planning.counts import _programs


def convolutions(jaxpr):
    own = sum("conv_general_dilated" in each.primitive.name for each in jaxpr.eqns)
    return own + sum(convolutions(inner.jaxpr) for each in jaxpr.eqns for inner in _programs(each))


@pytest.fixture(scope="module")
def traced():
    """A training step that would take Winograd's form on a CPU, and the multiplied and spread ones."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = partial(PreActResNet, blocks=(1, 1), widths=(64, 64), stem_width=64)
        patch.setitem(models.MODELS, "resnet20", tiny)
        c = config.base()
        c.model.name = "resnet20"
        c.attack.num_steps = 2
        module = build.model(c, 10)
        state = jax.eval_shape(build.initial_state(c, module, (16, 16, 1)))
        batch = jax.ShapeDtypeStruct((16, 16, 16, 1), jnp.float32), jax.ShapeDtypeStruct((16,), jnp.int32)
        return jax.jit(build.training_step(c, module, 10)).trace(state, *batch)


@pytest.mark.parametrize("platforms", [("tpu",), ("cuda",), ("tpu", "cuda")], ids="-".join)
def test_a_program_for_another_backend_has_none_of_the_code_for_cpus(traced, platforms):
    text = traced.lower(lowering_platforms=platforms).as_text()
    assert text.count("stablehlo.convolution(") == len(platforms) * convolutions(traced.jaxpr.jaxpr)
    assert "tensor<36x" not in text


def test_a_program_for_a_cpu_has_it(traced):
    """Or the test above could not fail."""
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert re.search(r"dot_general .*tensor<36x", text)
    assert text.count("stablehlo.convolution(") < convolutions(traced.jaxpr.jaxpr)
