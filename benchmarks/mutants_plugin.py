"""The pytest plugin of mutants.py: chooses and orders tests, and says of each what it needed and how it ended.

Reads JSON from the file that MUTANTS_JOB names: `limits`, node id -> seconds of the tests to run one after the other,
or null for all without limits; `measure`, whether coverage is told which test runs; `result`, where to write
node id -> [outcome, seconds], in measuring without the seconds of fixtures that several tests share; those follow, and
which test uses which.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

JOB = json.loads(Path(os.environ["MUTANTS_JOB"]).read_text())
SHARED = "shared by "  # context of a fixture that several tests share
outcomes: dict[str, list] = {}
fixtures: dict[str, list[str]] = {}
shared_seconds: dict[str, float] = {}


def pytest_collection_modifyitems(config, items):
    """Keeps the tests that were asked for, in their order."""
    if JOB["limits"] is not None:
        place = {name: i for i, name in enumerate(JOB["limits"])}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in place])
        items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Coverage counts for this test, and nothing that an earlier test left in a cache hides a line from it."""
    if JOB["measure"]:
        _forget()
        shared = getattr(item, "_fixtureinfo", None)
        shared = [] if shared is None else [one for found in shared.name2fixturedefs.values() for one in found]
        fixtures[item.nodeid] = [_name(one) for one in shared if one.scope != "function"]
        _context(item.nodeid)
    limit = (JOB["limits"] or {}).get(item.nodeid)
    timer = threading.Timer(limit or 0.0, _give_up, [item.nodeid, limit])
    if limit is not None:
        timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()
        if JOB["measure"]:
            _context("")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """What several tests share is covered by each of them."""
    if not JOB["measure"] or fixturedef.scope == "function":
        return (yield)
    name, test, began = _name(fixturedef), getattr(request, "_pyfuncitem", request.node).nodeid, time.monotonic()
    _context(name)
    try:
        return (yield)
    finally:
        _context(test)
        seconds = time.monotonic() - began
        shared_seconds[name] = max(seconds, shared_seconds.get(name, 0.0))
        # Reported as part of the test that needed it first.
        outcome, spent = outcomes.get(test, ["passed", 0.0])
        outcomes[test] = [outcome, spent - seconds]


def pytest_runtest_logreport(report):
    """Adds the phases of a test together."""
    outcome, seconds = outcomes.get(report.nodeid, ["passed", 0.0])
    outcomes[report.nodeid] = [report.outcome if outcome == "passed" else outcome, round(seconds + report.duration, 3)]


def pytest_sessionfinish():
    """Writes what was found."""
    _write()


def _give_up(name: str, limit: float) -> None:
    """Ends the process: what runs too long may never come back to Python."""
    outcomes[name] = ["timeout", limit]
    _write()
    os._exit(124)


def _write() -> None:
    Path(JOB["result"]).write_text(json.dumps({"tests": outcomes, "fixtures": fixtures, "shared": shared_seconds}))


def _name(fixturedef) -> str:
    return f"{SHARED}{fixturedef.baseid}::{fixturedef.argname}"


def _context(name: str) -> None:
    import coverage

    coverage.Coverage.current().switch_context(name)


def _forget() -> None:
    """Empties the caches of jax and of the modules in the working folder."""
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    here = os.getcwd() + os.sep
    for module in list(sys.modules.values()):
        if str(getattr(module, "__file__", None) or "").startswith(here):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()
