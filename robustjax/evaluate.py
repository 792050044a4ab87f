"""Judges a trained network: `python -m robustjax.evaluate --workdir=DIR [--attacks=clean,fgsm,pgd20,cw,pgd100]`.

Writes DIR/evaluation/<attack>.json, worst_case.json and examples.png, and prints a table. The threat (norm and epsilon)
is the one of the run's config.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from robustjax import build, cli, data, hosts
from robustjax import config as config_lib
from robustjax.analysis import plots
from robustjax.evaluation import records, runner
from robustjax.training import sharding
from robustjax.training.checkpoint import Checkpoints
from robustjax.training.progress import Display

ATTACKS = flags.DEFINE_list("attacks", "clean,fgsm,pgd20,cw,pgd100", "Attacks, in the order in which they run.")
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", None, "Judge only the first so many test images.", lower_bound=1)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by robust validation accuracy), last, or a step.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 500, "Images at a time, over all devices.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of attacks that draw.")

NUM_SHOWN = 8


def main() -> int:
    """Runs the evaluation that the flags describe."""
    workdir = Path(cli.WORKDIR.value)
    config = config_lib.read(workdir)
    attack = config.attack
    cli.join_hosts()
    protocols = build.evaluation_attacks(ATTACKS.value, epsilon=attack.epsilon, norm=attack.norm)
    layout = sharding.layout()
    layout.check_batch_size("--batch_size", BATCH_SIZE.value)
    dataset = hosts.together(lambda: build.test_dataset(config, num_examples=NUM_EXAMPLES.value))

    module = build.model(config, dataset.num_classes, dtype="float32")  # whatever it was trained in
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.find(CHECKPOINT.value)
        abstract = jax.eval_shape(build.initial_state(config, module, dataset.images.shape[1:]))
        variables = hosts.together(lambda: checkpoints.restore(step, abstract, layout)).judged

    run = runner.make_runner(
        lambda variables, images: module.apply(variables, images, train=False).logits,
        variables,
        dataset,
        epsilon=attack.epsilon,
        norm=attack.norm,
        batch_size=BATCH_SIZE.value,
        layout=layout,
    )
    conditions = {
        "dataset": dataset.name,
        "split": "test",
        "seed": SEED.value,
        "checkpoint_step": step,
        "batch_norm": "running statistics",
        **records.conditions(),
        "config": build.plain(config),
    }
    outcomes, entries = {}, []
    with Display("judging", total=run.num_batches * len(protocols), shown=hosts.is_first()) as display:
        for i, (name, protocol) in enumerate(protocols.items()):
            display.update(i * run.num_batches, name)
            outcome = run(
                protocol.attack,
                jax.random.fold_in(jax.random.key(SEED.value), i),
                whole=protocol.whole,
                progress=lambda done, i=i, name=name: display.update(i * run.num_batches + done, name),
            )
            entry = records.record(
                name,
                outcome.robust,
                norm=attack.norm,
                epsilon=attack.epsilon,
                num_steps=protocol.num_steps,
                num_restarts=protocol.num_restarts,
                seconds=outcome.seconds,
                conditions=conditions,
            )
            if hosts.is_first():
                records.write(workdir, [entry])
            outcomes[name] = outcome
            entries.append(entry)
    if not hosts.is_first():
        return 0
    entries.append(records.worst_case(entries))
    records.write(workdir, entries[-1:])
    _print_table(entries)
    picture = _save_picture(workdir, dataset, outcomes, entries[:-1])
    print(f"records: {workdir / 'evaluation'}" + (f"; picture: {picture}" if picture else ""))
    return 0


def _print_table(entries: list[dict]) -> None:
    first = entries[0]
    table = Table(
        title=(
            f"{first['config']['model']['name']} on {first['num_examples']:,} test images of {first['dataset']}, "
            f"{first['norm']} epsilon {first['epsilon']:.4g}, checkpoint of step {first['checkpoint_step']:,}"
        )
    )
    for heading in ("attack", "steps", "accuracy", "95 % interval", "seconds"):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    for entry in entries:
        low, high = entry["interval_95"]
        table.add_row(
            entry["attack"].replace("_", " "),
            str(entry["num_steps"]) if entry["attack"] != "worst_case" else "",
            f"{entry['accuracy']:.2%}",
            f"{low:.2%} to {high:.2%}",
            f"{entry['seconds']:.1f}",
            end_section=entry is entries[-2],
        )
    Console().print(table)


def _save_picture(workdir: Path, dataset: data.Dataset, outcomes: dict, entries: list[dict]) -> Path | None:
    """The first images under the attack that the network fares worst against; None where nothing attacked."""
    attacks = [entry for entry in entries if entry["num_steps"] > 0]
    if not attacks:
        return None
    worst = min(attacks, key=lambda entry: entry["accuracy"])
    outcome = outcomes[worst["attack"]]
    path = workdir / "evaluation" / "examples.png"
    shown = slice(min(NUM_SHOWN, len(outcome.adversarial)))
    plots.save_examples(
        path,
        dataset.images[shown] / np.float32(255),
        outcome.adversarial[shown],
        outcome.clean_predictions[shown],
        outcome.predictions[shown],
        dataset.labels[shown],
        label_names=dataset.label_names,
        title=f"{worst['attack']}, {worst['norm']} epsilon {worst['epsilon']:.4g}: {worst['accuracy']:.1%} robust",
        epsilon=worst["epsilon"],
    )
    return path


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    cli.run(main)
