"""Runs the ``streams`` command in the test's own process.

A process of its own takes most of a second to start, longer than most commands run. Tests of signals, of
killed processes and of what only a new process shows start one all the same.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import resource
import sys
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

from streams.cli.failures import run_command
from streams.cli.main import cli

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class Done(NamedTuple):
    """What a command has printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def run_streams(
    *arguments: str, folder: Path, environment: Mapping[str, str] | None = None, stdin: bytes = b""
) -> Done:
    """Run a command in a folder whose modules are the user's program, with these variables and no other."""
    out, error = _stream(), _stream()
    with (
        _process_as_before(folder),
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, dict(os.environ if environment is None else environment), clear=True),
        mock.patch.multiple(sys, stdin=_stream(stdin), stdout=out, stderr=error),
    ):
        code = run_command(lambda: cli(list(arguments), prog_name="streams"))
    # Clients that a process takes with it as it ends.
    gc.collect()
    return Done(code, _text(out), _text(error))


@contextlib.contextmanager
def _process_as_before(folder: Path) -> Iterator[None]:
    """Undo what a command leaves to the end of its process.

    The program's modules are forgotten: the next command imports them with its own environment.
    """
    path, modules, files = list(sys.path), set(sys.modules), resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        sys.path[:] = path
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        for name in set(sys.modules) - modules:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]


def _stream(content: bytes = b"") -> io.TextIOWrapper[io.BytesIO]:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper[io.BytesIO]) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()
