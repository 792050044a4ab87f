"""The rooms import one way only, and importing costs nothing; both read off the sources and a fresh process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "robustjax"

# room -> what it may import of ours, besides itself
ALLOWED = {
    "types": set(),
    "version": set(),
    "ops": {"types"},
    "convolution": {"types"},
    "attacks": {"types", "ops"},
    "defenses": {"types", "ops", "convolution"},
    "models": {"types", "ops", "convolution"},
    "objectives": {"types", "attacks"},
    "process": set(),
    "data": {"types", "process"},
    "interop": {"types", "defenses", "models"},
    "hosts": {"types"},
    "training": {"hosts", "types", "ops", "attacks", "defenses", "models", "objectives", "data"},
    "evaluation": {
        "version",
        "hosts",
        "types",
        "ops",
        "attacks",
        "defenses",
        "models",
        "objectives",
        "data",
        "training",
    },
    "analysis": {"evaluation", "types", "ops", "attacks", "defenses", "models", "objectives", "data", "training"},
}
COMMANDS = {"train", "evaluate", "report", "cli", "build", "config", "__init__"}  # where rooms are put together


def _rooms():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, parts[0]


def _imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "robustjax":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("robustjax."):
                    yield alias.name.split(".")[1]


def test_every_room_is_known():
    assert {room for _, room in _rooms()} <= ALLOWED.keys() | COMMANDS


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_lies_below_it(room):
    for path, of in _rooms():
        if of == room and path.name != "__main__.py":  # a room's own command puts rooms together
            above = set(_imported_rooms(path)) - ALLOWED[room] - {room}
            assert not above, f"{path} imports {above}"


def test_judging_does_not_import_the_training_loop():
    for path, room in _rooms():
        if room in ("evaluation", "analysis"):
            assert "training.loop" not in path.read_text().replace("robustjax.", ""), path


def test_flax_stays_in_models_and_defenses():
    for path, room in _rooms():
        if room not in ("models", "defenses", "interop", "build"):
            assert "import flax" not in path.read_text() and "from flax" not in path.read_text(), path


def test_importing_everything_loads_no_tensorflow_and_starts_no_backend():
    program = (
        "import robustjax.train, robustjax.evaluate, robustjax.report, robustjax.data, sys; "
        "import robustjax.interop.__main__; "
        "from jax._src import xla_bridge as bridge; assert not bridge.backends_are_initialized(); "
        "found = {name.split('.')[0] for name in sys.modules} & {'tensorflow', 'clu'}; assert not found, found"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
