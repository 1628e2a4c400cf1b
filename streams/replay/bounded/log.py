"""The bounded runs of an app, in a compacted topic of its own: which results belong to which run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from streams.broker import NewTopic
from streams.broker.reading import read_to_end
from streams.errors import TopicError
from streams.records import Output
from streams.structs import decodable

if TYPE_CHECKING:
    from streams.broker import Broker

RunState: TypeAlias = Literal["running", "complete"]

WRITE_SECONDS: Final = 30.0


class ResultTopic(msgspec.Struct, frozen=True, kw_only=True):
    """A topic with the results of a run."""

    topic: str
    """The app's topic that they are for."""
    id: str
    """The topic's id, which another topic of its name would not have; empty while it is created."""
    records: int = 0

    def is_it(self, identifier: str) -> bool:
        """Whether a topic of its name with this id is the one of the run."""
        return self.id in ("", identifier)


@decodable
class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run. Times are milliseconds since the epoch."""

    name: str
    state: RunState
    begun: int
    begin: str
    """The beginning of the range and its end, as they were requested."""
    end: str
    ended: int | None = None
    records: int = 0
    results: dict[str, ResultTopic] = {}
    """By the name of the topic."""


class RunLog:
    """Reads and writes the topic ``<app>-replays``."""

    def __init__(self, broker: Broker, application: str) -> None:
        self._broker = broker
        self.application = application
        self.topic = f"{application}-replays"

    def read(self) -> dict[str, RunRecord]:
        """The runs by name, without those that were deleted."""
        found: dict[str, RunRecord] = {}
        if not self._exists():
            return found
        for fetched in read_to_end(self._broker, [self.topic]):
            for key, value in zip(fetched.keys(), fetched.values(), strict=True):
                name = (key or b"").decode(errors="replace")
                if value is None:
                    found.pop(name, None)
                    continue
                try:
                    found[name] = msgspec.json.decode(value, type=RunRecord)
                except msgspec.DecodeError as error:
                    raise TopicError(
                        f"{self.topic} has a record with the key {name!r} that no replay wrote: {error}",
                        hint=f"write a null value with this key to {self.topic}",
                    ) from error
        return found

    def write(self, record: RunRecord) -> None:
        """Note a run; it replaces what was known under its name."""
        self._write(record.name, msgspec.json.encode(record))

    def delete(self, name: str) -> None:
        """Forget a run."""
        self._write(name, None)

    def create(self) -> None:
        """Create the topic if it does not exist."""
        if self._exists():
            return
        admin = self._broker.admin()
        try:
            admin.create_topics(
                [NewTopic(name=self.topic, partitions=1, settings={"cleanup.policy": "compact"})]
            )
        finally:
            admin.close()

    def _write(self, name: str, value: bytes | None) -> None:
        self.create()
        producer = self._broker.producer()
        try:
            producer.produce(Output(self.topic, [name.encode()], [value], [-1]))
            producer.flush(WRITE_SECONDS)
        finally:
            producer.close()

    def _exists(self) -> bool:
        admin = self._broker.admin()
        try:
            return self.topic in admin.topics()
        finally:
            admin.close()
