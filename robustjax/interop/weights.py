"""Loads weights into PyTorch modules, from files of which nothing but arrays is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from robustjax.interop.files import read_checkpoint
from robustjax.interop.wrappers import unwrapped
from robustjax.runtime.files import place
from robustjax.types import InputError


def load_weights(module: Any, path: str | Path) -> None:
    """Loads a checkpoint into a PyTorch module and puts it in inference mode.

    Only arrays are read. They may lie under "state_dict", "model_state_dict", "model" or "net", and all names may begin
    with what a wrapper such as DataParallel puts before them.

    Args:
        module: a ``torch.nn.Module``.
        path: .safetensors, .npz, .pt or .pth.

    Raises:
        InputError: the file cannot be read, or is of another network.
    """
    import torch  # pyright: ignore[reportMissingImports]

    entries = unwrapped(read_checkpoint(path))
    expected = {name: tuple(value.shape) for name, value in unwrapped(module.state_dict()).items()}
    prefix = _prefix(entries, expected)
    entries = {name.removeprefix(prefix): value for name, value in entries.items()}
    problems = _problems({name: tuple(np.shape(value)) for name, value in entries.items()}, expected)
    if problems:
        raise InputError(f"weights must be those of this {type(module).__name__}, got {path} with {problems}")
    with torch.no_grad():
        state = module.state_dict()
        for name, value in entries.items():
            state[name].copy_(torch.as_tensor(_known_to_torch(value)))
    module.eval()


def _known_to_torch(value: Any) -> Any:
    """An array that PyTorch takes: a copy, as those read from a file are read-only, and without NumPy's bfloat16."""
    if not isinstance(value, np.ndarray):
        return value
    return np.array(value, np.float32 if value.dtype == jnp.bfloat16 else value.dtype)


def _prefix(entries: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """What the names of a checkpoint begin with beside a module's: of all that may be, what explains most names."""
    first = next(iter(expected), "")
    prefixes = {name.removesuffix(first) for name in entries if name.endswith(first)}
    return max(sorted(prefixes), key=lambda prefix: sum(prefix + name in entries for name in expected), default="")


def _problems(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """In which entries a checkpoint and a module differ, the first few by name; empty if in none."""
    misshapen = [name for name in expected.keys() & found.keys() if expected[name] != found[name]]
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "surplus": sorted(found.keys() - expected.keys()),
        "misshapen": sorted(f"{name} (must be {expected[name]}, got {found[name]})" for name in misshapen),
    }
    return "; ".join(
        f"{kind} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for kind, names in kinds.items()
        if names
    )


def file_sha256(path: str | Path) -> str:
    """Of a file; of a folder, of the names and checksums of its files."""
    path = place(path)
    if path.is_dir():
        lines = [f"{file_sha256(file)}  {file.name}\n" for file in sorted(path.iterdir()) if file.is_file()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
