"""The same by hand: a loop over batches with the same clients, at least once, of the environment variables.

From another system: read, produce with ``acks=all``, wait for the acknowledgements, note the position. To
another system: consume, write, commit.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from confluent_kafka import Consumer, Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BATCH = 2_000
work, address, topic, servers = (
    os.environ[f"BENCH_{name}"] for name in ("WORK", "ADDRESS", "TOPIC", "SERVERS")
)


def redis_client() -> Any:
    import redis  # noqa: PLC0415 - only what is measured

    return redis.Redis.from_url(address)


def from_redis_stream() -> Iterator[Sequence[bytes]]:
    client, last = redis_client(), "0-0"
    while True:
        for _, entries in client.xread({topic: last}, count=BATCH, block=100) or ():
            yield [fields[b"value"] for _, fields in entries]
            last = entries[-1][0]
            client.set(f"{topic}:position", last)


def from_redis_list() -> Iterator[Sequence[bytes]]:
    client, taken = redis_client(), f"{topic}:taken"
    while True:
        # What was taken and not written yet must be somewhere: each element is moved by a command of its own.
        pipeline = client.pipeline(transaction=False)
        for _ in range(BATCH):
            pipeline.lmove(topic, taken, "LEFT", "RIGHT")
        yield [element for element in pipeline.execute() if element is not None]
        client.delete(taken)


def from_zeromq() -> Iterator[Sequence[bytes]]:
    import zmq  # noqa: PLC0415 - as above

    receiver = zmq.Context().socket(zmq.PULL)
    receiver.connect(address)
    while True:
        batch = [receiver.recv()]
        try:
            while len(batch) < BATCH:
                batch.append(receiver.recv(zmq.DONTWAIT))
        except zmq.Again:
            pass
        yield batch


def rabbitmq_channel() -> Any:
    import amqp  # noqa: PLC0415 - as above

    server = urlsplit(address)
    connection = amqp.Connection(
        f"{server.hostname}:{server.port}",
        server.username,
        server.password,
        login_method="PLAIN",
        # A server that lets a fast publisher wait takes nothing for longer than the client's own second.
        socket_settings={socket.TCP_USER_TIMEOUT: 60_000},
    )
    connection.connect()
    return connection.channel()


def from_rabbitmq() -> Iterator[Sequence[bytes]]:
    channel = rabbitmq_channel()
    channel.basic_qos(0, BATCH, a_global=False)
    messages: list[Any] = []
    channel.basic_consume(topic, callback=messages.append)
    while True:
        try:
            while len(messages) < BATCH:
                channel.connection.drain_events(timeout=0.05)
        except TimeoutError:
            pass
        yield [message.body for message in messages]
        if messages:
            channel.basic_ack(messages[-1].delivery_tag, multiple=True)
            messages.clear()


def to_rabbitmq() -> Callable[[Sequence[Any]], None]:
    import amqp  # noqa: PLC0415 - as above

    channel, name = rabbitmq_channel(), f"{topic}-out"
    channel.confirm_select()
    waiting: set[int] = set()
    published = 0

    def settle(tag: int, multiple: bool) -> None:
        waiting.difference_update([each for each in waiting if each <= tag] if multiple else [tag])

    channel.events["basic_ack"].add(settle)

    def write(messages: Sequence[Any]) -> None:
        nonlocal published
        waiting.update(range(published + 1, published + 1 + len(messages)))
        published += len(messages)
        for message in messages:
            channel.basic_publish(amqp.Message(message.value(), delivery_mode=2), "", name)
        while waiting:
            channel.connection.drain_events()

    return write


def to_redis_stream() -> Callable[[Sequence[Any]], None]:
    client, name = redis_client(), f"{topic}-out"

    def write(messages: Sequence[Any]) -> None:
        pipeline = client.pipeline(transaction=False)
        for message in messages:
            pipeline.xadd(name, {"value": message.value()})
        pipeline.execute()

    return write


def to_redis_list() -> Callable[[Sequence[Any]], None]:
    client, name = redis_client(), f"{topic}-out"
    return lambda messages: client.rpush(name, *(message.value() for message in messages))


def to_zeromq() -> Callable[[Sequence[Any]], None]:
    import zmq  # noqa: PLC0415 - as above

    sender = zmq.Context().socket(zmq.PUSH)
    sender.connect(address)

    def write(messages: Sequence[Any]) -> None:
        for message in messages:
            sender.send(message.value())

    return write


READ: dict[str, Callable[[], Iterator[Sequence[bytes]]]] = {
    "redis stream → Kafka": from_redis_stream,
    "redis list → Kafka": from_redis_list,
    "zeromq → Kafka": from_zeromq,
    "rabbitmq → Kafka": from_rabbitmq,
}
WRITE: dict[str, Callable[[], Callable[[Sequence[Any]], None]]] = {
    "Kafka → redis stream": to_redis_stream,
    "Kafka → redis list": to_redis_list,
    "Kafka → zeromq": to_zeromq,
    "Kafka → rabbitmq": to_rabbitmq,
}


def read() -> None:
    producer = Producer(
        {"bootstrap.servers": servers, "acks": "all", "enable.idempotence": True, "linger.ms": 5}
    )
    failed: list[object] = []

    def delivered(error: object, _message: object) -> None:
        if error is not None:
            failed.append(error)

    for batch in READ[work]():
        for value in batch:
            producer.produce(topic, value, on_delivery=delivered)
        # The position moves on only if all were written, which the callback alone tells.
        if producer.flush() or failed:
            raise SystemExit(f"not written: {failed[:1]}")


def write() -> None:
    settings = {"bootstrap.servers": servers, "group.id": topic, "auto.offset.reset": "earliest"}
    consumer = Consumer(settings | {"enable.auto.commit": False})
    consumer.subscribe([topic])
    deliver = WRITE[work]()
    while True:
        messages = consumer.consume(BATCH, 0.05)
        if messages:
            deliver(messages)
            consumer.commit(asynchronous=False)


if __name__ == "__main__":
    read() if work in READ else write()
