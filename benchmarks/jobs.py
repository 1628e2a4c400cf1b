"""The jobs of the benchmarks, and the verification of their outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from benchmarks.data import TEAMS, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.data import Chunk
    from streams.records import Fetched

WINDOW_MILLISECONDS = 10_000


@dataclass(frozen=True, slots=True)
class Job:
    """A job; ``name`` is its name for the peers.

    ``expected`` returns the numbers that a chunk of the input adds to the tally of the right output,
    ``found`` returns the tally of an output. A number is a hash of a record's expected result, so it is valid
    in one process only; the systems need not write the same bytes.
    """

    name: str
    expected: Callable[[Chunk], list[int]]
    found: Callable[[Iterable[Fetched]], Tally]
    stateful: bool = True


class WindowCount(msgspec.Struct):
    """The fields of a window's result; further fields are skipped."""

    start: int
    value: int


class Joined(msgspec.Struct):
    """The fields of a join's result, from both sides."""

    ip: str
    team: str


def _failed_requests(chunk: Chunk) -> list[int]:
    return [
        timestamp for timestamp, status in zip(chunk.timestamps, chunk.statuses, strict=True) if status >= 400
    ]


def _timestamps(output: Iterable[Fetched]) -> Tally:
    tally = Tally()
    for fetched in output:
        tally.add(fetched.timestamps())
    return tally


def _keys_in_windows(chunk: Chunk) -> list[int]:
    return [
        hash((key, timestamp - timestamp % WINDOW_MILLISECONDS))
        for key, timestamp in zip(chunk.keys, chunk.timestamps, strict=True)
    ]


def _keys(chunk: Chunk) -> list[int]:
    return [hash((key, 0)) for key in chunk.keys]


def _last_counts(output: Iterable[Fetched]) -> Tally:
    """The last count of each key and window, or of each key, weighted as that many records."""
    decode = msgspec.json.Decoder(WindowCount | int).decode
    counts: dict[tuple[bytes | None, int], int] = {}
    for fetched in output:
        for key, value in zip(fetched.keys(), fetched.values(), strict=True):
            count = decode(value or b"")
            if isinstance(count, int):
                counts[key, 0] = count
            else:
                counts[key, count.start] = count.value
    return Tally(sum(counts.values()), sum(count * hash(counted) for counted, count in counts.items()))


def _requests_with_teams(chunk: Chunk) -> list[int]:
    return [
        hash((key, timestamp, TEAMS[key]))
        for key, timestamp in zip(chunk.keys, chunk.timestamps, strict=True)
    ]


def _joined(output: Iterable[Fetched]) -> Tally:
    decode = msgspec.json.Decoder(Joined).decode
    tally = Tally()
    for fetched in output:
        joined = [decode(value or b"") for value in fetched.values()]
        tally.add(
            [
                hash((both.ip.encode(), timestamp, both.team))
                for both, timestamp in zip(joined, fetched.timestamps(), strict=True)
            ]
        )
    return tally


JSON = Job("json", expected=_failed_requests, found=_timestamps, stateful=False)
COPY = Job("copy", expected=lambda chunk: chunk.timestamps, found=_timestamps, stateful=False)
COUNT_WINDOWS = Job("count-windows", expected=_keys_in_windows, found=_last_counts)
COUNT_KEYS = Job("count-keys", expected=_keys, found=_last_counts)
JOIN = Job("join", expected=_requests_with_teams, found=_joined)
