from __future__ import annotations

import datetime as dt
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streams.connectors.change import Change, ChangeSource
from streams.connectors.files import JsonLinesSink, ParquetSink
from streams.errors import (
    ConfigurationError,
    ConnectorError,
    SinkFenced,
    SinkMismatch,
    SinkOutcomeUnknown,
    SinkUnavailable,
)
from streams.records import TopicPartition
from tests.support.sink_rows import ORDERS, TOPIC_ID, context, sink_rows

OTHER = TopicPartition("orders-eu", 12)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def sink(folder):
    sink = JsonLinesSink(folder)
    sink.check(context())
    return sink


def names(folder) -> list[str]:
    """Of all files but those of the sink itself."""
    return sorted(path.name for path in folder.iterdir() if path.name != "_streams")


def lines(folder) -> list[Any]:
    return [json.loads(line) for name in names(folder) for line in (folder / name).read_text().splitlines()]


def temporary(folder) -> list[Path]:
    return list((folder / "_streams").glob("*/owner-*/*"))


class Written(NamedTuple):
    refused: list[tuple[int, str]]
    position: int


def write(writer, values, *, partition=ORDERS, **options) -> Written:
    """Write values in one transaction, from the sink's position on."""
    start = writer.claim({partition: TOPIC_ID})[partition]
    refused = writer.write([sink_rows(values, start=start, partition=partition, **options)])
    writer.commit()
    return Written([(row.row, str(row.error)) for row in refused], start + len(values))


def test_each_transaction_is_a_file_with_its_offsets_in_the_name(sink, folder):
    writer = sink.open(context())
    assert writer.claim({ORDERS: TOPIC_ID, OTHER: "id-2"}) == {ORDERS: 0, OTHER: 0}
    writer.write([sink_rows([{"n": 1}, {"n": 2}]), sink_rows([{"n": 3}], partition=OTHER)])
    assert names(folder) == []
    writer.commit()
    writer.write([sink_rows([{"n": 4}], start=2, next_offset=9)])
    writer.commit()
    writer.close()
    assert names(folder) == [
        "orders-0-00000000000000000000-00000000000000000002.jsonl",
        "orders-0-00000000000000000002-00000000000000000009.jsonl",
        "orders-eu-12-00000000000000000000-00000000000000000001.jsonl",
    ]
    assert (folder / names(folder)[0]).read_bytes() == b'{"n":1}\n{"n":2}\n'
    assert sink.open(context()).claim({ORDERS: TOPIC_ID, OTHER: "id-2"}) == {ORDERS: 9, OTHER: 1}


def test_a_transaction_that_is_rolled_back_leaves_nothing(sink, folder):
    writer = sink.open(context())
    writer.claim({ORDERS: TOPIC_ID})
    writer.write([sink_rows([1, 2])])
    writer.rollback()
    assert temporary(folder) == []
    writer.write([sink_rows([3])])
    writer.close()
    writer.close()
    assert names(folder) == []
    assert temporary(folder) == []


def test_ranges_without_rows_move_the_position_without_a_file(sink, folder):
    writer = sink.open(context())
    writer.claim({ORDERS: TOPIC_ID})
    writer.write([sink_rows([], next_offset=500)])
    writer.commit()
    assert names(folder) == []
    assert sink.open(context()).claim({ORDERS: TOPIC_ID}) == {ORDERS: 500}


def test_the_position_stays_when_files_are_taken_away_and_follows_the_names_when_its_record_is_behind(
    sink, folder
):
    write(sink.open(context()), [1, 2])
    recorded = (folder / "_streams" / "orders-0" / "position").read_bytes()
    write(sink.open(context()), [3])
    (folder / "_streams" / "orders-0" / "position").write_bytes(recorded)
    assert sink.open(context()).claim({ORDERS: TOPIC_ID}) == {ORDERS: 3}
    for name in names(folder):
        (folder / name).unlink()
    assert sink.open(context()).claim({ORDERS: TOPIC_ID}) == {ORDERS: 3}


def test_a_copy_of_the_folder_continues_where_the_copy_was_taken(sink, folder, tmp_path):
    write(sink.open(context()), [1, 2])
    shutil.copytree(folder, tmp_path / "copy")
    write(sink.open(context()), [3])
    assert JsonLinesSink(tmp_path / "copy").open(context()).claim({ORDERS: TOPIC_ID}) == {ORDERS: 2}


def test_a_replaced_worker_can_neither_write_nor_commit(sink, folder):
    zombie, frozen, owner = (sink.open(context()) for _ in range(3))
    zombie.claim({ORDERS: TOPIC_ID})
    zombie.write([sink_rows(["zombie"] * 3)])
    owner.claim({ORDERS: TOPIC_ID})
    with pytest.raises(SinkFenced, match="another worker has claimed orders-0"):
        zombie.commit()
    owner.write([sink_rows(["owner"])])
    owner.commit()
    frozen.claim({ORDERS: TOPIC_ID})
    owner.release([ORDERS])
    owner.claim({ORDERS: TOPIC_ID})
    with pytest.raises(SinkFenced):
        frozen.write([sink_rows(["frozen"], start=1)])
    with pytest.raises(SinkFenced, match="is not offset 0"):
        owner.write([sink_rows(["old"])])
    assert lines(folder) == ["owner"]
    assert temporary(folder) == []


def test_partitions_are_committed_one_after_the_other(sink, folder):
    writer, thief = sink.open(context()), sink.open(context())
    writer.claim({ORDERS: TOPIC_ID, OTHER: "id-2"})
    writer.write([sink_rows([1]), sink_rows([2], partition=OTHER)])
    thief.claim({OTHER: "id-2"})
    with pytest.raises(SinkOutcomeUnknown):
        writer.commit()
    assert sink.open(context()).claim({ORDERS: TOPIC_ID, OTHER: "id-2"}) == {ORDERS: 1, OTHER: 0}


def test_a_topic_that_was_created_again_is_refused_with_both_ids(sink, folder):
    write(sink.open(context()), [1])
    with pytest.raises(SinkMismatch, match=f"{TOPIC_ID}.*new-id"):
        sink.open(context()).claim({ORDERS: "new-id"})


def test_files_whose_offsets_overlap_are_refused(sink, folder):
    write(sink.open(context()), [1, 2])
    (folder / names(folder)[0].replace("02.jsonl", "05.jsonl")).touch()
    with pytest.raises(ConnectorError, match="same offsets"):
        sink.open(context()).claim({ORDERS: TOPIC_ID})


def test_a_folder_belongs_to_one_sink(sink, folder, tmp_path):
    sink.check(context())
    for stranger in (context("other"), context(application="other")):
        with pytest.raises(ConnectorError, match="the folder of sink 'out' of application 'shop'"):
            sink.check(stranger)
    with pytest.raises(ConnectorError, match="format jsonl"):
        ParquetSink(folder, schema=Row).check(context())
    with pytest.raises(ConnectorError, match="not a folder"):
        JsonLinesSink(tmp_path / "no" / "out").check(context())


def test_a_disk_that_refuses_is_unavailable(sink, folder):
    writer = sink.open(context())
    writer.claim({ORDERS: TOPIC_ID})
    shutil.rmtree(folder)
    folder.touch()
    with pytest.raises(SinkUnavailable):
        writer.write([sink_rows([1])])
    with pytest.raises(SinkUnavailable):
        sink.open(context()).claim({ORDERS: TOPIC_ID})


def test_values_that_json_has_not_are_refused_and_the_others_written(sink, folder):
    values = [1, math.nan, "a", None, object(), {"n": [math.inf]}, Decimal("1.10"), "\ud800", "é\n"]
    refused, position = write(sink.open(context()), values)
    assert [row for row, _ in refused] == [1, 3, 4, 5, 7]
    assert lines(folder) == [1, "a", "1.10", "é\n"]
    assert position == len(values)
    assert write(sink.open(context()), [None]).refused[0][1].startswith("a line without its key")
    assert len(names(folder)) == 1


def test_metadata_wraps_values_and_keeps_deletions(folder):
    sink = JsonLinesSink(folder, metadata=True)
    sink.check(context())
    refused, _ = write(sink.open(context()), [{"n": 1}, None, math.nan], keys=["a", {"id": 2}, "c"])
    assert [row for row, _ in refused] == [2]
    assert lines(folder) == [
        {"key": "a", "value": {"n": 1}, "timestamp": 1_700_000_000_000, "offset": 0},
        {"key": {"id": 2}, "value": None, "timestamp": 1_700_000_000_001, "offset": 1},
    ]


class Part(msgspec.Struct):
    n: int


class Row(msgspec.Struct):
    id: int
    name: str | None = None
    parts: list[Part] = []
    at: dt.datetime | None = None
    ref: uuid.UUID | None = None


def table(folder) -> list[dict[str, Any]]:
    return [
        row for name in names(folder) for row in pq.read_table(folder / name, partitioning=None).to_pylist()
    ]


def test_parquet_files_have_the_schema_of_a_class(folder):
    sink = ParquetSink(folder, schema=Row)
    sink.check(context())
    at = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    ref = uuid.uuid4()
    source = ChangeSource()
    values = [
        Row(1, "a", [Part(1), Part(2)], at, ref),
        {"id": 2, "parts": [], "more": "left out"},
        Change(op="c", after=Row(3), source=source),
        Change(op="d", before=Row(3), source=source),
        None,
        "no row",
        {"id": None, "parts": []},
        {"id": 1.5, "parts": []},
        {"id": 1 << 63, "parts": []},
        {"id": 9, "parts": [{"n": 1, "lost": 2}]},
        {"id": 9, "parts": [], "at": dt.datetime(2026, 3, 1)},  # noqa: DTZ001 - no zone
        {"id": 9, "parts": [], "name": "\ud800"},
    ]
    refused, position = write(sink.open(context()), values)
    assert [row for row, _ in refused] == list(range(3, 12))
    assert "field 'id' of type int64" in dict(refused)[7]
    empty: dict[str, Any] = {"name": None, "parts": [], "at": None, "ref": None}
    assert table(folder) == [
        {"id": 1, "name": "a", "parts": [{"n": 1}, {"n": 2}], "at": at, "ref": str(ref)},
        {"id": 2, **empty},
        {"id": 3, **empty},
    ]
    assert names(folder)[0].endswith(f"-{position:020d}.parquet")


def test_parquet_keeps_decimals_by_a_schema_of_pyarrow(folder):
    schema = pa.schema([("id", pa.int32()), ("price", pa.decimal128(24, 3)), ("day", pa.date32())])
    sink = ParquetSink(folder, schema=schema, compression="snappy")
    sink.check(context())
    big = Decimal("123456789012345678901.123")
    values = [
        {"id": 1, "price": big, "day": dt.date(44, 3, 15)},
        {"id": 2, "price": "1.10"},
        {"id": 3, "price": Decimal("1.2345")},
        {"id": 4, "price": Decimal("NaN")},
        {"id": 5, "price": 1.1},
        {"id": 1 << 31},
        {"id": 7, "day": dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)},
        {"id": 8, "day": "infinity"},
    ]
    refused, _ = write(sink.open(context()), values)
    assert [row for row, _ in refused] == [2, 3, 4, 5, 6, 7]
    assert table(folder) == [
        {"id": 1, "price": big, "day": dt.date(44, 3, 15)},
        {"id": 2, "price": Decimal("1.100"), "day": None},
    ]
    assert write(sink.open(context()), [None]).refused
    assert len(names(folder)) == 1


class Priced(msgspec.Struct):
    price: Decimal


@pytest.mark.parametrize(
    "options", [{"schema": Priced}, {"schema": 1}, {"schema": Row, "compression": "none?"}]
)
def test_a_schema_that_says_too_little_is_refused(folder, options):
    with pytest.raises(ConfigurationError):
        ParquetSink(folder, **options)


def test_workers_that_replace_each_other_all_the_time_write_every_offset_once(sink, folder):
    def work():
        while True:
            writer = sink.open(context())
            try:
                [position] = writer.claim({ORDERS: TOPIC_ID}).values()
                if position >= 40:
                    return
                writer.write([sink_rows([position, position + 1], start=position)])
                writer.commit()
            except SinkUnavailable:
                continue
            finally:
                writer.close()

    with ThreadPoolExecutor(3) as pool:
        for worker in [pool.submit(work) for _ in range(3)]:
            worker.result()
    assert lines(folder) == list(range(len(names(folder)) * 2))
    assert temporary(folder) == []


CRASHING = """
    import os, signal, sys
    from streams.connectors.files import JsonLinesSink
    from tests.support.sink_rows import ORDERS, TOPIC_ID, context, sink_rows

    path, crash = sys.argv[1:]
    changes = {"os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir"}
    done = 0

    # Called before each step by which the folder changes.
    def hook(event, arguments):
        global done
        written = event == "open" and arguments[1] == "w"
        if (written or event in changes) and path in str(arguments[0]):
            done += 1
            if done == int(crash):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    sink = JsonLinesSink(path)
    sink.check(context())
    writer = sink.open(context())
    position = writer.claim({ORDERS: TOPIC_ID})[ORDERS]
    while position < 4:
        writer.write([sink_rows([position, position + 1], start=position)])
        writer.commit()
        position += 2
    writer.close()
    print(done)
"""


def test_a_worker_killed_before_any_change_of_the_folder_loses_and_repeats_nothing(tmp_path):
    program = [sys.executable, "-c", textwrap.dedent(CRASHING)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}

    def run(folder: Path, crash: int) -> subprocess.CompletedProcess[str]:
        arguments = [str(folder), str(crash)]
        return subprocess.run(
            program + arguments, env=environment, check=False, capture_output=True, text=True
        )

    steps = int(run(tmp_path / "all", 0).stdout)
    assert steps > 20
    for crash in range(1, steps + 1):
        folder = tmp_path / str(crash)
        assert run(folder, crash).returncode == -signal.SIGKILL
        sink = JsonLinesSink(folder)
        sink.check(context())
        writer = sink.open(context())
        [position] = writer.claim({ORDERS: TOPIC_ID}).values()
        if position < 4:
            write(writer, list(range(position, 4)))
        writer.close()
        assert lines(folder) == [0, 1, 2, 3], f"killed before change {crash}"
        assert temporary(folder) == []
