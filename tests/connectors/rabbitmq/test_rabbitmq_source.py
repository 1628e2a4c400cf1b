"""Queues as sources on a real RabbitMQ: what records are made of, and what failures do to messages."""

from __future__ import annotations

import datetime as dt
import queue
import random
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, Bytes, Json, Text
from streams.connectors.rabbitmq import Binding, Header, Queue, RabbitMQQueue
from streams.connectors.source import SourceContext
from streams.errors import ConfigurationError, ConnectorError, SourceUnavailable, TransactionAborted
from tests.support.cluster import AppCluster
from tests.support.source_reading import Reading
from tests.support.source_runs import SourceRun, read_on
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from streams.connectors.rabbitmq.message_properties import PropertyName
    from streams.connectors.source import SourceBatch, SourceHealth, SourceReader
    from streams.records import Headers
    from streams.runtime.worker import Worker
    from tests.support.rabbitmq import Program


class Order(msgspec.Struct):
    id: int
    customer: str = "?"


def headers_of(run: SourceRun) -> list[Headers | None]:
    """The headers of what is there, which is read and not committed."""
    assert run.read(5.0)
    found = run.waiting[-1].records.headers()
    assert found is not None
    return list(found)


# --- what records are made of


def test_values_are_text_or_typed_or_what_a_serde_reads(server, program):
    program.queue("values")
    sources: list[tuple[Any, list[Any]]] = [
        (RabbitMQQueue(server.url(), "values"), ['{"id":1}', ""]),
        (RabbitMQQueue(server.url(), "values", Order), [Order(1), "DecodeError"]),
        (RabbitMQQueue(server.url(), "values", value=Bytes()), [b'{"id":1}', b""]),
    ]
    for source, expected in sources:
        program.put("values", ['{"id":1}', ""])
        with Reading(source) as reading:
            assert reading.until(2) == expected


def test_headers_properties_keys_and_times_are_those_of_the_message(server, program):
    program.exchange("shop")
    program.queue("headers", "shop", "eu.#")
    table = {
        "text": "ä",
        "number": -7,
        "true": True,
        "bytes": b"\xff\x00",
        "none": None,
        "list": [1, {"a": "b"}],
        "time": dt.datetime(2026, 3, 1, 12),  # noqa: DTZ001 - as the client takes it
    }
    program.put(
        "eu.de",
        ["1"],
        exchange="shop",
        ids=["m1"],
        headers=table,
        content_type="text/plain",
        content_encoding="utf-8",
        correlation_id="c1",
        reply_to="answers",
        priority=3,
        type="order",
        timestamp=1_772_323_200,
    )
    chosen: tuple[PropertyName, ...] = (
        "content_type",
        "correlation_id",
        "reply_to",
        "priority",
        "type",
        "exchange",
        "routing_key",
    )
    source = RabbitMQQueue(
        server.url(),
        "headers",
        key_from="routing_key",
        properties=[*chosen, "content_encoding", "message_id", "app_id", "redelivered"],
    )
    with SourceRun(source) as run:
        (found,) = headers_of(run)
        assert found is not None
        assert dict(found) == {
            "rabbitmq.message_id": b"m1",
            "text": "ä".encode(),
            "number": b"-7",
            "true": b"true",
            "bytes": b"\xff\x00",
            "none": None,
            "list": b'[1,{"a":"b"}]',
            "time": b"2026-03-01T12:00:00Z",
            "rabbitmq.content_type": b"text/plain",
            "rabbitmq.correlation_id": b"c1",
            "rabbitmq.reply_to": b"answers",
            "rabbitmq.priority": b"3",
            "rabbitmq.type": b"order",
            "rabbitmq.exchange": b"shop",
            "rabbitmq.routing_key": b"eu.de",
            "rabbitmq.content_encoding": b"utf-8",
            "rabbitmq.redelivered": b"false",
        }
        records = run.waiting[-1].records
        assert list(records.keys()) == [b"eu.de"]
        assert list(records.timestamps()) == [1_772_323_200_000]
    program.take("headers")


def test_the_key_may_be_a_header_or_the_id_and_a_header_that_cannot_be_read_stays(server, program):
    program.queue("keys")
    with SourceRun(RabbitMQQueue(server.url(), "keys", key_from=Header("customer"))) as run:
        program.put("keys", ["1"], headers={"customer": "ann"})
        program.put("keys", ["2"])
        run.until(2)
        assert run.keys == [b"ann", None]
    with SourceRun(RabbitMQQueue(server.url(), "keys", key_from="message_id")) as run:
        program.put("keys", ["3"], ids=["m3"], headers={"rabbitmq.message_id": "forged"})
        (found,) = headers_of(run)
        assert found == [("rabbitmq.message_id", b"m3")]
        run.until(1)
        assert run.keys == [b"m3"]


def test_a_large_message_and_many_small_ones_arrive_complete_and_in_order(server, program):
    program.queue("sizes")
    large = "x" * 5_000_000
    program.put("sizes", [large, *map(str, range(3_000)), large])
    with SourceRun(RabbitMQQueue(server.url(), "sizes", max_records=1_000)) as run:
        assert run.until(3_002) == [large, *map(str, range(3_000)), large]
        assert run.offsets == list(range(3_002))
        assert run.step() is False
    assert program.count("sizes") == 0


# --- acknowledgement


def test_what_is_not_committed_goes_back_to_the_queue_when_the_source_is_closed(server, program):
    program.queue("back")
    program.put("back", map(str, range(50)))
    with SourceRun(RabbitMQQueue(server.url(), "back", max_records=10)) as run:
        run.step(5.0)
        run.read(5.0)
        run.process()
        assert run.values == [str(number) for number in range(10)]
    wait_until(lambda: program.count("back") == 40, what="the messages that were not committed")
    assert program.bodies("back") == [b"%d" % number for number in range(10, 50)]


def test_the_prefetch_bounds_what_is_unacknowledged_and_a_commit_lets_more_in(server, program):
    program.queue("bounded")
    program.put("bounded", map(str, range(100)))
    source = RabbitMQQueue(server.url(), "bounded", prefetch=20, max_records=15)
    with SourceRun(source) as run:

        def waiting() -> int:
            return sum(len(batch.records) for batch in run.waiting)

        wait_until(lambda: waiting() == 20 or (run.read(0.05) and False), what="the complete prefetch")
        assert not run.read(0.1)
        health = run.open().health()
        assert not health.problem
        assert health.metrics["unacknowledged"] == 20
        assert health.metrics["ready"] == 80
        while run.waiting:
            run.process()
        run.commit()
        assert run.until(100) == list(map(str, range(100)))
        wait_until(lambda: run.step() or not run.open().health().metrics["unacknowledged"])


def test_a_confirmation_ends_the_wait_of_a_reader_whose_prefetch_is_used_up(server, program):
    program.queue("waiting")
    program.put("waiting", map(str, range(20)))
    reader = RabbitMQQueue(server.url(), "waiting", prefetch=1).open(
        SourceContext(application="shop", name="in", task=0, position=b"")
    )
    batches: queue.Queue[SourceBatch | None] = queue.Queue()

    def read() -> None:
        for _ in range(20):
            # Were the acknowledgement sent only after the wait, the next message would come after it.
            batches.put(reader.read(60.0))

    reading = threading.Thread(target=read)
    reading.start()
    for number in range(20):
        batch = batches.get(timeout=30)
        assert batch is not None
        assert list(batch.records.values()) == [b"%d" % number]
        reader.confirm(batch.position)
    reading.join(30)
    reader.close()


def test_values_that_cannot_be_read_are_rejected_by_choice(server, program):
    program.exchange("dead", "fanout")
    program.queue("dead-letters", "dead")
    program.queue("rejecting", **{"x-dead-letter-exchange": "dead"})
    program.put("rejecting", ["1", "no number", "3", "none"])
    with SourceRun(RabbitMQQueue(server.url(), "rejecting", int, unreadable="reject")) as run:
        assert run.until(2) == [1, 3]
        assert run.open().health().metrics["rejected"] == 2
        program.put("rejecting", ["neither"])
        wait_until(lambda: run.step(0.05) or run.open().health().metrics["rejected"] == 3)
        program.put("rejecting", ["4"])
        assert run.until(3) == [1, 3, 4]
    wait_until(lambda: program.count("dead-letters") == 3, what="the rejected messages")
    found = program.take("dead-letters")
    assert [message.body for message in found] == [b"no number", b"none", b"neither"]
    assert found[0].headers["x-death"][0]["queue"] == "rejecting"
    assert program.count("rejecting") == 0


# --- in an app


class Site(AppCluster):
    def out(self) -> list[str]:
        return [value.decode() for value in self.payloads("out")]


def copying(source: RabbitMQQueue[Any], **settings: Any) -> Site:
    app = App("copy", **settings)
    app.source(source, store="orders").to("out", value=Json() if source.value.name != "Text" else Text())
    return Site(app)


def test_messages_with_an_id_that_was_committed_are_dropped_and_acknowledged(server, program):
    program.queue("twice")
    source = RabbitMQQueue(server.url(), "twice")
    site = copying(source)
    worker = site.worker()
    program.put("twice", ["1", "2", "1"], ids=["a", "b", "a"])
    program.put("twice", ["3", "3"])
    site.run(worker, until=lambda: len(site.out()) == 4)
    # A later one is recognised too, also after a restart.
    program.put("twice", ["2", "4"], ids=["b", "c"])
    site.run(worker, until=lambda: len(site.out()) == 5)
    worker.close()
    second = site.worker()
    program.put("twice", ["4", "5"], ids=["c", "d"])
    site.run(second, until=lambda: len(site.out()) == 6)
    assert site.out() == ["1", "2", "3", "3", "4", "5"]
    assert source.dropped == {0: 3}
    second.close()
    assert program.count("twice") == 0


def test_several_tasks_share_a_queue(server, program):
    program.queue("shared")
    site = copying(RabbitMQQueue(server.url(), "shared", tasks=2, max_records=5))
    workers = [site.worker(), site.worker()]
    site.run(*workers, until=lambda: all(worker.tasks for worker in workers))
    program.put("shared", map(str, range(100)))
    site.run(*workers, until=lambda: len(site.out()) == 100)
    for worker in workers:
        worker.close()
    assert sorted(map(int, site.out())) == list(range(100))
    assert program.count("shared") == 0


def test_the_oldest_identities_are_forgotten(server, program):
    program.queue("forgetting")
    source = RabbitMQQueue(server.url(), "forgetting", remembered=4, prefetch=4, identity="correlation_id")
    site = copying(source)
    worker = site.worker()
    sent = ["a", "b", "a", "c", "d", "e", "f", "a", "f"]
    for number, identity in enumerate(sent):
        program.put("forgetting", [identity], correlation_id=identity)
        site.run(worker, until=lambda: len(site.out()) + source.dropped.get(0, 0) == number + 1)  # noqa: B023 - called at once
    assert site.out() == ["a", "b", "c", "d", "e", "f", "a"]
    worker.close()


def test_messages_that_cannot_be_read_are_dead_letters_and_leave_the_queue(server, program):
    program.queue("letters")
    site = copying(RabbitMQQueue(server.url(), "letters", int))
    worker = site.worker()
    program.put("letters", ["1", "no number", "3"], ids=["a", "b", "c"])
    site.run(worker, until=lambda: len(site.out()) == 2 and len(site.payloads("copy-dead-letters")) == 1)
    worker.close()
    assert site.payloads("copy-dead-letters") == [b"no number"]
    assert program.count("letters") == 0


def test_a_message_that_is_too_large_for_its_topic_is_a_dead_letter(server, program):
    program.queue("huge")
    site = copying(RabbitMQQueue(server.url(), "huge"))
    worker = site.worker()
    program.put("huge", ["1", "x" * 2_000_000, "3"], ids=["a", "b", "c"])
    site.run(worker, until=lambda: len(site.out()) == 2 and len(site.payloads("copy-dead-letters")) == 1)
    worker.close()
    assert site.payloads("copy-dead-letters")[0].startswith(b"xxx")
    assert program.count("huge") == 0


# --- queues that are missing, deleted or others


def test_a_missing_queue_ends_a_start_and_is_waited_for_later(server):
    source = RabbitMQQueue(server.url(), "missing")
    with pytest.raises(ConnectorError, match=r"404 NOT_FOUND.*'missing'(?s:.*)declare="):
        source.check("shop", "in")
    with pytest.raises(SourceUnavailable, match="404"):
        source.open(SourceContext(application="shop", name="in", task=0, position=b""))


def test_a_queue_is_declared_with_its_bindings_and_dead_letter_exchange(server, program):
    declared = Queue(
        dead_letter_exchange="dead",
        bindings=[Binding("declared-by-source", "order.*", "topic")],
        arguments={"x-delivery-limit": 5},
    )
    source = RabbitMQQueue(server.url(), "declared", declare=declared)
    source.check("shop", "in")
    source.check("shop", "in")
    program.put("order.new", ["1"], exchange="declared-by-source")
    with SourceRun(source) as run:
        assert run.until(1) == ["1"]
    other = RabbitMQQueue(server.url(), "declared", declare=Queue(type="classic"))
    with pytest.raises(ConnectorError, match="406 PRECONDITION_FAILED"):
        other.check("shop", "in")
    program.channel.queue_delete("declared")


def test_a_queue_that_is_deleted_is_noticed_and_waited_for(server, program):
    program.queue("deleted")
    source = RabbitMQQueue(server.url(), "deleted")
    with SourceRun(source) as run:
        reader = run.open()
        program.channel.queue_delete("deleted")
        with pytest.raises(SourceUnavailable, match="was deleted"):
            read_on(reader)
        assert run.read() is False
        program.queue("deleted")
        program.put("deleted", ["1"])
        assert run.until(1) == ["1"]


def test_a_quorum_queue_counts_deliveries_in_a_header(server, program):
    program.queue("quorum", **{"x-queue-type": "quorum"})
    program.put("quorum", ["1"], ids=["a"])
    source = RabbitMQQueue(server.url(), "quorum", properties=["redelivered"])
    with SourceRun(source) as run:
        run.read(5.0)
        run.crash()
        (found,) = headers_of(run)
        assert found is not None
        assert dict(found)["x-delivery-count"] == b"1"
        assert dict(found)["rabbitmq.redelivered"] == b"true"
        assert run.open().health().metrics["redelivered"] == 1
        run.process()
        run.commit()
    assert program.count("quorum") == 0


# --- at random failures of workers, connections and commits


class FaultyQueue(RabbitMQQueue[str]):
    """Readers whose connections end and whose confirmations are lost, as with a process that ends then."""

    __slots__ = ("chance", "dead", "deaf", "faults", "readers")

    chance: random.Random
    dead: set[threading.Thread]
    deaf: bool
    faults: bool
    readers: list[SourceReader]

    def open(self, context: SourceContext) -> SourceReader:  # type: ignore[override]  # a reader around its own
        self.require_alive()
        reader = FaultyReader(super().open(context), self)
        self.readers.append(reader)
        return reader

    def require_alive(self) -> None:
        """End the thread of a worker whose process has ended."""
        if threading.current_thread() in self.dead:
            raise RuntimeError("the process has ended")


class FaultyReader:
    def __init__(self, reader: SourceReader, source: Any) -> None:
        self.reader = reader
        self.source = source

    def read(self, timeout: float) -> SourceBatch | None:
        self.source.require_alive()
        if self.source.faults and self.source.chance.random() < 0.05:
            raise SourceUnavailable("the connection ends")
        return self.reader.read(min(timeout, 0.05))

    def confirm(self, position: bytes) -> None:
        if not self.source.deaf:
            self.reader.confirm(position)

    def health(self) -> SourceHealth:
        return self.reader.health()

    def close(self) -> None:
        self.reader.close()


def faulty(url: str, queue: str, chance: random.Random, **options: Any) -> FaultyQueue:
    source = FaultyQueue(url, queue, max_records=chance.randint(1, 12), prefetch=60, **options)
    for name, value in (
        ("chance", chance),
        ("faults", True),
        ("deaf", False),
        ("readers", []),
        ("dead", set()),
    ):
        object.__setattr__(source, name, value)
    return source


class Run:
    """Messages that are numbered, and workers that fail."""

    def __init__(self, program: Program, source: FaultyQueue, chance: random.Random, *, ids: bool) -> None:
        self.program, self.source, self.chance, self.ids = program, source, chance, ids
        app = App("copy", commit_interval=0.05)
        app.source(source, store="in").to("out", value=Text())
        self.site = AppCluster(app)
        self.worker: Worker = self.site.worker()
        self.count = 0

    def put(self, count: int) -> None:
        numbers = range(self.count, self.count + count)
        ids = [f"id-{number}" for number in numbers] if self.ids else None
        self.program.put(self.source.queue, map(str, numbers), ids=ids)
        self.count += count

    def crash(self, *, committing: bool = False) -> None:
        """The process ends, maybe after a commit that it has not acknowledged yet."""
        object.__setattr__(self.source, "deaf", True)
        before = len(self.out())
        if committing:
            self.site.run(self.worker, until=lambda: len(self.out()) > before)
        for _ in range(self.chance.randint(0, 20)):
            self.worker.run_once()
        self.source.dead.update(
            thread for thread in threading.enumerate() if thread.name.startswith("streams-source-")
        )
        self.site.freeze(self.worker)
        for reader in self.source.readers:
            reader.close()
        self.source.readers.clear()
        object.__setattr__(self.source, "deaf", False)
        self.worker = self.site.worker()

    def abort_next(self) -> None:
        """The broker aborts the next transaction."""

        def before(step: str) -> None:
            if step == "commit.before":
                self.site.broker.before = None
                raise TransactionAborted("the broker aborts")

        self.site.broker.before = before

    def out(self) -> list[str]:
        return [value.decode() for value in self.site.payloads("out")]

    def finish(self) -> Counter[str]:
        object.__setattr__(self.source, "faults", False)
        self.site.broker.before = None
        self.site.run(self.worker, until=lambda: len(set(self.out())) == self.count, seconds=60)
        self.site.run(self.worker, until=self.is_acknowledged, seconds=60)
        self.worker.close()
        wait_until(lambda: self.program.count(self.source.queue) == 0, what="that nothing comes back")
        return Counter(self.out())

    def is_acknowledged(self) -> bool:
        """Whether the server has no message of the queue any more, delivered ones included."""
        if not self.source.readers:
            return False
        metrics = self.source.readers[-1].health().metrics
        return metrics["ready"] == metrics["unacknowledged"] == 0


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("seed", range(4))
def test_messages_with_ids_are_in_kafka_once_whatever_fails(server, program, kind, seed):
    chance = random.Random(seed)
    queue = program.queue(f"faults-{kind}-{seed}", **{"x-queue-type": kind})
    run = Run(program, faulty(server.url(), queue, chance), chance, ids=True)
    for _ in range(25):
        match chance.randrange(6):
            case 0 | 1:
                run.put(chance.randint(1, 30))
            case 2 | 3:
                for _ in range(chance.randint(1, 20)):
                    run.worker.run_once()
            case 4:
                run.abort_next()
            case 5:
                run.crash()
    run.put(20)
    run.crash(committing=True)
    assert run.finish() == Counter(str(number) for number in range(run.count))
    # Otherwise nothing was delivered again.
    assert sum(run.source.dropped.values())


@pytest.mark.parametrize("seed", range(2))
def test_messages_without_ids_are_in_kafka_at_least_once(server, program, seed):
    chance = random.Random(seed)
    queue = program.queue(f"repeated-{seed}")
    run = Run(program, faulty(server.url(), queue, chance), chance, ids=False)
    run.put(60)
    run.crash(committing=True)
    run.put(10)
    found = run.finish()
    assert set(found) == {str(number) for number in range(run.count)}
    assert sum(found.values()) > run.count


def test_a_stream_is_refused_as_its_messages_are_not_kept_for_a_consumer(server, program):
    program.queue("stream", **{"x-queue-type": "stream"})
    with SourceRun(RabbitMQQueue(server.url(), "stream")) as run:
        assert not run.read()
        program.put("stream", ["1"])
        with pytest.raises(ConnectorError, match="is a stream"):
            read_on(run.open())


# --- options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"type": int, "value": Text()}, "not both"),
        ({"properties": ["priorty"]}, "priorty"),
        ({"properties": "type"}, "a list"),
        ({"key_from": "key"}, "key_from"),
        ({"identity": None}, "identity"),
        ({"unreadable": "drop"}, "unreadable"),
        ({"tasks": 0}, "tasks"),
        ({"prefetch": 70_000}, "65535"),
        ({"prefetch": 0}, "prefetch"),
        ({"remembered": 10}, "prefetch"),
        ({"max_records": 0}, "max_records"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, text):
    with pytest.raises(ConfigurationError, match=text):
        RabbitMQQueue("amqp://host", "queue", **options)


def test_a_binding_and_a_queue_check_their_options():
    for make in (
        lambda: Binding(""),
        lambda: Binding("shop", exchange_type="any"),  # type: ignore[arg-type]
        lambda: Queue(type="stream"),  # type: ignore[arg-type]
        lambda: RabbitMQQueue("amqp://host", ""),
    ):
        with pytest.raises(ConfigurationError):
            make()
