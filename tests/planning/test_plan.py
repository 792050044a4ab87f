"""A plan by what it says where the compiler is there, where it is not, and where the program does not fit."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from robustjax import config, planning
from robustjax.planning import chips, facts, hlo, programs
from robustjax.types import InputError

ROOT = Path(__file__).resolve().parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu (pip install 'jax[tpu]'), and no TPU"
)


def tiny():
    c = config.base()
    c.model.name = "wide_resnet"
    c.model.depth, c.model.width = 10, 1
    c.attack.num_steps = 2
    c.train.batch_size = 64
    return c


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e", r"KIND-CHIPS with a kind of v4, v5e, v5p, v6e, got 'v5e' \(nearest: 'v5e-16'\)"),
        ("a100-8", r"got 'a100-8'; such as v5e-16"),
        ("v5e-12", r"power of two of chips, 1 to 256 of v5e, got 'v5e-12' \(nearest: 'v5e-8'\)"),
        ("v4-2", r"power of two of chips, 4 to 4096 of v4, got 'v4-2' \(nearest: 'v4-4'\)"),
        ("v6e-512", r"\(nearest: 'v6e-256'\)"),
    ],
)
def test_slices_that_there_are_not_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        planning.parse(text)


def test_shapes_of_slices_hold_as_many_chips_as_asked_for():
    for kind, most in chips.MOST.items():
        for exponent in range(2, most.bit_length()):
            assert jax.numpy.prod(jax.numpy.array(planning.Slice(kind, 2**exponent).shape)) == 2**exponent
    assert planning.parse("v4-4").shape == (2, 2, 1) and planning.parse("v5e-256").shape == (16, 16, 1)


def test_without_libtpu_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^--plan must find libtpu, .* pip install 'jax\[tpu\]'$"):
        planning.plan(tiny(), "v5e-4")


@pytest.fixture
def without_compiler(monkeypatch):
    """Plans by our own count alone, on devices of this machine in place of chips."""
    monkeypatch.setattr(chips, "devices", lambda target: jax.devices())
    monkeypatch.setattr(programs, "compiled", lambda lower, minutes: (None, None, f"not within {minutes:g} minutes"))


def test_what_was_not_compiled_is_judged_by_our_own_count(without_compiler, monkeypatch):
    c = tiny()
    found = planning.plan(c, "v5e-4", minutes=0.5)
    assert found.fits and found.needed == found.state_bytes + found.data_bytes + found.counted.held
    text = str(found)
    assert "not compiled: not within 0.5 minutes" in text and "collectives of a step: unknown" in text
    assert f"at least {1e3 * found.counted.flops / 197e12:.3g} ms" in text or "by state" in text
    assert "memory a chip: about" in text and ", which may fit" in text  # a count errs on both sides
    assert "interconnect" not in found.seconds

    c.train.batch_size = 1024
    found = planning.plan(c, "v5e-4")
    small = chips.CHIPS["v5e"]._replace(memory=int(found.needed - 0.3 * found.counted.held))
    monkeypatch.setitem(chips.CHIPS, "v5e", small)
    tight = planning.plan(c, "v5e-4")
    assert not tight.fits and ", which may not fit" in str(tight)
    ways = dict(tight.mends)
    assert ways["train.accumulation=2"] < small.memory and ways["v5e-8"] < small.memory
    assert ways["model.remat=True"] < found.needed
    assert "train.accumulation=2 would fit: about" in str(tight)


def test_only_an_all_reduce_passes_the_links_twice(without_compiler):
    c = tiny()
    found = planning.plan(c, "v5e-4")
    for kind, passes in {"all-reduce": 2, "collective-permute": 1, "all-gather": 1}.items():
        made = found._replace(collectives={kind: hlo.Collective(3, 200e9)})
        assert made.seconds["interconnect"] == pytest.approx(passes * 3 / 4)


@pytest.mark.parametrize(("factor", "scale"), [(0.5, 1.0), (3.0, 3.0)])
def test_a_compiler_that_was_short_of_memory_promises_no_less_than_our_count(
    without_compiler, monkeypatch, factor, scale
):
    c = tiny()
    c.train.batch_size = 1024
    counted = planning.plan(c, "v5e-4")
    fixed = counted.state_bytes + counted.data_bytes
    used = fixed + factor * counted.counted.held
    reason = f"RESOURCE_EXHAUSTED: Used {used / 2**20:.6f}M of 1.00M hbm"
    monkeypatch.setattr(programs, "compiled", lambda lower, minutes: (None, None, reason))
    monkeypatch.setitem(chips.CHIPS, "v5e", chips.CHIPS["v5e"]._replace(memory=int(used) - 4096))
    found = planning.plan(c, "v5e-4")
    assert not found.fits and found.needed == pytest.approx(used, rel=1e-6)
    ((name, needed),) = (way for way in found.mends if way[0].startswith("v5e-"))
    assert needed == pytest.approx(fixed + scale * planning.plan(c, name).counted.held, rel=1e-5)


def test_data_sets_need_not_be_there():
    c = config.cifar10()
    c.data.data_dir = "/nowhere"
    assert facts.facts_of(c) == (49_000, (32, 32, 3), 10, 0)
    c.data.name = "imagenet2012"
    with pytest.raises(InputError, match=r"data\.image_size must be set for imagenet2012"):
        facts.facts_of(c)
    c.data.image_size = 224
    assert facts.facts_of(c) == (1_280_167, (224, 224, 3), 1000, 0)


def test_perturbations_that_are_carried_are_planned_for_without_the_images():
    c = tiny()
    c.data.name, c.data.data_dir, c.attack.name = "cifar10", "/nowhere", "fgsm_pgi"
    c.train.batch_size = 64
    _, state = programs.counted(c, facts.facts_of(c), 4)
    assert state.carried["perturbations"].shape == (49_800, 32, 32, 3)


def test_chips_share_a_batch_or_it_is_refused(without_compiler):
    c = tiny()
    c.train.batch_size = 66
    with pytest.raises(InputError, match=r"train\.batch_size must be divisible by the 4 devices, got 66"):
        planning.plan(c, "v5e-4")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("validation.batch_size", 6, r"validation\.batch_size must be divisible by the 4 devices, got 6"),
        ("objective.natural_share", 0.001, "objective.natural_share must be 0, or"),
        ("data.validation_examples", 60_000, "validation_examples must be less than the 50000 examples"),
        ("data.train_examples", 60_000, "num_examples must be 1 to 49800"),
    ],
)
def test_what_a_run_on_those_chips_would_refuse_is_not_planned(without_compiler, key, value, message):
    c = tiny()
    c.data.name, c.data.data_dir = "cifar10", "/nowhere"
    section, _, name = key.partition(".")
    c[section][name] = value
    with pytest.raises(InputError, match=message):
        planning.plan(c, "v5e-4")


@pytest.mark.parametrize("minutes", [float("nan"), float("inf"), -1.0, "5"])
def test_a_time_that_is_none_is_refused(without_compiler, minutes):
    with pytest.raises(InputError, match=r"minutes \(--plan_minutes\) must be"):
        planning.plan(tiny(), "v5e-4", minutes=minutes)


def test_the_compiler_may_have_any_time():
    def lower():
        raise InputError("lowered")

    assert programs.compiled(lower, 0.0)[0] is None
    with pytest.raises(InputError, match="lowered"):
        programs.compiled(lower, 1e300)


@needs_libtpu
def test_a_tiny_step_is_compiled_and_reduced_at_once():
    c = tiny()
    c.batch_norm.devices = "per_device"
    found = planning.plan(c, "v5e-4")
    assert found.fits and not found.not_compiled and found.memory.temporaries > 0
    # Gradient, statistics and metrics of all layers in one reduction; each parameter in float32.
    assert found.collectives["all-reduce"].count == 1
    parameters = found.collectives["all-reduce"].bytes / 4
    assert 77_000 < parameters < 80_000


def command(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "robustjax.train", "--config=quickstart", *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_refuses_a_slice_in_one_line_and_writes_nothing():
    done = command("--plan=v5e-17")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: --plan must have a power of two of chips, 1 to 256 of v5e, got 'v5e-17' (nearest: 'v5e-16')\n"
    )


@needs_libtpu
def test_the_command_prints_a_plan():
    done = command("--plan=v5e-4", "--config.train.num_epochs=2")
    assert done.returncode == 0, done.stderr
    assert "for 4 chips of v5e, 16 examples on each" in done.stdout and "which fits" in done.stdout
