"""What type checkers know of jobs; see ``test_types``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, assert_type

import pytest

from streams import (
    App,
    AsyncJob,
    Call,
    ConfigurationError,
    Handle,
    Job,
    Limit,
    Retry,
    TopologyError,
    days,
    minutes,
    seconds,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine


@dataclass
class Receipt:
    cents: int


app = App("typed-jobs")


@app.job
def plain(number: int) -> str:
    return str(number)


@app.job(retry=Retry(5, backoff=seconds(10)), key=lambda order_id, cents: order_id)
def charge(order_id: str, cents: int = 0, *, note: str | None = None) -> Receipt:
    return Receipt(cents)


@app.job(limit=Limit(rate=10, per=seconds(1)))
async def fetch(url: str) -> bytes | None:
    return url.encode()


def test_a_job_keeps_the_types_of_its_function():
    assert_type(plain(1), str)
    assert_type(charge("o-1", 500, note="x"), Receipt)
    assert_type(plain.call(1), Call[str])
    assert_type(charge.call("o-1", cents=5), Call[Receipt])
    assert_type(fetch.call("/"), Call[bytes | None])
    assert isinstance(plain, Job)
    assert isinstance(fetch, AsyncJob)
    coroutine: Coroutine[Any, Any, bytes | None] = fetch("/")
    coroutine.close()


def test_options_of_a_call_keep_the_types():
    later = charge.using(delay=days(90), unique=True)
    assert_type(later.call("o-1"), Call[Receipt])
    assert later is not charge
    assert charge.call("o-1").record.unique is None

    def enqueue() -> tuple[Handle[Receipt], Receipt, list[Handle[Receipt]], Handle[bytes | None]]:
        handle = later.enqueue("o-1", 500)
        return (
            handle,
            handle.result(timeout=seconds(5)),
            charge.enqueue_many([charge.call("o-1"), later.call("o-2")]),
            fetch.using(priority=5).enqueue("/"),
        )

    assert enqueue.__name__ == "enqueue"


def test_what_does_not_fit_is_refused_by_type_checkers_and_at_the_call():
    with pytest.raises(TypeError):
        charge.call(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        charge.call("o-1", centz=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="using\\(\\) has no option 'delai'"):
        charge.using(delai=days(1))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="job\\(\\) has no option 'retries'"):
        app.job(retries=3)(plain.function)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    with pytest.raises(TopologyError, match="must be a duration"):
        charge.using(delay=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="either delay= or at="):
        charge.using(delay=minutes(1), at=datetime.now(UTC))


def test_declarations_that_cannot_work_are_refused():
    with pytest.raises(TopologyError, match="cannot be a job"):
        app.job(lambda: None)
    app.job(name="twice")(plain.function)
    with pytest.raises(TopologyError, match="two jobs are named 'twice'"):
        app.job(name="twice")(charge.function)
    with pytest.raises(TopologyError, match="arguments of a job need names"):

        @app.job(name="many")
        def many(*numbers: int) -> None: ...

    with pytest.raises(ConfigurationError, match="Limit limits nothing"):
        Limit()
    with pytest.raises(ConfigurationError, match="whole number from 1"):
        Retry(0)
