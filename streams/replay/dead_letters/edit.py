"""The record of a dead letter is replaced, if the step that failed can read the replacement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.errors import ConfigurationError, error_text
from streams.replay.dead_letters.ledger import LetterState
from streams.runtime.retry_log import Edit
from streams.topology.graph import matches

if TYPE_CHECKING:
    from streams.replay.dead_letters.rows import DeadLetters, LetterRow
    from streams.serde import Serde


def edit_letter(
    letters: DeadLetters, row: LetterRow, *, key: bytes | None, value: bytes | None, at: int
) -> None:
    """Replace key and value with which a dead letter's record is retried; it keeps its identity and headers.

    ``at`` is the time in milliseconds since the epoch. Raises ``ConfigurationError`` for a dead letter that
    is not open, and for content that the source of the failing step cannot read; ``BrokerError``.
    """
    check_edit(letters, row, key=key, value=value)
    letters.ledger.write([(row.letter.id, Edit(key=key, value=value, at=at))], at)


def check_edit(letters: DeadLetters, row: LetterRow, *, key: bytes | None, value: bytes | None) -> None:
    """Check that ``edit_letter`` would accept key and value, and raise as it does. Nothing is written."""
    place = row.letter.id.place
    if row.state is not LetterState.OPEN:
        raise ConfigurationError(
            f"dead letter {place} is {row.state}: only open ones can be edited",
            hint="wait for its retry" if row.state is LetterState.WAITING else "",
        )
    topic = row.letter.source.topic
    source = next(
        (
            source
            for source in letters.topology.sources
            if any(matches(wanted, topic) for wanted in source.topics)
        ),
        None,
    )
    if source is None:
        raise ConfigurationError(
            f"dead letter {row.letter.id.place} came from topic {topic}, which the app does not read",
            hint="use the version of the program that reads it",
        )
    _read("key", source.key, key, required=source.needs_key)
    _read("value", source.value, value, required=source.needs_value or not source.tombstones)


def _read(part: str, serde: Serde[object], content: bytes | None, *, required: bool) -> None:
    if content is None:
        if required:
            raise ConfigurationError(f"a {part} is needed: the step reads no null {part}s")
        return
    try:
        list(serde.deserialize([content]))
    except Exception as error:
        raise ConfigurationError(
            f"the {part} cannot be read as {serde.name}: {type(error).__name__}: {error_text(error)}",
            hint="nothing was stored",
        ) from error
