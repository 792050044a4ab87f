"""Tests run under the strictest settings: what passes here does not depend on silent promotion or on one device."""

import gc
import os
import shutil
from pathlib import Path

# Before jax starts its backend: four devices, so that every sharded path is exercised on any machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from processes import QUICKLY

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling is what the tests spend their time on. This is one setting for the whole process: a test that changed it
# would slow down all that come after. JAX_DISABLE_MOST_OPTIMIZATIONS=0 runs everything as users do.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:  # XLA reads its flags once; commands do not inherit them
        patch.setenv("XLA_FLAGS", QUICKLY.get("XLA_FLAGS", ""), prepend=" ")
        jax.devices()

PROGRAMS = Path(__file__).resolve().parents[1] / ".pytest_cache" / "programs"
MOST_BYTES = 2**30
# Linux gives a process 65,530 memory maps; a file of tests takes up to some 15,000, and 10,000 hold about 2 GiB.
MOST_MAPS = 10_000


def pytest_configure(config):
    """Programs are kept for the other worker, for files to come and for the next time.

    They hold machine code, so each kind of processor has a folder of its own; release and flags are in jax's own key.
    JAX_COMPILATION_CACHE_DIR names another folder; empty, nothing is kept. Commands have the cache of their user.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    from robustjax.runtime import process

    first = not hasattr(config, "workerinput")  # and no worker of pytest-xdist
    if first and sum(path.stat().st_size for path in PROGRAMS.glob("*/*-cache")) > MOST_BYTES:
        shutil.rmtree(PROGRAMS)
    jax.config.update("jax_compilation_cache_dir", str(PROGRAMS / process.processor()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_finish():
    """Python looks for garbage less often, and not among what was imported and collected, which stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="module", autouse=True)
def _programs_are_dropped_when_they_are_many():
    """Each holds memory maps: without any left, XLA crashes."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def tfds_dir():
    """A data_dir with prepared MNIST and CIFAR-10; tests that need it are marked `real_data`."""
    directory = os.environ.get("TFDS_DATA_DIR", "")
    missing = [name for name in ("mnist", "cifar10") if not os.path.isdir(os.path.join(directory, name))]
    if not directory or missing:
        pytest.skip(f"TFDS_DATA_DIR={directory!r} holds no prepared {', '.join(missing) or 'data'}")
    return directory


def pytest_terminal_summary(terminalreporter):
    """Counts the sweep of wrong input in the output."""
    passed = terminalreporter.stats.get("passed", [])
    count = sum("bad_input" in report.keywords for report in passed if report.when == "call")
    if count:
        terminalreporter.write_line(f"wrong input: {count} cases, each refused with one line that names the cause")
