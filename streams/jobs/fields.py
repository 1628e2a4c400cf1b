"""Jobs as the fields of a JSON object, for the command line and over HTTP. Times are milliseconds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from streams.jobs.reasons import error_line, time_text
from streams.jobs.record import Ending

if TYPE_CHECKING:
    from streams.jobs.reasons import Case
    from streams.jobs.record import JobEnd


def unfinished_fields(identifier: str, enqueued: int, case: Case) -> dict[str, Any]:
    """A job that has not ended."""
    record = case.record
    fields: dict[str, Any] = {
        "id": identifier,
        "job": record.job,
        "state": case.state.value,
        "why": case.sentence(),
        "enqueued": enqueued,
        "due": case.due or record.due or enqueued,
        "tries": case.tries,
        "arguments": msgspec.json.decode(record.arguments),
    }
    optional = {
        "key": record.key,
        "limit": record.limit,
        "unique": record.unique,
        "correlation_id": record.correlation_id,
        "expires": record.expires,
        "priority": record.priority or None,
        "error": None if case.error is None else error_line(case.error),
        "failed": case.failed_at or None,
        "began": case.began or None,
        "progress": case.progress or None,
    }
    return fields | {name: value for name, value in optional.items() if value is not None}


def end_fields(end: JobEnd) -> dict[str, Any]:
    """A job that has ended."""
    fields: dict[str, Any] = {
        "id": end.id,
        "job": end.job,
        "state": end.ending.value,
        "why": end_sentence(end),
        "enqueued": end.enqueued,
        "ended": end.ended,
        "tries": end.tries,
    }
    if end.ending is Ending.SUCCEEDED:
        fields["result"] = msgspec.json.decode(end.result)
    record = msgspec.json.decode(end.record)
    if record is not None:
        fields["arguments"] = record.get("arguments", {})
    if end.correlation_id is not None:
        fields["correlation_id"] = end.correlation_id
    if end.error is not None:
        fields["error"] = error_line(end.error)
    if end.duplicate_of is not None:
        fields["duplicate_of"] = end.duplicate_of
    return fields


def end_sentence(end: JobEnd) -> str:
    """How a job has ended."""
    at = time_text(end.ended, time.time_ns() // 1_000_000)
    if end.ending is Ending.DUPLICATE:
        return f"it was left out at {at}: job {end.duplicate_of}, which is equal, had not ended"
    attempts = f"after {end.tries} attempt{'' if end.tries == 1 else 's'}"
    error = "" if end.error is None else f": {error_line(end.error)}"
    return f"it {_SAID[end.ending]} at {at}, {attempts}{error}"


_SAID = {
    Ending.SUCCEEDED: "succeeded",
    Ending.FAILED: "failed for good",
    Ending.EXPIRED: "expired",
    Ending.CANCELLED: "was cancelled",
}
