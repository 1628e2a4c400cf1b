"""Comparisons that are kept in a compacted topic, for people who look at them in the console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from streams.broker import NewTopic
from streams.broker.reading import read_to_end
from streams.errors import ConfigurationError
from streams.records import Output
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.broker import Broker
    from streams.replay.diff.result import Diff

WRITE_SECONDS: Final = 30.0

LONGEST_VALUE: Final = 4_000
"""Bytes of a value in an example; of a longer one only its length is kept."""

LARGEST_RECORD: Final = 800_000
"""Bytes of a comparison; of a larger one fewer examples are kept, or none."""

LONGEST_NAME: Final = 100


@decodable
class KeptComparison(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison of two programs."""

    name: str
    time: int
    """When it was made, in milliseconds since the epoch."""
    new: str
    """The programs, as they were named: ``MODULE:APP``."""
    old: str
    facts: list[tuple[str, str]]
    """What was run, as names and texts."""
    equal: bool
    topics: list[dict[str, Any]]
    """See ``TopicDiff.as_fields``."""
    noise: list[dict[str, Any]]
    """How two runs of the old program differ, likewise."""


class ComparisonLog:
    """Reads and writes the topic ``<app>-comparisons``, of the app with the new program."""

    def __init__(self, broker: Broker, application: str) -> None:
        self._broker = broker
        self.topic = f"{application}-comparisons"

    def read(self) -> dict[str, KeptComparison]:
        """The comparisons by name; what no command has written is left out. Raises ``BrokerError``."""
        found: dict[str, KeptComparison] = {}
        admin = self._broker.admin()
        try:
            if self.topic not in admin.topics():
                return found
        finally:
            admin.close()
        for fetched in read_to_end(self._broker, [self.topic]):
            for key, value in zip(fetched.keys(), fetched.values(), strict=True):
                name = (key or b"").decode(errors="replace")
                found.pop(name, None)
                try:
                    if value is not None:
                        found[name] = msgspec.json.decode(value, type=KeptComparison)
                except msgspec.MsgspecError:
                    continue
        return found

    def write(self, comparison: KeptComparison) -> None:
        """Keep a comparison; it replaces the one of its name. Raises ``BrokerError``."""
        admin = self._broker.admin()
        try:
            admin.create_topics(
                [NewTopic(name=self.topic, partitions=1, settings={"cleanup.policy": "compact"})]
            )
        finally:
            admin.close()
        producer = self._broker.producer()
        try:
            value = _encoded(comparison)
            producer.produce(Output(self.topic, [comparison.name.encode()], [value], [comparison.time]))
            producer.flush(WRITE_SECONDS)
        finally:
            producer.close()


def check_name(name: str) -> str:
    """A name for a comparison. Raises ``ConfigurationError``."""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or "/" in name:
        raise ConfigurationError(
            f"{name!r:.120} cannot name a comparison",
            hint=f"use up to {LONGEST_NAME} printable characters, without slashes",
        )
    return name


def kept_comparison(
    name: str, diff: Diff, *, time: int, new: str, old: str, facts: Sequence[tuple[str, str]]
) -> KeptComparison:
    """A comparison as it is kept. ``time`` is in milliseconds since the epoch."""
    fields = diff.as_fields()
    return KeptComparison(
        name=name,
        time=time,
        new=new,
        old=old,
        facts=list(facts),
        equal=diff.equal,
        topics=[_with_short_values(topic) for topic in fields["topics"]],
        noise=[topic | {"samples": []} for topic in fields["noise"]],
    )


def _with_short_values(topic: dict[str, Any]) -> dict[str, Any]:
    samples = [
        sample
        | {
            "key": _short(sample["key"]),
            "fields": [
                change | {"old": _short(change["old"]), "new": _short(change["new"])}
                for change in sample["fields"]
            ],
        }
        for sample in topic["samples"]
    ]
    return topic | {"samples": samples}


def _short(value: Any) -> Any:
    size = len(msgspec.json.encode(value, enc_hook=repr))
    return value if size <= LONGEST_VALUE else f"(too long to be kept: {size:,} bytes)"


def _encoded(comparison: KeptComparison) -> bytes:
    encoded = msgspec.json.encode(comparison, enc_hook=repr)
    for most in (1, 0):
        if len(encoded) <= LARGEST_RECORD:
            break
        topics = [topic | {"samples": topic["samples"][:most]} for topic in comparison.topics]
        encoded = msgspec.json.encode(msgspec.structs.replace(comparison, topics=topics), enc_hook=repr)
    return encoded
