"""Serdes that depend on the topic: their schemas belong to a subject of a schema registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from streams.serde.basic import Serde
    from streams.serde.registry import Part
    from streams.serde.subjects import Subjects


@runtime_checkable
class TopicSerde(Protocol):
    """A serde whose payloads have the ids of a schema registry, if it is connected to one."""

    def connected(self, subjects: Subjects, part: Part, *, stored: bool = False) -> Serde[Any]:
        """The same serde for topics of a registry; with ``stored``, for a store that a topic fills."""

    def for_topic(self, topic: str) -> Serde[Any]:
        """The same serde, writing to a topic."""


def connected(serde: Serde[Any], subjects: Subjects, part: Part, *, stored: bool = False) -> Serde[Any]:
    """The serde for the records of a registry's topics, if it depends on them."""
    return serde.connected(subjects, part, stored=stored) if isinstance(serde, TopicSerde) else serde


def serde_for(serde: Serde[Any], topic: str) -> Serde[Any]:
    """The serde for writing to a topic."""
    return serde.for_topic(topic) if isinstance(serde, TopicSerde) else serde
