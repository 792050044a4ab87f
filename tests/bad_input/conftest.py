"""Wrong input of every kind: each is refused with one line that names the cause, and leaves nothing behind."""

import os
import sys
import warnings

import pytest
from absl import flags
from absl.testing import flagsaver

from bad_input.refusals import one_line
from robustjax import cli
from robustjax.training import loop


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """`(module, arguments, cause)` runs a command line of absl in this process, as `python -m` would."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # or the command would change this process's cache
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop.step, "make_dispatch", lambda *arguments: pytest.fail("it was accepted, and trains"))

    def run(module, arguments, cause):
        before = sorted(os.walk(tmp_path))
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        with flagsaver.flagsaver(), warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            warnings.simplefilter("ignore", DeprecationWarning)  # of how ml_collections reads config files
            cli.run(module.main)
        captured = capsys.readouterr()
        assert ended.value.code == 2, captured.out + captured.err
        assert captured.out == "" and captured.err.startswith("error: ")
        one_line(captured.err, cause)
        assert sorted(os.walk(tmp_path)) == before

    yield run
    flags.FLAGS.unparse_flags()
