"""What a task of the queue stores: jobs that wait in the store, and how far the queue has come."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Protocol

import msgspec

from streams.jobs.commands import CommandNote
from streams.jobs.limits import Starts  # noqa: TC001 - msgspec resolves the annotation
from streams.jobs.record import JobError  # noqa: TC001 - msgspec resolves the annotation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    class Entries(Protocol):
        """The entries of a store."""

        def get(self, key: bytes) -> bytes | None:
            """The value of a key."""

        def prefix(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
            """The entries whose keys begin so, in order."""

        def put(self, key: bytes, value: bytes | None) -> None:
            """Set a value; ``None`` deletes."""

        def delete(self, key: bytes) -> None:
            """Remove an entry."""


STORE = "jobs"

_OFFSET = Struct(">Q")
_DUE = Struct(">QQ")
_INSTANT = Struct(">q")
_LENGTH = Struct(">I")

# The first byte of a key says what the entry is.
_PROGRESS = b"p"
_STORED = b"s"
_DELAYED = b"y"
_DUE_AT = b"d"
_LIMIT = b"l"
_UNIQUE = b"u"
_COMMANDS = b"c"
_PAUSED = b"h"
_CANCELLED = b"x"
_COUNTS = b"n"
_SCHEDULE = b"e"
_OCCURRENCE = b"o"


class StoredState(IntEnum):
    """What a job in the store waits for."""

    WAITING = 0
    """Only for its turn."""
    RETRYING = 1
    """For the time of its next attempt; its key is closed meanwhile."""
    DELAYED = 2
    """For the time before which it must not be executed."""


class StoredJob(msgspec.Struct, array_like=True, frozen=True):
    """A job whose record may be before the committed offset: what is needed to execute and to report it."""

    state: StoredState
    due: int
    """When the state ends, in milliseconds since the epoch; 0: not by time."""
    tries: int
    key: bytes | None
    value: bytes
    timestamp: int
    headers: list[tuple[str, bytes | None]] | None
    error: JobError | None = None
    """Why its last attempt failed."""
    failed_at: int = 0
    """When it did, in milliseconds since the epoch."""
    released: int = 0
    """When the time came for which it waited, in milliseconds since the epoch; 0: it did not wait."""


class _Named(msgspec.Struct):
    job: str


class Progress(msgspec.Struct, array_like=True, frozen=True):
    """Which records between the committed offset and ``position`` are unfinished and not in the store."""

    position: int
    unfinished: list[tuple[int, int]]
    """Ranges of offsets, the ends excluded."""


class StoredLimit(msgspec.Struct, array_like=True, frozen=True):
    """See ``limits.Bucket``."""

    starts: list[Starts]
    closed_until: int


_pack = msgspec.msgpack.Encoder().encode
_job = msgspec.msgpack.Decoder(StoredJob).decode
_progress = msgspec.msgpack.Decoder(Progress).decode
_limit = msgspec.msgpack.Decoder(StoredLimit).decode
_note = msgspec.msgpack.Decoder(CommandNote).decode
_counts = msgspec.msgpack.Decoder(dict[str, list[int]]).decode
_named = msgspec.json.Decoder(_Named).decode


class JobStore:
    """The entries of one task's store, by what they are. Changes belong to the open slice."""

    def __init__(self, state: Entries) -> None:
        self._state = state
        self.counts: dict[str, list[int]] = {}
        """By function, how many jobs are stored in each state."""
        self._counted: bytes | None = None
        self.reload()

    # --- progress

    def progress(self) -> Progress | None:
        """``None`` where nothing beyond the committed offset is finished."""
        payload = self._state.get(_PROGRESS)
        return None if payload is None else _progress(payload)

    def put_progress(self, progress: Progress | None) -> None:
        """Set it, if it has changed."""
        payload = None if progress is None else _pack(progress)
        if payload != self._state.get(_PROGRESS):
            self._state.put(_PROGRESS, payload)

    # --- jobs

    def job(self, offset: int) -> StoredJob | None:
        """The job whose record has that offset, unless it is delayed."""
        payload = self._state.get(_STORED + _OFFSET.pack(offset))
        return None if payload is None else _job(payload)

    def delayed(self, offset: int) -> StoredJob | None:
        """The delayed job whose record has that offset."""
        payload = self._state.get(_DELAYED + _OFFSET.pack(offset))
        return None if payload is None else _job(payload)

    def find(self, offset: int) -> StoredJob | None:
        """The job whose record has that offset, delayed or not."""
        return self.job(offset) or self.delayed(offset)

    def jobs(self) -> Iterator[tuple[int, StoredJob]]:
        """All jobs but the delayed ones, by offset."""
        for key, payload in self._state.prefix(_STORED):
            yield _OFFSET.unpack_from(key, 1)[0], _job(payload)

    def all_delayed(self) -> Iterator[tuple[int, StoredJob]]:
        """The delayed jobs, by offset."""
        for key, payload in self._state.prefix(_DELAYED):
            yield _OFFSET.unpack_from(key, 1)[0], _job(payload)

    def put(self, offset: int, job: StoredJob) -> None:
        """Add a job, or replace it. The states with a time are due then."""
        kind = _DELAYED if job.state is StoredState.DELAYED else _STORED
        self._state.put(kind + _OFFSET.pack(offset), _pack(job))
        self._count(job, 1)
        if job.due:
            self._state.put(_DUE_AT + _DUE.pack(job.due, offset), b"")

    def delete(self, offset: int, job: StoredJob) -> None:
        """Remove a job."""
        kind = _DELAYED if job.state is StoredState.DELAYED else _STORED
        self._state.delete(kind + _OFFSET.pack(offset))
        self._count(job, -1)
        if job.due:
            self._state.delete(_DUE_AT + _DUE.pack(job.due, offset))

    def due(self) -> Iterator[tuple[int, int]]:
        """The times at which jobs are due, with their offsets, in that order."""
        for key, _ in self._state.prefix(_DUE_AT):
            due, offset = _DUE.unpack_from(key, 1)
            yield due, offset

    def _count(self, job: StoredJob, change: int) -> None:
        name = _named(job.value).job
        counts = self.counts.get(name)
        if counts is None:
            counts = self.counts[name] = [0] * len(StoredState)
        counts[job.state] += change
        if not any(counts):
            del self.counts[name]

    def put_counts(self) -> None:
        """Store how many jobs are stored, if that has changed, so that it is known without reading them."""
        payload = _pack(self.counts) if self.counts else None
        if payload != self._counted:
            self._state.put(_COUNTS, payload)
            self._counted = payload

    def reload(self) -> None:
        """Read again how many jobs are stored, after changes were undone."""
        self._counted = self._state.get(_COUNTS)
        self.counts = {} if self._counted is None else _counts(self._counted)

    # --- commands

    def command_position(self) -> int:
        """One past the offset of the last command that was applied."""
        payload = self._state.get(_COMMANDS)
        return 0 if payload is None else int(_OFFSET.unpack(payload)[0])

    def put_command_position(self, position: int) -> None:
        """Set it."""
        self._state.put(_COMMANDS, _OFFSET.pack(position))

    def pauses(self) -> Iterator[tuple[str, CommandNote]]:
        """What is paused: scopes and who paused them."""
        for key, payload in self._state.prefix(_PAUSED):
            yield key[1:].decode(), _note(payload)

    def put_pause(self, scope: str, note: CommandNote | None) -> None:
        """Pause a scope; ``None``: resume it."""
        self._state.put(_PAUSED + scope.encode(), None if note is None else _pack(note))

    def cancelled(self) -> Iterator[tuple[int, CommandNote]]:
        """The jobs that are cancelled and have not ended, and those whose records were not read yet."""
        for key, payload in self._state.prefix(_CANCELLED):
            yield _OFFSET.unpack_from(key, 1)[0], _note(payload)

    def put_cancelled(self, offset: int, note: CommandNote | None) -> None:
        """Set who cancelled a job; ``None``: it has ended."""
        self._state.put(_CANCELLED + _OFFSET.pack(offset), None if note is None else _pack(note))

    # --- limits and uniqueness

    def limit(self, name: str) -> StoredLimit:
        """What is stored of a limit."""
        payload = self._state.get(_LIMIT + name.encode())
        return StoredLimit([], 0) if payload is None else _limit(payload)

    def put_limit(self, name: str, limit: StoredLimit | None) -> None:
        """Store a limit; ``None``: it is as if nothing had ever begun."""
        self._state.put(_LIMIT + name.encode(), None if limit is None else _pack(limit))

    def limits(self) -> Iterator[tuple[str, StoredLimit]]:
        """All limits of which something is stored."""
        for key, payload in self._state.prefix(_LIMIT):
            yield key[1:].decode(), _limit(payload)

    def unique(self, text: str) -> int | None:
        """The offset of the unfinished job with that ``unique``."""
        payload = self._state.get(_UNIQUE + text.encode())
        return None if payload is None else _OFFSET.unpack(payload)[0]

    def put_unique(self, text: str, offset: int | None) -> None:
        """Set it; ``None``: there is none any more."""
        self._state.put(_UNIQUE + text.encode(), None if offset is None else _OFFSET.pack(offset))

    # --- schedules

    def schedules(self) -> list[tuple[str, int]]:
        """The names of schedules, with their last decided instants in milliseconds since the epoch."""
        return [
            (key[1:].decode(), _INSTANT.unpack(payload)[0]) for key, payload in self._state.prefix(_SCHEDULE)
        ]

    def put_schedule(self, name: str, instant: int | None) -> None:
        """Set the last decided instant; ``None``: there is no such schedule any more."""
        self._state.put(_SCHEDULE + name.encode(), None if instant is None else _INSTANT.pack(instant))

    def occurrences(self, schedule: str) -> list[int]:
        """The offsets of the unfinished jobs of a schedule."""
        prefix = _occurrences(schedule)
        return [_OFFSET.unpack_from(key, len(prefix))[0] for key, _ in self._state.prefix(prefix)]

    def put_occurrence(self, schedule: str, offset: int, *, unfinished: bool) -> None:
        """Note that a job of a schedule is unfinished, or is so no more."""
        self._state.put(_occurrences(schedule) + _OFFSET.pack(offset), b"" if unfinished else None)


def _occurrences(schedule: str) -> bytes:
    name = schedule.encode()
    return _OCCURRENCE + _LENGTH.pack(len(name)) + name


def ranges(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending offsets as ranges, the ends excluded."""
    found: list[tuple[int, int]] = []
    start = stop = -1
    for offset in offsets:
        if offset != stop:
            if stop >= 0:
                found.append((start, stop))
            start = offset
        stop = offset + 1
    if stop >= 0:
        found.append((start, stop))
    return found


def command_position_of(key: bytes | None, payload: bytes) -> int | None:
    """One past the last applied command, if this is the entry that says so."""
    return int(_OFFSET.unpack(payload)[0]) if key == _COMMANDS else None


def stored_jobs(entries: Iterable[tuple[tuple[int, bytes], bytes | None]]) -> Iterator[StoredJob]:
    """The jobs among the entries of stores, of which each has its partition and key."""
    for (_, key), payload in entries:
        if payload is not None and key.startswith((_STORED, _DELAYED)):
            yield _job(payload)
