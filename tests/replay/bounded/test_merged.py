"""What several tasks wrote to one partition, merged by event time."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from streams.records import Output
from streams.replay.bounded import merged as merging
from streams.replay.bounded.merged import merged
from streams.replay.bounded.rows import SpooledRows, resized
from streams.replay.bounded.spool import SpoolFile, read_spool

if TYPE_CHECKING:
    from pathlib import Path

TIMES = st.lists(st.lists(st.integers(-1, 9), max_size=30), min_size=1, max_size=4)


def by_lowest_head(streams: list[list[int]]) -> list[tuple[int, int]]:
    """The specification: always the lowest of the first records, at equal times of the first stream."""
    at = [0] * len(streams)
    order = []
    while any(at[number] < len(times) for number, times in enumerate(streams)):
        _, number = min(
            (times[at[number]], number) for number, times in enumerate(streams) if at[number] < len(times)
        )
        order.append((number, at[number]))
        at[number] += 1
    return order


def pieces(number: int, times: list[int], seed: int) -> list[SpooledRows]:
    chance = random.Random(seed)
    found, start = [], 0
    while start < len(times):
        stop = min(len(times), start + chance.randint(1, 5))
        names = [f"{number}:{row}".encode() for row in range(start, stop)]
        headers: Any = [[("number", b"%d" % number)] for _ in names] if number % 2 else None
        found.append(SpooledRows(list(names), list(names), times[start:stop], headers, None))
        start = stop
    return found


@given(streams=TIMES, seed=st.integers(0, 99), waiting=st.integers(1, 20))
def test_the_lowest_first_record_comes_first_however_the_records_are_cut(
    streams: list[list[int]], seed: int, waiting: int
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "WAITING_ROWS", waiting)
        found = [*merged([iter(pieces(number, times, seed)) for number, times in enumerate(streams)])]
    values = [value for rows in found for value in rows.values]
    assert values == [f"{number}:{row}".encode() for number, row in by_lowest_head(streams)]
    headers = [header for rows in found for header in rows.headers or [None] * len(rows)]
    for value, header in zip(values, headers, strict=True):
        assert value is not None
        number = int(value.split(b":")[0])
        assert (header is not None) == bool(number % 2)


def test_a_file_has_what_was_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("streams.replay.bounded.spool.FRAME_ROWS", 3)
    file = SpoolFile(tmp_path / "topic" / "0")
    file.append(Output("t", [b"a", None], [b"1", None], [5, -1], [None, [("h", None)]]), keyless=2)
    file.append(Output("t", [None, b"b"], [b"", b"2"], [6, 7], partitions=[4, 5]), keyless=2)
    file.close()
    rows = [*read_spool(tmp_path / "topic" / "0")]
    assert [key for piece in rows for key in piece.keys] == [b"a", None, None, b"b"]
    assert [value for piece in rows for value in piece.values] == [b"1", None, b"", b"2"]
    assert [time for piece in rows for time in piece.timestamps] == [5, -1, 6, 7]
    assert [number for piece in rows for number in piece.partitions or ()] == [None, 2, 4, 5]
    assert [piece.headers for piece in rows] == [[None, [("h", None)], None], [None]]
    assert [*read_spool(tmp_path / "none")] == []


def test_frames_of_large_records_have_fewer_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("streams.replay.bounded.spool.FRAME_BYTES", 1_000)
    values = [b"x" * (number * 37 % 700) for number in range(200)]
    values[50] = b"y" * 5_000
    file = SpoolFile(tmp_path / "0")
    file.append(Output("t", [b"k"] * 199, values[:199], [*range(199)], partition=1))
    file.append(Output("t", [b"k"], values[199:], [199], partition=1))
    file.close()
    rows = [*read_spool(tmp_path / "0")]
    assert [value for piece in rows for value in piece.values] == values
    assert [time for piece in rows for time in piece.timestamps] == [*range(200)]
    assert all(len(piece) == 1 or sum(map(len, piece.values)) <= 1_000 for piece in rows)  # type: ignore[arg-type]  # none is null
    assert sum(map(len, rows)) == file.rows == 200


@given(
    lengths=st.lists(st.integers(0, 9), max_size=20),
    size=st.integers(1, 12),
    bytes_=st.integers(1, 60),
)
def test_pieces_are_cut_again_by_number_and_bytes(lengths: list[int], size: int, bytes_: int):
    numbers = iter(range(1_000))
    given_pieces = [
        SpooledRows(
            [b"k" for _ in range(length)],
            [b"%03d" % next(numbers) for _ in range(length)],
            [5] * length,
            None,
            None,
        )
        for length in lengths
        if length
    ]
    found = [*resized(given_pieces, size, bytes_)]
    assert [value for piece in found for value in piece.values] == [
        b"%03d" % number for number in range(sum(lengths))
    ]
    assert all(0 < len(piece) <= size for piece in found)
    if bytes_ > 4 * 9 + 4 * size:
        assert all(len(piece) == size for piece in found[:-1])
