"""The command lines as a user has them: separate processes, real files, real signals."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from processes import QUICKLY, ROOT, SMALL, command, read_metrics, refused, run


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
    run("evaluate", f"--workdir={trained}", "--attacks=clean,fgsm", "--num_examples=100", **QUICKLY)
    done = run("report", f"--workdirs={trained},{trained}", f"--output={tmp_path / 'report.html'}")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "| small_cnn, adversarial | 0 |" in done.stdout  # one run, named twice
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()
    assert "cannot be written" in refused(run("report", f"--workdirs={trained}", "--output=/nowhere/report.html"))


@pytest.mark.parametrize("module", ["train", "evaluate"])
def test_help_lists_the_flags_that_commands_share(module):
    done = run(module, "--help")
    assert done.returncode == 0 and "--workdir: " in done.stdout and "--coordinator: " in done.stdout


def test_a_verdict_is_written_printed_and_enters_the_worst_case(trained):
    done = run("evaluate", f"--workdir={trained}", "--attacks=clean,adaptive", "--num_examples=40", **QUICKLY)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    folder = trained / "evaluation"
    trust = json.loads((folder / "trust.json").read_text())
    entry, worst = (json.loads((folder / f"{name}.json").read_text()) for name in ("adaptive", "worst_case"))
    assert trust["robust"] == entry["robust"] == worst["robust"] and trust["num_examples"] == 40
    assert trust["verdict"] in done.stdout.replace("\n", "") and trust["config"]["model"]["name"] == "small_cnn"
    assert (folder / "trust.md").read_text().startswith("# Trust report")
    for path in (folder / "trust.json", folder / "trust.md", folder / "adaptive.json"):
        path.unlink()
    refusal = refused(run("evaluate", f"--workdir={trained}", "--attacks=adaptive", "--sweep=steps"))
    assert "leave out --sweep" in refusal


def test_compiled_programs_are_kept_for_the_next_start(trained, tmp_path):
    def evaluate(seed, **environment):  # each with a seed of its own, or nothing would be left to run
        arguments = ("evaluate", f"--workdir={trained}", "--attacks=fgsm", "--num_examples=100", f"--seed={seed}")
        done = run(*arguments, **QUICKLY, **environment)
        assert done.returncode == 0 and "nothing is run again" not in done.stdout, done.stderr
        return sorted((path, path.stat().st_mtime_ns) for path in tmp_path.glob("*/robustjax/*/jit_*-cache"))

    kept = evaluate(1, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert any("verified" in path.name for path, _ in kept) and any("jit_perturb" in path.name for path, _ in kept)
    assert evaluate(2, XDG_CACHE_HOME=str(tmp_path / "cache")) == kept
    assert evaluate(3, XDG_CACHE_HOME=str(tmp_path / "none"), JAX_COMPILATION_CACHE_DIR="") == kept


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
        assert record["weights"] == records["clean"]["weights"] and record["source"]
    flags = [records[name]["robust"] for name in ("clean", "fgsm", "pgd20", "cw")]
    assert records["worst_case"]["robust"] == [all(row) for row in zip(*flags, strict=True)]
    assert records["pgd20"]["num_steps"] == 20 and records["pgd20"]["accuracy"] <= records["clean"]["accuracy"]
    assert (folder / "examples.png").read_bytes().startswith(b"\x89PNG")
    assert records["cw"]["settings"]["loss"] == {"function": "margin", "confidence": 50.0}
    assert "worst case" in done.stdout and "examples.png" in done.stdout
    assert done.stdout.startswith("estimated time for what is left: ")


def evaluation(workdir):
    """The records of a run without what may differ from one time to the next."""
    found = {path.stem: json.loads(path.read_text()) for path in (workdir / "evaluation").glob("*.json")}
    return {name: {k: v for k, v in record.items() if k != "seconds"} for name, record in found.items()}


def test_an_evaluation_that_is_killed_goes_on_with_the_next_batch_and_ends_the_same(trained, tmp_path):
    workdirs = [tmp_path / "killed", tmp_path / "whole"]
    for workdir in workdirs:
        shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("evaluation"))
    flags = ["--attacks=clean,fgsm,pgd100", "--batch_size=6"]
    stored = lambda: {path: path.stat().st_mtime_ns for path in workdirs[0].rglob("*.batch")}  # noqa: E731
    process = subprocess.Popen(
        command("evaluate", *flags, f"--workdir={workdirs[0]}"),
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and len(stored()) < 70 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    before = stored()
    assert 70 <= len(before) < 180
    done = [run("evaluate", *flags, f"--workdir={workdir}") for workdir in workdirs]
    assert all(one.returncode == 0 and one.stderr == "" for one in done), done[0].stderr + done[1].stderr
    assert " of 180 batches are stored" in done[0].stdout and "are stored" not in done[1].stdout
    assert before.items() <= stored().items() and len(stored()) == 180  # nothing was run again
    assert evaluation(workdirs[0]) == evaluation(workdirs[1])


def test_a_sweep_writes_its_points_and_a_picture(trained):
    flags = ["--sweep=epsilon", "--attacks=pgd20,fgsm", "--num_examples=60"]
    done = run("evaluate", f"--workdir={trained}", *flags, **QUICKLY)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    sweep = json.loads((trained / "evaluation" / "sweep_epsilon.json").read_text())
    assert {point["attack"] for point in sweep["points"]} == {"pgd20", "fgsm"} and len(sweep["points"]) == 18
    assert [point["epsilon"] for point in sweep["points"][:5]] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert all(point["num_examples"] == 60 and len(point["interval_95"]) == 2 for point in sweep["points"])
    assert sweep["points"][0]["accuracy"] >= sweep["points"][8]["accuracy"] and sweep["chance"] == 0.1
    assert (trained / "evaluation" / "sweep_epsilon.png").read_bytes().startswith(b"\x89PNG")


def test_a_defense_is_switched_on_for_a_network_trained_without_it(trained):
    before = evaluation(trained)
    flags = ["--defense=sap:sampler=bernoulli,fraction=0.3", "--attacks=fgsm", "--num_examples=60"]
    done = run("evaluate", f"--workdir={trained}", *flags, "--eot_samples=2", "--draws=4", **QUICKLY)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert evaluation(trained) == before
    record = json.loads((trained / "evaluation" / "sap:fraction=0.3,sampler=bernoulli" / "fgsm.json").read_text())
    assert (record["num_draws"], record["eot_samples"], record["prediction_draws"]) == (4, 2, 1)
    assert record["settings"]["eot_samples"] == 2 and record["defense"] == "sap:fraction=0.3,sampler=bernoulli"
    right = record["right_draws"]
    assert record["accuracy"] == pytest.approx(sum(right) / 240) and 0 < sum(right) < 240
    assert record["robust"] == [count > 2 for count in right] and record["num_examples"] == 60
    assert record["worst_of_draws"] <= record["accuracy"] and "majority" in done.stdout


def test_a_config_with_sap_trains_the_plain_network_and_is_judged_with_it(trained, tmp_path):
    flags = ["--config.defense.name=sap", "--config.defense.sampler=bernoulli"]
    done = run("train", *SMALL, *flags, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path) == read_metrics(trained)
    flags = ["--attacks=clean", "--num_examples=60", "--draws=3", "--prediction_draws=2"]
    assert run("evaluate", *flags, f"--workdir={tmp_path}", **QUICKLY).returncode == 0
    record = json.loads((tmp_path / "evaluation" / "clean.json").read_text())
    assert (record["defense"], record["num_draws"], record["prediction_draws"]) == ("sap", 3, 2)


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
            command("train", *SMALL, "--stopped_status=75", f"--workdir={tmp_path}"),
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
            assert process.returncode in (0, 75), errors
            expected = "trained 24 steps" if process.returncode == 0 else "the same command goes on"
            assert expected in output
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


# Hundreds more, in the process of the tests, are in tests/bad_input.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/quickstart.py", "--config.attack.epsilon=3", "--config.model.name=resnet19"], "2 problems"),
        (["--config=configs/quickstart.py", "--confg.seed=1"], "confg"),
        ([], "config"),
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


def test_bad_input_to_evaluate_is_one_line(trained):
    assert "the network is deterministic" in refused(run("evaluate", f"--workdir={trained}", "--draws=3"))


def test_a_requirement_is_the_exit_status(trained):
    flags = ["--attacks=clean,apgd:loss=dlr,num_steps=3", "--num_examples=40", f"--workdir={trained}"]
    assert run("evaluate", *flags, "--require=clean>=1%", "--require=worst_case<=99%", **QUICKLY).returncode == 0
    done = run("evaluate", *flags, "--require=apgd:loss=dlr,num_steps=3>=99.9%", "--require=clean>0", **QUICKLY)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("error: apgd:loss=dlr,num_steps=3>=99.9% does not hold: accuracy")
    assert "points too low (95 % interval" in line and "worst case" in done.stdout


def test_somebody_elses_network_by_one_command_line(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def network():\n    return lambda images: images.reshape(len(images), -1)[:, 20:30]\n"
    )
    model = [f"--model={tmp_path / 'mine.py'}:network", "--data=digits", "--num_examples=40", "--batch_size=40"]
    attacks = ["--attacks=clean,pgd20", "--threat=linf:2/255,l2:0.1", "--per_class", f"--output={tmp_path / 'out'}"]
    done = run("evaluate", *model, *attacks)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "accuracy by class" in done.stdout and "mine.py:network" in "".join(done.stdout.split())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"clean.json", "pgd20-l2-0.1.json", "worst_case.json", "results.csv", "examples.png"} <= names
    assert "2 problems" in refused(run("evaluate", model[0], "--data=digits", "--seed=-1"))
