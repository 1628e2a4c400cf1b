"""Rows that the broker refused, which aborted a transaction: when processed again, they are not written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from streams.errors import RecordRefused

MOST = 10_000
"""The largest number of remembered rows; others are refused again and remembered then."""


class RefusedRows:
    """The refused rows of one worker, by ``RowOwner.place``.

    A row is forgotten once its outcome is committed.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, tuple[int, RecordRefused]] = {}
        self._met: set[Hashable] = set()

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, place: Hashable, error: RecordRefused) -> None:
        """Remember that the broker refused the row at that place."""
        if place in self._rows or len(self._rows) < MOST:
            self._rows[place] = self.times(place) + 1, error

    def times(self, place: Hashable) -> int:
        """How often the row was refused."""
        return self._rows[place][0] if place in self._rows else 0

    def meet(self, place: Hashable) -> RecordRefused | None:
        """The error of a refused row, to which the step's policy is now applied; ``None`` for others."""
        found = self._rows.get(place)
        if found is None:
            return None
        self._met.add(place)
        return found[1]

    def committed(self) -> None:
        """Forget the rows to which policies were applied: their outcome is committed."""
        for place in self._met:
            del self._rows[place]
        self._met.clear()

    def dropped(self) -> None:
        """Note a rewind: the rows are processed again."""
        self._met.clear()

    def clear(self) -> None:
        """Forget all rows: other members may own their input now."""
        self._rows.clear()
        self._met.clear()
