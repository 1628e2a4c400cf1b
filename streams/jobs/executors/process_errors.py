"""Exceptions of jobs in other processes: as messages, and made again for the worker.

They are not pickled: many cannot be, and some of those that can cannot be unpickled. The worker needs the
class, for ``Retry.on``, and the texts.
"""

from __future__ import annotations

import sys
import traceback
from datetime import UTC, datetime, timedelta
from functools import cache
from operator import attrgetter
from typing import Any

from streams.errors import StreamsError, error_text
from streams.jobs.executors.process_messages import Failure, Later
from streams.jobs.retry import RetryLater, epoch_milliseconds

MAIN_OF_CHILD = "__mp_main__"
"""The name under which a child process imports the program's main module, as ``multiprocessing`` does."""


class JobProcessEnded(Exception):
    """The process that executed a job has ended: it was killed, ran out of memory, or called ``os._exit``."""


class _InProcess(Exception):
    """The traceback of an exception in another process: its text is shown where the exception is."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._text = text

    def __str__(self) -> str:
        return f'\n"""\n{self._text}"""'


def failure_of(error: BaseException) -> Failure:
    """An exception as a message."""
    message = error_text(error) if isinstance(error, Exception) else str(error)
    hint = error.hint if isinstance(error, StreamsError) else None
    later = None
    if isinstance(error, RetryLater):
        at = None if error.at is None else epoch_milliseconds(error.at, "RetryLater: at") * 1000
        after = None if error.after is None else error.after // timedelta(microseconds=1)
        later = Later(after, at, error.alone)
    kinds = [(_main(kind.__module__), kind.__qualname__) for kind in type(error).__mro__]
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as also:  # noqa: BLE001 - as above
        text = f"(no traceback: {type(also).__name__})"
    return Failure(kinds, message, text, hint, later)


def error_of(failure: Failure) -> BaseException:
    """The exception again: of a class of its name that inherits from the nearest one that is known here."""
    error = _later(failure.later) if failure.later is not None else _made(tuple(failure.kinds))
    if isinstance(error, _Remote):
        error.text = failure.message
        # What errors of this library say does not come from ``__str__``.
        error.__dict__["hint"] = failure.hint
    error.args = (failure.message,)
    error.__cause__ = _InProcess(failure.traceback)
    return error


class _Remote:
    """What exceptions that were made again have in common."""

    text = ""

    def __str__(self) -> str:
        return self.text


def _later(later: Later) -> RetryLater:
    if later.after is not None:
        return RetryLater(after=timedelta(microseconds=later.after), alone=later.alone)
    assert later.at is not None
    return RetryLater(
        at=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=later.at), alone=later.alone
    )


def _made(kinds: tuple[tuple[str, str], ...]) -> BaseException:
    return _class(kinds).__new__(_class(kinds))


@cache
def _class(kinds: tuple[tuple[str, str], ...]) -> type[BaseException]:
    module, name = kinds[0]
    for kind in kinds:
        known = _known(*kind)
        if known is None:
            continue
        try:
            made: Any = type(
                name.rpartition(".")[2], (_Remote, known), {"__module__": module, "__qualname__": name}
            )
            # Some need arguments even for this, and would fail for each job.
            made.__new__(made)
        except Exception:  # noqa: BLE001, S112 - a class that allows no subclass: its own base does
            continue
        found: type[BaseException] = made
        return found
    raise AssertionError(f"no exception: {kinds}")


def _known(module: str, name: str) -> type[BaseException] | None:
    """The class in this process, if its module is imported here: retries can name only such classes."""
    try:
        found: object = attrgetter(name)(sys.modules[module])
    except (KeyError, AttributeError):
        return None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _main(module: str) -> str:
    return "__main__" if module == MAIN_OF_CHILD else module
