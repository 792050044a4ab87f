"""The source line of an equation: the user's own, not one of a library that it calls."""

from __future__ import annotations

import functools
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn

# Packages whose functions a user calls; their frames are never the user's own.
LIBRARIES = (
    "jax", "jaxlib", "flax", "equinox", "haiku", "optax", "chex", "jaxtyping", "beartype", "numpy", "torch", "torchax",
)  # fmt: skip
UNKNOWN = "unknown"
# Around a line in the name of a scope, and what stands for a slash in it, which parts names of scopes.
_SCOPE, _END, _SLASH = "\u2039line ", "\u203a", "\u2215"
_OURS = str(Path(__file__).resolve().parents[1]) + "/"
_TRANSFORMS = str(Path(__file__).resolve().parent) + "/"
# Of this library, what builds networks; the rest only calls them.
_NETWORKS = tuple(_OURS + room for room in ("models/", "layers/", "defenses/"))


class Place(NamedTuple):
    """Where a program within the program was called.

    Attributes:
        line: of the user.
        fixed: the program is that of one of JAX's own functions. JAX keeps such programs from call to call, so that the
            lines in them are those of the first call.
    """

    line: str
    fixed: bool


def line_of(equation: JaxprEqn, place: Place | None) -> str:
    """The user's own line, as "file.py:12 (function)".

    Args:
        equation: of a program.
        place: where that program was called, or None.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def rounded(x):
        ...     return jnp.round(x)
        >>> line_of(jax.make_jaxpr(rounded)(1.5).eqns[0], None).endswith("(rounded)")
        True
    """
    if place is not None and place.fixed:
        return place.line
    found, of_user = _line(equation)
    # A traceback ends where Python was called from another language, as JAX's caches are written in one.
    return found if of_user or place is None or place.line == UNKNOWN else place.line


def within(equation: JaxprEqn, place: Place | None, held: str = "") -> Place:
    """The place of the program that an equation holds, under a name if it is one that JAX may have kept."""
    fixed = place is not None and place.fixed
    return Place(line_of(equation, place), fixed or (held != "" and _of_jax(equation, held)))


def user_line() -> str | None:
    """The user's line that is being carried out, up to the innermost call of this library; of a network that holds no
    code of a user's the line of the library that built it."""
    frame, library = sys._getframe(1), None
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_TRANSFORMS):
            if library is not None:
                break
        elif not of_library(file):
            return f"{_short(file)}:{frame.f_lineno} ({frame.f_code.co_name})"
        elif library is None and "/torch/nn/modules/" in file and frame.f_code.co_name == "forward":
            library = f"{file.rsplit('/torch/', 1)[-1]}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return library


def raised_at(error: BaseException) -> str:
    """The user's innermost line in the traceback of an error, as far as it has been unwound; "" without one."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{_short(at.filename)}:{at.lineno} ({at.name})" for at in frames if not of_library(at.filename)]
    return lines[-1] if lines else ""


def raised_in_callback(error: BaseException) -> str:
    """What a function that a program calls back into has raised, with the user's line, as JAX tells it; or "".

    Example:
        >>> text = '''INTERNAL: CpuCallback error calling callback: Traceback (most recent call last):
        ...   File "/home/me/mine.py", line 6, in host
        ... RuntimeError: the sensor is off'''
        >>> raised_in_callback(RuntimeError(text))
        'RuntimeError: the sensor is off in /home/me/mine.py:6 (host)'
    """
    text = str(error)
    if "callback" not in text.partition("\n")[0]:
        return ""
    calls = [(at[1], at[2], at[3]) for at in re.finditer(r'^ +File "(.+)", line (\d+), in (.+)$', text, re.MULTILINE)]
    raised = re.search(r"^[A-Za-z_][\w.]*(:.*)?$", text.partition("\n")[2], re.MULTILINE)
    lines = [f"{_short(file)}:{line} ({name})" for file, line, name in calls if not of_library(file)]
    return f"{raised[0]} in {lines[-1]}" if raised and lines else ""


def named(line: str) -> str:
    """A name for ``jax.named_scope`` that says the line, for operations whose traceback does not reach it."""
    return f"{_SCOPE}{line.replace('/', _SLASH)}{_END}"


def _line(equation: JaxprEqn) -> tuple[str, bool]:
    """A line, and whether it is the user's.

    It is that of the innermost frame that lies in no library, within the function that was transformed.

    Of a network that a library made as a whole it is this library's own line where networks are built, or else the line
    that had the network traced, if the traceback reaches so far.
    """
    scopes = str(equation.source_info.name_stack)
    if _SCOPE in scopes:
        return scopes.rsplit(_SCOPE, 1)[1].split(_END)[0].replace(_SLASH, "/"), True
    calls: Any = equation.source_info.traceback
    raw = [] if calls is None else calls.frames
    frames = [(each.file_name, each.line_num, each.function_name) for each in raw]
    cut = next((i for i, frame in enumerate(frames) if frame[0].startswith(_TRANSFORMS)), len(frames))
    users = lambda some: (frame for frame in some if not of_library(frame[0]))  # noqa: E731
    networks = (frame for frame in frames[:cut] if frame[0].startswith(_NETWORKS))
    for found, of_user in ((users(frames[:cut]), True), (networks, False), (users(frames), False)):
        for file, line, function in found:
            return f"{_short(file)}:{line} ({function.split('.')[-1]})", of_user
    return UNKNOWN, False


def of_library(file: str) -> bool:
    """Whether a file belongs to Python, to one of the libraries above, or to this library."""
    return _of_library(file, len(sys.modules))


@functools.cache
def _of_library(file: str, num_modules: int) -> bool:
    return file.startswith(("<frozen", "<string>", _OURS, *_roots(num_modules)))


def _of_jax(equation: JaxprEqn, held: str) -> bool:
    file = getattr(equation.params[held], "jaxpr", equation.params[held]).debug_info.func_filename
    return file is not None and file.startswith(_root("jax") or "\0")


@functools.lru_cache(maxsize=4)
def _roots(num_modules: int) -> list[str]:
    """Folders of the libraries that are loaded; ``num_modules`` because others may be by the next call."""
    del num_modules
    return [*_standard(), *(root for name in LIBRARIES if (root := _root(name)))]


def _root(name: str) -> str | None:
    file = getattr(sys.modules.get(name), "__file__", None)
    return None if file is None else str(Path(file).parent) + "/"


def _standard() -> Iterator[str]:
    """Folders of Python's own library; installed packages lie below one of them."""
    folder = sysconfig.get_path("stdlib") + "/"
    for path in Path(folder).iterdir():
        if path.suffix == ".py" or (path.is_dir() and path.name not in ("site-packages", "dist-packages")):
            yield str(path) + ("/" if path.is_dir() else "")


def _short(file: str) -> str:
    """Relative to the working folder where it lies below it."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):  # elsewhere, or the folder was deleted
        return file
