"""The command lines as a user has them: separate processes, real files, real signals."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "--config=configs/quickstart.py",
    "--config.train.num_epochs=3",
    "--config.validation.every_epochs=1",
    "--config.data.train_examples=256",
    "--config.train.batch_size=32",
    "--config.train.log_every_steps=3",
    "--config.attack.num_steps=2",
    "--config.validation.batch_size=200",
]
# Settings under which programs compile in a third of the time. The tests' own process has them (conftest), and so have
# commands in tests that are not about what is computed; other commands run as users run them.
QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
if version("jaxlib") < "0.11":  # later releases know this emitter of fused loops alone
    QUICKLY["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"


def command(module, *arguments):
    return [sys.executable, "-m", f"robustjax.{module}", *map(str, arguments)]


def start(arguments, **environment):
    """A command under way, in a process group of its own."""
    return subprocess.Popen(
        [str(argument) for argument in arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(module, *arguments, **environment):
    return finish(start(command(module, *arguments), **environment))


def finish(process, timeout=300):
    output, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def refused(done):
    """The one line that a refusal is."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def read_metrics(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text() if path.exists() else ""


def ending(workdir):
    """metrics.jsonl, and the checksums of every array of the newest checkpoint."""
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return read_metrics(workdir), (newest / "manifest" / "metadata").read_text()
