"""``streams bridge``, and producer and consumer of ``apps/queues``, on a real RabbitMQ and a real Kafka."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from streams.devstack.rabbitmq import LocalRabbitMQ
from tests.support.programs import Programs
from tests.support.rabbitmq import Program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def server() -> Iterator[LocalRabbitMQ]:
    if missing := LocalRabbitMQ.missing():
        pytest.skip(missing)
    with LocalRabbitMQ.create() as server:
        yield server


@pytest.fixture
def programs(tmp_path: Path, kafka_bootstrap: str, prefix: str, server: LocalRabbitMQ) -> Iterator[Programs]:
    made = Programs(
        tmp_path,
        {
            "STREAMS_BOOTSTRAP_SERVERS": kafka_bootstrap,
            "STREAMS_STATE_DIR": str(tmp_path / "state"),
            "QUEUES_PREFIX": f"{prefix}-",
            "RABBITMQ_URL": server.url(),
        },
    )
    with contextlib.closing(made):
        yield made


def test_messages_go_from_a_queue_through_a_topic_to_an_exchange_and_a_queue(programs, kafka, prefix, server):
    with Program(server) as rabbitmq:
        rabbitmq.queue("jobs")
        rabbitmq.exchange("done")
        for name in ("done-k", "all"):
            rabbitmq.queue(name)
        rabbitmq.channel.queue_bind("done-k", "done", "k")
        rabbitmq.put("jobs", [b"\xff", b"{}"], ids=["k", "l"], headers={"trace": "1"})
        commands = [
            ["env:RABBITMQ_URL", "--queue=jobs", f"--topic={prefix}", "--key-from=message_id"],
            [f"rabbitmq{server.url().removeprefix('amqp')}", f"--from-topic={prefix}", "--queue=all"],
            ["env:RABBITMQ_URL", f"--from-topic={prefix}", "--exchange=done", "--app=other"],
        ]
        bridges = [programs.start("streams", "bridge", *commands[0])]
        with contextlib.closing(kafka.admin()) as admin:
            programs.wait_until(lambda: prefix in admin.topics(), "the topic")
        bridges += [programs.start("streams", "bridge", *command) for command in commands[1:]]
        programs.wait_until(lambda: rabbitmq.count("all") == 2, "both messages")
        found = rabbitmq.take("all")
        assert sorted(bytes(message.body) for message in found) == [b"{}", b"\xff"]
        assert [message.application_headers["trace"] for message in found] == ["1", "1"]
        # Only one of the two keys is bound, the other message is a dead letter.
        programs.wait_until(lambda: rabbitmq.count("done-k") == 1, "the routed message")
        assert rabbitmq.bodies("done-k") == [b"\xff"]
        for bridge in bridges:
            programs.stop(bridge)


def test_orders_of_a_producer_are_counted_by_a_consumer(programs, server):
    with Program(server) as rabbitmq:
        programs.module("apps.queues.producer_consumer").produce(500)
        worker = programs.start("streams", "run", "apps.queues.producer_consumer:app")
        found: list[bytes] = []

        def last_totals() -> bool:
            found.extend(rabbitmq.bodies("bonus"))
            return found.count(b"1250.0") == 10

        programs.wait_until(last_totals, "the totals of ten customers")
        programs.stop(worker)
        assert all(float(each) > 1_000 for each in found)
