"""Schedules on the real broker: a worker that is killed neither loses nor repeats an instant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from streams import App, seconds
from streams.app import schedules_of
from streams.broker import NewTopic
from streams.broker.reading import read_to_end
from streams.errors import TopicError
from streams.jobs.occurrence import Decision, Occurrence, occurrences_topic
from streams.jobs.record import JobEnd, ends_topic
from streams.jobs.schedule_rules import Cron, Every
from streams.records import Output
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


def test_the_status_of_a_schedule_has_its_next_instants_and_its_last_decision(
    scheduled: Scheduled, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("STREAMS_BOOTSTRAP_SERVERS", scheduled.servers)
    app = App(scheduled.group)

    def report(kind: str) -> None: ...

    job = app.job(name="report")(report)
    app.schedule(job.call("a"), Every(seconds(1)), name="often")
    app.schedule(job.call("b"), Cron("0 0 1 1 *", zone="Europe/Berlin", overlap="queue"), name="yearly")
    never = schedules_of(app)
    assert [status.last for status in never] == [None, None]
    values = [
        msgspec.json.encode(
            Occurrence("often", number * 1_000, Decision.RELEASED, number * 1_000, job=f"0-{number}")
        )
        for number in range(2_500)
    ]
    values.insert(7, msgspec.json.encode(Occurrence("yearly", 5, Decision.MISSED, 6, "no worker ran")))
    topic = occurrences_topic(scheduled.group)
    scheduled.broker.admin().create_topics(
        [NewTopic(name=topic, partitions=1, settings={"retention.ms": "-1"})]
    )
    producer = scheduled.broker.producer()
    producer.produce(Output(topic, [None] * len(values), values, [-1] * len(values)))
    producer.flush(30)
    producer.close()

    often, yearly = schedules_of(app, count=2)
    assert (often.name, often.job, often.rule) == ("often", "report", "every 0:00:01")
    assert often.last is not None
    assert often.last.job == "0-2499"
    assert often.next[1] - often.next[0] == 1_000
    assert (yearly.rule, yearly.missed, yearly.overlap) == ("0 0 1 1 * Europe/Berlin", "latest", "queue")
    assert yearly.last is not None
    assert yearly.last.reason == "no worker ran"
    assert len(yearly.next) == 2
