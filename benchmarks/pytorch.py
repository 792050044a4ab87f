"""PGD and PGD training against PyTorch on one machine: same weights, images and steps, turn by turn.

python benchmarks/pytorch.py [--model=resnet18] [--batch_size=32] [--what=attack|training|apgd] [--num_steps=10]
                             [--repetitions=7] [--peer=torchattacks|foolbox] [--peer_python=PATH]
                             [--foreign=nhwc|nchw [--noquicken]]

Each side lives in a process of its own and waits for its turn, since idle OpenMP threads spin and would spoil the
other's time; a pause between turns lets them fall asleep. PyTorch runs as its users run it at its best: channels_last,
all cores, inference mode of BatchNorm in the attack. Before anything is timed, both sides' logits and adversarial
images are compared. Prints seconds of both sides, medians and spread, and the median over turns of PyTorch's time over
ours.

--foreign attacks the same network written with `jax.lax` alone, in that layout, through `transforms.quicken`.

--peer lets a library attack in PyTorch's place: by PGD or, torchattacks only, by Auto-PGD on cross-entropy, whose
random starts are each side's own, so that how many images it fools is compared.
"""

import os
import statistics
import sys
import tempfile
import time

import measure
import numpy as np
from absl import app, flags

PEERS = ("pytorch", "torchattacks", "foolbox")

MODEL = flags.DEFINE_enum("model", "resnet18", ["resnet18", "wide_resnet", "small_cnn"], "Network.")
DEPTH = flags.DEFINE_integer("depth", 28, "Of wide_resnet.")
WIDTH = flags.DEFINE_integer("width", 10, "Of wide_resnet.")
SIDE = flags.DEFINE_integer("side", 32, "Of the images.", lower_bound=4)
CHANNELS = flags.DEFINE_integer("channels", 3, "Of the images.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images.", lower_bound=1)
WHAT = flags.DEFINE_enum(
    "what", "attack", ["attack", "training", "apgd"], "PGD, PGD and the update on its images, or Auto-PGD."
)
FOREIGN = flags.DEFINE_enum(
    "foreign", None, ["nhwc", "nchw"], "Attack small_cnn or resnet18 as others write them, in this layout."
)
QUICKEN = flags.DEFINE_bool("quicken", True, "Attack what is foreign through transforms.quicken.")
PEER = flags.DEFINE_enum("peer", "pytorch", list(PEERS), "Whose attack runs in PyTorch.")
PEER_PYTHON = flags.DEFINE_string("peer_python", None, "Interpreter of PyTorch's side, where this one has no PyTorch.")
NUM_STEPS = flags.DEFINE_integer("num_steps", 10, "Of the attack.", lower_bound=1)
REPETITIONS = flags.DEFINE_integer("repetitions", 7, "Turns of each side.", lower_bound=1)
PART = flags.DEFINE_enum("part", None, ["ours", "pytorch"], "The side that this process is, as the parent asks.")
CASE = flags.DEFINE_string("case", None, "Folder that both sides share.")

EPSILON, STEP_SIZE, LEARNING_RATE = 8 / 255, 2 / 255, 0.1


def main(_) -> None:
    """Runs both sides, or one of them in this process."""
    if PEER.value not in {"attack": PEERS, "training": PEERS[:1], "apgd": ("torchattacks",)}[WHAT.value]:
        sys.exit(f"error: --peer={PEER.value} has no --what={WHAT.value}")
    if FOREIGN.value and (WHAT.value == "training" or MODEL.value == "wide_resnet"):
        sys.exit(f"error: --foreign attacks small_cnn or resnet18, not --model={MODEL.value} --what={WHAT.value}")
    if PART.value:
        {"ours": ours, "pytorch": pytorch}[PART.value](CASE.value)
        return
    with tempfile.TemporaryDirectory() as folder:
        case = f"--case={folder}"
        sides = {
            "ours": measure.start("ours", case),
            "pytorch": measure.start("pytorch", case, interpreter=PEER_PYTHON.value),
        }
        compare(folder)
        seconds = {name: [] for name in sides}
        for _ in range(REPETITIONS.value):
            for name, side in sides.items():
                seconds[name].append(measure.ask(side, "turn"))
                time.sleep(measure.PAUSE)
        for side in sides.values():
            measure.stop(side)
    report(seconds)


def compared_steps() -> int:
    """After how many steps of the attack the sides are compared: a gradient near 0 has either sign, and from there on
    the images of the two sides drift apart.
    """
    return NUM_STEPS.value if WHAT.value == "apgd" else 2


def compare(folder: str) -> None:
    """Says how far apart the sides are; refuses to time what does not compute the same."""
    mine, theirs = (np.load(os.path.join(folder, f"{name}.npz")) for name in ("ours", "pytorch"))
    distance = np.abs(mine["logits"] - theirs["logits"]).max() / np.abs(theirs["logits"]).max()
    pixels = np.mean(np.abs(mine["adversarial"] - theirs["adversarial"]) > 1e-4)
    print(f"logits differ by {distance:.1e} of the largest", end=", ")
    if WHAT.value == "apgd":
        print(f"fooled {mine['fooled'].mean():.1%} and {theirs['fooled'].mean():.1%}")
    else:
        print(f"{pixels:.2%} of the pixels after {compared_steps()} steps by more than 1e-4")
    if distance > 1e-4 or (pixels > 0.05 and WHAT.value != "apgd"):
        raise RuntimeError("the two sides do not compute the same")


def report(seconds: dict[str, list[float]]) -> None:
    """Both sides and their ratio."""
    ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds["pytorch"], strict=True)]
    what = {"attack": "PGD", "training": "PGD training", "apgd": "APGD"}[WHAT.value]
    written = f" in {FOREIGN.value}{'' if QUICKEN.value else ', not quickened'}" if FOREIGN.value else ""
    what = f"{what} of {NUM_STEPS.value} steps"
    print(f"{MODEL.value}{written}, batch {BATCH_SIZE.value}, {what}, {os.cpu_count()} cores")
    for name, times in zip(("ours", PEER.value), seconds.values(), strict=True):
        rate = BATCH_SIZE.value / statistics.median(times)
        print(f"  {name:12} {measure.milliseconds(times):32} {rate:8.1f} images/s")
    print(f"  time of {PEER.value} over ours {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def ours(folder: str) -> None:
    """Writes weights, images and what becomes of them; then serves."""
    import foreign
    import jax
    import jax.numpy as jnp

    from robustjax import attacks, interop, models, transforms
    from robustjax.attacks.losses import cross_entropy
    from robustjax.runtime import process

    process.keep_memory()  # as the commands do
    options = {"depth": DEPTH.value, "width": WIDTH.value} if MODEL.value == "wide_resnet" else {}
    module = models.create(MODEL.value, **options)
    key = jax.random.key(0)
    images = jax.random.uniform(key, (BATCH_SIZE.value, SIDE.value, SIDE.value, CHANNELS.value))
    variables = {"batch_stats": {}} | jax.jit(module.init)(key, images)

    def logits(variables, images):
        return module.apply(variables, images).logits

    if FOREIGN.value:
        logits = foreign.network(MODEL.value, FOREIGN.value)
        if QUICKEN.value:
            logits = transforms.quicken(logits)
    labels = jnp.argmax(jax.jit(logits)(variables, images), -1)  # torchattacks' APGD leaves the wrong ones alone

    def attack(variables, images, num_steps=NUM_STEPS.value):
        network = lambda points: logits(variables, points)  # noqa: E731
        if WHAT.value == "apgd":
            return attacks.apgd(network, key, images, labels, epsilon=EPSILON, num_steps=num_steps)
        return attacks.pgd(
            network,
            key,
            images,
            labels,
            epsilon=EPSILON,
            step_size=STEP_SIZE,
            num_steps=num_steps,
            random_start=False,
        )

    def update(variables, images):
        adversarial = jax.lax.stop_gradient(attack(variables, images))

        def loss(params):
            outputs, updated = module.apply(
                variables | {"params": params}, adversarial, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(cross_entropy(outputs.logits, labels)), {"batch_stats": {}} | updated

        slope, updated = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda weights, slope: weights - LEARNING_RATE * slope, variables["params"], slope)
        return {"params": params} | updated

    if MODEL.value == "small_cnn":
        state = {
            f"{layer}.{name}": value for layer, entry in variables["params"].items() for name, value in entry.items()
        }
    else:
        state = interop.to_torch(module, variables, "robustbench")
    np.savez(os.path.join(folder, "weights.npz"), **{name: np.asarray(value) for name, value in state.items()})
    np.savez(
        os.path.join(folder, "ours.npz"),
        images=images,
        labels=labels,
        logits=jax.jit(logits)(variables, images),
        adversarial=(adversarial := jax.jit(attack, static_argnums=2)(variables, images, compared_steps())),
        fooled=jnp.argmax(jax.jit(logits)(variables, adversarial), -1) != labels,
    )
    turn = jax.jit(update if WHAT.value == "training" else attack)
    measure.serve_turn(lambda: jax.block_until_ready(turn(variables, images)))


def pytorch(folder: str) -> None:
    """Reads weights and images, writes what becomes of them; then serves."""
    import pytorch_networks
    import torch

    weights = {name: torch.tensor(value) for name, value in np.load(os.path.join(folder, "weights.npz")).items()}
    shared = np.load(os.path.join(folder, "ours.npz"))
    images = torch.tensor(shared["images"]).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor(shared["labels"]).long()
    torch.manual_seed(0)
    if MODEL.value == "small_cnn":
        network = pytorch_networks.SmallCNN(weights)
    else:
        wide = MODEL.value == "wide_resnet"
        size = {"depth": DEPTH.value, "width": WIDTH.value} if wide else {}
        made = (pytorch_networks.WideResNet if wide else pytorch_networks.ResNet18)(channels=CHANNELS.value, **size)
        network = pytorch_networks.loaded(made, weights)
    network = network.to(memory_format=torch.channels_last)

    def attack(num_steps: int = NUM_STEPS.value) -> torch.Tensor:
        network.eval()
        network.requires_grad_(False)
        if PEER.value != "pytorch":
            return _library_attack(network, num_steps)(images, labels)
        adversarial = images
        for _ in range(num_steps):
            point = adversarial.detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy(network(point), labels, reduction="sum")
            (slope,) = torch.autograd.grad(loss, point)
            moved = adversarial + STEP_SIZE * slope.sign()
            adversarial = torch.clamp(torch.clamp(moved, images - EPSILON, images + EPSILON), 0, 1)
        return adversarial

    def update() -> None:
        adversarial = attack()
        network.train()
        network.requires_grad_(True)
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(network(adversarial), labels).backward()
        optimizer.step()

    network.eval()
    with torch.no_grad():
        logits = network(images).numpy()
    found = attack(compared_steps()).detach()
    with torch.no_grad():
        fooled = (network(found).argmax(1) != labels).numpy()
    adversarial = found.permute(0, 2, 3, 1).numpy()
    np.savez(os.path.join(folder, "pytorch.npz"), logits=logits, adversarial=adversarial, fooled=fooled)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)
    measure.serve_turn(update if WHAT.value == "training" else attack)


def _library_attack(network, num_steps: int):
    """(images, labels) -> adversarial images."""
    if PEER.value == "foolbox":
        import foolbox

        pgd = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=num_steps, random_start=False)
        model = foolbox.PyTorchModel(network.eval(), bounds=(0, 1))
        return lambda images, labels: pgd.run(model, images, labels, epsilon=EPSILON)
    import torchattacks

    if WHAT.value == "apgd":
        return torchattacks.APGD(network, eps=EPSILON, steps=num_steps)
    return torchattacks.PGD(network, eps=EPSILON, alpha=STEP_SIZE, steps=num_steps, random_start=False)


if __name__ == "__main__":
    app.run(main)
