"""What the defenses cost: SAP's samplers against dropout, and each guard on a network against the unguarded one.

python benchmarks/guards.py [--model=resnet18] [--batch_size=16] [--defenses=cas,cifs,...] [--repetitions=9]

Everything that is compared is compiled first and then timed in turns, so that a busy machine slows all of it alike; the
ratios are medians of the ratios within a turn. A training step is one forward and one backward pass of the defense's
loss with cross-entropy and an update; SAP and the plain network train alike.
"""

import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measure
from absl import flags

from robustjax import cli, defenses, models
from robustjax.attacks.losses import cross_entropy
from robustjax.defenses.convention import own_loss
from robustjax.evaluation.protocol import records

MODEL = flags.DEFINE_enum("model", "resnet18", models.NAMES, "Network to guard.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images of 32 x 32 x 3 in a batch.", lower_bound=1)
GUARDS = [name for name in defenses.DEFENSES if name != "sns"]  # which guards nothing: it reads what is there
DEFENSES = flags.DEFINE_list("defenses", GUARDS, "Defenses to time on the network; empty: none.")
REPETITIONS = flags.DEFINE_integer("repetitions", 9, "Turns.", lower_bound=1)


def main() -> int:
    """Prints two tables."""
    print(f"hardware {records.conditions()['hardware']}, versions {records.conditions()['versions']}")
    key = jax.random.key(0)
    activations = jax.nn.relu(jax.random.normal(key, (128, 32, 32, 64)))
    samplers = {
        "dropout": lambda key, h: jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h / 0.5, 0.0),
        "sap multinomial": defenses.sap.prune,
        "sap bernoulli": lambda key, h: defenses.sap.prune(key, h, sampler="bernoulli"),
    }
    _report("activations [128, 32, 32, 64]", {name: _compiled(f, key, activations) for name, f in samplers.items()})

    guards = {"unguarded": None} | {name: defenses.create(name) for name in DEFENSES.value}
    forwards, steps = {}, {}
    for name, defense in guards.items():
        forwards[name], steps[name] = _forward_and_step(defense)
    _report(f"{MODEL.value} forward, batch {BATCH_SIZE.value}", forwards)
    _report(f"{MODEL.value} training step, batch {BATCH_SIZE.value}", steps)
    return 0


def _forward_and_step(defense: defenses.Defense | None) -> tuple[Callable[[], object], Callable[[], object]]:
    module = models.create(MODEL.value, defense=defense)
    loss = own_loss if defense is None else defense.loss
    key = jax.random.key(0)
    images = jax.random.uniform(key, (BATCH_SIZE.value, 32, 32, 3))
    labels = jnp.arange(BATCH_SIZE.value) % 10
    variables = jax.jit(module.init)(key, images)

    def forward(variables, key):
        return module.apply(variables, images, rngs={"defense": key}).logits

    def step(variables, key):
        def value(params):
            outputs, updated = module.apply(
                variables | {"params": params},
                images,
                labels,
                train=True,
                rngs={"defense": key},
                mutable=["batch_stats"],
            )
            term = lambda logits, labels: cross_entropy(logits["natural"], labels)  # noqa: E731
            return jnp.mean(loss({"natural": outputs}, labels, term=term)), updated

        gradient, updated = jax.grad(value, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda weights, slope: weights - 0.1 * slope, variables["params"], gradient)
        return {"params": params} | updated

    return _compiled(forward, variables, key), _compiled(step, variables, key)


def _compiled(function: Callable, *arguments) -> Callable[[], object]:
    program = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def _report(title: str, programs: dict[str, Callable[[], object]]) -> None:
    """Times programs in turns and prints each against the first."""
    seconds = measure.in_turns(programs, REPETITIONS.value)
    base = next(iter(seconds.values()))
    print(title)
    for name, times in seconds.items():
        ratio = statistics.median(own / other for own, other in zip(times, base, strict=True))
        print(f"  {name:16} {1e3 * statistics.median(times):8.1f} ms  {ratio:5.2f} x", flush=True)


if __name__ == "__main__":
    cli.run(main)
