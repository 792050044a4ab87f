"""Evaluates a trained network: ``python -m robustjax.evaluate --workdir=DIR [--attacks=clean,fgsm,pgd20,cw,pgd100]``.

Writes DIR/evaluation/<attack>.json, worst_case.json and examples.png, and prints a table. ``--sweep=epsilon`` and
``--sweep=steps`` write sweep_<kind>.json and .png instead. The threat (norm and epsilon) is the one of the run's
config. Results are stored batch by batch: the same command goes on where it was stopped, and runs nothing again.

``--attacks=adaptive`` gives a verdict by attacks that know the network's defense, and writes trust.json and trust.md.

``--defense=sap:fraction=0.5`` switches a defense without parameters of its own on (or, ``--defense=none``, off); what
comes of it lies in DIR/evaluation/<defense>/.
"""

from __future__ import annotations

from absl import flags

from robustjax import cli
from robustjax.evaluation import Options, evaluate_run
from robustjax.evaluation.protocol.sweeps import KINDS
from robustjax.evaluation.verdict.trial import BUDGETS

ATTACKS = flags.DEFINE_list(
    "attacks", None, "Attacks, in the order in which they run; by default clean,fgsm,pgd20,cw,pgd100, of a sweep pgd20."
)
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", None, "Only the first so many images.", lower_bound=1)
SPLIT = flags.DEFINE_string("split", "test", "Split of the data set.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by robust validation accuracy), last, or a step.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 500, "Images at a time, over all devices.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Random seed of the attacks.")
BUDGET = flags.DEFINE_enum("budget", "quick", list(BUDGETS), "Of the adaptive attacks and the checks around them.")
TRANSFER_FROM = flags.DEFINE_string(
    "transfer_from", None, "Folder of another run on the same data, from whose network adaptive attacks transfer."
)
SWEEP = flags.DEFINE_enum("sweep", None, KINDS, "Accuracy against epsilon, or against the steps of an attack.")
DEFENSE = flags.DEFINE_string("defense", None, "Evaluate with sap or kwta, as in sap:fraction=0.5, or with none.")
EOT_SAMPLES = flags.DEFINE_integer(
    "eot_samples", None, "Draws over which attacks average a stochastic network; by default 20.", lower_bound=1
)
DRAWS = flags.DEFINE_integer(
    "draws", None, "Fresh draws that classify each image of a stochastic network; by default 10.", lower_bound=1
)
PREDICTION_DRAWS = flags.DEFINE_integer(
    "prediction_draws", None, "Draws whose probabilities one prediction averages; by default 1.", lower_bound=1
)


def main() -> int:
    """Runs the evaluation that the flags describe."""
    cli.join_hosts()
    options = Options(
        workdir=cli.WORKDIR.value,
        attacks=ATTACKS.value,
        num_examples=NUM_EXAMPLES.value,
        split=SPLIT.value,
        checkpoint=CHECKPOINT.value,
        batch_size=BATCH_SIZE.value,
        seed=SEED.value,
        budget=BUDGET.value,
        transfer_from=TRANSFER_FROM.value,
        sweep=SWEEP.value,
        defense=DEFENSE.value,
        eot_samples=EOT_SAMPLES.value,
        num_draws=DRAWS.value,
        prediction_draws=PREDICTION_DRAWS.value,
    )
    try:
        evaluate_run(options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the next batch")
        return 130
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    cli.run(main)
