"""AutoAttack `standard` against the published implementation: same weights and images, flags and seconds by attack.

python benchmarks/autoattack.py --data_dir=DIR [--dataset=mnist] [--norms=linf,l2] [--num_images=256]
                                [--model=small_cnn|resnet18] [--train_steps=1500] [--foreign=nhwc|nchw]
                                [--peer_python=PATH]

Trains a network for each norm, hands its weights to a PyTorch network of the same layers, and lets each side run in a
process of its own, one after the other, on all cores. The published side is `torchattacks` (its APGD, APGDT, FAB and
Square are the reference's code; 100 steps, 9 targets, 5000 queries, fixed schedule of squares, as in the reference's
`standard`), which needs `pip install torch && pip install --no-deps torchattacks`, in an environment without
RobustBench, of which torchattacks overwrites the files by older ones. Each attack sees what survived the ones before.
Ours is timed with compilation, and once more without. The published side runs with two seeds: how many
flags differ between those two is what to hold the flags that differ between ours and its first against. With --foreign
the same network is written in `jax.lax` alone, in that layout, as other people's are; `autoattack` quickens it itself.

A ResNet-18 takes two cores some 5 s for a training step, and 40 s for an image that withstands everything.
"""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial

import numpy as np
from absl import app, flags

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
EPSILON = {
    ("mnist", "linf"): 0.3,
    ("mnist", "l2"): 2.0,
    ("cifar10", "linf"): 8 / 255,
    ("cifar10", "l2"): 0.5,
}

BATCH_SIZES = {"small_cnn": 128, "resnet18": 64}

MODEL = flags.DEFINE_enum("model", "small_cnn", ["small_cnn", "resnet18"], "Network.")
DATASET = flags.DEFINE_enum("dataset", "mnist", ["mnist", "cifar10"], "What to train and attack on.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared tfds data sets.")
NORMS = flags.DEFINE_list("norms", "linf,l2", "Threats.")
NUM_IMAGES = flags.DEFINE_integer("num_images", 256, "Test images to attack.", lower_bound=1)
TRAIN_STEPS = flags.DEFINE_integer(
    "train_steps", 1500, "Of adversarial training, of 128 images each, or 64 for resnet18.", lower_bound=1
)
FOREIGN = flags.DEFINE_enum("foreign", None, ["nhwc", "nchw"], "Attack the network as others write it.")
PEER_PYTHON = flags.DEFINE_string("peer_python", sys.executable, "Interpreter of the published side.")
PART = flags.DEFINE_enum(
    "part", None, ["train", "ours", "published", "published_again"], "Do only this, on --case, as the parent asks."
)
CASE = flags.DEFINE_string("case", None, "The .npz of weights and images.")


def main(_) -> None:
    """Runs everything, or one part of it in this process."""
    if PART.value:
        parts = {"train": train, "ours": ours, "published": published, "published_again": partial(published, seed=1)}
        parts[PART.value](CASE.value, NORMS.value[0])
        return
    for norm in NORMS.value:
        with tempfile.TemporaryDirectory() as folder:
            case = os.path.join(folder, "case.npz")
            for part in ("train", "ours", "published", "published_again"):
                interpreter = PEER_PYTHON.value if part.startswith("published") else sys.executable
                command = [interpreter, __file__, *sys.argv[1:], f"--part={part}", f"--case={case}"]
                subprocess.run([*command, f"--norms={norm}"], check=True)
            report(norm, *(np.load(f"{case}.{part}.npz") for part in ("ours", "published", "published_again")))


def report(norm: str, mine, theirs, again) -> None:
    """One line for each attack and one for all together."""
    epsilon, count = EPSILON[DATASET.value, norm], mine["flags"].shape[1]
    network = f"{MODEL.value} in lax, {FOREIGN.value}" if FOREIGN.value else MODEL.value
    print(f"\n{DATASET.value}, {network}, {count} images, {norm} epsilon {epsilon:.4g}, {os.cpu_count()} cores")
    headings = ("after", "accuracy", "published", "differ", "by seed", "s first", "s again", "s publ.", "ratio")
    print(" ".join(f"{heading:>9}" for heading in headings))
    for i, name in enumerate(ATTACKS):
        outcomes = [side["flags"][i] for side in (mine, theirs, again)]
        line(name, *outcomes, *mine["seconds"][:, i], theirs["seconds"][i])
    outcomes = [side["flags"][-1] for side in (mine, theirs, again)]
    line("together", *outcomes, *mine["seconds"].sum(1), theirs["seconds"].sum())
    print(f"seconds of all cores for one run: {mine['cpu']:.0f}, published {theirs['cpu']:.0f}")


def line(
    name: str, mine: np.ndarray, theirs: np.ndarray, reseeded: np.ndarray, first: float, second: float, published: float
) -> None:
    """The ratio is of the published seconds to ours with compilation."""
    differing = (f"{np.sum(mine != theirs)}", f"{np.sum(reseeded != theirs)}")
    figures = (f"{mine.mean():.2%}", f"{theirs.mean():.2%}", *differing)
    seconds = (f"{first:.1f}", f"{second:.1f}", f"{published:.1f}", f"{published / first:.2f}")
    print(" ".join(f"{figure:>9}" for figure in (name, *figures, *seconds)))


def train(case: str, norm: str) -> None:
    """Adversarial training with a growing epsilon; writes weights, for both sides, and test images to the case."""
    import jax
    import jax.numpy as jnp
    import optax

    from robustjax import data, interop, models
    from robustjax.attacks import losses, pgd

    epsilon = EPSILON[DATASET.value, norm]
    dataset = data.load(DATASET.value, "train", data_dir=DATA_DIR.value)
    module = models.create(MODEL.value)
    variables = {"batch_stats": {}} | module.init(jax.random.key(0), data.to_float(dataset.images[:1]))
    steps = TRAIN_STEPS.value
    num_steps = 2 if MODEL.value == "resnet18" else 10
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @jax.jit
    def step(variables, state, key, images, labels, radius):
        def applied(params, images):
            return module.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])

        network = lambda images: applied(variables["params"], images)[0].logits  # noqa: E731
        adversarial = pgd(
            network,
            key,
            images,
            labels,
            epsilon=radius,
            step_size=2.5 * radius / num_steps,
            num_steps=num_steps,
            norm=norm,
        )

        def loss(params):
            outputs, updated = applied(params, adversarial)
            return jnp.mean(losses.cross_entropy(outputs.logits, labels)), {"batch_stats": {}} | updated

        slope, updated = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(slope, state)
        return {"params": optax.apply_updates(variables["params"], updates)} | updated, state

    state, rng = optimizer.init(variables["params"]), np.random.default_rng(0)
    for i in range(steps):
        rows = rng.integers(len(dataset.labels), size=BATCH_SIZES[MODEL.value])
        radius = np.float32(epsilon * min(1.0, 2 * i / steps))
        images = data.to_float(dataset.images[rows])
        variables, state = step(variables, state, jax.random.key(i), images, dataset.labels[rows], radius)
    test = data.load(DATASET.value, "test", data_dir=DATA_DIR.value)
    flat = {
        "ours/" + "/".join(key.key for key in path): value
        for path, value in jax.tree_util.tree_leaves_with_path(variables)
    }
    if MODEL.value == "small_cnn":
        theirs = {
            f"{layer}.{name}": value for layer, entry in variables["params"].items() for name, value in entry.items()
        }
    else:
        theirs = interop.to_torch(module, variables, "robustbench")
    flat |= {f"theirs/{name}": np.asarray(value) for name, value in theirs.items()}
    images = np.asarray(data.to_float(test.images[: NUM_IMAGES.value]))
    np.savez(case, images=images, labels=test.labels[: NUM_IMAGES.value], **flat)


def ours(case: str, norm: str) -> None:
    """Runs the ensemble twice, the first time with compilation."""
    import foreign  # the file beside this one
    import jax

    from robustjax import models
    from robustjax.attacks import autoattack
    from robustjax.runtime import process

    process.keep_memory()  # as the commands do
    variables, images, labels = read(case)
    module = models.create(MODEL.value)
    network = lambda images: module.apply(variables, images).logits  # noqa: E731
    if FOREIGN.value:
        forward = foreign.network(MODEL.value, FOREIGN.value)
        network = lambda images: forward(variables, images)  # noqa: E731
    epsilon = EPSILON[DATASET.value, norm]
    seconds = []
    for _ in range(2):
        ended = {"start": time.perf_counter()}  # of an attack: when it was heard of for the last time
        result = autoattack(
            network, jax.random.key(0), images, labels, epsilon=epsilon, norm=norm,
            progress=lambda name, *_, ended=ended: ended.update({name: time.perf_counter()}),
        )  # fmt: skip
        ended[ATTACKS[-1]] = time.perf_counter()
        for before, name in zip(("start", *ATTACKS), ATTACKS, strict=False):
            ended.setdefault(name, ended[before])  # where nothing was left to attack
        seconds.append(np.diff([ended[name] for name in ("start", *ATTACKS)]))
    outcomes = [result.by_attack[name] for name in ATTACKS]
    np.savez(f"{case}.ours.npz", flags=outcomes, seconds=seconds, cpu=time.process_time() / 2)


def read(case: str) -> tuple[dict, np.ndarray, np.ndarray]:
    """Variables of our network, images and labels."""
    arrays = np.load(case)
    variables = {"batch_stats": {}}
    for name in arrays.files:
        side, *path = name.split("/")
        if side != "ours":
            continue
        layer = variables
        for part in path[:-1]:
            layer = layer.setdefault(part, {})
        layer[path[-1]] = arrays[name]
    return variables, arrays["images"][: NUM_IMAGES.value], arrays["labels"][: NUM_IMAGES.value]


def published(case: str, norm: str, *, seed: int = 0) -> None:
    """Runs each attack once on what survived."""
    import pytorch_networks  # the file beside this one
    import torch
    import torchattacks

    arrays = np.load(case)
    weights = {name.split("/", 1)[1]: torch.tensor(arrays[name]) for name in arrays.files if name.startswith("theirs/")}
    if MODEL.value == "small_cnn":
        network = pytorch_networks.SmallCNN(weights)
    else:
        network = pytorch_networks.loaded(pytorch_networks.ResNet18(), weights)
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    images = torch.tensor(arrays["images"][: NUM_IMAGES.value]).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(arrays["labels"][: NUM_IMAGES.value]).long()
    common = {"eps": EPSILON[DATASET.value, norm], "norm": {"linf": "Linf", "l2": "L2"}[norm]}
    common["seed"] = seed
    square = torchattacks.Square(network, n_queries=5000, **common)
    square.rescale_schedule = False
    attacks = (
        torchattacks.APGD(network, steps=100, loss="ce", **common),
        torchattacks.APGDT(network, steps=100, n_classes=10, **common),
        torchattacks.FAB(network, steps=100, multi_targeted=True, n_classes=10, **common),
        square,
    )
    robust = (network(images).argmax(1) == labels).numpy()
    outcomes, seconds, used = [], [], time.process_time()
    for attack in attacks:
        alive = np.flatnonzero(robust)
        started = time.perf_counter()
        if len(alive):
            adversarial = attack(images[alive], labels[alive])
            robust[alive] = (network(adversarial).argmax(1) == labels[alive]).numpy()
        seconds.append(time.perf_counter() - started)
        outcomes.append(robust.copy())
    np.savez(f"{case}.{PART.value}.npz", flags=outcomes, seconds=seconds, cpu=time.process_time() - used)


if __name__ == "__main__":
    app.run(main)
