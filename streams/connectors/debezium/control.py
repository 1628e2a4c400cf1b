"""What a reader tells the processor of its task between the changes; it goes no further."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from streams.connectors.change import Change, ChangeSource
from streams.connectors.change_json import ChangeJson
from streams.connectors.debezium.values import Row, Shape  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Kind: TypeAlias = Literal["opened", "reading", "complete", "table", "dropped"]


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """What happened between two changes, as ``control`` says.

    A reader was ``opened``; ``tables`` are read again from now on (``reading``); a snapshot is ``complete``,
    of all tables or of some; the ``table`` has another shape in what follows; it was ``dropped``.
    ``snapshot`` is the number of the last one of all tables: rows that an earlier one had and this one has
    not are gone.
    """

    control: Kind
    snapshot: int
    source: ChangeSource
    shape: Shape | None = None
    tables: list[ChangeSource] = []
    """The tables that are read again, or completely read."""

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


Event: TypeAlias = "Change[Row] | Control"

_CONTROL: Final = b'{"control":'


class EventJson:
    """The records of a source: changes as JSON, and what is said between them."""

    name = "ChangeJson()"
    value_type: Any = Change[dict[str, Any]]

    def __init__(self) -> None:
        self._changes = ChangeJson()
        self._control = msgspec.json.Decoder(Control).decode

    @property
    def schema(self) -> dict[str, Any]:
        return self._changes.schema

    def serialize(self, values: Sequence[Change[Row]]) -> Iterable[bytes]:
        return self._changes.serialize(values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[Any]:
        if any(payload.startswith(_CONTROL) for payload in payloads):
            return [
                self._control(payload) if payload.startswith(_CONTROL) else next(self._one(payload))
                for payload in payloads
            ]
        return self._changes.deserialize(payloads)

    def _one(self, payload: bytes) -> Any:
        return iter(self._changes.deserialize([payload]))
