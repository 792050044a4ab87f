"""What stops a command in the middle: a pipe that is closed, a log on a full disk, a user's function that raises."""

import errno
import os

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from bad_input.refusals import one_line
from robustjax import cli

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
