"""Every architecture of RobustBench through torchax: logits and input gradients against PyTorch's own.

python benchmarks/zoo_conversion.py [--output=results/conversion.json] [--only=TEXT] [--seconds=900] [--gib=10]
                                    [--table]

Needs the extras `torch` and `zoo`, and no network: weights are random, BatchNorm's statistics and scales among them.
Models of the same class and shape, but for ten or a hundred classes, are one architecture, and one record; a model that
cannot be made without a download is named with the reason, as is one that cannot be converted, or not within --seconds
and --gib. Every model has a process of its own, smaller ones first, and its record is written as soon as it is there:
the same command goes on where it was stopped.
--table prints what the records say and runs nothing.

Errors are the largest difference as a share of the largest value, of logits and of the gradient of a random combination
of them; beside those above 1e-5 stands how far PyTorch's own in float32 are from what it computes in float64.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EXPLAINED = 1e-5  # above it, PyTorch's own rounding is measured as well


def main() -> None:
    """Converts what has no record yet, or what one process is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "conversion.json")
    parser.add_argument("--only", default="", help="Text that names contain.")
    parser.add_argument("--seconds", type=float, default=900, help="For each model at most.")
    parser.add_argument("--gib", type=float, default=10, help="Of memory, for each model at most.")
    parser.add_argument("--table", action="store_true", help="Print what the records say.")
    parser.add_argument("--part", help="The model that this process converts, as the parent asks.")
    options = parser.parse_args()
    if options.part:
        most = int(options.gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        print(json.dumps(converted(options.part)))
        return
    records = json.loads(options.output.read_text()) if options.output.exists() else {}
    if not options.table:
        convert_all(records, options)
    print(table(records))


def convert_all(records: dict, options: argparse.Namespace) -> None:
    """Adds a record for each model that has none."""
    from robustjax.interop import zoo
    from robustjax.runtime import files

    names = ["torchvision/resnet50", "timm/vit_small_patch16_224", *zoo.entries()]
    left = {name: described(name) for name in names if name not in records and options.only in name}
    smaller_first = sorted(left.items(), key=lambda item: item[1].get("num_parameters", 0))
    for i, (name, record) in enumerate(smaller_first):
        known = {record["architecture"]: other for other, record in records.items() if "logits" in record}
        if record.get("architecture") in known:
            record["same_as"] = known[record["architecture"]]
        elif "failure" not in record:
            record |= in_a_process(name, options)
        records[name] = record
        files.write(options.output, json.dumps(records, indent=1) + "\n")
        print(f"{i + 1} of {len(left)}: {name}: {said(record)}", file=sys.stderr, flush=True)


def described(name: str) -> dict:
    """What a model is, or why it cannot be made."""
    import torch

    from robustjax.transforms._torch import reason

    try:
        try:
            with torch.device("meta"):  # without memory for its weights
                module, side = created(name)
        except Exception:  # what reads a value while it is made
            module, side = created(name)
    except Exception as error:  # anyone's code
        return {"failure": f"cannot be made: {reason(error)}"}
    return {
        "class": type(module).__name__,
        "num_parameters": sum(value.numel() for value in module.parameters()),
        "side": side,
        "architecture": fingerprint(module, side, hundred=name.startswith("cifar100/")),
    }


def in_a_process(name: str, options: argparse.Namespace) -> dict:
    """What a process of its own finds of a model."""
    command = [sys.executable, "-W", "ignore", __file__, f"--part={name}", f"--gib={options.gib}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=options.seconds)
    except subprocess.TimeoutExpired:
        return {"failure": f"took longer than {options.seconds:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"failure": f"ended with status {done.returncode}: {last[:200]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def converted(name: str) -> dict:
    """Errors of a model's conversion, or why there are none.

    Args:
        name: "dataset/threat/name", or "torchvision/NAME" or "timm/NAME".
    """
    import torch

    started = time.perf_counter()
    torch.manual_seed(0)
    module, side = created(name)
    randomise(module)
    return compared(module.eval(), side) | {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
    }


def created(name: str):
    """A model with random weights, and the side of its images."""
    source, _, rest = name.partition("/")
    if source == "torchvision":
        import torchvision

        return getattr(torchvision.models, rest)(), 224
    if source == "timm":
        import timm

        return timm.create_model(rest), 224
    from robustjax.interop import zoo

    entry = zoo.entries()[name]
    if not entry.sources:
        raise RuntimeError("it downloads its weights while it is made")
    crop = re.search(r"Crop(\d+)", entry.preprocessing)
    return entry.create(), int(crop[1]) if crop else 224 if entry.dataset == "imagenet" else 32


def fingerprint(module, side: int, *, hundred: bool = False) -> str:
    """Equal for modules of the same class, layers and shapes, be it of ten classes or, as told, of a hundred."""
    shapes = [(name, list(value.shape)) for name, value in module.state_dict().items()]
    text = f"{type(module).__qualname__} {module} {shapes} {side}"
    if hundred:
        text = re.sub(r"\b100\b", "10", text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def randomise(module) -> None:
    """Draws BatchNorm's statistics, scales and shifts, which begin as 0 and 1 and would hide being left out."""
    import torch

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                for value, low, high in (
                    (layer.running_mean, -0.2, 0.2),
                    (layer.running_var, 0.5, 1.5),
                    (layer.weight, 0.5, 1.5),
                    (layer.bias, -0.2, 0.2),
                ):
                    if value is not None:
                        value.uniform_(low, high)


def compared(module, side: int) -> dict:
    """Errors of logits and gradients of one image, or why there are none."""
    from robustjax import transforms
    from robustjax.transforms._torch import reason

    generator = np.random.default_rng(0)
    images = generator.uniform(size=(1, side, side, 3)).astype(np.float32)
    (count,) = theirs(module, images)[0].shape[1:]
    weights = generator.normal(size=(1, count)).astype(np.float32)
    single = theirs(module, images, weights)
    try:
        # Without the check, which would refuse what differs and not say by how much gradients do.
        ours, our_gradient = transforms.from_torch_module(module).func.values(images, weights)
    except Exception as error:  # of torchax, and of anyone's code in it
        return {"failure": reason(error)}
    errors = {"logits": difference(ours, single[0]), "gradients": difference(our_gradient, single[1])}
    # In one layout of the images PyTorch's gradients of strided convolutions may be wrong: see RESULTS.md.
    if errors["gradients"] > 1e-2:
        errors["gradients_contiguous"] = errors["gradients"]
        single = theirs(module, images, weights, channels_last=True)
        errors["gradients"] = difference(our_gradient, single[1])
    if errors["logits"] > EXPLAINED or errors["gradients"] > EXPLAINED:
        double = theirs(module.double(), images.astype(np.float64), weights)
        errors["pytorch_logits"] = difference(single[0], double[0])
        errors["pytorch_gradients"] = difference(single[1], double[1])
    return errors


def theirs(module, images, weights=None, *, channels_last=False):
    """PyTorch's logits of images [B, H, W, C], and the gradient of their sum with weights."""
    import torch

    pictures = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    if channels_last:
        pictures = pictures.to(memory_format=torch.channels_last)
    pictures.requires_grad_(weights is not None)
    with torch.set_grad_enabled(weights is not None):
        logits = module(pictures.clone())
    if weights is None:
        return logits.numpy(), None
    (gradient,) = torch.autograd.grad((logits * torch.tensor(weights)).sum(), pictures)
    return logits.detach().numpy(), gradient.numpy().transpose(0, 2, 3, 1)


def difference(value, expected) -> float:
    """Largest difference as a share of the largest expected value."""
    return float(f"{np.abs(value - expected).max() / np.abs(expected).max():.2e}")


def said(record: dict) -> str:
    """A record in a few words."""
    if "failure" in record:
        return record["failure"]
    if "same_as" in record:
        return f"as {record['same_as']}"
    return f"logits {record['logits']:.1e}, gradients {record['gradients']:.1e}, {record['seconds']:.0f} s"


def table(records: dict) -> str:
    """The records as a table in Markdown: an architecture a line, with how many models have it; then what failed."""
    lines = [
        "| model | class | parameters | side | logits | gradients | PyTorch's own | models |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, record in records.items():
        if "logits" in record:
            own = ", ".join(f"{record[key]:.1e}" for key in ("pytorch_logits", "pytorch_gradients") if key in record)
            same = sum(other.get("same_as") == name for other in records.values()) + 1
            lines.append(
                f"| {name} | {record['class']} | {record['num_parameters'] / 1e6:.1f} M | {record['side']} | "
                f"{record['logits']:.1e} | {record['gradients']:.1e} | {own} | {same} |"
            )
    failed = [f"- {name}: {record['failure']}" for name, record in records.items() if "failure" in record]
    return "\n".join([*lines, "", *failed])


if __name__ == "__main__":
    main()
