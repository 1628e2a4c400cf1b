"""Positions in a stream of changes, and recognising what was sent before.

A log sequence number alone is none: all rows of one COPY share it, and transactions arrive in the order of
their commits, so that it goes back and forth. The commits' numbers only increase. A position is therefore the
end of the last commit before a transaction, and how many events of that transaction are included.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from streams.errors import ConnectorError
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Phase: TypeAlias = Literal["snapshot", "stream"]


class TableReading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a table has been read again beside its changes."""

    label: str = ""
    """The program's own name of this reading; another one begins it again."""
    begun: bool = False
    """Whether its changes are told apart from those before it."""
    after: list[str] | None = None
    """The key of the last row of what was read completely, as the server writes it."""
    rows: int = 0
    """How many rows were read."""
    moved: bool = False
    """Whether a row got another key, and its values were not sent: it may have been left out."""
    second: bool = False
    """Whether it is read a second time for that reason."""


@decodable
class Position(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a source has got to. ``Position()`` is the beginning."""

    phase: Phase = "snapshot"
    snapshot: int = 0
    """The number of the snapshot: one that did not finish is begun again under the next number."""
    label: str = ""
    """The program's own name of the snapshot; another one requests a new snapshot."""
    lsn: int = 0
    """The end of the last commit: the server continues with the first transaction that committed after it."""
    events: int = 0
    """How many events of that transaction are included."""
    confirmed: int = 0
    """No more than this was confirmed to the server."""
    number: int = 0
    """How many records the source has read in all."""
    system: str = ""
    """The identifier of the database cluster."""
    tables: dict[str, str] = {}
    """The captured tables, with the identity that each has until it is dropped."""
    labels: dict[str, str] = {}
    """By table, the program's own name of its last complete reading, where it has one."""
    reading: dict[str, TableReading] = {}
    """The tables that are read again, or for the first time, beside the changes."""
    offset: dict[str, Any] | None = None
    """Debezium's own offset, for systems whose position is opaque."""
    partition: dict[str, Any] = {}
    """Debezium's own name of what that is an offset in."""

    @classmethod
    def decode(cls, data: bytes) -> Position:
        """Read a committed position; the empty one is the beginning."""
        if not data:
            return cls()
        try:
            return _DECODER.decode(data)
        except msgspec.MsgspecError as error:
            raise ConnectorError(
                f"the committed position is not one of a Debezium source: {error}",
                hint="give the source another name, or continue with the version that wrote it",
            ) from error

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @property
    def order(self) -> tuple[int, bool, int, int]:
        """Positions of one source are compared by this."""
        return (self.snapshot, self.phase == "stream", self.lsn, self.events)


_DECODER = msgspec.json.Decoder(Position)


class EventsMissing(Exception):
    """The server did not send what had been read before: there may be a gap."""


class Transactions:
    """Counts events by transaction, and recognises those that were read before the reader was opened.

    A transaction is named by the end of the commit before it: ``None`` for the first one that arrives.
    """

    def __init__(self, lsn: int, events: int) -> None:
        self.lsn = lsn
        self.events = events
        self._repeated = events
        """How many events are still to be skipped: all of the transaction after ``lsn``."""

    def take(self, befores: Sequence[int | None]) -> int:
        """Count events, and return how many of them, at the start, were read before.

        Raises ``EventsMissing`` when the transaction that was read in part is not sent again completely.
        """
        names = [self.lsn if before is None else before for before in befores]
        if any(map(int.__gt__, [self.lsn, *names], names)):
            raise EventsMissing(f"commits went back from {self.lsn} to {min(names)}")
        same = bisect_left(names, self.lsn + 1)
        skipped = min(same, self._repeated)
        self._repeated -= skipped
        if same < len(names):
            self._require_complete()
            self.lsn = names[-1]
            self.events = len(names) - bisect_left(names, self.lsn)
        else:
            self.events += same - skipped
        return skipped

    def committed(self, lsn: int | None) -> None:
        """No event of a transaction that committed before ``lsn`` is outstanding."""
        if lsn is not None and lsn > self.lsn:
            self._require_complete()
            self.lsn, self.events = lsn, 0

    def _require_complete(self) -> None:
        if self._repeated:
            raise EventsMissing(
                f"of the transaction after {lsn_text(self.lsn)}, {self.events} events had been read, "
                f"{self._repeated} of which were not sent again"
            )


def lsn_text(lsn: int) -> str:
    """A log sequence number as the server writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    """The number of a log sequence number as the server writes it."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def confirmed_by(offset: Mapping[str, Any]) -> int:
    """What Debezium confirms to the server for an event with this offset; 0 for nothing."""
    return int(offset.get("lsn_commit") or offset.get("lsn_proc") or 0)
