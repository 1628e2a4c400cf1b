"""``map_async``: many calls at a time, with the results of one call after another."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st

from streams import (
    App,
    Json,
    ProcessingError,
    Record,
    Text,
    TopologyError,
    dead_letter,
    fail,
    retry,
    skip,
)
from streams.durations import seconds
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def driver_of(function: Callable[[Any], Awaitable[Any]], **options: Any) -> TopologyDriver:
    app = App("shop", dead_letter_limit=1.0)
    app.stream("in", key=Text(), value=Json()).map_async(function, name="call", **options).to(
        "out", value=Json()
    )
    return TopologyDriver(app)


def send(driver: TopologyDriver, values: list[Any], key: Callable[[Any], str | None] = str) -> None:
    driver.send_all("in", [Record(key(value), value, 0) for value in values])


class Flight:
    """How many calls are in flight, and in what order they begin and end."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.begun: list[Any] = []
        self.ended: list[Any] = []

    async def take(self, value: Any, seconds: float) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        self.begun.append(value)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.now -= 1
            self.ended.append(value)
        return value


def test_results_come_in_the_order_of_the_input_whichever_call_ends_first():
    flight = Flight()
    driver = driver_of(lambda value: flight.take(value, 0.001 * (50 - value)), concurrency=50)
    send(driver, list(range(50)))
    assert flight.ended != flight.begun
    assert [(record.key, record.value) for record in driver.read("out")] == [(str(n), n) for n in range(50)]


@pytest.mark.parametrize("concurrency", [1, 7, 100])
def test_no_more_calls_than_allowed_are_in_flight_and_all_of_these_are(concurrency):
    flight = Flight()
    driver = driver_of(lambda value: flight.take(value, 0.005), concurrency=concurrency)
    send(driver, list(range(60)))
    assert flight.most == min(concurrency, 60)
    assert flight.begun == list(range(60))


def test_slow_calls_do_not_hold_up_calls_for_other_keys():
    flight = Flight()
    driver = driver_of(lambda value: flight.take(value, 0.2 if value == 0 else 0.0), concurrency=4)
    send(driver, list(range(100)))
    assert flight.ended[-1] == 0
    assert driver.values("out") == list(range(100))


def test_calls_of_one_key_come_one_after_another_and_those_without_a_key_do_not():
    busy: Counter[str] = Counter()
    seen: dict[str, list[int]] = {}

    async def call(value: list[Any]) -> Any:
        key, number = value
        busy[key] += 1
        assert busy[key] == 1
        await asyncio.sleep(0.001 * (number % 3))
        seen.setdefault(key, []).append(number)
        busy[key] -= 1
        return value

    driver = driver_of(call)
    send(driver, [[f"k{n % 5}", n] for n in range(100)], key=lambda value: str(value[0]))
    assert len(driver.values("out")) == 100
    assert all(numbers == sorted(numbers) for numbers in seen.values())

    flight = Flight()
    driver = driver_of(lambda value: flight.take(value, 0.01))
    send(driver, list(range(30)), key=lambda value: None)
    assert flight.most == 30

    flight = Flight()
    driver = driver_of(lambda value: flight.take(value, 0.001 * (20 - value)), one_call_per_key=False)
    send(driver, list(range(20)), key=lambda value: "one")
    assert flight.most == 20
    assert driver.values("out") == list(range(20))


def test_keys_that_cannot_be_hashed_keep_their_order_too():
    flight = Flight()
    app = App("shop")
    app.stream("in", key=Json(), value=Json()).map_async(lambda value: flight.take(value, 0.002)).to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(["k", number % 2], number, 0) for number in range(8)])
    assert flight.most == 2
    assert driver.values("out") == list(range(8))


fates = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["good", "good", "raise", "cancel"])), max_size=40
)


@settings(max_examples=40)
@given(fates, st.integers(1, 5), st.booleans())
def test_results_and_failures_are_those_of_one_call_after_another(fates, concurrency, one_call_per_key):
    async def call(value: list[Any]) -> Any:
        number, fate = value
        await asyncio.sleep(0.0001 * (number % 4))
        if fate == "raise":
            raise ValueError("made to fail")
        if fate == "cancel":
            raise asyncio.CancelledError
        return number

    driver = driver_of(
        call,
        concurrency=concurrency,
        one_call_per_key=one_call_per_key,
        on_error=dead_letter,
    )
    records = [Record(f"k{key}", [number, fate], 0) for number, (key, fate) in enumerate(fates)]
    driver.send_all("in", records)
    assert driver.values("out") == [number for number, (_, fate) in enumerate(fates) if fate == "good"]
    letters = [Json().deserialize([letter.value]) for letter in driver.dead_letters()]
    assert [next(iter(letter))[0] for letter in letters] == [
        number for number, (_, fate) in enumerate(fates) if fate != "good"
    ]


def test_a_call_that_takes_too_long_is_cancelled_and_fails_alone():
    flight = Flight()
    driver = driver_of(
        lambda value: flight.take(value, 60 if value == 3 else 0.0),
        timeout=seconds(0.5),
        on_error=dead_letter,
    )
    begun = time.monotonic()
    send(driver, list(range(10)))
    assert time.monotonic() - begun < 5
    assert driver.values("out") == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    (letter,) = driver.dead_letters()
    headers = dict(letter.headers or ())
    assert headers["__streams.errors.exception"] == b"TimeoutError"
    assert headers["__streams.errors.message"] == b"no result within 0.5 s"
    assert flight.now == 0


def test_a_call_that_ignores_its_cancellation_is_abandoned():
    released = threading.Event()

    async def stubborn(value: int) -> int:
        while value == 1 and not released.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue
        return value

    driver = driver_of(stubborn, timeout=seconds(0.5), on_error=skip)
    send(driver, [0, 1, 2])
    released.set()
    assert driver.values("out") == [0, 2]
    assert driver.skipped() == {"call": 1}


def test_failures_are_tried_again_together_after_one_wait():
    calls: Counter[int] = Counter()

    async def call(value: int) -> int:
        calls[value] += 1
        if calls[value] <= value % 4:
            raise ConnectionError("not yet")
        return value

    driver = driver_of(call, on_error=retry(2, backoff=seconds(1.0), then=dead_letter))
    send(driver, list(range(8)))
    assert driver.values("out") == [0, 1, 2, 4, 5, 6]
    assert [letter.value for letter in driver.dead_letters()] == [b"3", b"7"]
    assert calls == {value: min(value % 4, 2) + 1 for value in range(8)}
    # Two waits for all of them: 1 s and 2 s.
    assert driver.clock == 3_000


def test_records_of_a_key_wait_for_one_that_is_tried_again():
    begun: list[int] = []

    async def call(value: int) -> int:
        begun.append(value)
        if value == 1 and begun.count(1) < 3:
            raise ConnectionError("not yet")
        return value

    driver = driver_of(call, on_error=retry(5, backoff=seconds(0.1)))
    send(driver, [0, 1, 2, 3], key=lambda value: "one" if value else "other")
    assert begun == [0, 1, 1, 1, 2, 3]
    assert driver.values("out") == [0, 1, 2, 3]


def test_under_fail_the_first_failing_record_is_named_and_later_calls_are_cancelled():
    cancelled: list[int] = []

    async def call(value: int) -> int:
        try:
            await asyncio.sleep({3: 0.05, 5: 0.0}.get(value, 30 if value > 5 else 0.01))
        except asyncio.CancelledError:
            cancelled.append(value)
            raise
        if value in {3, 5}:
            raise ValueError(f"cannot do {value}")
        return value

    driver = driver_of(call, concurrency=8, on_error=fail)
    begun = time.monotonic()
    with pytest.raises(ProcessingError, match=r"in-0 offset 3, .*ValueError: cannot do 3 \(.*test_map_async"):
        send(driver, list(range(100)))
    assert time.monotonic() - begun < 5
    assert cancelled
    assert set(cancelled) <= {6, 7, 8, 9, 10, 11, 12}
    assert not driver.topics


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_an_exception_that_ends_the_process_does_so_and_the_event_loop_continues(ending):
    async def call(value: int) -> int:
        await asyncio.sleep(0)
        if value == 2:
            raise ending
        return value

    with pytest.raises(ending):
        send(driver_of(call), [1, 2, 3])
    driver = driver_of(call)
    send(driver, [4, 5])
    assert driver.values("out") == [4, 5]


def test_each_call_has_the_callers_context_and_keeps_its_own():
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default="nothing")
    before: list[Any] = []

    async def call(value: int) -> bool:
        before.append(variable.get())
        variable.set(value)
        await asyncio.sleep(0.001)
        return bool(variable.get() == value)

    def run() -> list[Any]:
        variable.set("the worker's")
        driver = driver_of(call, concurrency=3)
        send(driver, list(range(10)))
        return driver.values("out")

    assert contextvars.copy_context().run(run) == [True] * 10
    assert before == ["the worker's"] * 10


def test_what_calls_share_lives_across_batches_and_drivers():
    made: list[asyncio.Queue[int]] = []

    async def call(value: int) -> int:
        if not made:
            made.append(asyncio.Queue())
        await made[0].put(value)
        return await made[0].get()

    for _ in range(2):
        driver = driver_of(call)
        send(driver, [1, 2])
        send(driver, [3])
        assert driver.values("out") == [1, 2, 3]
    assert len(made) == 1


def test_it_works_where_an_event_loop_runs_already():
    async def call(value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    async def main() -> list[Any]:
        driver = driver_of(call)
        send(driver, [1, 2])
        return driver.values("out")

    assert asyncio.run(main()) == [2, 3]


def test_what_is_no_awaitable_and_what_gives_one_are_failures_of_their_records():
    async def value_of(value: int) -> int:
        return value

    async def returns_one(value: int) -> Any:
        return value_of(value)

    def call(value: int) -> Any:
        return 7 if value == 1 else returns_one(2) if value == 2 else value_of(3)

    driver = driver_of(call, on_error=dead_letter)
    send(driver, [1, 2, 3])
    assert driver.values("out") == [3]
    messages = [dict(letter.headers or ())["__streams.errors.message"] for letter in driver.dead_letters()]
    assert messages[0] == b"map_async needs an awaitable, but the function returned 7"
    assert b"returns_one" not in (messages[1] or b"")
    assert b"value_of" in (messages[1] or b"")


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"concurrency": -1}, {"timeout": seconds(0)}, {"timeout": -seconds(1.0)}]
)
def test_bounds_that_make_no_sense_are_refused(options):
    async def call(value: int) -> int:
        return value

    with pytest.raises(TopologyError, match=r"concurrency of 1 or more and a timeout above 0 s"):
        driver_of(call, **options)


def test_a_function_that_cannot_be_awaited_is_refused():
    async def generate(value: int) -> Any:
        yield value

    with pytest.raises(
        TopologyError,
        match=r"step 'call' \(map_async\) was given .*generate \(.*does not return an awaitable",
    ):
        driver_of(generate)


def test_it_is_described_like_other_steps_and_types_of_results_are_known():
    async def look_up(value: int) -> int:
        return value

    app = App("shop")
    app.stream("in").map_async(look_up).to("out")
    assert "map_async-look_up: map_async look_up" in app.topology.describe()
