"""What the commands share: a user's mistake is one line and exit status 2, a defect of the library a traceback."""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from robustjax import config
from robustjax.runtime import compiler, files, hosts, process, signals
from robustjax.runtime.files import WriteError
from robustjax.transforms._source import raised_at, raised_in_callback
from robustjax.types import InputError

# What is wrong with a place that a user names, whatever a program does there.
_OF_PLACES = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE)

flags.disclaim_key_flags()  # what `define_config` defines is a flag of the command that calls it, as --help shows

WORKDIR: flags.FlagHolder[Any] = flags.DEFINE_string("workdir", None, "Folder of the run.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if several processes make one run.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)
DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    None,
    ["auto"],
    "auto: detect coordinator, number and id of the processes on a TPU pod, Slurm, Open MPI or Kubernetes.",
)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Parses the flags, calls main and exits with what it returns, or with 2 and one line on stderr for bad input."""

    def guarded(arguments: Sequence[str]) -> int | None:
        try:
            _positional(arguments[1:])
        except InputError as error:
            return _refuse(str(error))
        process.keep_compiled()
        try:
            return _status(main)
        except KeyboardInterrupt:
            return signals.interrupted()

    logging.set_verbosity(logging.FATAL)  # Orbax would report every file operation, and errors that it raises
    try:
        signals.interrupts_raise()
        app.run(guarded, flags_parser=_parse)
    except KeyboardInterrupt:  # while flags and config files are read
        signals.interrupted()


def call(
    main: Callable[..., int | None],
    arguments: Sequence[str] | None,
    *,
    options: flags.FlagValues,
    positional: Sequence[str] = (),
    required: Sequence[str] = (),
) -> int:
    """The exit status of a command that has flags of its own, and arguments that are not flags.

    Args:
        main: gets the positional arguments.
        arguments: of the command line; None: of this process's.
        options: the flags, none of which another command has.
        positional: names of the positional arguments, all of which must be given.
        required: names of the flags that must be given.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if {"--help", "-help", "-h"} & set(given):
        print(sys.modules[main.__module__].__doc__)
        print(options.get_help(include_special_flags=False))
        sys.exit(0)
    options.unparse_flags()  # of an earlier call in this process
    options.set_gnu_getopt(True)  # flags may come after other arguments
    try:
        others = options([sys.argv[0], *given])[1:]
        names = _positional(others, positional, [flag for flag in required if options[flag].value is None])
    except (flags.Error, InputError) as error:
        return _refuse(_of_flags(error))
    logging.set_verbosity(logging.FATAL)
    try:
        signals.interrupts_raise()
        return _status(lambda: main(*names)) or 0
    except KeyboardInterrupt:
        if arguments is not None:
            raise
        return signals.interrupted()


def declare_shared() -> None:
    """Lists --workdir and the flags of several processes in the --help of the command that calls this."""
    for holder in (WORKDIR, COORDINATOR, NUM_PROCESSES, PROCESS_ID, DISTRIBUTED):
        flags.declare_key_flag(holder.name)


def define_config() -> flags.FlagHolder[Any]:
    """Defines --config, and --config.KEY=VALUE for every key of the config that it names."""
    holder = config_flags.DEFINE_config_file(
        "config", None, "A shipped config's name, such as quickstart or digits:at_cas, or the path of a config file."
    )
    flag = flags.FLAGS["config"]
    flag.parser = _ByName(flag.parser)
    return holder


def define_output(what: str) -> flags.FlagHolder[Any]:
    """Defines --output, by default None; once, also where a process imports several commands that have it."""
    if "output" in flags.FLAGS:
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS["output"])
    return flags.DEFINE_string("output", None, what)


class _ByName(flags.ArgumentParser):
    """Hands the path of a config file on, also where a shipped one is given by its name."""

    def __init__(self, of_paths: flags.ArgumentParser):
        super().__init__()
        self._of_paths = of_paths

    def parse(self, argument: str) -> Any:
        argument = config.renamed(argument)
        name, *variant = argument.split(":", 1)
        path = find_config(name)
        if not path.is_file():
            raise InputError(
                f"config must be the path of a .py file or the name of a shipped config, got {argument!r}: "
                f"there is no file {path}"
            )
        try:
            found = self._of_paths.parse(":".join([str(path), *variant]))
        except SystemExit as error:
            raise InputError(
                f"config must be a file that leaves Python running, got {argument!r} with sys.exit({error.code!r}); "
                "take it out, or raise what is wrong"
            ) from error
        except Exception as error:  # whatever the file raises, with its traceback
            if "has no attribute 'get_config'" in str(error):
                raise InputError(
                    f"config must be a file with a function get_config, got {argument!r} without one; define it"
                ) from error
            if variant and "get_config() takes 0 positional arguments" in str(error):
                raise InputError(
                    f"config must be {name} alone, which has no variants, got {argument!r}; leave out :{variant[0]}"
                ) from error
            raise
        if found is None:  # which absl takes for a flag that was not given
            raise InputError(
                f"config must be a ConfigDict such as config.base() returns, got None from {argument!r}; have its "
                "get_config return one"
            )
        return found


def find_config(name: str) -> Path:
    """The file that a --config names: a path, or the bare name of a shipped config.

    Shipped configs lie in robustjax/configs of an installed wheel, and beside robustjax in a checkout. They are also
    understood as NAME.py and configs/NAME.py, in any folder, unless that file is there.

    Raises:
        InputError: no shipped config has that name.

    Example:
        >>> find_config("quickstart").name, find_config("digits.py").parent.name
        ('quickstart.py', 'configs')
        >>> find_config("elsewhere/mine.py").as_posix()
        'elsewhere/mine.py'
    """
    package = Path(__file__).parent
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    shipped = {path.stem: path for path in sorted(folder.glob("*.py"))}
    path = files.place(name)
    if path.suffix == ".py" or path.name != name:
        ours = path.parent in (Path("configs"), Path()) and path.suffix == ".py" and not path.exists()
        return shipped.get(path.stem, path) if ours else path
    if name not in shipped:
        nearest = difflib.get_close_matches(name, shipped, n=3, cutoff=0.5)
        which = f"nearest: {', '.join(nearest)}" if nearest else f"there are {', '.join(shipped)}"
        raise InputError(
            f"config must be the path of a .py file or the name of a shipped config, got {name!r}; {which}"
        )
    return shipped[name]


def join_hosts() -> None:
    """Makes this process one of several where the flags say so, and checks the compiler; before any other use of jax.

    Every command that computes calls this, once its flags are known to be right.
    """
    hosts.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, detect=DISTRIBUTED.value == "auto")
    hosts.together(compiler.check)


def fail(message: str) -> int:
    """Prints one line on stderr for a failure that is not a fault of the input; exit status 1."""
    # In one piece, as several processes may speak at once.
    if sys.stderr is not None:  # it may be closed
        sys.stderr.write(f"error: {' '.join(message.split())}\n")
        sys.stderr.flush()
    return 1


def _status(main: Callable[[], int | None]) -> int | None:
    """What main returns, or the status and the line that belong to what it raises."""
    process.keep_memory()
    process.silence_orbax()
    for stream in (sys.stdout, sys.stderr):  # of a terminal that lacks a character, show what it is
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()  # or what goes wrong would be told by the interpreter, after all
        return status
    except (InputError, WriteError) as error:
        return _refuse(str(error))
    except SystemExit as error:  # whose status would be taken for this command's
        where = raised_at(error)
        return _refuse(f"a network must leave Python running, got sys.exit({error.code!r}){where and f' in {where}'}")
    except BrokenPipeError:  # of `| head`, which has read enough
        if hosts.several():
            raise
        _say_no_more()
        return 128 + signal.SIGPIPE
    except hosts.NotTogetherError as error:
        return fail(str(error))
    except Exception as error:
        if raised := raised_in_callback(error):  # the network's, or another function of the user's
            status = _refuse(f"the network must compute whatever it calls back, got {raised}; mend it")
            return hosts.abandon(status) if hosts.several() else status
        if not hosts.several():
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # a log on a full disk
                _say_no_more()
                return fail(f"nothing more can be written: {error.strerror}; make room, and run the same command again")
            if isinstance(error, OSError) and error.errno in _OF_PLACES and error.filename is not None:
                return _refuse(f"{error.filename} cannot be used: {error.strerror}; give another place, or mend it")
            raise
        which = f"process {jax.process_index()}"
        if isinstance(error, jax.errors.JaxRuntimeError):
            fail(f"{which} stops, another one is gone ({str(error).splitlines()[0]}); the same command goes on")
        else:
            traceback.print_exc()
            fail(f"{which} stops, it failed as above")
        return hosts.abandon(1)


def _say_no_more() -> None:
    """Takes away a standard output that cannot be written, which Python would try once more at the end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(arguments: Sequence[str]) -> Sequence[str]:
    try:
        if "config" in flags.FLAGS:
            arguments = config.check_overrides(arguments, _other_problems)
        return flags.FLAGS(arguments)
    except (flags.Error, InputError) as error:
        sys.exit(_refuse(_of_flags(error)))
    except SystemExit:  # after --help, where absl ends with 1
        sys.exit(0)
    except Exception as error:  # a config file is the user's Python and may raise anything
        # ml_collections wraps a KeyError, whose own text would be quoted twice.
        cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
        text = cause.args[0] if isinstance(cause, KeyError) else cause
        sys.exit(_refuse(f"--config: {type(error).__name__}: {text}"))


def _other_problems(arguments: list[str]) -> list[str]:
    """What is wrong with a command line besides the overrides that have been left out of it."""
    given, sys.argv = sys.argv, arguments  # where ml_collections looks for overrides
    try:
        flags.FLAGS(arguments)
        return config.problems(flags.FLAGS["config"].value)
    except (flags.Error, InputError) as error:
        return [_of_flags(error)]
    except (Exception, SystemExit):  # of a config file; it is told once the overrides are right
        return []
    finally:
        sys.argv = given


def _of_flags(error: Exception) -> str:
    """The message of absl, or a shorter one."""
    text = str(error)
    if "Traceback (most recent call last)" in text:  # of a config file; its last line says what is wrong
        return text.strip().splitlines()[-1].removeprefix("robustjax.types.InputError: ")
    missing = re.search(r"Flag (--\w+) must have a value other than None", text)
    return f"{missing[1]} must be given; see --help" if missing else text


def _positional(given: Sequence[str], names: Sequence[str] = (), missing: Sequence[str] = ()) -> Sequence[str]:
    """The positional arguments, if they are as many as their names, and no flag is missing."""
    missing = [*names[len(given) :], *(f"--{flag}" for flag in missing)]
    if missing:
        raise InputError(f"the following arguments are required: {', '.join(missing)}; see --help")
    if len(given) > len(names):
        surplus = given[len(names)]
        raise InputError(f"unexpected argument {surplus!r}; options look like --name=value (see --help)")
    return given


def _refuse(message: str) -> int:
    fail(message)
    return 2
