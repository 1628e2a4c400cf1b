"""What the console knows of the cluster at one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.broker import TopicDescription


class ClusterSnapshot(NamedTuple):
    """The topics of a cluster, as they were read last."""

    time: int | None
    """When it was read, in milliseconds since the epoch; ``None`` if it never was."""
    topics: Mapping[str, TopicDescription]
    problem: str = ""
    """Why the last attempt to read it failed; empty if it did not."""
