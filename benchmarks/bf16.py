"""Whether attacks through bfloat16 break as many images: a trained network, attacked in both precisions.

python -m robustjax.train --config=configs/mnist_at.py --workdir=DIR
python benchmarks/bf16.py --workdir=DIR [--num_examples=512] [--attacks=pgd20,autoattack] [--checkpoint=best]

The same float32 weights are attacked through

- float32;
- "another seed": float32 again, with other random starts, whose flags show how many differ for no reason at all;
- "bfloat16": every layer computes in bfloat16, losses in float32, as a run with `model.dtype = "bfloat16"` attacks
  while it trains;
- "its gradients alone": gradients of the bfloat16 network at the float32 one's logits, so that losses, step sizes and
  which image counts as broken are exact, at one forward pass more a step: what `bfloat16_fn` asks `autoattack` and
  `apgd` for.

and whatever they return is judged by one float32 forward pass. `autoattack` is its apgd-ce and apgd-t. It believes the
network that it is given: where that is in bfloat16 throughout, an image that only bfloat16 gets wrong is given up too
early, and fewer break in all (RESULTS.md). Seconds are not compared: a CPU imitates bfloat16.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from absl import flags

from robustjax import attacks, build, cli, data, runs
from robustjax.attacks.engine import verify
from robustjax.attacks.engine.precision import with_gradients_of
from robustjax.evaluation.protocol import records
from robustjax.runs import network
from robustjax.types import Array, InputError, Key, LogitsFn

NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 512, "Test images.", lower_bound=1)
ATTACKS = flags.DEFINE_list("attacks", ["pgd20", "autoattack"], "Which.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", '"best", "last" or a step.')
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images at a time.", lower_bound=1)


def main() -> int:
    """Prints one line for each attack and way."""
    unknown = [name for name in ATTACKS.value if name not in RUNS]
    if unknown or not ATTACKS.value:
        raise InputError(f"--attacks must be some of {', '.join(RUNS)}, got {', '.join(unknown) or 'none'}")
    run = runs.load(cli.WORKDIR.value, checkpoint=CHECKPOINT.value)
    settings, dataset = run.config, run.test_data(NUM_EXAMPLES.value)
    images, labels = np.asarray(data.to_float(dataset.images)), dataset.labels
    variables, step = run.variables, run.step
    exact, coarse = (
        jax.tree_util.Partial(
            network.logits_fn(build.model(settings, dataset.num_classes, dtype=dtype), stochastic=False), variables
        )
        for dtype in ("float32", "bfloat16")
    )
    threat = {"epsilon": settings.attack.epsilon, "norm": settings.attack.norm}
    ways = {
        "float32": (exact, 0),
        "another seed": (exact, 1),
        "bfloat16": (coarse, 0),
        "its gradients alone": (jax.tree_util.Partial(with_gradients_of, coarse, exact), 0),
    }
    judge = jax.jit(partial(_robust, **threat))

    print(f"hardware {records.conditions()['hardware']}, versions {records.conditions()['versions']}")
    print(
        f"{settings.model.name} on {dataset.name}, trained in {settings.model.dtype}, step {step}; "
        f"{threat['norm']} epsilon {threat['epsilon']:.4g}, {len(labels)} test images"
    )
    rows = [slice(i, i + BATCH_SIZE.value) for i in range(0, len(labels), BATCH_SIZE.value)]

    def judged(adversarial: np.ndarray) -> np.ndarray:
        return np.concatenate([judge(exact, images[some], adversarial[some], labels[some]) for some in rows])

    print(f"{'':32} {judged(images).mean():7.2%} clean")
    for name in ATTACKS.value:
        reference = None
        for way, (attacked, seed) in ways.items():
            found = RUNS[name](attacked, jax.random.key(seed), images, labels, rows, **threat)
            robust = judged(found)
            reference = robust if reference is None else reference
            lost, gained = np.sum(robust & ~reference), np.sum(~robust & reference)
            differing = f"{lost + gained:3} flags differ, {lost} broken by float32 alone, {gained} by this alone"
            print(f"{name:11} {way:20} {robust.mean():7.2%}  {differing}", flush=True)
    return 0


def _pgd20(
    logits_fn: LogitsFn, key: Key, images: np.ndarray, labels: np.ndarray, rows: list[slice], *, epsilon: float, **norm
) -> np.ndarray:
    options = {"epsilon": epsilon, "step_size": epsilon / 4, "num_steps": 20, **norm}
    return np.concatenate(
        [_pgd(logits_fn, jax.random.fold_in(key, some.start), images[some], labels[some], **options) for some in rows]
    )


def _autoattack(
    logits_fn: LogitsFn, key: Key, images: np.ndarray, labels: np.ndarray, rows: list[slice], **threat
) -> np.ndarray:
    return attacks.autoattack(logits_fn, key, images, labels, version=["apgd-ce", "apgd-t"], **threat).images


def _robust(
    logits_fn: LogitsFn, images: Array, adversarial: Array, labels: Array, *, epsilon: float, norm: str
) -> Array:
    """Right on the image as it is and on what an attack returned, unless that is outside the ball or the box."""
    with jax.default_matmul_precision("float32"):
        right, still = (verify.is_correct(logits_fn(points), labels) for points in (images, adversarial))
    return right & (still | ~verify.is_valid(images, adversarial, epsilon=epsilon, norm=norm))


_pgd = jax.jit(attacks.pgd, static_argnames=("num_steps", "norm"))
RUNS: dict[str, Callable[..., np.ndarray]] = {"pgd20": _pgd20, "autoattack": _autoattack}


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    cli.run(main)
