"""Several real processes as one run, over gloo on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import QUICKLY, ROOT, SMALL, command, finish, read_metrics, refused, run, start

LAUNCHER = str(ROOT / "launch" / "local_multiprocess.sh")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Processes after the first need not compile anew."""
    return QUICKLY | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def train(processes, workdir, environment, *arguments):
    """A whole run over so many processes with two devices each, through the launcher."""
    arguments = ["robustjax.train", *SMALL, f"--workdir={workdir}", *arguments]
    return finish(start([LAUNCHER, processes, "--", *arguments], **environment))


def start_each(processes, workdir, environment):
    """The processes of a run one by one, to be treated one by one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
    environment = {"JAX_NUM_CPU_DEVICES": "2", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"} | environment
    return [
        start(command("train", *SMALL, f"--workdir={workdir}", *together, f"--process_id={i}"), **environment)
        for i in range(processes)
    ]


def wait_for_a_line(workdir, processes, seconds=120):
    before = read_metrics(workdir)
    deadline = time.monotonic() + seconds
    while read_metrics(workdir) == before:
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.01)


@pytest.fixture(scope="module")
def two(tmp_path_factory, cache):
    """The folder of a run by two processes."""
    workdir = tmp_path_factory.mktemp("two")
    done = train(2, workdir, cache)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 24 steps") == 1, done.stdout  # the first process alone speaks
    assert "4 cpu, from the start" in done.stdout
    return workdir


def test_two_processes_compute_what_one_does(two, tmp_path, cache):
    done = run("train", *SMALL, f"--workdir={tmp_path}", JAX_NUM_CPU_DEVICES="4", **cache)
    assert done.returncode == 0, done.stderr
    ours, theirs = ([json.loads(line) for line in read_metrics(workdir).splitlines()] for workdir in (two, tmp_path))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in a.keys() - {"split"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4)
    assert len(list(two.glob("events.*"))) == 1


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, cache):
    """A run by two processes of which one was killed; begun anew, one was asked to stop."""
    workdir = tmp_path_factory.mktemp("stopped")
    processes = start_each(2, workdir, cache)
    wait_for_a_line(workdir, processes)
    processes[1].kill()
    survivor, _ = finish(processes[0]), finish(processes[1])
    assert survivor.returncode == 1
    assert (
        "error: process 0 stops, another one is gone" in survivor.stderr
        and "the same command goes on" in survivor.stderr
    )

    # One of two is asked to stop: both save and stop.
    processes = start_each(2, workdir, cache)
    wait_for_a_line(workdir, processes)
    processes[1].send_signal(signal.SIGTERM)
    first, second = (finish(process) for process in processes)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "the same command goes on from there" in first.stdout or "trained 24" in first.stdout
    return workdir


@pytest.mark.parametrize("processes", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_one_killed_stops_all_and_other_numbers_of_processes_go_on(processes, stopped, two, tmp_path, cache):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    if processes == 1:
        done = run("train", *SMALL, f"--workdir={workdir}", JAX_NUM_CPU_DEVICES="4", **cache)
    else:
        done = train(processes, workdir, cache)
    assert done.returncode == 0, done.stderr
    ours, theirs = ([json.loads(line) for line in read_metrics(workdir).splitlines()] for workdir in (workdir, two))
    assert [(line["step"], line["split"]) for line in ours] == [(line["step"], line["split"]) for line in theirs]
    np.testing.assert_allclose(ours[-2]["loss"], theirs[-2]["loss"], rtol=1e-4)


def test_process_0_killed_ends_the_others_in_a_line():
    program = """
import os, signal, sys, time
from robustjax.runtime import hosts
hosts.join(sys.argv[1], 2, int(sys.argv[2]))
hosts.gather(0)  # both have joined
if sys.argv[2] == "0":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = [start([sys.executable, "-c", program, f"localhost:{port}", i]) for i in (0, 1)]
    killed, survivor = (finish(process) for process in together)
    assert (killed.returncode, survivor.returncode) == (-signal.SIGKILL, 1), survivor.stderr
    *_, last = survivor.stderr.splitlines()
    assert last == "error: process 1 stops, another one is gone, as jax says above; the same command goes on"


def test_two_processes_judge_as_one(two, cache):
    arguments = [f"--workdir={two}", "--attacks=clean,pgd20", "--num_examples=100", "--batch_size=100"]
    records = []
    for words in ([LAUNCHER, 2, "--", "robustjax.evaluate"], command("evaluate")):
        done = finish(start([*words, *arguments], **cache))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("worst case") == 1
        records.append(
            [json.loads((two / "evaluation" / f"{name}.json").read_text())["robust"] for name in ("clean", "pgd20")]
        )
    assert records[0] == records[1]


def test_what_one_process_refuses_all_refuse(two, cache):
    done = train(2, two, cache, "--config.attack.epsilon=0.1")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and all("differing in attack.epsilon" in line for line in lines), done.stderr


def test_processes_that_were_given_different_things_refuse_them():
    program = """
import sys
from robustjax.runtime import hosts
from robustjax.types import InputError
hosts.join(sys.argv[1], 2, int(sys.argv[2]))
mine = int(sys.argv[2])
hosts.agree({"seed": 0, "data": {"name": "digits", "sizes": [1, None]}})
for given in ({"seed": 0, "data": {"name": "digits", "sizes": [1, mine]}, "rate": 0.1 * mine}, {f"seed{mine}": 0}):
    try:
        hosts.agree(given)
    except InputError as error:
        print(error)
"""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = [start([sys.executable, "-c", program, f"localhost:{port}", i], **QUICKLY) for i in (0, 1)]
    for done in [finish(process) for process in together]:
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-2:] == [  # after a line of gloo's
            "data.sizes, rate must be the same in all processes, got several values; start all with the same flags, "
            "config and data",
            "processes must be of one version, got options of several; install the same everywhere",
        ]


def test_where_there_is_no_cluster_one_line_says_so(tmp_path):
    line = refused(run("train", *SMALL, f"--workdir={tmp_path / 'run'}", "--distributed=auto"))
    assert "found no cluster" in line and not (tmp_path / "run").exists()


def test_the_launcher_says_what_it_would_do():
    done = subprocess.run(
        [LAUNCHER, "--dry_run", "2", "--", "robustjax.train", "--workdir=with space"],
        env=os.environ | {"PYTHON": sys.executable, "PORT": "1234"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        f"JAX_NUM_CPU_DEVICES=2 {sys.executable} -m robustjax.train --workdir=with\\ space "
        f"--coordinator=localhost:1234 --num_processes=2 --process_id={i} &"
        for i in range(2)
    ]
    for wrong in ([], ["0", "--", "m"], ["two", "--", "m"], ["2", "m"]):
        assert subprocess.run([LAUNCHER, *wrong], capture_output=True, check=False).returncode == 2
