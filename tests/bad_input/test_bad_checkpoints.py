"""Every file of a checkpoint damaged in every way: what is read back is what was written, or is refused."""

import gc
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from bad_input.refusals import one_line
from robustjax import build, config
from robustjax.runs.checkpoint import Checkpoints
from robustjax.runtime import sharding
from robustjax.types import InputError

pytestmark = pytest.mark.bad_input
DAMAGES = {
    "missing": None,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "all but a byte": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "a bit": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
    ),
    "a byte more": lambda content: content + b"\0",
    "text": lambda content: b"<html>Not found</html>",
    "a pickle": lambda content: pickle.dumps(Canary()),
    "an empty object": lambda content: b"{}",
}


class Canary:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


@pytest.fixture(autouse=True)
def _left_behind():
    """What Orbax leaves behind complains when it is collected: here, and not in another test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder with one checkpoint, its structure, and its arrays."""
    workdir = tmp_path_factory.mktemp("run")
    settings = config.base()
    module = build.model(settings, 10)
    create = build.initial_state(settings, module, (8, 8, 1))
    state = create()
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, state)
    return workdir, jax.eval_shape(create), jax.tree.leaves(state.variables)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_any_file_is_noticed_or_changes_nothing(saved, tmp_path, monkeypatch, name):
    workdir, abstract, arrays = saved
    monkeypatch.chdir(tmp_path)
    layout, damage, accepted = sharding.layout(), DAMAGES[name], []
    files = [path.relative_to(workdir) for path in sorted((workdir / "checkpoints/0").rglob("*")) if path.is_file()]
    for file in files:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(workdir, copy)
        if damage is None:
            (copy / file).unlink()
        else:
            (copy / file).write_bytes(damage((workdir / file).read_bytes()))
        try:
            with Checkpoints(copy, read_only=True) as checkpoints:
                found = checkpoints.restore(checkpoints.find("last"), abstract, layout)
        except InputError as error:
            one_line(str(error), str(copy))
            continue
        accepted.append(file)
        for ours, theirs in zip(jax.tree.leaves(found.variables), arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not (tmp_path / "unpickled").exists()
    largest = max(files, key=lambda file: (workdir / file).stat().st_size)  # the arrays
    must_be_noticed = {Path("checkpoints/0/manifest/metadata"), largest}
    if "a byte" not in name:  # at the file's end, which may hold nothing that is read
        assert not must_be_noticed & set(accepted)
