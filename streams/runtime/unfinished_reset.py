"""Keeps workers from beginning while a reset of their group's offsets is not finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.errors import BrokerError, StateError
from streams.runtime import commit_numbers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from streams.broker import Admin
    from streams.records import TopicPartition


def check_group(admin: Admin, application: str, places: Collection[TopicPartition]) -> None:
    """Raise ``StateError`` if a reset of the group's offsets in these partitions is not finished.

    If the group's coordinator does not answer, the check is left to the tasks, which read their offsets.
    """
    try:
        texts = admin.committed_metadata(application, places)
    except BrokerError:
        return
    check_texts(texts.values(), f"app {application}")


def check_texts(offset_metadata: Iterable[str], what: str) -> None:
    """Raise ``StateError`` if any of these texts beside committed offsets says so of ``what``."""
    if any(commit_numbers.reset_begun(text) is not None for text in offset_metadata):
        raise StateError(
            f"{what}: a reset of its committed offsets was begun and not finished",
            hint="run streams replay reset again, it continues to its end: until then, stores may be empty "
            "while the committed offsets are those from before",
        )
