"""``compare``: whether a target table has the rows of a source table."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from streams.connectors.comparison.layout import agree, left_out
from streams.connectors.comparison.result import Comparison
from streams.connectors.comparison.scan import Pair, Scan
from streams.connectors.comparison.settle import Settling, named
from streams.durations import minutes, seconds, to_milliseconds
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import timedelta

    from streams.connectors.comparison.result import Difference
    from streams.connectors.comparison.table import ComparableTable, Key

_MOST_PENDING = 10_000
"""Keys that are remembered before they are read again: it bounds the memory."""


def compare(
    source: ComparableTable,
    target: ComparableTable,
    *,
    key: Sequence[str],
    columns: Sequence[str] | None = None,
    masked: Collection[str] = (),
    exact: bool = False,
    settle: timedelta = seconds(5),
    patience: timedelta = minutes(1),
    caught_up: Callable[[int], bool] | None = None,
    rows_per_query: int = 20_000,
    limit: int = 1_000,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare two tables, also while they change, and name the keys whose rows differ.

    ``key`` identifies a row; ``columns`` are compared, by default all of the target. Numbers are compared by
    value (1.10 equals 1.1), or with ``exact`` by their text. Values of ``masked`` columns do not appear in
    the result.

    A difference counts if it persists: ``settle`` is how far the target may be behind the source. A program
    that knows the target's position passes ``caught_up`` instead, which gets a position in the source's log
    (for Postgres, an LSN as a number) and returns whether the target has everything before it. Rows about
    which nothing can be said within ``patience`` are ``unsettled``.

    A query reads about ``rows_per_query`` rows at most. The comparison stops after ``limit`` differences.
    ``progress`` is called with the number of the source's rows compared so far.

    Raises ``ConfigurationError`` for wrong arguments, ``ConnectorUnavailable`` or ``ConnectorError`` for a
    database that does not answer, or cannot.
    """
    settle_seconds = to_milliseconds(settle, "settle") / 1000
    patience_seconds = to_milliseconds(patience, "patience") / 1000
    if caught_up is None:
        # A row that has not been written for that time can always be decided.
        patience_seconds = max(patience_seconds, 2 * settle_seconds)
    if rows_per_query < 1 or limit < 1:
        raise ConfigurationError(
            f"rows_per_query and limit must be 1 or more, got {rows_per_query} and {limit}"
        )
    if hidden := sorted(set(masked) & set(key)):
        raise ConfigurationError(
            f"key column {hidden[0]!r} cannot be masked", hint="differences are named by their keys"
        )
    begun = time.monotonic()
    with ExitStack() as stack:
        readers = []
        for table in (source, target):
            readers.append(table.open())
            stack.callback(readers[-1].close)
        pair = stack.enter_context(Pair(*readers))
        layout = agree(pair.source, pair.target, key=key, columns=columns, exact=exact)
        pair.both(lambda table: table.begin(layout))
        settling = Settling(
            pair,
            layout,
            settle=settle_seconds,
            patience=patience_seconds,
            caught_up=caught_up,
            masked=masked,
        )
        scan = Scan(pair, rows_per_query, progress)
        differences: list[Difference] = []
        unsettled: list[Key] = []
        pending: list[Key] = []
        reread = 0

        def settle_pending() -> None:
            nonlocal reread
            settled = settling.decide(pending, limit - len(differences))
            differences.extend(settled.differences)
            unsettled.extend(settled.unsettled)
            reread += len(pending)
            pending.clear()

        for suspect in scan:
            pending.append(suspect)
            if len(pending) == _MOST_PENDING:
                settle_pending()
                if len(differences) >= limit:
                    break
        settle_pending()
        return Comparison(
            source=pair.source.name,
            target=pair.target.name,
            source_rows=scan.source_rows,
            target_rows=scan.target_rows,
            differences=tuple(differences),
            unsettled=tuple(named(layout, key) for key in unsettled),
            complete=len(differences) < limit,
            not_compared=left_out(pair.source.columns(), layout),
            reread_keys=reread,
            seconds=time.monotonic() - begun,
        )
