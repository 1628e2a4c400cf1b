"""Commands for the jobs of a queue, e.g. to cancel some: a topic that every worker reads completely."""

from __future__ import annotations

from enum import StrEnum
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streams.errors import ConfigurationError
from streams.jobs.record import JobId
from streams.operators.table import StampedSerde
from streams.serde import Bytes, Json, Text
from streams.state.definition import SourceEntries, StoreDefinition
from streams.topology.graph import GlobalSource, OwnTopic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.jobs.record import JobRecord
    from streams.records import Fetched

TABLE: Final = "job-commands"
"""The global table of the commands."""

MOST_JOBS: Final = 1_000
"""The maximum number of jobs that one command names."""

MOST_READ: Final = 100
"""How many commands a task of the queue applies in one slice."""


class Action(StrEnum):
    """What a command demands."""

    CANCEL = "cancel"
    """The jobs never begin; those that run are asked to end."""
    RETRY = "retry"
    """The jobs that wait for their next attempt begin now."""
    PAUSE = "pause"
    """Jobs of the scope do not begin."""
    RESUME = "resume"
    """They begin again."""


class Command(msgspec.Struct, omit_defaults=True, frozen=True):
    """The value of a record of the commands' topic, as JSON. Records stay, so that it is known who did what.

    The scope of a pause is ``function``, else ``key``, else all jobs.
    """

    action: Action
    at: int
    """When it was given, in milliseconds since the epoch."""
    by: str
    """Who gave it: user@host."""
    jobs: list[str] = []
    """The ids of the jobs to cancel or retry."""
    function: str | None = None
    key: str | None = None

    @property
    def scope(self) -> str:
        """The scope of a pause, as text."""
        if self.function is not None:
            return f"f:{self.function}"
        return ALL if self.key is None else f"k:{self.key}"


ALL: Final = "all"
"""The scope of all jobs."""


class CommandNote(msgspec.Struct, array_like=True, frozen=True):
    """What a task stores of a command that holds on."""

    at: int
    by: str


def scopes(record: JobRecord) -> tuple[str, ...]:
    """The scopes of pauses that a job belongs to."""
    own = (ALL, f"f:{record.job}")
    return own if record.key is None else (*own, f"k:{record.key}")


def scope_text(scope: str) -> str:
    """A scope in words."""
    if scope == ALL:
        return "all jobs"
    return f"function {scope[2:]}" if scope.startswith("f:") else f'key "{scope[2:]}"'


def commands_topic(application: str) -> str:
    """The topic of the commands for an app's jobs."""
    return f"{application}-job-commands"


# The table has an entry for each command, by the offset of its record, and one for the last offset.
_OFFSET = Struct(">Q")
_LAST = b"last"
_ENTRY = StampedSerde(Bytes())
_command = msgspec.json.Decoder(Command).decode


def command_table(application: str) -> GlobalSource:
    """The table of an app's commands."""
    topic = commands_topic(application)
    return GlobalSource(
        topic=topic,
        key=Text(),
        value=Json(Command),
        store=StoreDefinition(
            name=TABLE,
            key=Bytes(),
            value=_ENTRY,
            purpose="job commands",
            source_topic=topic,
            read_source=_entries,
            view=None,
        ),
        # One partition, so that commands have an order. They are kept, as an audit trail.
        own=OwnTopic(1, (("retention.ms", "-1"),)),
    )


def _entries(fetched: Fetched) -> SourceEntries:
    entries: dict[bytes, bytes | None] = {}
    refused: list[tuple[int, str]] = []
    columns = fetched.offsets(), fetched.values(), fetched.timestamps()
    for row, (offset, value, time) in enumerate(zip(*columns, strict=True)):
        try:
            for job in _command(value or b"").jobs:
                JobId.parse(job)
        except (msgspec.MsgspecError, ConfigurationError) as error:
            refused.append((row, f"it is no command: {error}"))
            continue
        (entries[_OFFSET.pack(offset)],) = _ENTRY.serialize([(value, time)])
    (entries[_LAST],) = _ENTRY.serialize([(_OFFSET.pack(fetched.next_offset), 0)])
    return SourceEntries(entries, refused)


class CommandLog:
    """The commands as a task of the queue reads them. ``lookup`` reads entries of their table."""

    def __init__(self, lookup: Callable[[Sequence[Any]], list[Any]]) -> None:
        self._lookup = lookup

    @property
    def end(self) -> int:
        """One past the offset of the last command."""
        found = self._lookup([_LAST])[0]
        return 0 if found is None else int(_OFFSET.unpack(found)[0])

    def read(self, start: int, stop: int) -> list[Command]:
        """The commands with ``start <= offset < stop``, in their order."""
        found = self._lookup([_OFFSET.pack(offset) for offset in range(start, stop)])
        return [_command(value) for value in found if value is not None]
