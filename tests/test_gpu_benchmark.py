"""benchmarks/gpu.py on a CPU: parts that fit are run and written, the others are named, and nothing is run twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def gpu(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_part_with_some_of_its_seeds_is_not_finished(tmp_path):
    (tmp_path / "speedrun_1min.json").write_text(json.dumps({"finished": False, "seeds": {"0": {}}}))
    (tmp_path / "ceiling.json").write_text(json.dumps({"finished": True}))
    done = gpu("--minutes=0", f"--output={tmp_path}", "--parts=speedrun_1min,ceiling")
    assert done.stdout.splitlines() == [
        "speedrun_1min: skipped: 0.0 minutes were left, it takes 3",
        "ceiling: finished before",
    ]


def test_records_of_earlier_versions_and_of_tiny_runs_are_no_figures(tmp_path):
    (tmp_path / "published.json").write_text("[]")  # which is no record
    record = tmp_path / "ceiling.json"
    record.write_text(json.dumps({"part": "ceiling"}))
    arguments = ("--minutes=0", f"--output={tmp_path}", "--parts=ceiling")
    assert gpu(*arguments).stdout == "ceiling: skipped: 0.0 minutes were left, it takes 0.5\n"
    for tiny, words in ((True, "with it"), (False, "without it")):
        record.write_text(json.dumps({"part": "ceiling", "finished": True, "tiny": tiny}))
        done = gpu(*arguments, *([] if tiny else ["--tiny"]))
        assert done.returncode == 2 and done.stdout == ""
        wanted = "error: --output must be a folder of its own with --tiny"
        assert done.stderr == f"{wanted}, got {record}, written {words}\n"
        assert gpu(*arguments, *(["--tiny"] if tiny else [])).stdout == "ceiling: finished before\n"


def test_parts_that_do_not_fit_are_skipped_and_named(tmp_path):
    done = gpu("--minutes=0", f"--output={tmp_path}", "--parts=train,speedrun_1min")
    assert done.returncode == 0, done.stderr
    states = json.loads((tmp_path / "summary.json").read_text())
    assert states == {
        "train": "skipped: 0.0 minutes were left, it takes 1.5",
        "speedrun_1min": "skipped: 0.0 minutes were left, it takes 3",
    }
    wrong = gpu("--minutes=1", f"--output={tmp_path}", "--parts=trian")
    assert wrong.returncode == 2 and "--parts must be of ceiling, train" in wrong.stderr


@pytest.mark.slow
def test_parts_are_written_once(tmp_path):
    arguments = ("--minutes=9", f"--output={tmp_path}", "--tiny", "--parts=speedrun_1min,precision,pytorch")
    stopped = tmp_path / "runs" / "speedrun_1min_0"
    stopped.mkdir(parents=True)
    (stopped / "left").touch()  # by a run that was stopped: its time would not be that of the training
    done = gpu(*arguments)
    assert not (stopped / "left").exists()
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert done.stdout.count(": finished\n") == 3, done.stdout + done.stderr + logs
    run = json.loads((tmp_path / "speedrun_1min.json").read_text())
    assert run["seeds"]["0"]["complete"] and 0 <= run["seeds"]["0"]["accuracy"]["clean"] <= 1
    precision = json.loads((tmp_path / "precision.json").read_text())
    assert precision["num_examples"] == 64 and 0 <= precision["differing"] < 0.2
    assert "skipped" in json.loads((tmp_path / "pytorch.json").read_text())
    assert "hardware" in run
    assert gpu(*arguments).stdout.count("finished before") == 3


# Calls of the benchmark's own functions: what trains and evaluates is told to take these seconds, and to compile.
STAND_IN = """
import sys, time
from pathlib import Path
from absl import flags
sys.path.insert(0, "benchmarks")
import gpu, jax
from robustjax import evaluation, runs

def train(config, workdir):
    workdir.mkdir(parents=True)
    time.sleep(0.2)
    return type("Stopped", (), {"complete": True})

def evaluate(options):
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 60.0)
    return type("Result", (), {"records": [], "worst_case": {"num_examples": 1}})

runs.train, evaluation.evaluate_run = train, evaluate
output = Path(sys.argv[1])
flags.FLAGS(["gpu", "--tiny", "--minutes=1", f"--output={output}"])
assert gpu._run_part("speedrun_1min", output) == 0
runs.train = None  # a seed that is there is not trained again
assert gpu._run_part("speedrun_1min", output) == 0
(output / "runs" / "speedrun_3min_0").mkdir()
(output / "runs" / "speedrun_3min_0" / "config.json").touch()
print(gpu._newest_run(output).name)
"""


def test_the_time_of_a_training_is_its_own_and_a_run_that_was_stopped_is_not_attacked(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", STAND_IN, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads((tmp_path / "speedrun_1min.json").read_text())["seeds"].values()
    assert 0.2 <= run["training_seconds"] < 30 and run["compilation_seconds"] < 30
    assert done.stdout == "speedrun_1min_0\n"
