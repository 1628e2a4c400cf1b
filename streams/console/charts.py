"""Charts of figures over time, as SVG without any style or program of its own."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.console.history import Mark

WIDTH: Final = 640
HEIGHT: Final = 150
LEFT: Final = 56
RIGHT: Final = 8
TOP: Final = 8
BOTTOM: Final = 20
MOST_POINTS: Final = 300
"""Points of a line; of more, the highest in each span is drawn."""

TICKS: Final = (1, 2, 5, 10)


class Line(NamedTuple):
    """A line: its name, and its values by time (milliseconds since the epoch). ``None`` leaves a gap."""

    name: str
    points: Sequence[tuple[int, float | None]]


def chart(
    title: str,
    lines: Sequence[Line],
    since: int,
    until: int,
    *,
    text: Callable[[float], str],
    gap: int,
    marks: Sequence[Mark] = (),
    highest: float | None = None,
) -> Markup:
    """A chart from ``since`` to ``until``, both in milliseconds since the epoch, with a vertical axis from 0.

    ``text`` writes a value. Points that are more than ``gap`` milliseconds apart are not connected.
    ``highest`` is the axis's end, else it is found.
    """
    shown = [Line(line.name, _thinned(line.points, since, until)) for line in lines]
    most = max((value for line in shown for _, value in line.points if value is not None), default=0.0)
    top = highest if highest is not None else _round_up(most)
    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, f"{title}: {_summary(shown, text)}"
        )
    ]

    def x(time: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (time - since) / max(1, until - since)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(1.0, value / top)

    for fraction in (0.0, 0.5, 1.0):
        at = round(y(top * fraction), 1)
        parts.append(
            Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, at, at)
        )
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(
                LEFT - 6, at + 4, text(top * fraction)
            )
        )
    for time in _time_ticks(since, until):
        minutes = round((until - time) / 60_000)
        label = "now" if minutes == 0 else f"-{minutes} min" if minutes < 120 else f"-{minutes / 60:g} h"
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
                round(x(time), 1), HEIGHT - 5, "end" if minutes == 0 else "middle", label
            )
        )
    for mark in marks:
        if since <= mark.time <= until:
            at = round(x(mark.time), 1)
            parts.append(
                Markup(
                    '<line class="mark-{}" x1="{}" x2="{}" y1="{}" y2="{}"><title>{}</title></line>'
                ).format(mark.kind, at, at, TOP, HEIGHT - BOTTOM, mark.sentence)
            )
    for number, line in enumerate(shown, 1):
        for piece in _pieces(line.points, gap):
            path = " ".join(f"{x(time):.1f},{y(value):.1f}" for time, value in piece)
            if number == 1:
                first, last = x(piece[0][0]), x(piece[-1][0])
                floor = y(0)
                parts.append(
                    Markup('<polygon class="area f{}" points="{}"/>').format(
                        number, f"{first:.1f},{floor:.1f} {path} {last:.1f},{floor:.1f}"
                    )
                )
            parts.append(Markup('<polyline class="line s{}" points="{}"/>').format(number, path))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _thinned(
    points: Sequence[tuple[int, float | None]], since: int, until: int
) -> list[tuple[int, float | None]]:
    """Those in the range; of too many, the highest of each span, and unknown ones before all others."""
    found = [(time, value) for time, value in points if since <= time <= until]
    size = math.ceil(len(found) / MOST_POINTS)
    if size <= 1:
        return found
    spans = [found[at : at + size] for at in range(0, len(found), size)]
    return [max(span, key=lambda point: math.inf if point[1] is None else point[1]) for span in spans]


def _pieces(points: Sequence[tuple[int, float | None]], gap: int) -> list[list[tuple[int, float]]]:
    """The parts of a line between gaps, of two points or more."""
    pieces: list[list[tuple[int, float]]] = [[]]
    # Thinned lines have longer distances.
    spans = [after[0] - before[0] for before, after in pairwise(points)]
    most = max(gap, 3 * sorted(spans)[len(spans) // 2]) if spans else gap
    for time, value in points:
        if value is None or (pieces[-1] and time - pieces[-1][-1][0] > most):
            pieces.append([])
        if value is not None:
            pieces[-1].append((time, value))
    return [piece for piece in pieces if len(piece) > 1]


def _round_up(value: float) -> float:
    """The next round number, so that the axis has readable ticks."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(tick * power for tick in TICKS if tick * power >= value * 0.9999)


def _time_ticks(since: int, until: int) -> list[int]:
    """Moments at round distances from ``until``, about five."""
    span = (until - since) / 60_000
    step = next((minutes for minutes in (1, 2, 5, 10, 15, 30, 60, 120, 240) if span / minutes <= 6), 360)
    return [until - number * step * 60_000 for number in range(int(span / step) + 1)]


def _summary(lines: Sequence[Line], text: Callable[[float], str]) -> str:
    """The last values, for those who cannot see the lines."""
    last = [
        (line.name, next((value for _, value in reversed(line.points) if value is not None), None))
        for line in lines
    ]
    return ", ".join(f"{name} {'unknown' if value is None else text(value)}" for name, value in last)
