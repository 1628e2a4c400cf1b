"""The baseline: a loop on confluent-kafka, written for this one job, without a stream processing library."""

from __future__ import annotations

import signal
import sys
import threading
import time

import orjson
from confluent_kafka import Consumer, Producer

job, guarantee, servers, input_topic, output_topic, group, commit_interval = sys.argv[1:]
exactly_once = guarantee == "exactly_once"
commit_seconds = float(commit_interval)

consumer = Consumer(
    {
        "bootstrap.servers": servers,
        "group.id": group,
        "group.protocol": "consumer",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        # The default of 1000 stops fetching for a second whenever the queue was full.
        "fetch.queue.backoff.ms": 5,
    }
)
settings: dict[str, str | int | bool] = {
    "bootstrap.servers": servers,
    "enable.idempotence": True,
    "linger.ms": 5,
    "queue.buffering.max.messages": 1_000_000,
    # The Java clients' partitioner, as in all other systems.
    "partitioner": "murmur2_random",
}
if exactly_once:
    settings["transactional.id"] = group
producer = Producer(settings)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())

consumer.subscribe([input_topic])
if exactly_once:
    producer.init_transactions()
    producer.begin_transaction()
loads, dumps, produce = orjson.loads, orjson.dumps, producer.produce
# consume() waits until it has the requested number of records, or for this long.
patience = min(0.05, commit_seconds / 2)
processed = 0
last_commit = time.monotonic()
while not stop.is_set():
    messages = consumer.consume(10_000, patience)
    if job == "json":
        for message in messages:
            value = loads(message.value())  # type: ignore[arg-type]  # the input has no tombstones
            if value["status"] >= 400:
                kept = {
                    "ip": value["ip"],
                    "path": value["path"],
                    "status": value["status"],
                    "latency_ms": value["latency_ms"],
                }
                produce(output_topic, dumps(kept), message.key(), timestamp=message.timestamp()[1])
    else:
        for message in messages:
            produce(output_topic, message.value(), message.key(), timestamp=message.timestamp()[1])
    processed += len(messages)
    producer.poll(0)
    if processed and time.monotonic() - last_commit >= commit_seconds:
        if exactly_once:
            positions = consumer.position(consumer.assignment())
            producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata())
            producer.commit_transaction()
            producer.begin_transaction()
        else:
            producer.flush()
            consumer.commit(asynchronous=False)
        processed = 0
        last_commit = time.monotonic()
if exactly_once:
    producer.abort_transaction()
consumer.close()
