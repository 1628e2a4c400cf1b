"""The serde of structures that contain accumulators."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from streams.aggregates.traced import with_lineage
from streams.operators.aggregate import reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.aggregates import Aggregate
    from streams.operators.aggregate import Began, Earlier


class PackedSerde:
    """The serde of a key's state, with functions that convert it to and from what msgpack can encode."""

    def __init__(
        self,
        name: str,
        aggregate: Aggregate[Any, Any],
        pack: Callable[[Aggregate[Any, Any], Any], Any],
        unpack: Callable[[Aggregate[Any, Any], Any], Any],
    ) -> None:
        self.name = name
        self.schema = {name: aggregate.schema}
        self._aggregate = aggregate
        self._pack = pack
        self._unpack = unpack

    def traced(self) -> PackedSerde:
        """The serde that reads accumulators with their lineage."""
        return PackedSerde(self.name, with_lineage(self._aggregate), self._pack, self._unpack)

    def reading(self, began: Began, earlier: Earlier) -> PackedSerde:
        """The serde for a store that is older than some of its aggregates."""
        return PackedSerde(self.name, reading(self._aggregate, began, earlier), self._pack, self._unpack)

    def serialize(self, values: Sequence[Any]) -> Iterable[bytes]:
        return map(msgspec.msgpack.Encoder().encode, map(partial(self._pack, self._aggregate), values))

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[Any]:
        unpack = partial(self._unpack, self._aggregate)
        return map(unpack, map(msgspec.msgpack.Decoder().decode, payloads))
