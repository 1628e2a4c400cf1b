"""Rows that the broker refused, so that a transaction was aborted: met again, they are not written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from streams.errors import RecordRefused

MOST = 10_000
"""So many are remembered; those beyond are refused once more and remembered then."""


class RefusedRows:
    """One worker's, by ``RowOwner.place``. A row is forgotten once what became of it is committed."""

    def __init__(self) -> None:
        self._rows: dict[Hashable, tuple[int, RecordRefused]] = {}
        self._met: set[Hashable] = set()

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, place: Hashable, error: RecordRefused) -> None:
        """The broker refused the row at that place."""
        if place in self._rows or len(self._rows) < MOST:
            self._rows[place] = self.times(place) + 1, error

    def times(self, place: Hashable) -> int:
        """How often the row was refused."""
        return self._rows[place][0] if place in self._rows else 0

    def meet(self, place: Hashable) -> RecordRefused | None:
        """Why the row was refused, if it was; its step's policy is applied to it now."""
        found = self._rows.get(place)
        if found is None:
            return None
        self._met.add(place)
        return found[1]

    def committed(self) -> None:
        """What became of the rows that were met is permanent."""
        for place in self._met:
            del self._rows[place]
        self._met.clear()

    def dropped(self) -> None:
        """What was not committed is processed again: the rows are still to be met."""
        self._met.clear()

    def clear(self) -> None:
        """Forget all of them: other members may have their input now."""
        self._rows.clear()
        self._met.clear()
