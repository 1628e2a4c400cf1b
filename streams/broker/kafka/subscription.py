"""The topics to which a consumer subscribes: by name, and existing ones that match its patterns."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from streams.broker.kafka.client_factory import log
from streams.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from streams.broker import NamePattern
    from streams.broker.kafka.admin import KafkaAdmin

LOOK_SECONDS: Final = 10.0
"""Seconds between listings of the cluster's topics, unless the client refreshes metadata more often."""

SOON_SECONDS: Final = 0.5
"""The minimum time between two listings, as the second one decides whether a missing topic is deleted."""


class Subscription:
    """The topic names to which a consumer subscribes, kept up to date by a separate thread.

    Patterns are matched here, by Python, and the group only sees names: the regular expressions of librdkafka
    (classic protocol) and of the broker (KIP-848, RE2/J) differ from Python's in flags, lookarounds, ``$``
    and more. Listing topics waits for a broker, so it is not done in the consumer's thread.

    A topic is added with the first listing that has it. It is only removed when two listings in a row miss
    it: a broker that has just started may not know all topics yet.
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
        """The names to subscribe to; ``None`` until the topics were listed for the first time."""
        threading.Thread(target=self._run, name="streams-topics", daemon=True).start()

    def named(self, topic: str) -> bool:
        """Whether the topic is subscribed to by name, so that it must exist."""
        return topic in self._named

    def look_soon(self) -> None:
        """List the topics again now, because the client reports that one does not exist."""
        self._wake.set()

    def close(self) -> None:
        """Stop listing topics; does not wait for a pending request."""
        self._closed.set()
        self._wake.set()

    def _run(self) -> None:
        admin: KafkaAdmin | None = None
        while not self._closed.is_set():
            try:
                admin = admin or self._admin()
                self._take(admin.topic_names())
            except BrokerError as error:
                log.warning("topics cannot be listed to match patterns: %s", error)
            # The wait bounds the rate: ``look_soon`` is called with every poll while a topic is missing.
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
