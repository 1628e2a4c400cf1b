"""Decide about keys that looked different: a change on its way to the target is no difference."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from streams.connectors.comparison.floats import FORMS, readable
from streams.connectors.comparison.result import ColumnDifference, Difference
from streams.connectors.comparison.table import Checksum, Row
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from streams.connectors.comparison.result import DifferenceKind
    from streams.connectors.comparison.scan import Pair
    from streams.connectors.comparison.table import ComparedColumn, Key, Layout, Value

_KEYS_PER_QUERY = 500

MASKED = "***"

_NOTHING = Row(Checksum(0, 0, 0), "", ())
"""What a table has under a key without a row."""


class Settled(NamedTuple):
    """The keys that do differ, and those about which nothing can be said."""

    differences: list[Difference]
    unsettled: list[Key]


@dataclass(slots=True)
class _Seen:
    """A state of a row in the source, and when it was first and last read."""

    row: Row
    first: float
    last: float


@dataclass(slots=True)
class _Suspect:
    since: float
    seen: list[_Seen] = field(default_factory=list)

    def read(self, row: Row, now: float) -> None:
        """Note a state of the source's row."""
        if self.seen and _same_version(self.seen[-1].row, row):
            self.seen[-1].last = now
        else:
            self.seen.append(_Seen(row._replace(values=()), now, now))

    def forget(self, oldest: float) -> None:
        """Forget states that were last seen before ``oldest``."""
        self.seen = [item for item in self.seen if item.last >= oldest]


class Settling:
    """Reads keys again until each is decided.

    By time: the target may be up to ``settle`` seconds behind. A row is equal if the target has a state that
    the source had within that time, and different if the source's row has not been written for that time.
    By position: the source's row is read, then the target once it has ``caught_up`` with the source's log,
    then the source again, which shows that the row has not been written meanwhile.

    A row that is written all the time may give no answer in ``patience`` seconds: it stays unsettled.
    """

    def __init__(
        self,
        pair: Pair,
        layout: Layout,
        *,
        settle: float,
        patience: float,
        caught_up: Callable[[int], bool] | None,
        masked: Collection[str],
    ) -> None:
        self._pair = pair
        self._layout = layout
        self._settle = settle
        self._patience = patience
        self._caught_up = caught_up
        self._masked = frozenset(masked)
        self._pause = min(max(settle / 10, 0.05), 1.0)

    def decide(self, keys: Sequence[Key], limit: int) -> Settled:
        """Decide about keys; stop after ``limit`` differences."""
        pending = {key: _Suspect(time.monotonic()) for key in keys}
        settled = Settled([], [])
        step = self._by_time if self._caught_up is None else self._by_position
        while pending and len(settled.differences) < limit:
            for chunk in _chunks(list(pending), _KEYS_PER_QUERY):
                step(chunk, pending, settled)
                if len(settled.differences) >= limit:
                    break
            else:
                if pending:
                    time.sleep(self._pause)
        return Settled(settled.differences[:limit], settled.unsettled)

    def _by_time(self, keys: list[Key], pending: dict[Key, _Suspect], settled: Settled) -> None:
        before = self._pair.source.rows(keys)
        asked = time.monotonic()
        theirs = self._pair.target.rows(keys)
        after = self._pair.source.rows(keys)
        now = time.monotonic()
        for key in keys:
            suspect, target = pending[key], theirs.get(key, _NOTHING)
            first, last = before.get(key, _NOTHING), after.get(key, _NOTHING)
            suspect.read(first, asked)
            suspect.read(last, now)
            suspect.forget(now - self._settle)
            if target.checksum in {item.row.checksum for item in suspect.seen}:
                del pending[key]
            elif _same_version(first, last) and asked - suspect.seen[-1].first >= self._settle:
                self._differs(key, last, target, pending, settled)
            elif now - suspect.since > self._patience:
                settled.unsettled.append(key)
                del pending[key]

    def _by_position(self, keys: list[Key], pending: dict[Key, _Suspect], settled: Settled) -> None:
        before = self._pair.source.rows(keys)
        reached = self._wait_for_target(min(pending[key].since for key in keys) + self._patience)
        theirs = self._pair.target.rows(keys)
        after = self._pair.source.rows(keys)
        now = time.monotonic()
        for key in keys:
            target = theirs.get(key, _NOTHING)
            first, last = before.get(key, _NOTHING), after.get(key, _NOTHING)
            if target.checksum in {first.checksum, last.checksum}:
                del pending[key]
            elif reached and _same_version(first, last):
                self._differs(key, last, target, pending, settled)
            elif not reached or now - pending[key].since > self._patience:
                settled.unsettled.append(key)
                del pending[key]

    def _wait_for_target(self, deadline: float) -> bool:
        position = self._pair.source.position()
        if position is None:
            raise ConfigurationError(
                f"{self._pair.source.name} has no log with positions to wait for",
                hint="compare without caught_up, with the time that the target may be behind",
            )
        assert self._caught_up is not None
        while not self._caught_up(position):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _differs(
        self, key: Key, source: Row, target: Row, pending: dict[Key, _Suspect], settled: Settled
    ) -> None:
        settled.differences.append(
            Difference(
                kind=_kind(source.checksum.rows, target.checksum.rows),
                key=named(self._layout, key),
                columns=tuple(self._columns(source, target)),
                source_rows=source.checksum.rows,
                target_rows=target.checksum.rows,
            )
        )
        del pending[key]

    def _columns(self, source: Row, target: Row) -> Iterator[ColumnDifference]:
        if source.checksum.rows != 1 or target.checksum.rows != 1:
            return
        for column, ours, theirs in zip(self._layout.columns, source.values, target.values, strict=True):
            if ours != theirs:
                yield ColumnDifference(column.name, self._shown(column, ours), self._shown(column, theirs))

    def _shown(self, column: ComparedColumn, value: Value | None) -> str | None:
        if value is None:
            return None
        if column.name in self._masked:
            return MASKED
        if form := FORMS.get(column.kind):
            return readable(value.text, form)
        return value.text + "…" * (value.digest is not None)


def named(layout: Layout, key: Key) -> Mapping[str, str]:
    """A key with the names of its columns."""
    return {column.name: text for column, text in zip(layout.key, key, strict=True)}


def _kind(source_rows: int, target_rows: int) -> DifferenceKind:
    if not target_rows:
        return "missing"
    if not source_rows:
        return "extra"
    return "different" if source_rows == target_rows == 1 else "duplicate"


def _same_version(one: Row, other: Row) -> bool:
    return one.checksum == other.checksum and one.version == other.version


def _chunks(keys: list[Key], size: int) -> Iterator[list[Key]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))
