"""Writes records at a steady rate, with the send time as value."""

from __future__ import annotations

import sys
import time

from confluent_kafka import Producer

servers, topic, rate, count = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
# At high rates, one request per record would saturate the broker and distort the measurement.
producer = Producer({"bootstrap.servers": servers, "linger.ms": 0 if rate <= 1000 else 1})
begun = time.monotonic()
for number in range(count):
    wait = begun + number / rate - time.monotonic()
    if wait > 0:
        time.sleep(wait)
    # All processes of a machine share this clock, which is never adjusted.
    producer.produce(topic, b"%d" % time.monotonic_ns(), b"%d" % number)
    producer.poll(0)
producer.flush()
