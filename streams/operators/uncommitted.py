"""What steps keep in memory about the work since the last commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

K = TypeVar("K")
T = TypeVar("T")


class FollowsSlices(Protocol):
    """What follows the slices of its task, as stores do. All methods are called in the task's thread."""

    def end_slice(self) -> None:
        """The open slice is complete."""

    def drop_slice(self) -> None:
        """The changes of the open slice are undone."""

    def committed(self) -> None:
        """The changes of complete slices are committed."""

    def drop(self) -> None:
        """The changes since the last commit are undone: their input is read again."""


class UncommittedNotes(Generic[K, T]):
    """Notes by key that hold until the next commit, and are undone with the slice or the transaction."""

    def __init__(self) -> None:
        self._notes: dict[K, set[T]] = {}
        self._in_slice: dict[K, set[T]] = {}

    def add(self, key: K, items: Iterable[T]) -> None:
        """Note items of a key in the open slice."""
        self._in_slice.setdefault(key, set()).update(items)

    def of(self, key: K) -> Collection[T]:
        """The items of a key since the last commit."""
        return self._notes.get(key, set()) | self._in_slice.get(key, set())

    def end_slice(self) -> None:
        """Keep what the open slice has noted."""
        for key, items in self._in_slice.items():
            self._notes.setdefault(key, set()).update(items)
        self._in_slice.clear()

    def drop_slice(self) -> None:
        """Forget what the open slice has noted."""
        self._in_slice.clear()

    def committed(self) -> None:
        """Begin again."""
        self._notes.clear()

    def drop(self) -> None:
        """Begin again, before the same input is processed again."""
        self._notes.clear()
        self._in_slice.clear()
