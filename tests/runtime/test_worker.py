"""The worker on the memory broker, in one thread: faults at every step of the commit, and rebalances."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from streams import App, Text, dead_letter, fail, retry, skip
from streams.broker import GroupSettings, NewTopic
from streams.durations import seconds
from streams.errors import (
    DeadLetterLimitExceeded,
    OutcomeUnknown,
    ProcessingError,
    Retriable,
    TransactionAborted,
)
from streams.records import Output, TopicPartition
from streams.runtime.status import State
from tests.support.cluster import MemoryCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.broker.memory import Step
    from streams.runtime.worker import Worker

PARTITIONS = 4


class Site(MemoryCluster):
    """A memory cluster with an input and an output topic, and workers of one app on it."""

    def __init__(self, app: App) -> None:
        super().__init__(dict.fromkeys(("in", "out", app.dead_letter_topic), PARTITIONS))
        self.app = app
        self.workers = 0

    def worker(self) -> Worker:
        worker = self.make_worker(self.app, f"worker-{self.workers}")
        self.workers += 1
        worker.start()
        return worker

    def produce(
        self, values: Sequence[str], partition: int | None = None, *, key: bytes | None = None
    ) -> None:
        encoded = [value.encode() for value in values]
        keys = encoded if key is None else [key] * len(encoded)
        self.write(Output("in", keys, encoded, [0] * len(encoded), partition=partition))

    def lag(self) -> int:
        partitions = [TopicPartition("in", number) for number in range(PARTITIONS)]
        committed = self.admin.committed_offsets(self.app.name)
        ends = self.admin.end_offsets(partitions)
        return sum(ends[partition] - committed.get(partition, 0) for partition in partitions)

    def run(self, *workers: Worker, until: Callable[[], object] | None = None, rounds: int = 5_000) -> None:
        """Let workers take turns until all input is committed (or a condition holds)."""
        for _ in range(rounds):
            for worker in workers:
                worker.run_once()
            if until() if until is not None else self.lag() == 0:
                return
        pytest.fail(f"not done after {rounds} rounds: lag {self.lag()}")

    def values(self, topic: str = "out") -> list[str]:
        return [value.decode() for value in self.payloads(topic)]


def copying_app(**settings: Any) -> App:
    app = App("copy", **settings)
    app.stream("in", value=Text()).map(str.upper).to("out", value=Text())
    return app


def numbered(count: int) -> list[str]:
    return [f"value-{number}" for number in range(count)]


def upper(values: Sequence[str]) -> Counter[str]:
    return Counter(value.upper() for value in values)


EXACTLY_ONCE_STEPS = ("produce", "begin", "send_offsets", "commit.before", "commit.after", "abort")


@pytest.mark.parametrize(
    ("step", "error"),
    [(step, error) for step in EXACTLY_ONCE_STEPS for error in (TransactionAborted, OutcomeUnknown)]
    # By the contract only these are retriable.
    + [(step, Retriable) for step in ("send_offsets", "commit.before", "commit.after")],
)
@pytest.mark.parametrize("occurrence", [1, 2, 3])
def test_exactly_once_holds_when_a_call_fails(step, error, occurrence):
    site = Site(copying_app(max_poll_records=5))
    site.produce(numbered(60))
    worker = site.worker()
    seen = 0

    def fail(reached: Step) -> None:
        nonlocal seen
        if step == "abort" and reached == "commit.before" and not seen:
            # An abort only happens after a commit has failed.
            raise TransactionAborted("made to fail")
        if reached == step:
            seen += 1
            if seen == occurrence:
                raise error("made to fail")

    site.broker.before = fail
    site.run(worker)
    site.broker.before = None
    worker.close()
    assert Counter(site.values()) == upper(numbered(60))


@hypothesis_settings(max_examples=60)
@given(seed=st.integers(0, 2**32), share=st.floats(0.0, 0.3))
def test_exactly_once_holds_under_random_faults_and_rebalances(seed, share):
    chance = random.Random(seed)
    site = Site(copying_app(max_poll_records=7, commit_interval=0.05))
    values = numbered(120)
    site.produce(values[:80])
    errors = (TransactionAborted, OutcomeUnknown)

    def fail(reached: Step) -> None:
        if reached in EXACTLY_ONCE_STEPS and chance.random() < share:
            raise chance.choice(errors)("made to fail")

    workers = [site.worker()]
    site.broker.before = fail
    for _ in range(60):
        for worker in workers:
            worker.run_once()
        happening = chance.random()
        if happening < 0.1 and len(workers) < 3:
            site.broker.before = None
            workers.append(site.worker())
            site.broker.before = fail
        elif happening < 0.2 and len(workers) > 1:
            site.broker.before = None
            workers.pop(chance.randrange(len(workers))).close()
            site.broker.before = fail
        elif happening < 0.3:
            site.expire(chance.choice(workers))
    site.broker.before = None
    site.produce(values[80:])
    site.run(*workers)
    for worker in workers:
        worker.close()
    assert Counter(site.values()) == upper(values)


def test_each_partition_keeps_its_order():
    site = Site(copying_app(max_poll_records=3))
    site.produce(numbered(40), partition=2, key=b"one")
    worker = site.worker()
    site.run(worker)
    worker.close()
    assert site.values() == [value.upper() for value in numbered(40)]


def test_a_revoked_partition_is_committed_and_continues_elsewhere_without_a_repeat():
    site = Site(copying_app(max_poll_records=10, commit_interval=3600.0, shortest_commit_interval=3600.0))
    site.produce(numbered(100))
    first = site.worker()
    site.run(first, until=lambda: sum(count.records_in for count in first.counts) >= 30)
    assert site.lag() == 100
    second = site.worker()
    site.run(first, second, until=lambda: len(first.progress) == len(second.progress) == 2)
    assert site.lag() < 100
    first.close()
    second.close()
    left = site.lag()
    third = site.worker()
    site.run(third, until=lambda: sum(count.records_in for count in third.counts) == left)
    third.close()
    assert Counter(site.values()) == upper(numbered(100))


def test_a_member_that_lost_its_partitions_commits_nothing_for_them():
    site = Site(copying_app(max_poll_records=10, commit_interval=3600.0))
    site.produce(numbered(50))
    frozen = site.worker()
    site.run(frozen, until=lambda: sum(count.records_in for count in frozen.counts) >= 20)
    left = site.lag()
    assert left > 50 - sum(count.records_in for count in frozen.counts)
    site.expire(frozen)
    other = site.worker()
    site.run(other, until=lambda: sum(count.records_in for count in other.counts) == left)
    other.close()
    # The frozen worker's open transaction hides later records until it times out.
    site.clock.advance(11)
    assert Counter(site.values()) == upper(numbered(50))
    site.run(frozen, until=lambda: len(frozen.progress) == PARTITIONS)
    frozen.close()
    assert Counter(site.values()) == upper(numbered(50))


def test_records_polled_but_not_processed_before_an_abort_are_read_again():
    # The first slice's commit fails while polled records of other partitions are not processed yet.
    site = Site(copying_app(commit_interval=0.0001))
    for partition in range(PARTITIONS):
        site.produce([f"{partition}-{number}" for number in range(10)], partition=partition)
    worker = site.worker()
    failures = iter([TransactionAborted("made to fail")])

    def fail(reached: Step) -> None:
        if reached == "commit.before" and (error := next(failures, None)):
            raise error

    site.broker.before = fail
    site.run(worker)
    worker.close()
    expected = [f"{partition}-{number}" for partition in range(PARTITIONS) for number in range(10)]
    assert Counter(site.values()) == upper(expected)


def test_a_stop_commits_no_offsets_of_records_that_were_not_processed():
    app = App("copy")
    stopping: list[Worker] = []

    def work(value: str) -> str:
        if value == "last":
            stopping[0].request_stop()
        return value

    app.stream("in", value=Text()).map(work).to("out", value=Text())
    site = Site(app)
    site.produce(["first", "last"], partition=0)
    for partition in (1, 2, 3):
        site.produce(numbered(20), partition=partition)
    worker = site.worker()
    stopping.append(worker)
    for _ in range(50):
        worker.run_once()
    worker.close()
    assert len(site.values()) == 62 - site.lag()
    app_again = site.worker()
    stopping[0] = app_again
    site.run(app_again)
    app_again.close()
    assert Counter(site.values()) == Counter(["first", "last", *numbered(20) * 3])


def test_a_failing_record_stops_the_worker_after_committing_what_was_before():
    app = App("copy", on_error=fail, max_poll_records=1)
    app.stream("in", value=Text()).map(int).map(str).to("out", value=Text())
    site = Site(app)
    site.produce(["1", "2", "x", "4"], partition=0, key=b"one")
    worker = site.worker()
    with pytest.raises(
        ProcessingError, match=r"step 'map-int' .*failed on in-0 offset 2, .*b'x'.*ValueError"
    ):
        site.run(worker)
    assert site.admin.committed_offsets("copy")[TopicPartition("in", 0)] == 2
    assert site.values() == ["1", "2"]


def test_too_many_dead_letters_stop_the_worker_and_are_not_committed():
    app = App("copy", dead_letter_limit=0.3, dead_letter_window=10)
    app.stream("in", value=Text()).map(int, on_error=dead_letter).map(str).to("out", value=Text())
    site = Site(app)
    site.produce(["x"] * 20, partition=0)
    worker = site.worker()
    with pytest.raises(DeadLetterLimitExceeded, match=r"100.0% of the last 20 records"):
        site.run(worker)
    assert site.lag() == 20


def test_a_few_dead_letters_stop_nobody():
    app = App("copy", dead_letter_limit=0.3, dead_letter_window=10)
    app.stream("in", value=Text()).map(int, on_error=dead_letter).map(str).to("out", value=Text())
    site = Site(app)
    site.produce([*map(str, range(9)), "x"] * 5, partition=0)
    worker = site.worker()
    site.run(worker)
    worker.close()
    assert len(site.values()) == 45
    assert len(site.values("copy-dead-letters")) == 5


def test_a_partition_revoked_while_a_record_waits_for_its_retry_is_neither_lost_nor_repeated():
    app = App("copy", max_poll_records=10)
    attempts: Counter[str] = Counter()

    def work(value: str) -> str:
        attempts[value] += 1
        if value == "bad":
            raise ValueError("not yet")
        return value

    app.stream("in", value=Text()).map(
        work, on_error=retry(50, backoff=seconds(1), longest_backoff=seconds(1), then=skip)
    ).to("out", value=Text())
    site = Site(app)
    for partition in range(PARTITIONS):
        site.produce([f"{partition}-a", "bad", f"{partition}-b"], partition=partition)
    first = site.worker()
    second: list[Worker] = []

    def join(reached: Step) -> None:
        # The second worker joins in the middle of the first one's waiting.
        if reached == "keep_alive" and attempts["bad"] >= 3 and not second:
            second.append(site.worker())

    site.broker.before = join
    first.run_once()
    for _ in range(200):
        first.run_once()
        for worker in second:
            worker.run_once()
        if site.lag() == 0:
            break
    assert second
    first.close()
    second[0].close()
    expected = [f"{partition}-{letter}" for partition in range(PARTITIONS) for letter in "ab"]
    assert Counter(site.values()) == Counter(expected)


def test_at_least_once_repeats_but_loses_nothing_when_offsets_are_not_committed():
    site = Site(copying_app(guarantee="at_least_once", max_poll_records=5))
    site.produce(numbered(40))
    worker = site.worker()
    failures = iter([TransactionAborted("made to fail"), None, TransactionAborted("made to fail")])

    def fail(reached: Step) -> None:
        if reached == "commit_offsets.before" and (error := next(failures, None)):
            raise error

    site.broker.before = fail
    site.run(worker)
    worker.close()
    got = Counter(site.values())
    assert set(got) == set(upper(numbered(40)))
    assert got.total() > 40


def test_a_worker_goes_through_its_states():
    site = Site(copying_app())
    worker = site.worker()
    states = [worker.state]
    worker.request_stop()
    worker.close()
    states.append(worker.state)
    assert states == [State.RUNNING, State.STOPPED]


class Nobody:
    def assigned(self, partitions: Sequence[TopicPartition]) -> None: ...

    revoked = lost = assigned


@pytest.mark.parametrize("stores", [False, True])
def test_a_marker_behind_the_last_committed_record_is_committed_by_the_next_owner(stores):
    """Otherwise the group's lag would be 1 until more records come."""
    app = App("copy")
    records = app.stream("in", key=Text(), value=Text())
    (records.group_by_key().count("counts") if stores else records).to("out")
    site = Site(app)
    site.admin.create_topics([NewTopic(name="copy-counts-changelog", partitions=PARTITIONS)])
    producer = site.broker.producer(transactional_id="other")
    producer.init_transactions(1)
    producer.begin()
    producer.produce(Output("in", [b"a"] * 5, [b"b"] * 5, [0] * 5, partition=1))
    producer.commit(1)
    member = site.broker.consumer(GroupSettings(group="copy"))
    member.subscribe(["in"], Nobody())
    member.poll(1, 0)
    member.commit({TopicPartition("in", 1): 5})
    member.close()
    assert site.lag() == 1
    worker = site.worker()
    site.run(worker, rounds=200)
    worker.close()
    assert site.admin.committed_offsets("copy")[TopicPartition("in", 1)] == 6
    assert site.values() == []
