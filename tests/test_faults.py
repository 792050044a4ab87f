"""What befalls a run from outside: signals, another run, a full or read-only disk, sudden death."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from processes import QUICKLY, ROOT, SMALL, command, finish, read_metrics, refused, run, start

from robustjax.runtime.signals import stop_signals

LONG = [*SMALL, "--config.train.num_epochs=100000"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Processes after the first need not compile anew."""
    return QUICKLY | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture
def disk(tmp_path):
    """A folder on a file system of its own, and `mount(option)` to change it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
        )

    if not shutil.which("mount") or mount("size=64m").returncode != 0:
        pytest.skip("mounting a tmpfs needs rights that this user does not have")
    yield folder, mount
    subprocess.run(["umount", "-l", folder], check=True)


def start_and_wait(workdir, cache, *arguments):
    """A run that has written a line."""
    process = start(command("train", *arguments, f"--workdir={workdir}"), **cache)
    deadline = time.monotonic() + 120
    while not read_metrics(workdir):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_has_its_usual_effect(number):
    class UsualEffect(Exception):
        pass

    def usual(number, frame):
        raise UsualEffect

    before = {number: signal.signal(number, usual) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with stop_signals() as stopping:
            assert not stopping()
            os.kill(os.getpid(), number)
            assert stopping()
            with pytest.raises(UsualEffect):
                os.kill(os.getpid(), number)
        with stop_signals():
            pass
        assert signal.getsignal(number) is usual
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_workdir_is_one_live_runs_and_free_after_its_death(tmp_path, cache):
    first = start_and_wait(tmp_path, cache, *LONG)
    line = refused(run("train", *LONG, f"--workdir={tmp_path}", **cache))
    assert f"is in use by a run that is still going on (process {first.pid} on " in line
    first.kill()
    finish(first)

    second = start(command("train", *LONG, f"--workdir={tmp_path}"), **cache)
    second.stdout.readline()  # it has begun
    second.send_signal(signal.SIGINT)
    done = finish(second)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "the same command goes on from there" in done.stdout
    # Stopped during start-up there is nothing to save.
    third = start(command("train", *LONG, f"--workdir={tmp_path}"), **cache)
    time.sleep(0.5)
    third.terminate()
    assert finish(third).returncode == -signal.SIGTERM


def test_full_and_read_only_disks_cost_nothing_that_was_saved(disk, cache):
    folder, mount = disk
    workdir = folder / "run"
    mount("remount,size=440k")
    done = run("train", *SMALL, f"--workdir={workdir}", **cache)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "No space left on device; what was saved before is intact" in line
    saved = sorted(path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
    before = read_metrics(workdir)
    assert saved and before

    mount("remount,size=64m,ro")
    assert "cannot be written: Read-only file system" in refused(run("train", *SMALL, f"--workdir={workdir}", **cache))
    assert "cannot be written: Read-only file system" in refused(run("train", *SMALL, f"--workdir={folder / 'new'}"))
    assert read_metrics(workdir) == before

    mount("remount,size=64m,rw")
    done = run("train", *SMALL, f"--workdir={workdir}", **cache)
    assert done.returncode == 0 and f"going on after step {max(map(int, saved))} of 24" in done.stdout, done.stderr
    lines = [json.loads(line) for line in read_metrics(workdir).splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [3, 6, 8, 11, 14, 16, 19, 22, 24]


@pytest.mark.slow
def test_faults_at_random_moments_leave_no_trace(tmp_path):
    command = [
        sys.executable,
        "benchmarks/faults.py",
        "--scale=0.1",
        "--processes",
        "1",
        f"--output={tmp_path / 'table'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| kill in a save | 1 | 1 | 1 | 0 | 0 |" in (tmp_path / "table").read_text()
