"""Change events as JSON, as Debezium and Kafka Connect write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

import msgspec

from streams.connectors.change import Change, ChangeSource, Operation, Tombstone, TransactionBlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

T = TypeVar("T")

_WITH_SCHEMA: Final = b'{"schema":'
"""The first bytes that Kafka Connect's converter writes with ``schemas.enable=true``, its default."""


class ChangeJson(Generic[T]):
    """``Change[T]`` as JSON, where ``T`` is the type of the table's rows; dictionaries unless given.

    Reads events with and without Kafka Connect's schema part, and writes them without. A ``Tombstone`` is
    written as a null value.

    ``before`` is ``None`` where it is not a complete row: unless the table's REPLICA IDENTITY is FULL, the
    database sends only the key of a row that was deleted.
    """

    @overload
    def __init__(self: ChangeJson[dict[str, Any]], row: None = None) -> None: ...

    @overload
    def __init__(self, row: type[T]) -> None: ...

    def __init__(self, row: type[T] | None = None) -> None:
        self._row = row
        kind: Any = dict[str, Any] if row is None else row
        self.value_type: Any = Change[kind]
        self._decode = msgspec.json.Decoder(self.value_type).decode
        without: Any = _WithoutBefore[kind]
        self._decode_without_before = msgspec.json.Decoder(without).decode
        self._unwrap = msgspec.json.Decoder(_Wrapped).decode
        self._encode = msgspec.json.Encoder().encode

    @property
    def name(self) -> str:
        return f"ChangeJson({'' if self._row is None else self._row.__name__})"

    @property
    def schema(self) -> dict[str, Any]:
        return {"change": self.name}

    def serialize(self, values: Sequence[Change[T]]) -> Iterable[bytes]:
        encode = self._encode
        if Tombstone in set(map(type, values)):
            # The protocol has no null for a serde to write: a sink takes None as a tombstone all the same.
            return [None if type(value) is Tombstone else encode(value) for value in values]  # type: ignore[misc]
        return map(encode, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[Change[T]]:
        decode, unwrap = self._decode, self._unwrap
        for payload in payloads:
            event = unwrap(payload).payload if payload.startswith(_WITH_SCHEMA) else payload
            try:
                change = decode(event)
            except msgspec.ValidationError as error:
                if "`$.before" not in str(error):
                    raise
                change = Change(**msgspec.structs.asdict(self._decode_without_before(event)))
            yield change


class _Wrapped(msgspec.Struct):
    payload: msgspec.Raw


class _WithoutBefore(msgspec.Struct, Generic[T], kw_only=True):
    op: Operation
    after: T | None = None
    source: ChangeSource
    transaction: TransactionBlock | None = None
    ts_ms: int | None = None
