"""Jobs whose partition changes its owner: what runs, what is read again, and what is committed."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import streams.jobs.executors.choice
import streams.jobs.queue
import streams.runtime.worker
from streams import App, Retry, RetryLater, current_job, seconds
from streams.app import resources_of_worker
from streams.errors import TransactionAborted
from streams.jobs.current import CurrentJob
from streams.jobs.executors import Attempt
from streams.jobs.executors.choice import Executors
from streams.jobs.job_store import stored_jobs
from streams.jobs.queue import JobQueue
from streams.jobs.record import JobEnd, JobRecord
from streams.records import Output, TopicPartition
from tests.support.cluster import MemoryCluster
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streams.broker.memory.cluster import Step
    from streams.runtime.resources import Resources
    from streams.runtime.worker import Worker

SECONDS = 30.0
SESSION = 1.5
THREADS = 4
QUEUE = TopicPartition("shop-jobs", 0)


class Owners:
    """Workers of an app with jobs, which take turns in this thread; their jobs run in threads."""

    def __init__(self, partitions: int) -> None:
        self.app = app = App(
            "shop",
            job_partitions=partitions,
            job_concurrency=THREADS,
            commit_interval=0.02,
            out_of_range_reset="earliest",
            session_timeout=SESSION,
            max_poll_records=4,
        )
        self.cluster = MemoryCluster({}, real_time=True)
        self.workers: dict[Worker, Resources] = {}
        """Those that take turns, with their executors."""
        self.started = 0
        self.clock_ahead = 0
        """How many milliseconds the workers' wall clock is ahead of the system's."""
        self.late = False
        """Whether fetches of the queue's records bring nothing."""
        self.moving = threading.Event()
        """Set once a worker is about to give partitions away."""
        self.go = threading.Event()
        self.begun: list[int] = []
        """The numbers of the jobs, in the order in which attempts began."""
        self.running: set[str] = set()

        @app.job(name="work", key=lambda number, key=None: key)
        def work(number: int, key: str | None = None) -> int:
            assert key not in self.running, f"{current_job().id} began beside another one of {key}"
            self.begun.append(number)
            if key is not None:
                self.running.add(key)
            try:
                if number == 0:
                    self.moving.wait(SECONDS)
                elif number == 1:
                    self.go.wait(SECONDS)
            finally:
                self.running.discard(key or "")
            return number

        self.counts = self.cluster.prepare(app, create_outputs=True)

    def start(self) -> Worker:
        worker = self.cluster.make_worker(
            self.app, f"worker-{self.started}", partitions=self.counts, wall_clock=self.now
        )
        self.started += 1
        revoked = worker.revoked

        def give_away(partitions: Sequence[TopicPartition]) -> None:
            self.moving.set()
            revoked(partitions)

        worker.revoked = give_away  # type: ignore[method-assign]  # of this one alone
        resources = resources_of_worker(self.app)
        resources.open()
        self.workers[worker] = resources
        with resources.active():
            worker.start()
        consumer = self.cluster.consumer_of(worker)
        poll, queue = consumer.poll, [QUEUE]

        def poll_late(records: int, timeout: float) -> Any:
            if not self.late:
                return poll(records, timeout)
            consumer.pause(queue)
            try:
                return poll(records, timeout)
            finally:
                consumer.resume(queue)

        consumer.poll = poll_late
        return worker

    def now(self) -> int:
        return time.time_ns() // 1_000_000 + self.clock_ahead

    def freeze(self, worker: Worker) -> Resources:
        """End a worker's session, and let its own thread do nothing any more; return its executors."""
        self.until(lambda: not worker.status.dirty)
        self.cluster.expire(worker)
        return self.workers.pop(worker)

    def enqueue(
        self, *numbers: int, key: str | None = None, due: int | None = None, partition: int = 0
    ) -> None:
        records = [
            JobRecord(
                "work", msgspec.Raw(msgspec.json.encode({"number": number, "key": key})), key=key, due=due
            )
            for number in numbers
        ]
        keys = [None if key is None else key.encode()] * len(records)
        values = [msgspec.json.encode(record) for record in records]
        self.cluster.write(
            Output("shop-jobs", keys, values, [self.now()] * len(records), partition=partition)
        )

    def enqueue_as(self, name: str) -> None:
        """Enqueue a job of another function, without arguments."""
        record = msgspec.json.encode(JobRecord(name, msgspec.Raw(b"{}")))
        self.cluster.write(Output(QUEUE.topic, [None], [record], [self.now()]))

    def turn(self) -> None:
        for worker, resources in list(self.workers.items()):
            with resources.active():
                worker.run_once()

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{self.begun}, {self.ends()}, {self.stored()}"
            self.turn()

    def turns(self, count: int = 30) -> None:
        for _ in range(count):
            self.turn()

    def taken(self, worker: Worker) -> int:
        """How many attempts run, or wait for a thread."""
        queues = [work for task in worker.tasks.values() for work in task.background_work]
        return sum(len(vars(queue)["_unfinished"].running) for queue in queues)

    def attempt(self, worker: Worker) -> Attempt:
        """The only attempt that runs."""
        ((queue,),) = [task.background_work for task in worker.tasks.values()]
        ((_, attempt),) = vars(queue)["_unfinished"].running.values()
        assert isinstance(attempt, Attempt)
        return attempt

    def results(self) -> list[JobEnd]:
        """How jobs have ended, in the order in which that was committed."""
        values = self.cluster.payloads("shop-job-results")
        return [msgspec.json.decode(value, type=JobEnd) for value in values]

    def ends(self) -> list[int]:
        """What jobs have returned."""
        return [msgspec.json.decode(end.result) for end in self.results()]

    def stored(self) -> int:
        """How many jobs the store has, as its changelog says."""
        latest = dict(self.cluster.rows("shop-jobs-changelog"))
        return len(list(stored_jobs(((0, key or b""), value) for key, value in latest.items())))

    def committed(self) -> int:
        return self.cluster.admin.committed_offsets("shop").get(QUEUE, 0)

    def fail_commits(self, failing: Callable[[], bool]) -> None:
        """Let each commit fail as long as a function returns true."""

        def before(step: Step) -> None:
            if step == "commit.before" and failing():
                raise TransactionAborted("made to fail")

        self.cluster.broker.before = before


@pytest.fixture(params=[1])
def owners(request: pytest.FixtureRequest) -> Iterator[Owners]:
    made = Owners(request.param)
    yield made
    made.moving.set()
    made.go.set()
    for worker, resources in list(made.workers.items()):
        with resources.active():
            worker.close()
        resources.close()


@pytest.mark.parametrize("owners", [2], indirect=True)
def test_what_runs_when_its_partition_moves_ends_before_the_next_owner_begins(owners: Owners) -> None:
    first = owners.start()
    for partition in range(2):
        # It ends once its worker is about to give a partition away.
        owners.enqueue(0, 2, 3, key=f"k{partition}", partition=partition)
    owners.until(lambda: len(owners.begun) == 2)
    owners.start()
    owners.until(lambda: len(first.progress) == 1)
    owners.until(lambda: len(owners.ends()) == 6)
    assert Counter(owners.begun) == {0: 2, 2: 2, 3: 2}


@pytest.mark.parametrize("owners", [2], indirect=True)
def test_what_does_not_end_in_time_begins_again_and_has_one_end(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams.runtime.worker, "HANDOVER_SECONDS", 0.05)
    first = owners.start()
    for partition in range(2):
        owners.enqueue(1, partition=partition)
    owners.until(lambda: len(owners.begun) == 2)
    owners.start()
    owners.until(lambda: len(first.progress) == 1)
    owners.until(lambda: len(owners.begun) == 3)
    owners.go.set()
    owners.until(lambda: len(owners.ends()) == 2)
    owners.turns()
    assert owners.ends() == [1, 1]
    assert owners.begun == [1, 1, 1]


def test_records_that_arrive_late_are_waited_for(owners: Owners) -> None:
    first = owners.start()
    owners.enqueue(1, 2)
    owners.until(lambda: owners.ends() == [2])
    owners.freeze(first)
    owners.late = True
    second = owners.start()
    owners.until(lambda: second.tasks)
    # However late they are.
    owners.turns()
    owners.clock_ahead += 3_600_000
    owners.turns()
    owners.late = False
    owners.go.set()
    owners.until(lambda: len(owners.ends()) == 2)
    assert owners.ends() == [2, 1]


def test_more_unfinished_records_than_are_read_at_once_are_all_read_again(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = owners.start()
    # One ends, so that the others are listed as unfinished.
    owners.enqueue(*[1] * (THREADS - 1), 9, *[1] * THREADS, *range(10, 30))
    owners.until(lambda: owners.ends() == [9] and first.progress[QUEUE].at_end)
    owners.freeze(first)
    monkeypatch.setattr(streams.jobs.queue, "MOST_OPEN", 5)
    owners.start()
    owners.go.set()
    owners.until(lambda: len(owners.ends()) == 20 + 2 * THREADS)


def test_when_a_failure_is_undone_the_next_attempt_continues_and_no_other_one_begins_beside_it(
    owners: Owners,
) -> None:
    attempts: list[int] = []

    @owners.app.job(name="later")
    def later() -> int:
        attempts.append(current_job().attempt)
        if len(attempts) == 1:
            raise RetryLater(after=seconds(0))
        owners.go.wait(SECONDS)
        return 7

    worker = owners.start()
    aborted: list[int] = []

    def failing() -> bool:
        # What is undone is the outcome of the first attempt, and that the second one begins.
        if not aborted:
            aborted.extend(attempts[1:])
            return True
        return False

    owners.fail_commits(failing)
    owners.enqueue_as("later")
    owners.until(lambda: aborted)
    commits = worker.status.commits
    owners.until(lambda: worker.status.commits > commits and not worker.status.dirty)
    assert owners.taken(worker) == 1
    owners.go.set()
    owners.until(lambda: owners.ends() == [7])
    assert attempts == [1, 1]
    assert not owners.stored()


def test_a_failure_that_was_never_recorded_does_not_count_after_later_ones_of_another_owner(
    owners: Owners,
) -> None:
    attempts: list[int] = []

    @owners.app.job(name="flaky", retry=Retry(3, backoff=seconds(60), factor=1, jitter=0))
    def flaky() -> None:
        attempts.append(current_job().attempt)
        if len(attempts) == 1:
            owners.go.wait(SECONDS)
        raise OSError("down")

    first = owners.start()
    owners.enqueue_as("flaky")
    owners.until(lambda: attempts)
    left = owners.attempt(first)
    resources = owners.freeze(first)
    second = owners.start()
    owners.until(lambda: len(attempts) == 2 and not owners.taken(second))
    owners.clock_ahead += 60_000
    owners.until(lambda: len(attempts) == 3 and not owners.taken(second))
    owners.freeze(second)
    # The first attempt fails where it has run all the time, and its partition comes back. (If it came back
    # while the attempt runs, that would be the third one.)
    owners.go.set()
    wait_until(lambda: left.finished)
    owners.workers[first] = resources
    owners.clock_ahead += 60_000
    owners.until(lambda: len(attempts) == 4)
    assert attempts == [1, 1, 2, 3]
    owners.until(owners.results)
    assert [end.tries for end in owners.results()] == [3]


def test_records_that_were_deleted_are_not_waited_for(owners: Owners) -> None:
    first = owners.start()
    owners.enqueue(3, due=owners.now() + 60_000)
    owners.enqueue(1, 2)
    owners.until(lambda: owners.ends() == [2])
    assert owners.committed() == 1
    owners.freeze(first)
    owners.cluster.admin.delete_records({QUEUE: 3})
    owners.clock_ahead += 60_000
    owners.start()
    owners.until(lambda: len(owners.ends()) == 2)
    assert owners.ends() == [2, 3]
    assert not owners.stored()


def test_nothing_is_committed_without_the_store_before_any_record_was_read(owners: Owners) -> None:
    first = owners.start()
    owners.enqueue(2, due=owners.now() + 60_000)
    owners.until(owners.stored)
    owners.freeze(first)
    owners.clock_ahead += 60_000
    owners.late = True
    second = owners.start()
    owners.until(lambda: second.tasks)
    for _ in range(100):
        owners.turn()
        assert len(owners.ends()) + owners.stored() == 1
    owners.late = False
    owners.until(owners.ends)
    assert not owners.stored()
    assert owners.begun == [2]


def test_a_job_whose_record_is_yet_to_be_read_again_has_not_ended(owners: Owners) -> None:
    first = owners.start()
    owners.enqueue(1, 2, 2, 2, 2, 1)
    owners.until(lambda: len(owners.ends()) == 4)
    owners.freeze(first)
    owners.late = True
    second = owners.start()
    owners.until(lambda: second.tasks)
    (task,) = second.tasks.values()
    (queue,) = task.background_work
    assert isinstance(queue, JobQueue)
    # One poll has four records: the last one is still to come.
    owners.late = False
    owners.until(lambda: task.positions)
    owners.late = True
    waiting, ended = queue.ask(5), queue.ask(1)
    owners.until(lambda: waiting.done() and ended.done())
    assert (waiting.result() or {}).get("why") == "no worker has read it yet"
    assert ended.result() is None
    owners.late = False
    owners.go.set()
    owners.until(lambda: len(owners.ends()) == 6)


def test_what_waits_for_a_thread_does_not_begin_in_a_worker_that_was_frozen(owners: Owners) -> None:
    frozen = owners.start()
    # Short jobs let the executor take more than it has threads for.
    owners.enqueue(*range(10, 30))
    owners.until(lambda: len(owners.ends()) == 20)
    owners.enqueue(*[1] * THREADS, *range(40, 60))
    owners.until(lambda: owners.begun.count(1) == THREADS and owners.taken(frozen) > THREADS)
    resources = owners.freeze(frozen)
    thawed = time.monotonic() + SESSION
    wait_until(lambda: time.monotonic() >= thawed)
    # Its threads have nothing else to do now, and cannot know that the partition is another one's.
    owners.go.set()
    owners.start()
    owners.until(lambda: len(owners.ends()) == 40 + THREADS)
    owners.workers[frozen] = resources
    owners.turns()
    counts = Counter(owners.begun)
    assert counts.pop(1) == 2 * THREADS
    assert set(counts.values()) == {1}


def test_after_a_long_pause_what_waits_begins_once_a_commit_has_confirmed_the_partition(
    owners: Owners,
) -> None:
    worker = owners.start()
    owners.enqueue(*range(10, 30))
    owners.until(lambda: len(owners.ends()) == 20)
    owners.enqueue(*[1] * THREADS, *range(40, 60))
    owners.until(lambda: owners.begun.count(1) == THREADS and owners.taken(worker) > THREADS)
    owners.until(lambda: not worker.status.dirty)
    paused, commits = time.monotonic() + SESSION, worker.status.commits
    wait_until(lambda: time.monotonic() >= paused)
    assert len(owners.begun) == 20 + THREADS
    owners.turn()
    assert worker.status.commits == commits + 1
    owners.go.set()
    owners.until(lambda: len(owners.ends()) == 40 + THREADS)
    assert set(Counter(owners.begun).values()) == {1, THREADS}


def test_what_was_left_running_is_kept_while_it_runs_and_its_outcome_for_a_while(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    @owners.app.job(name="left")
    def left() -> None:
        """Executed by nothing here."""

    executors = Executors(1)
    running, finished = (
        Attempt(0, left, ((), {}), CurrentJob(key, "left", 1, 0, key), copy_context(), deque())
        for key in ("running", "finished")
    )
    finished.finish()
    executors.leave([running, finished])
    executors.leave([])
    assert executors.has_left("finished")
    monkeypatch.setattr(streams.jobs.executors.choice, "KEPT_SECONDS", 0)
    executors.leave([])
    assert not executors.has_left("finished")
    assert executors.has_left("running")
