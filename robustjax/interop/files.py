"""Reading checkpoints: .safetensors and .npz without PyTorch, everything else through it, and never code."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from robustjax.runtime.files import place
from robustjax.types import InputError

# https://huggingface.co/docs/safetensors: eight bytes with the header's length, the header in JSON, the arrays.
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_checkpoint(path: str | Path) -> Any:
    """The content of a checkpoint: NumPy arrays by name from .safetensors and .npz, else what PyTorch unpickles.

    Raises:
        InputError: the file is not there, damaged, or holds more than weights; or PyTorch is needed and missing.
    """
    path = place(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a checkpoint (.pt, .pth, .safetensors, .npz)")
    return {".safetensors": read_safetensors, ".npz": read_npz}.get(path.suffix, _read_torch)(path)


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file by name."""
    try:
        content = Path(path).read_bytes()
        length = int.from_bytes(content[:8], "little")
        if not 8 + length <= len(content):
            raise ValueError(f"a header of {length} bytes in {len(content)}")
        header = json.loads(content[8 : 8 + length])
        data = memoryview(content)[8 + length :]
        return {name: _array(data, entry) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {type(error).__name__}: {error}") from error


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; objects, which would be unpickled, are refused."""
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"{path} cannot be read as npz: {type(error).__name__}: {error}") from error


def _array(data: memoryview, entry: dict[str, Any]) -> np.ndarray:
    dtype, (start, end) = jnp.dtype(DTYPES[entry["dtype"]]), entry["data_offsets"]
    if not 0 <= start <= end <= len(data) or end - start != math.prod(entry["shape"]) * dtype.itemsize:
        raise ValueError(f"{entry} does not fit {len(data)} bytes")
    return np.frombuffer(data[start:end], dtype).reshape(entry["shape"])


def _read_torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports] - an extra, which need not be installed
    except ImportError as error:
        raise InputError(
            f"{path} is read by PyTorch, which is not installed; install torch, or save the weights as .safetensors"
        ) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        # Before 2.6, a file could run code all the same (CVE-2025-32434).
        raise InputError(
            f"{path} needs PyTorch 2.6 or newer to be read safely, found {torch.__version__}; upgrade torch"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own message advises to load it all the same, which would run whatever code the file holds.
        raise InputError(
            f"{path} is damaged, or holds more than weights and is not loaded, as that could run code; "
            "save the weights alone where it was made: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise InputError(f"{path} cannot be read by PyTorch: {type(error).__name__}: {reason}") from error
