"""Rows for the dead-letter topic, and their shortened forms where the broker refuses them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from streams.errors import ProcessingError, error_text
from streams.lineage import Lineage, ancestry_of, several_text
from streams.origin import Relayed, described, origin_of
from streams.records import Output, SyntheticBatch
from streams.runtime.letter import PREFIX, UNREAD, Received
from streams.runtime.retried import retried_from

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

    from streams.origin import Origin
    from streams.records import Batch, Headers, Record

MESSAGE_BYTES: Final = 1024
"""Longest error message in the headers, in bytes."""

KEPT_BYTES: Final = 1024
"""Bytes of its value that a dead letter keeps when it is too large."""

SHORT_MESSAGE_BYTES: Final = 128

CUT_ALL: Final = 2
"""The highest level of shortening: nothing (0), most of the value (1), or key, value and headers (2)."""

LINEAGE: Final = "__streams.errors.lineage"
"""The header with the lineage of a result that a step could not process, if it is known."""

LEFT_OUT: Final = ("", "most of the value", "key, value and headers")


class DeadLetter(NamedTuple):
    """A row that ``step`` could not process."""

    batch: Batch[Any, Any]
    row: int
    step: str
    error: Exception
    cut: int = 0
    context: Sequence[tuple[str, bytes | None]] = ()
    """The context of the span in which it failed, with the setting ``tracing``."""

    @property
    def identity(self) -> Hashable:
        """What identifies its source when that is processed again."""
        return self.batch.select([self.row]).identities()[0]

    def cut_to(self, cut: int, error: Exception) -> DeadLetter:
        """The dead letter shortened to that level. Raises ``ProcessingError`` beyond the last level."""
        if cut > CUT_ALL:
            raise ProcessingError(
                f"step {self.step!r} failed on {described(self.batch, self.row)} "
                f"({type(self.error).__name__}), and the dead-letter topic refuses even its "
                f"coordinates: {error_text(error)}",
                hint="change the dead-letter topic's settings (max.message.bytes, cleanup.policy=delete), or "
                "give the step on_error=skip",
            ) from error
        return self._replace(cut=max(self.cut, cut))


class DeadLetterRows:
    """The dead letters of one output; see ``RowOwner``. A refused one is written again in a shorter form."""

    def __init__(
        self,
        letters: Sequence[DeadLetter],
        places: Sequence[Hashable],
        write: Callable[[DeadLetter], None],
    ) -> None:
        self.letters = letters
        self._places = places
        self._write = write

    def place(self, row: int) -> Hashable:
        return self._places[row]

    def refuse(self, row: int, error: Exception) -> None:
        letter = self.letters[row]
        self._write(letter.cut_to(letter.cut + 1, error))


def dead_letter_output(
    letters: Sequence[DeadLetter],
    topic: str,
    application: str,
    owner: DeadLetterRows,
    wall_clock: Callable[[], int],
    originals: Callable[[Collection[Origin]], Mapping[Origin, Record[bytes | None, bytes | None]]],
) -> Output:
    """The dead letters as an output: the original bytes, with coordinates and reason in headers.

    ``originals`` reads input records again, for records that came through an internal topic.
    """
    records, notes = _input_records(letters, originals)
    cuts = [letter.cut for letter in letters]
    return Output(
        topic,
        [record.key if cut < CUT_ALL else None for record, cut in zip(records, cuts, strict=True)],
        [_value(record.value, cut) for record, cut in zip(records, cuts, strict=True)],
        # The timestamp may be the reason of the refusal; the event time is in the headers too.
        [wall_clock() if cut else record.timestamp for record, cut in zip(records, cuts, strict=True)],
        [
            _headers(letter, record, application) + note
            for letter, record, note in zip(letters, records, notes, strict=True)
        ],
        owner=owner,
    )


def _input_records(
    letters: Sequence[DeadLetter],
    originals: Callable[[Collection[Origin]], Mapping[Origin, Record[bytes | None, bytes | None]]],
) -> tuple[list[Record[bytes | None, bytes | None]], list[Headers]]:
    """The records of which dead letters are written, and additional headers for those not from the input.

    Records that came through an internal topic are read again from their input topic. If the input record no
    longer exists, and for results of several records, key and value are those that the step received.
    """
    origins = [origin_of(letter.batch, letter.row) for letter in letters]
    wanted = {
        origin
        for origin, letter in zip(origins, letters, strict=True)
        if isinstance(letter.batch.fetched, Relayed)
        and not origin.is_result
        and origin.offset >= 0
        # Records that other programs wrote to an internal topic are their own origin, and already read.
        and origin.topic != letter.batch.fetched.topic
    }
    found = originals(wanted) if wanted else {}
    records: list[Record[bytes | None, bytes | None]] = []
    notes: list[Headers] = []
    for letter, origin in zip(letters, origins, strict=True):
        record = letter.batch.original(letter.row)
        note = _position(letter)
        if isinstance(letter.batch.fetched, Relayed):
            # Without the offset in that topic, which differs between runs.
            note.append((f"{PREFIX}via", f"{record.topic}-{record.partition}".encode()))
        if origin in found:
            if not letter.cut:
                # What the step is given when the dead letter is retried.
                received = Received(record.key, record.value, record.timestamp, record.headers)
                note.append((f"{PREFIX}received", msgspec.json.encode(received)))
            record = found[origin]
        elif origin in wanted:
            gone = f"{UNREAD}{record.topic}: {origin} could not be read again"
            note.append((f"{PREFIX}payload", gone.encode()))
        elif origin.is_result:
            note.append((f"{PREFIX}payload", described(letter.batch, letter.row).encode()))
        records.append(replace(record, topic=origin.topic, partition=origin.partition, offset=origin.offset))
        notes.append(note)
    return records, notes


def _position(letter: DeadLetter) -> Headers:
    """Which of the rows made of one record has failed, and the dead letter that was being retried."""
    found: Headers = []
    rows = letter.batch.rows
    if not isinstance(rows, range) and (count := rows.count(rows[letter.row])) > 1:
        before = rows[: letter.row].count(rows[letter.row])
        found.append((f"{PREFIX}row", b"%d/%d" % (before, count)))
    retried = retried_from(letter.batch.fetched)
    if retried is not None:
        found.append((f"{PREFIX}retry_of", str(retried.ordered[rows[letter.row]].letter).encode()))
    return found


def _value(value: bytes | None, cut: int) -> bytes | None:
    if value is None or cut == CUT_ALL:
        return None
    return value[:KEPT_BYTES] if cut else value


def _headers(letter: DeadLetter, record: Record[bytes | None, bytes | None], application: str) -> Headers:
    cut = letter.cut
    message = error_text(letter.error).encode(errors="replace")
    headers: Headers = [
        *((record.headers or ()) if cut < CUT_ALL else ()),
        (f"{PREFIX}topic", record.topic.encode()),
        (f"{PREFIX}partition", b"%d" % record.partition),
        (f"{PREFIX}offset", b"%d" % record.offset),
        (f"{PREFIX}timestamp", b"%d" % record.timestamp),
        (f"{PREFIX}application", application.encode()),
        (f"{PREFIX}step", letter.step.encode()),
        (f"{PREFIX}exception", type(letter.error).__qualname__.encode()),
        (f"{PREFIX}message", message[: SHORT_MESSAGE_BYTES if cut == CUT_ALL else MESSAGE_BYTES]),
    ]
    headers += [(f"{PREFIX}{name}", value) for name, value in letter.context]
    known = letter.batch.select([letter.row])
    if isinstance(known.fetched, SyntheticBatch | Relayed) or known.lineage is not None:
        # A result of several records, with the setting ``lineage``.
        (ancestry,) = ancestry_of(known)
        if isinstance(ancestry, Lineage) and ancestry.first is not None and ancestry.records > 1:
            headers.append((LINEAGE, several_text(application, ancestry)))
    if cut:
        headers += [
            (f"{PREFIX}left_out", LEFT_OUT[cut].encode()),
            (f"{PREFIX}key_bytes", b"%d" % len(record.key or b"")),
            (f"{PREFIX}value_bytes", b"%d" % len(record.value or b"")),
        ]
    return headers
