"""Schedules on the real broker: a worker that is killed neither loses nor repeats an instant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from streams.broker.reading import read_to_end
from streams.errors import TopicError
from streams.jobs.occurrence import Occurrence, occurrences_topic
from streams.jobs.record import JobEnd, ends_topic
from tests.integration.conftest import Copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kafka


class Scheduled(Copy):
    """The app of ``schedule_app``."""

    name = "schedule"

    def values(self, topic: str) -> list[bytes]:
        try:
            found = [value for fetched in read_to_end(self.broker, [topic]) for value in fetched.values()]
        except TopicError:
            # No worker has created it yet.
            return []
        return [value for value in found if value is not None]

    def occurrences(self) -> list[Occurrence]:
        return [
            msgspec.json.decode(value, type=Occurrence)
            for value in self.values(occurrences_topic(self.group))
        ]

    def ends(self) -> list[JobEnd]:
        return [msgspec.json.decode(value, type=JobEnd) for value in self.values(ends_topic(self.group))]

    def results(self) -> list[int]:
        """The instants that jobs have returned."""
        return [msgspec.json.decode(end.result) for end in self.ends()]


@pytest.fixture
def scheduled(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Scheduled]:
    made = Scheduled(kafka_bootstrap, prefix, tmp_path)
    yield made
    made.end()


def test_a_killed_worker_neither_loses_nor_repeats_an_instant(scheduled: Scheduled):
    for _ in range(3):
        before = len(scheduled.occurrences())
        worker = scheduled.start(transaction_timeout=3)
        scheduled.wait_for(lambda: len(scheduled.occurrences()) >= before + 5, 90, "further instants")  # noqa: B023
        worker.kill()
    worker = scheduled.start()
    decided = {each.instant for each in scheduled.occurrences()}
    scheduled.wait_for(
        lambda: (
            {each.instant for each in scheduled.occurrences()} - decided
            and decided <= set(scheduled.results())
        ),
        90,
        "instants of the last worker, and the results of all before",
    )
    assert worker.stop() == 0

    occurrences = scheduled.occurrences()
    instants = sorted(each.instant for each in occurrences)
    assert instants == list(range(instants[0], instants[-1] + 1, 1_000))
    assert {each.decision.value for each in occurrences} == {"released"}
    ends = scheduled.ends()
    assert len({end.id for end in ends}) == len(ends)
    results = scheduled.results()
    assert len(set(results)) == len(results)
    assert decided <= set(results) <= set(instants)
