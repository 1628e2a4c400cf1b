"""The last write wins: the newest version of each row, by its position in the source's log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from streams import Json

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.connectors.change import Change

T = TypeVar("T")


class Version(msgspec.Struct, Generic[T], frozen=True):
    """A row as of a position in the source's log; ``None`` if it was deleted there.

    The deletion of a row that a new snapshot does not have any more has no position.
    """

    position: int | None
    row: T | None


def newest(known: Version[T], version: Version[T]) -> Version[T]:
    """The later of two versions of a row, of which ``version`` arrived later.

    An older one may arrive after a newer one where a topic has two writers, e.g. while one capture takes over
    from another. A deleted row keeps its version, so that an older change does not bring the row back.
    """
    if version.position is None:
        return Version(known.position, version.row)
    return known if known.position is not None and known.position > version.position else version


def row_of(version: Version[T]) -> T | None:
    """The row, unless it was deleted."""
    return version.row


def versions(prepare: Callable[[T], T] | None) -> Callable[[Change[T] | None], list[Version[T]]]:
    """A function that makes versions of changes, with rows as ``prepare`` returns them.

    A tombstone makes none: the deletion before it has the position.
    """

    def of(change: Change[T] | None) -> list[Version[T]]:
        if change is None:
            return []
        row = change.after
        return [Version(change.source.lsn, row if row is None or prepare is None else prepare(row))]

    return of


def version_serde(row: type[T]) -> Json[Version[T]]:
    """The serde of versions of rows of this type."""
    # Type checkers take what is in brackets for a type, which here is a value.
    generic: Any = Version
    return Json(generic[row])
