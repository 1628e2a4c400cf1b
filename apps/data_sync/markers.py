"""How long a change takes: a row is updated again and again, and looked for in the warehouse."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict, deque
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg

EVERY_SECONDS = 0.2
LOOK_SECONDS = 0.01
MARKER = 0
"""The id of the customer that is updated; others have higher ones."""


class _Marker(NamedTuple):
    number: int
    committed: float
    phase: str


class Markers:
    """A thread that measures from the end of COMMIT in the shop to the row's being visible in the warehouse.

    Latencies, in seconds, are collected by ``phase``, which the program sets; without one nothing is done.
    """

    def __init__(self, shop: str, warehouse: str) -> None:
        self.phase: str | None = None
        self.latencies: defaultdict[str, list[float]] = defaultdict(list)
        self._shop, self._warehouse = shop, warehouse
        self._pending: deque[_Marker] = deque()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="markers", daemon=True)

    def start(self) -> None:
        """Add the row, and begin."""
        with psycopg.connect(self._shop, autocommit=True) as shop:
            shop.execute(
                "insert into customers (id, name, updated_at) values (%s, 'marker 0', now())", (MARKER,)
            )
        self._thread.start()

    def stop(self) -> None:
        """End; markers that are not visible yet are left out."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        number, due = 0, 0.0
        shop: psycopg.Connection[Any] | None = None
        with contextlib.ExitStack() as stack:
            warehouse = stack.enter_context(psycopg.connect(self._warehouse, autocommit=True))
            while not self._ended.wait(LOOK_SECONDS):
                if (phase := self.phase) is not None and time.monotonic() >= due:
                    number += 1
                    due = time.monotonic() + EVERY_SECONDS
                    # The shop is restarted meanwhile: then there is no marker.
                    with contextlib.suppress(psycopg.OperationalError):
                        if shop is None or shop.closed:
                            shop = stack.enter_context(
                                psycopg.connect(self._shop, autocommit=True, connect_timeout=2)
                            )
                        shop.execute(
                            "update customers set name = %s, updated_at = %s where id = %s",
                            (f"marker {number}", datetime.now(UTC), MARKER),
                        )
                        self._pending.append(_Marker(number, time.monotonic(), phase))
                self._look(warehouse)

    def _look(self, warehouse: psycopg.Connection[Any]) -> None:
        found = warehouse.execute("select name from customers where id = %s", (MARKER,)).fetchone()
        visible = -1 if found is None else int(found[0].split()[-1])
        now = time.monotonic()
        while self._pending and self._pending[0].number <= visible:
            marker = self._pending.popleft()
            self.latencies[marker.phase].append(now - marker.committed)
