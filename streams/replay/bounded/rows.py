"""Records as columns, between the stages of a replay."""

from __future__ import annotations

from typing import NamedTuple


class SpooledRows(NamedTuple):
    """Records as columns. ``partitions`` has numbers for the records whose partition is not their key's."""

    keys: list[bytes | None]
    values: list[bytes | None]
    timestamps: list[int]
    headers: list[list[tuple[str, bytes | None]] | None] | None
    partitions: list[int | None] | None

    def __len__(self) -> int:
        return len(self.values)
