"""The definition of a store as plain data, independent of where its entries are kept."""

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
    """The entries of a store that is restored from an input topic, made of the topic's records."""

    entries: Mapping[bytes, bytes | None]
    """``None`` deletes."""
    refused: Sequence[tuple[int, str]] = ()
    """The positions of the records that are left out, and the reasons."""


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
    """A named store.

    With ``retention`` (milliseconds) it is windowed: its keys are window starts followed by keys, and entries
    expire when stream time is that far past their start. ``source_topic`` is the input topic that serves as
    its changelog; otherwise a changelog topic is created. ``purpose`` is part of the stored schema, together
    with the schemas of the serdes. ``migrate`` converts a value of the previous schema to the current one.
    """

    name: str
    key: Serde[Any] = field(default_factory=Bytes)
    value: Serde[Any] = field(default_factory=Bytes)
    purpose: str = "plain"
    retention: int | None = None
    expired_span: int = 0
    """How much time (milliseconds) expired windows may span before they are deleted as one range.

    For stores with a window for each millisecond: RocksDB processes all deleted ranges that are still in
    memory each time it opens an iterator, so that with a range for each commit, commits would become slower
    and slower.
    """
    source_topic: str | None = None
    read_source: Callable[[Fetched], SourceEntries] | None = None
    """Makes entries of records of ``source_topic``, in the same way as the step that owns the store."""
    migrate: Callable[[Any], Any] | None = None
    changelog_retention: int | None = None
    """How long the changelog must keep a record (milliseconds since it was written); ``None``: for ever."""
    ttl: int | None = None
    """How long after its last put an entry expires (milliseconds of stream time); ``None``: never.

    Values are then ``Expiring``, and a second store has the deadlines of the keys.
    """
    view: Callable[[Any], Any] | None = itself
    """Converts a stored value for queries, e.g. an accumulator to its result; ``None`` hides an entry.

    It is called from other threads than the worker's. Without a function, the store cannot be queried.
    """
    window_end: Callable[[int, Any], int] | None = None
    """The end of a window, from its start and the stored value of a windowed store's entry.

    Without it the entries are not results of windows, and the store cannot be queried.
    """
    lists_windows: bool = False
    """Whether a value, as it is shown, is the list of a key's open windows: each has start, end and value."""
    kept: KeptWindows | None = None
    """Where its windows are once they have closed; ``None`` where they are gone then."""
    _schema: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def held_key(self) -> Serde[Any]:
        """The serde of keys in the task's view of the store; see ``streams.serde.held_key``."""
        return held_key(self.key)

    @property
    def schema(self) -> str:
        """The encoding of the store's keys and values, as text that is stored with them."""
        if not self._schema:
            # Computed once and not for each task, as it inspects types.
            self._schema.append(self._described())
        return self._schema[0]

    def _described(self) -> str:
        description = {
            "purpose": self.purpose,
            "key": schema_of(self.key),
            "value": schema_of(self.value),
        }
        # Not sorted: the order of fields determines the bytes of keys.
        return json.dumps(description)

    @property
    def queryable(self) -> bool:
        """Whether its entries have a meaning for users, so that they can be queried."""
        return self.view is not None and (self.retention is None or self.window_end is not None)


def schema_of(serde: Serde[Any]) -> Any:
    """The schema of a serde: its ``schema`` if it has one, else its name."""
    return getattr(serde, "schema", serde.name)
