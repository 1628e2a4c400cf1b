"""Aggregates of values of any type: values are returned unchanged, whatever happens to the state."""

from __future__ import annotations

import datetime as dt
import enum
import random
import uuid
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from streams import App, Hopping, Json, Record, Session, Sliding, Text, Tumbling, dead_letter
from streams.aggregates import (
    Aggregate,
    Combined,
    collect,
    count,
    custom,
    first,
    latest,
    maximum,
    mean,
    minimum,
    most_frequent,
    quantile,
    top,
    total,
    variance,
)
from streams.aggregates.value_codec import ValueCodec
from streams.durations import milliseconds
from streams.errors import TopologyError
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.operators.processor import Context


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Article(msgspec.Struct, frozen=True):
    name: str
    price: Decimal


@dataclass
class Address:
    street: str
    since: dt.date


class Point(NamedTuple):
    x: int
    weight: Decimal


class Extra(TypedDict):
    note: str


class Order(msgspec.Struct):
    price: Decimal
    at: dt.datetime
    day: dt.date
    took: dt.timedelta
    number: uuid.UUID
    colour: Colour
    article: Article
    address: Address
    point: Point
    pair: tuple[int, str]
    raw: bytes
    tags: set[str]
    extra: Extra
    name: str
    ratio: float
    size: int
    maybe: Decimal | None = None
    anything: Any = None


ZONE = dt.timezone(dt.timedelta(hours=2))


def order(n: int) -> Order:
    return Order(
        price=Decimal(f"{n}.10"),
        at=dt.datetime(2024, 1, n, 12, tzinfo=ZONE),
        day=dt.date(2024, 1, n),
        took=dt.timedelta(hours=n),
        number=uuid.UUID(int=n),
        colour=Colour.RED if n % 2 else Colour.BLUE,
        article=Article(f"a{n}", Decimal("1.50")),
        address=Address("Road", dt.date(2000, 1, n)),
        point=Point(n, Decimal("0.5")),
        pair=(n, "x"),
        raw=b"\x00%d" % n,
        tags={"b", f"t{n}"},
        extra={"note": f"note {n}"},
        name=f"n{n}",
        ratio=n / 4,
        size=n,
        maybe=None if n % 2 else Decimal("2.00"),
        anything=[n, {"deep": None}],
    )


FIELDS = Order.__struct_fields__
ORDERED = ("price", "at", "day", "took", "number", "raw", "pair", "name", "ratio", "size")
COUNTED = tuple(name for name in FIELDS if name != "ratio")


def all_aggregates() -> dict[str, Any]:
    found: dict[str, Any] = {"whole": latest(), "all": collect()}
    for name in FIELDS:
        found |= {f"first_{name}": first(name), f"latest_{name}": latest(name), f"all_{name}": collect(name)}
    for name in ORDERED:
        found |= {f"least_{name}": minimum(name), f"most_{name}": maximum(name), f"top_{name}": top(2, name)}
    for name in COUNTED:
        found[f"often_{name}"] = most_frequent(5, name)
    return found


class Catching:
    """Stores the last value."""

    def __init__(self, caught: list[Any]) -> None:
        self.caught = caught

    def process(self, record: Record[Any, Any], context: Context) -> None:
        self.caught.append(record.value)


WINDOWS = [
    None,
    Tumbling(seconds=1),
    Hopping(size=milliseconds(2000), advance=milliseconds(1000)),
    Session(gap=milliseconds(5)),
    Sliding(difference=milliseconds(1000)),
]


def results(app_window: Any, feed: Callable[[TopologyDriver], None]) -> list[Any]:
    """Every result of all aggregates, in order, as Python objects."""
    caught: list[Any] = []
    app = App("types")
    grouped = app.stream("in", key=Text(), value=Json(Order)).group_by_key()
    if app_window is None:
        grouped.aggregate("s", **all_aggregates()).to_stream().process(partial(Catching, caught))
        feed(TopologyDriver(app))
        return caught
    grouped.window(app_window).aggregate("s", **all_aggregates()).updates(tombstones=True).process(
        partial(Catching, caught)
    )
    feed(TopologyDriver(app))
    return [windowed.value for windowed in caught if windowed.value is not None]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_values_come_back_with_their_types_from_memory_and_from_state(window):
    def feed(restarts: bool) -> Callable[[TopologyDriver], None]:
        def run(driver: TopologyDriver) -> None:
            for n in (1, 3, 2):
                driver.send("in", order(n), key="k", timestamp=n)
                if restarts:
                    driver.restart()

        return run

    live, restarted = results(window, feed(restarts=False)), results(window, feed(restarts=True))
    assert [msgspec.structs.asdict(result) for result in live] == [
        msgspec.structs.asdict(result) for result in restarted
    ]
    for result in (live[-1], restarted[-1]):
        values = [order(n) for n in range(1, 4)][-len(result.all) :]
        assert result.whole == values[-1]
        assert result.all == tuple(values)
        for name in FIELDS:
            own = [getattr(value, name) for value in values]
            assert getattr(result, f"first_{name}") == own[0]
            assert getattr(result, f"latest_{name}") == own[-1]
            assert getattr(result, f"all_{name}") == tuple(own)
            assert list(map(type, getattr(result, f"all_{name}"))) == list(map(type, own))
        for name in ORDERED:
            own = sorted(getattr(value, name) for value in values)
            assert getattr(result, f"least_{name}") == own[0]
            assert getattr(result, f"most_{name}") == own[-1]
            assert getattr(result, f"top_{name}") == tuple(own[::-1][:2])
            assert type(getattr(result, f"least_{name}")) is type(own[0])
        for name in COUNTED:
            often = getattr(result, f"often_{name}")
            assert sum(events for _, events in often) == len(values)
            assert {repr(value) for value, _ in often} <= {
                repr(getattr(value, name)) if name != "tags" else repr(value.tags) for value in values
            } or name == "tags"
            assert {type(value) for value, _ in often} <= {type(getattr(value, name)) for value in values}
    assert live[-1].latest_at.tzinfo.utcoffset(None) == dt.timedelta(hours=2)
    assert str(live[-1].latest_price) == "3.10"


def test_a_stream_s_type_follows_from_annotations():
    caught: list[Any] = []

    def article(value: Order) -> Article:
        return value.article

    def articles(value: Order) -> list[Article]:
        return [value.article]

    app = App("annotated")
    orders = app.stream("in", key=Text(), value=Json(Order))
    for number, stream in enumerate(
        [
            orders.map(article),
            orders.flat_map(articles),
            orders.filter(lambda value: True).map(article).peek(lambda value: None),
            orders.map(article).branch({"all": lambda value: True})["all"],
            orders.map(article).merge(orders.flat_map(articles)),
        ]
    ):
        table = stream.group_by_key().aggregate(f"s{number}", latest())
        table.to_stream().process(partial(Catching, caught))
    orders.group_by_key().aggregate("of", latest(article)).to_stream().process(partial(Catching, caught))
    # Results of aggregates have types too.
    combined = orders.group_by_key().aggregate("one", worth=total("price"), last=latest("article"))
    again = combined.to_stream().group_by_key()
    again.aggregate("two", latest("last")).to_stream().process(partial(Catching, caught))
    windows = orders.group_by_key().window(Tumbling(seconds=1)).aggregate("w", total("price"))
    windows.updates().group_by_key().aggregate("three", latest()).to_stream().process(
        partial(Catching, caught)
    )
    driver = TopologyDriver(app)
    for n in (1, 2):
        driver.send("in", order(n), key="k", timestamp=n)
        driver.restart()
    articles_seen = [value for value in caught if isinstance(value, Article)]
    assert set(articles_seen) == {order(1).article, order(2).article}
    assert [value.value for value in caught if not isinstance(value, Article)] == [
        Decimal("1.10"),
        Decimal("3.20"),
    ]


# Values of streams without a type

SELF_DESCRIBING: list[Any] = [
    *(None, True, 1, 1.5, -0.0, "a", b"a", Decimal("1.10"), Decimal("-0"), Fraction(1, 3), 1 + 2j),
    *(
        dt.datetime.fromisoformat("2024-01-01T00:00:00"),
        dt.datetime(2024, 1, 1, tzinfo=ZONE),
        dt.date(2024, 1, 1),
        dt.time(1, 2),
    ),
    *(dt.timedelta(days=-1, microseconds=3), uuid.UUID(int=7)),
    *([], [1, [2]], (), (1, (2, [3])), {}, {"a": {"b": Decimal("1.0")}}, {1: "a", (1, 2): "b"}),
    *({1, 2}, {(1, "a")}, frozenset({"a"}), bytearray(b"x"), deque([1, 2])),
    *(Counter("aab"), OrderedDict([("b", 1), ("a", 2)]), defaultdict(list, {"a": [1]}), [2**70]),
]


@pytest.mark.parametrize("value", SELF_DESCRIBING, ids=repr)
def test_values_without_a_known_type_come_back_as_they_are(value):
    caught: list[Any] = []
    app = App("untyped")
    stream = app.stream("in", key=Text(), value=Json()).map(lambda _: value)
    grouped = stream.group_by_key()
    aggregates: dict[str, Any] = {
        "last": latest(),
        "all": collect(),
        "own": custom(lambda: None, lambda _, v: v, name="own"),
    }
    grouped.aggregate("s", **aggregates).to_stream().process(partial(Catching, caught))
    driver = TopologyDriver(app)
    for n in range(2):
        driver.send("in", n, key="k", timestamp=n)
        driver.restart()
    for result, events in zip(caught, (1, 2), strict=True):
        for found in (result.last, result.own, *result.all):
            assert found == value
            assert type(found) is type(value)
            assert repr(found) == repr(value) or isinstance(value, set | frozenset)
        assert len(result.all) == events


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.decimals(allow_nan=False),
    # Only a zone with rules distinguishes the two equal times when the clock is set back.
    st.datetimes(timezones=st.sampled_from([None, dt.UTC, ZONE])).map(lambda time: time.replace(fold=0)),
    st.dates(),
    st.timedeltas(),
    st.uuids(),
)
hashable = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4
)
nested = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.sets(hashable, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(nested)
def test_whatever_describes_itself_comes_back_as_it_is(value):
    codec = ValueCodec()
    kept = codec.keep(value)
    stored = msgspec.msgpack.encode(codec.pack(kept))
    read = codec.unpack(msgspec.msgpack.decode(stored))
    assert read == kept
    assert msgspec.msgpack.encode(codec.pack(read)) == stored
    assert spelled(codec.restore(read)) == spelled(value)


def test_of_a_time_zone_the_offset_is_kept_before_a_commit_as_after_it():
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    times = [dt.datetime(2024, month, 1, 12, tzinfo=berlin) for month in (1, 7)]
    for aggregate in (latest(), collect(), maximum(type=dt.datetime)):
        accumulator = aggregate.add(aggregate.initial(), list(aggregate.column(times)))
        packed = msgspec.msgpack.encode(aggregate.pack(accumulator))
        stored = aggregate.unpack(msgspec.msgpack.decode(packed))
        assert repr(aggregate.result(stored)) == repr(aggregate.result(accumulator))
        assert "seconds=7200" in repr(aggregate.result(accumulator))
    with pytest.raises(TypeError, match="a zone without an offset"):
        list(latest().column([dt.time(12, tzinfo=berlin)]))


def spelled(value: Any) -> str:
    """The value with the types of all its parts, and with sets in an order."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{spelled(key)}: {spelled(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple | set | frozenset):
        items = map(spelled, value)
        ordered = sorted(items) if isinstance(value, set | frozenset) else items
        return f"{type(value).__name__}({', '.join(ordered)})"
    return repr(value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Article("a", Decimal(1)), "Article cannot be read back without its type"),
        ([1, {"x": Article("a", Decimal(1))}], "Article at [1]['x']"),
        (Colour.RED, "Colour cannot be read back without its type"),
        (Point(1, Decimal(1)), "Point cannot be read back without its type"),
        (Address("a", dt.date(2024, 1, 1)), "Address cannot be read back without its type"),
        (object(), "object cannot be read back without its type"),
    ],
    # By their types: an object's text has its address, which differs between processes.
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
@pytest.mark.parametrize("aggregate", [latest(), first(), collect(), most_frequent(3)], ids=str)
def test_objects_of_unknown_classes_are_refused_with_their_record_and_what_to_write(value, says, aggregate):
    app = App("refused", dead_letter_limit=1.0)
    stream = app.stream("in", key=Text(), value=Json()).map(lambda n: value if n == 1 else n)
    stream.group_by_key().aggregate("s", aggregate, on_error=dead_letter).to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", n, n) for n in range(3)])
    (letter,) = driver.dead_letters()
    assert letter.value == b"1"
    message = (dict(letter.headers or [])["__streams.errors.message"] or b"").decode()
    assert says in message
    assert "type=" in message
    assert len(driver.values("out")) == 1


def test_a_type_that_is_given_brings_objects_back():
    assert ValueCodec(Article).restore(ValueCodec(Article).keep(order(1).article)) == order(1).article
    for aggregate, expected in (
        (latest(type=Article), order(2).article),
        (collect(type=Article), (order(1).article, order(2).article)),
        (most_frequent(2, type=Article), ((order(1).article, 1), (order(2).article, 1))),
    ):
        accumulator = aggregate.add(
            aggregate.initial(), list(aggregate.column([order(1).article, order(2).article]))
        )
        packed = msgspec.msgpack.encode(aggregate.pack(accumulator))
        assert aggregate.result(aggregate.unpack(msgspec.msgpack.decode(packed))) == expected


def test_what_would_come_back_changed_is_refused():
    codec = ValueCodec(Order)
    assert codec.restore(codec.keep(order(1))) == order(1)
    for anything, says in (
        (Decimal(1), "anything is Decimal, would be str"),
        ((1,), "is tuple, would be list"),
        (b"x", None),
        ({"a": [dt.date(2024, 1, 1)]}, "is date, would be str"),
    ):
        value = order(1)
        value.anything = anything
        if says is None:
            assert codec.restore(codec.keep(value)) == value
        else:
            with pytest.raises(TypeError, match=says):
                codec.keep(value)


def test_types_that_cannot_be_stored_are_refused_when_the_aggregate_is_made():
    class Unknown:
        pass

    for make in (latest, first, collect, lambda type: most_frequent(1, type=type)):  # noqa: A006 - as the keyword
        with pytest.raises(TopologyError, match="a type that msgspec can store"):
            make(type=Unknown)
    with pytest.raises(TopologyError, match="an ordered type"):
        minimum(type=Colour)


def test_a_result_that_is_changed_does_not_reach_the_state():
    seen: list[Any] = []

    def spoil(result: Any) -> Any:
        seen.append(msgspec.to_builtins(result))
        result["tags"].append("spoilt")
        return result

    app = App("spoil")
    grouped = app.stream("in", key=Text(), value=Json()).group_by_key()
    grouped.aggregate("s", first()).to_stream().map(spoil).to("out", value=Json())
    grouped.reduce("r", lambda so_far, value: so_far).to_stream().map(spoil).to("out", value=Json())
    driver = TopologyDriver(app)
    for n in range(3):
        driver.send("in", {"tags": ["a"]}, key="k", timestamp=n)
    assert seen == [{"tags": ["a"]}] * 6


# Money


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.decimals(-(10**30), 10**30, places=2), st.integers(-(10**25), 10**25), st.floats(-1e20, 1e20)
        ),
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_sums_are_exact_whatever_the_order_and_the_batches(values, draws):
    kinds = set(map(type, values))
    exact = sum(map(Fraction, values), Fraction())
    shuffled = list(values)
    draws.shuffle(shuffled)
    cut = draws.randint(0, len(values))
    aggregate = total()
    one = aggregate.add(aggregate.initial(), list(aggregate.column(values)))
    parts = [
        aggregate.add(aggregate.initial(), list(aggregate.column(part)))
        for part in (shuffled[:cut], shuffled[cut:])
    ]
    other = aggregate.merge(*parts)
    unpacked = aggregate.unpack(msgspec.msgpack.decode(msgspec.msgpack.encode(aggregate.pack(other))))
    for result in map(aggregate.result, (one, other, unpacked)):
        if float in kinds:
            assert type(result) is float
            assert result == float(exact)
        else:
            assert type(result) is (Decimal if Decimal in kinds else int)
            assert Fraction(result) == exact
            assert str(result) == str(aggregate.result(one))
    removed = aggregate.remove(one, list(aggregate.column(shuffled[cut:])))
    left = sum(map(Fraction, shuffled[:cut]), Fraction())
    assert aggregate.result(removed) == (float(left) if float in kinds else left)


def test_sums_of_money_do_not_depend_on_the_decimal_context():
    amounts = [Decimal("12345678901234567890.12"), Decimal("0.01"), Decimal("-0.005"), 7]
    with localcontext() as context:
        context.prec = 3
        for trap in context.traps:
            context.traps[trap] = True
        aggregate: Any
        for aggregate, expected in (
            (total(), "12345678901234567897.125"),
            (mean(), "3086419725308641974.28125"),
            (maximum(), "12345678901234567890.12"),
        ):
            accumulator = aggregate.add(aggregate.initial(), list(aggregate.column(amounts)))
            assert str(aggregate.result(accumulator)) == expected
            if aggregate.removable:
                left = aggregate.remove(accumulator, list(aggregate.column(amounts[:1])))
                assert str(aggregate.result(left)) == ("7.005" if aggregate == total() else "2.335")
    prices = [Decimal("10.00"), Decimal("20.00")]
    spread = variance()
    moments = spread.add(spread.initial(), list(spread.column(prices)))
    assert repr(spread.result(moments)) in {"Decimal('25')", "Decimal('25.0000')"}
    assert spread.result(spread.remove(moments, prices[:1])) == 0
    middle = quantile(0.5)
    assert isinstance(middle.result(middle.add({}, list(middle.column(prices)))), Decimal)
    assert isinstance(middle.result(middle.add({}, list(middle.column([*prices, 15])))), float)
    assert total().result(total().add(0, [Decimal("1E+2")])) == Decimal(100)


@pytest.mark.parametrize("text", ["NaN", "sNaN", "Infinity", "-Infinity", "1E+400", "1E-301"])
@pytest.mark.parametrize(
    "aggregate", [total(), mean(), variance(), minimum(), maximum(), top(2), quantile(0.5)]
)
def test_decimals_that_no_arithmetic_can_keep_are_refused_with_their_record(text, aggregate):
    allowed = {"1E+400": {"minimum", "maximum", "top"}, "1E-301": {"minimum", "maximum", "top", "quantile"}}
    if aggregate.describe().partition("(")[0] in allowed.get(text, set()):
        assert len(list(aggregate.column([Decimal(text)]))) == 1
        return
    taken: list[Any] = []
    with pytest.raises(ValueError, match="needs numbers"):
        taken.extend(aggregate.column([Decimal(1), Decimal(text), Decimal(2)]))
    assert len(taken) == 1


@given(st.permutations([1, 1.0, Decimal(1), Decimal("1.00"), -0.0, 0, 0.0, Decimal("-0")]))
def test_which_of_equal_numbers_comes_back_does_not_depend_on_their_order(values):
    for aggregate in (minimum(), maximum(), top(3)):
        results = set()
        for batches in ([values], [[value] for value in values]):
            accumulator = aggregate.initial()
            for batch in batches:
                accumulator = aggregate.add(accumulator, list(aggregate.column(batch)))
            results.add(repr(aggregate.result(accumulator)))
        expected = aggregate.result(
            aggregate.add(
                aggregate.initial(), [1, 1.0, Decimal(1), Decimal("1.00"), -0.0, 0, 0.0, Decimal("-0")]
            )
        )
        assert results == {repr(expected)}


def test_money_survives_changes_and_removal_in_a_table():
    app = App("shop")
    prices = app.table("prices", key=Text(), value=Json(Article))
    grouped = prices.group_by(lambda article: article.name, store="by-name")
    grouped.aggregate("worth", total("price")).to("worth", value=Json())
    grouped.aggregate("mean", mean("price")).to("mean", value=Json())
    grouped.aggregate(
        "own",
        custom(lambda: Decimal(0), lambda a, v: a + v.price, remove=lambda a, v: a - v.price, name="own"),
    ).to("own", value=Json())
    driver = TopologyDriver(app)
    for key, name, price in (("a", "x", "0.10"), ("b", "x", "0.20"), ("a", "x", "0.30"), ("b", "y", "0.20")):
        driver.send("prices", Article(name, Decimal(price)), key=key, timestamp=1)
        driver.restart()
    driver.send("prices", None, key="b", timestamp=2)
    for topic in ("worth", "own"):
        values = [(record.key, record.value) for record in driver.read(topic)]
        assert dict(values) == {"x": "0.30", "y": "0.00"}
    assert driver.values("mean")[-1] is None


# custom


@dataclass
class Tally:
    events: int = 0
    worth: Decimal = Decimal(0)
    seen: list[str] = field(default_factory=list)


def changed_in_place(tally: Tally, value: Any) -> Tally:
    tally.events += 1
    tally.worth += Decimal("0.10")
    tally.seen.append(value)
    return tally


@pytest.mark.parametrize(
    ("initial", "add", "expected"),
    [
        (lambda: Decimal(0), lambda a, _: a + Decimal("0.10"), Decimal("0.30")),
        (Decimal, lambda a, _: a + Decimal("0.10"), Decimal("0.30")),
        (lambda: (0, ()), lambda a, v: (a[0] + 1, (*a[1], v)), (3, ("a", "b", "c"))),
        (set, lambda a, v: a | {v}, {"a", "b", "c"}),
        (set, lambda a, v: a.add(v) or a, {"a", "b", "c"}),
        (dict, lambda a, v: a.update({v: Decimal(1)}) or a, dict.fromkeys("abc", Decimal(1))),
        (list, lambda a, v: a.append(v) or a, ["a", "b", "c"]),
        (Counter, lambda a, v: a.update([v]) or a, Counter("abc")),
        (Tally, changed_in_place, Tally(3, Decimal("0.30"), ["a", "b", "c"])),
        (lambda: 0, lambda a, _: a + 10**20, 3 * 10**20),
        (lambda: None, lambda _, v: v, "c"),
        (lambda: dt.date(2024, 1, 1), lambda a, _: a + dt.timedelta(days=1), dt.date(2024, 1, 4)),
    ],
)
@pytest.mark.parametrize("window", [None, Tumbling(seconds=1), Session(gap=milliseconds(5))], ids=str)
def test_accumulators_of_the_program_s_own_come_back_as_they_were(initial, add, expected, window):
    caught: list[Any] = []
    aggregate = custom(initial, add, name="own", merge=lambda one, other: one)
    app = App("own", dead_letter_limit=1.0)
    grouped = app.stream("in", key=Text(), value=Json()).group_by_key()
    if window is None:
        grouped.aggregate("s", aggregate).to_stream().process(partial(Catching, caught))
    else:
        stream = grouped.window(window).aggregate("s", aggregate).updates(tombstones=True)
        stream.map(lambda windowed: windowed.value).filter(lambda v: v is not None).process(
            partial(Catching, caught)
        )
    driver = TopologyDriver(app)
    driver.send("in", "a", key="k", timestamp=1)
    driver.send("in", "b", key="k", timestamp=1)
    driver.restart()
    driver.send("in", "c", key="k", timestamp=1)
    assert caught[-1] == expected
    assert type(caught[-1]) is type(expected)


def test_an_accumulator_changed_by_a_call_that_fails_is_as_it_was():
    def add(seen: list[Any], value: Any) -> list[Any]:
        seen.append(value)
        if value == "bad":
            raise ValueError("bad")
        return seen

    app = App("own", dead_letter_limit=1.0)
    grouped = app.stream("in", key=Text(), value=Json()).group_by_key()
    grouped.aggregate("s", custom(list, add, name="own"), on_error=dead_letter).to("out", value=Json())
    grouped.reduce(
        "r",
        lambda so_far, value: add(so_far if isinstance(so_far, list) else [so_far], value),
        on_error=dead_letter,
    ).to("reduced", value=Json())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", value, 0) for value in ("a", "b", "bad", "c")])
    assert driver.values("out") == [["a", "b", "c"]]
    assert driver.values("reduced") == [["a", "b", "c"]]


def test_an_accumulator_that_cannot_be_stored_is_refused_with_its_record():
    aggregate: Aggregate[Any, Any] = custom(
        lambda: None, lambda _, v: Article(v, Decimal(1)) if v == "b" else v, name="own"
    )
    app = App("own", dead_letter_limit=1.0)
    grouped = app.stream("in", key=Text(), value=Json()).group_by_key()
    grouped.aggregate("s", aggregate, on_error=dead_letter).to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", value, 0) for value in ("a", "b")])
    assert driver.values("out") == ["a"]
    (letter,) = driver.dead_letters()
    assert letter.value == b'"b"'
    assert b"custom(\xe2\x80\xa6, type=\xe2\x80\xa6)" in (
        dict(letter.headers or [])["__streams.errors.message"] or b""
    )


def test_what_is_no_function_is_refused_when_the_aggregate_is_made():
    add: Any = max
    wrong: Any
    for wrong in (Decimal(0), 0, [], None, "x"):
        with pytest.raises(TopologyError, match="needs a function as initial"):
            custom(wrong, add, name="own")
    for argument in ("merge", "remove", "result"):
        options: dict[str, Any] = {argument: 0}
        with pytest.raises(TopologyError, match=f"needs a function as {argument}"):
            custom(lambda: 0, add, name="own", **options)
    with pytest.raises(TopologyError, match="cannot be stored"):
        custom(object, add, name="own")
    with pytest.raises(TopologyError, match="cannot be stored: ZeroDivisionError"):
        custom(lambda: 1 // 0, add, name="own")


# Order


def test_first_latest_and_collect_go_by_event_time_then_topic_then_offset():
    records = [(topic, offset, time) for topic in ("a", "b") for offset, time in enumerate((5, 1, 5, 3, 1))]
    expected = sorted((time, topic, offset) for topic, offset, time in records)
    draws = random.Random(11)
    for window in (
        None,
        Tumbling(seconds=1),
        Hopping(size=milliseconds(20), advance=milliseconds(10)),
        Session(gap=milliseconds(100)),
    ):
        for _ in range(12):
            caught: list[Any] = []
            app = App("order")
            grouped = app.stream(["a", "b"], key=Text(), value=Json()).group_by_key()
            aggregates: dict[str, Any] = {
                "first": first(),
                "latest": latest(),
                "all": collect(),
                "some": collect(limit=3),
            }
            if window is None:
                grouped.aggregate("s", **aggregates).to_stream().process(partial(Catching, caught))
            else:
                stream = grouped.window(window).aggregate("s", **aggregates).updates(tombstones=True)
                stream.map(lambda windowed: windowed.value).process(partial(Catching, caught))
            driver = TopologyDriver(app)
            waiting = {topic: [record for record in records if record[0] == topic] for topic in ("a", "b")}
            while waiting:
                topic = draws.choice(sorted(waiting))
                size = draws.randint(1, 3)
                part, waiting[topic] = waiting[topic][:size], waiting[topic][size:]
                driver.send_all(
                    topic, [Record("k", [time, topic, offset], time) for topic, offset, time in part]
                )
                if not waiting[topic]:
                    del waiting[topic]
                if draws.random() < 0.3:
                    driver.restart()
            wanted = [list(place) for place in expected]
            result = caught[-1]
            assert (result.first, result.latest) == (wanted[0], wanted[-1])
            assert list(result.all) == wanted
            assert list(result.some) == wanted[:3]


def test_sessions_that_are_joined_by_a_late_event_keep_the_order_of_time():
    for arrivals in ([1, 20, 40, 10, 30], [40, 30, 20, 10, 1], [20, 1, 40, 30, 10]):
        caught: list[Any] = []
        app = App("order")
        grouped = app.stream("in", key=Text(), value=Json()).group_by_key()
        stream = grouped.window(Session(gap=milliseconds(10)), grace=milliseconds(1000)).aggregate(
            "s", first=first(), latest=latest(), all=collect()
        )
        stream.updates(tombstones=True).map(lambda windowed: windowed.value).process(
            partial(Catching, caught)
        )
        driver = TopologyDriver(app)
        for time in arrivals:
            driver.send("in", time, key="k", timestamp=time)
            driver.restart()
        result = next(value for value in reversed(caught) if value is not None)
        assert (result.first, result.latest, result.all) == (1, 40, (1, 10, 20, 30, 40))


def test_ties_of_frequency_do_not_depend_on_the_order():
    results = set()
    for values in (["b", "a", "c", "a", "b", "c"], ["c", "c", "b", "b", "a", "a"]):
        aggregate = most_frequent(2)
        results.add(aggregate.result(aggregate.add(aggregate.initial(), list(aggregate.column(values)))))
    assert results == {(("a", 2), ("b", 2))}
    counted = most_frequent(5)
    mixed = [1, True, None, 1, True, True]
    assert counted.result(counted.add(counted.initial(), list(counted.column(mixed)))) == (
        (True, 3),
        (1, 2),
        (None, 1),
    )


def test_several_aggregates_of_several_are_one_result():
    nested = Combined({"n": count(), "inner": Combined({"last": latest(), "sum": total()})})
    accumulator = nested.add(nested.initial(), list(nested.column([Decimal("1.0"), 2])))
    packed = msgspec.msgpack.encode(nested.pack(accumulator))
    result = nested.result(nested.unpack(msgspec.msgpack.decode(packed)))
    assert (result.n, result.inner.last, result.inner.sum) == (2, 2, Decimal("3.0"))
