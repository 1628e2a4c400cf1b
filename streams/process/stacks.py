"""Stacks of threads and coroutines, to find out why a process hangs."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.coroutines.event_loop import awaited_by

if TYPE_CHECKING:
    from types import FrameType

MOST_FRAMES = 25
"""The number of a thread's innermost frames that are included."""

MOST_CHARACTERS = 16_000
"""The maximum length of the text of all stacks."""

FLUSH_SECONDS = 0.5
"""The time-out for flushing the log's output before a process is ended."""

PACKAGE = str(Path(__file__).parents[1]) + os.sep


def flush_output() -> None:
    """Flush logs and standard streams before the process is ended, with a time-out: an output may hang."""
    flush = threading.Thread(target=_flush, name="streams-flush", daemon=True)
    flush.start()
    flush.join(FLUSH_SECONDS)


def _flush() -> None:
    for stream in (*logging.getLogger("streams").handlers, sys.stdout, sys.stderr):
        # A closed or broken stream cannot be flushed.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def format_stacks(first: int | None = None) -> str:
    """The stacks of all threads but the caller's, beginning with that of thread ``first``; bounded."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = _frames()
    frames.pop(threading.get_ident(), None)
    parts: list[str] = []
    room = MOST_CHARACTERS
    calls = awaited_by(first)
    if calls is not None and (oldest := calls.oldest()) is not None:
        lines = traceback.format_list(_coroutine_stack(oldest.coroutine)[-MOST_FRAMES:])
        part = f"call awaited for {oldest.seconds:.0f} s, of {calls.running} in flight:\n{''.join(lines)}"
        parts.append(part[:room])
        room -= len(parts[0])
    order = sorted(frames, key=lambda ident: (ident != first, names.get(ident, ""), ident))
    for number, ident in enumerate(order):
        lines = traceback.format_list(traceback.extract_stack(frames[ident], MOST_FRAMES))
        part = f"thread {names.get(ident, ident)}:\n{''.join(lines)}"
        if len(part) > room:
            # The innermost frames say most, so the outermost are cut off.
            parts.append(f"{part[: part.index(':') + 1]}\n…{part[len(part) - room :]}" if room > 0 else "")
            parts.append(f"… {len(order) - number - 1} more threads\n")
            break
        parts.append(part)
        room -= len(part)
    return "".join(parts).rstrip()


def _frames() -> dict[int, FrameType]:
    return sys._current_frames()  # noqa: SLF001 - it is documented in spite of its name


def _coroutine_stack(coroutine: Any) -> traceback.StackSummary:
    """The stack of a suspended coroutine, outermost frame first."""
    frames: list[tuple[FrameType, int]] = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        frames.append((frame, frame.f_lineno))
        coroutine = coroutine.cr_await
    return traceback.StackSummary.extract(iter(frames))


def called(thread: int | None) -> str:
    """The function that this library called in a thread, with file and line; else the library's own frame.

    For a thread that waits for calls of an async function: the function that blocks the event loop, or the
    oldest call.
    """
    calls = awaited_by(thread)
    if calls is not None:
        loop = _frames().get(calls.loop_thread)
        if loop is not None and Path(loop.f_code.co_filename).name != "selectors.py":
            return f"{called(calls.loop_thread)}, which blocks the event loop"
        if (oldest := calls.oldest()) is not None:
            stack = _coroutine_stack(oldest.coroutine)
            place = next((line for line in stack if not line.filename.startswith(PACKAGE)), stack[-1])
            return f"{place.name} ({place.filename}:{place.lineno}), awaited for {oldest.seconds:.0f} s"
    frame = _frames().get(-1 if thread is None else thread)
    above: FrameType | None = None
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            inner = above or frame
            return f"{inner.f_code.co_qualname} ({inner.f_code.co_filename}:{inner.f_lineno})"
        above, frame = frame, frame.f_back
    return "an unknown place (no frame of this library)"
