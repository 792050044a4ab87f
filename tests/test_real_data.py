"""The shipped configs on the real MNIST and CIFAR-10 files, as far as minutes on two cores allow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.real_data


def train(config, workdir, tfds_dir, **settings):
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    done = subprocess.run(
        [sys.executable, "-m", "robustjax.train", f"--config=configs/{config}.py", f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "TFDS_DATA_DIR": tfds_dir},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_mnist_learns_to_withstand_small_perturbations(tfds_dir, tmp_path):
    lines = train(
        "mnist_at",
        tmp_path,
        tfds_dir,
        **{
            "data.train_examples": 12800,
            "data.validation_examples": 1000,
            "attack.epsilon": 0.1,
            "attack.step_size": 0.025,
            "attack.warmup_epochs": 1.0,
            "optimizer.learning_rate": 0.05,
            "train.num_epochs": 2,
        },
    )
    # Ten classes: an untrained network is at 10 %, a standard-trained one at a few under this attack.
    assert lines[-1]["pgd_accuracy"] > 0.6 and lines[-1]["clean_accuracy"] > 0.85


@pytest.mark.slow
def test_a_step_of_resnet18_on_cifar10(tfds_dir, tmp_path):
    lines = train(
        "cifar10_at",
        tmp_path,
        tfds_dir,
        **{
            "data.train_examples": 8,
            "data.validation_examples": 8,
            "validation.batch_size": 8,
            "validation.num_steps": 1,
            "train.batch_size": 8,
            "train.num_epochs": 1,
        },
    )
    assert [(line["split"], line["step"]) for line in lines] == [("train", 1), ("validation", 1)]
    assert 0.5 < lines[0]["loss"] < 10 and lines[0]["learning_rate"] == pytest.approx(0.1)
