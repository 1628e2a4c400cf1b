"""Async functions where plain ones are needed: refused when a step is created, or failures of records."""

from __future__ import annotations

import asyncio
import functools
import types
from collections.abc import Awaitable  # noqa: TC003 - an annotation that is looked at when the test runs
from typing import TYPE_CHECKING, Any

import pytest

from streams import (
    App,
    ConfigurationError,
    Json,
    Record,
    Session,
    Text,
    TopologyError,
    Tumbling,
    collect,
    custom,
    dead_letter,
    distinct,
    first,
    key_value_store,
    latest,
    maximum,
    mean,
    minimum,
    most_frequent,
    quantile,
    skip,
    top,
    total,
    variance,
)
from streams.durations import milliseconds
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator

TEXTS: dict[str, Any] = {"key": Text(), "value": Text()}


def new_app() -> App:
    return App("shop", dead_letter_limit=1.0)


def stream(app: App) -> Any:
    return app.stream("in", **TEXTS)


def grouped(app: App) -> Any:
    return stream(app).group_by_key()


def table(app: App) -> Any:
    return app.table("prices", **TEXTS)


def grouped_table(app: App) -> Any:
    return table(app).group_by(lambda value: value, store="by")


def adding(of: Any, so_far: Any, value: Any) -> Any:
    return so_far


class Processing:
    """A processor with the given methods."""

    def __init__(self, **methods: Any) -> None:
        for name, method in {"process": lambda record, context: None, **methods}.items():
            setattr(self, name, method)


def processor_class(**methods: Any) -> type:
    return type("Own", (), {"process": lambda self, record, context: None, **methods})


def scheduling(call: Any) -> Any:
    class Scheduling:
        def open(self, context: Any) -> None:
            context.schedule(milliseconds(1000), call, on="stream_time")

        def process(self, record: Any, context: Any) -> None: ...

    return Scheduling


class Serde:
    """A custom serde."""

    name = "own"

    def __init__(self, **methods: Any) -> None:
        self.serialize = self.deserialize = list
        for name, method in methods.items():
            setattr(self, name, method)


def no_value(so_far: Any, value: Any) -> Any:
    return value


PLACES: dict[str, Callable[[App, Any], Any]] = {
    "app.stream timestamp": lambda app, f: app.stream("in", timestamp=f),
    "app.stream key": lambda app, f: app.stream("in", key=Serde(deserialize=f)),
    "app.stream value": lambda app, f: app.stream("in", value=Serde(deserialize=f)),
    "app.table timestamp": lambda app, f: app.table("in", timestamp=f),
    "app.table value": lambda app, f: app.table("in", value=Serde(serialize=f)),
    "app.global_table value": lambda app, f: app.global_table("in", value=Serde(deserialize=f)),
    "map": lambda app, f: stream(app).map(f),
    "map timestamp": lambda app, f: stream(app).map(str, timestamp=f),
    "map_batch": lambda app, f: stream(app).map_batch(f),
    "filter": lambda app, f: stream(app).filter(f),
    "flat_map": lambda app, f: stream(app).flat_map(f),
    "key_by": lambda app, f: stream(app).key_by(f),
    "group_by": lambda app, f: stream(app).group_by(f),
    "peek": lambda app, f: stream(app).peek(f),
    "branch": lambda app, f: stream(app).branch({"one": lambda value: True, "two": f}),
    "to": lambda app, f: stream(app).to(f),
    "to value": lambda app, f: stream(app).to("out", value=Serde(serialize=f)),
    "process factory": lambda app, f: stream(app).process(f),
    "process": lambda app, f: stream(app).process(processor_class(process=f)),
    "process_batch": lambda app, f: stream(app).process(processor_class(process_batch=f)),
    "process open": lambda app, f: stream(app).process(processor_class(open=f)),
    "process partial": lambda app, f: stream(app).process(functools.partial(processor_class(process=f))),
    "migrate": lambda app, f: stream(app).process(
        Processing, stores=[key_value_store("own", migrate=f)], name="p"
    ),
    "store value": lambda app, f: stream(app).process(
        Processing, stores=[key_value_store("own", value=Serde(serialize=f))], name="p"
    ),
    "store with ttl": lambda app, f: stream(app).process(
        Processing, stores=[key_value_store("own", key=Serde(serialize=f), ttl=milliseconds(5))], name="p"
    ),
    "repartition value": lambda app, f: stream(app).repartition("r", value=Serde(serialize=f)),
    "to_table value": lambda app, f: stream(app).to_table("t", value=Serde(serialize=f)),
    "join table": lambda app, f: stream(app).join(table(app), f),
    "left_join table": lambda app, f: stream(app).left_join(table(app), f),
    "join stream": lambda app, f: stream(app).join(
        app.stream("b", **TEXTS), f, within=milliseconds(5), store="j"
    ),
    "left_join stream": lambda app, f: stream(app).left_join(
        app.stream("b", **TEXTS), f, within=milliseconds(5), store="j"
    ),
    "outer_join stream": lambda app, f: stream(app).outer_join(
        app.stream("b", **TEXTS), f, within=milliseconds(5), store="j"
    ),
    "join_global": lambda app, f: stream(app).join_global(app.global_table("g"), str, f),
    "join_global key": lambda app, f: stream(app).join_global(app.global_table("g"), f, adding),
    "left_join_global": lambda app, f: stream(app).left_join_global(app.global_table("g"), str, f),
    "left_join_global key": lambda app, f: stream(app).left_join_global(app.global_table("g"), f, adding),
    "reduce": lambda app, f: grouped(app).reduce("w", f),
    "windowed reduce": lambda app, f: grouped(app).window(Tumbling(seconds=5)).reduce("w", f),
    "session reduce": lambda app, f: grouped(app).window(Session(seconds=5)).reduce("w", f),
    "total": lambda app, f: grouped(app).aggregate("w", total(f)),
    "mean": lambda app, f: grouped(app).aggregate("w", mean(f)),
    "variance": lambda app, f: grouped(app).aggregate("w", variance(f)),
    "minimum": lambda app, f: grouped(app).aggregate("w", minimum(f)),
    "maximum": lambda app, f: grouped(app).aggregate("w", maximum(f)),
    "top": lambda app, f: grouped(app).aggregate("w", top(3, f)),
    "first": lambda app, f: grouped(app).aggregate("w", first(f)),
    "latest": lambda app, f: grouped(app).aggregate("w", latest(f)),
    "collect": lambda app, f: grouped(app).aggregate("w", collect(f, limit=3)),
    "quantile": lambda app, f: grouped(app).aggregate("w", quantile(0.5, f)),
    "distinct": lambda app, f: grouped(app).aggregate("w", distinct(f)),
    "most_frequent": lambda app, f: grouped(app).aggregate("w", most_frequent(3, f)),
    "combined": lambda app, f: grouped(app).aggregate("w", one=total(), other=total(f)),
    "windowed": lambda app, f: grouped(app).window(Tumbling(seconds=5)).aggregate("w", total(f)),
    "session": lambda app, f: grouped(app).window(Session(seconds=5)).aggregate("w", total(f)),
    "custom initial": lambda app, f: grouped(app).aggregate("w", custom(f, no_value, name="c")),
    "custom add": lambda app, f: grouped(app).aggregate("w", custom(int, f, name="c")),
    "custom of": lambda app, f: grouped(app).aggregate("w", custom(int, no_value, of=f, name="c")),
    "custom merge": lambda app, f: grouped(app).aggregate("w", custom(int, no_value, merge=f, name="c")),
    "custom remove": lambda app, f: grouped(app).aggregate("w", custom(int, no_value, remove=f, name="c")),
    "custom result": lambda app, f: grouped(app).aggregate("w", custom(int, no_value, result=f, name="c")),
    "table filter": lambda app, f: table(app).filter(f),
    "table map": lambda app, f: table(app).map(f),
    "table group_by": lambda app, f: table(app).group_by(f),
    "table to": lambda app, f: table(app).to(f),
    "table join": lambda app, f: table(app).join(app.table("b", **TEXTS), f),
    "table left_join": lambda app, f: table(app).left_join(app.table("b", **TEXTS), f),
    "table outer_join": lambda app, f: table(app).outer_join(app.table("b", **TEXTS), f),
    "join_foreign_key": lambda app, f: table(app).join_foreign_key(
        app.table("b", **TEXTS), str, f, store="f", result=Json(), left=True
    ),
    "join_foreign_key key": lambda app, f: table(app).join_foreign_key(
        app.table("b", **TEXTS), f, adding, store="f", result=Json()
    ),
    "grouped table add": lambda app, f: grouped_table(app).reduce("w", f, no_value),
    "grouped table remove": lambda app, f: grouped_table(app).reduce("w", no_value, f),
    "grouped table aggregate": lambda app, f: grouped_table(app).aggregate("w", total(f)),
}


async def fetch(*arguments: Any, **options: Any) -> Any:
    return arguments


async def generate(*arguments: Any) -> AsyncIterator[Any]:
    yield arguments


@types.coroutine
def old_style(*arguments: Any) -> Generator[Any, Any, Any]:
    yield from ()


def annotated(*arguments: Any) -> Awaitable[Any]:
    return fetch(*arguments)


class Client:
    async def __call__(self, *arguments: Any) -> Any:
        return arguments

    async def fetch(self, *arguments: Any) -> Any:
        return arguments

    @staticmethod
    async def static(*arguments: Any) -> Any:
        return arguments

    @classmethod
    async def of_class(cls, *arguments: Any) -> Any:
        return arguments


KINDS: dict[str, Any] = {
    "async def": fetch,
    "async generator": generate,
    "partial": functools.partial(fetch, 1),
    "partial of a partial": functools.partial(functools.partial(fetch, 1), 2),
    "bound method": Client().fetch,
    "static method": Client.static,
    "class method": Client.of_class,
    "callable object": Client(),
    "partial of a callable object": functools.partial(Client(), 1),
    "cached": functools.cache(fetch),
    "types.coroutine": old_style,
    "annotated": annotated,
}


@pytest.mark.parametrize("place", PLACES)
def test_async_code_is_refused_wherever_plain_code_is_called(place):
    with pytest.raises(TopologyError, match=r"fetch \(.*test_async_code.py:\d+\).* async") as refused:
        PLACES[place](new_app(), fetch)
    # What an aggregate begins with is made before there is a step.
    assert str(refused.value).startswith("step '") or place == "custom initial"
    assert "map_async" in str(refused.value)
    assert "declared at " in str(refused.value) or place in {"app.global_table value", "custom initial"}


@pytest.mark.parametrize("kind", KINDS)
def test_async_code_is_recognized_in_all_its_forms(kind):
    with pytest.raises(TopologyError, match=r"step 'work' \(map\) was given .*test_async_code.py:\d+"):
        stream(new_app()).map(KINDS[kind], name="work")


def test_plain_code_in_the_same_forms_is_taken():
    def runs(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*arguments: Any) -> Any:
            return asyncio.run(function(*arguments))

        return run

    class Plain:
        def __call__(self, value: str) -> str:
            return value

        async def aclose(self) -> None: ...

    async def shout(value: str) -> str:
        return value.upper()

    app = new_app()
    app.stream("in", **TEXTS).map(runs(shout)).map(Plain()).map(functools.partial(str.replace, "A", "B")).to(
        "o"
    )
    stream_of_own = app.stream("other", key=Text(), value=Serde())
    stream_of_own.map(functools.cache(str)).to("p")


@pytest.mark.parametrize("method", ["process", "process_batch", "open"])
def test_a_processor_that_a_plain_function_makes_is_looked_at_when_it_is_made(method):
    app = new_app()
    stream(app).process(lambda: Processing(**{method: fetch}), name="own")
    driver = TopologyDriver(app)
    with pytest.raises(TopologyError, match=r"step 'own' \(process\) was given fetch"):
        driver.send("in", "a", key="k")


def test_an_async_call_cannot_be_scheduled():
    app = new_app()
    stream(app).process(scheduling(fetch), name="own")
    with pytest.raises(TopologyError, match=r"step 'own' \(schedule\) was given fetch"):
        TopologyDriver(app).send("in", "a", key="k")


def test_a_callback_of_the_client_cannot_be_async():
    with pytest.raises(
        ConfigurationError, match=r"client=\{'oauth_cb': …\} is async .*test_async_code.py:\d+"
    ):
        App("shop", client={"oauth_cb": fetch})


def test_an_invalid_policy_is_refused():
    with pytest.raises(TopologyError, match="step 'work': on_error takes a policy"):
        stream(new_app()).map(str, on_error=fetch, name="work")


# Plain functions that return awaitables for some of their records: only their results show it.


def sometimes(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Calls an async function for values that begin with "bad"."""
    return lambda *values: fetch(*values) if "bad" in str(values[-1]) else plain(*values)


def through(app: App, step: Callable[[Any, Any], Any], plain: Callable[..., Any]) -> None:
    step(app.stream("in", **TEXTS), sometimes(plain))


class Calling:
    """A processor that returns what its function returns."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def process(self, record: Record[str, str], context: Any) -> Any:
        context.forward(record)
        return self.function(record.value)


def price(value: str) -> Any:
    return value


RETURNING: dict[str, Callable[[App], None]] = {
    "map": lambda app: through(app, lambda s, f: s.map(f, on_error=dead_letter).to("out"), price),
    "filter": lambda app: through(app, lambda s, f: s.filter(f, on_error=dead_letter).to("out"), bool),
    "peek": lambda app: through(app, lambda s, f: s.peek(f, on_error=dead_letter).to("out"), price),
    "flat_map": lambda app: through(
        app, lambda s, f: s.flat_map(f, on_error=dead_letter).to("out"), lambda v: [v]
    ),
    "flat_map of awaitables": lambda app: through(
        app, lambda s, f: s.flat_map(lambda v: [f(v)], on_error=dead_letter).to("out"), price
    ),
    "key_by": lambda app: through(app, lambda s, f: s.key_by(f, on_error=dead_letter).to("out"), price),
    "branch": lambda app: through(
        app, lambda s, f: s.branch({"x": f}, on_error=dead_letter)["x"].to("out"), bool
    ),
    "map timestamp": lambda app: through(
        app, lambda s, f: s.map(str, timestamp=f, on_error=dead_letter).to("out"), len
    ),
    "to": lambda app: through(app, lambda s, f: s.to(f, on_error=dead_letter), lambda v: "out"),
    "process": lambda app: through(
        app, lambda s, f: s.process(lambda: Calling(f), on_error=dead_letter).to("out"), lambda v: None
    ),
    "group_by": lambda app: through(
        app, lambda s, f: s.group_by(f, on_error=dead_letter).count("n").to("out"), price
    ),
    "aggregate of": lambda app: through(
        app,
        lambda s, f: s.group_by_key().aggregate("n", distinct(f), on_error=dead_letter).to("out"),
        price,
    ),
    "custom add": lambda app: through(
        app,
        lambda s, f: (
            s.group_by_key().aggregate("n", custom(str, f, name="c"), on_error=dead_letter).to("out")
        ),
        lambda so_far, v: v,
    ),
    "reduce": lambda app: through(
        app,
        lambda s, f: s.map(str).group_by_key().reduce("n", f, value=Text(), on_error=dead_letter).to("out"),
        lambda so_far, v: v,
    ),
    "table map": lambda app: through(
        app, lambda s, f: s.to_table("t").map(f, on_error=dead_letter).to("out"), price
    ),
    "table filter": lambda app: through(
        app, lambda s, f: s.to_table("t").filter(f, on_error=dead_letter).to("out"), bool
    ),
    "table group_by": lambda app: through(
        app, lambda s, f: s.to_table("t").group_by(f, on_error=dead_letter).count("n").to("out"), price
    ),
    "join table": lambda app: through(
        app,
        lambda s, f: s.left_join(app.table("prices", **TEXTS), lambda v, p: f(v), on_error=dead_letter).to(
            "out"
        ),
        price,
    ),
    "join_global": lambda app: through(
        app,
        lambda s, f: s.left_join_global(
            app.global_table("prices", **TEXTS), f, lambda v, p: v, on_error=dead_letter
        ).to("out"),
        price,
    ),
    "join_foreign_key": lambda app: through(
        app,
        lambda s, f: (
            s.to_table("t")
            .join_foreign_key(
                app.table("prices", **TEXTS), f, lambda v, p: v, store="f", left=True, result=Json()
            )
            .to("out")
        ),
        price,
    ),
}


@pytest.mark.parametrize("place", RETURNING)
def test_an_awaitable_that_plain_code_returns_is_a_failure_of_its_record(place):
    app = new_app()
    RETURNING[place](app)
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", "good", 1), Record("b", "good 2", 1)])
    driver.send_all(
        "in", [Record(key, value, 2) for key, value in (("k", "bad 1"), ("b", "bad 2"), ("c", "good 3"))]
    )
    letters = driver.dead_letters()
    assert [letter.value for letter in letters] == [b"bad 1", b"bad 2"]
    for letter in letters:
        headers = dict(letter.headers or ())
        assert headers["__streams.errors.exception"] == b"TypeError"
        message = headers["__streams.errors.message"]
        assert message is not None
        assert b"map_async" in message
        assert b"fetch" in message
    assert driver.read("out")


def test_an_awaitable_among_many_results_leaves_the_others():
    app = new_app()
    app.stream("in", value=Json()).map(
        lambda value: fetch(value) if value % 97 == 5 else value, on_error=skip, name="m"
    ).to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, number, 0) for number in range(5_000)])
    assert driver.values("out") == [number for number in range(5_000) if number % 97 != 5]
    assert driver.skipped() == {"m": len([number for number in range(5_000) if number % 97 == 5])}


def test_an_event_time_of_a_source_that_is_an_awaitable_is_a_failure_of_its_record():
    app = new_app()
    app.stream("in", **TEXTS, timestamp=sometimes(len)).to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", value, 0) for value in ("good", "bad", "good")])
    assert [record.timestamp for record in driver.read("out")] == [4, 4]
    assert [letter.value for letter in driver.dead_letters()] == [b"bad"]


def test_windows_over_awaitables_of_the_users_functions():
    app = new_app()
    app.stream("in", **TEXTS).group_by_key().window(Session(seconds=5)).aggregate(
        "w",
        custom(str, sometimes(lambda so_far, v: v), merge=lambda one, other: other, name="c"),
        on_error=dead_letter,
    ).final().to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", "good", 0), Record("k", "bad", 1), Record("k", "late", 60_000)])
    assert [result.value["value"] for result in driver.read("out", value=Json())] == ["good"]
    assert [letter.value for letter in driver.dead_letters()] == [b"bad"]
