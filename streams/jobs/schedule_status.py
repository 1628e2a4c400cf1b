"""What each schedule does next and did last, for the command line and the console."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from streams.broker.reading import read_from
from streams.jobs.occurrence import Occurrence, occurrences_topic
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.broker import Broker
    from streams.jobs.schedule import Schedule

FIRST_LOOK = 1_000
MOST_READ = 100_000
"""How many of the latest occurrences are read, of all schedules together."""

_decode = msgspec.json.Decoder(Occurrence).decode


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """A declared schedule. Times are milliseconds since the epoch."""

    name: str
    job: str
    rule: str
    """E.g. ``30 2 * * * Europe/Berlin``."""
    missed: str
    overlap: str
    next: Sequence[int]
    """The next instants."""
    last: Occurrence | None
    """The last decision; ``None`` if there was none, or too many of other schedules since."""


def schedule_statuses(
    schedules: Mapping[str, Schedule], broker: Broker, application: str, now: int, *, count: int = 3
) -> list[ScheduleStatus]:
    """The declared schedules, in the order of their declaration, with the next ``count`` instants of each.

    Raises ``BrokerError`` if the topic of occurrences cannot be read. One that does not exist is empty.
    """
    last = _last_occurrences(schedules, broker, occurrences_topic(application)) if schedules else {}
    return [
        ScheduleStatus(
            name,
            schedule.call.job.name,
            str(schedule.rule),
            schedule.rule.missed,
            schedule.rule.overlap,
            list(islice(schedule.rule.after(now), count)),
            last.get(name),
        )
        for name, schedule in schedules.items()
    ]


def _last_occurrences(schedules: Mapping[str, Schedule], broker: Broker, topic: str) -> dict[str, Occurrence]:
    place = TopicPartition(topic, 0)
    admin = broker.admin()
    try:
        if topic not in admin.topics():
            return {}
        beginning = admin.beginning_offsets([place])[place]
        end = admin.end_offsets([place], "read_committed")[place]
    finally:
        admin.close()
    found: dict[str, Occurrence] = {}
    stop, reach = end, FIRST_LOOK
    while stop > beginning and end - stop < MOST_READ and schedules.keys() - found.keys():
        start = max(beginning, end - reach)
        newer: dict[str, Occurrence] = {}
        for fetched in read_from(broker, {place: start}):
            for value in fetched.values():
                if value is not None:
                    occurrence = _decode(value)
                    newer[occurrence.schedule] = occurrence
        found = newer
        stop, reach = start, reach * 10
    return found
