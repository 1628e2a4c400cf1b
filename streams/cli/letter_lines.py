"""Dead letters as lines of JSON and as rows of tables, and the options that select them."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from streams.cli.record_lines import (
    as_base64,
    headers_as_json,
    key_as_json,
    parse_condition,
    parse_pattern,
    value_as_json,
)
from streams.errors import ConfigurationError
from streams.replay.dead_letters.rows import Selection
from streams.topology.topic_format import TopicFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.replay.dead_letters.ledger import LetterState
    from streams.replay.dead_letters.rows import DeadLetters, LetterRow

_PLACE = re.compile(r"\d+:\d+")
_AGE = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Places = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PARTITION:OFFSET]…", help="Only these, as `list` shows them; default: all."),
]
Step = Annotated[str | None, typer.Option("--step", help="Only those of this step.")]
Topic = Annotated[str | None, typer.Option("--topic", help="Only those whose input record is in this topic.")]
Error = Annotated[
    str | None, typer.Option("--exception", metavar="CLASS", help="Only those that failed with this error.")
]
Message = Annotated[
    str | None, typer.Option("--message", metavar="REGEX", help="Only those whose error text matches.")
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Only those that failed at or after this time (ISO 8601, or an age such as 2h)."
    ),
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only those that failed before this time.")]
Key = Annotated[str | None, typer.Option("--key", help="Only records with this key.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=VALUE",
        help="Only those with this value in a field of `list --rows --json`, e.g. value.cents=-5.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionOptions:
    """The options of a command that select dead letters, as they were written."""

    places: Sequence[str] | None
    step: str | None
    topic: str | None
    exception: str | None
    message: str | None
    since: str | None
    until: str | None
    key: str | None
    where: Sequence[str] | None

    def __bool__(self) -> bool:
        """Whether any of them restricts the selection."""
        return any(getattr(self, name) for name in self.__slots__)

    def selection(self, letters: DeadLetters, states: Sequence[LetterState]) -> Selection:
        """What they select, among dead letters in these states. Raises ``ConfigurationError``."""
        for place in self.places or ():
            if not _PLACE.fullmatch(place):
                raise ConfigurationError(
                    f"{place!r} is not a dead letter",
                    hint="write PARTITION:OFFSET in the dead-letter topic, as list --rows shows it",
                )
        now = time.time()
        return Selection(
            states=states,
            places=frozenset(self.places or ()),
            step=self.step,
            topic=self.topic,
            exception=self.exception,
            message=None if self.message is None else parse_pattern(self.message),
            since=None if self.since is None else parse_time(self.since, now),
            until=None if self.until is None else parse_time(self.until, now),
            predicate=self._predicate(letters),
        )

    def _predicate(self, letters: DeadLetters) -> Callable[[LetterRow], bool] | None:
        conditions = [parse_condition(item) for item in self.where or ()]
        key = self.key
        if key is None and not conditions:
            return None
        decoded = None if key is None else parse_condition(f"key={key}")

        def holds(row: LetterRow) -> bool:
            line = letter_line(letters, row)
            return all(condition.holds(line) for condition in conditions) and (
                key is None or decoded is None or row.letter.key == key.encode() or decoded.holds(line)
            )

        return holds


def parse_time(text: str, now: float) -> int:
    """Parse a time as ISO 8601, local unless it has an offset, or an age such as ``2h``.

    ``now`` is in seconds since the epoch. Returns milliseconds. Raises ``ConfigurationError``.
    """
    age = _AGE.fullmatch(text)
    if age is not None:
        return round((now - int(age[1]) * _UNITS[age[2]]) * 1000)
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is not a time", hint="write 2026-05-01T10:00, with an offset if it is not local, or 2h"
        ) from error


def letter_fields(letters: DeadLetters, row: LetterRow) -> dict[str, Any]:
    """The fields of a dead letter for a line of JSON; its record as a retry would process it."""
    letter, record = row.letter, row.record
    form = TopicFormat() if letter.is_result and letter.via is None else letters.format(letter)
    errors: list[str] = []
    fields: dict[str, Any] = {
        "id": letter.id.place,
        "state": str(row.state),
        "tries": row.history.tries,
        "step": letter.step,
        "exception": row.exception,
        "message": row.message,
        "failed_at": iso_time(row.failed_at),
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp": None if letter.timestamp < 0 else letter.timestamp,
        **key_as_json(form, record.key, None, errors),
        **value_as_json(form, record.value, errors),
        "headers": headers_as_json(record.headers or []),
    }
    optional = {
        "via": letter.via and str(letter.via),
        "payload": letter.payload,
        "left_out": letter.left_out,
        "edited": row.history.edit is not None,
        "note": row.note,
        "unreadable": "; ".join(errors),
    }
    return fields | {name: value for name, value in optional.items() if value}


def letter_line(letters: DeadLetters, row: LetterRow) -> bytes:
    """The fields as a line of JSON."""
    return msgspec.json.encode(letter_fields(letters, row), enc_hook=str)


def raw_fields(row: LetterRow) -> dict[str, str]:
    """The record's bytes, in base64."""
    record = row.record
    return {
        **({} if record.key is None else as_base64("key", record.key)),
        **({} if record.value is None else as_base64("value", record.value)),
    }


def iso_time(milliseconds: int) -> str:
    """A time as text, with the offset of this machine."""
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(timespec="milliseconds")
