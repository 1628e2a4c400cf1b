"""Resources of workers and tasks are opened once, and closed whatever ends these."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Bytes, Context, Json, Record, StreamsError, Text, TopologyError, fail, skip
from streams.app import resources_of_worker
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.durations import milliseconds
from streams.errors import ProcessingError
from streams.records import Output
from streams.testing import TopologyDriver
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


class Diary:
    """An app with two resources and two processors that note what happens to them, and in which thread."""

    def __init__(self, **settings: Any) -> None:
        self.notes: list[str] = []
        self.threads: set[int] = set()
        self.failing: set[str] = set()
        self.app = App("diary", **settings)
        self.lower = self.app.resource(self.opener("lower"))
        self.upper = self.app.resource(self.opener("upper", self.lower.get))
        processed = self.app.stream("in", key=Bytes(), value=Text()).process(
            self.processor("first"), name="first", on_error=fail
        )
        processed.process(self.processor("second"), name="second").to("out", value=Text())

    def note(self, what: str) -> None:
        self.notes.append(what)
        self.threads.add(threading.get_ident())
        if what in self.failing:
            raise ValueError(f"cannot: {what}")

    def opener(
        self, name: str, needs: Callable[[], object] = lambda: None
    ) -> Callable[[], contextlib.AbstractContextManager[str]]:
        @contextmanager
        def opened() -> Iterator[str]:
            needs()
            self.note(f"open {name}")
            try:
                yield name
            finally:
                self.note(f"close {name}")

        return opened

    def processor(self, name: str) -> Callable[[], Any]:
        diary = self

        class Noting:
            def open(self, context: Context) -> None:
                diary.note(f"open {name}")

            def process(self, record: Record[bytes, str], context: Context) -> None:
                if record.value == f"fail {name}":
                    raise ValueError(record.value)
                record.value = f"{record.value} {diary.upper.get()}"
                context.forward(record)

            def close(self) -> None:
                diary.note(f"close {name}, {diary.lower.get()} is open")

        return Noting

    def run(self, folder: Path, *values: str) -> None:
        """Run one worker until all input is processed, or until it fails."""
        broker = MemoryBroker()
        broker.admin().create_topics([NewTopic(name=name, partitions=1) for name in ("in", "out")])
        producer = broker.producer()
        count = len(values)
        producer.produce(Output("in", [b"k"] * count, [value.encode() for value in values], [1] * count))
        producer.flush(1)
        stop, raised = threading.Event(), []

        def work() -> None:
            try:
                self.app.run(broker=broker, stop=stop)
            except BaseException as error:  # noqa: BLE001 - raised again below
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive() and sum(broker.admin().committed_offsets("diary").values()) != count:
            thread.join(0.02)
        stop.set()
        thread.join(30)
        if raised:
            raise raised[0]


OPENED = ["open lower", "open upper", "open second", "open first"]
CLOSED = ["close first, lower is open", "close second, lower is open", "close upper", "close lower"]


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    return Diary(state_dir=str(tmp_path))


def test_a_worker_opens_resources_before_tasks_and_closes_them_after_tasks(diary, tmp_path):
    diary.run(tmp_path, "a", "b")
    assert diary.notes == OPENED + CLOSED
    assert len(diary.threads) == 1


def test_a_worker_that_fails_closes_all(diary, tmp_path):
    with pytest.raises(ProcessingError, match="fail first"):
        diary.run(tmp_path, "a", "fail first")
    assert diary.notes == OPENED + CLOSED


def test_a_resource_that_cannot_be_opened_ends_the_worker_and_the_others_are_closed(diary, tmp_path):
    diary.failing = {"open upper"}
    with pytest.raises(ValueError, match="cannot: open upper") as raised:
        diary.run(tmp_path, "a")
    assert diary.notes == ["open lower", "open upper", "close lower"]
    assert raised.value.__notes__ == ["while resource 'opened' was opened"]


def test_a_processor_that_cannot_be_opened_ends_the_worker_and_the_others_are_closed(diary, tmp_path):
    diary.failing = {"open first"}
    with pytest.raises(ValueError, match="cannot: open first"):
        diary.run(tmp_path, "a")
    assert diary.notes == [*OPENED, *CLOSED[1:]]


def test_a_processor_that_cannot_be_closed_is_logged_and_ends_nothing(diary, tmp_path):
    diary.failing = {"close first, lower is open"}
    with capture_logs() as logs:
        diary.run(tmp_path, "a")
    assert diary.notes == OPENED + CLOSED
    (line,) = [line for line in logs if line["event"] == "close failed"]
    assert "step 'first', task 0_0: close() failed: ValueError: cannot" in line["error"]


def test_a_resource_that_cannot_be_closed_fails_the_run_after_the_others_are_closed(diary, tmp_path):
    diary.failing = {"close upper"}
    with pytest.raises(ValueError, match="cannot: close upper"):
        diary.run(tmp_path, "a")
    assert diary.notes == OPENED + CLOSED


def test_what_ended_the_worker_is_not_hidden_by_a_resource(diary, tmp_path):
    diary.failing = {"close upper", "close lower"}
    with pytest.raises(ProcessingError, match="fail first"):
        diary.run(tmp_path, "fail first")
    assert diary.notes == OPENED + CLOSED


def test_a_resource_is_told_of_the_error_and_cannot_suppress_it(tmp_path):
    told: list[BaseException | None] = []

    class Suppressing:
        def __enter__(self) -> int:
            return 1

        def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
            told.append(error)
            return True

    diary = Diary(state_dir=str(tmp_path))
    diary.app.resource(Suppressing)
    with pytest.raises(ProcessingError):
        diary.run(tmp_path, "fail first")
    assert isinstance(told[0], ProcessingError)


def test_the_driver_does_the_same(diary):
    with TopologyDriver(diary.app) as driver:
        driver.send("in", "a")
        assert driver.values("out") == ["a upper upper"]
        assert diary.notes == OPENED
    assert diary.notes == OPENED + CLOSED
    driver.close()
    assert diary.notes == OPENED + CLOSED


def test_a_driver_that_is_restarted_opens_and_closes_again(diary):
    driver = TopologyDriver(diary.app)
    driver.send("in", "a")
    driver.restart()
    driver.send("in", "b")
    driver.close()
    assert diary.notes == 2 * (OPENED + CLOSED)


def test_the_driver_raises_what_fails_in_closing(diary):
    diary.failing = {"close second, lower is open", "close lower"}
    driver = TopologyDriver(diary.app)
    driver.send("in", "a")
    with pytest.raises(ValueError, match="cannot: close lower") as raised:
        driver.close()
    assert isinstance(raised.value.__context__, ProcessingError)
    assert diary.notes == OPENED + CLOSED


def test_two_drivers_of_one_app_have_their_own(diary):
    numbers = iter(range(10))
    app = App("numbered")
    number = app.resource(lambda: contextlib.nullcontext(next(numbers)))
    app.stream("in", value=Text()).map(lambda value: [value, number.get()]).to("out")
    one, other = TopologyDriver(app), TopologyDriver(app)
    for driver in (one, other, one):
        driver.send("in", "a")
    assert one.values("out") == [["a", 0], ["a", 0]]
    assert other.values("out") == [["a", 1]]


def test_steps_timers_and_async_functions_get_the_resource():
    app = App("users")
    names = app.resource(lambda: contextlib.nullcontext({1: "ann"}))

    class Ticking:
        def open(self, context: Context) -> None:
            context.schedule(
                milliseconds(1000),
                lambda now: context.forward(Record(b"k", names.get()[1], now)),
                on="wall_clock",
            )

        def process(self, record: Record[bytes, int], context: Context) -> None:
            """Nothing: only the clock is of interest."""

    async def look_up(number: int) -> str:
        await asyncio.sleep(0)
        return names.get()[number]

    numbers = app.stream("in", key=Bytes(), value=Json(int))
    numbers.map(lambda number: names.get()[number]).to("mapped", value=Text())
    numbers.map_async(look_up, concurrency=2).to("awaited", value=Text())
    numbers.process(Ticking).to("ticked", value=Text())
    with TopologyDriver(app) as driver:
        driver.send("in", 1, key=b"k")
        driver.advance(milliseconds(1000))
        assert [driver.values(name) for name in ("mapped", "awaited", "ticked")] == [["ann"]] * 3


class Client:
    """An async resource that must be used in one event loop only."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.told: BaseException | None = None
        self.closed = False

    async def fetch(self, value: str) -> str:
        assert asyncio.get_running_loop() is self.loop
        if value == "bad":
            raise ValueError(value)
        return value.upper()


def fetching(clients: list[Client], *, openable: bool = True) -> App:
    app = App("fetching")

    @app.resource
    @asynccontextmanager
    async def client() -> AsyncIterator[Client]:
        if not openable:
            raise ValueError("no client")
        clients.append(Client())
        try:
            yield clients[-1]
        except BaseException as error:
            clients[-1].told = error
            raise
        finally:
            await asyncio.sleep(0)
            clients[-1].closed = True

    async def fetch(value: str) -> str:
        return await client.get().fetch(value)

    app.stream("in", value=Text()).map_async(fetch, concurrency=3, on_error=fail).to("out")
    return app


def test_an_async_resource_lives_in_the_event_loop_of_async_functions():
    clients: list[Client] = []
    with TopologyDriver(fetching(clients)) as driver:
        driver.send("in", "a")
        assert driver.values("out") == ["A"]
        assert [client.closed for client in clients] == [False]
    assert [client.closed for client in clients] == [True]
    assert clients[0].told is None


def test_an_async_resource_is_told_what_ended_the_work():
    clients: list[Client] = []
    app = fetching(clients)

    def work() -> None:
        # What runs an app's tasks opens its resources around them.
        with resources_of_worker(app):
            raise ProcessingError("ended")

    with pytest.raises(ProcessingError) as raised:
        work()
    assert clients[0].told is raised.value
    assert clients[0].closed


def test_an_async_resource_that_cannot_be_opened_says_why():
    with pytest.raises(ValueError, match="no client"):
        TopologyDriver(fetching([], openable=False)).send("in", "a")


def test_outside_of_a_worker_there_is_none():
    app = App("users")

    @app.resource
    @contextmanager
    def database() -> Iterator[str]:
        yield "connection"

    with pytest.raises(StreamsError, match=re.escape("resource 'database' of app 'users' is not open here")):
        database.get()


def no_context_manager() -> Iterator[int]:
    yield 1


async def asynchronous() -> None:
    """Not a context manager."""


def test_what_makes_no_context_manager_is_refused():
    app = App("users")
    app.stream("in", value=Text()).to("out")
    with pytest.raises(TopologyError, match="resource 'asynchronous'"):
        app.resource(asynchronous)  # type: ignore[arg-type]  # what is refused
    app.resource(no_context_manager)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(
        TopologyError, match=r"which is no context manager\n  hint: .*contextlib.contextmanager"
    ):
        TopologyDriver(app).send("in", "a")


def test_an_async_close_is_refused_with_its_step():
    class Closing:
        def process(self, record: Record[bytes, str], context: Context) -> None:
            """Nothing: it is refused before."""

        async def close(self) -> None:
            """Nothing would await it."""

    app = App("users")
    with pytest.raises(
        TopologyError, match=r"step 'closing' \(process\) was given .*close.*, which is async"
    ):
        app.stream("in", value=Text()).process(Closing, name="closing", on_error=skip).to("out")
