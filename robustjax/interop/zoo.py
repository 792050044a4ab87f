"""Networks of the RobustBench package by name, with weights from files that its users fetch."""

from __future__ import annotations

import contextlib
import difflib
import io
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from robustjax.interop.weights import load_weights
from robustjax.runtime.files import place
from robustjax.transforms._torch import INSTALL, reason
from robustjax.types import InputError

ROBUSTBENCH = "robustbench==1.1.1"  # as setup.cfg has it
GOOGLE = "https://drive.google.com/uc?export=download&id="


class Entry(NamedTuple):
    """A network of the model zoo.

    Attributes:
        dataset, threat, name: as RobustBench has them.
        create: makes it with random weights; where ``sources`` is empty, it downloads its weights itself.
        sources: where each of its files is to be fetched.
        preprocessing: RobustBench's name of how images are made ready, such as "Res256Crop224"; empty for none.
        by_timm: whether timm makes it, rather than RobustBench's table.
    """

    dataset: str
    threat: str
    name: str
    create: Callable[[], Any]
    sources: tuple[str, ...]
    preprocessing: str
    by_timm: bool

    @property
    def files(self) -> list[str]:
        """What RobustBench calls its files."""
        whole = f"{self.name}.pt"
        return [whole] if len(self.sources) < 2 else [f"{whole}_m{i}.pt" for i in range(len(self.sources))]


def entries() -> dict[str, Entry]:
    """Every network of the installed package, by ``"dataset/threat/name"``.

    Raises:
        InputError: the package, or one that it needs, is missing.
    """
    timm, utils, model_dicts = _packages()
    found = {}
    for dataset, threats in model_dicts.items():
        for threat, models in threats.items():
            for name, model in models.items():
                place = (dataset.value, threat.value, name)
                in_timm = "_".join([name.lower().replace("-", "_"), dataset.value.lower(), threat.value.lower()])
                if timm.is_model(in_timm):
                    create = _by_timm(timm, in_timm, utils.DATASET_CLASSES[dataset])
                    sources = (timm.get_pretrained_cfg(in_timm).url,)
                else:
                    identifier = model["gdrive_id"]
                    each = identifier if isinstance(identifier, list) else [identifier] if identifier else []
                    create, sources = model["model"], tuple(GOOGLE + one for one in each)
                preprocessing = str(model.get("preprocessing") or "")
                found["/".join(place)] = Entry(*place, create, sources, preprocessing, timm.is_model(in_timm))
    return found


def _packages() -> tuple[Any, Any, Any]:
    """timm, RobustBench's ``utils`` and its table of models."""
    try:
        with contextlib.suppress(ImportError):
            # RobustBench 1.1.1 imports autoattack and depends on pyautoattack, which is the same under another name.
            import pyautoattack.state  # pyright: ignore[reportMissingImports]

            sys.modules.setdefault("autoattack", pyautoattack)
            sys.modules.setdefault("autoattack.state", pyautoattack.state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of timm, for how RobustBench imports it
            import timm  # pyright: ignore[reportMissingImports] - all of an extra, which need not be installed
            from robustbench import utils  # pyright: ignore[reportMissingImports]
            from robustbench.model_zoo.models import model_dicts  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"robustbench:NAME must have the package robustbench, got {reason(error)}; {INSTALL} {ROBUSTBENCH}"
        ) from error
    return timm, utils, model_dicts


def _by_timm(timm: Any, name: str, num_classes: int) -> Callable[[], Any]:
    return lambda: timm.create_model(name, num_classes=num_classes, pretrained=False)


def find(name: str) -> Entry:
    """The network of a name, or of "dataset/threat/name".

    Raises:
        InputError: there is none, or there are several.
    """
    table = entries()
    matches = [full for full in table if name in (full, full.rpartition("/")[2])]
    if len(matches) == 1:
        return table[matches[0]]
    if matches:
        which = " or ".join(f"robustbench:{full}" for full in matches)
        raise InputError(f"robustbench:{name} must be one network, got {len(matches)}; give {which}")
    names = sorted({full.rpartition("/")[2] for full in table} | table.keys())
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    which = f"nearest: {', '.join(nearest)}" if nearest else "see https://robustbench.github.io"
    raise InputError(f"robustbench:NAME must be a network of RobustBench, got {name!r}; {which}")


def load(name: str, weights: str | Path | None) -> Any:
    """A network of RobustBench with its weights, in inference mode.

    Args:
        name: or "dataset/threat/name".
        weights: the file; of an ensemble, the folder that holds its files under RobustBench's names.

    Returns:
        A ``torch.nn.Module`` that takes images [B, 3, H, W] in [0, 1] and normalises them itself.

    Raises:
        InputError: there is no such network; its weights are not given, or are another network's.
    """
    entry = find(name)
    spec = f"robustbench:{name}"
    if not entry.sources:
        raise InputError(
            f"{spec} must be a network whose weights are in files, got one that torchvision downloads; give "
            "--model=torchvision.models:FUNCTION with --weights, --mean and --std"
        )
    if weights is None:
        several = f" as {', '.join(entry.files)} of one folder" if len(entry.sources) > 1 else ""
        given = "FOLDER" if several else "FILE"
        raise InputError(
            f"weights must be given for {spec}, got none; fetch {', '.join(entry.sources)}{several} and give "
            f"--weights={given}"
        )
    path = place(weights)
    files = [path / file for file in entry.files] if len(entry.sources) > 1 else [path]
    for file in files:
        if not file.is_file():
            raise InputError(f"weights of {spec} must be in {file}, got no such file; fetch {', '.join(entry.sources)}")
    if entry.by_timm:
        module = entry.create()
        load_weights(module, path)
        return module
    return _by_robustbench(entry, files)


def _by_robustbench(entry: Entry, files: list[Path]) -> Any:
    """Lets RobustBench load the files, as it knows how each of its networks names its weights."""
    from robustbench import utils  # pyright: ignore[reportMissingImports]

    from robustjax.interop.files import read_checkpoint

    for file in files:
        read_checkpoint(file)  # refuses what holds more than weights, whatever RobustBench would do with it
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        there = Path(folder) / entry.dataset / entry.threat
        there.mkdir(parents=True)
        for own, file in zip(entry.files, files, strict=True):
            (there / own).symlink_to(file.resolve())
        try:
            return utils.load_model(entry.name, folder, entry.dataset, entry.threat).eval()
        except Exception as error:
            raise InputError(
                f"robustbench:{entry.name} must be made and take weights from {', '.join(map(str, files))}, got "
                f"{reason(error)}; its own are {', '.join(entry.sources)}"
            ) from error
