"""Memory that a program freed comes again without a page fault, and no Ctrl-C is lost."""

import gc
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time

import jax
import pytest

import robustjax
from robustjax.runtime import process, signals

FAULTS_OF_A_LATER_RUN = """
import resource, sys
import jax, jax.numpy as jnp
from robustjax.runtime import process
if sys.argv[1] == "kept":
    process.keep_memory()
@jax.jit
def program(size):  # with a temporary of 64 MiB
    values = jax.lax.fori_loop(0, 2, lambda i, x: x[::-1] + i, jnp.zeros(2**24) + size)
    return values[::2**20].sum()
def faults():
    program(1.0).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = [faults() for _ in range(8)]  # until the heap has its size
print(min(after - before for before, after in zip(counts, counts[1:])))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_program_that_runs_again_touches_no_new_page():
    def faults(how):
        command = [sys.executable, "-c", FAULTS_OF_A_LATER_RUN, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    given_back, kept = faults("given back"), faults("kept")
    assert given_back > 10_000  # a fault for each page of 4 KiB, or the program does not show what it should
    assert kept < given_back / 100


@pytest.mark.filterwarnings("ignore")  # silence_orbax adds a filter, which is undone with this one
def test_an_interrupt_that_the_garbage_collector_would_drop_comes_once_more(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    process.silence_orbax()

    def interrupted(phase, info):
        if phase == "start":
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # the workers of tests ignore it
    gc.callbacks.append(interrupted)
    try:
        gc.collect()
        gc.callbacks.remove(interrupted)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_user_without_a_home_keeps_files_among_temporary_ones(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pathlib.Path, "home", homeless)
    assert process.cache_folder().parent == pathlib.Path(tempfile.gettempdir())


@pytest.mark.filterwarnings("ignore")  # keep_compiled adds a filter, which is undone with this one
def test_programs_are_kept_where_the_folder_can_be_written_and_nowhere_else(monkeypatch, tmp_path):
    kept = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/below")
    process.keep_compiled()
    assert "jax_compilation_cache_dir" not in kept
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process.keep_compiled()
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "robustjax" / process.processor())


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        *((["-m", f"robustjax.{name}"], 130, "interrupted\n") for name in ("train", "evaluate", "report", "analysis")),
        (["-m", "robustjax.data"], 130, "interrupted\n"),
        (["-m", "robustjax.interop"], 130, "interrupted\n"),
        (["-c", "import robustjax"], -signal.SIGINT, "KeyboardInterrupt"),
        (["-m", "mine", "-m", "robustjax.train"], -signal.SIGINT, "KeyboardInterrupt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_interrupt_while_a_command_imports_jax_is_one_line(tmp_path, command, status, said):
    (tmp_path / "mine.py").write_text("import robustjax")
    (tmp_path / "jax.py").write_text("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
    path = os.pathsep.join([str(tmp_path), str(pathlib.Path(robustjax.__file__).parents[1])])
    program = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    done = subprocess.run(  # the workers of tests ignore SIGINT, and so would what they start
        [sys.executable, "-c", program, sys.executable, *command],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert done.stderr == said if status == 130 else done.stderr.strip().endswith(said)


def test_interrupts_that_are_ignored_stay_so_and_a_command_can_catch_the_others(monkeypatch):
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "robustjax.train"])
    try:
        signals.interrupts_end_commands()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signals.interrupts_raise()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signals.interrupts_end_commands()
        assert signal.getsignal(signal.SIGINT) is signals.interrupted
        signals.interrupts_raise()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, previous)
