"""What stops a command in the middle: a pipe that is closed, a log on a full disk, a user's function that raises."""

import errno
import os
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from bad_input.refusals import one_line
from robustjax import cli
from robustjax.evaluation import _options
from robustjax.runtime import files
from robustjax.types import InputError

pytestmark = pytest.mark.bad_input


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: nothing more can be written: No space left"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")  # commands add a filter, which is undone with this one
def test_an_output_that_takes_no_more_ends_without_a_traceback(monkeypatch, capsys, error, status, said):
    silenced = []
    monkeypatch.setattr(cli, "_say_no_more", lambda: silenced.append(True))

    def main():
        raise error

    assert cli.call(main, [], options=flags.FlagValues()) == status
    assert silenced and capsys.readouterr().err.startswith(said)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_place_that_cannot_be_used_is_named_in_one_line(capsys, number):
    def main():
        raise OSError(number, os.strerror(number), "some/where")

    assert cli.call(main, [], options=flags.FlagValues()) == 2
    expected = f"error: some/where cannot be used: {os.strerror(number)}; give another place, or mend it\n"
    assert capsys.readouterr().err == expected


@pytest.mark.filterwarnings("ignore")
def test_other_errors_of_the_system_keep_their_traceback():
    def main():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        cli.call(main, [], options=flags.FlagValues())


@pytest.mark.filterwarnings("ignore")
def test_what_a_callback_of_a_network_raises_is_one_line(capsys):
    def host(images):
        return 1 / 0

    def main():
        shape = jax.ShapeDtypeStruct((2,), jnp.float32)
        return jax.jit(lambda x: jax.pure_callback(host, shape, x))(jnp.zeros(2)).block_until_ready()

    assert cli.call(main, [], options=flags.FlagValues()) == 2
    said = capsys.readouterr().err
    one_line(said, "ZeroDivisionError: division by zero in ")
    assert "(host)" in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", [0, None, 3, "bye"])
def test_a_network_that_ends_python_does_not_decide_the_status(capsys, code):
    def network():
        sys.exit(code)

    assert cli.call(network, [], options=flags.FlagValues()) == 2
    one_line(capsys.readouterr().err, f"a network must leave Python running, got sys.exit({code!r}) in ")


def test_a_link_to_what_is_not_there_is_refused_before_anything_runs(tmp_path):
    for name, target in (("dangling", "nowhere"), ("loop", "loop")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(InputError, match=f"{name} is a link to what is not there") as refused:
            files.check_target("--output", tmp_path / name / "results")
        one_line(str(refused.value), "--output must be where files can be written")
    with pytest.raises(files.WriteError, match="cannot be written"):
        files.write(tmp_path / ".." / ".", "")


def test_an_empty_option_as_of_a_variable_that_is_not_set_is_refused():
    for name in ("output", "card", "save_images", "weights", "workdir", "data"):
        with pytest.raises(InputError, match=f"--{name} must not be empty"):
            _options.check(
                _options.Options(**{"model": "mine.py:network", "data": "digits", "epsilon": "0.1", name: ""})
            )
