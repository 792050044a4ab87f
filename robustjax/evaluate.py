"""Evaluates a run, ``python -m robustjax.evaluate --workdir=DIR [--attacks=clean,fgsm,pgd20,cw,pgd100]``, or any
network, ``python -m robustjax.evaluate --model=file.py:function --data=cifar10 --epsilon=8/255``.

For a run, writes DIR/evaluation/<attack>.json, worst_case.json, results.csv and examples.png, and prints a table. For a
--model the same goes to --output=DIR; without it the table is only printed. ``--sweep=epsilon`` and ``--sweep=steps``
write sweep_<kind>.json and .png instead. The threat is that of the run's config unless --epsilon (with --norm) or
--threat says otherwise. Results of a run are stored batch by batch: after an interruption the same command continues.

``--attacks`` names public attacks with their options, as in ``clean,apgd:loss=dlr,num_steps=50,square``. Further names:
``apgd:toward=random`` aims at a class; ``adaptive`` judges the network and writes trust.json and trust.md;
``saved:FILE.npz`` verifies images found elsewhere; ``corruption:cifar10_corrupted/brightness_1`` classifies another
data set; ``transfer:runs/other`` attacks another network.

``--require="autoattack>=0.5"`` makes the exit status 1 if it does not hold.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from robustjax import cli
from robustjax.evaluation import Options, evaluate_run
from robustjax.evaluation.verdict.budgets import BUDGETS

cli.declare_shared()
# Each is an attribute of `Options`, which has more to say of it, and is read and checked there; --workdir is among
# those of all commands.
FLAGS: list[flags.FlagHolder[Any]] = [
    flags.DEFINE_string("model", None, "package.module:function, file.py:function, robustbench:NAME or onnx:FILE."),
    flags.DEFINE_string("weights", None, "File of the model's weights."),
    flags.DEFINE_list("mean", None, "The model is given (images - mean) / std: one number, or one a channel."),
    flags.DEFINE_list("std", None, "See --mean."),
    flags.DEFINE_string("data", None, "A data set, a folder of class folders or an .npz; by default the run's."),
    flags.DEFINE_string("split", "test", "Split of the data set."),
    flags.DEFINE_integer("num_examples", None, "Evaluate only the first N images.", lower_bound=1),
    flags.DEFINE_integer("subset_seed", None, "Take --num_examples images at random by this seed.", lower_bound=0),
    flags.DEFINE_integer("image_size", None, "Side that images are scaled to.", lower_bound=1),
    flags.DEFINE_string("data_dir", None, "Where prepared data sets lie; by default TFDS_DATA_DIR."),
    flags.DEFINE_string("norm", None, "linf, l2 or l1; by default that of the run, or linf."),
    flags.DEFINE_string("epsilon", None, "Radius of the ball, as 0.5 or 8/255; by default that of the run."),
    flags.DEFINE_list("threat", None, "Several: linf:8/255,l2:0.5,l1:12; a row for each, and their union."),
    flags.DEFINE_list("bounds", ["0", "1"], "Lowest and highest pixel that an attack may use, in [0, 1]."),
    flags.DEFINE_list("attacks", None, "In their order; by default clean,fgsm,pgd20,cw,pgd100, of a sweep pgd20."),
    flags.DEFINE_string("sweep", None, "Accuracy against epsilon or steps, as epsilon or epsilon:0,2/255,4/255."),
    flags.DEFINE_string("checkpoint", "best", "best (by robust validation accuracy), last, or a step."),
    flags.DEFINE_string(
        "defense",
        None,
        "Switches on sap, kwta, meansparse, dropout or noise, as sap:fraction=0.5, in place of the run's defense; +sap "
        "adds it to that; none switches the run's defense off.",
    ),
    flags.DEFINE_string("transfer_from", None, "Folder of another run, from whose network adaptive attacks transfer."),
    flags.DEFINE_integer("batch_size", 500, "Images at a time, over all devices.", lower_bound=1),
    flags.DEFINE_integer("seed", 0, "Random seed of the attacks."),
    flags.DEFINE_enum("budget", "quick", list(BUDGETS), "Of the adaptive attacks and the checks around them."),
    flags.DEFINE_integer(
        "eot_samples", None, "Draws over which attacks average a stochastic network; by default 20.", lower_bound=1
    ),
    flags.DEFINE_integer(
        "draws", None, "Fresh draws that classify each image of a stochastic network; by default 10.", lower_bound=1
    ),
    flags.DEFINE_integer(
        "prediction_draws", None, "Draws whose probabilities one prediction averages; by default 1.", lower_bound=1
    ),
    flags.DEFINE_bool("quicken", True, "Run a model with this library's fast convolutions on a CPU."),
    cli.define_output("Folder for the results of a --model; by default they are only printed."),
    flags.DEFINE_bool("per_class", False, "Print accuracy by class, too."),
    flags.DEFINE_string("card", None, "File for a leaderboard card in RobustBench's form; needs clean and autoattack."),
    flags.DEFINE_string("save_images", None, "File for the images that decide the worst case, an .npz."),
    flags.DEFINE_multi_string("require", [], "Exit status 1 unless it holds: autoattack>=0.5; may be given again."),
]
RENAMED = {"draws": "num_draws"}


def main() -> int:
    """Runs the evaluation that the flags describe."""
    cli.join_hosts()
    given: dict[str, Any] = {RENAMED.get(flag.name, flag.name): flag.value for flag in FLAGS}
    try:
        result = evaluate_run(Options(workdir=cli.WORKDIR.value, **given))
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the next batch")
        return 130
    unmet = [] if isinstance(result, dict) else result.unmet(given["require"])
    return max([cli.fail(line) for line in unmet], default=0)


if __name__ == "__main__":
    cli.run(main)
