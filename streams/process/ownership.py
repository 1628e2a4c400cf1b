"""A process that does nothing but run a worker: what is set up for that, and what no guest may touch."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from streams.events import configure_logging
from streams.process.open_files import raise_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

GARBAGE_THRESHOLD = 100_000
"""So many more objects made than freed have the garbage collector look for cycles."""


def own_process(
    log_format: Literal["auto", "console", "json"], log_level: Literal["debug", "info", "warning", "error"]
) -> None:
    """Set up this process for one worker: the log on standard error, and as many open files as it may have.

    Stays so until the process ends.
    """
    configure_logging(log_format, log_level)
    raise_limit()


@contextmanager
def rare_garbage_collections() -> Iterator[None]:
    """Have the garbage collector look less often.

    A batch is tens of thousands of objects that all go again: with the default of 700, the collector looks
    through them all the time and finds nothing, for a fifth of the CPU time.
    """
    before = gc.get_threshold()
    gc.set_threshold(GARBAGE_THRESHOLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)
