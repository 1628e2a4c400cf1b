"""A compiled pattern as a source of topics, and the topics of the app itself, which no pattern reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re

INTERNAL_SUFFIXES = ("-changelog", "-repartition")
"""How the names of topics end that begin with the app's name and hold its state or records between tasks."""


@dataclass(frozen=True, slots=True)
class OwnTopics:
    """The topics that belong to an app, as a container of their names.

    ``application`` begins the names of internal topics. These belong to the app by the form of their names,
    so that those of an earlier version of the program, whose stores this one does not have, count too.
    ``names`` are the topics that it writes otherwise: outputs, dead letters.
    """

    application: str
    names: frozenset[str]

    def __contains__(self, topic: object) -> bool:
        if not isinstance(topic, str):
            return False
        prefix = f"{self.application}-"
        if topic in self.names or topic in (f"{prefix}dead-letters", f"{prefix}replicas"):
            return True
        # What is between them is the name of a store or a step.
        return any(
            topic.startswith(prefix) and topic.endswith(suffix) and len(topic) > len(prefix) + len(suffix)
            for suffix in INTERNAL_SUFFIXES
        )


@dataclass(frozen=True, slots=True)
class TopicPattern:
    """A pattern that a source reads: topics whose whole name it matches by Python's ``re``, flags included.

    Left out are the app's ``own`` topics, which would be read in an endless loop, and those of the broker,
    whose names begin with ``__``.
    """

    regex: re.Pattern[str]
    own: OwnTopics

    @property
    def pattern(self) -> str:
        """Its source text."""
        return self.regex.pattern

    def matches_own(self, topic: str) -> bool:
        """Whether it leaves a topic out that it matches because the topic is the app's own."""
        return topic in self.own and self.regex.fullmatch(topic) is not None

    def fullmatch(self, topic: str, /) -> bool:
        """Whether the source reads a topic of that name."""
        return (
            self.regex.fullmatch(topic) is not None and not topic.startswith("__") and topic not in self.own
        )
