"""benchmarks/mutants.py on toys: what it makes, and whether it tells tests that notice from tests that do not."""

import ast
import importlib
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).resolve().parents[1]
TOY = b'''"""A toy with one of everything: 1 + 1 here is text."""

import typing

import numpy as np

if typing.TYPE_CHECKING:
    Number = int | float
FACTOR = 3.0  # 2 + 2 here is a comment
SEED = 7


def scaled(x: "1 + 1", *, least=0, whole: bool = False) -> float:
    """Doctest text, which is none of its business.

    >>> scaled(2.0)
    6.0
    """
    if not isinstance(x, float):
        raise TypeError(f"must be above {1 + 1}, got {x}" + "9")
    value = (
        FACTOR * x  # the * of this comment - or its -
        + least
    )
    if x < least or whole and x != -1:
        value = min(value, -x)
    return value if x >= 0 else -value


def chosen(a, b):
    rows = np.where(a > b, a, b - 1)
    rows -= np.sum(rows[:, 0:-1], axis=-1) / 2
    mask = (a == b) & ~(b <= 0)
    return rows, mask, " ".join(["x"] + ["y"]), np.random.default_rng([1, 2]).permutation(3).argmin()
'''


@pytest.fixture(scope="module")
def program():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE / "benchmarks")
        yield importlib.import_module("mutants")


@pytest.fixture(scope="module")
def rules(program):
    return importlib.import_module("mutants_rules")


def test_every_rule_gives_another_valid_program_and_changes_nothing_else(rules):
    made = rules.generate("toy.py", TOY)
    assert {mutant.rule for mutant in made} == {
        *("constant", "sign", "term", "comparison", "extreme", "logic", "negation", "branch")
    }
    trees = set()
    for mutant in made:
        changed = mutant.applied(TOY)
        assert TOY[mutant.start : mutant.stop].decode() == mutant.before
        assert changed.startswith(TOY[: mutant.start]) and changed.endswith(TOY[mutant.stop :])
        line = TOY.decode().splitlines()[mutant.line - 1]
        assert line[mutant.column - 1 :].startswith(mutant.before.splitlines()[0])
        trees.add(ast.dump(ast.parse(changed)))
    assert len(trees) == len(made) and ast.dump(ast.parse(TOY)) not in trees
    texts = [f"{mutant.line}: {' '.join(mutant.before.split())} -> {mutant.after}" for mutant in made]
    for wanted in (
        "9: 3.0 -> 4.5",
        "13: 0 -> 1",
        "13: False -> True",
        "22: * -> /",
        "23: + -> -",
        "25: < -> >=",
        "25: and -> or",
        "26: min -> max",
        "26: -x -> (x)",
        "27: value if x >= 0 else -value -> (-value) if (x >= 0) else (value)",
        "31: b - 1 -> (b)",
        "32: -= -> +=",
        "32: -1 -> 0",
        "33: & -> |",
        "33: ~(b <= 0) -> (b <= 0)",
        "34: argmin -> argmax",
    ):
        assert wanted in texts
    # Neither text nor types, messages, imports and comments.
    assert not {mutant.line for mutant in made} & {1, 3, 5, 7, 8, 14, 15, 16, 17, 18, 19, 20}


def test_of_this_library_every_mutant_is_a_valid_program(program, rules):
    sources = program.read_sources(HERE)
    assert {"robustjax/attacks/_apgd.py", "robustjax/objectives.py", "robustjax/training/step.py"} <= set(sources)
    assert "robustjax/training/loop.py" not in sources
    drawn = rules.choose(sources, 100, 0)
    assert len(drawn) == 100 == len(set(map(str, drawn)))
    for mutant in drawn:
        compile(mutant.applied(sources[mutant.file]), mutant.file, "exec")


def test_the_draw_depends_on_the_seed_alone_and_every_file_has_its_part(rules):
    sources = {f"{name}.py": TOY.replace(b"FACTOR", name.encode().upper()) for name in ("one", "two", "three")}
    drawn = rules.choose(sources, 30, 1)
    assert drawn == rules.choose(dict(reversed(sources.items())), 30, 1) == sorted(drawn)
    assert drawn != rules.choose(sources, 30, 2)
    assert all(sum(mutant.file == file for mutant in drawn) == 10 for file in sources)
    assert set(rules.choose(sources, 15, 1)) < set(drawn)


@pytest.fixture
def project(tmp_path):
    """A package with bugs to be noticed, one that nobody can notice, one that nobody does, and a loop without end."""
    (tmp_path / "project" / "toy").mkdir(parents=True)
    (tmp_path / "project" / "tests").mkdir()
    root = tmp_path / "project"
    (root / "toy" / "__init__.py").write_text("")
    (root / "toy" / "code.py").write_text(
        "def largest(a, b):\n"
        "    return a if a > b else b\n\n\n"
        "def count(n):\n"
        "    i = 0\n"
        "    while i != n:\n"
        "        i += 1\n"
        "    return i * 2\n\n\n"
        "def unseen(a):\n"
        "    return a + 1\n"
    )
    (root / "toy" / "sizes.py").write_text("LARGE = 10\n")
    (root / "tests" / "test_code.py").write_text(
        "import pytest\nfrom toy.code import count, largest\n\n\n"
        "@pytest.fixture(scope='module')\ndef counted():\n    return count(3)\n\n\n"
        "def test_largest():\n    assert largest(1, 2) == largest(2, 1) == 2\n\n\n"
        "def test_count(counted):\n    assert counted == 6\n\n\n"
        "def test_broken():\n    assert largest(2, 2) == 3\n"
    )
    (root / "tests" / "test_size.py").write_text(
        "from toy import sizes\n\n\ndef test_large():\n    assert sizes.LARGE == 10\n"
    )
    return root


def test_it_tells_what_the_tests_notice_and_goes_on_where_it_was(
    program, rules, project, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(program, "PATIENCE", 2.0)
    before = {path: path.read_bytes() for path in project.rglob("*.py")}
    wanted = [(1, "10", "11"), (2, ">", ">="), (2, ">", "<="), (8, "+=", "-="), (9, "2", "3"), (13, "+", "-")]

    def drawn(sources, count, seed):
        made = [mutant for file, source in sources.items() for mutant in rules.generate(file, source)]
        return [mutant for mutant in made if (mutant.line, mutant.before, mutant.after) in wanted]

    monkeypatch.setattr(program, "choose", drawn)

    def run(**changes):
        options = {"patterns": ["toy/**.py"], "count": 9, "seed": 0, "again": False} | changes
        program.run(project, tmp_path / "coverage.json", **options)
        return recorded(program.read_sources(project, ["toy/**.py"])), capsys.readouterr().out

    def recorded(sources):
        return program.Records(project, sources)

    def counts(text):
        """Name -> killed, timeout, equivalent, survived, uncovered."""
        rows = [line.split() for line in text.partition("\n\n")[0].splitlines()[1:]]
        return {name: list(map(int, numbers)) for name, *numbers in rows}

    records, printed = run()
    found = {(record["line"], record["before"], record["after"]): record for record in records.all}
    assert {place: record["outcome"] for place, record in found.items()} == dict(
        zip(wanted, ("killed", "survived", "killed", "timeout", "killed", "uncovered"), strict=True)
    )
    assert found[2, ">", "<="]["by"] == "tests/test_code.py::test_largest"
    assert found[1, "10", "11"]["by"] == "tests/test_size.py::test_large"  # which names the file
    assert found[9, "2", "3"]["by"] == "tests/test_code.py::test_count"  # by way of its fixture
    assert "left out: tests/test_code.py::test_broken" in printed
    assert {path: path.read_bytes() for path in project.rglob("*.py")} == before
    assert not any(Path(tempfile.gettempdir()).glob("mutants*/copy/toy"))

    # Nothing is run twice, unless it is asked for, and then not what no test can notice.
    assert "of which 0 have no record" in run()[1]
    sources = program.read_sources(project, ["toy/**.py"])
    (project / "results" / "mutants_equivalent.json").write_text(
        '[{"definition": "largest", "code": "return a if a > b else b", "at": 14, "rule": "comparison", "before": ">",'
        ' "after": ">=", "reason": "Of two equal numbers either is the larger one."}]'
    )
    text = "\n".join(program.report(recorded(sources)))
    assert counts(text)["all"] == [3, 1, 1, 0, 1]
    assert "toy/code.py:13:14: sign: + -> - (uncovered)\n    return a + 1" in text
    assert "Of two equal numbers either is the larger one." in text
    assert "no longer there" not in text
    assert "2 are to be run" in run(again=True)[1]

    # Another layout and documentation are the same code, also in another file, and then only there.
    spaced = b'"""Numbers."""\n\n' + sources["toy/code.py"].replace(
        b"    i = 0\n", b'    """Counts."""\n\n    # From\n    i = (\n        0\n    )\n'
    )
    assert "\n".join(program.report(recorded({"toy/code.py": spaced}))).count("timeout") == 1
    moved = {"toy/code.py": b"", "toy/other.py": spaced}
    text = "\n".join(program.report(recorded(moved)))
    assert counts(text)["toy/other.py"] == [2, 1, 1, 0, 1]
    assert "Of two equal numbers either is the larger one." in text
    twice = "\n".join(program.report(recorded(moved | sources)))
    assert set(counts(twice)) == {"toy/code.py", "toy/sizes.py", "constant", "comparison", "sign", "all"}
    assert counts(twice)["comparison"] == [1, 0, 1, 0, 0]

    # Another function is another one; the others keep their records.
    changed = {"toy/code.py": sources["toy/code.py"].replace(b"i * 2", b"2 * i")}
    text = "\n".join(program.report(recorded(changed)))
    assert counts(text)["all"] == [1, 0, 1, 0, 1]
    assert "3 records are of code or tests that are no longer there." in text

    # What a test noticed is not known any more when the test has gone.
    tests = project / "tests" / "test_code.py"
    tests.write_text(tests.read_text().replace("def test_largest", "def test_larger"))
    text = "\n".join(program.report(recorded(sources)))
    assert counts(text)["all"] == [2, 1, 1, 0, 1]
    assert "1 records are of code or tests that are no longer there." in text
    found = {(record["line"], record["after"]): record for record in run()[0].all}
    assert len(found) == 6 and found[2, "<="]["by"] == "tests/test_code.py::test_larger"


@pytest.mark.parametrize(
    ("status", "tests", "outcome"),
    [
        (0, {"a": ["passed", 1.0]}, ("survived", None)),
        (1, {"a": ["passed", 1.0], "b": ["failed", 1.0]}, ("killed", "b")),
        (124, {"a": ["timeout", 9.0]}, ("timeout", "a")),
        (1, {}, ("killed", "import")),  # pytest could not even read the tests
        (2, {}, ("killed", "import")),
        (-11, {}, ("killed", "signal 11")),
        (None, {}, ("timeout", None)),
        (5, {}, None),
    ],
)
def test_what_became_of_a_mutant_is_read_from_pytest(program, rules, tmp_path, status, tests, outcome):
    copy = SimpleNamespace(root=tmp_path, pytest=lambda *_, **__: (status, {"tests": tests, "output": "said"}))
    mutant = rules.generate("toy.py", TOY)[0]
    if outcome is None:
        with pytest.raises(RuntimeError, match="no test ran, exit status 5: said"):
            program._meet(copy, mutant, TOY, {"a": 1.0})
    else:
        assert program._meet(copy, mutant, TOY, {"a": 1.0})[:2] == outcome
        assert program._meet(copy, mutant, TOY, {})[0] == "uncovered"
    assert (tmp_path / "toy.py").read_bytes() == TOY


def test_a_test_is_there_by_its_file_and_name_whatever_its_parameters(program, tmp_path):
    records = importlib.import_module("mutants_records")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        "def test_plain(): pass\n\nclass ItTest:\n    def test_inside(self): pass\n"
    )
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("class Thing:\n    def method(self): pass\n")
    for name in (
        *("tests/test_it.py::test_plain", "tests/test_it.py::test_plain[a::b-(1)]", "tests/test_it.py"),
        *("tests/test_it.py::ItTest::test_inside", "tests/test_it.py::ItTest::test_inside_('a', 2)__with_jit"),
        *("tests/test_it.py::ItTest::test_inside__without_jit", "pack/__init__.py::pack", "signal 11", None),
        *("pack/__init__.py::pack.Thing", "pack/__init__.py::pack.Thing.method"),
    ):
        assert records._is_there(tmp_path, name), name
    for name in (
        *("tests/test_it.py::test_other", "tests/test_it.py::test_inside", "tests/test_other.py::test_plain"),
        *("tests/test_it.py::test_plainer", "pack/__init__.py::pack.other"),
    ):
        assert not records._is_there(tmp_path, name), name
