"""A task as its message describes it, in either version of Celery's protocol."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeGuard

import msgspec

from streams.celery.content import read_content
from streams.celery.refusal import TaskRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.celery.message import TaskMessage

LONGEST_ID = 255
"""The longest id of a task, in characters. It is a part of the key of the result."""

_CANVAS = {
    "callbacks": "callbacks (link=)",
    "errbacks": "callbacks for errors (link_error=)",
    "chain": "a chain",
    "chord": "a chord",
}
"""What a task may be followed by."""


class Task(msgspec.Struct, frozen=True):
    """A call of a function by its name. Times are milliseconds since the epoch."""

    name: str
    id: str
    args: list[Any]
    kwargs: dict[str, Any]
    eta: int | None
    expires: int | None


class TaskHeaders(msgspec.Struct, frozen=True):
    """What says which task a message is about, and who waits for it."""

    name: str | None
    id: str | None
    ignore_result: bool


def headers_of(message: TaskMessage) -> TaskHeaders:
    """What the headers say; nothing in version 1 of the protocol, and of values of other types."""
    headers = message.headers
    name, identifier = headers.get("task"), headers.get("id")
    return TaskHeaders(
        name if isinstance(name, str) and name else None,
        identifier if _is_id(identifier) else None,
        # In RabbitMQ headers are text.
        headers.get("ignore_result") in (True, "true"),
    )


def read_task(message: TaskMessage) -> Task:
    """The task of a message. Raises ``TaskRefused``."""
    content = read_content(message)
    fields: Mapping[str, Any] = message.headers
    if "task" in fields:
        if not isinstance(content, list) or len(content) != 3 or not isinstance(content[2], dict | None):
            raise TaskRefused("its content is not [args, kwargs, embed], as version 2 of the protocol has it")
        args, kwargs, embedded = content
    elif isinstance(content, dict) and "task" in content:
        fields = embedded = content
        args, kwargs = content.get("args", []), content.get("kwargs", {})
    else:
        raise TaskRefused("it names no task, neither in its headers nor in its content")
    name, identifier = fields["task"], fields.get("id")
    if not isinstance(name, str) or not name:
        raise TaskRefused(f"its task is {name!r:.80}, which is no name")
    if not _is_id(identifier):
        raise TaskRefused(f"its id is {identifier!r:.80}, which is no text of 1 to {LONGEST_ID} characters")
    _refuse_canvas(embedded or {})
    args, kwargs = args or [], kwargs or {}
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise TaskRefused("its arguments are no list and no mapping")
    return Task(name, identifier, args, kwargs, _time(fields, "eta"), _time(fields, "expires"))


def _refuse_canvas(embedded: Mapping[str, Any]) -> None:
    found = [text for field, text in _CANVAS.items() if embedded.get(field)]
    if found:
        raise TaskRefused(
            f"it is followed by {' and '.join(found)}, which is not carried over: "
            "let the job enqueue what comes next"
        )


def _is_id(identifier: object) -> TypeGuard[str]:
    return isinstance(identifier, str) and 0 < len(identifier) <= LONGEST_ID


def _time(fields: Mapping[str, Any], name: str) -> int | None:
    text = fields.get(name)
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        # Celery sends times of UTC without an offset in version 1.
        aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        return int(aware.timestamp() * 1000)
    except (TypeError, ValueError, OverflowError) as error:
        raise TaskRefused(f"its {name} is {text!r:.80}, which is no time: {error}") from error
