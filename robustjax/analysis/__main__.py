"""Measures what happens inside a run's network: ``python -m robustjax.analysis --workdir=DIR [--against=DIR2,...]``.

Writes DIR/analysis/<figure>.png and DIR/analysis/analysis.json, which holds every scalar with its interval, and prints
the scalars. ``--against`` compares with other runs on the same data, such as a standard network with a defended one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from absl import flags

from robustjax import cli
from robustjax.analysis._analyse import TITLES, Analysis, analyse
from robustjax.evaluation.protocol import tables
from robustjax.runtime import compiler, files
from robustjax.types import InputError

OPTIONS = flags.FlagValues()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=OPTIONS)
AGAINST = flags.DEFINE_list("against", [], "Folders of other runs to compare with.", flag_values=OPTIONS)
OUTPUT = flags.DEFINE_string("output", None, "Folder of the figures; by default DIR/analysis.", flag_values=OPTIONS)
NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", 500, "Use the first N test images.", lower_bound=2, flag_values=OPTIONS
)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last, or a step; of each run.", flag_values=OPTIONS)
SEED = flags.DEFINE_integer(
    "seed", 0, "Random seed of attacks and draws.", lower_bound=0, upper_bound=2**31 - 1, flag_values=OPTIONS
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one line on stderr for a mistake of the user."""
    return cli.call(_main, arguments, options=OPTIONS, required=["workdir"])


def _main() -> None:
    compiler.check()
    if "" in AGAINST.value:
        raise InputError(f"--against must be folders separated by commas, got {','.join(AGAINST.value)!r}; name each")
    workdirs = [files.place(path) for path in (str(WORKDIR.value), *AGAINST.value)]
    if OUTPUT.value == "":
        raise InputError("--output must be a folder, got ''; give one, or leave it out")
    output = files.place(OUTPUT.value or workdirs[0] / "analysis")
    if OUTPUT.value and output.exists() and not output.is_dir():
        raise InputError(f"output must be a folder, got the file {output}; give another")
    if OUTPUT.value or workdirs[0].is_dir():
        files.check_target("--output" if OUTPUT.value else "--workdir", output)
    found = analyse(
        workdirs, num_examples=NUM_EXAMPLES.value, checkpoint=CHECKPOINT.value, seed=SEED.value, progress=True
    )
    found.save(output)
    show(found)
    print(f"figures: {output}; docs/read_the_figures.md says what each scalar is, as analysis.json does")


def show(found: Analysis) -> None:
    """Prints the scalars of an analysis, a row each."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{found.conditions['num_examples']:,} images of {found.conditions['dataset']}")
    for heading in ("figure", "network", "scalar", "value", "95 % interval"):
        table.add_column(heading, justify="right" if heading in ("value", "95 % interval") else "left")
    for figure in TITLES:
        for name, scalars in found.estimates.get(figure, {}).items():
            for scalar, estimate in scalars.items():
                value, low, high = (
                    f"{number:.4g}" if math.isfinite(number) else "" for number in (estimate.value, *estimate.interval)
                )
                # Undefined here, such as the steps at which half of the accuracy is left where more is.
                table.add_row(figure, escape(name), scalar, value or "-", f"{low} to {high}" if low and high else "")
    tables.show(table)


if __name__ == "__main__":
    sys.exit(main())
