"""What a defense is without options, the values of the papers, by what they do; and how far options go."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import defenses
from robustjax.types import InputError, Outputs

PUBLISHED = {
    "cas": {"beta": 2.0, "attack_beta": None},
    "cifs": {
        "beta": 2.0, "attack_beta": None, "top_k": 2, "importance": "softmax", "scale": 1.0, "temperature": 1.0,
        "class_mix": None, "hidden": 128,
    },
    "dropout": {"rate": 0.1, "in_training": False},  # ours, as of noise
    "fsr": {
        "temperature": 0.1, "gumbel_noise": True, "hard_mask": False, "parts": "both", "separation_weight": 1.0,
        "recalibration_weight": 1.0, "width": 64,
    },
    "noise": {"deviation": 0.1, "relative": False, "in_training": False},
    "sap": {"fraction": 1.0, "sampler": "multinomial"},
    # Ours, but for the norm: the paper's are not public.
    "sns": {"weight": 1.0, "fraction": 0.1, "norm": "l1", "refresh_steps": 100},
    "kwta": {"fraction": 0.2, "by_magnitude": False},
    "meansparse": {"alpha": 0.2},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(defenses.DEFENSES))
def test_options_have_the_published_values(name):
    parameters = inspect.signature(defenses.DEFENSES[name]).parameters
    assert {option: parameter.default for option, parameter in parameters.items()} == PUBLISHED[name]


NAN, INF = float("nan"), float("inf")
# Values at the ends of a range, and those beyond.
WEIGHT = ([0.0, 1e9], [-1e-9, INF, NAN])
POSITIVE = ([1e-9, 1e9], [0.0, INF, NAN])
SHARE = ([1e-9, 1.0], [0.0, 1.0 + 1e-9, NAN])
COUNT = ([1], [0])
RANGES = {
    "cas": {"beta": WEIGHT, "attack_beta": WEIGHT},
    "cifs": {
        "beta": WEIGHT, "attack_beta": WEIGHT, "top_k": COUNT, "hidden": COUNT, "scale": POSITIVE,
        "temperature": POSITIVE, "class_mix": ([0.0, 1.0], [-1e-9, 1.0 + 1e-9, NAN]),
    },
    "dropout": {"rate": ([0.0, 1.0 - 1e-9], [-1e-9, 1.0, NAN])},
    "fsr": {
        "temperature": POSITIVE, "separation_weight": WEIGHT, "recalibration_weight": WEIGHT, "width": COUNT,
    },
    "noise": {"deviation": WEIGHT},
    "sap": {"fraction": POSITIVE},
    "sns": {"weight": WEIGHT, "fraction": SHARE, "refresh_steps": COUNT},
    "kwta": {"fraction": SHARE},
    "meansparse": {"alpha": WEIGHT},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(defenses.DEFENSES))
def test_numbers_are_taken_at_the_ends_of_their_ranges_and_refused_beyond(name):
    for option, (within, beyond) in RANGES[name].items():
        for number in within:
            assert defenses.create(name, **{option: number}).name == name
        for number in beyond:
            with pytest.raises(InputError, match=f"{name}: .*{option}"):
                defenses.create(name, **{option: number})


def value(logits, labels):
    return logits["natural"][:, 0]


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("cas", {}, 1 + 2 * (3 + 8) / 2),
        ("cas", {"beta": 0.5}, 1 + 0.5 * (3 + 8) / 2),
        ("cifs", {}, 1 + 2 * (3 + 8) / 2),
        ("cifs", {"beta": 0.5}, (1 + 0.5 * (3 + 8) / 2) * 3 / 1.5),
        ("cifs", {"beta": 0.0}, 3.0),
    ],
)
def test_heads_weigh_beta_times_their_mean(name, options, wanted):
    outputs = Outputs(jnp.array([[1.0]]), {"probe": jnp.array([[[3.0]], [[8.0]]])}, {})
    found = defenses.create(name, **options).loss({"natural": outputs}, jnp.array([0]), term=value)
    np.testing.assert_allclose(found, [wanted], rtol=1e-6)


@pytest.mark.parametrize("channels", [48, 300])
def test_probes_begin_uniform_within_the_root_of_their_inputs(channels):
    """As PyTorch begins its linear layers: in CAS these are the channels' first factors too."""
    for name in ("cas", "cifs"):
        (guard,) = defenses.create(name).guards({"late": ("site",)}, 10).values()
        variables = guard.init(jax.random.key(0), jnp.ones((2, 3, 3, channels)), jnp.zeros(2, jnp.int32))
        (weights,) = (array for array in jax.tree.leaves(variables["params"]) if array.ndim == 2)
        assert weights.shape == (channels, 10)
        bound = 1 / math.sqrt(channels)
        assert 0.97 * bound < float(jnp.max(weights)) <= bound and -bound <= float(jnp.min(weights)) < -0.97 * bound
        np.testing.assert_allclose(jnp.std(weights), bound / math.sqrt(3), rtol=0.1)
