"""Orders, and files with their Avro schemas: the older one has no note."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import strategies as st

if TYPE_CHECKING:
    from pathlib import Path

NUMBER = {"name": "number", "type": "long"}
NOTE = {"name": "note", "type": ["null", "string"], "default": None}


class Order(msgspec.Struct):
    number: int
    note: str | None = None


orders = st.builds(Order, number=st.integers(-(2**63), 2**63 - 1), note=st.one_of(st.none(), st.text()))


def write_schema(folder: Path, name: str, fields: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text(json.dumps({"type": "record", "name": "shop.Order", "fields": fields}))
    return path
