"""Columns that are not lists pass through a topology unchanged, unless a record fails."""

from __future__ import annotations

from typing import Any

import pytest

from streams import App, Batch, Record, Text, skip
from streams.testing import TopologyDriver
from tests.support.columns import Numbers, WholeNumbers

NUMBERS = list(range(3_000))


def even(batch: Batch[Any, Any]) -> Batch[Any, Any]:
    assert isinstance(batch.values, Numbers)
    return batch.select([row for row, number in enumerate(batch.values.numbers) if number % 2 == 0])


def doubled(batch: Batch[Any, Any]) -> Batch[Any, Any]:
    assert isinstance(batch.values, Numbers)
    values = batch.values
    return batch.with_values(Numbers((2 * number for number in values.numbers), values.looks))


def records(numbers: list[Any]) -> list[Record[Any, Any]]:
    return [Record("k", number, time) for time, number in enumerate(numbers)]


def test_nothing_looks_inside_a_column_where_no_record_fails_and_no_function_takes_single_values():
    serde, app = WholeNumbers(), App("columns")
    stream = app.stream("in", key=Text(), value=serde).map_batch(even)
    stream.to("out", key=Text(), value=serde)
    stream.map_batch(doubled).to("doubled", key=Text(), value=serde)
    with TopologyDriver(app) as driver:
        driver.send_all("in", records(NUMBERS))
        assert serde.looks == []
        assert serde.reads == [len(NUMBERS)]
        assert driver.values("out") == NUMBERS[::2]
        assert driver.values("doubled") == [2 * number for number in NUMBERS[::2]]


def test_nothing_looks_inside_a_column_that_goes_through_an_internal_topic():
    serde, app = WholeNumbers(), App("columns")
    stream = app.stream("in", key=Text(), value=serde).map_batch(even)
    stream.repartition("again", value=serde).map_batch(doubled).to("out", key=Text(), value=serde)
    with TopologyDriver(app) as driver:
        driver.send_all("in", records(NUMBERS))
        assert serde.looks == []
        assert driver.values("out") == [2 * number for number in NUMBERS[::2]]


def test_a_function_of_single_values_gets_those_of_a_column():
    serde, app = WholeNumbers(), App("columns")
    stream = app.stream("in", key=Text(), value=serde).filter(lambda number: number % 3 == 0)
    stream.map_batch(doubled).to("out", key=Text(), value=serde)
    with TopologyDriver(app) as driver:
        driver.send_all("in", records(NUMBERS))
        assert driver.values("out") == [2 * number for number in NUMBERS if number % 3 == 0]


@pytest.mark.parametrize("bad", [[0], [7], [99], [3, 4, 50]])
def test_a_payload_that_a_whole_column_serde_cannot_read_fails_alone(bad):
    serde, app = WholeNumbers(), App("columns")
    stream = app.stream("in", key=Text(), value=serde)
    stream.map(lambda number: number + 1).to("out", key=Text(), value=serde)
    payloads: list[Any] = [b"none" if row in bad else row for row in range(100)]
    with TopologyDriver(app) as driver:
        driver.send_all("in", records(payloads))
        failed = [dict(letter.headers or ())["__streams.errors.offset"] for letter in driver.dead_letters()]
        assert failed == [b"%d" % row for row in bad]
        assert driver.values("out") == [row + 1 for row in range(100) if row not in bad]


def test_a_column_with_a_value_that_cannot_be_written_is_taken_apart_and_that_value_fails_alone():
    class Small(WholeNumbers):
        def serialize(self, values: Any) -> Any:
            payloads = list(super().serialize(values))
            if any(len(payload) > 3 for payload in payloads):
                raise ValueError("too large")
            return payloads

    small, serde, app = Small(), WholeNumbers(), App("columns")
    app.stream("in", key=Text(), value=serde).to("out", key=Text(), value=small, on_error=skip)
    numbers = [5, 1_234, 6, 9_999, 7]
    with TopologyDriver(app) as driver:
        driver.send_all("in", records(numbers))
        assert driver.values("out") == [5, 6, 7]
        assert sum(driver.skipped().values()) == 2
