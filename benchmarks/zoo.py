"""Who finds out about the broken defenses of ``broken.py``.

python benchmarks/zoo.py [--only=bit_depth,jpeg] [--num_examples=500] [--output=results/zoo.json]

Each stands before, or within, one network trained on adversarial digits (8 x 8, linf 0.1). Its accuracy is measured by
hand (APGD through the gradient that its author's critics would take, over its draws, and transferred from the network
without it), by AutoAttack alone, and by ``evaluation.judge`` with nothing declared. Rows that the output holds are not
measured again: what was cut off goes on.
"""

import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from broken import ZOO, Defended, Network
from sklearn.datasets import load_digits

from robustjax import attacks, cli, evaluation
from robustjax.attacks.engine import verify
from robustjax.attacks.losses import cross_entropy
from robustjax.evaluation.protocol import records
from robustjax.runtime import files
from robustjax.types import Array, Key

EPSILON = 0.1
NUM_DRAWS = 20
ONLY = flags.DEFINE_list("only", [], "Defenses to measure; empty: all.")
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 500, "Test images.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", "results/zoo.json", "File of the results, which it goes on with.")


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and test images [N, 8, 8, 1] in [0, 1] with labels."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order, :, :, None] / 16).astype(np.float32)
    labels = data.target[order].astype(np.int32)
    return (images[600:], labels[600:]), (images[:600], labels[:600])


def train(images: np.ndarray, labels: np.ndarray, *, num_steps: int = 1500) -> Network:
    """A network of one hidden layer, on PGD examples."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"w1": (64, 128), "w2": (128, 10)}
    params = {name: jax.random.normal(key, shape) / 8 for (name, shape), key in zip(shapes.items(), keys, strict=False)}
    params |= {"b1": jnp.zeros(128), "b2": jnp.zeros(10)}
    images, labels = jnp.asarray(images), jnp.asarray(labels)

    def network(params: dict[str, Array]) -> Network:
        return Network(
            lambda x: jax.nn.relu(x.reshape(x.shape[0], -1) @ params["w1"] + params["b1"][None]),
            lambda h: h @ params["w2"] + params["b2"][None],
        )

    def update(state: tuple, key: Key) -> tuple:
        params, momentum = state
        rows = jax.random.randint(key, (128,), 0, len(labels))
        x, y = images[rows], labels[rows]
        x = attacks.pgd(network(params), key, x, y, epsilon=EPSILON, step_size=EPSILON / 4, num_steps=7)
        gradient = jax.grad(lambda params: jnp.mean(cross_entropy(network(params)(x), y)))(params)
        momentum = jax.tree.map(lambda old, new: 0.9 * old + new, momentum, gradient)
        return (jax.tree.map(lambda value, step: value - 0.05 * step, params, momentum), momentum), None

    start = params, jax.tree.map(jnp.zeros_like, params)
    (params, _), _ = jax.jit(lambda: jax.lax.scan(update, start, jax.random.split(keys[2], num_steps)))()
    return network(params)


def by_hand(defended: Defended, key: Key, images: Array, labels: Array) -> np.ndarray:
    """Robust examples, bool [N], after APGD on two losses through the surrogate, the network and that without."""
    robust = np.ones(len(images), bool)
    draws = NUM_DRAWS if defended.stochastic else 0
    sources = [(defended.by_hand, draws), (defended.logits_fn, draws), (defended.plain, int(defended.stochastic))]
    for i, (source, eot_samples) in enumerate(sources):
        for loss in ("ce", "dlr"):
            attack = jax.jit(partial(
                attacks.apgd, source, epsilon=EPSILON, num_steps=100, loss=loss, eot_samples=eot_samples
            ))  # fmt: skip
            try:
                points = attack(jax.random.fold_in(key, i), images, labels)
            except ValueError:  # of what JAX cannot differentiate
                continue
            robust &= correct(defended, key, points, labels)
    return robust & correct(defended, key, images, labels)


def correct(defended: Defended, key: Key, images: Array, labels: Array) -> np.ndarray:
    """Bool [N]; of a random network by majority of draws."""
    if not defended.stochastic:
        return np.asarray(verify.is_correct(jax.jit(defended.logits_fn)(images), labels))
    keys = jax.random.split(jax.random.fold_in(key, 99), NUM_DRAWS)
    logits = jax.jit(lambda x: jax.lax.map(lambda key: defended.logits_fn(x, key), keys))(images)
    hits = jax.vmap(lambda each: verify.is_correct(each, labels))(logits)
    return np.mean(np.asarray(hits), axis=0) > 0.5


def measure(name: str, network: Network, images: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    """A row: accuracies in per cent, what was found, and where."""
    defended, key = ZOO[name](network), jax.random.key(1)
    points, classes = jnp.asarray(images), jnp.asarray(labels)
    started = time.perf_counter()
    hand = by_hand(defended, key, points, classes)
    try:
        result = attacks.autoattack(
            defended.logits_fn, key, images, labels, epsilon=EPSILON,
            version="rand" if defended.stochastic else "standard",
        )  # fmt: skip
        alone = float(np.mean(result.robust))
    except ValueError as error:  # of what JAX cannot differentiate
        alone = str(error).splitlines()[0][:80]
    ensemble = time.perf_counter()
    hints = evaluation.Hints(stochastic=defended.stochastic)
    verdict = evaluation.judge(defended.logits_fn, key, images, labels, epsilon=EPSILON, hints=hints)
    return {
        "clean": verdict.clean,
        "by_hand": float(np.mean(hand)),
        "autoattack": alone,
        "judge": verdict.worst_case,
        "judge_only": int(np.sum(hand & ~verdict.robust)),
        "hand_only": int(np.sum(~hand & verdict.robust)),
        "findings": [f"{finding.kind}: {finding.primitive} at {finding.where}" for finding in verdict.findings],
        "fired": [flag for flag, value in verdict.flags.items() if value.status == "fail"],
        "num_examples": len(labels),
        "seconds": [round(ensemble - started, 1), round(time.perf_counter() - ensemble, 1)],
    }


def main() -> int:
    """Measures what the output lacks, and prints the table."""
    path = Path(OUTPUT.value)
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    (train_images, train_labels), (images, labels) = digits()
    names = [name for name in ONLY.value or ZOO if rows.get(name, {}).get("num_examples") != NUM_EXAMPLES.value]
    network = train(train_images, train_labels) if names else None
    for name in names:
        assert network is not None
        rows[name] = measure(name, network, images[: NUM_EXAMPLES.value], labels[: NUM_EXAMPLES.value])
        files.write(path, json.dumps({"epsilon": EPSILON, **records.conditions(), "rows": rows}, indent=1) + "\n")
        print(f"{name}: {rows[name]}", flush=True)
    for name, row in rows.items():
        shown = [f"{100 * value:.1f}" if isinstance(value, float) else "none" for value in (
            row["clean"], row["by_hand"], row["autoattack"], row["judge"]
        )]  # fmt: skip
        print(f"| {name} | {' | '.join(shown)} |")
    return 0


if __name__ == "__main__":
    cli.run(main)
