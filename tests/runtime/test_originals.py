"""Dead letters of records that came through an internal topic: workers read their input records again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Json, Text, dead_letter
from streams.broker.reading import read_to_end
from streams.errors import Retriable
from streams.records import Output, TopicPartition
from streams.simulation.run import InputRecord
from streams.simulation.simulator import Simulator
from tests.support.cluster import Broker, MemoryCluster

if TYPE_CHECKING:
    from streams.broker import GroupSettings, Polled
    from streams.broker.memory import MemoryConsumer
    from streams.records import Headers


class Unreliable(Broker):
    """Readers of single records fail a given number of times."""

    failures = 0

    def consumer(self, settings: GroupSettings) -> MemoryConsumer:
        consumer = super().consumer(settings)
        if settings.group.endswith("-originals"):
            poll = consumer.poll

            def failing(max_records: int, timeout: float) -> Polled:
                if self.failures:
                    self.failures -= 1
                    raise Retriable("the broker does not answer")
                return poll(max_records, timeout)

            consumer.poll = failing  # type: ignore[method-assign]  # of this one alone
        return consumer


def boom(value: Any) -> Any:
    if "bad" in value:
        raise ValueError("made to fail")
    return value


def app_of() -> App:
    app = App("shop", dead_letter_limit=1.0)
    stream = app.stream("orders", key=Text(), value=Json()).key_by(lambda value: value["user"])
    stream.repartition("by-user", value=Json()).map(boom, on_error=dead_letter, name="work").to("out")
    return app


class Site(MemoryCluster):
    """One worker on a broker in memory, run step by step."""

    broker: Unreliable

    def __init__(self) -> None:
        super().__init__({"orders": 2, "out": 1})
        self.app = app_of()
        self.worker = self.make_worker(
            self.app,
            "slot",
            transaction_timeout=100.0,
            partitions=self.prepare(self.app, create_outputs=True),
        )
        self.worker.start()

    def make_broker(self, **options: Any) -> Unreliable:
        return Unreliable(**options)

    def send(self, *values: bytes, partition: int = 0) -> None:
        keys: list[bytes | None] = [b"k%d" % number for number in range(len(values))]
        headers: list[Headers | None] = [[("trace", b"%d" % number)] for number in range(len(values))]
        self.write(Output("orders", keys, values, [7] * len(values), headers, partition=partition))

    def turn(self, rounds: int = 60) -> None:
        for _ in range(rounds):
            self.worker.run_once()

    def letters(self) -> list[tuple[bytes | None, bytes | None, dict[str, bytes | None]]]:
        return sorted(
            (
                (key, value, dict(headers or ()))
                for fetched in read_to_end(self.broker, [self.app.dead_letter_topic])
                for key, value, headers in zip(
                    fetched.keys(), fetched.values(), fetched.headers() or (), strict=True
                )
            ),
            key=lambda letter: (letter[2]["__streams.errors.partition"], letter[0]),
        )


def order(user: str, *more: str) -> bytes:
    # With spaces, which the app does not write.
    return b' {"user":   "%s"%s} ' % (user.encode(), b"".join(b', "%s": 1' % name.encode() for name in more))


def test_dead_letters_have_the_bytes_headers_and_coordinates_of_the_input():
    site = Site()
    site.send(order("ann"), order("bob", "bad"), order("cid"), order("dan", "bad"))
    site.send(order("eve", "bad"), order("fay"), partition=1)
    site.turn()
    assert [letter[:2] for letter in site.letters()] == [
        (b"k1", order("bob", "bad")),
        (b"k3", order("dan", "bad")),
        (b"k0", order("eve", "bad")),
    ]
    for (_, _, headers), (partition, offset) in zip(site.letters(), [(0, 1), (0, 3), (1, 0)], strict=True):
        assert headers["__streams.errors.topic"] == b"orders"
        assert headers["__streams.errors.partition"] == b"%d" % partition
        assert headers["__streams.errors.offset"] == b"%d" % offset
        assert headers["__streams.errors.timestamp"] == b"7"
        assert headers["trace"] == b"%d" % offset
        assert (headers["__streams.errors.via"] or b"").startswith(b"shop-by-user-repartition-")
        assert "__streams.errors.payload" not in headers
    site.worker.close()


def test_records_far_apart_are_sought():
    site = Site()
    site.send(order("a", "bad"), *[order("ann")] * 12_000, order("z", "bad"))
    site.turn(200)
    assert [letter[1] for letter in site.letters()] == [order("a", "bad"), order("z", "bad")]
    site.worker.close()


def test_an_original_that_is_gone_is_replaced_by_what_the_step_was_given_and_says_so():
    site = Site()
    site.send(order("ann", "bad"), order("bob", "bad"))
    # Processed up to the internal topic only: then retention deletes the first record.
    while not site.admin.end_offsets(
        [TopicPartition("shop-by-user-repartition", number) for number in range(2)], "read_uncommitted"
    ) or not site.admin.committed_offsets("shop"):
        site.worker.run_once()
    site.admin.delete_records({TopicPartition("orders", 0): 1})
    site.turn()
    (_, gone, about), (_, kept, _) = site.letters()
    assert gone == b'{"user":"ann","bad":1}'
    assert about["__streams.errors.topic"] == b"orders"
    assert about["__streams.errors.offset"] == b"0"
    assert (about["__streams.errors.payload"] or b"").startswith(
        b"as in shop-by-user-repartition: orders-0 offset 0"
    )
    assert kept == order("bob", "bad")
    site.worker.close()


@pytest.mark.parametrize(("failures", "read"), [(3, True), (1_000_000, False)])
def test_a_broker_that_does_not_answer_is_called_again_and_not_for_ever(failures, read):
    site = Site()
    site.broker.failures = failures
    site.send(order("ann", "bad"))
    site.turn()
    ((_, value, headers),) = site.letters()
    assert (value == order("ann", "bad")) is read
    assert ("__streams.errors.payload" in headers) is not read
    assert headers["__streams.errors.offset"] == b"0"
    site.worker.close()


def test_workers_under_faults_write_the_same_dead_letters():
    lines = [
        InputRecord(b"k%d" % number, order(f"u{number % 4}", *["bad"] * (number % 3 == 0)), 1_000 * number)
        for number in range(30)
    ]
    *_, report = Simulator(app_of(), {"orders": lines}).run(range(30))
    assert report.differences == []
