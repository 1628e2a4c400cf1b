"""Reading lines as they arrive from files, pipes and devices, with any bytes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from streams.errors import ConfigurationError
from streams.ingest.lines import LONGEST_LINE, LineReader, read_lines


def all_lines(reader: LineReader) -> list[bytes]:
    found: list[bytes] = []
    while (lines := reader.read(5)) is not None:
        assert lines.first == len(found) + 1
        found += lines.values
    return found


def expected(content: bytes) -> list[bytes]:
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


pieces = st.lists(
    st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"", b"long" * 100]), max_size=30
)


@settings(max_examples=60)
@given(pieces)
def test_a_pipe_gives_the_same_lines_however_they_were_written(written):
    reading, writing = os.pipe()
    with LineReader(reading, "pipe", owned=True) as reader:
        found: list[bytes] = []
        for piece in written:
            os.write(writing, piece)
            while (lines := reader.read(0)) is not None and lines.size:
                found += lines.values
        os.close(writing)
        found += [value for lines in iter(lambda: reader.read(1), None) for value in lines.values]
    assert found == expected(b"".join(written))


def test_a_file_gives_its_lines_and_its_size(tmp_path):
    file = tmp_path / "lines"
    content = b"one\r\n\ntw\0o\r\r\n\xff\xfe\n" + b"x" * 3_000_000 + b"\nlast"
    file.write_bytes(content)
    with LineReader.open(str(file)) as reader:
        assert (reader.is_file, reader.size) == (True, len(content))
        assert all_lines(reader) == expected(content)
        assert reader.lines == 6


def test_a_line_is_there_as_soon_as_it_ends_and_not_before():
    reading, writing = os.pipe()
    with LineReader(reading, "pipe", owned=True) as reader:
        begun = time.monotonic()
        assert reader.read(0.05) is not None
        assert time.monotonic() - begun >= 0.05
        os.write(writing, b"one\nhalf")
        lines = reader.read(5)
        assert lines is not None
        assert lines.values == [b"one"]
        assert abs(lines.milliseconds - time.time() * 1000) < 5_000
        waiting = reader.read(0)
        assert waiting is not None
        assert waiting.values == []
        os.write(writing, b" a line\n")
        lines = reader.read(5)
        assert lines is not None
        assert (lines.first, lines.values) == (2, [b"half a line"])
        os.close(writing)
        assert reader.read(5) is None


def test_a_line_beyond_the_maximum_length_is_left_out_and_reported():
    reading, writing = os.pipe()

    def write() -> None:
        left = LONGEST_LINE + 1
        os.write(writing, b"first\n")
        while left:
            left -= os.write(writing, b"x" * min(left, 1 << 16))
        os.write(writing, b"\nsecond\n" + b"y")
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    found: list[bytes] = []
    too_long = []
    with LineReader(reading, "pipe", owned=True) as reader:
        while (lines := reader.read(5)) is not None:
            found += lines.values
            if lines.too_long:
                too_long.append((lines.first - 1, lines.too_long))
        assert reader.lines == 4
    thread.join()
    assert found == [b"first", b"second", b"y"]
    assert too_long == [(2, LONGEST_LINE + 1)]


def test_a_device_that_ends_no_line_takes_no_memory():
    with LineReader.open("/dev/zero") as reader:
        for _ in range(2 * LONGEST_LINE // (1 << 20)):
            lines = reader.read(1)
            assert lines is not None
            assert lines.values == []
        rest = reader.rest()
    assert rest is not None
    assert rest.values == []
    assert rest.too_long >= 2 * LONGEST_LINE


def test_a_named_pipe_waits_for_a_writer_and_ends_when_it_is_closed(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with LineReader.open(str(pipe)) as reader:
        assert not reader.is_file
        nothing = reader.read(0.05)
        assert nothing is not None
        assert nothing.size == 0
        writing = os.open(pipe, os.O_WRONLY)
        os.write(writing, b"one\ntwo")
        os.close(writing)
        assert all_lines(reader) == [b"one", b"two"]


def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path):
    closed = tmp_path / "closed"
    closed.write_bytes(b"x")
    with pytest.raises(ConfigurationError, match="does not exist"):
        LineReader.open(str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="is a folder"):
        LineReader.open(str(tmp_path))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        LineReader.open("a\0b")
    writing = os.open(closed, os.O_WRONLY)
    with (
        LineReader(writing, "closed", owned=True) as reader,
        pytest.raises(ConfigurationError, match="closed"),
    ):
        reader.read(1)


def test_all_lines_of_a_file_have_their_numbers(tmp_path):
    file = tmp_path / "lines"
    file.write_bytes(b"one\n\nthree")
    assert list(read_lines(str(file))) == [(1, b"one"), (2, b""), (3, b"three")]
    assert list(read_lines("/dev/null")) == []
    long = Path(tmp_path / "long")
    long.write_bytes(b"a\n" + b"x" * (LONGEST_LINE + 1))
    with pytest.raises(ConfigurationError, match=r"line 2 of .*long has 16,777,217 bytes"):
        list(read_lines(str(long)))
