"""What is recorded of the exception of a job."""

from __future__ import annotations

import traceback

from streams.errors import error_text
from streams.jobs.record import JobError

LONGEST_TRACEBACK = 8_000
"""The maximum length of a traceback, in characters; its end says where the exception was raised."""


def job_error(error: BaseException) -> JobError:
    """What is kept while a job waits for its next attempt."""
    return JobError(type(error).__name__, error_text(error) if isinstance(error, Exception) else str(error))


def error_of_end(error: BaseException) -> JobError:
    """What the end of a job has."""
    short, kind = job_error(error), type(error)
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as also:  # noqa: BLE001 - a failing __str__ must not change what becomes of the job
        text = f"(no traceback: {type(also).__name__})"
    return JobError(
        short.type, short.message, f"{kind.__module__}.{kind.__qualname__}", text[-LONGEST_TRACEBACK:]
    )
