"""When a path's errors raise an alert, and when it is cleared: the rule alone, without streams.

Raising takes more errors than clearing tolerates, and both take several windows in a row, so that a share
that goes up and down around one threshold does not raise one alert after another (hysteresis).
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
    """How many windows in a row decide, and what they must be like; shares are from 0 to 1."""

    raise_at: float = 0.25
    """An alert is raised after windows in which at least this share of the hits were errors."""
    clear_below: float = 0.05
    """It is cleared after windows in which less than this share of the hits were errors."""
    windows: int = 3
    """How many in a row it takes."""
    fewest_hits: int = 5
    """A window with fewer hits, or none, says nothing: it neither counts nor interrupts the row."""


class Watch(msgspec.Struct, frozen=True):
    """What is to be remembered of a path from window to window."""

    raised: bool = False
    """Whether there is an alert."""
    row: int = 0
    """How many windows in a row speak for the opposite by now."""


CALM = Watch()
"""What is known of a path that had no errors yet."""


def watched(watch: Watch, traffic: Traffic, rule: Rule) -> Watch:
    """What is known after one window more; an alert is raised or cleared where ``raised`` changes."""
    if traffic.hits < rule.fewest_hits:
        return watch
    share = traffic.error_share
    if not (share < rule.clear_below if watch.raised else share >= rule.raise_at):
        return Watch(watch.raised)
    if watch.row + 1 < rule.windows:
        return Watch(watch.raised, watch.row + 1)
    return Watch(not watch.raised)
