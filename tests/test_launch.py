"""The launch files, against stand-ins for gcloud and Slurm that note how they are called and answer as told."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")])
TRAINING = ["--config=configs/cifar10_at_pod.py", "--workdir=/mnt/robustjax/runs/at", "--config.data.name=a b"]
SLICE = ["--name=pod", "--zone=us-west4-a", "--accelerator=v5litepod-16", "--nfs=10.0.0.2:/share"]

# Notes its name and arguments; then, as Python, ends a plan with the status in `plan`, or with 0; as gcloud, keeps one
# request for a slice in a file, and ends every training as the first line of `endings` says: a status, and "lost" where
# the slice goes with it.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent.parent
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open(here / "calls", "a") as calls:
    calls.write(json.dumps([name, *arguments]) + "\\n")
request = here / "request"
if name == "python":
    sys.exit(int((here / "plan").read_text()) if (here / "plan").exists() else 0)
if name == "gcloud" and "describe" in arguments:
    if "tpu-vm" in arguments:
        print("READY")
    elif request.exists():
        print(request.read_text())
    else:
        sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such resource")
elif "create" in arguments:
    request.write_text("ACTIVE")
elif "delete" in arguments:
    request.unlink()
elif name == "srun" or "robustjax.train" in arguments[-1]:
    (here / "devices").write_text(os.environ.get("JAX_LOCAL_DEVICE_IDS", "all"))
    ending, *rest = (here / "endings").read_text().splitlines()
    (here / "endings").write_text("\\n".join(rest))
    status, *lost = ending.split()
    if lost:
        request.write_text("SUSPENDED")
    sys.exit(int(status))
"""


@pytest.fixture
def stand_ins(tmp_path):
    """A folder with stand-ins in `bin`; `endings` says how trainings end."""
    (tmp_path / "bin").mkdir()
    for name in ("gcloud", "srun", "scontrol", "python"):
        (tmp_path / "bin" / name).write_text(STAND_IN)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def run(script, *arguments, stand_ins=None, cwd=ROOT, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    path = f"{stand_ins / 'bin'}:{os.environ['PATH']}" if stand_ins else os.environ["PATH"]
    if stand_ins:
        clean["PYTHON"] = str(stand_ins / "bin" / "python")
    return subprocess.run(
        [ROOT / "launch" / script, *arguments],
        cwd=cwd,
        env=clean | {"PATH": path, "POLL_SECONDS": "0", "TMPDIR": str(stand_ins or cwd)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def calls(stand_ins, *, changing=True):
    """What was called, in order; with `changing`, without questions."""
    lines = (stand_ins / "calls").read_text().splitlines() if (stand_ins / "calls").exists() else []
    return [call for call in map(json.loads, lines) if not (changing and "describe" in call)]


def refused(done):
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    # Some versions take what only a trap calls for dead code: SC2317.
    check = ["shellcheck", "--external-sources", "--exclude=SC2317"] if shutil.which("shellcheck") else ["bash", "-n"]
    done = subprocess.run([*check, script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_usage_that_is_named_is_shown_and_no_more(stand_ins):
    lines = (ROOT / "launch" / "tpu_pod.sh").read_text().splitlines()
    shown = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert f"(usage: head -{shown} launch/tpu_pod.sh)" in refused(run("tpu_pod.sh", stand_ins=stand_ins))


def test_a_pod_is_requested_installed_trained_on_and_deleted(stand_ins):
    (stand_ins / "endings").write_text("0")
    done = run("tpu_pod.sh", *SLICE, "--spot", "--delete", "--", *TRAINING, stand_ins=stand_ins)
    assert done.returncode == 0, done.stderr
    plan, request, copy, install, train, delete = calls(stand_ins)
    assert plan == ["python", "-m", "robustjax.train", "--plan=v5litepod-16", *TRAINING]
    tpus, zone = ["gcloud", "compute", "tpus"], "--zone=us-west4-a"
    assert request == [
        *tpus, "queued-resources", "create", "pod", zone, "--node-id=pod", "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
    ]  # fmt: skip
    assert copy[:6] == [*tpus, "tpu-vm", "scp", f"{stand_ins}/robustjax-pod.tgz"] and "--worker=all" in copy
    for call in (install, train):
        assert call[:8] == [*tpus, "tpu-vm", "ssh", "pod", zone, "--worker=all"] and call[8].startswith("--command=")
        script = call[8].removeprefix("--command=")
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "mount -t nfs 10.0.0.2:/share /mnt/robustjax" in install[8] and "robustjax[tpu]" in install[8]
    command = script.splitlines()[-1].partition(" exec ")[2]
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines() == [
        "../robustjax-env/bin/python", "-m", "robustjax.train", "--distributed=auto", "--stopped_status=75", *TRAINING
    ]  # fmt: skip
    assert delete == [*tpus, "queued-resources", "delete", "pod", zone, "--force", "--quiet"]
    listed = subprocess.run(
        ["tar", "-tzf", stand_ins / "robustjax-pod.tgz"], capture_output=True, text=True, check=True
    )
    assert {"setup.cfg", "robustjax/train.py", "configs/cifar10_at_pod.py"} <= set(listed.stdout.splitlines())


def test_the_dry_run_lists_the_commands_of_a_run_and_gives_none(stand_ins):
    arguments = [*SLICE, "--project=mine", "--delete"]
    planned = run("tpu_pod.sh", *arguments, "--dry_run", "--", *TRAINING, stand_ins=stand_ins)
    assert planned.returncode == 0 and not calls(stand_ins) and len(planned.stdout.splitlines()) == 7
    (stand_ins / "endings").write_text("0")
    run("tpu_pod.sh", *arguments, "--", *TRAINING, stand_ins=stand_ins)
    given = calls(stand_ins)
    (stand_ins / "calls").unlink()
    (stand_ins / "endings").write_text("0")
    path = f"{stand_ins / 'bin'}:{os.environ['PATH']}"
    subprocess.run(["bash", "-e"], input=planned.stdout, text=True, cwd=ROOT, env={"PATH": path}, check=True)
    assert calls(stand_ins) == given


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ("1", "the run does not fit v4-64, as said above; --no_plan requests it all the same"),
        ("2", "the run cannot be planned for v4-64, as said above; --no_plan"),
    ],
)
def test_what_does_not_fit_is_not_requested(stand_ins, status, line):
    (stand_ins / "plan").write_text(status)
    (stand_ins / "endings").write_text("0")
    slice_ = [*SLICE, "--accelerator=v4-64"]
    assert line in refused(run("tpu_pod.sh", *slice_, "--", *TRAINING, stand_ins=stand_ins))
    (plan,) = calls(stand_ins)
    assert plan[3] == "--plan=v4-32"  # by chips, of which Google counts two cores each
    assert run("tpu_pod.sh", *slice_, "--no_plan", "--", *TRAINING, stand_ins=stand_ins).returncode == 0
    assert "create" in calls(stand_ins)[1]


def test_a_pod_without_a_python_to_plan_with_is_refused_in_one_line(stand_ins):
    done = run("tpu_pod.sh", *SLICE, "--", *TRAINING, stand_ins=stand_ins, PYTHON="/nowhere/python")
    assert "no /nowhere/python to plan with" in refused(done) and not calls(stand_ins)


def test_a_pod_that_is_there_is_taken_and_kept(stand_ins):
    (stand_ins / "request").write_text("ACTIVE")
    (stand_ins / "endings").write_text("0")
    assert run("tpu_pod.sh", *SLICE, "--", *TRAINING, stand_ins=stand_ins).returncode == 0
    assert not [call for call in calls(stand_ins) if {"create", "delete"} & set(call)]


@pytest.mark.parametrize("ending", ["75 lost", "255 lost", "137", "1"])
def test_a_run_that_was_cut_off_goes_on(stand_ins, ending):
    (stand_ins / "endings").write_text(f"{ending}\n0")
    done = run("tpu_pod.sh", *SLICE, "--", *TRAINING, stand_ins=stand_ins)
    assert done.returncode == 0 and f"ended with status {ending.split()[0]}; beginning again" in done.stderr
    trainings = [call for call in calls(stand_ins) if "robustjax.train " in call[-1]]
    assert len(trainings) == 2 and trainings[0] == trainings[1]
    requests = [call[4] for call in calls(stand_ins) if call[3] == "queued-resources"]
    assert requests == (["create", "delete", "create"] if "lost" in ending else ["create"])


def test_a_pod_run_given_something_wrong_is_not_repeated(stand_ins):
    (stand_ins / "endings").write_text("2\n0")
    assert run("tpu_pod.sh", *SLICE, "--", *TRAINING, stand_ins=stand_ins).returncode == 2
    assert (stand_ins / "endings").read_text() == "0"


def test_restarts_are_counted(stand_ins):
    (stand_ins / "endings").write_text("1\n1\n1\n0")
    done = run("tpu_pod.sh", *SLICE, "--max_restarts=2", "--", *TRAINING, stand_ins=stand_ins)
    assert done.returncode == 1 and "status 1 after 2 restarts" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--name is missing"),
        ([*SLICE[:3], "--", *TRAINING], "--nfs is missing"),
        ([*SLICE, "--spto", "--", *TRAINING], "unexpected argument '--spto'"),
        ([*SLICE, *TRAINING], "unexpected argument '--config=configs/cifar10_at_pod.py'"),
        ([*SLICE, "--nfs=share", "--", *TRAINING], "--nfs must be HOST:/SHARE, got 'share'"),
        ([*SLICE, "--max_restarts=-1", "--", *TRAINING], "--max_restarts must be a number, got '-1'"),
        ([*SLICE, "--", TRAINING[1]], "no --config=FILE"),
        ([*SLICE, "--", TRAINING[0], "--workdir=/tmp/run"], "no --workdir=/mnt/robustjax/"),
    ],
)
def test_wrong_arguments_for_a_pod_are_one_line(stand_ins, arguments, message):
    for dry in ([], ["--dry_run"]):
        assert message in refused(run("tpu_pod.sh", *dry, *arguments, stand_ins=stand_ins))
    assert not calls(stand_ins)


def submitted(stand_ins, *arguments, **environment):
    return run("slurm.sbatch", *arguments, stand_ins=stand_ins, PYTHON=sys.executable, SLURM_JOB_ID="7", **environment)


@pytest.mark.parametrize(("ending", "requeued"), [("0", False), ("75", True), ("2", False), ("137", False)])
def test_a_slurm_job_that_was_stopped_goes_back_into_the_queue(stand_ins, ending, requeued):
    (stand_ins / "endings").write_text(ending)
    done = submitted(stand_ins, *TRAINING, SLURM_GPUS_ON_NODE="4")
    assert done.returncode == (0 if requeued else int(ending)) and done.stderr == ""
    step, *after = calls(stand_ins)
    command = [sys.executable, "-m", "robustjax.train", "--distributed=auto", "--stopped_status=75", *TRAINING]
    assert step == ["srun", "--kill-on-bad-exit=1", *command]
    assert after == ([["scontrol", "requeue", "7"]] if requeued else [])
    assert (stand_ins / "devices").read_text() == "0,1,2,3"


def test_a_slurm_job_asks_for_a_task_a_node_and_a_signal_before_its_end():
    lines = (ROOT / "launch" / "slurm.sbatch").read_text().splitlines()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert options["ntasks-per-node"] == "1" and options["signal"] == "TERM@300" and "requeue" in options
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])  # Slurm reads no further


def test_the_dry_run_of_a_slurm_job_prints_its_command(stand_ins):
    done = run("slurm.sbatch", "--dry_run", *TRAINING, stand_ins=stand_ins, PYTHON="")
    assert done.returncode == 0 and not calls(stand_ins)
    (stand_ins / "endings").write_text("0")
    path = f"{stand_ins / 'bin'}:{os.environ['PATH']}"
    subprocess.run(["bash", "-e"], input=done.stdout, text=True, env={"PATH": path}, check=True)
    ((name, _, python, *arguments),) = calls(stand_ins)
    assert (name, python) == ("srun", ".venv/bin/python") and arguments[-3:] == TRAINING


def test_wrong_slurm_jobs_are_one_line(stand_ins, tmp_path):
    assert "no --config=FILE" in refused(submitted(stand_ins, TRAINING[1]))
    assert "no --workdir=DIR" in refused(submitted(stand_ins, TRAINING[0]))
    assert "sbatch launch/slurm.sbatch" in refused(run("slurm.sbatch", *TRAINING, stand_ins=stand_ins))
    assert "in robustjax's checkout" in refused(
        run("slurm.sbatch", *TRAINING, stand_ins=stand_ins, cwd=tmp_path, SLURM_JOB_ID="7")
    )
    line = refused(run("slurm.sbatch", *TRAINING, stand_ins=stand_ins, SLURM_JOB_ID="7", PYTHON="/nowhere/python"))
    assert "no /nowhere/python" in line
    assert not calls(stand_ins)


def test_the_jobset_has_what_it_needs():
    documents = {
        document["kind"]: document for document in yaml.safe_load_all((ROOT / "launch/gke_jobset.yaml").read_text())
    }
    jobset = documents["JobSet"]
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])

    (slice_,) = jobset["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    hosts = chips // container["resources"]["limits"]["google.com/tpu"]
    assert slice_["replicas"] == 1 and job["parallelism"] == job["completions"] == hosts
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy demands
    assert pod["terminationGracePeriodSeconds"] >= 60

    claim, account = documents["PersistentVolumeClaim"], documents["ServiceAccount"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (volume,) = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (mounted,) = container["volumeMounts"]
    assert mounted["name"] == volume["name"]
    arguments = dict(argument.removeprefix("--").split("=") for argument in container["args"])
    assert (ROOT / arguments["config"]).exists() and arguments["workdir"].startswith(mounted["mountPath"] + "/")
    assert (arguments["distributed"], arguments["stopped_status"]) == ("auto", "75")
    assert pod["serviceAccountName"] == account["metadata"]["name"] == documents["Role"]["metadata"]["name"]
    assert documents["RoleBinding"]["roleRef"]["name"] == documents["Role"]["metadata"]["name"]


def test_the_image_is_made_of_files_that_are_there():
    lines = (ROOT / "launch/Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    extras = next(line for line in lines if line.startswith("ARG EXTRAS=")).partition("=")[2].split(",")
    assert all(f"\n{extra} = jax[{extra}]\n" in (ROOT / "setup.cfg").read_text() for extra in extras)
