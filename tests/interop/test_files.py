"""Reading checkpoints, whole ones, damaged ones and hostile ones."""

import os
import struct
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import DTYPES, safetensors

from robustjax.interop.files import read_checkpoint
from robustjax.types import InputError


def refusal(path):
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_safetensors_of_every_dtype_are_read(tmp_path):
    values = np.array([[1.5, -2.0, 0.0], [3.0, 4.0, 0.25]])
    arrays = {dtype: (dtype, np.abs(values) > 0 if dtype == "BOOL" else values) for dtype in DTYPES}
    arrays["U8"] = ("U8", np.abs(values))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors(arrays | {"count": ("I64", 7), "empty": ("F32", np.zeros((0, 3)))}))
    read = read_checkpoint(path)
    assert read.keys() == {*DTYPES, "count", "empty"}
    for name, (dtype, array) in arrays.items():
        expected = np.asarray(array, jnp.dtype(DTYPES[dtype]))
        assert read[name].dtype == expected.dtype
        np.testing.assert_array_equal(read[name], expected)
    assert read["count"].shape == () and read["empty"].shape == (0, 3)


ONE = {"a": ("F32", np.ones((2, 2)))}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x00",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 3) + b"[1]",
        struct.pack("<Q", 2) + b"\xff\xff",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        safetensors(ONE)[:-1],
        safetensors(ONE, a={"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}),
        safetensors(ONE, a={"dtype": "F32", "shape": [2, 2], "data_offsets": [-16, 0]}),
        safetensors(ONE, a={"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}),
        safetensors(ONE, a={"dtype": "F32", "shape": [2.0, 2], "data_offsets": [0, 16]}),
        safetensors(ONE, a={"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}),
        safetensors(ONE, a={"dtype": "F32", "shape": [2, 2]}),
        safetensors(ONE, a=3),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    assert "cannot be read as safetensors" in refusal(path)


def test_a_missing_file_is_named(tmp_path):
    assert "is not a file" in refusal(tmp_path / "weights.pt")
    assert "is not a file" in refusal(tmp_path)


def test_without_pytorch_one_line_says_how_to_mend_it(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now raises ImportError
    assert "install torch, or save the weights as .safetensors" in refusal(path)


def test_a_pytorch_that_is_not_safe_is_not_used(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.5.1+cu121"))
    assert "needs PyTorch 2.6 or newer to be read safely, found 2.5.1" in refusal(path)


class Hostile:
    """Unpickled, it runs a command."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.torch
def test_a_pickle_that_runs_code_is_not_loaded(tmp_path):
    torch = pytest.importorskip("torch")
    trace, path = tmp_path / "trace", tmp_path / "weights.pt"
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "extra": Hostile(trace)}, path)
    message = refusal(path)
    assert "holds more than weights" in message and "weights_only" not in message
    assert not trace.exists()
    path.write_bytes(b"not a checkpoint")
    refusal(path)
    path.write_bytes(b"PK\x03\x04 not an archive")
    assert "cannot be read by PyTorch" in refusal(path)


@pytest.mark.torch
def test_pytorch_checkpoints_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth.tar"
    torch.save({"state_dict": {"a": torch.arange(3.0)}, "epoch": 3, "args": {"lr": 0.1}}, path)
    read = read_checkpoint(path)
    assert read["epoch"] == 3
    np.testing.assert_array_equal(read["state_dict"]["a"].numpy(), np.arange(3.0))
