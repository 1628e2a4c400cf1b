"""The worker on the memory broker: rebalances and faults during a slice."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from streams import App, Bytes, Text, dead_letter, fail, retry, skip
from streams.broker.reading import read_to_end
from streams.durations import seconds
from streams.errors import (
    DeadLetterLimitExceeded,
    NotCommitted,
    OutcomeUnknown,
    ProcessingError,
    Retriable,
    TransactionAborted,
)
from streams.records import Output, TopicPartition
from streams.runtime.status import State
from tests.support.cluster import TRANSACTION_SECONDS, MemoryCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams import ErrorPolicy
    from streams.broker.memory import Step
    from streams.runtime.worker import Worker


EXACTLY_ONCE_STEPS = ("produce", "begin", "send_offsets", "commit.before", "commit.after", "abort")


class Cluster(MemoryCluster):
    """Topics ``in`` (4 partitions), ``other`` (2), ``out`` and dead letters; workers of one app on them."""

    def __init__(self, app: App, *, max_record_bytes: int = 1_000_000) -> None:
        self.app = app
        counts = {"in": 4, "other": 2, "out": 2, app.dead_letter_topic: 1}
        super().__init__(counts, max_record_bytes=max_record_bytes)
        self.inputs = [
            TopicPartition(name, number)
            for name in app.topology.input_topics
            if isinstance(name, str)
            for number in range(counts[name])
        ]
        self._made = 0

    def worker(self) -> Worker:
        """One more worker, started."""
        worker = self.make_worker(self.app, f"slot-{self._made}")
        self._made += 1
        worker.start()
        return worker

    def send(self, topic: str, partition: int, *values: str) -> None:
        encoded = [value.encode() for value in values]
        count = len(values)
        self.write(Output(topic, [b"k"] * count, encoded, [7] * count, partition=partition))

    def committed(self, topic: str, partition: int) -> int:
        return self.admin.committed_offsets(self.app.name).get(TopicPartition(topic, partition), 0)

    def lag(self) -> int:
        ends = self.admin.end_offsets(self.inputs)
        committed = self.admin.committed_offsets(self.app.name)
        return sum(ends[partition] - committed.get(partition, 0) for partition in self.inputs)

    def run(self, *workers: Worker, rounds: int = 400) -> None:
        """Run the workers in turns until all input is committed."""
        for _ in range(rounds):
            for worker in workers:
                worker.run_once()
            if self.lag() == 0:
                return
        pytest.fail(f"after {rounds} rounds {self.lag()} records are not committed")

    def join(self, worker: Worker, partitions: int) -> None:
        """Run a worker until it holds that many partitions."""
        for _ in range(100):
            worker.run_once()
            if len(worker.progress) == partitions:
                return
        pytest.fail(f"the worker holds {sorted(worker.progress)}")

    def whenever(
        self,
        step: Step,
        action: Callable[[], None],
        otherwise: Callable[[Step], None] = lambda _: None,
    ) -> None:
        """Call ``action`` at each of the clients' calls of that name, but not for those it makes itself."""

        def hook(reached: Step) -> None:
            if reached != step:
                otherwise(reached)
                return
            self.broker.before = None
            try:
                action()
            finally:
                self.broker.before = hook

        self.broker.before = hook

    def values(self, topic: str = "out") -> Counter[str]:
        """How often each value is in a topic, read committed."""
        return Counter(value.decode() for value in self.payloads(topic))


def copying(
    work: Callable[[str], str] = str,
    *,
    topics: Sequence[str] = ("in",),
    on_error: ErrorPolicy = fail,
    **settings: Any,
) -> App:
    app = App("copy", **settings)
    app.stream(topics, value=Text()).map(work, on_error=on_error).to("out", value=Text())
    return app


def numbered(count: int, name: str = "value") -> list[str]:
    return [f"{name}-{number}" for number in range(count)]


# --- slow code, and rebalances meanwhile


def test_a_function_slower_than_the_transaction_timeout_still_gets_through_its_input():
    def work(value: str) -> str:
        cluster.clock.advance(TRANSACTION_SECONDS + 2)
        return value

    cluster = Cluster(copying(work))
    for partition in range(4):
        cluster.send("in", partition, *numbered(2, f"p{partition}"))
    worker = cluster.worker()
    cluster.run(worker, rounds=50)
    worker.close()
    assert cluster.values() == Counter(
        f"p{partition}-{number}" for partition in range(4) for number in (0, 1)
    )


def test_records_that_became_slow_get_through_too():
    slow: list[float] = [0.0]

    def work(value: str) -> str:
        cluster.clock.advance(slow[0])
        return value

    cluster = Cluster(copying(work))
    cluster.send("in", 0, *numbered(50, "fast"))
    worker = cluster.worker()
    cluster.run(worker)
    slow[0] = TRANSACTION_SECONDS + 2
    cluster.send("in", 0, *numbered(4, "slow"))
    cluster.send("in", 1, *numbered(4, "slower"))
    cluster.run(worker, rounds=50)
    worker.close()
    assert cluster.values() == Counter([*numbered(50, "fast"), *numbered(4, "slow"), *numbered(4, "slower")])


def test_an_end_noted_before_a_partition_went_away_and_came_back_is_not_committed():
    attempts = 0

    def work(value: str) -> str:
        nonlocal attempts
        if value == "late" and (attempts := attempts + 1) < 40:
            raise ConnectionError("not yet")
        return value

    cluster = Cluster(copying(work, on_error=retry(60, backoff=seconds(1), longest_backoff=seconds(1))))
    cluster.send("in", 0, "late")
    first = cluster.worker()
    second: list[Worker] = []

    def live_meanwhile() -> None:
        # Partition 3, empty so far, moves to the second worker, gets records, and moves back.
        if not second:
            second.append(cluster.worker())
        if second[0].state is not State.RUNNING:
            return
        second[0].run_once()
        if TopicPartition("in", 3) in second[0].progress:
            if cluster.admin.end_offsets([TopicPartition("in", 3)])[TopicPartition("in", 3)] == 0:
                cluster.send("in", 3, "x", "y")
            if cluster.committed("in", 3) == 2:
                second[0].close()

    cluster.whenever("keep_alive", live_meanwhile)
    for _ in range(3):
        first.run_once()
    cluster.broker.before = None
    assert second[0].state is State.STOPPED
    assert cluster.committed("in", 3) == 2
    cluster.freeze(first)
    third = cluster.worker()
    cluster.join(third, 4)
    cluster.run(third)
    third.close()
    assert cluster.values() == Counter(["late", "x", "y"])


@pytest.mark.parametrize("waiting", ["in", "other"])
def test_a_partition_revoked_from_a_task_that_keeps_another_is_given_up_at_once(waiting):
    # Tasks hold a partition of each topic; alone, the first member has in-1 and other-1, then only in-1.
    attempts = 0

    def work(value: str) -> str:
        nonlocal attempts
        if value == "late" and (attempts := attempts + 1) < 8:
            raise ConnectionError("not yet")
        return value

    cluster = Cluster(
        copying(
            work, topics=("in", "other"), on_error=retry(60, backoff=seconds(1), longest_backoff=seconds(1))
        )
    )
    cluster.send(waiting, 1, "late")
    cluster.send("in" if waiting == "other" else "other", 1, "x", "y")
    first = cluster.worker()
    second: list[Worker] = []

    def join() -> None:
        if not second:
            second.append(cluster.worker())
        if len(second[0].progress) < 3:
            second[0].run_once()

    cluster.whenever("keep_alive", join)
    for _ in range(10):
        first.run_once()
    cluster.broker.before = None
    assert second
    cluster.run(first, *second)
    assert set(first.progress) & set(second[0].progress) == set()
    first.close()
    second[0].close()
    assert cluster.values() == Counter(["late", "x", "y"])


@pytest.mark.parametrize("worked_meanwhile", [True, False])
def test_a_partition_that_comes_back_to_a_task_that_kept_another_is_read_anew(worked_meanwhile):
    # Records of other-1 polled before its revocation are still queued when it is assigned to the same task
    # again.
    attempts = 0

    def work(value: str) -> str:
        nonlocal attempts
        if value == "late" and (attempts := attempts + 1) < 20:
            raise ConnectionError("not yet")
        return value

    cluster = Cluster(
        copying(
            work, topics=("in", "other"), on_error=retry(60, backoff=seconds(1), longest_backoff=seconds(1))
        )
    )
    cluster.send("in", 1, "late")
    cluster.send("other", 1, "x", "y")
    first = cluster.worker()
    second: list[Worker] = []

    def come_and_go() -> None:
        if not second:
            second.append(cluster.worker())
        if second[0].state is State.RUNNING:
            second[0].run_once()
            held = TopicPartition("other", 1) in second[0].progress
            if held and cluster.committed("other", 1) == (2 if worked_meanwhile else 0):
                second[0].close()

    cluster.whenever("keep_alive", come_and_go)
    cluster.join(first, 6)
    first.run_once()
    cluster.broker.before = None
    assert second[0].state is State.STOPPED
    cluster.run(first)
    first.close()
    assert cluster.values() == Counter(["late", "x", "y"])


@pytest.mark.parametrize("error", [TransactionAborted, OutcomeUnknown, Retriable])
@pytest.mark.parametrize("step", ["send_offsets", "commit.before", "commit.after"])
@pytest.mark.parametrize("occurrence", [1, 2, 3])
def test_a_commit_that_fails_between_slow_slices_repeats_nothing(step, error, occurrence):
    def work(value: str) -> str:
        cluster.clock.advance(TRANSACTION_SECONDS - 1)
        return value

    cluster = Cluster(copying(work))
    for partition in range(4):
        cluster.send("in", partition, *numbered(3, f"p{partition}"))
    worker = cluster.worker()
    seen = 0

    def trouble(reached: Step) -> None:
        nonlocal seen
        if reached == step and (seen := seen + 1) == occurrence:
            raise error("made to fail")

    cluster.broker.before = trouble
    cluster.run(worker, rounds=60)
    worker.close()
    assert cluster.values() == Counter(
        f"p{partition}-{number}" for partition in range(4) for number in range(3)
    )


@pytest.mark.parametrize("policy", [dead_letter, skip])
def test_a_slice_given_up_while_its_record_waits_leaves_no_dead_letter_behind(policy):
    def work(value: str) -> str:
        if value == "bad":
            raise ValueError("never")
        return value

    cluster = Cluster(
        copying(work, on_error=retry(3, backoff=seconds(1), longest_backoff=seconds(1), then=policy))
    )
    for partition in range(4):
        cluster.send("in", partition, "bad", f"good-{partition}")
    first = cluster.worker()
    second: list[Worker] = []

    def join() -> None:
        if not second:
            second.append(cluster.worker())
            second[0].run_once()

    cluster.whenever("keep_alive", join)
    first.run_once()
    first.run_once()
    cluster.broker.before = None
    assert second
    cluster.run(first, *second)
    first.close()
    second[0].close()
    assert cluster.values() == Counter(f"good-{partition}" for partition in range(4))
    assert cluster.values("copy-dead-letters") == Counter({"bad": 4} if policy is dead_letter else {})


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_a_stop_in_the_middle_of_a_poll_leaves_the_rest_for_later(guarantee):
    def work(value: str) -> str:
        if value == "value-3":
            workers[0].request_stop()
        return value

    cluster = Cluster(copying(work, guarantee=guarantee))
    for partition in range(4):
        cluster.send("in", partition, *numbered(5))
    workers: list[Worker] = []
    for left in (15, 10, 5, 0):
        workers.insert(0, cluster.worker())
        cluster.join(workers[0], 4)
        workers[0].run_once()
        workers[0].close()
        assert cluster.lag() == left
    assert cluster.values() == Counter(numbered(5) * 4)


def test_a_stop_ends_a_wait_for_a_retry():
    def work(value: str) -> str:
        if value == "bad":
            workers[0].request_stop()
            raise ConnectionError("down")
        return value

    cluster = Cluster(copying(work, on_error=retry(1_000, backoff=seconds(30))))
    cluster.send("in", 0, "good")
    workers = [cluster.worker()]
    cluster.run(workers[0])
    cluster.send("in", 0, "bad", "behind")
    begun = cluster.clock.now
    for _ in range(5):
        workers[0].run_once()
    workers[0].close()
    assert cluster.clock.now - begun < 5
    assert cluster.committed("in", 0) == 1
    assert cluster.values() == Counter(["good"])


# --- faults


@hypothesis_settings(max_examples=40)
@given(seed=st.integers(0, 2**32), share=st.floats(0.0, 0.4))
def test_at_least_once_loses_nothing_whatever_fails_and_whoever_dies(seed, share):
    chance = random.Random(seed)
    cluster = Cluster(copying(guarantee="at_least_once", max_poll_records=6, commit_interval=0.05))
    sent = numbered(60)
    for number, value in enumerate(sent):
        cluster.send("in", number % 4, value)
    errors = {
        "produce": (TransactionAborted, OutcomeUnknown),
        "flush": (TransactionAborted, OutcomeUnknown, Retriable),
        "commit_offsets.before": (TransactionAborted, OutcomeUnknown, Retriable),
        "commit_offsets.after": (OutcomeUnknown, Retriable),
        "committed": (Retriable,),
    }

    def trouble(reached: Step) -> None:
        if reached in errors and chance.random() < share:
            raise chance.choice(errors[reached])("made to fail")

    workers = [cluster.worker()]
    for _ in range(40):
        cluster.broker.before = trouble
        for worker in workers:
            worker.run_once()
        cluster.broker.before = None
        happening = chance.random()
        if happening < 0.1 and len(workers) < 3:
            workers.append(cluster.worker())
        elif happening < 0.15 and len(workers) > 1:
            cluster.freeze(workers.pop(chance.randrange(len(workers))))
        elif happening < 0.2:
            cluster.freeze(chance.choice(workers))
    cluster.run(*workers)
    for worker in workers:
        worker.close()
    assert set(cluster.values()) == set(sent)


@hypothesis_settings(max_examples=60)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.0, 0.0, 0.1, 0.3]))
def test_exactly_once_holds_when_the_group_changes_in_the_middle_of_slices(seed, share):
    # Records fail for a while, so that slices stay open while other workers join, work and leave.
    chance = random.Random(seed)
    trouble = Counter[str]()

    def work(value: str) -> str:
        if value.endswith("7") and trouble[value] < 3:
            trouble[value] += 1
            raise ConnectionError("not yet")
        if value.endswith("9"):
            raise ValueError("never")
        return value

    cluster = Cluster(
        copying(
            work,
            topics=("in", "other"),
            on_error=retry(4, backoff=seconds(1), longest_backoff=seconds(1), then=dead_letter),
            dead_letter_limit=1.0,
            max_poll_records=chance.choice([3, 10, 1_000]),
        )
    )
    sent = numbered(60)
    for value in sent[:40]:
        cluster.send(*chance.choice(cluster.inputs), value)
    workers = [cluster.worker()]
    running: list[Worker] = []

    def change() -> None:
        """Inject a fault; a worker that is in the middle of a call is neither run nor ended."""
        happening = chance.random()
        idle = [worker for worker in workers if worker not in running]
        if happening < 0.15 and len(workers) < 3:
            workers.append(cluster.worker())
        elif happening < 0.25 and len(workers) > 1 and idle:
            leaving = chance.choice(idle)
            workers.remove(leaving)
            # A worker that lost its partitions logs it, and its records are processed again by another
            # worker.
            with suppress(NotCommitted):
                leaving.close()
        elif happening < 0.35:
            cluster.expire(chance.choice(workers))
        for worker in idle:
            if worker in workers and chance.random() < 0.7:
                run(worker)

    def fault(reached: Step) -> None:
        if reached in EXACTLY_ONCE_STEPS and chance.random() < share:
            raise chance.choice((TransactionAborted, OutcomeUnknown))("made to fail")

    def run(worker: Worker) -> None:
        running.append(worker)
        cluster.whenever("keep_alive", change, fault)
        try:
            worker.run_once()
        finally:
            cluster.broker.before = None
            running.remove(worker)

    for _ in range(15):
        for worker in workers:
            if worker in workers:
                run(worker)
    for value in sent[40:]:
        cluster.send(*chance.choice(cluster.inputs), value)
    cluster.run(*workers)
    for worker in workers:
        worker.close()
    cluster.clock.advance(TRANSACTION_SECONDS + 1)
    never = [value for value in sent if value.endswith("9")]
    assert cluster.values() == Counter(set(sent) - set(never))
    assert cluster.values("copy-dead-letters") == Counter(never)


# --- records that cannot be processed or written


@pytest.mark.parametrize("policy", [dead_letter, skip])
def test_results_too_large_for_the_broker_are_left_out_one_by_one(policy):
    app = App("copy", dead_letter_limit=1.0)
    app.stream("in", value=Text()).map(lambda value: value * 300 if value[0] == "l" else value).to(
        "out", value=Text(), on_error=policy
    )
    cluster = Cluster(app, max_record_bytes=900)
    cluster.send("in", 0, "l-first", "a", "l-second", "l-third", "b", "l-last")
    worker = cluster.worker()
    cluster.run(worker)
    worker.close()
    assert cluster.values() == Counter(["a", "b"])
    refused = ["l-first", "l-second", "l-third", "l-last"]
    assert cluster.values("copy-dead-letters") == Counter(refused if policy is dead_letter else [])


def test_a_result_too_large_under_policy_fail_names_the_record_and_commits_no_half_of_its_batch():
    app = App("copy", on_error=fail)
    app.stream("in", value=Text()).map(lambda value: value * 300 if value == "large" else value).to(
        "out", value=Text()
    )
    cluster = Cluster(app, max_record_bytes=900)
    cluster.send("in", 0, "a", "b")
    worker = cluster.worker()
    cluster.run(worker)
    cluster.send("in", 0, "c", "large", "d")
    with pytest.raises(ProcessingError, match=r"step 'to-out' failed on in-0 offset 3, .*b'large'"):
        cluster.run(worker)
    assert cluster.committed("in", 0) == 2
    assert cluster.values() == Counter(["a", "b"])


def test_a_dead_letter_too_large_for_its_topic_loses_its_value_and_keeps_its_coordinates():
    cluster = Cluster(copying(lambda value: str(int(value)), on_error=dead_letter), max_record_bytes=900)
    cluster.send("in", 0, "x" * 800)
    worker = cluster.worker()
    cluster.run(worker)
    worker.close()
    (letter,) = read_to_end(cluster.broker, ["copy-dead-letters"])
    assert letter.values() == [None]
    headers = dict((letter.headers() or [None])[0] or ())
    assert (headers["__streams.errors.topic"], headers["__streams.errors.offset"]) == (b"in", b"0")
    assert headers["__streams.errors.value_bytes"] == b"800"


def test_a_dead_letter_of_which_not_even_the_coordinates_fit_stops_the_worker_instead_of_vanishing():
    cluster = Cluster(copying(lambda value: str(int(value)), on_error=dead_letter), max_record_bytes=100)
    cluster.send("in", 0, "x" * 80)
    worker = cluster.worker()
    with pytest.raises(ProcessingError, match=r"failed on in-0 offset 0 .*more than 100 bytes"):
        cluster.run(worker)
    assert cluster.lag() == 1


def test_a_failing_record_leaves_what_other_partitions_had_processed_committed():
    cluster = Cluster(
        copying(lambda value: str(int(value)), commit_interval=60.0, shortest_commit_interval=60.0)
    )
    for partition in range(3):
        cluster.send("in", partition, "1", "2")
    worker = cluster.worker()
    cluster.join(worker, 4)
    for _ in range(5):
        worker.run_once()
    cluster.send("in", 3, "x")
    with pytest.raises(ProcessingError, match="in-3 offset 0"):
        cluster.run(worker)
    assert cluster.lag() == 1
    assert cluster.values() == Counter({"1": 3, "2": 3})


@pytest.mark.parametrize("error", [TransactionAborted, OutcomeUnknown])
@pytest.mark.parametrize("step", ["produce", "send_offsets", "commit.before", "commit.after"])
def test_dead_letters_are_written_once_when_their_transaction_fails(step, error):
    cluster = Cluster(
        copying(
            lambda value: str(int(value)), on_error=dead_letter, max_poll_records=4, dead_letter_limit=1.0
        )
    )
    cluster.send("in", 0, "1", "x", "2", "y", "3", "z")
    worker = cluster.worker()
    failures = iter([error("made to fail")])

    def trouble(reached: Step) -> None:
        if reached == step and (failure := next(failures, None)):
            raise failure

    cluster.broker.before = trouble
    cluster.run(worker)
    worker.close()
    assert cluster.values() == Counter("123")
    assert cluster.values("copy-dead-letters") == Counter("xyz")


def test_the_dead_letter_limit_stops_the_worker_but_not_what_was_committed_before():
    cluster = Cluster(
        copying(
            lambda value: str(int(value)),
            on_error=dead_letter,
            dead_letter_limit=0.5,
            dead_letter_window=10,
        )
    )
    cluster.send("in", 0, *map(str, range(30)))
    worker = cluster.worker()
    cluster.run(worker)
    cluster.send("in", 0, *["x"] * 40)
    with pytest.raises(DeadLetterLimitExceeded, match=r"dead_letter_limit is 50.0%") as caught:
        cluster.run(worker)
    assert "copy-dead-letters" in str(caught.value)
    # None of them was committed, so the message has to show an example.
    assert "topic in, partition 0, offset " in str(caught.value)
    assert "'x': invalid literal for int() with base 10: 'x'" in str(caught.value)
    assert cluster.committed("in", 0) == 30
    assert cluster.values("copy-dead-letters") == Counter()


def test_what_the_broker_has_is_what_was_read_times_keys_headers_and_tombstones_included():
    app = App("copy")
    app.stream("in", value=Bytes(), tombstones=True).to("out")
    cluster = Cluster(app)
    producer = cluster.broker.producer()
    keys: list[bytes | None] = [b"a", b"a", b"a"]
    values: list[bytes | None] = [b"1", None, b""]
    producer.produce(Output("in", keys, values, [5, 6, 7], [None, [("h", b"x"), ("h", None)], None]))
    producer.flush(1)
    worker = cluster.worker()
    cluster.run(worker)
    worker.close()
    (written,) = read_to_end(cluster.broker, ["out"])
    assert (written.keys(), written.values(), written.timestamps()) == (keys, values, [5, 6, 7])
    assert written.headers() == [None, [("h", b"x"), ("h", None)], None]
