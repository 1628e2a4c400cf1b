"""The app that the fault suite disturbs: every kind of result whose history shows what went wrong.

Readings are numbered in the order in which each key's were written, so that any result says which of them
it was made of. ``FAULT_STEP`` (call, number, ``before`` or ``after``) ends the process at that call of the
producer, as SIGKILL does.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec

from streams import App, Json, Text, Tumbling, count, maximum, minimum, seconds, total
from streams.broker.kafka import KafkaProducer


class Reading(msgspec.Struct):
    """``number`` counts the key's readings from 1."""

    number: int
    amount: int


PREFIX = os.environ["FAULT_PREFIX"]
GROUPS = 31

app = App(f"{PREFIX}-app", create_topics=True)
readings = app.stream(f"{PREFIX}-readings", key=Text(), value=Json(Reading))
readings.to(f"{PREFIX}-copies")
by_key = readings.group_by_key()
by_key.aggregate(
    "totals", number=count(), sum=total("amount"), low=minimum("amount"), high=maximum("amount")
).to(f"{PREFIX}-totals")
by_key.window(Tumbling(seconds=10), grace=seconds(5)).count("windows").final().to(f"{PREFIX}-windows")
readings.group_by(lambda reading: f"group {reading.amount % GROUPS}", name="by-amount").count("groups").to(
    f"{PREFIX}-groups"
)


def die_at(call: str, number: int, moment: str) -> None:
    """End this process at the n-th call of a producer's method, before it or when it has returned."""
    method = getattr(KafkaProducer, call)
    calls = 0

    def wrapped(self: KafkaProducer, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        method(self, *arguments)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(KafkaProducer, call, wrapped)


if "FAULT_STEP" in os.environ:
    name, which, when = os.environ["FAULT_STEP"].split()
    die_at(name, int(which), when)
