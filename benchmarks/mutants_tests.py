"""Runs tests in a copy of the checkout, and knows which of them reach which lines."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mutants_records import function_of
from mutants_rules import Mutant

from robustjax.runtime import files, process, progress
from robustjax.types import InputError

HERE = Path(__file__).resolve().parent
START = 300.0  # seconds that Python and the tests may take to load
# Tests of other things, or by way of processes of their own, in which nothing is measured.
APART = (
    "tests/bad_input",
    "tests/data",
    "tests/interop",
    "tests/runtime",
    "tests/test_commands",
    "tests/test_faults",
    "tests/test_launch",
    "tests/test_mutants",
)


class Copy:
    """A copy of a checkout, in which tests run while the checkout is worked on."""

    def __init__(self, root: Path):
        self.folder = Path(tempfile.mkdtemp(prefix="mutants"))
        self.root = self.folder / "copy"
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=root, capture_output=True, check=False)
        if listed.returncode:  # no git checkout
            shutil.copytree(root, self.root, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (root / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, self.root / name)

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def pytest(
        self, paths: Sequence[str], *, limits: dict[str, float] | None = None, data: Path | None = None
    ) -> tuple[int | None, dict[str, Any]]:
        """Exit status, None after much more than all limits, and what the plugin reports, empty where it could not."""
        work = Path(tempfile.mkdtemp(dir=self.folder))
        job, result = work / "job.json", work / "result.json"
        job.write_text(json.dumps({"limits": limits, "measure": data is not None, "result": str(result)}))
        settings = work / "coveragerc"
        settings.write_text(f"[run]\nsource = {self.root}\n")
        covered = ["coverage", "run", f"--rcfile={settings}", f"--data-file={data}", "-m"] if data else []
        command = [sys.executable, "-m", *covered, "pytest", "-p", "mutants_plugin", "-p", "no:cacheprovider"]
        command += ["-q", "--tb=no", "--doctest-modules", "-m", "not slow", *([] if data else ["-x"]), *paths]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(self.root), str(HERE)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MUTANTS_JOB": str(job),
            "TMPDIR": str(work),
            "JAX_COMPILATION_CACHE_DIR": str(process.cache_folder() / "mutants"),
            # Only what the unchanged code compiles is kept.
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1" if data else "1e9",
        }
        with open(work / "output", "wb") as output:
            running = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            status = running.wait(None if limits is None else sum(limits.values()) + START)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)  # with all that it has started
            running.wait()
        report = json.loads(result.read_text()) if result.exists() else {}
        report["output"] = " / ".join((work / "output").read_text(errors="replace").strip().splitlines()[-5:])
        shutil.rmtree(work, ignore_errors=True)
        return status, report


class Coverage:
    """test -> seconds, and file -> line -> tests, of each file of tests, or of sources with examples."""

    def __init__(self, path: Path, sources: dict[str, bytes]):
        self.path, self.sources = path, sources
        self.root = Path()  # of the tests' files
        self.files: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, copy: Copy, paths: Sequence[str]) -> None:
        """Measures the files that are new, or of which something has changed."""
        self.root = copy.root
        wanted = []
        for path in paths:
            place = self.root / path
            found = [place] if place.is_file() else sorted(place.rglob("test_*.py"))
            if not found:
                raise InputError(f"`tests` must be files or folders with tests, got {path!r}")
            wanted += [str(file.relative_to(self.root)) for file in found]
        wanted = [file for file in dict.fromkeys(wanted) if not file.startswith(APART)]
        due = [file for file in wanted if not self._is_current(file)]
        with progress.Progress("which tests reach which lines", total=len(due)) as bar:
            for done, file in enumerate(due, 1):
                self.files[file] = self._measured(copy, file)
                files.write(self.path, json.dumps(self.files, separators=(",", ":")))
                bar.update(done, file)
        self.files = {file: self.files[file] for file in wanted}

    def _is_current(self, tests: str) -> bool:
        known = self.files.get(tests)
        return known is not None and known["digest"] == self._digest(tests, known["lines"])

    def _digest(self, tests: str, reached: Sequence[str]) -> str:
        """Of the tests, of the files that help them, and of the sources in which they executed something."""
        helpers = [] if tests in self.sources else sorted((self.root / tests).parent.glob("*.py"))
        helpers = [path for path in helpers if not path.name.startswith("test_")]
        parts = [path.read_bytes() for path in [self.root / tests, *helpers]]
        parts += [self.sources.get(file, b"") for file in sorted(reached)]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

    def _measured(self, copy: Copy, tests: str) -> dict[str, Any]:
        import coverage  # only here: records can be read without it

        data = copy.folder / "coverage.data"
        data.unlink(missing_ok=True)
        status, report = copy.pytest([tests], data=data)
        if status not in (0, 1, 5) or "tests" not in report:
            raise InputError(f"`tests` must run, got exit status {status} from {tests}: {report['output']}")
        # A test that fails, or is skipped, without any change can tell nothing.
        seconds = {name: spent for name, (outcome, spent) in report["tests"].items() if outcome == "passed"}
        number = {name: i for i, name in enumerate(seconds)}
        users: dict[str, list[int]] = {}
        for name, shared in report["fixtures"].items():
            for fixture in shared:
                if name in number:
                    users.setdefault(fixture, []).append(number[name])
                    # Alone it has to wait for what the others have found ready.
                    seconds[name] += report["shared"].get(fixture, 0.0)
        measured = coverage.CoverageData(str(data))
        measured.read()
        lines = {}
        for file, source in self.sources.items():
            inside, by_line = _function_lines(source), {}
            for line, contexts in measured.contexts_by_lineno(str((self.root / file).resolve())).items():
                reaching = {number[name] for name in contexts if name in number}
                reaching.update(i for name in contexts for i in users.get(name, ()))
                if reaching and line in inside:
                    by_line[str(line)] = sorted(reaching)
            if by_line:
                lines[file] = by_line
        return {
            "digest": self._digest(tests, list(lines)),
            "tests": list(seconds),
            "seconds": list(seconds.values()),
            "lines": lines,
            "failed": sorted(name for name, (outcome, _) in report["tests"].items() if outcome == "failed"),
        }

    def tests(self, mutant: Mutant, most_seconds: float, noticed: Counter[str]) -> dict[str, float]:
        """node id -> seconds of the tests that reach a mutant, in the order in which they should run.

        Quick ones come first, those that were written for the file, and those that have `noticed` other mutants of it;
        of each function with parameters one case before the other cases, which are likely to see no more. What is in a
        file without functions is used by others: then it is the tests of the files that name it.
        """
        found: dict[str, list[tuple[float, float, str]]] = {}
        stem = Path(mutant.file).stem.strip("_")
        for file, known in self.files.items():
            lines = known["lines"].get(mutant.file, {})
            weight = 0.2 if stem in Path(file).stem else 1.0
            reaching = {i for line in mutant.reached for i in lines.get(str(line), ())}
            if not mutant.reached and stem in (self.root / file).read_text():
                reaching = set(range(len(known["tests"])))
            for i in reaching:
                name, seconds = known["tests"][i], known["seconds"][i]
                function = function_of(name)
                found.setdefault(function, []).append((weight * seconds / (1 + noticed[function]), seconds, name))
        turns = [(turn, *test) for tests in found.values() for turn, test in enumerate(sorted(tests))]
        ordered, spent = {}, 0.0
        for _, _, seconds, name in sorted(turns):
            if spent + seconds <= most_seconds or not ordered:
                ordered[name] = seconds
                spent += seconds
        return ordered


def _function_lines(source: bytes) -> set[int]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    bodies = [node.body if isinstance(node.body, list) else [node.body] for node in functions]
    return {line for body in bodies for line in range(body[0].lineno, body[-1].end_lineno + 1)}
