"""A compiled pattern as a source, and the app's own topics, which patterns exclude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re

INTERNAL_SUFFIXES = ("-changelog", "-repartition", "-sink", "-source")
"""Suffixes of internal topics, whose names begin with the app's name."""


@dataclass(frozen=True, slots=True)
class OwnTopics:
    """The topics that belong to an app, as a container of names.

    ``application`` is the prefix of internal topics. These are recognised by the form of their names, so that
    those of an earlier version of the program, with other stores, are included. ``names`` are the other
    topics that the app writes: outputs, dead letters.
    """

    application: str
    names: frozenset[str]

    def __contains__(self, topic: object) -> bool:
        if not isinstance(topic, str):
            return False
        prefix = f"{self.application}-"
        if topic in self.names or topic in {
            f"{prefix}dead-letters",
            f"{prefix}replicas",
            f"{prefix}retries",
            f"{prefix}replays",
            f"{prefix}alerts",
            f"{prefix}alert-figures",
        }:
            return True
        # Between prefix and suffix is the name of a store or a step.
        return any(
            topic.startswith(prefix) and topic.endswith(suffix) and len(topic) > len(prefix) + len(suffix)
            for suffix in INTERNAL_SUFFIXES
        )


@dataclass(frozen=True, slots=True)
class TopicPattern:
    """A pattern that a source reads: topics whose full name it matches by Python's ``re``, flags included.

    It excludes the app's ``own`` topics, which would be read in an endless loop, and the broker's, whose
    names begin with ``__``.
    """

    regex: re.Pattern[str]
    own: OwnTopics

    @property
    def pattern(self) -> str:
        """The text of the regular expression."""
        return self.regex.pattern

    def matches_own(self, topic: str) -> bool:
        """Whether a topic is excluded only because it is the app's own."""
        return topic in self.own and self.regex.fullmatch(topic) is not None

    def fullmatch(self, topic: str, /) -> bool:
        """Whether the source reads a topic of that name."""
        return (
            self.regex.fullmatch(topic) is not None and not topic.startswith("__") and topic not in self.own
        )
