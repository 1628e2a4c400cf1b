"""Notices that an input topic got more partitions before records arrive where their keys have no state."""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING

from streams.errors import BrokerError
from streams.runtime.status import State

if TYPE_CHECKING:
    from streams.broker import Admin, Broker
    from streams.runtime.worker import Worker

CHECK_SECONDS = 1.0

AT_ONCE = 5
"""Topics whose counts are read in each round; with more topics, it takes more rounds."""


class PartitionCounts:
    """Reads the partition counts of a worker's inputs, in a thread.

    The group notices more partitions too, but only with its next heartbeat, and its members release what they
    have to first: seconds, in which producers that know the new count already write keys to partitions in
    which these have no state.
    """

    def __init__(self, worker: Worker, broker: Broker) -> None:
        self._worker = worker
        self._broker = broker
        self._admin: Admin | None = None
        self._next = 0
        self._stop = threading.Event()

    def start(self) -> None:
        """Check every second, in a thread, until ``close``."""
        threading.Thread(target=self._run, name="streams-partition-counts", daemon=True).start()

    def close(self) -> None:
        """Stop checking. Does not wait for a pending request to the broker."""
        self._stop.set()

    def check(self) -> None:
        """Read the counts of the next topics, and tell the worker."""
        if self._worker.state is not State.RUNNING:
            return
        topics = sorted(self._worker.inputs_of_stores)
        chosen = list(islice(topics, self._next, self._next + AT_ONCE))
        self._next = self._next + AT_ONCE if self._next + AT_ONCE < len(topics) else 0
        try:
            for topic in chosen:
                if self._admin is None:
                    self._admin = self._broker.admin()
                count = self._admin.partition_count(topic)
                if count is not None:
                    self._worker.note_partition_count(topic, count)
        except BrokerError:
            # The group notices it too, and the watchdog reports brokers that do not answer.
            self._forget_admin()

    def _run(self) -> None:
        while not self._stop.wait(CHECK_SECONDS):
            self.check()
        self._forget_admin()

    def _forget_admin(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()
