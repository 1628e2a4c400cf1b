"""A record on its way to the dead-letter topic, and what is left of it where that does not take all of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from streams.errors import ProcessingError, error_text
from streams.origin import Relayed, described, origin_of
from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

    from streams.origin import Origin
    from streams.records import Batch, Headers, Record

MESSAGE_BYTES: Final = 1024
"""So much of an error's message is in the headers."""

KEPT_BYTES: Final = 1024
"""So much of its value a dead letter keeps that is too large as a whole."""

SHORT_MESSAGE_BYTES: Final = 128

CUT_ALL: Final = 2
"""How much is left out: nothing (0), most of the value (1), or key, value and headers (2)."""

LEFT_OUT: Final = ("", "most of the value", "key, value and headers")


class DeadLetter(NamedTuple):
    """A row that ``step`` could not process."""

    batch: Batch[Any, Any]
    row: int
    step: str
    error: Exception
    cut: int = 0

    @property
    def identity(self) -> Hashable:
        """What its source is recognized by when it is processed again."""
        return self.batch.select([self.row]).identities()[0]

    def cut_to(self, cut: int, error: Exception) -> DeadLetter:
        """With no more of the record than that; raises ``ProcessingError`` where no more can be left out."""
        if cut > CUT_ALL:
            raise ProcessingError(
                f"step {self.step!r} failed on {described(self.batch, self.row)} "
                f"({type(self.error).__name__}), and the dead-letter topic does not even take its "
                f"coordinates: {error_text(error)}",
                hint="let the dead-letter topic take it (max.message.bytes, cleanup.policy=delete), or give "
                "the step on_error=skip",
            ) from error
        return self._replace(cut=max(self.cut, cut))


class DeadLetterRows:
    """The dead letters of one output; see ``RowOwner``. One that is refused is written with less."""

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
    """The dead letters as they are written: the original bytes, with coordinates and reason in headers.

    ``originals`` reads input records again, for what came through an internal topic.
    """
    records, notes = _input_records(letters, originals)
    cuts = [letter.cut for letter in letters]
    return Output(
        topic,
        [record.key if cut < CUT_ALL else None for record, cut in zip(records, cuts, strict=True)],
        [_value(record.value, cut) for record, cut in zip(records, cuts, strict=True)],
        # The time may be what it was refused for; it is in the headers.
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
    """The records that dead letters are written from, and headers for those that are not the input's.

    What came through an internal topic is read again from its input topic. Where it is gone, and for results
    of several records, key and value are those that the step was given.
    """
    origins = [origin_of(letter.batch, letter.row) for letter in letters]
    wanted = {
        origin
        for origin, letter in zip(origins, letters, strict=True)
        if isinstance(letter.batch.fetched, Relayed)
        and not origin.is_result
        and origin.offset >= 0
        # Records that others wrote to an internal topic are their own origin, and are read already.
        and origin.topic != letter.batch.fetched.topic
    }
    found = originals(wanted) if wanted else {}
    records: list[Record[bytes | None, bytes | None]] = []
    notes: list[Headers] = []
    for letter, origin in zip(letters, origins, strict=True):
        record = letter.batch.original(letter.row)
        note: Headers = []
        if isinstance(letter.batch.fetched, Relayed):
            # Without the offset there, which differs from one run to the next.
            note.append(("__streams.errors.via", f"{record.topic}-{record.partition}".encode()))
        if origin in found:
            record = found[origin]
        elif origin in wanted:
            gone = f"as in {record.topic}: {origin} could not be read again"
            note.append(("__streams.errors.payload", gone.encode()))
        elif origin.is_result:
            note.append(("__streams.errors.payload", described(letter.batch, letter.row).encode()))
        records.append(replace(record, topic=origin.topic, partition=origin.partition, offset=origin.offset))
        notes.append(note)
    return records, notes


def _value(value: bytes | None, cut: int) -> bytes | None:
    if value is None or cut == CUT_ALL:
        return None
    return value[:KEPT_BYTES] if cut else value


def _headers(letter: DeadLetter, record: Record[bytes | None, bytes | None], application: str) -> Headers:
    cut = letter.cut
    message = error_text(letter.error).encode(errors="replace")
    headers: Headers = [
        *((record.headers or ()) if cut < CUT_ALL else ()),
        ("__streams.errors.topic", record.topic.encode()),
        ("__streams.errors.partition", b"%d" % record.partition),
        ("__streams.errors.offset", b"%d" % record.offset),
        ("__streams.errors.timestamp", b"%d" % record.timestamp),
        ("__streams.errors.application", application.encode()),
        ("__streams.errors.step", letter.step.encode()),
        ("__streams.errors.exception", type(letter.error).__qualname__.encode()),
        ("__streams.errors.message", message[: SHORT_MESSAGE_BYTES if cut == CUT_ALL else MESSAGE_BYTES]),
    ]
    if cut:
        headers += [
            ("__streams.errors.left_out", LEFT_OUT[cut].encode()),
            ("__streams.errors.key_bytes", b"%d" % len(record.key or b"")),
            ("__streams.errors.value_bytes", b"%d" % len(record.value or b"")),
        ]
    return headers
