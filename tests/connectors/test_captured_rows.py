"""What a source remembers of its tables and rows, when transactions are aborted."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App
from streams.connectors.change import Change, ChangeSource
from streams.connectors.change_avro import ChangeAvro
from streams.connectors.debezium import Debezium, rows
from streams.connectors.debezium.control import Control
from streams.connectors.debezium.values import Column, Shape
from streams.errors import OutcomeUnknown, TransactionAborted
from tests.support.cluster import AppCluster
from tests.support.connectors import Feed, MemorySource

if TYPE_CHECKING:
    from pathlib import Path

AT = ChangeSource(db="shop", schema="public", table="t", connector="postgresql")
TOPIC = "shop.public.t"
NUMBER, TEXT = Column("INT4", stored="INT32"), Column("TEXT", stored="STRING")
OLD = Shape({"id": NUMBER}, full_identity=False)
NEW = Shape({"id": NUMBER, "v": TEXT}, full_identity=False)


def plain(value: Change[Any] | Control) -> Any:
    return msgspec.to_builtins(value)


def told(control: Any, snapshot: int = 1, **fields: Any) -> Any:
    return plain(Control(control=control, snapshot=snapshot, source=AT, **fields))


def row(op: Any, **values: Any) -> Any:
    return plain(Change(op=op, after=values, source=AT))


def key_of(_: int, value: Any) -> Any:
    return {"id": value["after"]["id"]} if value.get("after") else None


class Capture(AppCluster):
    """An app that writes what a table's reader says as Avro, on a broker that aborts when a test says so."""

    def __init__(self, folder: Path, batch: int) -> None:
        source = Debezium.postgres("postgresql://shop@db1/shop", ["public.t"])
        self.feed = Feed(batch=batch, key=key_of)
        self.serde: Any = ChangeAvro(schemas=folder)
        app = App("capture")
        app.source(
            MemorySource(
                self.feed, key=source.key, value=source.value, process=source.process, stores=source.stores
            ),
            store="shop",
        ).to_change_topics("shop", value=self.serde)
        super().__init__(app, {TOPIC: 1})

    def changes(self) -> list[Change[Any]]:
        return list(self.serde.deserialize(self.payloads(TOPIC)))

    def table(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for change in self.changes():
            if change.op == "d":
                assert change.before is not None
                found.pop(change.before["id"])
            else:
                assert change.after is not None
                found[change.after["id"]] = change.after
        return found


def test_rows_have_the_columns_of_their_time_when_they_are_processed_again(tmp_path):
    capture = Capture(tmp_path, batch=1)
    capture.feed.values += [told("opened"), told("table", shape=OLD), row("c", id=1)]
    worker = capture.worker()
    capture.run(worker, until=lambda: len(capture.changes()) == 1)

    def before(step: str) -> None:
        if step == "commit.before":
            raise TransactionAborted("the broker aborts")

    capture.broker.before = before
    capture.feed.values += [row("c", id=2), told("table", shape=NEW), row("c", id=3, v="a")]
    capture.run(worker, until=lambda: worker.status.rewinds >= 3)
    capture.broker.before = None
    capture.run(worker, until=lambda: len(capture.changes()) == 3)
    worker.close()
    assert [change.after for change in capture.changes()] == [{"id": 1}, {"id": 2}, {"id": 3, "v": "a"}]
    assert not capture.payloads(capture.app.dead_letter_topic)


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_are_gone_are_deleted_once_whatever_is_known_of_commits(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(rows, "SWEEP_ROWS", 3)
    choose = random.Random(seed)
    capture = Capture(tmp_path, batch=choose.randrange(1, 6))
    worker = capture.worker()

    def before(step: str) -> None:
        if step in {"send_offsets", "commit.before", "commit.after"} and choose.random() < 0.4:
            raise choose.choice([OutcomeUnknown, TransactionAborted])("the broker is gone")

    kept: set[int] = set()
    for snapshot in range(1, 4):
        before_snapshot, kept = kept, set(choose.sample(range(30), 12))
        shape = choose.choice([OLD, NEW])
        values = {} if shape is OLD else {"v": "a"}
        capture.feed.values += [told("opened", snapshot), told("table", snapshot, shape=shape)]
        capture.feed.values += [row("r", id=number, **values) for number in sorted(kept)]
        capture.feed.values += [told("complete", snapshot, tables=[AT])]
        capture.broker.before = before
        for _ in range(choose.randrange(40, 120)):
            worker.run_once()
            capture.clock.advance(0.02)
        capture.broker.before = None
        gone = before_snapshot - kept

        def settled(wanted: set[int] = kept) -> bool:
            capture.clock.advance(0.06)
            return set(capture.table()) == wanted

        capture.run(worker, until=settled)
        deleted = Counter(change.before["id"] for change in capture.changes() if change.before)
        assert all(deleted[number] for number in gone)
    worker.close()
    assert not capture.payloads(capture.app.dead_letter_topic)
