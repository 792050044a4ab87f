"""What is shipped: a wheel with the configs, a source distribution with its tests, and what both depend on."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest

from robustjax import cli
from robustjax.types import InputError
from robustjax.version import __version__

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
# Modules that come with another package, whose version they share, and packages that others need and forget to declare.
COMES_WITH = {"jaxlib": "jax"}
NEEDED_BY_OTHERS = {"importlib-resources"}  # tensorflow-datasets imports it
TOOLS = {"basedpyright", "coverage", "pytest-xdist", "ruff", "setuptools"}  # run, not imported


def _requirements():
    """Extra ("" for none) -> names of the packages that setup.cfg declares."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    declared = {"": setup["options"]["install_requires"], **setup["options.extras_require"]}
    name = re.compile(r"[A-Za-z0-9_.-]+")
    return {
        extra: {name.match(line)[0].lower().replace("_", "-") for line in lines.split("\n") if line.strip()}
        for extra, lines in declared.items()
    }


def _imported(folder):
    """Packages that the files of a folder import, wherever in them the import stands."""
    packages = {}
    for module, distributions in metadata.packages_distributions().items():
        packages[module] = distributions[0].lower().replace("_", "-")
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"robustjax", "bad_input", "benchmarks"}
    modules = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.split(".")[0])
    return {
        COMES_WITH.get(module, packages.get(module, module.lower()))
        for module in modules - own - set(sys.stdlib_module_names)
    }


def test_the_declared_dependencies_are_those_imported():
    requirements = _requirements()
    optional = requirements["torch"] | requirements["onnx"] | requirements["zoo"]
    assert _imported("robustjax") == (requirements[""] | optional) - NEEDED_BY_OTHERS
    for_tests = requirements["dev"] - TOOLS
    allowed = for_tests | requirements[""] | optional | requirements["notebooks"]
    assert for_tests <= _imported("tests") <= allowed


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and a source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(
        ROOT, folder / "source", ignore=shutil.ignore_patterns(".git", ".venv*", "*.egg-info", "__pycache__", "build")
    )
    sdist = "import setuptools.build_meta as build; build.build_sdist('../dist')"
    wheel = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir=../dist", "."]
    for command in (["-c", sdist], ["-m", *wheel]):
        done = subprocess.run(
            [sys.executable, *command], cwd=folder / "source", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


def test_the_wheel_holds_the_package_and_the_configs_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "robustjax").rglob("*.py")}
    expected = ours | {f"robustjax/configs/{name}.py" for name in CONFIGS} | {"robustjax/py.typed"}
    assert expected <= names
    assert {name.split("/")[0] for name in names} == {
        "robustjax",
        f"robustjax-{__version__}.dist-info",
    }


def test_the_source_distribution_holds_its_tests_and_what_they_read(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for folder in ("benchmarks", "configs", "docs", "launch", "notebooks", "results", "robustjax", "tests"):
        there = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        made = ("__pycache__", "docs/_build/", "docs/notebooks/", ".ipynb_checkpoints")  # and not part of the source
        assert {name for name in there if not any(part in name for part in made)} <= names, folder
    top = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg", "setup.py", ".ci/run"}
    assert top <= names


def test_a_bare_name_is_a_shipped_config_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in CONFIGS:
        assert cli.find_config(name) == ROOT / "configs" / f"{name}.py"
        for written in (f"{name}.py", f"configs/{name}.py"):
            assert cli.find_config(written) == ROOT / "configs" / f"{name}.py"
    (tmp_path / "configs").mkdir()
    for path in ("quickstart.py", "configs/quickstart.py"):  # a file that is here is meant by its path
        (tmp_path / path).write_text("")
        assert cli.find_config(path) == Path(path)
    assert cli.find_config("quickstart") == ROOT / "configs" / "quickstart.py"
    assert cli.find_config("configs/mine.py") == Path("configs/mine.py")
    assert cli.find_config("other/digits.py") == Path("other/digits.py")


@pytest.mark.parametrize(
    ("name", "named"), [("quickstrt", "nearest: quickstart"), ("cifar_at", "cifar10_at"), ("zzz", ", ".join(CONFIGS))]
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name, named):
    with pytest.raises(InputError) as caught:
        cli.find_config(name)
    assert repr(name) in str(caught.value) and named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_installed_wheel_trains_and_evaluates_in_an_empty_folder(built, tmp_path):
    """In an environment made anew, from the package index."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python, here = tmp_path / "venv" / "bin" / "python", tmp_path / "empty"
    (wheel,) = built.glob("*.whl")
    here.mkdir()
    # With the checkout in it pip would take the package for installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True, env=environment)

    def run(*arguments):
        command = [python, "-m", *arguments]
        return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)

    done = run("robustjax.train", "--config=quickstart", "--workdir=run", "--config.train.num_epochs=20")
    assert done.returncode == 0 and "trained 380 steps" in done.stdout, done.stderr
    done = run("robustjax.evaluate", "--workdir=run")
    assert done.returncode == 0 and "worst case" in done.stdout, done.stderr
    for config in ("digits:at_cas", "configs/quickstart.py"):
        done = run("robustjax.train", f"--config={config}", "--workdir=two", "--config.train.num_epochs=0")
        assert done.returncode == 2 and "train.num_epochs must be >= 1" in done.stderr
    assert [path.name for path in here.iterdir()] == ["run"]
