"""Tests run under the strictest settings: what passes here does not depend on silent promotion or on one device."""

import os

# Before jax starts its backend: four devices, so that every sharded path is exercised on any machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

# Compiling is what the tests spend their time on, and with few optimisations it takes half as long. This is one setting
# for the whole process: a test that changed it would slow down all that come after. Commands that tests start as
# processes of their own run as users run them; JAX_DISABLE_MOST_OPTIMIZATIONS=0 runs everything so.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def _programs_of_a_file_are_dropped():
    """Compiled programs hold memory maps, of which Linux gives a process 65,530: without any left, XLA crashes."""
    yield
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
