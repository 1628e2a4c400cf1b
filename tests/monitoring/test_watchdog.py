"""What the watchdog reports as a stall, on the in-memory broker with a manual clock."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Bytes, Text, key_value_store, retry, skip
from streams.durations import seconds
from streams.errors import BrokerUnreachable, Stalled, TransactionAborted
from streams.events import Event
from streams.monitoring.watchdog import Watchdog
from streams.process.stacks import MOST_CHARACTERS, format_stacks
from streams.records import Output, TopicPartition
from tests.support.cluster import Broker, MemoryCluster
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from streams.broker import Isolation
    from streams.broker.memory import MemoryAdmin, MemoryProducer
    from streams.monitoring.watchdog import Stall

TIMEOUT = 60.0
PLACE = TopicPartition("in", 0)
PATIENCE = 20.0


class Distant(Broker):
    """A broker whose admin client can be made unreachable."""

    away = False

    def admin(self) -> MemoryAdmin:
        admin = super().admin()
        ends = admin.end_offsets

        def end_offsets(
            partitions: Collection[TopicPartition], isolation: Isolation = "read_committed"
        ) -> dict[TopicPartition, int]:
            if self.away:
                raise BrokerUnreachable("no broker answers at nowhere:9092")
            return ends(partitions, isolation)

        admin.end_offsets = end_offsets  # type: ignore[method-assign]  # of this one alone
        return admin


class Site(MemoryCluster):
    """An app's topics, a worker, and its watchdog."""

    broker: Distant

    def __init__(self, app: App) -> None:
        super().__init__({"in": 1, "other": 1, "out": 1})
        self.app = app
        self.worker = self.make_worker(
            app,
            "slot",
            transaction_timeout=10_000.0,
            partitions=self.prepare(app, create_outputs=False),
            wall_clock=self.clock.milliseconds,
        )
        self.asked_to_stop = threading.Event()
        request_stop = self.worker.request_stop

        def note() -> None:
            request_stop()
            self.asked_to_stop.set()

        self.worker.request_stop = note  # type: ignore[method-assign]  # of this one alone
        self.ended: list[int] = []
        self.end = threading.Event()
        self.watchdog = Watchdog(
            self.worker, self.broker, app.settings, clock=self.clock, end_process=self._ended
        )
        self.worker.start()

    def make_broker(self, **options: Any) -> Distant:
        return Distant(**options)

    def _ended(self, code: int) -> None:
        self.ended.append(code)
        self.end.set()

    def send(self, *values: str, topic: str = "in", time: int = 0) -> None:
        encoded: list[bytes | None] = [value.encode() for value in values]
        self.write(Output(topic, encoded, encoded, [time] * len(values)))

    def open_transaction(self, *values: str, topic: str = "in") -> MemoryProducer:
        """Write in a transaction that is never ended."""
        producer = self.broker.producer(transactional_id="another", transaction_timeout=1e9)
        producer.init_transactions(1)
        producer.begin()
        encoded: list[bytes | None] = [value.encode() for value in values]
        producer.produce(Output(topic, encoded, encoded, [0] * len(values)))
        return producer

    def pass_time(self, seconds: float, step: float = 1.0, *, turns: int = 1) -> tuple[Stall, ...]:
        """Run the worker and the watchdog for this time, and return the last stalls."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            for _ in range(turns):
                self.worker.run_once()
            self.clock.advance(step)
            self.watchdog.check()
        return self.watchdog.stalls

    def hang(self, seconds: float, step: float = 1.0) -> tuple[Stall, ...]:
        """Let time pass only for the watchdog, as if the worker's thread hung at the call."""

        def look() -> None:
            until = self.clock.now + seconds
            while self.clock.now < until:
                self.clock.advance(step)
                self.watchdog.check()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return self.watchdog.stalls


def copying(
    work: Callable[[str], str] = lambda value: value, *, on_error: Any = None, **settings: Any
) -> App:
    app = App("copy", **{"stall_timeout": TIMEOUT, "poll_deadline": 1e9, **settings})
    step = app.stream("in", value=Text()).map(work, name="work", on_error=on_error or skip)
    step.to("out", value=Text())
    return app


# --- what is a stall


def test_a_function_that_hangs_is_logged_once_with_its_stack_and_once_when_it_is_over():
    def work(value: str) -> str:
        if value == "hangs":
            seen.append(site.hang(30))
            seen.append(site.hang(60))
        return value

    seen: list[tuple[Stall, ...]] = []
    site = Site(copying(work))
    site.pass_time(5)
    site.send("fine", "hangs", "after")
    with capture_logs() as logs:
        site.pass_time(5)
    early, late = seen
    assert early == ()
    (stall,) = late
    assert (stall.partition, stall.position, stall.lag, stall.fixed_by_restart) == (PLACE, 0, 3, True)
    assert TIMEOUT < stall.seconds < 100
    assert "work (" in stall.reason
    assert "test_watchdog.py" in stall.reason
    (event,) = [entry for entry in logs if entry["event"] == Event.PARTITION_STALLED]
    assert (event["partition"], event["position"], event["lag"]) == ("in-0", 0, 3)
    assert event["log_level"] == "error"
    assert "site.hang(60)" in event["stack"]
    (over,) = [entry for entry in logs if entry["event"] == Event.PARTITION_RECOVERED]
    assert over["partition"] == "in-0"
    assert site.watchdog.stalls == ()


def test_the_stacks_name_threads_and_functions_and_are_bounded():
    def a_function_to_be_found(depth: int) -> None:
        if depth:
            a_function_to_be_found(depth - 1)
        else:
            ready.wait(PATIENCE)
            leave.wait(PATIENCE)

    leave = threading.Event()
    ready = threading.Barrier(31)
    threads = [
        threading.Thread(target=a_function_to_be_found, args=(100,), name=f"deep-{number}", daemon=True)
        for number in range(30)
    ]
    for thread in threads:
        thread.start()
    ready.wait(PATIENCE)
    give_up = time.monotonic() + PATIENCE
    while "leave.wait(PATIENCE)" not in (text := format_stacks(threads[7].ident)):
        assert time.monotonic() < give_up, text
    leave.set()
    for thread in threads:
        thread.join()
    assert text.startswith("thread deep-7:\n")
    assert "a_function_to_be_found" in text
    assert "leave.wait(PATIENCE)" in text
    assert text.count("thread deep-") < 30
    assert text.endswith("more threads")
    assert len(text) <= MOST_CHARACTERS + 200


def test_a_record_that_is_retried_for_ever_is_a_stall_with_its_error():
    def work(value: str) -> str:
        seen.append(site.watchdog.check())
        raise ValueError("the service is down")

    seen: list[tuple[Stall, ...]] = []
    site = Site(
        copying(work, on_error=retry(40, backoff=seconds(3.0), longest_backoff=seconds(3.0), then=skip))
    )
    site.pass_time(5)
    site.send("poison")
    site.pass_time(5)
    assert seen[5] == ()
    (stall,) = seen[-1]
    assert "step 'work' is being retried: ValueError: the service is down" in stall.reason
    assert not stall.fixed_by_restart


def test_a_transaction_that_never_ends_hides_later_records():
    site = Site(copying())
    site.send("one")
    site.pass_time(5)
    producer = site.open_transaction("two")
    site.send("three")
    assert site.pass_time(TIMEOUT - 10) == ()
    (stall,) = site.pass_time(20)
    assert "transaction that began at offset 1 is still open" in stall.reason
    assert (stall.position, stall.lag) == (1, 2)
    assert not stall.fixed_by_restart
    producer.abort(1)
    assert site.pass_time(5) == ()


def test_a_partition_that_stays_paused_brings_nothing():
    site = Site(copying(stall_exit=False))
    site.pass_time(5)
    consumer = site.consumer_of(site.worker)
    consumer.pause([PLACE])
    site.send("one")
    assert site.pass_time(TIMEOUT - 10) == ()
    (stall,) = site.pass_time(20)
    assert (stall.reason, stall.fixed_by_restart) == ("polls return no records of it", True)
    consumer.resume([PLACE])
    assert site.pass_time(5) == ()


def test_a_consumer_that_knows_of_no_end_is_found_out_by_asking_the_broker():
    site = Site(copying())
    site.send("one")
    site.pass_time(5)
    consumer = site.consumer_of(site.worker)
    consumer.pause([PLACE])
    consumer.known_ends = lambda _: {}
    site.send("two")
    assert site.pass_time(TIMEOUT / 2) == ()
    (stall,) = site.pass_time(TIMEOUT + 5)
    assert (stall.position, stall.lag) == (1, 1)


def test_records_that_wait_for_those_of_another_input_say_so():
    app = App("join", stall_timeout=TIMEOUT, poll_deadline=1e9)
    prices = app.table("other", key=Bytes(), value=Bytes(), store="prices")
    app.stream("in", value=Bytes()).left_join(prices, lambda left, right: left).to("out", value=Bytes())
    site = Site(app)
    consumer = site.consumer_of(site.worker)
    poll = consumer.poll
    # As if no end were known yet: records may be on their way.
    consumer.poll = lambda *given: poll(*given)._replace(ends={})
    site.pass_time(5)
    site.send("later", topic="other", time=100)
    other = TopicPartition("other", 0)
    consumer.pause([other])
    consumer.resume = lambda _: None
    site.send("first")
    stalls = {stall.partition: stall for stall in site.pass_time(TIMEOUT + 10)}
    assert "wait for earlier event times of other-0" in stalls[PLACE].reason
    assert other in stalls


def test_a_broker_that_does_not_answer_is_a_stall_that_no_restart_fixes():
    site = Site(copying())
    site.send("one")
    site.pass_time(5)
    site.broker.away = True
    assert site.pass_time(TIMEOUT) == ()
    (stall,) = site.pass_time(TIMEOUT / 2)
    assert "no broker answers" in stall.reason
    assert (stall.lag, stall.fixed_by_restart) == (None, False)
    site.broker.away = False
    assert site.pass_time(TIMEOUT / 2) == ()


def test_commits_that_never_succeed_are_a_stall_though_positions_move():
    site = Site(copying())
    site.pass_time(5)

    def before(step: str) -> None:
        if step == "commit.before":
            raise TransactionAborted("as told by the test")

    site.broker.before = before
    site.send("one", "two")
    assert site.pass_time(TIMEOUT / 2) == ()
    (stall,) = site.pass_time(TIMEOUT)
    assert "no commit succeeded" in stall.reason
    site.broker.before = None
    assert site.pass_time(5) == ()


def test_a_restore_without_progress_is_a_stall_and_one_with_progress_is_none():
    app = App("count", stall_timeout=TIMEOUT, poll_deadline=1e9)
    app.stream("in", value=Text()).process(Keeper, name="keep", stores=[key_value_store("kept")]).to("out")
    site = Site(app)
    changelog = "count-kept-changelog"
    # A restore waits for the end of a transaction that was left open.
    site.worker.close()
    again = Site.__new__(Site)
    again.__dict__.update(site.__dict__)
    producer = site.open_transaction("left open", topic=changelog)
    again.worker = site.make_worker(app, "slot", transaction_timeout=10_000.0, partitions={"in": 1})
    again.watchdog = Watchdog(again.worker, site.broker, app.settings, clock=site.clock)
    again.worker.start()
    assert again.pass_time(TIMEOUT - 10) == ()
    (stall,) = again.pass_time(20)
    assert "the restore of task 0_0 is stuck at 0 of" in stall.reason
    producer.abort(1)
    assert again.pass_time(5) == ()


class Keeper:
    """Keeps its input."""

    def process(self, record: Any, context: Any) -> None:
        context.store("kept").put(record.value.encode(), record.value.encode())
        context.forward(record)


# --- what is none


def test_a_quiet_partition_is_no_stall():
    site = Site(copying())
    site.send("one")
    assert site.pass_time(5 * TIMEOUT) == ()


def test_a_marker_after_the_last_record_is_not_lag():
    site = Site(copying())
    site.open_transaction("one", "two").commit(1)
    site.pass_time(5 * TIMEOUT)
    assert site.watchdog.stalls == ()
    assert site.worker.progress[PLACE].position == 3
    site.open_transaction("never").abort(1)
    assert site.pass_time(5 * TIMEOUT) == ()


def test_slow_functions_are_no_stall_while_records_get_through():
    def work(value: str) -> str:
        for _ in range(25):
            site.clock.advance(1)
            stalls.extend(site.watchdog.check())
        return value

    stalls: list[Stall] = []
    site = Site(copying(work))
    site.send(*map(str, range(20)))
    site.pass_time(20 * 25)
    assert stalls == []


def test_lag_that_grows_is_no_stall_while_the_position_moves():
    site = Site(copying(max_poll_records=1))
    for _ in range(20):
        site.send(*map(str, range(20)))
        assert site.pass_time(TIMEOUT / 4, step=10) == ()


def test_a_released_partition_is_no_longer_stalled():
    site = Site(copying())
    site.pass_time(5)
    consumer = site.consumer_of(site.worker)
    consumer.pause([PLACE])
    site.send("one")
    assert site.pass_time(TIMEOUT + 10) != ()
    site.broker.expire(consumer)
    with capture_logs() as logs:
        site.pass_time(5)
    assert site.watchdog.stalls == ()
    assert [entry for entry in logs if entry["event"] == Event.PARTITION_STALLED] == []


# --- the end of the process


def test_a_hanging_function_ends_the_process_if_stall_exit_is_set():
    def work(value: str) -> str:
        site.hang(TIMEOUT + 10)
        assert site.end.wait(PATIENCE)
        return value

    site = Site(copying(work, stall_exit=True, shutdown_timeout=0.2))
    site.send("hangs")
    site.pass_time(5)
    assert site.ended == [12]
    with pytest.raises(Stalled, match="in-0 at 0") as raised:
        site.watchdog.raise_if_fatal()
    assert raised.value.exit_code == 12


def test_a_worker_that_can_still_stop_is_only_requested_to():
    site = Site(copying(stall_exit=True, shutdown_timeout=PATIENCE))
    site.pass_time(5)
    consumer = site.consumer_of(site.worker)
    consumer.pause([PLACE])
    site.send("one")
    site.pass_time(TIMEOUT + 10)
    assert site.asked_to_stop.wait(PATIENCE)
    site.worker.close()
    site.watchdog.close()
    assert site.ended == []
    with pytest.raises(Stalled):
        site.watchdog.raise_if_fatal()


@pytest.mark.parametrize("stall_exit", [False, True])
def test_a_stall_that_a_restart_does_not_fix_ends_nothing(stall_exit):
    site = Site(copying(stall_exit=stall_exit))
    site.pass_time(5)
    site.open_transaction("one")
    assert site.pass_time(TIMEOUT + 20) != ()
    site.watchdog.raise_if_fatal()
    assert not site.asked_to_stop.is_set()
