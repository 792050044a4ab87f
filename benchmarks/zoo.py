"""A zoo of broken defenses, each in a dozen lines from its paper's description, and who finds out about them.

python benchmarks/zoo.py [--only=bit_depth,jpeg] [--num_examples=500] [--output=results/zoo.json]

Each stands before, or within, one network trained on adversarial digits (8 x 8, linf 0.1). Its accuracy is measured by
hand (APGD through the gradient that its author's critics would take, over its draws, and transferred from the network
without it), by AutoAttack alone, and by ``evaluation.judge`` with nothing declared. Rows that the output holds are not
measured again: what was cut off goes on.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from sklearn.datasets import load_digits

from robustjax import attacks, cli, defenses, evaluation
from robustjax.attacks.engine import verify
from robustjax.attacks.losses import cross_entropy
from robustjax.evaluation.protocol import records
from robustjax.ops import bpda
from robustjax.runtime import files
from robustjax.types import Array, Key, LogitsFn

EPSILON = 0.1
NUM_DRAWS = 20
ONLY = flags.DEFINE_list("only", [], "Defenses to measure; empty: all.")
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 500, "Test images.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", "results/zoo.json", "File of the results, which it goes on with.")


class Network(NamedTuple):
    """A network in two parts: images -> activations, activations -> logits."""

    features: Callable[[Array], Array]
    head: Callable[[Array], Array]

    def __call__(self, images: Array) -> Array:
        return self.head(self.features(images))


class Defended(NamedTuple):
    """A defended network, and what an attack by hand uses in place of its gradient.

    Attributes:
        logits_fn: images, or images and a key, -> logits.
        by_hand: the same outputs with useful derivatives.
        plain: the network without the defense.
        stochastic: takes a key.
    """

    logits_fn: LogitsFn
    by_hand: LogitsFn
    plain: LogitsFn
    stochastic: bool = False


def before(prepare: Callable[[Array], Array]) -> Callable[[Network], Defended]:
    """A transformation of the images, with the identity as its derivative by hand."""
    return lambda network: Defended(
        lambda images: network(prepare(images)), lambda images: network(bpda(prepare, lambda x: x)(images)), network
    )


def bit_depth(images: Array) -> Array:
    """Feature squeezing (Xu et al. 2018): two bits a pixel."""
    return jnp.round(3.0 * images) / 3.0


def jpeg(images: Array) -> Array:
    """JPEG compression (Guo et al. 2018): the cosine transform of blocks of 8 x 8, rounded."""
    k, x = np.arange(8)[:, None], np.arange(8)[None]
    basis = np.where(k == 0, np.sqrt(1 / 8), 0.5 * np.cos(np.pi * (2 * x + 1) * k / 16))
    basis = jnp.asarray(basis, jnp.float32)
    steps = jnp.asarray(0.1 + 0.05 * (k + x), jnp.float32)[None, :, :, None]
    blocks = jnp.einsum("ki,bijc,lj->bklc", basis, images, basis)
    return jnp.einsum("ki,bklc,lj->bijc", basis, jnp.round(blocks / steps) * steps, basis)


def thermometer(images: Array) -> Array:
    """Thermometer encoding (Buckman et al. 2018): how many of eight levels a pixel reaches."""
    levels = (jnp.arange(8.0) + 0.5) / 8.0
    return jnp.mean((images[..., None] >= levels.reshape((1,) * images.ndim + (8,))).astype(jnp.float32), axis=-1)


def median(images: Array) -> Array:
    """Spatial smoothing (Xu et al. 2018): the median of a cross of five pixels."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    return jnp.median(jnp.stack([padded[:, i : i + height, j : j + width] for i, j in places]), axis=0)


def binarised(images: Array) -> Array:
    """Binary inputs (Qiu et al. 2018)."""
    return 0.5 + 0.5 * jnp.sign(images - 0.5)


def purified(images: Array) -> Array:
    """Total-variation minimisation in the forward pass (Guo et al. 2018)."""

    def roughness(x: Array) -> Array:
        across, down = jnp.diff(x, axis=2), jnp.diff(x, axis=1)
        return jnp.sum((x - images) ** 2) + 0.3 * jnp.sum(jnp.sqrt(across**2 + 1e-2)) + 0.3 * jnp.sum(
            jnp.sqrt(down**2 + 1e-2)
        )

    return jax.lax.fori_loop(0, 10, lambda i, x: x - 0.1 * jax.grad(roughness)(x), images)


def denoised_in_python(images: Array) -> Array:
    """A filter that is no JAX program: levels in NumPy."""
    cut = lambda x: np.round(4 * np.asarray(x)).astype(np.float32) / 4  # noqa: E731
    return jax.pure_callback(cut, jax.ShapeDtypeStruct(images.shape, images.dtype), images, vmap_method="expand_dims")


def resized(images: Array, key: Key) -> Array:
    """Random resizing and padding (Xie et al. 2018)."""
    key_scale, key_place = jax.random.split(key)
    scale = jax.random.uniform(key_scale, (2,), jnp.float32, 0.8, 1.0)
    shift = jax.random.uniform(key_place, (2,), jnp.float32) * (1.0 - scale) * 8.0
    return jax.vmap(lambda x: jax.image.scale_and_translate(x, x.shape, (0, 1), scale, shift, "linear"))(images)


def dropped(images: Array, key: Key) -> Array:
    """Random pixels missing (Feinman et al. 2017 drop units at test time)."""
    return jnp.where(jax.random.bernoulli(key, 0.9, images.shape), images, jnp.zeros_like(images))


def noisy_levels(images: Array, key: Key) -> Array:
    """Noise, then levels (Raff et al. 2019 combine such)."""
    return bit_depth(images + 0.02 * jax.random.normal(key, images.shape))


def at_random(
    prepare: Callable[..., Array], by_hand: Callable[..., Array] | None = None
) -> Callable[[Network], Defended]:
    """A random transformation of the images, averaged over by hand."""
    return lambda network: Defended(
        lambda images, key: network(prepare(images, key)),
        lambda images, key: network((by_hand or prepare)(images, key)),
        lambda images, key: network(images), True,
    )  # fmt: skip


def distilled(network: Network) -> Defended:
    """Defensive distillation (Papernot et al. 2016): probabilities of logits a thousand times too large."""
    return Defended(lambda images: jax.nn.softmax(1000.0 * network(images)), network, network)


def winners(network: Network) -> Defended:
    """k-Winners-Take-All (Xiao et al. 2020) on the hidden activations."""
    keep = partial(defenses.kwta.k_winners, fraction=0.2)
    made = [lambda images, f=f: network.head(f(network.features(images))) for f in (keep, bpda(keep, lambda x: x))]
    return Defended(made[0], made[1], network)


def mean_sparse(network: Network) -> Defended:
    """MeanSparse (Amini et al. 2024), of statistics of the activations of grey images."""

    def sparse(x: Array) -> Array:
        mean, deviation = 0.5, 0.8
        return jnp.where(jnp.abs(x - mean) < 0.5 * deviation, jnp.full_like(x, mean), x)

    made = [lambda images, f=f: network.head(f(network.features(images))) for f in (sparse, bpda(sparse, lambda x: x))]
    return Defended(made[0], made[1], network)


def votes(network: Network) -> Defended:
    """An ensemble by vote over shifted images."""
    views = lambda images: [jnp.roll(images, (i, j), (1, 2)) for i, j in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))]  # noqa: E731
    vote = lambda images: sum(jax.nn.one_hot(jnp.argmax(network(view), axis=1), 10) for view in views(images))  # noqa: E731
    mean = lambda images: sum(jax.nn.softmax(network(view)) for view in views(images))  # noqa: E731
    return Defended(vote, bpda(vote, mean), network)


def detached(network: Network) -> Defended:
    """Images behind a stop_gradient."""
    return Defended(lambda images: network(jax.lax.stop_gradient(images)), network, network)


def lying(network: Network) -> Defended:
    """A derivative rule that is not the function's."""

    @jax.custom_jvp
    def same(x: Array) -> Array:
        return 1.0 * x

    same.defjvp(lambda primals, tangents: (same(*primals), -tangents[0]))
    return Defended(lambda images: network(same(images)), network, network)


ZOO: dict[str, Callable[[Network], Defended]] = {
    "bit_depth": before(bit_depth),
    "jpeg": before(jpeg),
    "thermometer": before(thermometer),
    "median": before(median),
    "binarised": before(binarised),
    "purified": before(purified),
    "python": before(denoised_in_python),
    "resized": at_random(resized),
    "dropped": at_random(dropped),
    "noisy_levels": at_random(noisy_levels, lambda images, key: bpda(noisy_levels, lambda x, key: x)(images, key)),
    "distilled": distilled,
    "winners": winners,
    "mean_sparse": mean_sparse,
    "votes": votes,
    "detached": detached,
    "lying": lying,
    "none": lambda network: Defended(network, network, network),
}  # fmt: skip


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
