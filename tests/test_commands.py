"""The command lines as a user has them: separate processes, real files, real signals."""

import json
import os
import signal
import subprocess
import time

import pytest
from processes import ROOT, SMALL, command, read_metrics, refused, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a whole small run."""
    workdir = tmp_path_factory.mktemp("run") / "deep" / "folder"
    done = run("train", *SMALL, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "trained 24 steps" in done.stdout and done.stderr == ""
    return workdir


def test_a_run_leaves_what_the_contract_names(trained):
    lines = [json.loads(line) for line in read_metrics(trained).splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [3, 6, 8, 11, 14, 16, 19, 22, 24]
    assert [line["epoch"] for line in lines if line["split"] == "validation"] == [1, 2, 3]
    assert {"loss", "adversarial_accuracy", "learning_rate"} <= lines[0].keys()
    assert {"clean_accuracy", "fgsm_accuracy", "pgd_accuracy"} <= lines[-1].keys()
    assert json.loads((trained / "config.json").read_text())["attack"]["num_steps"] == 2
    assert list(trained.glob("events.out.tfevents.*"))
    assert "24" in {path.name for path in (trained / "checkpoints").iterdir()}


def test_a_report_sets_runs_side_by_side(trained, tmp_path):
    assert "holds no evaluation" in refused(run("report", f"--workdirs={tmp_path}"))
    run("evaluate", f"--workdir={trained}", "--attacks=clean,fgsm", "--num_examples=100")
    done = run("report", f"--workdirs={trained},{trained}", f"--output={tmp_path / 'report.html'}")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "| small_cnn, adversarial | 0, 0 |" in done.stdout
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()
    assert "cannot be written" in refused(run("report", f"--workdirs={trained}", "--output=/nowhere/report.html"))


def test_an_evaluation_writes_records_a_table_and_a_picture(trained):
    done = run("evaluate", f"--workdir={trained}", "--attacks=clean,fgsm,pgd20,cw", "--num_examples=130")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    folder = trained / "evaluation"
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert records.keys() == {"clean", "fgsm", "pgd20", "cw", "worst_case"}
    for record in records.values():
        assert record["num_examples"] == len(record["robust"]) == 130
        assert record["accuracy"] == sum(record["robust"]) / 130
        low, high = record["interval_95"]
        assert low < record["accuracy"] < high or record["accuracy"] in (0, 1)
        assert (record["norm"], record["epsilon"]) == ("linf", 0.2)
        assert record["versions"]["jax"] and record["hardware"]["platform"] == "cpu"
        assert record["config"]["attack"]["num_steps"] == 2
    flags = [records[name]["robust"] for name in ("clean", "fgsm", "pgd20", "cw")]
    assert records["worst_case"]["robust"] == [all(row) for row in zip(*flags, strict=True)]
    assert records["pgd20"]["num_steps"] == 20 and records["pgd20"]["accuracy"] <= records["clean"]["accuracy"]
    assert (folder / "examples.png").read_bytes().startswith(b"\x89PNG")
    assert "worst case" in done.stdout and "examples.png" in done.stdout


def test_a_finished_run_is_not_trained_again(trained):
    before = read_metrics(trained)
    done = run("train", *SMALL, f"--workdir={trained}")
    assert done.returncode == 0 and "trained 24 steps" in done.stdout
    assert read_metrics(trained) == before


def test_an_interrupted_run_ends_as_an_uninterrupted_one(trained, tmp_path):
    """SIGTERM twice, in the middle of an epoch, and once kill -9."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        before = read_metrics(tmp_path) if (tmp_path / "metrics.jsonl").exists() else ""
        process = subprocess.Popen(
            command("train", *SMALL, f"--workdir={tmp_path}"),
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (tmp_path / "metrics.jsonl").exists() and len(read_metrics(tmp_path)) > len(before):
                break
            time.sleep(0.01)
        process.send_signal(number)
        output, errors = process.communicate(timeout=120)
        if number == signal.SIGTERM:
            assert process.returncode == 0, errors
            assert "the same command goes on" in output or "trained 24 steps" in output
    done = run("train", *SMALL, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path) == read_metrics(trained)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    done = run("train", *SMALL, "--config.optimizer.learning_rate=1e30", f"--workdir={tmp_path}")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "is nan in the 3 steps up to step 3" in line and "no checkpoint was written yet" in line
    assert read_metrics(tmp_path) == ""


def test_another_config_does_not_touch_a_run(trained):
    before = sorted(path.name for path in trained.rglob("*"))
    line = refused(run("train", *SMALL, "--config.attack.epsilon=0.1", f"--workdir={trained}"))
    assert "differing in attack.epsilon" in line
    assert sorted(path.name for path in trained.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/quickstart.py", "--config.attack.num_step=3"], "num_steps"),
        (["--config=configs/quickstart.py", "--config.train.batch_size=many"], "batch_size"),
        (["--config=configs/quickstart.py", "--config.attack.epsilon=3", "--config.model.name=resnet19"], "2 problems"),
        (["--config=configs/quickstart.py", "--confg.seed=1"], "confg"),
        (["--config=configs/quickstart.py", "quickstart"], "unexpected argument 'quickstart'"),
        (["--config=configs/nowhere.py"], "nowhere.py"),
        (["--config=configs/digits.py:at_caas"], "error: configs/digits.py has standard, at, trades"),
        ([], "config"),
        (["--config=configs/mnist_at.py", "--config.data.data_dir=nowhere"], "nowhere"),
        (["--config=configs/quickstart.py", "--config.data.name=digit"], "digit"),
        (["--config=configs/quickstart.py", "--config.train.batch_size=2000"], "at most the 1237 training examples"),
        (
            ["--config=configs/quickstart.py", "--config.model.mean=(0.1,0.2,0.3)", "--config.model.std=(1.,1.,1.)"],
            "mean",
        ),
    ],
    ids=str,
)
def test_bad_input_to_train_is_one_line_and_leaves_nothing(arguments, message, tmp_path):
    workdir = tmp_path / "run"
    assert message in refused(run("train", *arguments, f"--workdir={workdir}"))
    assert not workdir.exists()


def test_batches_that_the_devices_cannot_share_are_refused(tmp_path):
    # XLA's flag, since a subprocess has no place for jax.config.
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    line = refused(run("train", *SMALL, "--config.train.batch_size=30", f"--workdir={tmp_path / 'run'}", **flags))
    assert "divisible by the 4 devices, got 30" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks=clean,pgd21"], "pgd21"),
        (["--checkpoint=7"], "got '7'"),
        (["--num_examples=361"], "361"),
        (["--num_examples=0"], "num_examples"),
    ],
    ids=str,
)
def test_bad_input_to_evaluate_is_one_line(arguments, message, trained):
    assert message in refused(run("evaluate", f"--workdir={trained}", *arguments))


def test_evaluating_what_is_not_a_run_is_refused(tmp_path):
    assert "has no config.json" in refused(run("evaluate", f"--workdir={tmp_path}"))
    assert not list(tmp_path.iterdir())
