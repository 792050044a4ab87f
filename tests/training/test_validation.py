"""Validation judges in float32, whatever a run trains in."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import data
from robustjax.runtime import sharding
from robustjax.training.validation import make_validation
from robustjax.types import Outputs


class Narrow(nn.Module):
    """Right about class 1 by 0.001, which bfloat16 rounds away from logits near 0.8."""

    dtype: str

    def __call__(self, images, labels=None, train=False):
        score = images.mean((1, 2, 3)).astype(self.dtype)
        logits = jnp.stack([score, score + jnp.asarray(0.001, self.dtype)], axis=1)
        return Outputs(logits.astype(jnp.float32), {}, {})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_validation_judges_in_float32_what_the_attack_did_in_the_runs_own_dtype(dtype, key):
    dataset = data.Dataset("greys", np.full((4, 2, 2, 1), 200, np.uint8), np.ones(4, np.int32), 2, ("low", "high"))
    gaps, layout = [], sharding.layout(jax.devices()[:1])

    def still(logits_fn, key, images, labels):
        logits = logits_fn(images)
        jax.debug.callback(lambda gap: gaps.append(gap.max()), logits[:, 1] - logits[:, 0])
        return images

    attacks = {"clean": None, "still": still}
    validate = make_validation(Narrow(dtype), attacks, dataset, batch_size=2, layout=layout)
    assert validate({}, key) == {"clean_accuracy": 1.0, "still_accuracy": 1.0}
    jax.effects_barrier()
    assert [gap > 0 for gap in gaps] == [dtype == "float32"] * 2
