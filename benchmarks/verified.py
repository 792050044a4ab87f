"""Attacks against proof: networks and boxes of which complete verifiers know whether any point is misclassified.

python benchmarks/verified.py --data=DIR [--output=results/verified.json] [--only=TEXT] [--attacks=apgd-ce,...]
                              [--table]

DIR holds a folder for each benchmark of VNN-COMP 2021, in it ONNX networks, a VNN-LIB file for each property (a box
around an image, and the class that must win) and truth.csv: "sat", a point of the box is misclassified; "unsat", none
is, by proof; or "open". An attack that succeeds on an unsat property is wrong; one that fails on a sat one has room to
grow. Needs the package onnx.

A box has bounds of its own for each pixel, so attacks move points z of [0, 1] around 0.5, in the linf ball of 0.5,
through the network at low + (high - low) z. What an attack calls misclassified counts only if the point, clipped to the
box as the file has it, is so in onnx's reference evaluator as well, which computes in NumPy.

A record for each network and attack has, for each property, by how much some other class wins (less than 0: none does).
It is written as soon as it is there: the same command goes on where it was stopped. --table only prints.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import attacks, transforms
from robustjax.attacks import losses
from robustjax.interop import onnx
from robustjax.runtime import files, process

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {784: (28, 28, 1), 3072: (32, 32, 3)}  # images by their number of values, which files have channel by channel
WIDENED = partial(  # which begins beyond the box, as far as six times its size
    attacks.pgd, loss=losses.margin, step_size=0.05, num_steps=100, widened=6.0, bounds=(-2.5, 3.5)
)
ATTACKS = {
    "pgd": partial(attacks.pgd, loss=losses.margin, step_size=0.05, num_steps=100, num_restarts=10),
    "apgd-ce": partial(attacks.apgd, num_restarts=5),
    "apgd-dlr": partial(attacks.apgd, loss="dlr", num_restarts=5),
    "apgd-t": partial(attacks.apgd, loss="dlr-targeted"),
    "fab-t": attacks.fab,
    "square": attacks.square,
    "pgd-widened": partial(WIDENED, num_restarts=100),
}


class Property(NamedTuple):
    """A box of inputs, in the network's order, and the class that must win everywhere in it."""

    low: np.ndarray
    high: np.ndarray
    label: int


def main() -> None:
    """Attacks what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Folder of the benchmarks.")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "verified.json")
    parser.add_argument("--only", default="", help="Text that names of networks contain.")
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--table", action="store_true", help="Print what the records say.")
    options = parser.parse_args()
    records = json.loads(options.output.read_text()) if options.output.exists() else {}
    if not options.table:
        process.keep_compiled()
        for folder in sorted(path.parent for path in options.data.glob("*/truth.csv")):
            attack_all(folder, records, options)
    print(table(records))


def attack_all(folder: Path, records: dict, options: argparse.Namespace) -> None:
    """Adds a record for each network of a benchmark and each attack that has none."""
    truths: dict[str, dict[str, str]] = {}
    with open(folder / "truth.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            truths.setdefault(row["network"], {})[row["property"]] = row["verdict"]
    for network, truth in truths.items():
        name = f"{folder.name}/{Path(network).stem}"
        record = records.setdefault(name, {"truth": {Path(path).stem: verdict for path, verdict in truth.items()}})
        missing = [attack for attack in options.attacks.split(",") if attack not in record]
        if options.only not in name or not missing:
            continue
        properties = [read_property(folder / path) for path in truth]
        for attack in missing:
            started = time.perf_counter()
            margins = attacked(folder / network, properties, ATTACKS[attack])
            seconds = round(time.perf_counter() - started, 1)
            record[attack] = {"seconds": seconds, "margins": dict(zip(record["truth"], margins, strict=True))}
            files.write(options.output, json.dumps(records, indent=1) + "\n")
            print(f"{name} {attack}: {sum(margin >= 0 for margin in margins)} found, {seconds} s", file=sys.stderr)


def read_property(path: Path) -> Property:
    """Reads a VNN-LIB file whose assertions bound each input, and of whose outputs any may win over one class."""
    text = re.sub(r";.*", "", path.read_text(encoding="utf-8"))
    bounds = {"<=": {}, ">=": {}}
    for sign, index, value in re.findall(r"\(assert\s*\((<=|>=)\s+X_(\d+)\s+(\S+?)\)\s*\)", text):
        bounds[sign][int(index)] = float(value)
    wins = [(int(other), int(label)) for other, label in re.findall(r"\(and\s*\(>=\s+Y_(\d+)\s+Y_(\d+)\)\s*\)", text)]
    count, labels = len(re.findall(r"declare-const\s+X_", text)), {label for _, label in wins}
    others = {other for other, _ in wins} | labels
    whole = all(sorted(each) == list(range(count)) for each in bounds.values())
    if not whole or len(labels) != 1 or others != set(range(len(re.findall(r"declare-const\s+Y_", text)))):
        raise ValueError(f"{path} must bound each input and let any other class win over one, and hold nothing else")
    low, high = (np.array([bounds[sign][i] for i in range(count)]) for sign in (">=", "<="))
    return Property(low, high, labels.pop())


def attacked(network: Path, properties: list[Property], attack) -> list[float]:
    """By how much another class wins at the attack's point of each property's box; at least 0 where it is confirmed."""
    shape = SHAPES[properties[0].low.size]
    planes = (shape[2], *shape[:2])

    def in_order(values):  # as the network has them -> as images
        return np.moveaxis(np.reshape(values, planes), 0, -1)

    logits_fn = transforms.quicken(onnx.read(network))
    lows, highs = (np.stack([in_order(values) for values in each]) for each in list(zip(*properties, strict=True))[:2])
    inside = [inner(low, high) for low, high in zip(lows, highs, strict=True)]
    low, high = (jnp.asarray(np.stack(each)) for each in zip(*inside, strict=True))
    labels, keys = jnp.array([each.label for each in properties]), jax.random.split(jax.random.key(0), len(properties))

    @jax.jit
    @jax.vmap
    def run(key, low, high, label):
        def at(points):
            return low[None] + (high - low)[None] * points

        def inside(points):  # of rounding as well
            return jnp.clip(at(points), low[None], high[None])

        centre = jnp.full((1, *shape), 0.5)
        points = attack(lambda points: logits_fn(at(points)), key, centre, label[None], epsilon=0.5)
        return inside(points)[0], losses.margin(logits_fn(inside(points)), label[None])[0]

    points, margins = map(np.asarray, run(keys, low, high, labels))
    reference = Reference(network)
    found = []
    for point, margin, each, bottom, top in zip(points, margins, properties, lows, highs, strict=True):
        assert np.all(bottom <= point) and np.all(point <= top), "a point outside its box"
        if margin >= 0:
            logits = reference(np.moveaxis(point, -1, 0))
            margin = min(margin, np.delete(logits, each.label).max() - logits[each.label])
        found.append(float(f"{margin:.4g}"))
    return found


def inner(low, high):
    """The bounds in float32, rounded into the box."""
    small, large = low.astype(np.float32), high.astype(np.float32)
    small = np.where(small < low, np.nextafter(small, np.float32(np.inf)), small)
    return small, np.where(large > high, np.nextafter(large, np.float32(-np.inf)), large)


class Reference:
    """The logits of one point by onnx's own evaluator."""

    def __init__(self, network: Path):
        from onnx import load
        from onnx.reference import ReferenceEvaluator

        model = load(network)
        held = {tensor.name for tensor in model.graph.initializer}
        (self._input,) = (each for each in model.graph.input if each.name not in held)
        self._evaluator = ReferenceEvaluator(model)

    def __call__(self, values):
        shape = [side.dim_value or 1 for side in self._input.type.tensor_type.shape.dim]
        (logits,) = self._evaluator.run(None, {self._input.name: values.astype(np.float32).reshape(shape)})
        return logits.ravel()


def table(records: dict) -> str:
    """A line for each network in Markdown: how many of its unsat, sat and open properties each attack breaks."""
    names = list(dict.fromkeys(name for record in records.values() for name in record if name != "truth"))
    lines = [f"| network | | properties | {' | '.join(names)} | all |", "|---|---|--:|" + "--:|" * (len(names) + 1)]
    missed = []
    for network, record in records.items():
        of_attacks = {
            name: {each for each, margin in record[name]["margins"].items() if margin >= 0}
            for name in names
            if name in record
        }
        together = set().union(*of_attacks.values())
        for verdict in ("unsat", "sat", "open"):
            those = {each for each, truth in record["truth"].items() if truth == verdict}
            counts = [str(len(of_attacks[name] & those)) if name in of_attacks else "-" for name in names]
            if those:
                counts.append(str(len(together & those)))
                lines.append(f"| {network} | {verdict} | {len(those)} | {' | '.join(counts)} |")
            if verdict == "sat":
                missed += [f"- not found: {network} {each}" for each in sorted(those - together)]
            if verdict == "unsat":
                missed += [f"- WRONG: {network} {each} is unsat" for each in sorted(those & together)]
    return "\n".join([*lines, "", *missed])


if __name__ == "__main__":
    main()
