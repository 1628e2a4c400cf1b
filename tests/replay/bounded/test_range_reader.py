"""Where the pieces of a range end depends on the records, and not on the polls that brought them."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from streams import TopicPartition
from streams.records import Output
from streams.replay.bounded import range_reader
from streams.replay.bounded.range_reader import read_range
from streams.replay.bounded.throttle import Throttle
from tests.replay.inputs import memory_broker

if TYPE_CHECKING:
    from streams.broker.memory import MemoryBroker
    from streams.records import Fetched, Headers

PLACE = TopicPartition("sales", 0)


def broker_with(sizes: list[int]) -> MemoryBroker:
    """Values of these sizes in bytes; some records have no key, some headers, and markers are in between."""
    broker = memory_broker({"sales": 1})
    producer = broker.producer(transactional_id="writer")
    producer.init_transactions(5)
    for first in range(0, len(sizes), 10):
        rows = range(first, min(first + 10, len(sizes)))
        producer.begin()
        producer.produce(
            Output(
                "sales",
                [None if row % 4 == 0 else b"k" for row in rows],
                [b"v" * sizes[row] for row in rows],
                [1_000 + row for row in rows],
                [[("row", b"%d" % row)] if first % 20 and row % 3 == 0 else None for row in rows],
            )
        )
        producer.commit(5)
    producer.close()
    return broker


def pieces_of(broker: MemoryBroker, *, polled: int, size: int, bytes_: int) -> list[Fetched]:
    with closing(broker.admin()) as admin:
        end = admin.end_offsets([PLACE])[PLACE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(range_reader, "POLL_RECORDS", polled)
        patch.setattr(range_reader, "PIECE_BYTES", bytes_)
        return [*read_range(broker, PLACE, 0, end, size=size, throttle=Throttle())]


class Read(NamedTuple):
    key: bytes | None
    value: bytes | None
    timestamp: int
    offset: int
    headers: Headers | None


def rows_of(piece: Fetched) -> list[Read]:
    headers = piece.headers() or [None] * len(piece)
    columns = piece.keys(), piece.values(), piece.timestamps(), piece.offsets(), headers
    return [*map(Read._make, zip(*columns, strict=True))]


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    polled=st.integers(1, 70),
    size=st.integers(1, 70),
    bytes_=st.integers(1, 400),
)
@hypothesis_settings(deadline=None)
def test_pieces_end_at_the_same_records_however_they_are_polled(
    sizes: list[int], polled: int, size: int, bytes_: int
):
    broker = broker_with(sizes)
    found = [rows_of(piece) for piece in pieces_of(broker, polled=polled, size=size, bytes_=bytes_)]
    assert found == [rows_of(piece) for piece in pieces_of(broker, polled=1_000, size=size, bytes_=bytes_)]
    (everything,) = pieces_of(broker, polled=1_000, size=1_000, bytes_=1_000_000)
    assert [row for piece in found for row in piece] == rows_of(everything)
    assert [row.value for piece in found for row in piece] == [b"v" * length for length in sizes]
    taken = [[len(row.key or b"") + len(row.value or b"") for row in piece] for piece in found]
    for lengths in taken:
        # Complete by its number or by its bytes, and by neither before its last record.
        assert len(lengths) <= size
        assert sum(lengths[:-1]) < bytes_
    for lengths in taken[:-1]:
        assert len(lengths) == size or sum(lengths) >= bytes_


@given(
    polled=st.integers(1, 40),
    bounds=st.tuples(st.integers(0, 35), st.integers(0, 35)).map(sorted),
    chosen=st.lists(st.integers(0, 34), max_size=10),
)
@hypothesis_settings(deadline=None)
def test_rows_and_slices_of_a_piece_are_those_of_its_polls(polled: int, bounds: list[int], chosen: list[int]):
    (piece,) = pieces_of(broker_with([*range(35)]), polled=polled, size=100, bytes_=10_000)
    rows, (start, stop) = rows_of(piece), bounds
    assert piece.next_offset == rows[-1].offset + 1
    if start < stop:
        part = piece.slice(start, stop)
        assert rows_of(part) == rows[start:stop]
        assert part.next_offset == rows[stop - 1].offset + 1
        if stop - start > 2:
            assert rows_of(part.slice(1, stop - start - 1)) == rows[start + 1 : stop - 1]
    assert len(piece.slice(start, start)) == 0
    assert piece.keys(chosen) == [rows[row].key for row in chosen]
    assert piece.values(chosen) == [rows[row].value for row in chosen]
    assert piece.timestamps(chosen) == [rows[row].timestamp for row in chosen]
    assert piece.offsets(chosen) == [rows[row].offset for row in chosen]
    headers = piece.headers(chosen) or [None] * len(chosen)
    assert [*headers] == [rows[row].headers for row in chosen]
