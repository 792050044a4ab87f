"""The notebooks: each a program beside its executed pair, and the outputs are those of this code."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted((ROOT / "notebooks").glob("*.py"))


def _cells(program):
    """The cells of a program in jupytext's percent format, as (is code, source)."""
    body = program.read_text().split("# ---\n", 2)[2]
    cells = []
    for part in re.split(r"^# %%", body, flags=re.MULTILINE)[1:]:
        heading, _, source = part.partition("\n")
        code = "[markdown]" not in heading
        lines = source.strip("\n").split("\n")
        cells.append((code, "\n".join(lines if code else [re.sub("^# ?", "", line) for line in lines])))
    return cells


def test_there_are_five():
    assert [program.stem[0] for program in PROGRAMS] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_notebook_is_its_program_executed(program):
    notebook = json.loads(program.with_suffix(".ipynb").read_text())
    theirs = [(cell["cell_type"] == "code", "".join(cell["source"])) for cell in notebook["cells"]]
    assert theirs == _cells(program), "run launch/notebooks.sh"
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    assert outputs and not [output for output in outputs if output["output_type"] == "error"]
    ast.parse(program.read_text())


def test_the_first_one_runs_as_a_program():
    environment = os.environ | {"MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAMS[0])], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    clean, attacked = map(float, re.search(r"clean ([\d.]+)%, under PGD-20 ([\d.]+)%", done.stdout).groups())
    assert clean > 85 and attacked < clean / 2


@pytest.mark.notebooks
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_notebook_executes_in_a_fresh_kernel(program, monkeypatch):
    import jupytext
    import nbclient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = jupytext.read(program)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")
