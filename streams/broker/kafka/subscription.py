"""Which topics a consumer subscribes to: those named, and those there are that its patterns match."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from streams.broker.kafka.access import log
from streams.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from streams.broker import NamePattern
    from streams.broker.kafka.admin import KafkaAdmin

LOOK_SECONDS: Final = 10.0
"""How often the cluster's topics are listed for patterns, unless the client refreshes metadata more often."""

SOON_SECONDS: Final = 0.5
"""At least so long lies between two looks, as the second decides whether a missing topic is gone."""


class Subscription:
    """The names that a consumer subscribes to, kept up to date by a thread of its own.

    Patterns are matched here, by Python, and the group only ever sees names: librdkafka's regular expressions
    (classic protocol) and the broker's (KIP-848, RE2/J) differ from Python's in flags, lookarounds, ``$`` and
    more. Listing topics waits for a broker, so the consumer's thread does not do it.

    A topic that is there is subscribed to with the first look that finds it. One that is missing is only
    taken for deleted when the next look misses it too: a broker that has just started may not know all yet.
    """

    def __init__(
        self,
        names: Collection[str],
        patterns: Collection[NamePattern],
        admin: Callable[[], KafkaAdmin],
        *,
        seconds: float,
    ) -> None:
        self._named = frozenset(names)
        self._patterns = list(patterns)
        self._admin = admin
        self._seconds = seconds
        self._known: set[str] = set()
        self._missed: set[str] = set()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self.names: list[str] | None = None
        """What to subscribe to; ``None`` until the topics were listed once."""
        threading.Thread(target=self._run, name="streams-topics", daemon=True).start()

    def named(self, topic: str) -> bool:
        """Whether the topic is subscribed to by its name, so that it must exist."""
        return topic in self._named

    def look_soon(self) -> None:
        """List the topics again now: one of them is said to be gone."""
        self._wake.set()

    def close(self) -> None:
        """Stop listing topics; does not wait for a request that is under way."""
        self._closed.set()
        self._wake.set()

    def _run(self) -> None:
        admin: KafkaAdmin | None = None
        while not self._closed.is_set():
            try:
                admin = admin or self._admin()
                self._take(admin.topic_names())
            except BrokerError as error:
                log.warning("the topics that patterns match cannot be listed: %s", error)
            # Who misses a topic says so with every poll.
            if not self._closed.wait(SOON_SECONDS):
                self._wake.wait(self._seconds if self.names is not None else SOON_SECONDS)
                self._wake.clear()
        if admin is not None:
            admin.close()

    def _take(self, existing: Collection[str]) -> None:
        found = {
            name
            for name in existing
            if not name.startswith("__") and any(pattern.fullmatch(name) for pattern in self._patterns)
        }
        gone = self._known - found
        self._known = found | (gone - self._missed)
        self._missed = gone
        self.names = sorted(self._named | self._known)
