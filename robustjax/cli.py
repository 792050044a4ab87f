"""What the command lines share: one line and exit status 2 for what a user got wrong, a traceback for a defect."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax
from absl import app, flags, logging

from robustjax.runtime import compiler, hosts, process
from robustjax.runtime.files import WriteError
from robustjax.types import InputError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where several processes make one run.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes make the run.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.", lower_bound=0)
DISTRIBUTED = flags.DEFINE_enum(
    "distributed", None, ["auto"], "auto: find out the three above from a TPU pod, Slurm, Open MPI or Kubernetes."
)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Parses the flags, calls main and exits with what it returns, or with 2 and one line on stderr for bad input."""

    def guarded(arguments: Sequence[str]) -> int | None:
        if len(arguments) > 1:
            return _refuse(f"unexpected argument {arguments[1]!r}; options look like --name=value (see --help)")
        process.keep_compiled()
        process.keep_memory()
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.FATAL)  # Orbax would report every file operation, and errors that it raises
        try:
            return main()
        except (InputError, WriteError) as error:
            return _refuse(str(error))
        except hosts.NotTogetherError as error:
            return fail(str(error))
        except KeyboardInterrupt:  # at once: interpreter and libraries would wait for their threads
            print("interrupted", file=sys.stderr, flush=True)
            os._exit(130)
        except Exception as error:
            if not hosts.several():
                raise
            which = f"process {jax.process_index()}"
            if isinstance(error, jax.errors.JaxRuntimeError):
                fail(f"{which} stops, another one is gone ({str(error).splitlines()[0]}); the same command goes on")
            else:
                traceback.print_exc()
                fail(f"{which} stops, it failed as above")
            return hosts.abandon(1)

    app.run(guarded, flags_parser=_parse)


def join_hosts() -> None:
    """Makes this process one of several where the flags say so, and checks the compiler; before any other use of jax.

    Every command that computes calls this, once its flags are known to be right.
    """
    hosts.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, detect=DISTRIBUTED.value == "auto")
    hosts.together(compiler.check)


def _parse(arguments: Sequence[str]) -> Sequence[str]:
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        text = str(error)
        if "Traceback (most recent call last)" in text:  # of a config file; its last line says what is wrong
            text = text.strip().splitlines()[-1].removeprefix("robustjax.types.InputError: ")
        sys.exit(_refuse(text))
    except Exception as error:  # a config file is the user's Python and may raise anything
        # ml_collections wraps a KeyError, whose own text would be quoted twice.
        cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
        text = cause.args[0] if isinstance(cause, KeyError) else cause
        sys.exit(_refuse(f"--config: {type(error).__name__}: {text}"))


def fail(message: str) -> int:
    """One line on stderr for what is no fault of the input, and exit status 1."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    return 1


def _refuse(message: str) -> int:
    fail(message)
    return 2
