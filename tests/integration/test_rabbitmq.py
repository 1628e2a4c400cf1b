"""Messages between a real RabbitMQ and a real Kafka while workers and the server are killed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from streams.broker.reading import read_to_end
from streams.devstack.rabbitmq import LocalRabbitMQ
from tests.integration.conftest import Copy
from tests.support.rabbitmq import Program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kafka

COUNT = 1_500
THIRD = COUNT // 3


class Bridge(Copy):
    """The app of ``rabbitmq_app``, and the server."""

    name = "rabbitmq"
    server: LocalRabbitMQ

    def begin(self, direction: str) -> None:
        self.create_topics()
        self.environment |= {"RABBITMQ_DIRECTION": direction, "RABBITMQ_URL": self.server.url()}


@pytest.fixture(scope="module")
def server() -> Iterator[LocalRabbitMQ]:
    if missing := LocalRabbitMQ.missing():
        pytest.skip(missing)
    with LocalRabbitMQ.create() as server:
        yield server


@pytest.fixture
def bridge(kafka_bootstrap: str, prefix: str, tmp_path: Path, server: LocalRabbitMQ) -> Iterator[Bridge]:
    made = Bridge(kafka_bootstrap, prefix, tmp_path)
    made.server = server
    yield made
    made.end()


def test_messages_with_ids_arrive_once_while_worker_and_server_are_killed(bridge: Bridge):
    bridge.begin("in")

    def put(numbers: range) -> None:
        with Program(bridge.server) as program:
            for kind in ("classic", "quorum"):
                program.channel.queue_declare(
                    kind, durable=True, auto_delete=False, arguments={"x-queue-type": kind}
                )
                names = [f"{kind}-{number}" for number in numbers]
                program.put(kind, names, ids=names)

    def arrived() -> int:
        return sum(map(len, read_to_end(bridge.broker, [bridge.output])))

    put(range(THIRD))
    worker = bridge.start(transaction_timeout=3)
    bridge.wait_for(lambda: arrived() > 0, 90, "the first messages")
    worker.kill()
    put(range(THIRD, 2 * THIRD))
    bridge.start(transaction_timeout=3)
    bridge.wait_for(lambda: arrived() > 2 * THIRD, 90, "more messages")
    bridge.server.kill()
    bridge.server.start()
    put(range(2 * THIRD, COUNT))
    bridge.wait_for(lambda: arrived() >= 2 * COUNT, 120, "all messages")
    expected = (f"{kind}-{number}" for kind in ("classic", "quorum") for number in range(COUNT))
    assert bridge.outputs() == Counter(expected)

    def settled() -> bool:
        with Program(bridge.server) as program:
            return not program.count("classic") + program.count("quorum")

    bridge.wait_for(settled, 30, "everything is acknowledged")


def test_records_arrive_at_least_once_with_the_same_ids_while_worker_and_server_are_killed(bridge: Bridge):
    bridge.begin("out")
    with Program(bridge.server) as program:
        program.channel.queue_declare("out", durable=True, auto_delete=False)

    def there() -> int:
        with Program(bridge.server) as program:
            return program.count("out")

    bridge.produce([str(number) for number in range(THIRD)])
    worker = bridge.start(transaction_timeout=3, commit_interval=0.1)
    bridge.wait_for(lambda: there() > 0, 90, "the first records")
    worker.kill()
    bridge.produce([str(number) for number in range(THIRD, 2 * THIRD)])
    bridge.start(transaction_timeout=3, commit_interval=0.1)
    bridge.wait_for(lambda: there() > THIRD, 90, "more records")
    bridge.server.kill()
    bridge.produce([str(number) for number in range(2 * THIRD, COUNT)])
    bridge.server.start()
    bridge.wait_until_consumed()
    with Program(bridge.server) as program:
        found = program.take("out")
    assert {message.body.decode() for message in found} == {str(number) for number in range(COUNT)}
    ids = {message.properties["message_id"]: message.body for message in found}
    assert len(ids) == COUNT
    assert all(ids[message.properties["message_id"]] == message.body for message in found)
