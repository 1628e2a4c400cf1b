"""Processors with stores and schedules: their state, its rollback, and when they are called."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Json, Record, Text, Tumbling, dead_letter, fail, key_value_store, retry, skip
from streams.durations import milliseconds, seconds
from streams.errors import OutcomeUnknown, ProcessingError, TopologyError, TransactionAborted
from streams.records import Output
from streams.testing import TopologyDriver
from tests.support.cluster import MemoryCluster

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams import ErrorPolicy
    from streams.broker.memory import Step
    from streams.operators.processor import Context
    from streams.records import Batch
    from streams.runtime.worker import Worker


class Counter:
    """Counts its keys; a value ``bad`` fails after it was counted and forwarded."""

    def open(self, context: Context) -> None:
        self.counts = context.store("counts")

    def process(self, record: Record[Any, Any], context: Context) -> None:
        number = (self.counts.get(record.key) or 0) + 1
        self.counts.put(record.key, number)
        context.forward(replace(record, value=f"{record.key}{number}"))
        if record.value == "bad":
            raise ValueError("bad")
        if record.value == "forget":
            self.counts.delete(record.key)


class BatchCounter:
    """As ``Counter``, a batch at a time."""

    def open(self, context: Context) -> None:
        self.counts = context.store("counts")
        self.calls: list[int] = []

    def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
        self.calls.append(len(batch))
        known = dict(zip(batch.keys, self.counts.get_many(batch.keys), strict=True))
        values = []
        for key in batch.keys:
            known[key] = (known[key] or 0) + 1
            values.append(f"{key}{known[key]}")
        self.counts.put_many(known)
        context.forward(batch.with_values(values))
        if "bad" in batch.values:
            raise ValueError("bad")


def counting(processor: Callable[[], Any], on_error: ErrorPolicy = fail) -> App:
    app = App("count", dead_letter_limit=1.0)
    app.stream("in", key=Text(), value=Text()).process(
        processor, stores=[key_value_store("counts")], on_error=on_error
    ).to("out", value=Text())
    return app


def records(*values: str, key: str = "k") -> list[Record[Any, Any]]:
    return [Record(key, value, number) for number, value in enumerate(values)]


@pytest.mark.parametrize("processor", [Counter, BatchCounter])
def test_what_is_put_is_found_again_also_after_a_restart(processor):
    driver = TopologyDriver(counting(processor))
    driver.send_all("in", records("x", "x"))
    driver.restart()
    driver.send_all("in", records("x"))
    assert driver.values("out") == ["k1", "k2", "k3"]
    assert driver.store("counts") == {"k": 3}


@pytest.mark.parametrize("processor", [Counter, BatchCounter])
@pytest.mark.parametrize("policy", [dead_letter, skip])
def test_a_failing_record_is_rolled_back_and_the_others_are_kept(processor, policy):
    driver = TopologyDriver(counting(processor, policy))
    driver.send_all("in", records("x", "bad", "x", "bad", "x"))
    assert driver.values("out") == ["k1", "k2", "k3"]
    assert driver.store("counts") == {"k": 3}
    assert len(driver.dead_letters()) == (2 if policy is dead_letter else 0)


@pytest.mark.parametrize("processor", [Counter, BatchCounter])
def test_a_record_that_fails_under_policy_fail_leaves_nothing_of_its_slice(processor):
    driver = TopologyDriver(counting(processor))
    driver.send_all("in", records("x"))
    with pytest.raises(ProcessingError, match="offset 2"):
        driver.send_all("in", records("x", "bad"))
    assert driver.values("out") == ["k1"]
    assert driver.store("counts") == {"k": 1}


def test_each_attempt_of_a_retry_begins_with_what_was_there_before():
    seen: list[Any] = []

    class Failing(Counter):
        def process(self, record: Record[Any, Any], context: Context) -> None:
            seen.append(self.counts.get(record.key))
            super().process(record, context)
            if record.value == "hard" and len(seen) < 5:
                raise ConnectionError

    driver = TopologyDriver(counting(Failing, retry(9, backoff=seconds(1))))
    driver.send_all("in", records("x", "hard", "x"))
    assert seen == [None, 1, 1, 1, 1, 2]
    assert driver.values("out") == ["k1", "k2", "k3"]


def test_a_deletion_stays_deleted():
    driver = TopologyDriver(counting(Counter))
    driver.send_all("in", records("x", "x", "forget"))
    driver.restart()
    driver.send_all("in", records("x"))
    assert driver.values("out") == ["k1", "k2", "k3", "k1"]


def test_scans_see_what_the_open_slice_has_put():
    class Lister:
        def open(self, context: Context) -> None:
            self.store = context.store("s")

        def process(self, record: Record[Any, Any], context: Context) -> None:
            self.store.put(record.key, record.value)
            listed = " ".join(f"{key}={value}" for key, value in self.store.scan("b", "d"))
            context.forward(
                replace(record, value=listed + "/" + "".join(k for k, _ in self.store.prefix(b"c")))
            )

    app = App("list")
    app.stream("in", key=Text(), value=Text()).process(Lister, stores=[key_value_store("s")]).to(
        "out", value=Text()
    )
    driver = TopologyDriver(app)
    for key in ("c", "a"):
        driver.send("in", "1", key=key, timestamp=1)
    driver.send_all("in", [Record("b", "2", 1), Record("cc", "3", 1), Record("d", "4", 1)])
    assert driver.values("out") == ["c=1/c", "c=1/c", "b=2 c=1/c", "b=2 c=1 cc=3/ccc", "b=2 c=1 cc=3/ccc"]


def test_two_steps_share_a_store():
    class Reader:
        def open(self, context: Context) -> None:
            self.counts = context.store("counts")

        def process(self, record: Record[Any, Any], context: Context) -> None:
            context.forward(replace(record, value=str(self.counts.get(record.key))))

    app = App("share")
    lines = app.stream("in", key=Text(), value=Text())
    lines.process(Counter, stores=[key_value_store("counts")]).to("out", value=Text())
    app.stream("asked", key=Text(), value=Text()).process(Reader, stores=["counts"]).to(
        "answers", value=Text()
    )
    driver = TopologyDriver(app)
    driver.send("in", "x", key="k")
    driver.send("asked", "?", key="k")
    driver.send("asked", "?", key="other")
    assert driver.values("answers") == ["1", "None"]


def test_a_store_that_the_step_was_not_given_is_refused():
    class Curious:
        def open(self, context: Context) -> None:
            context.store("other")

    class Nosy(Curious, Counter):
        pass

    driver = TopologyDriver(counting(Nosy))
    with pytest.raises(TopologyError, match=r"has no store 'other'; its stores: counts"):
        driver.send("in", "x", key="k")


# --- schedules


class Reporter:
    """Counts records, and forwards the count at each scheduled call."""

    on: Any = "stream_time"
    every = timedelta(seconds=1)

    def open(self, context: Context) -> None:
        self.counts = context.store("counts")
        self.context = context
        self.cancel = context.schedule(self.every, self.report, on=self.on)

    def report(self, now: int) -> None:
        count = self.counts.get("all") or 0
        self.context.forward(Record("all", f"{now}:{count}", now))
        self.counts.put("all", 0)

    def process(self, record: Record[Any, Any], context: Context) -> None:
        if record.value == "stop":
            self.cancel()
            self.cancel()
        self.counts.put("all", (self.counts.get("all") or 0) + 1)


class WallReporter(Reporter):
    on = "wall_clock"


def test_stream_time_calls_at_each_multiple_that_is_passed():
    driver = TopologyDriver(counting(Reporter))
    for time in (100, 900, 1_000, 1_500, 4_200, 4_300, 5_000):
        driver.send("in", "x", key="k", timestamp=time)
    assert driver.values("out") == ["1000:3", "4200:2", "5000:2"]


def test_a_multiple_that_is_passed_over_a_restart_is_not_forgotten():
    driver = TopologyDriver(counting(Reporter))
    driver.send("in", "x", key="k", timestamp=900)
    driver.restart()
    driver.send("in", "x", key="k", timestamp=1_100)
    driver.restart()
    driver.send("in", "x", key="k", timestamp=1_900)
    assert driver.values("out") == ["1100:2"]


def test_a_schedule_that_is_cancelled_calls_no_more():
    driver = TopologyDriver(counting(Reporter))
    for time, value in ((100, "x"), (1_000, "stop"), (3_000, "x")):
        driver.send("in", value, key="k", timestamp=time)
    assert driver.values("out") == []


def test_the_wall_clock_calls_whether_or_not_records_come():
    driver = TopologyDriver(counting(WallReporter))
    driver.send("in", "x", key="k")
    driver.advance(milliseconds(999))
    assert driver.values("out") == []
    driver.advance(milliseconds(1))
    driver.advance(milliseconds(500))
    driver.advance(milliseconds(4_000))
    assert driver.values("out") == ["1000:1", "5500:0"]
    assert driver.store("counts") == {"all": 0}


def test_a_failing_scheduled_call_stops_the_worker_and_names_the_step():
    class Broken(WallReporter):
        def report(self, now: int) -> None:
            raise ValueError("no report")

    driver = TopologyDriver(counting(Broken))
    driver.send("in", "x", key="k")
    with pytest.raises(
        ProcessingError, match=r"failed in the call it scheduled every 1000 ms: ValueError: no report"
    ):
        driver.advance(milliseconds(1_000))
    assert driver.store("counts") == {"all": 1}


@pytest.mark.parametrize("every", [0, -5])
def test_a_schedule_needs_a_time(every):
    class Hasty(Reporter):
        pass

    Hasty.every = timedelta(milliseconds=every)
    driver = TopologyDriver(counting(Hasty))
    with pytest.raises(TopologyError, match="the minimum is 1 ms"):
        driver.send("in", "x", key="k")


def test_aggregates_in_a_row_tell_of_each_change():
    app = App("row")
    first = app.stream("in", key=Text(), value=Text()).group_by_key().count("first")
    second = first.to_stream().group_by_key().count("second")
    second.to_stream().group_by_key().window(Tumbling(milliseconds=1_000)).count(
        "third"
    ).final().group_by_key().count("fourth").to("out")
    second.to("between")
    driver = TopologyDriver(app)
    for number in range(4):
        driver.send("in", "x", key="k", timestamp=number * 1_000)
    assert driver.values("between") == [1, 2, 3, 4]
    assert driver.values("out") == [1, 2, 3]


def test_two_steps_downstream_of_one_that_assigns_times_agree_on_what_is_late():
    app = App("twice")
    timed = app.stream("in", key=Text(), value=Text()).map(int, timestamp=int)
    for number in range(2):
        windows = timed.filter(lambda _: True).group_by_key().window(Tumbling(milliseconds=1_000))
        windows.count(f"windows-{number}").final().to(f"out-{number}")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", str(time), 0) for time in (100, 900, 5_000, 200)])
    assert (
        [item.value for item in driver.values("out-0")]
        == [item.value for item in driver.values("out-1")]
        == [2]
    )
    assert driver.late() == {"windows-0": 1, "windows-1": 1}


# --- on the worker


class Site(MemoryCluster):
    """A memory broker on which a worker runs an app, with time that passes only by hand."""

    def __init__(self, app: App) -> None:
        self.app = app
        super().__init__({"in": 1, "out": 1})
        self.partitions = self.prepare(app, dead_letter_topic="letters", create_outputs=False)

    def worker(self) -> Worker:
        worker = self.make_worker(
            self.app, "slot", partitions=self.partitions, wall_clock=self.clock.milliseconds
        )
        worker.start()
        return worker

    def send(self, *times: int) -> None:
        self.write(Output("in", [b"k"] * len(times), [b"x"] * len(times), list(times), partition=0))

    def values(self) -> list[str]:
        return [value.decode() for value in self.payloads("out")]


@pytest.mark.parametrize(
    ("step", "error"),
    [
        *((step, TransactionAborted) for step in ("produce", "send_offsets", "commit.before")),
        *((step, OutcomeUnknown) for step in ("produce", "send_offsets", "commit.before", "commit.after")),
    ],
)
def test_a_call_on_stream_time_whose_commit_failed_comes_again(step, error):
    site = Site(counting(Reporter))
    worker = site.worker()
    site.send(100, 900)
    for _ in range(10):
        worker.run_once()
    failures = iter([error("made to fail")])

    def trouble(reached: Step) -> None:
        if reached == step and (failure := next(failures, None)):
            raise failure

    site.send(1_500, 1_600)
    site.broker.before = trouble
    for _ in range(30):
        worker.run_once()
    site.broker.before = None
    site.send(2_500)
    for _ in range(30):
        worker.run_once()
    worker.close()
    assert site.values() == ["1600:4", "2500:1"]


@pytest.mark.parametrize("error", [TransactionAborted, OutcomeUnknown])
def test_a_call_on_the_wall_clock_whose_commit_failed_comes_again(error):
    site = Site(counting(WallReporter))
    worker = site.worker()
    site.send(1, 2, 3)
    for _ in range(5):
        worker.run_once()
    failures = iter([error("made to fail")])

    def trouble(reached: Step) -> None:
        if reached == "commit.before" and (failure := next(failures, None)):
            raise failure

    site.broker.before = trouble
    site.clock.now += 1
    for _ in range(8):
        worker.run_once()
    if error is OutcomeUnknown:
        # The task was created again, and its schedule with it.
        site.clock.now += 1
        for _ in range(8):
            worker.run_once()
    worker.close()
    (value,) = site.values()
    assert value.endswith(":3")


def test_what_follows_a_call_on_the_wall_clock_may_wait_without_being_committed_by_half():
    attempts = 0

    def slow(value: Any) -> str:
        nonlocal attempts
        if (attempts := attempts + 1) in (2, 3, 4):
            raise ConnectionError("not yet")
        return str(value)

    class Twice(WallReporter):
        def report(self, now: int) -> None:
            for name in "ab":
                self.counts.put(name, (self.counts.get(name) or 0) + 1)
                self.context.forward(Record(name, self.counts.get(name), now))

    app = App("count", commit_interval=0.05)
    reports = app.stream("in", key=Text(), value=Text()).process(
        Twice, stores=[key_value_store("counts", value=Json())]
    )
    reports.map(slow, on_error=retry(20, backoff=seconds(2), longest_backoff=seconds(2))).to(
        "out", value=Text()
    )
    site = Site(app)
    worker = site.worker()
    site.send(1)
    for _ in range(5):
        worker.run_once()
    site.clock.now += 1
    # There are complete slices when the call's results have to wait, and their own commit fails.
    site.send(2)
    commits = 0

    def trouble(reached: Step) -> None:
        nonlocal commits
        if reached == "commit.before" and (commits := commits + 1) == 2:
            raise TransactionAborted("made to fail")

    site.broker.before = trouble
    for _ in range(60):
        worker.run_once()
        if len(site.values()) >= 2:
            break
    worker.request_stop()
    worker.close()
    values = site.values()
    assert values[:2] == ["1", "1"]
    assert values == [str(number // 2 + 1) for number in range(len(values))]
