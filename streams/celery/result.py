"""How a task has ended, as Celery's result backends for Redis have it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from streams.celery.extended_json import write_json
from streams.jobs.record import Ending

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.celery.refusal import TaskRefused
    from streams.jobs.job import BaseJob
    from streams.jobs.record import JobEnd

_REASONS = {Ending.CANCELLED: "revoked", Ending.EXPIRED: "expired"}
"""What Celery's workers say of a task that they did not execute."""


def result_of_end(end: JobEnd, jobs: Mapping[str, BaseJob[Any, Any]]) -> bytes:
    """The result of a task whose job has ended."""
    assert end.correlation_id is not None, "only jobs of tasks have such results"
    if end.ending is Ending.SUCCEEDED:
        return _meta(end.correlation_id, "SUCCESS", _value(end, jobs), end.ended)
    reason = _REASONS.get(end.ending)
    if reason is not None:
        revoked = _exception("celery.exceptions", "TaskRevokedError", reason)
        return _meta(end.correlation_id, "REVOKED", revoked, end.ended)
    error = end.error
    assert error is not None, "a job that has failed has an error"
    module = error.path.removesuffix(f".{error.type}") if error.path else "builtins"
    failure = _exception(module, error.type, error.message)
    return _meta(end.correlation_id, "FAILURE", failure, end.ended, error.traceback or None)


def result_of_refusal(refused: TaskRefused, now: int) -> bytes:
    """The result of a task that is not executed, at ``now``, milliseconds since the epoch."""
    assert refused.task_id is not None, "no caller waits for it"
    return _meta(refused.task_id, "FAILURE", _exception(*refused.kind, str(refused)), now)


def _value(end: JobEnd, jobs: Mapping[str, BaseJob[Any, Any]]) -> str:
    """The function's result, as kombu writes values of its type."""
    job = jobs.get(end.job)
    try:
        return write_json(msgspec.json.decode(end.result) if job is None else job.result.decode(end.result))
    except (ValueError, TypeError):
        # The annotation is not that of the program which has executed it, or its values have no such form.
        return bytes(end.result).decode()


def _exception(module: str, name: str, message: str) -> str:
    return json.dumps({"exc_type": name, "exc_message": [message], "exc_module": module})


def _meta(task_id: str, status: str, result: str, ended: int, traceback: str | None = None) -> bytes:
    return msgspec.json.encode(
        {
            "status": status,
            "result": msgspec.Raw(result.encode()),
            "traceback": traceback,
            "children": [],
            "date_done": datetime.fromtimestamp(ended / 1000, UTC).isoformat(),
            "task_id": task_id,
        }
    )
