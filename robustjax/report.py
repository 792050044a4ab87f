"""Sets networks side by side: ``python -m robustjax.report --workdirs=DIR[,DIR...] --output=report.html``.

A DIR is the folder of a run, or the ``--output`` of an evaluation of a ``--model``. Runs that differ only in the seed
share a row. Nothing is run: the report reads what ``train``, ``evaluate`` and ``analysis`` wrote to the folders.
Evaluate with ``--sweep=epsilon`` for curves, with ``--attacks=adaptive`` for flags, and with
``--save_images=DIR/evaluation/images.npz`` (for a model ``DIR/images.npz``) for a gallery. Prints the table in Markdown
and writes one page, which loads nothing; ``robustjax/analysis/page.py`` makes it.
"""

from __future__ import annotations

from absl import flags

from robustjax import cli
from robustjax.analysis import page, summary
from robustjax.runtime import files
from robustjax.types import InputError

WORKDIRS = flags.DEFINE_list("workdirs", None, "Folders of runs that were evaluated, or the --output of a --model.")
OUTPUT = cli.define_output("The page to write, by default report.html.")


def main() -> int:
    """Writes the report that the flags describe."""
    if not WORKDIRS.value or "" in WORKDIRS.value:
        given = ",".join(WORKDIRS.value or ())
        raise InputError(f"--workdirs must be folders of evaluations, separated by commas, got {given!r}; name each")
    rows = summary.summarise(WORKDIRS.value)
    output = files.place("report.html" if OUTPUT.value is None else OUTPUT.value)
    if not output.parent.is_dir():
        raise InputError(f"--output {output} cannot be written: there is no folder {output.parent}; make it first")
    if output.is_dir():
        raise InputError(f"--output must be a file, got the folder {output}; name a file in it")
    files.write(output, page.page(rows))
    print(page.markdown(rows))
    print(f"\nreport: {output}")
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdirs"])
    cli.run(main)
