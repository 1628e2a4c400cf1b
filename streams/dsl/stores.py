"""The stores of custom processors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.durations import to_milliseconds
from streams.errors import TopologyError
from streams.serde import Json, Serde, Text
from streams.state.deadlines import deadlines_definition
from streams.state.definition import StoreDefinition
from streams.state.expiring import ExpiringSerde

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta


def key_value_store(
    name: str,
    *,
    key: Serde[Any] | None = None,
    value: Serde[Any] | None = None,
    migrate: Callable[[Any], Any] | None = None,
    ttl: timedelta | None = None,
) -> StoreDefinition:
    """Define a store for ``Stream.process(…, stores=[…])``; by default keys are text and values JSON.

    ``migrate`` converts a value of an earlier schema, as plain data, to the current schema. With ``ttl``, an
    entry expires when stream time has advanced by that much since it was last put.
    """
    if ttl is None:
        return StoreDefinition(name=name, key=key or Text(), value=value or Json(), migrate=migrate)
    lasts = to_milliseconds(ttl, f"store {name!r}: ttl")
    if lasts < 1:
        raise TopologyError(f"store {name!r} needs a ttl of 1 ms or more, got {lasts}")
    return StoreDefinition(
        name=name,
        key=key or Text(),
        value=ExpiringSerde(value or Json()),
        migrate=migrate,
        ttl=lasts,
        view=lambda entry: entry.value,
    )


def with_deadlines(stores: Iterable[StoreDefinition]) -> tuple[StoreDefinition, ...]:
    """The stores; each store whose entries expire is followed by the store of their deadlines."""
    return tuple(
        each
        for store in stores
        for each in ([store] if store.ttl is None else [store, deadlines_definition(store.name, store.key)])
    )
