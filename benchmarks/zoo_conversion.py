"""Every architecture of RobustBench through torchax: logits and input gradients against PyTorch's own.

python benchmarks/zoo_conversion.py [--output=results/conversion.json] [--only=TEXT] [--seconds=900] [--gib=10]
                                    [--table]

Needs the extras `torch` and `zoo`, and no network: weights are random, BatchNorm's statistics and scales among them.
Models of the same class and shape are one architecture, and one record; a model that cannot be made without a download
is named with the reason, as is one that cannot be converted, or not within --seconds and --gib. Every model has a
process of its own, and its record is written as soon as it is there: the same command goes on where it was stopped.
--table prints what the records say and runs nothing.

Errors are the largest difference as a share of the largest value, of logits and of the gradient of a random combination
of them; beside them stands how far PyTorch itself is from its own computation in float64.
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
        known = json.loads(sys.stdin.read())
        print(json.dumps(converted(options.part, known)))
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
    for i, name in enumerate(names):
        if name in records or options.only not in name:
            continue
        known = {record["architecture"]: other for other, record in records.items() if "logits" in record}
        records[name] = in_a_process(name, known, options)
        files.write(options.output, json.dumps(records, indent=1) + "\n")
        print(f"{i + 1} of {len(names)}: {name}: {said(records[name])}", file=sys.stderr, flush=True)


def in_a_process(name: str, known: dict[str, str], options: argparse.Namespace) -> dict:
    """The record of a model, made by a process of its own."""
    command = [sys.executable, __file__, f"--part={name}", f"--gib={options.gib}"]
    try:
        done = subprocess.run(
            command, input=json.dumps(known), capture_output=True, text=True, check=False, timeout=options.seconds
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"took longer than {options.seconds:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"failure": f"ended with status {done.returncode}: {last[:200]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def converted(name: str, known: dict[str, str]) -> dict:
    """The record of a model.

    Args:
        name: "dataset/threat/name", or "torchvision/NAME" or "timm/NAME".
        known: architecture -> a model of it that has a record.
    """
    import torch

    from robustjax.transforms._torch import reason

    started = time.perf_counter()
    torch.manual_seed(0)
    try:
        module, side = created(name)
    except Exception as error:  # anyone's code
        return {"failure": f"cannot be made without a download: {reason(error)}"}
    record = {
        "class": type(module).__name__,
        "num_parameters": sum(value.numel() for value in module.parameters()),
        "side": side,
        "architecture": fingerprint(module, side),
    }
    if record["architecture"] in known:
        return record | {"same_as": known[record["architecture"]]}
    randomise(module)
    record |= compared(module.eval(), side)
    return record | {
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
    crop = re.search(r"Crop(\d+)", entry.preprocessing)
    return entry.create(), int(crop[1]) if crop else 224 if entry.dataset == "imagenet" else 32


def fingerprint(module, side: int) -> str:
    """Equal for modules of the same class, layers and shapes."""
    shapes = [(name, list(value.shape)) for name, value in module.state_dict().items()]
    return hashlib.sha256(f"{type(module).__qualname__} {module} {shapes} {side}".encode()).hexdigest()[:16]


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
    import jax
    import jax.numpy as jnp

    from robustjax import transforms
    from robustjax.types import InputError

    generator = np.random.default_rng(0)
    images = generator.uniform(size=(1, side, side, 3)).astype(np.float32)
    try:
        logits_fn = transforms.from_torch_module(module)
        jax.eval_shape(logits_fn, images)  # checks it
    except InputError as error:
        return {"failure": str(error)}
    weights = generator.normal(size=logits_fn(images).shape).astype(np.float32)

    @jax.jit
    def ours(network, images, weights):
        logits, pull = jax.vjp(network, images)
        return logits, pull(weights)[0]

    exact = theirs(module, images, weights, double=True)
    pytorch = theirs(module, images, weights)
    mine = [np.asarray(value) for value in ours(logits_fn, jnp.asarray(images), weights)]
    errors = {}
    for kind, ours_, single, double in zip(("logits", "gradients"), mine, pytorch, exact, strict=True):
        errors[kind] = difference(ours_, single)
        errors[f"{kind}_of_pytorch_in_float32"] = difference(single, double)
    return errors


def theirs(module, images, weights, *, double: bool = False):
    """PyTorch's logits and the gradient of their combination, channels last."""
    import torch

    dtype = torch.float64 if double else torch.float32
    module.to(dtype)
    pictures = torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), dtype=dtype, requires_grad=True)
    logits = module(pictures)
    (gradient,) = torch.autograd.grad((logits * torch.tensor(weights, dtype=dtype)).sum(), pictures)
    module.float()
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
        "| model | class | parameters | side | logits | gradients | PyTorch's own logits, gradients | models |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, record in records.items():
        if "logits" in record:
            same = sum(other.get("same_as") == name for other in records.values()) + 1
            own = (record["logits_of_pytorch_in_float32"], record["gradients_of_pytorch_in_float32"])
            lines.append(
                f"| {name} | {record['class']} | {record['num_parameters'] / 1e6:.1f} M | {record['side']} | "
                f"{record['logits']:.1e} | {record['gradients']:.1e} | {own[0]:.1e}, {own[1]:.1e} | {same} |"
            )
    failed = [f"- {name}: {record['failure']}" for name, record in records.items() if "failure" in record]
    return "\n".join([*lines, "", *failed])


if __name__ == "__main__":
    main()
