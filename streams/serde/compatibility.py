"""Compatibility levels: which of two versions of a schema must be able to read the other's records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fastavro

from streams.serde.schema_folder import described_schema
from streams.serde.schemas.avro_resolution import avro_differences

if TYPE_CHECKING:
    from collections.abc import Iterator


def incompatibilities(old: Any, new: Any, level: str) -> Iterator[str]:
    """Why ``new`` may not follow ``old`` at a level, each with its field.

    Both are complete schemas. Backward means that the new schema reads records of the old one, forward the
    opposite, full both.
    """
    direction = level.removesuffix("_TRANSITIVE")
    before, now = (described_schema(fastavro.parse_schema(schema)) for schema in (old, new))
    if direction in {"BACKWARD", "FULL"}:
        yield from avro_differences(before, now, "reading old records with the new schema:", strict=False)
    if direction in {"FORWARD", "FULL"}:
        yield from avro_differences(now, before, "reading new records with the old schema:", strict=False)
