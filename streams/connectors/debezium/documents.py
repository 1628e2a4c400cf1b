"""Events about documents of MongoDB, in the form that those about rows have.

Debezium gives a document as JSON in a text, in the old form of MongoDB's Extended JSON, and its identifier in
the new one. Here both become the relaxed form of Extended JSON 2, in which numbers are numbers.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from streams.connectors.change import Change, ChangeSource, TransactionBlock
from streams.errors import ConnectorError

if TYPE_CHECKING:
    from collections.abc import Collection

    from streams.connectors.change import Operation
    from streams.connectors.debezium.engine import Delivery

ID: Final = "_id"
"""The field of a document that is its key."""


class _Source(msgspec.Struct):
    db: str
    collection: str
    name: str | None = None
    version: str | None = None
    ts_ms: int | None = None
    snapshot: str | bool | None = None
    sequence: str | None = None


class _Event(msgspec.Struct):
    """Of an event about a document, what is used here; others have no ``op``."""

    op: str = ""
    source: _Source | None = None
    before: str | None = None
    after: str | None = None
    transaction: TransactionBlock | None = None
    ts_ms: int | None = None


class _Key(msgspec.Struct):
    id: str


_EVENT: Final = msgspec.json.Decoder(_Event)
_KEY: Final = msgspec.json.Decoder(_Key)
_DOCUMENT: Final = msgspec.json.Decoder(dict[str, Any])
_encode: Final = msgspec.json.Encoder().encode


def as_rows(delivery: Delivery, collections: Collection[str], *, exact: bool) -> Delivery:
    """The events about documents of these collections, as about rows of tables with the key ``_id``.

    An update has no document if it was deleted before the server looked it up: its deletion follows, and the
    update is left out. ``exact``: documents are not looked up but kept by the server, and none is missing.
    Raises ``ConnectorError`` if one is.
    """
    events = [_EVENT.decode(value) for value in delivery.values]
    kept = [row for row, event in enumerate(events) if _is_kept(event, collections, exact=exact)]
    keys, values = list(delivery.keys), list(delivery.values)
    for row in kept:
        event = events[row]
        if event.op:
            keys[row], values[row] = _row(event, delivery.keys[row])
    return replace(
        delivery,
        keys=[keys[row] for row in kept],
        values=[values[row] for row in kept],
        schemas=[delivery.schemas[row] for row in kept],
        headers={at: delivery.headers[row] for at, row in enumerate(kept) if row in delivery.headers},
    )


def _is_kept(event: _Event, collections: Collection[str], *, exact: bool) -> bool:
    source = event.source
    if not event.op or source is None:
        return True
    name = f"{source.db}.{source.collection}"
    if name not in collections:
        # Debezium does not tell capitals from small letters in names.
        return False
    if event.op != "u" or event.after is not None:
        return True
    if exact:
        raise ConnectorError(
            f"the server has not kept the document of an update in {name}",
            hint="enable changeStreamPreAndPostImages of the collection, and keep them longer, or leave out "
            "capture.mode.full.update.type; then give the source another snapshot=",
        )
    return False


def _row(event: _Event, key: bytes | None) -> tuple[bytes, bytes]:
    """The key and the change of a document."""
    source = event.source
    assert source is not None, "an event about a document has a source"
    assert key is not None, "every document has an identifier"
    names = b'{"%s":%s}' % (ID.encode(), _KEY.decode(key).id.encode())
    before = None if event.before is None else _document(event.before)
    if before is None and event.op == "d":
        before = msgspec.Raw(names)
    change = Change(
        op=cast("Operation", event.op),
        before=before,
        after=None if event.after is None else _document(event.after),
        source=ChangeSource(
            db=source.db,
            table=source.collection,
            connector="mongodb",
            name=source.name,
            version=source.version,
            ts_ms=source.ts_ms,
            snapshot=source.snapshot,
            sequence=source.sequence,
        ),
        transaction=event.transaction,
        ts_ms=event.ts_ms,
    )
    return names, _encode(change)


def _document(text: str) -> msgspec.Raw:
    if not _OTHER.search(text):
        return msgspec.Raw(text.encode())
    try:
        document = _DOCUMENT.decode(text)
    except msgspec.DecodeError:
        # Numbers that JSON has not, which Java writes all the same.
        document = json.loads(text, parse_constant=lambda name: {"$numberDouble": name})
    return msgspec.Raw(_encode(_relaxed(document)))


_OTHER: Final = re.compile(r'"\$(?:numberLong|date|binary|regex)"|NaN|Infinity')
"""What is not the same in both forms of Extended JSON."""


def _relaxed(value: Any) -> Any:
    """A value of the old form of Extended JSON in the relaxed form."""
    if isinstance(value, list):
        return [_relaxed(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$numberLong": str() as number, **others} if not others:
            return int(number)
        case {"$date": int() as milliseconds, **others} if not others:
            return {"$date": _date(milliseconds)}
        case {"$binary": str() as data, "$type": str() as kind, **others} if not others:
            return {"$binary": {"base64": data, "subType": kind}}
        case {"$regex": str() as pattern, "$options": str() as options, **others} if not others:
            return {"$regularExpression": {"pattern": pattern, "options": options}}
    return {name: _relaxed(item) for name, item in value.items()}


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_AFTER_9999: Final = 253_402_300_800_000


def _date(milliseconds: int) -> Any:
    """As Java's driver writes it in keys: text from 1970 to 9999, else a number."""
    if not 0 <= milliseconds < _AFTER_9999:
        return {"$numberLong": str(milliseconds)}
    moment = (_EPOCH + timedelta(milliseconds=milliseconds)).replace(tzinfo=None)
    if milliseconds % 1000:
        return f"{moment.isoformat(timespec='milliseconds').rstrip('0')}Z"
    return f"{moment.isoformat()}Z"
