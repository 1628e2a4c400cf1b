"""Whether the program's code runs in a replay, and in which one."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

ReplayKind: TypeAlias = Literal["bounded", "shadow"]


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay of a range of the app's input, beside production."""

    name: str
    """The name under which its results are kept."""
    kind: ReplayKind
    effects: bool = False
    """Whether effects outside of Kafka are wanted; otherwise code with effects should leave them out."""


_CURRENT: ContextVar[Replay | None] = ContextVar("streams_replay", default=None)


def current_replay() -> Replay | None:
    """The replay in which this code runs; ``None`` in a worker of the app.

    For functions that have effects outside of the app. Processors have it as ``context.replay``.
    """
    return _CURRENT.get()


@contextmanager
def running_in(replay: Replay) -> Iterator[None]:
    """Let ``current_replay`` return this replay."""
    token = _CURRENT.set(replay)
    try:
        yield
    finally:
        _CURRENT.reset(token)
