"""A store as plain data: what the topology says about it, whoever keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.serde import Bytes, held_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.records import Fetched
    from streams.serde import Serde


def itself(value: Any) -> Any:
    """The value as it is stored."""
    return value


class SourceEntries(NamedTuple):
    """What records of an input topic make of a store that is restored from it."""

    entries: Mapping[bytes, bytes | None]
    """``None`` deletes."""
    refused: Sequence[tuple[int, str]] = ()
    """The positions of the records that are left out, and why."""


class KeptWindows(NamedTuple):
    """Where windows stay that have closed, for queries."""

    store: str
    """A store of the same step: the windows that end from a time on, for each such time and key."""
    span: int
    """The times are multiples of it (milliseconds), up to the window's end."""
    lasts: int
    """How long after its end a window can be queried (milliseconds of stream time)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDefinition:
    """A store that the user named.

    ``retention`` (milliseconds) makes it a windowed one: its keys are window starts with keys, and entries go
    when stream time is that far past their start. ``source_topic`` is the input topic that is its changelog;
    otherwise one is made. ``purpose`` goes into the stored schema, beside those of the serdes. ``migrate``
    makes a value of the schema before into one of the schema now.
    """

    name: str
    key: Serde[Any] = field(default_factory=Bytes)
    value: Serde[Any] = field(default_factory=Bytes)
    purpose: str = "plain"
    retention: int | None = None
    expired_span: int = 0
    """How much time (milliseconds) windows that have expired may span before they are deleted as one range.

    For stores with a window for each millisecond: RocksDB looks at all deleted ranges that are still in
    memory each time it opens an iterator, so that with a range for each commit, commits would get slower
    and slower.
    """
    source_topic: str | None = None
    read_source: Callable[[Fetched], SourceEntries] | None = None
    """Entries from records of ``source_topic``, as the step that owns the store would make them."""
    migrate: Callable[[Any], Any] | None = None
    changelog_retention: int | None = None
    """How long the changelog must keep a record (milliseconds since it was written); ``None`` for ever."""
    ttl: int | None = None
    """How long after its last put an entry goes (milliseconds of stream time); ``None`` for never.

    Values are then ``Expiring``, and the store has another one beside it, for the deadlines of its keys.
    """
    shown: Callable[[Any], Any] | None = itself
    """What a stored value is to those who ask for it, as an accumulator's result; ``None`` hides an entry.

    Called from other threads than the worker's. Without a function, the store cannot be asked.
    """
    window_end: Callable[[int, Any], int] | None = None
    """The end of the window that a windowed store's entry is the result of, from its start and stored value.

    Without it the entries are no results, and the store cannot be asked.
    """
    lists_windows: bool = False
    """Whether a value, as it is shown, is the list of a key's open windows: each has start, end and value."""
    kept: KeptWindows | None = None
    """Where its windows are once they have closed; ``None`` where they are gone then."""
    _schema: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def held_key(self) -> Serde[Any]:
        """The serde of keys as the task's view of the store has them; see ``streams.serde.held_key``."""
        return held_key(self.key)

    @property
    def schema(self) -> str:
        """How the store's bytes are to be read, as text that is stored with them."""
        if not self._schema:
            # Types are looked at for it: once, not for each task.
            self._schema.append(self._described())
        return self._schema[0]

    def _described(self) -> str:
        description = {
            "purpose": self.purpose,
            "key": schema_of(self.key),
            "value": schema_of(self.value),
        }
        # In the order the serdes give: the order of fields decides about the bytes of keys.
        return json.dumps(description)

    @property
    def askable(self) -> bool:
        """Whether its entries are something that users know, so that they may ask for them."""
        return self.shown is not None and (self.retention is None or self.window_end is not None)


def schema_of(serde: Serde[Any]) -> Any:
    """What a serde says about its bytes: its ``schema`` if it has one, else its name."""
    return getattr(serde, "schema", serde.name)
