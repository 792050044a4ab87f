"""A compiler that computes wrong numbers is refused in one line; that it computes right ones is asked once."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from robustjax import attacks, evaluation
from robustjax.runtime import compiler
from robustjax.types import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A process that has seen no compiler, and a user whose cache folder is empty."""
    monkeypatch.setattr(compiler, "_right", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def runs(monkeypatch):
    """Grows by the name of a program whenever one runs."""
    counted = []

    def counting(name, program):
        return lambda: counted.append(name) or program()

    monkeypatch.setattr(compiler, "PROGRAMS", {name: counting(name, run) for name, run in compiler.PROGRAMS.items()})
    return counted


def another_process():
    compiler._right.clear()


def kept(tmp_path):
    return sorted((tmp_path / "cache").glob("robustjax/compiler-*.json"))


def test_this_compiler_is_right():
    compiler.check()
    assert len(compiler.PROGRAMS) == 3
    _, right = compiler.PROGRAMS["a sum of squares behind a matrix product under vmap"]()
    assert right[-1] == 1073741824


@pytest.mark.parametrize("name", compiler.PROGRAMS)
@pytest.mark.parametrize("change", [lambda x: x + 0.002 * np.abs(x).max(), lambda x: 0 * x, lambda x: x + np.nan])
def test_one_wrong_number_of_any_program_is_refused_in_one_line(name, change, monkeypatch, tmp_path):
    program = compiler.PROGRAMS[name]

    def wrong():
        computed, right = program()
        computed = np.array(computed)
        computed[..., -1] = change(computed)[..., -1]
        return computed, right

    monkeypatch.setitem(compiler.PROGRAMS, name, wrong)
    with pytest.raises(InputError) as caught:
        compiler.check()
    text = str(caught.value)
    assert "\n" not in text and name in text and compiler.MEND in text
    assert f"jaxlib {compiler.jaxlib_version.__version__} (backend cpu, device cpu)" in text
    computed, right = wrong()
    assert f"must be {right.flat[-1]:.10g}, got {computed.flat[-1]:.10g};" in text
    assert kept(tmp_path) == []
    monkeypatch.setitem(compiler.PROGRAMS, name, program)
    compiler.check()  # what was mended is noticed


@pytest.mark.parametrize("version", ["0.10.2", "0.11.0", "0.11.1", "0.10.2+local"])
def test_releases_known_to_be_wrong_are_refused_before_a_program_could_crash(version, monkeypatch, runs):
    monkeypatch.setattr(compiler.jaxlib_version, "__version__", version)
    with pytest.raises(InputError) as caught:
        compiler.check()
    text = str(caught.value)
    assert text.startswith(f"jaxlib {version.partition('+')[0]} (backend cpu) ") and text.endswith(compiler.MEND)
    assert "\n" not in text and "jax issue" in text and runs == []


def test_setup_cfg_leaves_out_the_same_releases():
    from configparser import ConfigParser

    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (jax_requirement,) = (line for line in setup["options"]["install_requires"].split() if line.startswith("jax>"))
    assert f'"{jax_requirement}"' in compiler.MEND
    assert {part[2:] for part in jax_requirement.split(",") if part.startswith("!=")} == set(compiler.KNOWN_WRONG)


def test_the_programs_run_once_for_each_compiler(monkeypatch, tmp_path, runs):
    compiler.check()
    compiler.check()
    assert runs == list(compiler.PROGRAMS) and len(kept(tmp_path)) == 1
    another_process()
    compiler.check()
    assert runs == list(compiler.PROGRAMS)
    for kind in ("jaxlib", "flags"):
        if kind == "jaxlib":
            monkeypatch.setattr(compiler.jaxlib_version, "__version__", "0.12.0")
        else:
            monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_enable_fast_math=false")
        runs.clear()
        compiler.check()
        assert runs == list(compiler.PROGRAMS), kind
    assert len(kept(tmp_path)) == 3


def test_a_kept_verdict_of_other_programs_is_not_trusted(monkeypatch, runs):
    compiler.check()
    another_process()
    monkeypatch.setitem(compiler.PROGRAMS, "another sum", lambda: (np.ones(1), np.zeros(1)))
    with pytest.raises(InputError, match="another sum must be 0, got 1"):
        compiler.check()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"{}\n", b"[" * 100_000], ids=repr)
def test_a_damaged_file_only_means_that_the_programs_run(content, tmp_path, runs):
    compiler.check()
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(content)
    another_process()
    compiler.check()
    assert len(runs) == 2 * len(compiler.PROGRAMS) and file.read_bytes() == whole


def test_without_a_folder_that_can_be_written_the_programs_run(tmp_path, monkeypatch, runs):
    (tmp_path / "cache").write_text("a file where the folder should be")
    compiler.check()
    another_process()
    compiler.check()
    assert len(runs) == 2 * len(compiler.PROGRAMS)
    monkeypatch.setattr(compiler.process, "cache_folder", lambda: Path("~no_such_user").expanduser())  # RuntimeError
    another_process()
    compiler.check()
    assert len(runs) == 3 * len(compiler.PROGRAMS)


def test_the_callers_settings_do_not_reach_the_programs(runs):
    with jax.disable_jit(), jax.transfer_guard("disallow"), jax.enable_x64(True):
        compiler.check()
    assert runs == list(compiler.PROGRAMS)


@pytest.mark.parametrize("of", [attacks.autoattack, evaluation.judge], ids=lambda function: function.__name__)
def test_verdicts_ask_before_anything_is_computed(of, monkeypatch, key):
    def refuse():
        raise InputError("jaxlib computes wrong numbers")

    monkeypatch.setattr(compiler, "check", refuse)
    with pytest.raises(InputError, match="wrong numbers"):
        of(lambda images: pytest.fail("it was called"), key, np.zeros((1, 2, 2, 1)), np.zeros(1, int), epsilon=0.1)


def test_several_processes_at_once_and_a_command(tmp_path):
    program = "from robustjax.runtime import compiler; compiler.check()"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    started = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    assert len(kept(tmp_path)) == 1


def test_a_command_is_refused_in_one_line(tmp_path):
    arguments = ["train", "--config=quickstart", f"--workdir={tmp_path / 'run'}"]
    program = (
        "import runpy, sys, jax; from jaxlib import version; version.__version__ = '0.10.2'; "
        f"sys.argv = {arguments}; runpy.run_module('robustjax.train', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2 and done.stdout == "", done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: jaxlib 0.10.2 (backend cpu) computes wrong sums") and not (tmp_path / "run").exists()
