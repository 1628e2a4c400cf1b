"""Set up a process that only runs a worker. A worker within another program must not change these things."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from streams.events import configure_logging
from streams.process.open_files import raise_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

GARBAGE_THRESHOLD = 100_000
"""The garbage collector runs when this many more objects were allocated than freed."""


def own_process(
    log_format: Literal["auto", "console", "json"], log_level: Literal["debug", "info", "warning", "error"]
) -> None:
    """Set up this process for one worker: logs on standard error, and the highest limit of open files.

    It stays so until the process ends.
    """
    configure_logging(log_format, log_level)
    raise_limit()


@contextmanager
def rare_garbage_collections() -> Iterator[None]:
    """Run the garbage collector less often.

    A batch is tens of thousands of short-lived objects. With the default threshold of 700, the collector
    traverses them continuously without finding garbage, which takes a fifth of the CPU time.
    """
    before = gc.get_threshold()
    gc.set_threshold(GARBAGE_THRESHOLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)
