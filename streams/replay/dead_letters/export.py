"""Dead letters as lines of JSON, complete: bytes are in base64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from streams.replay.dead_letters.rows import LetterRow


class ExportedLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter with everything that is known of it. Times are in milliseconds since the epoch."""

    id: str
    """Topic id, partition and offset."""
    state: str
    tries: int
    application: str
    step: str
    exception: str
    message: str
    failed_at: int
    written_at: int
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    via: str | None
    payload: str
    received: bytes | None
    """The record of the internal topic as the step's task has read it, in JSON."""
    left_out: str
    row: int
    rows: int
    edit: dict[str, Any] | None
    """Key and value, as edited."""


def exported(row: LetterRow) -> bytes:
    """One line of JSON, without its end."""
    letter, edit = row.letter, row.history.edit
    return msgspec.json.encode(
        ExportedLetter(
            id=str(letter.id),
            state=str(row.state),
            tries=row.history.tries,
            application=letter.application,
            step=letter.step,
            exception=row.exception,
            message=row.message,
            failed_at=row.failed_at,
            written_at=letter.written,
            topic=letter.topic,
            partition=letter.partition,
            offset=letter.offset,
            timestamp=letter.timestamp,
            key=letter.key,
            value=letter.value,
            headers=letter.headers,
            via=None if letter.via is None else str(letter.via),
            payload=letter.payload,
            received=letter.received,
            left_out=letter.left_out,
            row=letter.row,
            rows=letter.rows,
            edit=None if edit is None else {"key": edit.key, "value": edit.value},
        )
    )
