"""The numbers that have arrived: in topics, in Redis, and in the files of the receivers."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from apps.bridges.senders import redis_client
from apps.bridges.zeromq_side import numbers
from streams.broker import BEGINNING
from streams.broker.reading import find_partitions, follow
from streams.errors import BrokerError
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from apps.bridges.rabbitmq_side import RabbitMQNumbers
    from streams.broker import Broker

RETRY_SECONDS = 0.5


class TopicNumbers:
    """The numbers in topics, read in a thread of its own as they are committed."""

    def __init__(self, broker: Broker, topics: Mapping[str, str]) -> None:
        self.found: defaultdict[str, list[int]] = defaultdict(list)
        """By the bridge's name."""
        self._broker = broker
        self._names = {topic: name for name, topic in topics.items()}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop reading."""
        self._stopped.set()
        self._thread.join()

    def _follow(self) -> None:
        positions: dict[TopicPartition, int] = {}
        while not self._stopped.is_set():
            # While the broker is away, what was read stays read.
            with contextlib.suppress(BrokerError):
                if not positions:
                    places = find_partitions(self._broker, list(self._names))
                    positions = dict.fromkeys(places, BEGINNING)
                for fetched in follow(self._broker, positions, self._stopped.is_set):
                    self.found[self._names[fetched.topic]] += [
                        int(value or b"-1") for value in fetched.values()
                    ]
                    positions[TopicPartition(fetched.topic, fetched.partition)] = fetched.next_offset
            self._stopped.wait(RETRY_SECONDS)


class RedisNumbers:
    """The numbers in a stream, a list, and hashes. While the server is away, those that were there before."""

    def __init__(self, port: int) -> None:
        self._client: Any = redis_client(port)
        self._found: dict[str, list[int]] = {}

    def found(self) -> dict[str, list[int]]:
        """All that are there now, by the bridge's name."""
        client = self._client
        with contextlib.suppress(RedisError):
            self._found = {
                "to-redis-stream": [int(fields[b"n"]) for _, fields in client.xrange("stream-out")],
                "to-redis-list": [int(each) for each in client.lrange("list-out", 0, -1)],
                # A hash or a string that is written again is the same.
                **{
                    f"to-redis-{name}": [
                        int(key.rpartition(b":")[2])
                        for key in set(client.scan_iter(f"{kind}-out:*", count=1_000))
                    ]
                    for name, kind in (("hashes", "hash"), ("strings", "string"))
                },
            }
        return self._found

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


class Arrivals:
    """All of them."""

    def __init__(
        self,
        topics: TopicNumbers,
        in_redis: RedisNumbers,
        in_rabbitmq: RabbitMQNumbers | None,
        files: Mapping[str, Path],
    ) -> None:
        self._topics = topics
        self._redis = in_redis
        self._rabbitmq = in_rabbitmq
        self._files = files

    def numbers(self) -> dict[str, list[int]]:
        """The numbers that have arrived by now, by the bridge's name."""
        files = {name: numbers(file) for name, file in self._files.items()}
        rabbitmq = {} if self._rabbitmq is None else {"to-rabbitmq": self._rabbitmq.found()}
        return {**self._topics.found, **self._redis.found(), **rabbitmq, **files}
