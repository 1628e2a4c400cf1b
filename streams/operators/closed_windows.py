"""The store of closed windows, which are kept only for queries."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from streams.aggregates.traced import unpack
from streams.operators.packed import PackedSerde
from streams.state.definition import KeptWindows, StoreDefinition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.aggregates import Aggregate
    from streams.eventtime.windows import Hopping, Session, Sliding, Tumbling
    from streams.operators import Binding
    from streams.serde import Serde
    from streams.state.buffered import WindowState

Window: TypeAlias = "tuple[int, int, Any]"
"""Start and end (milliseconds since the epoch), and the accumulator."""

KEYED_SPAN = 10_000
"""Sessions and sliding windows end at any millisecond: those within this many are stored together, by key."""

EXPIRED_SPAN = 60_000
"""Expired windows are deleted in steps of at least a minute; see ``StoreDefinition``."""


def kept_windows(store: str, *, span: int, lasts: int) -> KeptWindows:
    """Where the closed windows of a store are kept, until ``lasts`` milliseconds after their end."""
    return KeptWindows(f"{store}-closed", span, lasts)


def closed_definition(
    kept: KeptWindows,
    key: Serde[Any],
    window: Tumbling | Hopping | Session | Sliding,
    aggregate: Aggregate[Any, Any],
) -> StoreDefinition:
    """The definition of the store of closed windows.

    It is separate from the store of open windows, so that ``keep`` can be added, removed and changed between
    two versions of a program without an effect on open windows. A window is written when it closes: the store
    has only final results.
    """
    retention = kept.lasts + kept.span - 1
    return StoreDefinition(
        name=kept.store,
        key=key,
        value=PackedSerde("closed windows", aggregate, _pack, _unpack),
        purpose=f"closed, {window.describe()}, aggregate",
        retention=retention,
        changelog_retention=retention,
        expired_span=EXPIRED_SPAN,
        view=lambda windows: [
            {"start": start, "end": end, "value": aggregate.result(accumulator)}
            for start, end, accumulator in windows
        ],
    )


class ClosedWindows:
    """The store of closed windows, for the step that closes them."""

    def __init__(self, kept: KeptWindows, step: Binding) -> None:
        self._state: WindowState[Any, tuple[Window, ...]] = step.windows(kept.store)
        self._span = kept.span

    def expire(self, stream_time: int) -> None:
        """Delete windows that have expired at that stream time."""
        self._state.expire(stream_time)

    def add_window(self, start: int, end: int, entries: Mapping[Any, Any]) -> None:
        """Add one window, with the accumulators of its keys."""
        self._add(end - end % self._span, {key: ((start, end, value),) for key, value in entries.items()})

    def add(self, windows: Mapping[Any, Sequence[Window]]) -> None:
        """Add sessions or sliding windows of several keys, ascending by end."""
        found: dict[int, dict[Any, list[Window]]] = {}
        for key, closed in windows.items():
            for window in closed:
                found.setdefault(window[1] - window[1] % self._span, {}).setdefault(key, []).append(window)
        for time, entries in found.items():
            self._add(time, {key: tuple(own) for key, own in entries.items()})

    def _add(self, time: int, entries: Mapping[Any, tuple[Window, ...]]) -> None:
        if time < self._state.expired:
            return
        earlier = self._state.get_many(time, list(entries))
        self._state.put_many(
            time,
            {
                key: own if before is None else _together(before, own)
                for (key, own), before in zip(entries.items(), earlier, strict=True)
            },
        )


def _together(before: tuple[Window, ...], own: tuple[Window, ...]) -> tuple[Window, ...]:
    """Merge both, ascending by end. If the grace was extended, a closed window may close again."""
    windows = {window[:2]: window for window in (*before, *own)}
    return tuple(sorted(windows.values(), key=itemgetter(1)))


def _pack(aggregate: Aggregate[Any, Any], windows: tuple[Window, ...]) -> Any:
    return [(start, end, aggregate.pack(accumulator)) for start, end, accumulator in windows]


def _unpack(aggregate: Aggregate[Any, Any], packed: Any) -> tuple[Window, ...]:
    return tuple((start, end, unpack(aggregate, accumulator)) for start, end, accumulator in packed)
