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

from robustjax import build, config
from robustjax.training import loop, metrics, sharding
from robustjax.training.checkpoint import Checkpoints

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
    made.attack.num_steps = made.validation.num_steps = 1
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
        return checkpoints.restore(checkpoints.latest(), jax.eval_shape(experiment.create_state), layout).judged


def test_a_streamed_run_has_the_figures_of_one_in_memory(directory, tmp_path):
    for pipeline in ("memory", "stream"):
        assert loop.run(build.experiment(settings(directory, pipeline)), tmp_path / pipeline).complete
    ours, theirs = (metrics.read(tmp_path / pipeline) for pipeline in ("stream", "memory"))
    assert len(ours) == len(theirs) == 6  # epochs of 6 steps: lines at 4 and 6, and a validation
    for line, other in zip(ours, theirs, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert value == (other[name] if isinstance(value, str) else pytest.approx(other[name], rel=1e-3)), name


def test_a_streamed_run_that_was_stopped_ends_as_one_that_was_not(directory, tmp_path, monkeypatch):
    made = settings(directory, "stream", random_resized_crop=True, flip=True)
    experiment = build.experiment(made)
    assert loop.run(experiment, tmp_path / "whole").complete
    for dispatches in (2, 2):
        monkeypatch.setattr(loop, "stop_signals", lambda dispatches=dispatches: stopping_after(dispatches))
        stopped = loop.run(build.experiment(made), tmp_path / "stopped")
        assert not stopped.complete and stopped.step % 6 != 0
    monkeypatch.undo()
    assert loop.run(build.experiment(made), tmp_path / "stopped").complete
    read = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "stopped")]
    assert read[0] == read[1] and read[0].count("\n") == 6
    for ours, theirs in zip(
        *(jax.tree.leaves(judged(tmp_path / name, experiment)) for name in ("whole", "stopped")), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


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
    stopped = loop.run(build.experiment(made), tmp_path)
    assert stopped.step >= 3 and not stopped.complete
