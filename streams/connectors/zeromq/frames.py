"""Messages of several frames as columns, and columns as messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.records import Headers

KEY: Final = "key"
VALUE: Final = "value"
ORIGIN: Final = "origin"
"""In what a sink sends: topic, partition and offset of the record."""
HEADERS: Final = "headers"
"""The last frames: a name and a value for each header."""
OWN: Final = frozenset({KEY, VALUE, ORIGIN, HEADERS})


def checked_frames(name: str, frames: Sequence[str], *, known: bool) -> tuple[str, ...]:
    """The names of frames, in their order. ``known`` allows only ``OWN``. Raises ``ConfigurationError``."""
    names = (frames,) if isinstance(frames, str) else tuple(frames)
    fault = ""
    if VALUE not in names:
        fault = "has no 'value'"
    elif len(set(names)) < len(names):
        fault = "has a name twice"
    elif HEADERS in names[:-1]:
        fault = "has 'headers' not last"
    elif known and not OWN.issuperset(names):
        fault = f"has {next(item for item in names if item not in OWN)!r}"
    if fault:
        raise ConfigurationError(
            f"{name}: frames={names!r:.200} {fault}",
            hint="name the frames of a message in their order: 'key', 'value', 'origin', 'headers'",
        )
    return names


class Columns(NamedTuple):
    """The columns of messages that were received."""

    keys: Sequence[bytes | None]
    values: Sequence[bytes]
    headers: Sequence[Headers | None] | None


def columns_of(frames: Sequence[bytes], more: Sequence[int], names: Sequence[str]) -> Columns:
    """Name the frames of messages, which follow each other in ``frames``.

    ``more`` has 1 for each frame that another one of its message follows. A message of one frame is a value,
    whatever ``names`` say. Frames beyond the names become headers ``frame-2`` and so on, counted from 0.
    """
    count = len(more) - sum(more)
    if len(frames) == count:
        return Columns([None] * count, frames, None)
    width = len(frames) // count
    uniform = width * count == len(frames) and list(more) == ([1] * (width - 1) + [0]) * count
    if uniform and set(names) <= {KEY, VALUE} and width == len(names):
        by_name = {name: frames[place::width] for place, name in enumerate(names)}
        return Columns(_keys(by_name.get(KEY), count), by_name[VALUE], None)
    keys: list[bytes | None] = []
    values: list[bytes] = []
    headers: list[Headers | None] = []
    start = 0
    for end in (place + 1 for place, follows in enumerate(more) if not follows):
        key, value, own = _named(frames[start:end], names)
        keys.append(key)
        values.append(value)
        headers.append(own or None)
        start = end
    return Columns(keys, values, headers if any(headers) else None)


def _keys(column: Sequence[bytes] | None, count: int) -> Sequence[bytes | None]:
    """An empty frame is no key."""
    if column is None:
        return [None] * count
    return column if all(column) else [frame or None for frame in column]


def _named(message: Sequence[bytes], names: Sequence[str]) -> tuple[bytes | None, bytes, Headers]:
    if len(message) == 1:
        return None, message[0], []
    key: bytes | None = None
    value: bytes | None = None
    headers: Headers = []
    for place, frame in enumerate(message):
        name = names[place] if place < len(names) else ""
        if name == HEADERS:
            headers += _pairs(message[place:])
            break
        if name == KEY:
            key = frame or None
        elif name == VALUE:
            value = frame
        else:
            headers.append((name or f"frame-{place}", frame))
    if value is None:
        # Shorter than the names: its last frame is what it has to say.
        value = message[-1]
    return key, value, headers


def _pairs(frames: Sequence[bytes]) -> Headers:
    names = [frame.decode(errors="replace") for frame in frames[::2]]
    values: list[bytes | None] = list(frames[1::2])
    if len(values) < len(names):
        values.append(None)
    return list(zip(names, values, strict=True))


class Messages(NamedTuple):
    """Messages to be sent: all their frames, one after the other."""

    frames: list[bytes]
    more: list[bool]
    """Whether another frame of the message follows each."""


def messages_of(
    names: Sequence[str],
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    origins: Sequence[bytes],
    headers: Sequence[Headers | None],
) -> Messages:
    """The messages of these columns. A null key or value is an empty frame."""
    columns: dict[str, Sequence[bytes]] = {
        KEY: keys if all(keys) else [key or b"" for key in keys],  # type: ignore[dict-item]  # all() has shown that there is no None
        VALUE: [b"" if value is None else value for value in values],
        ORIGIN: origins,
    }
    with_headers = names[-1] == HEADERS and any(headers)
    fixed = [columns[name] for name in names if name != HEADERS]
    width = len(fixed)
    frames: list[bytes] = [b""] * (width * len(values))
    for place, column in enumerate(fixed):
        frames[place::width] = column
    if not with_headers:
        return Messages(frames, ([True] * (width - 1) + [False]) * len(values))
    sent: list[bytes] = []
    more: list[bool] = []
    for row, own in enumerate(headers):
        sent += frames[row * width : (row + 1) * width]
        for name, value in own or ():
            sent += (name.encode(), value or b"")
        more += [True] * (len(sent) - len(more) - 1)
        more.append(False)
    return Messages(sent, more)
