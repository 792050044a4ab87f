"""Whole runs whose images are read from disk: the figures are those of a run in memory, and stopped, they go on."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from processes import QUICKLY, finish, start

from robustjax import build, config
from robustjax.runs._train import run
from robustjax.runs.checkpoint import Checkpoints
from robustjax.runtime import sharding
from robustjax.training import loop, metrics

pytestmark = pytest.mark.filterwarnings("default")  # tfds warns that OpenCV would decode faster
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """ "photos": 60 JPEGs of all sizes in three classes, each of its own brightness."""
    directory = tmp_path_factory.mktemp("prepared")
    folder = directory / "photos/1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=3)}
    )
    features.save_config(folder)
    writer = ArrayRecordWriter(str(folder / "photos-train.array_record-00000-of-00001"), "group_size:1")
    rng = np.random.default_rng(0)
    for index in range(60):
        size = rng.integers(40, 90, 2)
        pixels = np.clip(rng.normal(60 + 70 * (index % 3), 30, (*size, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        writer.write(features.serialize_example({"image": buffer.getvalue(), "label": index % 3}))
    writer.close()
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {
        "fileFormat": "array_record",
        "name": "photos",
        "splits": [{"filepathTemplate": template, "name": "train", "shardLengths": ["60"]}],
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "version": "1.0.0",
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return directory


def settings(directory, pipeline, **changes):
    made = config.base()
    made.data.name, made.data.data_dir, made.data.pipeline = "photos", str(directory), pipeline
    made.data.image_size, made.data.validation_examples = 8, 8
    made.objective.name = "standard"  # what feeds a step does not know of attacks, and compiles sooner without
    made.validation.num_steps = 1
    made.train.num_epochs, made.train.batch_size, made.train.log_every_steps = 2, 8, 4
    made.validation.batch_size = 8
    made.data.update(changes)
    return made


@contextlib.contextmanager
def stopping_after(dispatches):
    asked = iter(range(1000))
    yield lambda: next(asked) >= dispatches


def judged(workdir, experiment):
    layout = sharding.layout()
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(checkpoints.latest(), jax.eval_shape(experiment.create_state), layout).evaluated


@pytest.fixture(scope="module")
def streamed(directory, tmp_path_factory):
    """A run that reads from disk, and its folder."""
    experiment, workdir = build.experiment(settings(directory, "stream")), tmp_path_factory.mktemp("streamed")
    assert run(experiment, workdir).complete
    return experiment, workdir


def test_a_streamed_run_has_the_figures_of_one_in_memory(directory, streamed, tmp_path):
    assert run(build.experiment(settings(directory, "memory")), tmp_path).complete
    ours, theirs = metrics.read(streamed[1]), metrics.read(tmp_path)
    assert len(ours) == len(theirs) == 6  # epochs of 6 steps: lines at 4 and 6, and a validation
    for line, other in zip(ours, theirs, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert value == (other[name] if isinstance(value, str) else pytest.approx(other[name], rel=1e-3)), name


def test_a_streamed_run_that_was_stopped_ends_as_one_that_was_not(streamed, tmp_path, monkeypatch):
    experiment, whole = streamed
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_signals", lambda: stopping_after(2))
        stopped = run(experiment, tmp_path)
    assert not stopped.complete and stopped.step % 6 != 0
    assert run(experiment, tmp_path).complete
    read = [(workdir / "metrics.jsonl").read_text() for workdir in (whole, tmp_path)]
    assert read[0] == read[1] and read[0].count("\n") == 6
    leaves = [jax.tree.leaves(judged(workdir, experiment)) for workdir in (whole, tmp_path)]
    for ours, theirs in zip(*leaves, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_two_processes_read_their_own_parts_and_compute_what_one_does(directory, streamed, tmp_path):
    (tmp_path / "base.py").write_text("from robustjax.config import base as get_config")
    made, plain = settings(directory, "stream"), config.base()
    changes = {
        f"{section}.{key}": value
        for section in ("data", "objective", "train", "validation")
        for key, value in made[section].items()
        if value != plain[section][key]
    }
    arguments = [f"--config.{name}={value}" for name, value in changes.items()]
    launcher = [ROOT / "launch/local_multiprocess.sh", 2, "--", "robustjax.train"]
    arguments = [f"--config={tmp_path / 'base.py'}", *arguments, f"--workdir={tmp_path / 'run'}"]
    done = finish(start([*launcher, *arguments], **QUICKLY))
    assert done.returncode == 0, done.stderr
    ours, theirs = metrics.read(tmp_path / "run"), metrics.read(streamed[1])
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, other in zip(ours, theirs, strict=True):
        for name in line.keys() - {"split"}:
            assert line[name] == pytest.approx(other[name], rel=1e-3), name


@pytest.mark.slow
def test_the_config_for_imagenet_trains_on_photos(directory, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("imagenet", ROOT / "configs/imagenet_resnet50_fast.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.get_config()
    made.data.name, made.data.data_dir = "photos", str(directory)
    made.data.image_size, made.data.validation_examples = 64, 4
    made.train.batch_size = made.validation.batch_size = 4
    monkeypatch.setattr(loop, "stop_signals", lambda: stopping_after(3))
    stopped = run(build.experiment(made), tmp_path)
    assert stopped.step >= 3 and not stopped.complete
