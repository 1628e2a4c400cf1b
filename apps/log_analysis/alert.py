"""The rule that raises and clears alerts for a path's errors, without streams.

The threshold for raising is higher than that for clearing, and both need several windows in a row, so that a
share that varies around one threshold does not raise repeated alerts (hysteresis).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from apps.log_analysis.traffic import Traffic


class Alert(msgspec.Struct, frozen=True):
    """A path's share of errors has become too large, or is small again."""

    path: str
    state: Literal["raised", "cleared"]
    time: int
    """The end of the window that decided it: milliseconds since the epoch."""
    error_share: float
    """Errors among that window's hits, from 0 to 1."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """The thresholds, and the number of consecutive windows needed; shares are from 0 to 1."""

    raise_at: float = 0.25
    """An alert is raised after windows in which at least this share of the hits were errors."""
    clear_below: float = 0.05
    """It is cleared after windows in which less than this share of the hits were errors."""
    windows: int = 3
    """The number of consecutive windows needed."""
    fewest_hits: int = 5
    """A window with fewer hits is ignored: it neither counts nor interrupts the sequence."""


class Watch(msgspec.Struct, frozen=True):
    """The state of a path between windows."""

    raised: bool = False
    """Whether there is an alert."""
    row: int = 0
    """The number of consecutive windows so far that call for a change."""


CALM = Watch()
"""The state of a path without errors."""


def watched(watch: Watch, traffic: Traffic, rule: Rule) -> Watch:
    """The state after one more window; an alert is raised or cleared where ``raised`` changes."""
    if traffic.hits < rule.fewest_hits:
        return watch
    share = traffic.error_share
    if not (share < rule.clear_below if watch.raised else share >= rule.raise_at):
        return Watch(watch.raised)
    if watch.row + 1 < rule.windows:
        return Watch(watch.raised, watch.row + 1)
    return Watch(not watch.raised)
