"""Partitions whose next offset is not in the log: what was lost, and where to continue."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from streams.errors import OffsetOutOfRange
from streams.events import Event, get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.broker import OutOfRange
    from streams.config import Settings
    from streams.records import TopicPartition

MOST_SHOWN = 10
"""The largest number of partitions in one message."""


class LostOffsets:
    """The out-of-range offsets of one worker that are not handled yet. ``group`` is for messages."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._settings = settings
        self._group = group
        self._log = get_logger()
        self._found: dict[TopicPartition, OutOfRange] = {}
        self._skipped: Counter[TopicPartition] = Counter()

    def __bool__(self) -> bool:
        return bool(self._found)

    @property
    def partitions(self) -> list[TopicPartition]:
        """The partitions that wait to be handled."""
        return list(self._found)

    @property
    def skipped(self) -> dict[TopicPartition, int]:
        """The number of skipped offsets of each partition; from any thread."""
        return dict(self._skipped)

    def add(self, partition: TopicPartition, found: OutOfRange) -> None:
        """Note an out-of-range offset that the broker reported, see ``Polled.out_of_range``."""
        self._found[partition] = found

    def discard(self, partition: TopicPartition) -> None:
        """Forget a partition that is no longer held."""
        self._found.pop(partition, None)

    def take_committed(self, committed: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Return the positions of partitions that lost nothing, and forget these.

        If a later offset is committed, another member continued there, and has deleted the records that it
        processed.
        """
        further = {
            partition: committed[partition]
            for partition, found in self._found.items()
            if committed.get(partition, -1) > found.offset
        }
        for partition in further:
            del self._found[partition]
        return further

    @property
    def fatal(self) -> bool:
        """Whether ``out_of_range_reset`` is ``fail``."""
        return self._settings.out_of_range_reset == "fail"

    def take_reset(self) -> dict[TopicPartition, int]:
        """Return the other partitions' positions by ``out_of_range_reset``; log and count skipped records."""
        reset = self._settings.out_of_range_reset
        found_now, self._found = self._found, {}
        targets = {}
        for partition, found in found_now.items():
            targets[partition] = target = found.beginning if reset == "earliest" else found.end
            skipped = max(0, target - found.offset)
            self._skipped[partition] += skipped
            self._log.warning(
                Event.OFFSET_OUT_OF_RANGE,
                group=self._group,
                topic=partition.topic,
                partition=partition.partition,
                offset=found.offset,
                beginning=found.beginning,
                end=found.end,
                lost=found.lost,
                skipped=skipped,
                reset=reset,
            )
        return targets

    def error(self, committed: Mapping[TopicPartition, int]) -> OffsetOutOfRange:
        """The error to raise: coordinates, what was lost, and the choices."""
        lines = []
        for partition, found in sorted(self._found.items()):
            known = committed.get(partition)
            at = f"committed offset {known}" if known == found.offset else f"next offset {found.offset}"
            line = (
                f"group {self._group}, topic {partition.topic}, partition {partition.partition}: {at} is not "
                f"in the log, which has {found.beginning} to {found.end}: "
            )
            if found.lost:
                line += (
                    f"{found.lost} records (transaction markers included) were deleted before they were read"
                )
            else:
                line += "it ends before that, so it was truncated or the topic was created again"
            lines.append(line)
        shown = lines[:MOST_SHOWN]
        if len(lines) > len(shown):
            shown.append(f"and {len(lines) - len(shown)} more partitions")
        return OffsetOutOfRange(
            "\n  ".join(shown),
            hint="the deleted records cannot be recovered. To continue without them, restart with --set "
            "out_of_range_reset=earliest (STREAMS_OUT_OF_RANGE_RESET=earliest), from the oldest remaining "
            "record, or with latest, from new records only.\n        To avoid it in future, raise "
            "retention.ms of the topic, or add workers",
        )
