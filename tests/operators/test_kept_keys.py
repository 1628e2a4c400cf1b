"""Steps that keep keys: there is no repartition downstream, and a record whose key changed fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Batch, Json, Record, Stream, Text, dead_letter, fail, key_value_store, milliseconds
from streams.errors import ProcessingError, TopologyError
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams import Context, Serde


def by_map_records(
    stream: Stream[Any, Any], change: Callable[[Any], Any], **options: Any
) -> Stream[Any, Any]:
    return stream.map_records(lambda record: record.with_(key=change(record.key)), keeps_key=True, **options)


def by_flat_map_records(
    stream: Stream[Any, Any], change: Callable[[Any], Any], **options: Any
) -> Stream[Any, Any]:
    return stream.flat_map_records(
        lambda record: [record.with_(key=change(record.key))], keeps_key=True, **options
    )


def by_map_batch(stream: Stream[Any, Any], change: Callable[[Any], Any], **options: Any) -> Stream[Any, Any]:
    return stream.map_batch(
        lambda batch: batch.with_keys(list(map(change, batch.keys))), keeps_key=True, **options
    )


def by_process(stream: Stream[Any, Any], change: Callable[[Any], Any], **options: Any) -> Stream[Any, Any]:
    class Changing:
        def process(self, record: Record[Any, Any], context: Context) -> None:
            context.forward(record.with_(key=change(record.key)))

    return stream.process(Changing, keeps_key=True, **options)


def by_process_batch(
    stream: Stream[Any, Any], change: Callable[[Any], Any], **options: Any
) -> Stream[Any, Any]:
    class Changing:
        def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
            context.forward(batch.with_keys(list(map(change, batch.keys))))

    return stream.process(Changing, keeps_key=True, **options)


def by_process_batch_of_records(
    stream: Stream[Any, Any], change: Callable[[Any], Any], **options: Any
) -> Stream[Any, Any]:
    class Changing:
        def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
            for record in batch.records():
                context.forward(record.with_(key=change(record.key)))

    return stream.process(Changing, keeps_key=True, **options)


STEPS = [
    by_map_records,
    by_flat_map_records,
    by_map_batch,
    by_process,
    by_process_batch,
    by_process_batch_of_records,
]
every_step = pytest.mark.parametrize("step", STEPS)


def driver_of(
    step: Callable[..., Stream[Any, Any]],
    change: Callable[[Any], Any],
    key: Serde[Any] | None = None,
    **options: Any,
) -> TopologyDriver:
    app = App("kept", dead_letter_limit=1.0)
    step(app.stream("in", key=key or Text(), value=Json()), change, **options).to("out")
    return TopologyDriver(app)


@every_step
def test_there_is_no_repartition_downstream_and_keys_are_written_as_before(step):
    app = App("kept")
    stream = step(app.stream("in", key=Json(int), value=Json(int)), lambda key: key, name="kept")
    stream.group_by_key().count("counts")
    stream.to("out")
    assert app.topology.repartitions == {}
    driver = TopologyDriver(app, partitions=3)
    driver.send_all("in", [Record(number % 3, number, 0) for number in range(9)])
    assert driver.store("counts") == {0: (3, 0), 1: (3, 0), 2: (3, 0)}
    assert sorted(record.key for record in driver.read("out")) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@every_step
def test_a_record_whose_key_changed_fails_alone_and_names_the_step(step):
    def change(key: str) -> str:
        return "other" if key == "b" else key

    records = [Record(key, key, 0) for key in ("a", "b", "c")]
    driver = driver_of(step, change, on_error=dead_letter)
    driver.send_all("in", records)
    assert driver.values("out") == ["a", "c"]
    assert [letter.value for letter in driver.dead_letters()] == [b'"b"']
    why = r"(?s)step 'mine'.*failed on in-0 offset 1.*made the key 'other' from a record with the key 'b'"
    with pytest.raises(ProcessingError, match=why):
        driver_of(step, change, on_error=fail, name="mine").send_all("in", records)


@every_step
@pytest.mark.parametrize(
    ("serde", "key", "made"),
    [
        (Json(), 1, True),
        (Json(), 1, 1.0),
        (Json(), [1], [True]),
        (Text(), "a", None),
        (Text(), None, "a"),
        (Text(), "a", b"a"),
    ],
)
def test_keys_that_are_written_differently_are_different(step, serde, key, made):
    driver = driver_of(step, lambda _: made, serde, on_error=dead_letter)
    driver.send("in", 1, key=key)
    assert driver.values("out") == []
    assert len(driver.dead_letters()) == 1


@every_step
@pytest.mark.parametrize(
    ("serde", "key", "change"),
    [
        (Text(), "key-1", lambda key: "-".join(key.split("-"))),
        (Json(), [1, {"a": 2}], lambda _: [1, {"a": 2}]),
        (Json(), [1], tuple),
        (Text(), None, lambda _: None),
    ],
)
def test_equal_keys_need_not_be_the_same_object(step, serde, key, change):
    driver = driver_of(step, change, serde)
    driver.send("in", 1, key=key)
    assert driver.values("out") == [1]


@every_step
def test_a_key_that_is_changed_in_place_has_changed(step):
    def change(key: list[int]) -> list[int]:
        key.append(2)
        return key

    app = App("kept", dead_letter_limit=1.0)
    stream = app.stream("in", key=Json(), value=Json())
    step(stream, change, on_error=dead_letter).to("out")
    stream.to("same")
    driver = TopologyDriver(app)
    driver.send("in", 1, key=[1])
    assert driver.values("out") == []
    assert [record.key for record in driver.read("same")] == [[1]]


def test_rows_may_be_left_out_repeated_and_put_in_another_order():
    app = App("kept")
    app.stream("in", key=Text(), value=Json()).map_batch(
        lambda batch: batch.select([2, 0, 0]) if len(batch) == 3 else batch, keeps_key=True
    ).to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(key, key, 0) for key in ("a", "b", "c")])
    assert driver.values("out") == ["c", "a", "a"]


def test_several_records_of_one_may_have_any_of_its_keys_but_no_other():
    app = App("kept", dead_letter_limit=1.0)

    def split(record: Record[str, Any]) -> list[Record[str, str]]:
        return [record.with_(key=part, value=part) for part in record.value]

    def swapped(batch: Batch[str, str]) -> Batch[str, str]:
        return batch.select(range(len(batch) - 1, -1, -1))

    app.stream("in", key=Text(), value=Json()).flat_map_records(split).map_batch(swapped, keeps_key=True).to(
        "out"
    )
    driver = TopologyDriver(app)
    driver.send("in", ["a", "b"], key="k")
    assert driver.values("out") == ["b", "a"]


def test_a_batch_of_other_records_is_refused():
    kept: list[Batch[Any, Any]] = []

    def delayed(batch: Batch[Any, Any]) -> Batch[Any, Any]:
        kept.append(batch)
        return kept[0]

    app = App("kept")
    app.stream("in", key=Text(), value=Json()).map_batch(delayed, keeps_key=True, on_error=fail).to("out")
    driver = TopologyDriver(app)
    driver.send("in", 1, key="a")
    with pytest.raises(ProcessingError, match="a batch not made from its input batch"):
        driver.send("in", 2, key="a")


def test_a_downstream_processor_with_a_store_and_a_timer_needs_no_repartition_topic():
    class Buffered:
        def open(self, context: Context) -> None:
            self.context = context
            self.values = context.store("values")
            context.schedule(milliseconds(10), self.flush, on="stream_time")

        def process(self, record: Record[str, int], context: Context) -> None:
            self.values.put(record.key, record.value)

        def flush(self, time: int) -> None:
            for key, value in list(self.values.scan()):
                self.context.forward(Record(key, value, time))
                self.values.delete(key)

    app = App("kept")
    buffered = app.stream("in", key=Text(), value=Json()).process(
        Buffered, stores=[key_value_store("values")], keeps_key=True
    )
    buffered.group_by_key().count("counts")
    assert app.topology.repartitions == {}
    driver = TopologyDriver(app)
    for time in range(0, 40, 5):
        driver.send("in", time, key=f"k{time % 2}", timestamp=time)
    counts = {key: count for key, (count, _) in driver.store("counts").items()}
    assert counts == {"k0": 3, "k1": 3}


def test_new_keys_and_kept_ones_contradict_each_other():
    stream = App("kept").stream("in", key=Text(), value=Json())
    with pytest.raises(TopologyError, match=r"(?s)key= is the serde of new keys.*leave out one of the two"):
        stream.flat_map_records(lambda record: [record], key=Text(), keeps_key=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
