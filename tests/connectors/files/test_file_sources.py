from __future__ import annotations

import json
import os
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from streams.connectors.files import Csv, CsvSource, JsonLinesSource
from streams.errors import ConfigurationError, ConnectorError, SourceUnavailable
from tests.support.source_reading import Reading

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def log(tmp_path):
    return tmp_path / "app.log"


def append(path: Path, *values: Any, end: str = "\n") -> None:
    with path.open("a") as file:
        file.write("\n".join(map(json.dumps, values)) + end)


def test_lines_are_read_as_they_are_written_and_an_incomplete_one_is_not(log):
    with Reading(JsonLinesSource(log)) as reading:
        assert reading.drain() == []
        assert reading.reader.health().problem.startswith("no file matches")
        append(log, 1, 2, end="\n3")
        assert reading.drain() == [1, 2]
        assert reading.reader.health().metrics == {"files": 1, "lag_bytes": 1}
        append(log, 4, end="\r\n\r\n")
        assert reading.drain() == [1, 2, 34]
        assert reading.offsets == [1, 2, 3]
        append(log, 5)
        assert reading.drain()[3:] == [5]
        assert reading.offsets[3:] == [5]
        assert reading.reader.health().problem == ""


def test_a_restart_continues_at_the_committed_position(log):
    append(log, *range(5), end="\n5")
    with Reading(JsonLinesSource(log)) as reading:
        assert reading.step(commit=False)
        reading.restart()
        assert reading.drain() == [0, 1, 2, 3, 4]
        reading.restart()
        append(log, 6)
        assert reading.drain() == [0, 1, 2, 3, 4, 56]


def test_a_bad_line_is_left_to_the_serde(log):
    class Order(msgspec.Struct):
        id: int

    log.write_bytes(b'{"id": 1}\n{"id": \n\xff\n{"id": 2}\n')
    with Reading(JsonLinesSource(log, Order)) as reading:
        assert reading.drain() == [Order(1), "DecodeError", "DecodeError", Order(2)]


def test_read_waits_for_lines_and_ends_when_it_is_closed(log):
    reader = Reading(JsonLinesSource(log)).reader
    begun = time.monotonic()
    timer = threading.Timer(0.1, reader.close)
    timer.start()
    assert reader.read(30.0) is None
    assert time.monotonic() - begun < 20
    timer.join()


def test_a_file_that_was_renamed_is_read_to_its_end(log, tmp_path):
    append(log, 1)
    with Reading(JsonLinesSource(log)) as reading:
        reading.drain()
        append(log, 2)
        log.rename(tmp_path / "app.log.1")
        append(log, 4)
        append(tmp_path / "app.log.1", 3)
        assert sorted(reading.drain()) == [1, 2, 3, 4]
        (tmp_path / "app.log.1").rename(tmp_path / "app.log.2")
        append(tmp_path / "app.log.2", 5)
        reading.drain()
        (tmp_path / "app.log.2").unlink()
        append(log, 6)
        assert sorted(reading.drain()) == [1, 2, 3, 4, 5, 6]


def test_a_file_that_was_renamed_while_nothing_read_is_read_to_its_end(log, tmp_path):
    append(log, 1)
    with Reading(JsonLinesSource(log)) as reading:
        reading.drain()
        append(log, 2)
        log.rename(tmp_path / "app.log.1")
        append(log, 3)
        reading.restart()
        assert sorted(reading.drain()) == [1, 2, 3]


@pytest.mark.parametrize("restart", [False, True])
def test_a_file_that_was_copied_and_truncated_is_read_to_its_end_in_the_copy(log, tmp_path, restart):
    append(log, 1)
    with Reading(JsonLinesSource(log)) as reading:
        reading.drain()
        append(log, 2)
        shutil.copy(log, tmp_path / "app.log.1")
        os.truncate(log, 0)
        append(log, *range(100, 110))
        if restart:
            reading.restart()
        assert sorted(reading.drain()) == [1, 2, *range(100, 110)]


def test_a_file_that_was_deleted_while_it_is_read_is_read_to_its_end(log):
    append(log, 1)
    with Reading(JsonLinesSource(log)) as reading:
        reading.drain()
        append(log, 2)
        log.unlink()
        assert reading.drain() == [1, 2]
        append(log, 3)
        assert reading.drain() == [1, 2, 3]


def test_another_file_of_that_name_and_number_is_read_from_its_beginning(log):
    append(log, 1, 2)
    with Reading(JsonLinesSource(log)) as reading:
        reading.drain()
        # A deleted file's number is often used again at once; this keeps it in any case.
        log.write_text("3\n4\n5\n6\n7\n")
        reading.restart()
        assert reading.drain() == [1, 2, 3, 4, 5, 6, 7]


def test_what_was_not_read_and_is_gone_stops_the_source(log):
    append(log, 1, end="\n2")
    with Reading(JsonLinesSource(log)) as reading:
        reading.drain()
        log.unlink()
        with pytest.raises(ConnectorError, match="read up to byte 2") as raised:
            reading.restart()
        assert "put the file back" in str(raised.value)


def test_a_file_that_was_read_completely_may_be_deleted(log):
    append(log, 1)
    with Reading(JsonLinesSource(log)) as reading:
        reading.drain()
        log.unlink()
        reading.restart()
        append(log, 2)
        assert reading.drain() == [1, 2]


def test_all_files_of_a_pattern_are_read_in_the_order_of_their_changes(tmp_path):
    names = ["c", "a", "b"]
    for age, name in enumerate(names):
        append(tmp_path / f"{name}.jsonl", age)
        os.utime(tmp_path / f"{name}.jsonl", (age, age))
    (tmp_path / "d.jsonl").mkdir()
    append(tmp_path / "other.txt", 9)
    with Reading(JsonLinesSource(tmp_path / "*.jsonl")) as reading:
        assert sorted(reading.drain()) == [0, 1, 2]
        append(tmp_path / "e.jsonl", 3)
        assert sorted(reading.drain()) == [0, 1, 2, 3]
        reading.restart()
        append(tmp_path / "a.jsonl", 4)
        assert sorted(reading.drain()) == [0, 1, 2, 3, 4]
        assert reading.reader.health().metrics["files"] == 4


def test_once_reads_the_existing_files_to_their_ends(log, tmp_path):
    append(log, 1, end="\n2")
    with Reading(JsonLinesSource(tmp_path / "*.log", follow=False)) as reading:
        assert reading.drain() == [1, 2]
        append(tmp_path / "new.log", 3)
        assert reading.drain() == [1, 2]
        reading.restart()
        assert reading.drain() == [1, 2, 3]


def test_long_lines_and_many_of_them(log):
    long = "x" * 3_000_000
    append(log, long, *range(200_000), long)
    with Reading(JsonLinesSource(log)) as reading:
        assert reading.drain() == [long, *range(200_000), long]
    log.write_bytes(b"x" * (17 << 20))
    with Reading(JsonLinesSource(log)) as reading, pytest.raises(ConnectorError, match=r"line 1 of .* bytes"):
        reading.drain()


def test_a_folder_that_does_not_exist_or_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(ConnectorError, match="not a folder"):
        JsonLinesSource(tmp_path / "no" / "a.jsonl").check("shop", "in")
    JsonLinesSource(tmp_path / "*" / "a.jsonl").check("shop", "in")
    with pytest.raises(SourceUnavailable):
        Reading(JsonLinesSource(tmp_path / ("x" * 300)))


class Item(msgspec.Struct):
    id: int
    name: str = ""
    price: float | None = None


def test_csv_records_have_the_columns_of_their_file_s_header(tmp_path):
    path = tmp_path / "items.csv"
    path.write_bytes(
        b'\xef\xbb\xbfid,name,price\r\n1,"a, ""b""",1.5\r\n\r\n2,"two\nlines",\n3,c\n4,d,4\n5,"open'
    )
    with Reading(CsvSource(path, Item)) as reading:
        assert reading.drain() == [
            Item(1, 'a, "b"', 1.5),
            Item(2, "two\nlines"),
            "ValueError",
            Item(4, "d", 4.0),
        ]
        assert reading.offsets == [2, 4, 6, 7]
        reading.restart()
        with path.open("a") as file:
            file.write('\nend",5\n')
        assert reading.drain()[4:] == [Item(5, "open\nend", 5.0)]


def test_csv_with_given_columns_and_delimiter(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("1;a\n2;b\n")
    with Reading(CsvSource(path, columns=["id", "name"], delimiter=";", follow=False)) as reading:
        assert reading.drain() == [{"id": "1", "name": "a"}, {"id": "2", "name": "b"}]
    with pytest.raises(ConfigurationError):
        CsvSource(path, delimiter="ab")


def test_a_quote_that_is_never_closed_costs_one_record(tmp_path):
    path = tmp_path / "items.csv"
    rows = "".join(f"{n},x{'y' * 100}\n" for n in range(2, 20_000))
    path.write_text(f'id,name\n1,"open\n{rows}')
    with Reading(CsvSource(path, Item)) as reading:
        values = reading.drain()
        assert values[0] == "Error"
        assert [value.id for value in values[1:]] == list(range(2, 20_000))


def test_csv_written_by_the_serde_is_read_back():
    rows = [{"id": "1", "name": 'a,"b"\nc'}, {"id": "2", "name": ""}]
    assert list(Csv().deserialize(list(Csv().serialize(rows)))) == rows
    typed = Csv(Item, columns=["id", "name", "price"])
    assert list(typed.deserialize(list(typed.serialize([Item(1, "ä", 1.5)])))) == [Item(1, "ä", 1.5)]


class Log:
    """A file as loggers write it: lines may be incomplete for a while; it is rotated in one of two ways."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "app.log"
        self.path.touch()
        self.written: list[int] = []
        self._rotations = 0
        self._open = False

    def write(self, *, complete: bool) -> None:
        self.end_line()
        self.written.append(len(self.written))
        self._append(f'"{self.written[-1]}')
        self._open = True
        if complete:
            self.end_line()

    def end_line(self) -> None:
        if self._open:
            self._append('"\n')
            self._open = False

    def rename(self) -> None:
        self.end_line()
        self.path.rename(self._rotated())
        self.path.touch()

    def copy_and_truncate(self) -> None:
        self.end_line()
        shutil.copy(self.path, self._rotated())
        os.truncate(self.path, 0)

    def _rotated(self) -> Path:
        self._rotations += 1
        return self.folder / f"app.log.{self._rotations}"

    def _append(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text)


ACTIONS = st.lists(
    st.sampled_from(["write", "half", "read", "step", "lose", "restart", "rotate"]), max_size=25
)


@pytest.mark.parametrize("rotation", ["rename", "copy"])
@settings(max_examples=60)
@given(actions=ACTIONS)
def test_no_line_is_lost_or_read_twice_whatever_happens_to_the_file(tmp_path_factory, rotation, actions):
    log = Log(tmp_path_factory.mktemp("logs"))
    # Copies must not match the pattern, renamed files may: then no rotation can be missed.
    pattern = log.folder / ("app.log*" if rotation == "rename" else "app.log")
    read_since_rotation = False
    with Reading(JsonLinesSource(pattern)) as reading:
        for action in actions:
            match action:
                case "write" | "half":
                    log.write(complete=action == "write")
                case "read":
                    reading.drain()
                    read_since_rotation = read_since_rotation or log.path.read_bytes().count(b"\n") > 0
                case "step":
                    reading.step()
                case "lose":
                    reading.step(commit=False)
                    reading.restart()
                case "restart":
                    reading.restart()
                case "rotate" if rotation == "rename":
                    log.rename()
                case "rotate" if read_since_rotation:
                    log.copy_and_truncate()
                    read_since_rotation = False
        log.end_line()
        assert sorted(map(int, reading.drain())) == log.written
