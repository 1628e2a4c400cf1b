"""The contract of appenders: where records are, and which are written together."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from streams.broker.reading import read_to_end
from streams.errors import RecordRefused
from streams.partitioning import partition_for
from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.broker import Appended, Appender, Broker
    from tests.contract.conftest import Clients

NOW = int(time.time() * 1000)


@pytest.fixture
def appender(broker: Broker, clients: Clients) -> Iterator[Appender]:
    appender = broker.appender(clients.name("appender"))
    yield appender
    appender.close()


def rows(topic: str, *values: bytes, keys: list[bytes | None] | None = None) -> Output:
    return Output(topic, keys or [None] * len(values), list(values), [NOW] * len(values), None)


def placed(broker: Broker, topic: str) -> dict[tuple[int, int], bytes | None]:
    return {
        (fetched.partition, offset): value
        for fetched in read_to_end(broker, [topic])
        for offset, value in zip(fetched.offsets(), fetched.values(), strict=True)
    }


@pytest.mark.parametrize("together", [False, True])
def test_each_row_is_where_the_appender_says(
    broker: Broker, clients: Clients, appender: Appender, together: bool
) -> None:
    topic = clients.topic(partitions=3)
    append = appender.append_together if together else appender.append
    keys = [b"a", b"b", b"c", b"a"]
    # Equal contents must not be taken for each other.
    first = append(rows(topic, b"1", b"1", b"2", b"1", keys=list(keys)), 30)
    assert [place.partition for place in first] == [partition_for(key, 3) for key in keys]
    second = append(rows(topic, b"3", b"4"), 30)
    found = placed(broker, topic)
    assert [found[place.partition, place.offset] for place in first] == [b"1", b"1", b"2", b"1"]
    assert [found[place.partition, place.offset] for place in second] == [b"3", b"4"]
    assert len(found) == 6


def test_rows_of_several_threads_are_told_apart(broker: Broker, clients: Clients, appender: Appender) -> None:
    topic = clients.topic()
    found: dict[int, list[Appended]] = {}

    def append(thread: int) -> None:
        for number in range(20):
            found.setdefault(thread, []).extend(appender.append(rows(topic, b"%d-%d" % (thread, number)), 30))

    threads = [threading.Thread(target=append, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = placed(broker, topic)
    assert len(written) == 80
    for number, places in found.items():
        assert [written[place.partition, place.offset] for place in places] == [
            b"%d-%d" % (number, each) for each in range(20)
        ]


def test_together_means_all_or_none(broker: Broker, clients: Clients, appender: Appender) -> None:
    topic = clients.topic(settings={"max.message.bytes": "2000"})
    with pytest.raises(RecordRefused):
        appender.append_together(rows(topic, b"1", b"x" * 5_000, b"2"), 30)
    assert placed(broker, topic) == {}
    (place,) = appender.append_together(rows(topic, b"3"), 30)
    assert placed(broker, topic) == {(place.partition, place.offset): b"3"}


def test_a_refused_row_is_reported(clients: Clients, appender: Appender) -> None:
    topic = clients.topic(settings={"max.message.bytes": "2000"})
    with pytest.raises(RecordRefused):
        appender.append(rows(topic, b"x" * 5_000), 30)
