"""Apps whose topics have schemas in a real schema registry, on the broker in memory."""

from __future__ import annotations

import threading
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Avro, Text
from streams.broker import NewTopic
from streams.errors import SchemaRefused, SchemaRegistryError, StateUnavailable
from streams.records import Output, TopicPartition
from streams.schema_registry import ConfluentRegistry
from streams.serde.dynamic_avro import Column, Row, RowSerde, table_schema
from streams.serde.subjects import Subjects
from tests.support.avro_schemas import NOTE, NUMBER, Order, write_schema
from tests.support.cluster import MemoryCluster
from tests.support.registry_gate import RegistryGate
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from streams.devstack.registry import LocalRegistry


class Shop:
    """An app that copies orders from a topic to another, and the program that writes them."""

    def __init__(self, registry: LocalRegistry, folder: Path) -> None:
        self.name = f"shop-{uuid.uuid4().hex[:8]}"
        self.orders, self.copies = f"{self.name}-orders", f"{self.name}-copies"
        self.cluster = MemoryCluster({self.orders: 1, self.copies: 1}, real_time=True)
        self.client = ConfluentRegistry(registry.url)
        self.schema = write_schema(folder, "shop.Order.avsc", [NUMBER, NOTE])
        self.settings: dict[str, Any] = {
            "schema_registry_url": registry.url,
            "schema_registry": {"timeout": 0.3},
            "state_dir": str(folder / "state"),
            "state_store": "memory",
        }
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        self.written = Avro(write_schema(elsewhere, "shop.Order.avsc", [NUMBER]))

    def payloads(self, numbers: Sequence[int]) -> list[bytes]:
        """Orders as a program with another version of the schema writes them."""
        serde = self.written.connected(Subjects(self.client), "value").for_topic(self.orders)
        return list(serde.serialize([{"number": number} for number in numbers]))

    def send(self, payloads: Sequence[bytes]) -> None:
        self.cluster.write(Output(self.orders, [b"k"] * len(payloads), payloads, [0] * len(payloads)))

    def app(self) -> App:
        app = App(self.name, **self.settings)
        stream = app.stream(self.orders, key=Text(), value=Avro(self.schema, Order))
        stream.to(self.copies, value=Avro(self.schema, Order))
        return app

    @contextmanager
    def running(self, app: App) -> Iterator[None]:
        stop = threading.Event()
        raised: list[BaseException] = []

        def run() -> None:
            try:
                app.run(broker=self.cluster.broker, stop=stop)
            except BaseException as error:  # noqa: BLE001 - the test raises it
                raised.append(error)

        thread = threading.Thread(target=run, name="shop")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()
        for error in raised:
            raise error

    def copied(self) -> list[Order]:
        serde = Avro(self.schema, Order).connected(Subjects(self.client), "value")
        return list(serde.deserialize(self.cluster.payloads(self.copies)))


@pytest.fixture
def shop(registry: LocalRegistry, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(registry, tmp_path)
    yield made
    made.client.close()


def test_an_app_reads_and_writes_records_with_the_registrys_ids(shop):
    shop.send(shop.payloads([1, 2]))
    with shop.running(shop.app()):
        wait_until(lambda: len(shop.cluster.payloads(shop.copies)) == 2)
    assert shop.copied() == [Order(1), Order(2)]
    registered = shop.client.version(f"{shop.copies}-value", 1)
    assert {payload[1:5] for payload in shop.cluster.payloads(shop.copies)} == {
        registered.identifier.to_bytes(4, "big")
    }


def test_an_unknown_id_is_a_dead_letter_and_the_other_records_go_on(shop):
    (first, last) = shop.payloads([1, 2])
    shop.send([first, b"\0\x40\0\0\0\2", last])
    app = shop.app()
    with shop.running(app):
        wait_until(lambda: len(shop.cluster.payloads(shop.copies)) == 2)
        wait_until(lambda: shop.cluster.payloads(app.dead_letter_topic))
    assert shop.cluster.payloads(app.dead_letter_topic) == [b"\0\x40\0\0\0\2"]


def test_records_wait_while_the_registry_does_not_answer(shop, registry, caplog):
    known = shop.payloads([1])
    app = shop.app()
    with shop.running(app):
        shop.send(known)
        wait_until(lambda: len(shop.cluster.payloads(shop.copies)) == 1)
        # The id of this schema is new to the worker.
        folder = shop.schema.parent / "third"
        folder.mkdir()
        extra = {"name": "extra", "type": "int", "default": 0}
        shop.written = Avro(write_schema(folder, "shop.Order.avsc", [NUMBER, extra]))
        later = shop.payloads([2])
        registry.pause()
        try:
            shop.send(later)
            wait_until(lambda: "record retried" in caplog.text)
        finally:
            registry.resume()
        wait_until(lambda: len(shop.cluster.payloads(shop.copies)) == 2)
    assert shop.copied() == [Order(1), Order(2)]
    assert app.dead_letter_topic not in shop.cluster.admin.topics() or not shop.cluster.payloads(
        app.dead_letter_topic
    )


def test_a_start_waits_for_the_registry(shop, registry, caplog):
    registry.pause()
    try:
        with shop.running(shop.app()):
            wait_until(lambda: "schema registry trouble" in caplog.text)
            registry.resume()
            shop.send(shop.payloads([1]))
            wait_until(lambda: shop.cluster.payloads(shop.copies))
    finally:
        registry.resume()


def test_a_schema_that_does_not_fit_ends_the_start_with_its_field(shop):
    source = {"type": "record", "name": "shop.Order", "fields": [{"name": "note", "type": "string"}]}
    shop.client.register(f"{shop.copies}-value", source)
    with pytest.raises(SchemaRefused, match="field 'number': is new and has no default"):
        shop.app().run(broker=shop.cluster.broker, stop=threading.Event())


def test_input_that_cannot_be_read_ends_the_start_with_its_field(shop):
    source = {"type": "record", "name": "shop.Order", "fields": [{"name": "note", "type": "string"}]}
    shop.client.register(f"{shop.orders}-value", source)
    with pytest.raises(SchemaRefused, match=r"(?s)cannot be read with Avro.*field 'number': is new"):
        shop.app().run(broker=shop.cluster.broker, stop=threading.Event())


def test_a_topic_that_is_chosen_for_each_record_has_its_own_subject(shop):
    app = App(shop.name, **shop.settings)
    stream = app.stream(shop.orders, key=Text(), value=Avro(shop.schema, Order))
    stream.to(lambda order: shop.copies, value=Avro(shop.schema, Order))
    shop.send(shop.payloads([7]))
    with shop.running(app):
        wait_until(lambda: shop.cluster.payloads(shop.copies))
    assert shop.client.versions(f"{shop.copies}-value") == [1]
    assert shop.copied() == [Order(7)]


def rows_of(app: App, shop: Shop, folder: Path, second: Column) -> None:
    """Order 1 as a row of one column, all others as rows of two."""
    first = [Column("order no", "long", nullable=False)]
    schemas = [table_schema(["shop", "orders"], first), table_schema(["shop", "orders"], [*first, second])]

    def row(order: Order) -> Row:
        values = {"order no": order.number} | ({} if order.number == 1 else {second.name: order.number})
        return Row(schemas[order.number > 1], values)

    stream = app.stream(shop.orders, key=Text(), value=Avro(shop.schema, Order))
    stream.map(row).to(lambda _: shop.copies, value=RowSerde(folder))


def test_rows_bring_their_schema_which_becomes_a_version_of_the_subject(shop, tmp_path):
    app = App(shop.name, **shop.settings)
    rows_of(app, shop, tmp_path / "rows", Column("added", "int"))
    shop.send(shop.payloads([1, 2, 1]))
    with shop.running(app):
        wait_until(lambda: len(shop.cluster.payloads(shop.copies)) == 3)
    assert shop.client.versions(f"{shop.copies}-value") == [1, 2]
    serde = RowSerde(tmp_path / "rows").connected(Subjects(shop.client), "value")
    read = list(serde.deserialize(shop.cluster.payloads(shop.copies)))
    assert [row.values for row in read] == [{"order no": 1}, {"order no": 2, "added": 2}, {"order no": 1}]
    assert not list((tmp_path / "rows").glob("*.avsc"))


def test_a_refused_change_of_a_table_ends_the_worker_and_skips_nothing(shop, tmp_path):
    app = App(shop.name, **shop.settings)
    rows_of(app, shop, tmp_path / "rows", Column("added", "int", nullable=False))
    shop.send(shop.payloads([1, 2, 1]))
    with pytest.raises(SchemaRefused, match="field 'added': is new and has no default"), shop.running(app):
        wait_until(lambda: not any(thread.name == "shop" for thread in threading.enumerate()))
    assert shop.cluster.admin.committed_offsets(app.name).get(TopicPartition(shop.orders, 0), 0) <= 1
    assert app.dead_letter_topic not in shop.cluster.admin.topics() or not shop.cluster.payloads(
        app.dead_letter_topic
    )


def test_rows_without_a_registry_have_their_schemas_in_the_folder(tmp_path):
    serde = RowSerde(tmp_path)
    schema = table_schema(["orders"], [Column("a-b", "int")])
    payloads = list(serde.for_topic("orders").serialize([Row(schema, {"a-b": 1}), Row(dict(schema), {})]))
    assert list(RowSerde(tmp_path).deserialize(payloads)) == [
        Row(schema, {"a-b": 1}),
        Row(schema, {"a-b": None}),
    ]


def test_a_table_is_restored_once_the_registry_answers(shop, registry):
    shop.send(shop.payloads([3, 4]))
    with RegistryGate(registry.url).open() as gate:
        shop.settings["schema_registry_url"] = gate.url
        app = App(shop.name, **shop.settings)
        app.table(shop.orders, key=Text(), value=Avro(shop.schema, Order), store="orders")
        with shop.running(app):
            wait_until(lambda: found(app) == Order(4))
        # In memory, the store is restored from the topic.
        gate.refused = "/schemas/ids/"
        with shop.running(app):
            wait_until(lambda: gate.refusals > 1)
            assert found(app) is None
            gate.refused = None
            wait_until(lambda: found(app) == Order(4))


def test_a_global_table_is_read_once_the_registry_answers(shop, registry):
    shop.send(shop.payloads([3, 4]))
    numbers = f"{shop.name}-numbers"
    shop.cluster.admin.create_topics([NewTopic(name=numbers, partitions=1)])
    shop.cluster.write(Output(numbers, [b"k"], [b"1"], [0]))
    with RegistryGate(registry.url).open() as gate:
        gate.refused = "/schemas/ids/"
        shop.settings["schema_registry_url"] = gate.url
        app = App(shop.name, **shop.settings)
        orders = app.global_table(shop.orders, key=Text(), value=Avro(shop.schema, Order))
        stream = app.stream(numbers, key=Text(), value=Text())
        joined = stream.join_global(orders, lambda _: "k", lambda _, order: order)
        joined.to(shop.copies, value=Avro(shop.schema, Order))
        with shop.running(app):
            wait_until(lambda: gate.refusals > 1)
            gate.refused = None
            wait_until(lambda: shop.cluster.payloads(shop.copies))
    assert shop.copied() == [Order(4)]


def test_a_registry_that_denies_access_ends_the_start(shop, registry):
    shop.settings["schema_registry_url"] = f"{registry.url}-nowhere"
    with pytest.raises(SchemaRegistryError, match="refused to"):
        shop.app().run(broker=shop.cluster.broker, stop=threading.Event())


def found(app: App) -> Order | None:
    try:
        order: Order | None = app.query("orders", "k")
    except StateUnavailable:
        return None
    return order
