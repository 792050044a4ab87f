"""The documentation: every page is reachable, every public name has a docstring, and every flag is explained."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from robustjax.evaluation import red_flags

DOCS = Path(__file__).resolve().parents[1] / "docs"
REFERENCE = {
    module
    for page in (DOCS / "reference").glob("*.md")
    for module in re.findall(r"automodule:: (\S+)", page.read_text())
}


def test_every_page_is_in_the_contents():
    contents = (DOCS / "index.md").read_text()
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.glob("*.md")]
    pages += [page.relative_to(DOCS).with_suffix("").as_posix() for page in (DOCS / "reference").glob("*.md")]
    assert [page for page in pages if page != "index" and not re.search(rf"^{page}$", contents, re.MULTILINE)] == []


@pytest.mark.parametrize(("records", "row"), [("training_options", "| at | 3 |"), ("ablations", "| cas_final | 1 |")])
def test_the_tables_of_training_options_are_those_of_their_records(records, row):
    root, program = DOCS.parent, "benchmarks/training_options.py"
    command = [sys.executable, program, "--table", f"--records=results/{records}.json"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    printed = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout
    assert row in printed and printed.strip() in (DOCS / "training_options.md").read_text()


def test_every_flag_is_explained():
    explained = re.findall(r"^### (\w+)$", (DOCS / "flags.md").read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(red_flags.NAMES)


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_every_public_name_has_a_docstring(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    own = [
        public
        for public, value in vars(module).items()
        if not public.startswith("_") and getattr(value, "__module__", None) == name
    ]
    for public in getattr(module, "__all__", own):
        value = getattr(module, public)
        if callable(value) and inspect.getmodule(value):
            assert (inspect.getdoc(value) or "").strip(), f"{name}.{public}"


def test_every_package_that_users_import_is_in_the_reference():
    packages = {f"robustjax.{name}" for name in (
        "attacks", "evaluation", "defenses", "models", "transforms", "interop", "analysis", "runs", "config", "data",
        "objectives", "types", "statistics", "ops",
    )}  # fmt: skip
    assert packages <= REFERENCE
