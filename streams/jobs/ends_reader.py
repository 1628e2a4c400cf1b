"""Follows the topic of results for a program that waits for jobs."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from streams.broker import BEGINNING
from streams.broker.reading import find_partitions, follow
from streams.errors import BrokerError
from streams.jobs.record import JobEnd

if TYPE_CHECKING:
    from streams.broker import Broker

MOST_KEPT = 100_000
"""How many ends are kept in memory, the latest ones."""

_end = msgspec.json.Decoder(JobEnd).decode


class EndsReader:
    """Reads the results in a thread of its own, from the oldest one on, and keeps the latest ones."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self._broker = broker
        self._topic = topic
        self._ends: OrderedDict[str, bytes] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BrokerError | None = None
        self._thread = threading.Thread(target=self._run, name="streams-job-results", daemon=True)
        self._thread.start()

    def wait(self, identifier: str, timeout: float) -> JobEnd | None:
        """Wait for the end of a job; ``None`` after ``timeout`` seconds. Raises what ended the reading."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                payload = self._ends.get(identifier)
                if payload is not None:
                    return _end(payload)
                if self._error is not None:
                    raise self._error
                left = deadline - time.monotonic()
                if left <= 0 or self._closed:
                    return None
                self._changed.wait(left)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            starts = dict.fromkeys(find_partitions(self._broker, [self._topic]), BEGINNING)
            for fetched in follow(self._broker, starts, lambda: self._closed):
                with self._changed:
                    for key, value in zip(fetched.keys(), fetched.values(), strict=True):
                        if key is not None and value is not None:
                            self._ends[key.decode()] = value
                    while len(self._ends) > MOST_KEPT:
                        self._ends.popitem(last=False)
                    self._changed.notify_all()
        except BrokerError as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
