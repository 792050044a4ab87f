"""The files of a run that the report page shows beside its records; missing files are left out."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from robustjax.analysis import _forms
from robustjax.types import InputError

# Examples of a gallery, at most.
NUM_EXAMPLES = 6


class Example(NamedTuple):
    """An image, an adversarial image, and the difference magnified around grey, as PNG; names of classes as text."""

    image: bytes
    perturbation: bytes
    adversarial: bytes
    label: str
    predicted: str
    adversarial_predicted: str
    factor: float
    index: int


class Files(NamedTuple):
    """The files of a run beside its records.

    Attributes:
        metrics: lines of metrics.jsonl.
        sweep: of sweep_epsilon.json, or None.
        trust: of trust.json, or None.
        gallery: of the first .npz of images beside the records.
        picture: examples.png, where there is no gallery.
        analysis: of analysis.json, or None.
        figures: name -> (title, alternative text, PNG).
    """

    metrics: list[dict[str, Any]]
    sweep: dict[str, Any] | None
    trust: dict[str, Any] | None
    gallery: list[Example]
    picture: bytes | None
    analysis: dict[str, Any] | None
    figures: dict[str, tuple[str, str, bytes]]


def read(workdir: Path, folder: Path) -> Files:
    """The files of a run.

    Args:
        workdir: of the run.
        folder: of its records.

    Raises:
        InputError: one of them is damaged.
    """
    analysis = read_json(workdir / "analysis" / "analysis.json", _forms.ANALYSIS)
    saved = [path for path in sorted(folder.glob("*.npz")) if path.is_file()]  # a folder may be called data=mine.npz
    gallery = next((found for path in saved if (found := _gallery(path))), [])
    picture = folder / "examples.png"
    return Files(
        _metrics(workdir / "metrics.jsonl"),
        read_json(folder / "sweep_epsilon.json", _forms.SWEEP),
        read_json(folder / "trust.json", _forms.TRUST, findings=[dict], acceptance=dict),
        gallery,
        picture.read_bytes() if not gallery and picture.exists() else None,
        analysis,
        _figures(workdir / "analysis", analysis) if analysis else {},
    )


def data_url(png: bytes) -> str:
    """A PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def read_json(path: Path, form: Mapping[str, Any], **optional: Any) -> dict[str, Any] | None:
    """Reads a JSON object and checks its required form and, where present, its optional parts."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}; make it again") from error
    wrong = [key for key, part in form.items() if not _forms.fits(content, {key: part})]
    if isinstance(content, dict):
        wrong += [key for key, part in optional.items() if content.get(key) and not _forms.fits(content[key], part)]
    if wrong:
        raise InputError(f"{path} is damaged, in {', '.join(wrong)}; make it again")
    return content


def _metrics(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        whole = path.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in whole[: whole.rfind("\n") + 1].splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}; restore it") from error
    return [line for line in lines if isinstance(line, dict) and "epoch" in line and "split" in line]


def _gallery(path: Path) -> list[Example]:
    """Examples of a file of ``save_images`` on which an attack succeeded, first of all one of each class."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            if not {"images", "clean_images", "labels", "predictions", "clean_predictions", "robust"} <= {*saved.files}:
                return []
            given = {name: saved[name] for name in saved.files}
    except Exception as error:  # of a damaged file, whatever its bytes lead to
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged: {reason}; evaluate again with --save_images") from error
    clean, count = given["clean_images"], len(given["labels"])
    same = clean.ndim == 4 and given["images"].shape == clean.shape
    whole = same and np.issubdtype(given["labels"].dtype, np.integer) and np.isfinite(given["images"]).all()
    if not (whole and all(len(given[name]) == count for name in ("images", "predictions", "clean_predictions"))):
        raise InputError(f"{path} is damaged: its arrays do not fit each other; evaluate again with --save_images")
    clean = clean.astype(np.float32) / (255 if clean.dtype == np.uint8 else 1)
    won = np.flatnonzero((given["predictions"] != given["labels"]) & (given["clean_predictions"] == given["labels"]))
    firsts = [won[given["labels"][won] == label][:1] for label in np.unique(given["labels"])]
    chosen = np.concatenate([*firsts, won, np.zeros(0, int)]).astype(int)
    found = []
    for i in dict.fromkeys(chosen.tolist()):
        delta = given["images"][i] - clean[i]
        most = float(np.abs(delta).max()) or 1.0
        found.append(
            Example(
                image=_png(clean[i]),
                perturbation=_png(0.5 + delta / (2 * most)),
                adversarial=_png(given["images"][i]),
                label=str(int(given["labels"][i])),
                predicted=str(int(given["clean_predictions"][i])),
                adversarial_predicted=str(int(given["predictions"][i])),
                factor=0.5 / most,
                index=i,
            )
        )
        if len(found) == NUM_EXAMPLES:
            break
    return found


def _png(pixels: np.ndarray) -> bytes:
    """Pixels in [0, 1] of one, three or another number of channels (the first is shown) as a PNG."""
    pixels = pixels if pixels.shape[-1] == 3 else pixels[..., 0]
    return _encoded(Image.fromarray(np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)))


def _figures(folder: Path, analysis: dict[str, Any]) -> dict[str, tuple[str, str, bytes]]:
    found = {}
    for figure in analysis["figures"]:
        path = folder / Path(figure["file"]).name
        if path.exists():
            if not _forms.fits(figure.get("estimates", {}), _forms.ESTIMATES):
                raise InputError(f"{folder / 'analysis.json'} is damaged, in the estimates; make it again")
            try:
                with Image.open(path) as image:
                    # A palette of 128 colours: a third of the size, and lines stay sharp.
                    small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
            except Exception as error:  # of a damaged file, whatever its bytes lead to
                raise InputError(f"{path} is damaged: {' '.join(str(error).split())}; make it again") from error
            found[str(figure["name"])] = (str(figure["title"]), _alternative(figure), _encoded(small))
    return found


def _alternative(figure: dict[str, Any]) -> str:
    """What a figure shows, in words: its scalars."""
    said = []
    for network, scalars in figure.get("estimates", {}).items():
        values = []
        for name, scalar in scalars.items():
            low, high = scalar["interval_95"]
            if None not in (scalar["value"], low, high):
                values.append(f"{name.replace('_', ' ')} {scalar['value']:.3g} ({low:.3g} to {high:.3g})")
        said.append(f"{network}: {', '.join(values[:8])}")
    return "; ".join(said)


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
