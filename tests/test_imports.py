"""Imports run one way only, over all files, and importing costs nothing; read off the sources and a fresh process."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "robustjax"

# From the bottom up: a room imports only from itself and from rooms on lines before its own.
FLOORS = (
    ("types", "version"),
    ("ops", "runtime", "statistics"),
    ("layers",),
    ("transforms",),
    ("attacks", "defenses", "data"),
    ("models", "objectives"),
    ("training",),
    ("evaluation.protocol",),
    ("evaluation.verdict",),
    ("registry",),
    ("config",),
    ("build",),
    ("planning",),
    ("runs",),
    ("interop",),
    ("evaluation",),
    ("analysis",),
    ("cli",),
    ("train", "evaluate", "report"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Rooms of one floor that know of each other all the same.
NEIGHBOURS = {("models", "defenses")}


def _modules():
    """Dotted name -> path, of every file of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("robustjax", *path.relative_to(PACKAGE).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(_modules())


def _imports(path):
    """The modules of ours that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "robustjax":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def _and_packages(module):
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(2, len(parts) + 1)]


def _room(module):
    """The longest prefix that FLOORS names."""
    parts = module.split(".")[1:]
    if parts[-1:] == ["__main__"]:  # a room's own command stands above all rooms, beside the other commands
        return "train"
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in FLOOR_OF), None)


def test_every_room_is_known():
    assert {module for module in MODULES if module != "robustjax" and _room(module) is None} == set()


def test_no_import_cycle_over_all_files():
    # Importing a module first imports the packages that hold it.
    graph = {
        module: {
            package
            for other in _imports(path)
            for package in _and_packages(other)
            if package != module and not module.startswith(f"{package}.")
        }
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", [module for module in MODULES if module != "robustjax"])
def test_imports_run_downwards_only(module):
    room = _room(module)
    above = {
        other
        for other in map(_room, _imports(MODULES[module]))
        if other is not None and other != room and FLOOR_OF[other] >= FLOOR_OF[room]
    }
    assert not {other for other in above if (room, other) not in NEIGHBOURS}, f"{module} imports {above}"


def test_evaluation_does_not_import_training():
    for module, path in MODULES.items():
        if module.startswith("robustjax.evaluation"):
            assert not any(other.startswith("robustjax.training") for other in _imports(path)), module


def test_flax_stays_where_layers_are_made():
    for module, path in MODULES.items():
        if module.split(".")[1:2] not in (["layers"], ["models"], ["defenses"], ["interop"]):
            assert "import flax" not in path.read_text() and "from flax" not in path.read_text(), path


def test_importing_everything_loads_no_tensorflow_and_starts_no_backend():
    program = (
        "import robustjax.train, robustjax.evaluate, robustjax.report, robustjax.data, sys; "
        "import robustjax.interop.__main__, robustjax.analysis.__main__; "
        "from jax._src import xla_bridge as bridge; assert not bridge.backends_are_initialized(); "
        # tensorboardX imports PyTorch where it is installed.
        "heavy = {'tensorflow', 'clu', 'torch', 'tensorboardX'}; "
        "found = {name.split('.')[0] for name in sys.modules} & heavy; assert not found, found"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
