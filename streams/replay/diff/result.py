"""What a comparison has found, as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from streams.replay.diff.fields import FieldChange

DifferenceKind: TypeAlias = Literal["added", "missing", "changed"]


class Difference(NamedTuple):
    """One record that differs, as an example."""

    kind: DifferenceKind
    key: Any
    when: str
    """Its event time, or its window, in ISO 8601."""
    fields: list[FieldChange]
    """The fields that differ; of an added or missing record the complete value, as ``value``."""

    def as_fields(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "kind": self.kind,
            "key": self.key,
            "when": self.when,
            "fields": [change._asdict() for change in self.fields],
        }


@dataclass
class TopicDiff:
    """How the results of one topic differ."""

    topic: str
    compared: str
    """What was compared: each record, or the last one of each key and window."""
    old_records: int = 0
    new_records: int = 0
    equal: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """How many records are added, missing, changed."""
    changed_fields: Counter[str] = field(default_factory=Counter)
    """In how many records each field differs."""
    samples: list[Difference] = field(default_factory=list)

    @property
    def differences(self) -> int:
        """How many records differ."""
        return self.kinds.total()

    def as_fields(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "topic": self.topic,
            "compared": self.compared,
            "old_records": self.old_records,
            "new_records": self.new_records,
            "equal": self.equal,
            "added": self.kinds["added"],
            "missing": self.kinds["missing"],
            "changed": self.kinds["changed"],
            "fields": dict(self.changed_fields.most_common()),
            "samples": [sample.as_fields() for sample in self.samples],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """How the results of a new program differ from those of the old one.

    ``noise`` is how two runs of the old program differ: fields in it, which depend on something besides the
    input, were not compared.
    """

    topics: list[TopicDiff]
    noise: list[TopicDiff]

    @property
    def equal(self) -> bool:
        """Whether there is no difference."""
        return not any(topic.differences for topic in self.topics)

    @property
    def noisy_fields(self) -> dict[str, list[str]]:
        """By topic, the fields that were not compared."""
        return {topic.topic: sorted(topic.changed_fields) for topic in self.noise if topic.changed_fields}

    @property
    def noisy_topics(self) -> list[str]:
        """The topics of which two runs of the old program have other records."""
        return [topic.topic for topic in self.noise if topic.kinds["added"] or topic.kinds["missing"]]

    def as_fields(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "equal": self.equal,
            "topics": [topic.as_fields() for topic in self.topics],
            "noise": [topic.as_fields() for topic in self.noise if topic.differences],
        }
