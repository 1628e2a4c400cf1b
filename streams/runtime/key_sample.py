"""The keys of some of the records that a worker has just polled, to find one that most of them have."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.records import Fetched

PARTITIONS = 4
"""Keys are taken from so many partitions, those with most records."""

ROWS = 64
"""Keys taken of each partition."""

SHOWN_BYTES = 64
"""The beginning of a key that is kept."""


class SampledKey(NamedTuple):
    """What is kept of a key: enough to tell it from others, and no more memory for a long one."""

    beginning: bytes
    length: int
    mark: int
    """A hash of all of it, in this process."""


class SampledKeys(NamedTuple):
    """Keys of one partition's records."""

    records: int
    """How many records were polled."""
    keys: Sequence[SampledKey | None]
    """The keys of some of them; ``None`` for a record without a key."""


class KeySample:
    """Handed from the worker's thread to another one, which requests a sample and takes it.

    A worker that is not asked does nothing but look at ``wanted``, once for each poll.
    """

    def __init__(self) -> None:
        self.wanted = False
        """Whether the next records that are polled are to be sampled."""
        self._found: dict[TopicPartition, SampledKeys] = {}

    def note(self, polled: Sequence[Fetched]) -> None:
        """Sample the keys of these records."""
        if not polled:
            return
        self.wanted = False
        found = {}
        for fetched in sorted(polled, key=len, reverse=True)[:PARTITIONS]:
            # By chance: keys may come in turns.
            rows = random.sample(range(len(fetched)), min(ROWS, len(fetched)))
            found[TopicPartition(fetched.topic, fetched.partition)] = SampledKeys(
                len(fetched),
                [
                    None if key is None else SampledKey(key[:SHOWN_BYTES], len(key), hash(key))
                    for key in fetched.keys(rows)
                ],
            )
        self._found = found

    def take(self) -> dict[TopicPartition, SampledKeys]:
        """What was sampled since the last call."""
        found, self._found = self._found, {}
        return found
