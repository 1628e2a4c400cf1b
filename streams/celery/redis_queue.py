"""A queue of Celery's in Redis: a list for each step of the priorities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from streams.celery.message import KombuEnvelope, TaskMessage
from streams.connectors.redis import RedisList
from streams.connectors.source import PlainSource
from streams.serde import Bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.source import SourceContext, SourceReader
    from streams.serde import Serde

SEPARATOR: Final = "\x06\x16"
"""What kombu writes between the name of a queue and a step."""


@dataclass(frozen=True, slots=True)
class RedisTaskQueue(PlainSource):
    """The messages of one queue, each exactly once. Each list is read by a task of its own."""

    lists: tuple[RedisList[TaskMessage], ...]

    kind = "celery"

    @property
    def tasks(self) -> int:
        return len(self.lists)

    @property
    def key(self) -> Serde[bytes]:
        return Bytes()

    @property
    def value(self) -> Serde[TaskMessage]:
        return self.lists[0].value

    def check(self, application: str, name: str) -> None:
        """Check that the server can be read, and that the keys are lists, if they exist."""
        for each in self.lists:
            each.check(application, name)

    def open(self, context: SourceContext) -> SourceReader:
        """Connect, and continue at the context's position."""
        return self.lists[context.task].open(context)


def redis_task_queue(url: str, queue: str, *, key_prefix: str, steps: Sequence[int]) -> RedisTaskQueue:
    """The source of a queue. Celery's programs push at the left end of its lists."""
    names = [f"{key_prefix}{queue}{SEPARATOR}{step}" if step else f"{key_prefix}{queue}" for step in steps]
    value = KombuEnvelope()
    return RedisTaskQueue(tuple(RedisList(url, name, value=value, take="right") for name in names))
