"""How a command ends: with an exit code and, where it fails, a sentence on standard error."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from streams.errors import StreamsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

INTERRUPTED = 130
"""The exit code for Ctrl-C: 128 and the signal's number, as shells have it."""


def run_command(command: Callable[[], object]) -> int:
    """Run a command; its exit code.

    An error of this library is shown with its hint; see ``streams.errors`` for its code. What the user's own
    program raises is shown with the part of the traceback that is the program's. Everything else is one
    sentence and code 1, and so is an output that cannot be written to; a closed pipe is code 1 alone.
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
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends with a code and a sentence
        code = _explain(error)
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = code or _explain(error)
        # Else the interpreter tries once more at its end, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _prepare_outputs() -> None:
    # A standard stream that was closed is missing, and what is opened next would get its number.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - open until the end
    for stream in (sys.stdout, sys.stderr):
        # Names may have letters that the terminal's encoding lacks.
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _explain(error: BaseException) -> int:
    """Show an error; its exit code."""
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
            "  hint: this is a bug in streams, please report it with the command that you ran"
        )
    return 1


def _of_the_program(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first line on that is the user's own; ``None`` where there is no such line."""
    others = [Path(__file__).parents[1], Path(sys.prefix), Path(sys.exec_prefix)]
    others += [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib", "scripts")]
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith("<") and not any(Path(name).is_relative_to(folder) for folder in others):
            return trace
        trace = trace.tb_next
    return None


def _write(text: str) -> None:
    Console(stderr=True).print("[bold red]error:[/] ", end="")
    _show(text)


def _show(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
