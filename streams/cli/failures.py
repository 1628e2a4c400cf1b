"""Turn the end of a command into an exit code and, if it failed, a message on standard error."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import StreamsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

INTERRUPTED = 130
"""The exit code for Ctrl-C: 128 plus the signal's number, as in shells."""


def run_command(command: Callable[[], object]) -> int:
    """Run a command and return its exit code.

    An error of this library is printed with its hint, and ``streams.errors`` lists its code. An exception of
    the user's program is printed with its traceback from the first frame in that program. Every other
    exception, including output that cannot be written, is one message and code 1; a closed pipe is code 1
    without a message.
    """
    _prepare_outputs()
    try:
        command()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            _write(end.code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException as error:  # noqa: BLE001 - every exception ends with a code and a message
        code = _explain(error)
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = code or _explain(error)
        # Otherwise the interpreter flushes again at exit, and prints the same error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _prepare_outputs() -> None:
    # A standard stream that was closed is None, and the next file opened would get its descriptor.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - open until the end
    for stream in (sys.stdout, sys.stderr):
        # Topic names and values may have characters that the terminal's encoding lacks.
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _explain(error: BaseException) -> int:
    """Print an error and return its exit code."""
    if isinstance(error, StreamsError):
        _write(str(error))
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return 1
    own = _of_the_program(error.__traceback__)
    if own is not None:
        _show("".join(traceback.format_exception(error.with_traceback(own))).rstrip())
    elif isinstance(error, OSError):
        _write(str(error))
    else:
        *_, frame = traceback.extract_tb(error.__traceback__)
        _write(
            f"{type(error).__name__}: {error} (at {Path(frame.filename).name}:{frame.lineno})\n"
            "  hint: this is a bug in streams; please report it together with the command that you ran"
        )
    return 1


def _of_the_program(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame in the user's program; ``None`` if there is no such frame."""
    others = [Path(__file__).parents[1], Path(sys.prefix), Path(sys.exec_prefix)]
    others += [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib", "scripts")]
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith("<") and not any(Path(name).is_relative_to(folder) for folder in others):
            return trace
        trace = trace.tb_next
    return None


def _write(text: str) -> None:
    from rich.console import Console  # noqa: PLC0415 - only a failure needs it

    Console(stderr=True).print("[bold red]error:[/] ", end="")
    _show(text)


def _show(text: str) -> None:
    from rich.console import Console  # noqa: PLC0415 - as above

    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
