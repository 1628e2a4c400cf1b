"""Workers with state on the memory broker: after failures and rebalances, each record is counted once."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from streams import App, Record, Text, Tumbling, key_value_store, retry
from streams.broker import GroupSettings
from streams.broker.reading import read_to_end
from streams.durations import milliseconds, seconds
from streams.errors import NotCommitted, OutcomeUnknown, Retriable, StateError, TransactionAborted
from streams.records import Output, TopicPartition
from streams.runtime.cleanup import PURGE_SECONDS
from streams.runtime.status import State
from streams.state.changelog import RESERVED
from streams.state.memory import MemoryDatabases
from streams.state.rocksdb import RocksDatabases
from tests.support.cluster import TRANSACTION_SECONDS, MemoryCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from streams.broker.memory import Step
    from streams.operators.processor import Context
    from streams.runtime.worker import Worker
    from streams.state.store import Changes, Database, Databases

PARTITIONS = 4
SIZE = 1_000

COMMIT_STEPS = ("produce", "begin", "send_offsets", "commit.before", "commit.after", "abort")
ALL_STEPS = (*COMMIT_STEPS, "poll", "committed", "init_transactions")


class Death(BaseException):
    """The process ends here."""


class Tally:
    """Counts the records of each key in a store, and forwards each number."""

    def open(self, context: Context) -> None:
        self.store = context.store("tally")

    def process(self, record: Record[Any, Any], context: Context) -> None:
        number = (self.store.get(record.key) or 0) + 1
        self.store.put(record.key, number)
        context.forward(Record(record.key, str(number), record.timestamp))


class Pause:
    """User code in the middle of a slice and of a commit, in which tests inject actions."""

    def __init__(self) -> None:
        self.in_slice: Callable[[Any], None] = lambda _: None
        self.at_commit: Callable[[Any], None] = lambda _: None


def counting(
    pause: Pause | None = None, topics: str | Sequence[str] = "in", *, grace: int = 0, **settings: Any
) -> App:
    """Counts each letter (through a repartition topic), each key and second, and tallies letters.

    Records have a key, a value that begins with a letter, and an event time.
    """
    pause = pause or Pause()

    def work(value: str) -> str:
        pause.in_slice(value)
        return value

    def present(result: Any) -> Any:
        pause.at_commit(result)
        return result

    patient = retry(50, backoff=seconds(1), longest_backoff=seconds(1))
    app = App(
        "count", **{"max_poll_records": 7, "commit_interval": 0.05, "dead_letter_limit": 1.0} | settings
    )
    lines = app.stream(topics, key=Text(), value=Text())
    lines.to("echo")
    windows = (
        lines.group_by_key().window(Tumbling(milliseconds=SIZE), grace=milliseconds(grace)).count("windows")
    )
    windows.updates().map(present, on_error=patient).to("updates")
    windows.final().to("final")
    windows.late().to("late", value=Text())
    worked = lines.map(work, on_error=patient)
    letters = worked.group_by(lambda value: value[0], value=Text())
    letters.count("letters").to_stream().map(present, on_error=patient).to("letters")
    worked.key_by(lambda value: value[0]).map(str, name="as-text").repartition(
        "tallied", value=Text()
    ).process(Tally, stores=[key_value_store("tally")]).to("tally", value=Text())
    return app


class Sent(NamedTuple):
    """An input record."""

    topic: str
    partition: int
    key: str
    letter: str
    time: int


class Cluster(MemoryCluster):
    """Topics for ``counting``, workers with their own databases, and the expected results."""

    def __init__(
        self,
        app: App,
        *,
        topics: Sequence[str] = ("in",),
        outputs: Sequence[str] | None = None,
        grace: int = 0,
    ) -> None:
        self.app = app
        self.grace = grace
        outputs = ("echo", "updates", "final", "late", "letters", "tally") if outputs is None else outputs
        super().__init__(dict.fromkeys(topics, PARTITIONS) | dict.fromkeys(outputs, 2))
        self.partitions = self.prepare(app, create_outputs=False)
        self.inputs = [
            TopicPartition(topic, number)
            for topic, count in self.partitions.items()
            for number in range(count)
        ]
        self.sent: list[Sent] = []
        self._made = 0

    def worker(
        self,
        databases: Databases | None = None,
        *,
        slot: int | None = None,
        members: Callable[[], Sequence[str]] | None = None,
    ) -> Worker:
        """Start one more worker; in place of an earlier one if ``slot`` is given."""
        if slot is None:
            slot, self._made = self._made, self._made + 1
        worker = self.make_worker(
            self.app,
            f"slot-{slot}",
            partitions=self.partitions,
            databases=databases if databases is not None else MemoryDatabases(),
            members=members,
            wall_clock=self.clock.milliseconds,
        )
        worker.start()
        return worker

    def send(self, *records: Sent) -> None:
        outputs = []
        for record in records:
            value = f"{record.letter}-{len(self.sent)}".encode()
            outputs.append(
                Output(
                    record.topic, [record.key.encode()], [value], [record.time], partition=record.partition
                )
            )
            self.sent.append(record)
        self.write(*outputs)

    def lag(self) -> int:
        """Records that are not committed, and partitions with a transaction that is open."""
        return self.uncommitted(self.app.name, self.partitions)

    def run(self, *workers: Worker, rounds: int = 1_500) -> None:
        """Let the workers take turns until all input is committed."""
        for _ in range(rounds):
            for worker in workers:
                worker.run_once()
            if self.lag() == 0:
                return
        held = {number: sorted(worker.progress) for number, worker in enumerate(workers)}
        pytest.fail(f"after {rounds} rounds {self.lag()} offsets are not committed; held {held}")

    def join(self, worker: Worker, partitions: int) -> None:
        """Run a worker until it holds that many partitions and has restored their stores."""
        for _ in range(200):
            worker.run_once()
            if len(worker.progress) == partitions and worker.ready:
                return
        pytest.fail(f"the worker holds {sorted(worker.progress)}, ready: {worker.ready}")

    def read(self, topic: str) -> list[tuple[str, Any]]:
        """Keys and values of an output topic in order of offsets, partition by partition."""
        return [
            (key.decode(), None if value is None else msgspec.json.decode(value))
            for key, value in self.rows(topic)
            if key is not None
        ]

    # --- expected results

    def expected_windows(self) -> tuple[dict[tuple[str, int], int], set[tuple[str, int]], Counter[str]]:
        """The count of each key and window start, the closed ones of these, and the late records' keys."""
        counts: Counter[tuple[str, int]] = Counter()
        late: Counter[str] = Counter()
        closed: set[tuple[str, int]] = set()
        for number in range(PARTITIONS):
            time, own = -1, set()
            for record in [item for item in self.sent if item.partition == number]:
                time = max(time, record.time)
                start = record.time - record.time % SIZE
                if start + SIZE + self.grace <= time:
                    late[record.key] += 1
                else:
                    counts[record.key, start] += 1
                    own.add((record.key, start))
            closed |= {(key, start) for key, start in own if start + SIZE + self.grace <= time}
        return dict(counts), closed, late

    def check(self, *, exactly_once: bool = True) -> None:
        """Compare the output topics with a recount of the input."""
        letters = Counter(record.letter for record in self.sent)
        updates = by_key(self.read("letters"))
        tally = by_key(self.read("tally"))
        results = [value for _, value in self.read("final")]
        final = Counter((item["key"], item["start"], item["value"]) for item in results)
        counts, closed, late = self.expected_windows()
        wanted = {(key, start, counts[key, start]) for key, start in closed}
        assert {key: values[-1] for key, values in updates.items()} == letters
        windows = by_key(((item["key"], item["start"]), item["value"]) for _, item in self.read("updates"))
        assert {window: values[-1] for window, values in windows.items()} == counts
        if not exactly_once:
            assert set(final) == wanted
            assert {key: set(values) for key, values in tally.items()} == {
                key: set(range(1, count + 1)) for key, count in letters.items()
            }
            return
        assert tally == {key: list(range(1, count + 1)) for key, count in letters.items()}
        for values in (*updates.values(), *windows.values()):
            assert values == sorted(set(values))
        assert final == Counter(dict.fromkeys(wanted, 1))
        assert self.values("echo") == Counter(f"{sent.letter}-{n}" for n, sent in enumerate(self.sent))
        assert self.values("late", keys=True) == late

    def values(self, topic: str, *, keys: bool = False) -> Counter[str]:
        """How often each value, or each key, is in a topic."""
        return Counter(
            item.decode()
            for fetched in read_to_end(self.broker, [topic])
            for item in (fetched.keys() if keys else fetched.values())
            if item is not None
        )

    def check_state(self, databases: Databases) -> None:
        """Compare the databases of a worker that held everything and is closed with the changelogs."""
        letters: Counter[str] = Counter()
        tally: Counter[str] = Counter()
        windows: dict[tuple[str, int], int] = {}
        for number in range(PARTITIONS):
            for store in ("windows", "letters", "tally"):
                database = databases.open([store], number)
                content = dict(database.store(store).scan())
                database.close()
                changelog, time = self.changelog(store, number)
                if store == "windows":
                    first = max(0, time - SIZE - self.grace + 1).to_bytes(8, "big")
                    changelog = {key: value for key, value in changelog.items() if key[:8] >= first}
                    for key, value in content.items():
                        windows[key[8:].decode(), int.from_bytes(key[:8], "big")] = msgspec.msgpack.decode(
                            value
                        )
                elif store == "letters":
                    letters.update(
                        {key.decode(): msgspec.msgpack.decode(value)[0] for key, value in content.items()}
                    )
                else:
                    tally.update({key.decode(): msgspec.json.decode(value) for key, value in content.items()})
                assert content == changelog, (store, number)
        assert letters == tally == Counter(record.letter for record in self.sent)
        counts, closed, _ = self.expected_windows()
        assert windows == {window: count for window, count in counts.items() if window not in closed}

    def changelog(self, store: str, number: int) -> tuple[dict[bytes, bytes], int]:
        """The entries of the changelog, oldest first, and its stream time."""
        left: dict[bytes, bytes | None] = {}
        for fetched in read_to_end(self.broker, [f"{self.app.name}-{store}-changelog"]):
            if fetched.partition == number:
                left |= {
                    key: value for key, value in zip(fetched.keys(), fetched.values(), strict=True) if key
                }
        time = int(left.get(RESERVED + b"stream-time") or b"-1")
        return {
            key: value for key, value in left.items() if value is not None and not key.startswith(RESERVED)
        }, time


def by_key(records: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = defaultdict(list)
    for key, value in records:
        found[key].append(value)
    return dict(found)


def some(
    count: int, *, seed: int = 1, begin: int = 0, topics: Sequence[str] = ("in",), step: int = 60
) -> list[Sent]:
    """Input records almost in the order of their times: some are late."""
    chance = random.Random(seed)
    records = []
    for number in range(begin, begin + count):
        partition = chance.randrange(PARTITIONS)
        # The windows' tasks are the input's: a key stays in its partition.
        key = f"{partition}{chance.choice('xyz')}"
        time = max(0, number * step - chance.choice([0, 0, 0, 0, 300, 2_000]))
        records.append(Sent(chance.choice(topics), partition, key, chance.choice("abcde"), time))
    return records


def last_ones(begin: int, step: int = 60, grace: int = 0) -> list[Sent]:
    """A record for each partition that closes all windows but its own."""
    time = (begin + 100) * step + SIZE + grace
    return [Sent("in", number, f"{number}x", "a", time) for number in range(PARTITIONS)]


class Trouble:
    """Makes some of the clients' calls of one kind fail."""

    def __init__(self, step: str, error: type[BaseException], occurrences: Iterable[int]) -> None:
        self.step = step
        self.seen = 0
        self._error = error
        self._occurrences = set(occurrences)

    def __call__(self, reached: Step) -> None:
        if self.step == "abort" and reached == "commit.before" and self.seen < max(self._occurrences):
            # An abort only happens after a commit has failed.
            raise TransactionAborted("made to fail")
        if reached == self.step:
            self.seen += 1
            if self.seen in self._occurrences:
                raise self._error("made to fail")


# --- errors at each step of a commit


@pytest.mark.parametrize("occurrences", [(1,), (2,), (3,), (5,), (2, 3, 4), range(1, 9)], ids=str)
@pytest.mark.parametrize(
    ("step", "error"),
    [(step, OutcomeUnknown) for step in COMMIT_STEPS]
    + [(step, TransactionAborted) for step in COMMIT_STEPS if step != "commit.after"]
    # By the contract only these are retriable.
    + [(step, Retriable) for step in ("send_offsets", "commit.before", "commit.after", "committed")]
    + [("init_transactions", OutcomeUnknown)],
)
def test_each_record_is_counted_once_when_a_call_fails(step, error, occurrences):
    cluster = Cluster(counting())
    databases = MemoryDatabases()
    worker: list[Worker] = []
    cluster.send(*some(40))
    trouble = Trouble(step, error, occurrences)
    if step != "init_transactions":
        worker.append(cluster.worker(databases))
    cluster.broker.before = trouble
    if step == "init_transactions":
        worker.append(cluster.worker(databases))
    cluster.run(*worker)
    cluster.send(*some(40, begin=40), *last_ones(80))
    cluster.run(*worker)
    cluster.broker.before = None
    worker[0].close()
    cluster.check()
    cluster.check_state(databases)


# --- the end of a process at each step


@pytest.mark.parametrize("left_behind", ["its place and its disk", "its disk", "nothing"])
@pytest.mark.parametrize("occurrence", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("step", ALL_STEPS)
def test_each_record_is_counted_once_when_the_process_dies(step, occurrence, left_behind):
    cluster = Cluster(counting())
    databases = MemoryDatabases()
    cluster.send(*some(40))
    cluster.broker.before = Trouble(step, Death, [occurrence])
    worker: Worker | None = None
    slot = 0
    for records in ([], [*some(40, begin=40), *last_ones(80)]):
        cluster.send(*records)
        try:
            worker = worker or cluster.worker(databases, slot=slot)
            cluster.run(worker)
        except Death:
            cluster.broker.before = None
            # The operating system closes its files.
            databases.close()
            if worker is not None:
                cluster.expire(worker)
            if left_behind != "its place and its disk":
                slot = 1
                cluster.clock.advance(TRANSACTION_SECONDS + 1)
            if left_behind == "nothing":
                databases = MemoryDatabases()
            worker = cluster.worker(databases, slot=slot)
            cluster.run(worker)
    cluster.broker.before = None
    assert worker is not None
    worker.close()
    cluster.check()
    cluster.check_state(databases)


class MortalDatabase:
    """A database whose process dies before or after one of its writes."""

    def __init__(self, database: Database, dies: Callable[[str], None]) -> None:
        self._database = database
        self._dies = dies

    def write(self, changes: Mapping[str, Changes], metadata: Mapping[str, bytes]) -> None:
        self._dies("before")
        self._database.write(changes, metadata)
        self._dies("after")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


class MortalDatabases:
    """Databases that are ``MortalDatabase``."""

    def __init__(self, databases: Databases, dies: Callable[[str], None]) -> None:
        self._databases = databases
        self._dies = dies

    def open(self, stores: Sequence[str], partition: int) -> Any:
        return MortalDatabase(self._databases.open(stores, partition), self._dies)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._databases, name)


@pytest.mark.parametrize("kind", ["memory", "rocksdb"])
@pytest.mark.parametrize("occurrence", [1, 4, 13, 14, 20, 26, 27, 33])
@pytest.mark.parametrize("when", ["before", "after"])
def test_each_record_is_counted_once_when_the_process_dies_at_a_write_to_its_disk(
    when, occurrence, kind, tmp_path
):
    cluster = Cluster(counting())
    cluster.send(*some(60))
    kept: Databases = MemoryDatabases() if kind == "memory" else RocksDatabases(tmp_path, 8 * 1024 * 1024)
    seen = 0

    def dies(moment: str) -> None:
        nonlocal seen
        if moment == when and (seen := seen + 1) == occurrence:
            raise Death

    worker = cluster.worker(MortalDatabases(kept, dies))
    with pytest.raises(Death):
        cluster.run(worker)
    kept.close()
    cluster.expire(worker)
    if kind == "rocksdb":
        kept = RocksDatabases(tmp_path, 8 * 1024 * 1024)
    worker = cluster.worker(kept, slot=0)
    cluster.send(*some(40, begin=60), *last_ones(100))
    cluster.run(worker)
    worker.close()
    cluster.check()
    if kind == "rocksdb":
        kept = RocksDatabases(tmp_path, 8 * 1024 * 1024)
    cluster.check_state(kept)
    kept.close()


# --- rebalances in the middle of slices and commits


class Crowd:
    """Workers that join, work, leave and die, also in the middle of others' slices and commits."""

    def __init__(
        self, cluster: Cluster, pause: Pause, chance: random.Random, share: float, limit: int
    ) -> None:
        self.cluster = cluster
        self.workers: list[Worker] = [cluster.worker()]
        self._chance = chance
        self._share = share
        self._limit = limit
        self._running: list[Worker] = []
        self._failures: Counter[Any] = Counter()
        pause.in_slice = self._hesitate
        pause.at_commit = self._hesitate

    def turn(self) -> None:
        for worker in list(self.workers):
            if worker in self.workers:
                self._run(worker)

    def _hesitate(self, item: Any) -> None:
        """Fail for a while, so that the group is polled in between."""
        if self._running and self._chance.random() < 0.15 and self._failures[str(item)] < 3:
            self._failures[str(item)] += 1
            raise ConnectionError("not yet")

    def _change(self) -> None:
        """Inject a fault; a worker that is in the middle of a call is neither run nor ended."""
        happening = self._chance.random()
        idle = [worker for worker in self.workers if worker not in self._running]
        if happening < 0.15 and len(self.workers) < self._limit:
            self.workers.append(self.cluster.worker())
        elif happening < 0.25 and len(self.workers) > 1 and idle:
            leaving = self._chance.choice(idle)
            self.workers.remove(leaving)
            # At least once, results that it wrote before a rebalance revoked its input are not committed.
            with suppress(NotCommitted):
                leaving.close()
        elif happening < 0.3:
            self.cluster.expire(self._chance.choice(self.workers))
        for worker in idle:
            if worker in self.workers and self._chance.random() < 0.7:
                self._run(worker)

    def _reached(self, step: Step) -> None:
        if step in ("keep_alive", "poll"):
            if step == "keep_alive" or self._chance.random() < 0.05:
                self.cluster.broker.before = None
                try:
                    self._change()
                finally:
                    self.cluster.broker.before = self._reached
        elif step in COMMIT_STEPS and self._chance.random() < self._share:
            errors = (OutcomeUnknown,) if step == "commit.after" else (TransactionAborted, OutcomeUnknown)
            raise self._chance.choice(errors)("made to fail")

    def _run(self, worker: Worker) -> None:
        self._running.append(worker)
        hook, self.cluster.broker.before = self.cluster.broker.before, self._reached
        try:
            worker.run_once()
        finally:
            self.cluster.broker.before = hook
            self._running.remove(worker)


@pytest.mark.parametrize("topics", [("in",), ("in", "other")], ids="-".join)
@hypothesis_settings(max_examples=60)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.0, 0.0, 0.03, 0.1]), turns=st.integers(2, 25))
def test_each_record_is_counted_once_whoever_comes_and_goes_meanwhile(topics, seed, share, turns):
    chance = random.Random(seed)
    pause = Pause()
    grace = 0 if len(topics) == 1 else 1_000_000
    app = counting(pause, topics, grace=grace, max_poll_records=chance.choice([2, 7, 1_000]))
    cluster = Cluster(app, topics=topics, grace=grace)
    crowd = Crowd(cluster, pause, chance, share, limit=3)
    for number in range(turns):
        cluster.send(*some(4, begin=number * 4, seed=seed + number, topics=topics))
        crowd.turn()
    cluster.clock.advance(TRANSACTION_SECONDS + 1)
    cluster.run(*crowd.workers)
    cluster.send(*last_ones(turns * 4, grace=grace))
    for worker in crowd.workers:
        worker.close()
    databases = MemoryDatabases()
    last = cluster.worker(databases)
    cluster.run(last)
    last.close()
    cluster.check()
    cluster.check_state(databases)


@hypothesis_settings(max_examples=40)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.0, 0.05, 0.15]), turns=st.integers(2, 20))
def test_at_least_once_counts_each_record_and_loses_no_result(seed, share, turns):
    chance = random.Random(seed)
    pause = Pause()
    app = counting(pause, max_poll_records=chance.choice([2, 7, 1_000]), guarantee="at_least_once")
    cluster = Cluster(app)
    crowd = Crowd(cluster, pause, chance, share, limit=3)
    for number in range(turns):
        cluster.send(*some(4, begin=number * 4, seed=seed + number))
        crowd.turn()
    cluster.clock.advance(TRANSACTION_SECONDS + 1)
    cluster.run(*crowd.workers)
    for worker in crowd.workers:
        worker.close()
    letters = Counter(record.letter for record in cluster.sent)
    updates = by_key(cluster.read("letters"))
    assert set(cluster.values("echo")) == {f"{sent.letter}-{n}" for n, sent in enumerate(cluster.sent)}
    for letter, count in letters.items():
        assert max(updates[letter]) >= count
    assert {window for window, _ in windows_of(cluster, "updates")} >= set(cluster.expected_windows()[1])


def windows_of(cluster: Cluster, topic: str) -> list[tuple[tuple[str, int], int]]:
    """The results of windows in a topic: key and start, and the count."""
    return [((item["key"], item["start"]), item["value"]) for _, item in cluster.read(topic)]


def finish(cluster: Cluster, *workers: Worker) -> None:
    """Let the workers finish, and check with another one that nothing was lost or counted twice."""
    cluster.broker.before = None
    cluster.clock.advance(TRANSACTION_SECONDS + 1)
    cluster.run(*workers)
    for worker in workers:
        worker.close()
    databases = MemoryDatabases()
    last = cluster.worker(databases)
    cluster.join(last, len(cluster.inputs))
    last.close()
    cluster.check()
    cluster.check_state(databases)


def while_waiting(cluster: Cluster, action: Callable[[], None]) -> None:
    """Call an action in each ``keep_alive`` of a client, but not in nested calls."""

    def hook(reached: Step) -> None:
        if reached == "keep_alive":
            cluster.broker.before = None
            try:
                action()
            finally:
                cluster.broker.before = hook

    cluster.broker.before = hook


def failing(times: int, on: Callable[[Any], bool] = lambda _: True) -> Callable[[Any], None]:
    """Raises for matching items, a given number of times, then accepts everything."""
    left = [times]

    def fail(item: Any) -> None:
        if on(item) and left[0] > 0:
            left[0] -= 1
            raise ConnectionError("not yet")

    return fail


@pytest.mark.parametrize("partition", range(PARTITIONS))
@pytest.mark.parametrize("place", ["in_slice", "at_commit"])
def test_a_member_that_joins_while_user_code_waits_changes_no_count(place, partition):
    # Some of the held partitions stay: the slice of one that stays is abandoned and begun again too.
    pause = Pause()
    cluster = Cluster(counting(pause, commit_interval=100.0))
    cluster.send(
        *[Sent("in", number, f"{number}x", "a", 100) for number in range(PARTITIONS) for _ in range(3)]
    )
    first = cluster.worker()
    cluster.join(first, 3 * PARTITIONS)
    cluster.run(first)
    setattr(pause, place, failing(6))
    second: list[Worker] = []

    def join() -> None:
        if not second:
            second.append(cluster.worker())
        second[0].run_once()

    while_waiting(cluster, join)
    cluster.send(*[Sent("in", partition, f"{partition}x", "a", 100) for _ in range(5)])
    for _ in range(10):
        first.run_once()
    assert second
    finish(cluster, first, *second)


@pytest.mark.parametrize("place", ["in_slice", "at_commit"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_member_that_loses_its_partitions_while_user_code_waits_commits_none_of_it(place, frozen):
    pause = Pause()
    cluster = Cluster(counting(pause))
    cluster.send(*some(30))
    first = cluster.worker()
    cluster.join(first, 3 * PARTITIONS)
    setattr(pause, place, failing(8))
    other: list[Worker] = []

    def lose() -> None:
        if not other:
            cluster.expire(first)
            other.append(cluster.worker())
        if frozen:
            cluster.run(other[0])

    cluster.send(*some(10, begin=30))
    while_waiting(cluster, lose)
    for _ in range(10):
        first.run_once()
    assert other
    finish(cluster, first, *other)


class Idle:
    """A member that does nothing with its partitions."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        pass

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        pass

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        pass


@pytest.mark.parametrize("error", [TransactionAborted, OutcomeUnknown, Retriable])
@pytest.mark.parametrize("step", ["produce", "send_offsets", "commit.before", "commit.after"])
def test_a_task_that_loses_one_of_its_partitions_in_a_failing_commit_continues_from_what_is_committed(
    step, error
):
    if (step, error) == ("commit.after", TransactionAborted):
        return
    cluster = Cluster(
        counting(None, ("in", "other"), grace=1_000_000, commit_interval=100.0, shortest_commit_interval=5.0),
        topics=("in", "other"),
        grace=1_000_000,
    )
    cluster.send(*some(8, topics=("in", "other")))
    first = cluster.worker()
    cluster.join(first, 4 * PARTITIONS)
    cluster.run(first)
    cluster.send(*some(40, begin=8, topics=("in", "other")))
    for _ in range(10):
        first.run_once()
    assert cluster.lag() > 0
    # Another member wants one topic only: one partition of a task is revoked and assigned again while the
    # other stays.
    member = cluster.broker.consumer(GroupSettings(group=cluster.app.name))
    member.subscribe(["other"], Idle())
    member.keep_alive()
    held = set(first.progress)
    trouble = cluster.broker.before = Trouble(step, error, [1])
    first.run_once()
    cluster.broker.before = None
    assert trouble.seen
    assert {place.topic for place in held - set(first.progress)} == {"other"}
    member.close()
    finish(cluster, first)


def test_a_partition_without_records_is_still_known_to_be_at_its_end_after_a_rewind():
    cluster = Cluster(
        counting(None, ("in", "other"), grace=1_000_000), topics=("in", "other"), grace=1_000_000
    )
    worker = cluster.worker()
    cluster.send(*some(20))
    cluster.broker.before = Trouble("produce", TransactionAborted, [1])
    cluster.run(worker)
    finish(cluster, worker)


def test_workers_that_exchange_their_tasks_again_and_again_count_each_record_once():
    cluster = Cluster(counting())
    disks = [MemoryDatabases(), MemoryDatabases()]
    workers = [cluster.worker(disks[0], slot=0)]
    for number in range(12):
        cluster.send(*some(10, begin=number * 10, seed=number))
        for _ in range(5):
            for worker in workers:
                worker.run_once()
        if number % 2 == 0:
            workers.append(cluster.worker(disks[number // 2 % 2 ^ 1], slot=number // 2 % 2 ^ 1))
        else:
            workers.pop(0).close()
    finish(cluster, *workers)


@pytest.mark.parametrize("place", ["in_slice", "at_commit"])
@pytest.mark.parametrize("failures", [1, 5, 30])
def test_retries_of_tasks_with_stores_change_no_count(place, failures):
    pause = Pause()
    cluster = Cluster(counting(pause))
    worker = cluster.worker()
    cluster.join(worker, 3 * PARTITIONS)
    cluster.send(*some(20))
    cluster.run(worker)
    setattr(pause, place, failing(failures))
    cluster.send(*some(40, begin=20))
    cluster.run(worker)
    finish(cluster, worker)


def test_a_retry_commits_what_is_whole_before_it_waits():
    pause = Pause()
    cluster = Cluster(counting(pause, commit_interval=100.0, shortest_commit_interval=5.0))
    cluster.send(Sent("in", 0, "0x", "a", 1))
    worker = cluster.worker()
    cluster.join(worker, 3 * PARTITIONS)
    cluster.run(worker)
    cluster.send(Sent("in", 0, "0x", "b", 2))
    worker.run_once()
    assert cluster.values("echo") == Counter(["a-0"])
    committed: list[Counter[str]] = []
    while_waiting(cluster, lambda: committed.append(cluster.values("echo")))
    pause.in_slice = failing(2)
    cluster.send(Sent("in", 0, "0x", "c", 3))
    worker.run_once()
    assert committed[0] == Counter(["a-0", "b-1"])
    finish(cluster, worker)


@pytest.mark.parametrize("stopped", [1, 4, 9])
def test_a_stop_in_the_middle_of_a_wait_loses_nothing(stopped):
    pause = Pause()
    cluster = Cluster(counting(pause))
    cluster.send(*some(30))
    worker = cluster.worker()
    seen = 0

    def stop(_: Any) -> None:
        nonlocal seen
        if (seen := seen + 1) == stopped:
            worker.request_stop()
            raise ConnectionError

    pause.in_slice = stop
    for _ in range(20):
        worker.run_once()
    worker.close()
    assert worker.state is State.STOPPED
    pause.in_slice = lambda _: None
    finish(cluster, cluster.worker())


@pytest.mark.parametrize("size", [1, 3, 1_000])
def test_a_task_with_two_topics_takes_records_by_their_times_whatever_a_poll_brings(size):
    app = App("merged", max_poll_records=size, commit_interval=0.05)
    lines = app.stream(["in", "other"], key=Text(), value=Text())
    lines.process(Tally, stores=[key_value_store("tally")]).to("tally", value=Text())
    lines.to("order")
    cluster = Cluster(app, topics=("in", "other"), outputs=("tally", "order"))
    records = [record._replace(partition=0) for record in some(60, topics=("in", "other"))]
    for topic in ("other", "in"):
        cluster.send(*[record for record in records if record.topic == topic])
    names = [f"{record.letter}-{number}" for number, record in enumerate(cluster.sent)]
    worker = cluster.worker()
    cluster.run(worker)
    worker.close()
    lanes = {
        topic: [item for item in zip(cluster.sent, names, strict=True) if item[0].topic == topic]
        for topic in ("in", "other")
    }
    expected = []
    while heads := [topic for topic in lanes if lanes[topic]]:
        first = min(heads, key=lambda topic: (lanes[topic][0][0].time, topic))
        expected.append(lanes[first].pop(0)[1])
    by_partition = [
        value.decode()
        for fetched in read_to_end(cluster.broker, ["order"])
        for value in fetched.values()
        if value is not None
    ]
    # Each record has one of three keys; the order is compared within each key.
    for key in {record.key for record in cluster.sent}:
        own = {name for record, name in zip(cluster.sent, names, strict=True) if record.key == key}
        assert [name for name in by_partition if name in own] == [name for name in expected if name in own]


def test_what_was_consumed_of_a_repartition_topic_is_deleted():
    cluster = Cluster(counting())
    internal = [item for item in cluster.inputs if item.topic.endswith("-repartition")]
    assert len(internal) == 2 * PARTITIONS
    worker = cluster.worker()
    cluster.send(*some(40))
    cluster.run(worker)
    assert set(cluster.admin.beginning_offsets(internal).values()) == {0}
    cluster.clock.advance(PURGE_SECONDS)
    cluster.send(*some(40, begin=40))
    cluster.run(worker)
    beginnings = cluster.admin.beginning_offsets(internal)
    committed = cluster.admin.committed_offsets(cluster.app.name)
    assert max(beginnings.values()) > 0
    assert all(beginnings[item] <= committed.get(item, 0) for item in internal)
    assert set(cluster.admin.beginning_offsets([TopicPartition("in", 0)]).values()) == {0}
    finish(cluster, worker)


def test_topics_between_subtopologies_have_as_many_partitions_as_the_largest_input():
    app = App("derived")
    app.stream(["in", "other"], key=Text(), value=Text()).group_by(str, value=Text()).count("counts").to(
        "out"
    )
    cluster = Cluster(app, topics=("in", "other"), outputs=("out",))
    assert cluster.partitions["derived-counts-repartition"] == PARTITIONS
    assert cluster.admin.topics()["derived-counts-changelog"].partitions == PARTITIONS


def test_a_database_that_fails_ends_the_worker_and_the_next_one_goes_on(tmp_path):
    cluster = Cluster(counting())
    cluster.send(*some(30))
    kept = MemoryDatabases()
    writes = 0

    def full(moment: str) -> None:
        nonlocal writes
        if moment == "before" and (writes := writes + 1) == 20:
            raise StateError("no space left")

    worker = cluster.worker(MortalDatabases(kept, full))
    with pytest.raises(StateError, match="no space left"):
        cluster.run(worker)
    kept.close()
    cluster.expire(worker)
    worker = cluster.worker(kept)
    finish(cluster, worker)


def test_what_is_kept_of_tasks_that_went_elsewhere_is_deleted_in_time(tmp_path):
    cluster = Cluster(counting(state_cleanup_delay=0.01))
    databases = RocksDatabases(tmp_path, 16_000_000)
    first = cluster.worker(databases)
    cluster.send(*[Sent("in", number % PARTITIONS, f"k{number}", "a", number) for number in range(40)])
    cluster.run(first)
    second = cluster.worker()
    cluster.run(first, second)

    def kept() -> set[str]:
        return {place.name for place in (tmp_path / "windows").iterdir()}

    for _ in range(2_000):
        first.run_once()
        second.run_once()
        if len(kept()) == PARTITIONS // 2:
            break
    assert kept() == {str(task.partition) for task in first.held}
    first.close()
    second.close()
    cluster.check()


def test_a_worker_that_has_processed_nothing_writes_no_changelog_as_it_stops():
    """Changes for a new schema are written with the first offsets: without offsets, a zombie is not
    fenced.
    """
    app = App("fresh")
    app.stream("in", key=Text(), value=Text()).group_by_key().count("counts").to("out")
    cluster = Cluster(app, outputs=("out",))
    cluster.send(*[Sent("in", number % PARTITIONS, "k", "a", number) for number in range(40)])
    worker = cluster.worker()
    stopping = False

    def stop(reached: Step) -> None:
        nonlocal stopping
        if reached == "poll" and len(worker.tasks) == PARTITIONS:
            stopping = True
            worker.request_stop()

    cluster.broker.before = stop
    while not stopping:
        worker.run_once()
    cluster.broker.before = None
    worker.close()
    assert list(read_to_end(cluster.broker, ["fresh-counts-changelog"])) == []
    assert cluster.admin.committed_offsets("fresh") == {}
    worker = cluster.worker()
    cluster.run(worker)
    worker.close()
    assert list(read_to_end(cluster.broker, ["fresh-counts-changelog"]))
    assert sum(cluster.admin.committed_offsets("fresh").values()) == 40
