"""Who finds out about the broken defenses of ``broken.py``, and about this library's own.

python benchmarks/zoo.py [--only=bit_depth,at_cas] [--runs=runs/table/digits] [--output=results/zoo.json]

The broken ones stand before, or within, one network trained on adversarial digits (8 x 8, linf 0.1). Each is attacked
by hand (APGD through the gradient that its author's critics would take, over its draws, and transferred from the
network without it), by AutoAttack alone, and by ``evaluation.judge`` with nothing declared. Runs of configs/digits.py
below ``--runs`` (at_0, at_cas_0, ...; linf 0.2) are judged with all that their defenses declare, which is what is done
by hand, and with nothing declared; AutoAttack is then the short one of the verdict.

Of a random network each attack's strongest images are chosen on some draws, and those of all three are decided on the
same others. Rows that the output holds are not measured again: what was cut off goes on.
"""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from broken import ZOO, Defended, Network, squeezing_detector
from sklearn.datasets import load_digits

from robustjax import attacks, cli, evaluation, runs
from robustjax.attacks.engine import verify
from robustjax.attacks.losses import cross_entropy
from robustjax.evaluation.protocol import records
from robustjax.evaluation.verdict.hints import hints_of
from robustjax.runtime import files
from robustjax.statistics import paired_difference
from robustjax.types import Array, Key, LogitsFn

EPSILON = 0.1
# In a gradient by hand, and those on which images are chosen and then decided.
NUM_DRAWS, NUM_DECIDING = 20, 200
REJECTING = "rejecting"
# Name of a row -> (run of configs/digits.py, defense switched on for it).
OWN = {
    "own at": ("at", None),
    "own at_cas": ("at_cas", None),
    "own at_cifs": ("at_cifs", None),
    "own at_fsr": ("at_fsr", None),
    "own at_kwta": ("at_kwta", None),
    "own at_sns": ("at_sns", None),
    "own at with meansparse": ("at", "meansparse:alpha=0.2"),
    "own at with kwta": ("at", "kwta:fraction=0.2"),
    "own at with sap": ("at", "sap:sampler=bernoulli"),
}
ONLY = flags.DEFINE_list("only", [], "Defenses to measure; empty: all.")
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 500, "Test images.", lower_bound=1)
RUNS = flags.DEFINE_string("runs", None, "Folder of runs of configs/digits.py; by default none of them is judged.")
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


class Attacked(NamedTuple):
    """What attacks made of some images, each like them or None, and what it took.

    Attributes:
        by_hand, autoattack: adversarial images; None where JAX cannot differentiate the network.
        verdict: of the judge, with nothing declared.
        seconds: of CPU, for all that comes before the verdict, and for the verdict.
    """

    by_hand: Array
    autoattack: Array | None
    verdict: evaluation.Verdict
    seconds: list[float]


def by_hand(defended: Defended, key: Key, images: Array, labels: Array) -> Array:
    """The strongest images of APGD on two losses through the surrogate, the network and that without the defense."""
    draws = NUM_DRAWS if defended.stochastic else 0
    sources = [(defended.by_hand, draws), (defended.logits_fn, draws), (defended.plain, int(defended.stochastic))]
    strongest, most = images, misclassified(defended, key, images, labels)
    for i, (source, eot_samples) in enumerate(sources):
        for loss in ("ce", "dlr"):
            try:
                points = apgd(
                    jax.tree_util.Partial(source), jax.random.fold_in(key, i), images, labels, loss, eot_samples
                )
            except ValueError:  # of what JAX cannot differentiate
                continue
            share = misclassified(defended, key, points, labels)
            strongest = jnp.where((share > most)[:, None, None, None], points, strongest)
            most = np.maximum(share, most)
    return strongest


@partial(jax.jit, static_argnums=(4, 5))
def apgd(network: LogitsFn, key: Key, images: Array, labels: Array, loss: str, eot_samples: int) -> Array:
    """A hundred steps of the attack by hand; arrays that a ``jax.tree_util.Partial`` holds are arguments."""
    return attacks.apgd(
        network, key, images, labels, epsilon=EPSILON, num_steps=100, loss=loss, eot_samples=eot_samples
    )


def misclassified(network: Defended, key: Key, images: Array, labels: Array) -> np.ndarray:
    """The share of draws, the same for all images, in which each is misclassified, float [N]; 0 or 1 without draws."""
    if not network.stochastic:
        return 1.0 - np.asarray(verify.is_correct(jax.jit(network.logits_fn)(images), labels))
    keys = jax.random.split(key, NUM_DECIDING)

    def wrong(key: Key, points: Array) -> Array:
        return ~verify.is_correct(network.logits_fn(points, key), labels)

    shares = jax.jit(lambda points: jnp.mean(jax.lax.map(lambda key: wrong(key, points), keys), axis=0))
    return np.asarray(shares(images))


def attack(defended: Defended, images: Array, labels: Array) -> Attacked:
    """The three sides on a broken defense."""
    key, started = jax.random.key(1), time.process_time()
    hand = by_hand(defended, key, images, labels)
    try:
        alone = attacks.autoattack(
            defended.logits_fn, key, images, labels, epsilon=EPSILON,
            version="rand" if defended.stochastic else "standard",
        ).images  # fmt: skip
    except ValueError:  # of what JAX cannot differentiate
        alone = None
    ensemble = time.process_time()
    hints = evaluation.Hints(stochastic=defended.stochastic)
    verdict = evaluation.judge(defended.logits_fn, key, images, labels, epsilon=EPSILON, hints=hints)
    return Attacked(hand, alone, verdict, [round(ensemble - started, 1), round(time.process_time() - ensemble, 1)])


def own(run: runs.Run, images: Array, labels: Array) -> tuple[Defended, Attacked]:
    """The three sides on a network of this library, by hand with all that its defense declares."""
    key, epsilon, started = jax.random.key(1), run.config.attack.epsilon, time.process_time()
    logits_fn, hints = hints_of(run.with_defense, run.defense, run.variables)
    known = evaluation.judge(logits_fn, key, images, labels, epsilon=epsilon, hints=hints)
    middle = time.process_time()
    nothing = evaluation.Hints(stochastic=hints.stochastic)
    verdict = evaluation.judge(logits_fn, key, images, labels, epsilon=epsilon, hints=nothing)
    seconds = [round(middle - started, 1), round(time.process_time() - middle, 1)]
    plain = logits_fn if hints.undefended_fn is None else hints.undefended_fn
    defended = Defended(logits_fn, logits_fn, plain, hints.stochastic)
    return defended, Attacked(jnp.asarray(known.adversarial), None, verdict, seconds)


def decided(network: Defended, images: Array, labels: Array, found: Attacked) -> np.ndarray:
    """Right as given, and robust by hand, under AutoAttack and under the judge's images, on the same draws; [4, N]."""
    key = jax.random.key(2)
    alone = images if found.autoattack is None else found.autoattack
    points = (images, found.by_hand, alone, jnp.asarray(found.verdict.adversarial))
    right = np.stack([misclassified(network, key, each, labels) < 0.5 for each in points])
    return right & right[0]  # an image that is misclassified as it is stays so


def row(robust: np.ndarray, found: Sequence[Attacked]) -> dict[str, object]:
    """Accuracies, the judge's less that by hand with its 95 % interval, and what was found, where.

    Args:
        robust: of :func:`decided`.
        found: by several verdicts where a network has one for each class.
    """
    right, hand, alone, of_judge = robust
    difference, interval = paired_difference(of_judge, hand)
    findings = dict.fromkeys(finding for each in found for finding in each.verdict.findings)
    flags = dict.fromkeys(name for each in found for name, flag in each.verdict.flags.items() if flag.status == "fail")
    planted = [each.verdict.flags["planted_examples_missed"] for each in found]
    return {
        "clean": float(np.mean(right)),
        "by_hand": float(np.mean(hand)),
        "autoattack": "no gradient" if found[0].autoattack is None else float(np.mean(alone)),
        "judge": float(np.mean(of_judge)),
        "judge_less_by_hand": [difference, *interval],
        "judge_only": int(np.sum(hand & ~of_judge)),
        "hand_only": int(np.sum(~hand & of_judge)),
        "findings": [f"{finding.kind}: {finding.primitive} at {finding.where}" for finding in findings],
        "fired": list(flags),
        "planted": [sum(round(flag.value * flag.n) for flag in planted if flag.value is not None),
                    sum(flag.n for flag in planted)],
        "num_examples": len(right),
        "cpu_seconds": np.sum([each.seconds for each in found], axis=0).round(1).tolist(),
    }  # fmt: skip


def measure_broken(name: str, network: Network, images: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    """The row of a broken defense around a network."""
    points, classes = jnp.asarray(images), jnp.asarray(labels)
    defended = ZOO[name](network)
    found = attack(defended, points, classes)
    return row(decided(defended, points, classes, found), [found])


def measure_rejecting(network: Network, honest: np.ndarray, images: np.ndarray, labels: np.ndarray, count: int):
    """The row of a detector that rejects, on as many images of each class, each class by a verdict of its own."""
    of_class = squeezing_detector(network, jnp.asarray(honest))
    robust, found = [], []
    for label in range(10):
        rows = np.flatnonzero(labels == label)[: count // 10]
        defended, points, classes = of_class(jnp.int32(label)), jnp.asarray(images[rows]), jnp.asarray(labels[rows])
        found.append(attack(defended, points, classes))
        robust.append(decided(defended, points, classes, found[-1]))
    return row(np.concatenate(robust, axis=1), found)


def measure_own(name: str, folder: str, count: int) -> dict[str, object]:
    """The row of a run, on its test images and, where they are too few, those that it was validated on."""
    config, defense = OWN[name]
    run = runs.load(Path(folder) / f"{config}_0", defense=defense)
    parts = [run.test_data(split=split) for split in ("test", "validation")]
    images = jnp.asarray(np.concatenate([part.images for part in parts])[:count], jnp.float32) / 255
    labels = jnp.asarray(np.concatenate([part.labels for part in parts])[:count], jnp.int32)
    defended, found = own(run, images, labels)
    measured = row(decided(defended, images, labels, found), [found])
    about = {"run": f"configs/digits.py:{config}, seed 0", "epsilon": run.config.attack.epsilon}
    return measured | {"autoattack": found.verdict.autoattack} | about


def main() -> int:
    """Measures what the output lacks, and prints the table."""
    path, count = Path(OUTPUT.value), NUM_EXAMPLES.value
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    names = ONLY.value or [*ZOO, REJECTING, *(OWN if RUNS.value else ())]
    names = [name for name in names if rows.get(name, {}).get("num_examples") != count]
    examples, (images, labels) = digits()
    network = train(*examples) if set(names) - set(OWN) else None
    for name in names:
        if name in OWN:
            measured = measure_own(name, RUNS.value, count)
        else:
            assert network is not None
            measured = (
                measure_rejecting(network, examples[0], images, labels, count)
                if name == REJECTING
                else measure_broken(name, network, images[:count], labels[:count])
            )
        rows[name] = {**measured, "commit": records.conditions()["commit"]}
        files.write(path, json.dumps({"epsilon": EPSILON, **records.conditions(), "rows": rows}, indent=1) + "\n")
        print(f"{name}: {rows[name]}", flush=True)
    for name, each in rows.items():
        shown = [f"{100 * value:.1f}" if isinstance(value, float) else "none" for value in (
            each["clean"], each["by_hand"], each["autoattack"], each["judge"]
        )]  # fmt: skip
        print(f"| {name} | {' | '.join(shown)} |")
    return 0


if __name__ == "__main__":
    cli.run(main)
