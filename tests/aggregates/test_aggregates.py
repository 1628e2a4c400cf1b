"""Aggregates compared with brute force over all values, with any batches."""

from __future__ import annotations

import copy
import math
import random
import statistics
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from streams.aggregates import (
    Aggregate,
    Combined,
    collect,
    count,
    custom,
    distinct,
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
from streams.errors import TopologyError

if TYPE_CHECKING:
    from collections.abc import Sequence

integers = st.integers(-(10**25), 10**25)
floats = st.floats(-1e140, 1e140)
numbers = st.one_of(st.integers(-5, 5), st.floats(-5, 5), integers, floats)
texts = st.text(max_size=2)
plain = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), texts, st.lists(st.integers(0, 3), max_size=2)
)

ADDING: Aggregate[Any, Any] = custom(
    lambda: 0, lambda so_far, value: so_far + value, name="adding", merge=lambda a, b: a + b
)
NAMES: Aggregate[Any, Any] = custom(
    set,
    lambda names, value: names | {value},
    name="names",
    merge=lambda one, other: one | other,
    result=lambda names: tuple(sorted(names)),
    type=set[str],
)

EXACT: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (count(), plain),
    (total(), numbers),
    (mean(), numbers),
    (variance(), numbers),
    (variance(sample=True), numbers),
    (minimum(), numbers),
    (maximum(), numbers),
    (top(3), numbers),
    (first(), plain),
    (latest(), plain),
    (collect(), plain),
    (collect(limit=3), plain),
    (quantile(0.5), numbers),
    (quantile(0.99, error=0.1), numbers),
    (distinct(), plain),
    (distinct(error=0.2), texts),
    (most_frequent(2), texts),
    (ADDING, st.integers(-9, 9)),
    (NAMES, texts),
    (Combined({"events": count(), "all": total(), "least": minimum(), "bins": quantile(0.5)}), numbers),
]
"""Aggregates that do not depend on batches, each with values for it."""


def named(parameter: Any) -> str:
    return parameter.describe() if hasattr(parameter, "describe") else ""


def accumulated(aggregate: Aggregate[Any, Any], *batches: Sequence[Any]) -> Any:
    accumulator = aggregate.initial()
    for batch in batches:
        accumulator = aggregate.add(accumulator, list(aggregate.column(batch)))
    return accumulator


def computed(aggregate: Aggregate[Any, Any], values: Sequence[Any]) -> Any:
    return aggregate.result(accumulated(aggregate, values))


@pytest.mark.parametrize(("aggregate", "values"), EXACT, ids=named)
@given(st.data())
def test_batches_and_merging_make_no_difference(aggregate, values, data):
    one, other = (data.draw(st.lists(values, max_size=20)) for _ in range(2))
    at_once = accumulated(aggregate, one + other)
    assert accumulated(aggregate, one, other) == at_once
    assert accumulated(aggregate, *([value] for value in one + other)) == at_once
    assert aggregate.merge(accumulated(aggregate, one), accumulated(aggregate, other)) == at_once


@pytest.mark.parametrize(("aggregate", "values"), EXACT, ids=named)
@given(st.data())
def test_accumulators_survive_msgpack_and_are_never_changed(aggregate, values, data):
    one, other = (data.draw(st.lists(values, max_size=20)) for _ in range(2))
    before, second = accumulated(aggregate, one), accumulated(aggregate, other)
    kept = copy.deepcopy(before)
    packed = msgspec.msgpack.encode(aggregate.pack(before))
    unpacked = aggregate.unpack(msgspec.msgpack.decode(packed))
    assert unpacked == before
    assert type(unpacked) is type(before)
    assert aggregate.result(unpacked) == aggregate.result(before)
    column = list(aggregate.column(other))
    aggregate.add(before, column)
    aggregate.merge(before, second)
    aggregate.merge(second, before)
    if aggregate.removable:
        aggregate.remove(before, list(aggregate.column(one)))
    assert before == kept
    assert column == list(aggregate.column(other))


REMOVABLE = [(aggregate, values) for aggregate, values in EXACT if aggregate.removable]


def test_which_aggregates_can_remove_events():
    kinds = {aggregate.describe().partition("(")[0] for aggregate, _ in REMOVABLE}
    assert kinds == {"count", "total", "mean", "variance", "quantile"}
    with pytest.raises(TypeError, match=r"maximum\('price'\) cannot remove events"):
        maximum("price").remove(3, [3])


@pytest.mark.parametrize(("aggregate", "values"), REMOVABLE, ids=named)
@given(st.data())
def test_removing_is_the_opposite_of_adding(aggregate, values, data):
    one, other = (data.draw(st.lists(values, max_size=20)) for _ in range(2))
    both = accumulated(aggregate, one, other)
    left = aggregate.remove(both, list(aggregate.column(other)))
    expected = aggregate.result(accumulated(aggregate, one))
    # A total that had floats in it stays a float.
    assert aggregate.result(left) == (
        float(expected) if isinstance(aggregate.result(left), float) else expected
    )


def test_a_mean_of_large_integers_is_rounded_once_also_after_a_float_was_removed():
    numbers = [0, 0, 0, 0, 9_792_847_725_241_375]
    left = mean().remove(accumulated(mean(), numbers, [0.0]), [0.0])
    assert mean().result(left) == computed(mean(), numbers) == 1958569545048275.0


@given(st.lists(integers))
def test_a_total_of_integers_is_an_exact_integer(values):
    result = computed(total(), values)
    assert result == sum(values)
    assert type(result) is int


@given(st.lists(numbers))
def test_totals_and_means_are_those_of_exact_arithmetic(values):
    exact = sum(map(Fraction, values), Fraction())
    assert computed(total(), values) == (
        exact if all(type(value) is int for value in values) else float(exact)
    )
    if values:
        assert computed(mean(), values) == pytest.approx(float(exact / len(values)), rel=1e-15, abs=0)


@given(st.lists(floats, min_size=1), st.booleans())
def test_a_variance_is_that_of_exact_arithmetic(values, sample):
    result = computed(variance(sample=sample), values)
    if sample and len(values) == 1:
        assert result is None
        return
    exact = [Fraction(value) for value in values]
    middle = sum(exact, Fraction()) / len(exact)
    spread = sum(((value - middle) ** 2 for value in exact), Fraction()) / (len(exact) - sample)
    assert result == pytest.approx(float(spread), rel=1e-15, abs=1e-300)


def test_a_variance_stays_right_where_squares_hide_it():
    values = [1e9 + 4, 1e9 + 7, 1e9 + 13, 1e9 + 16]
    assert computed(variance(sample=True), values) == 30.0
    assert computed(variance(), [0.1] * 10) == 0.0
    moments = variance()
    with_outlier = accumulated(moments, values, [1e100])
    assert moments.result(moments.remove(with_outlier, [1e100])) == statistics.pvariance(values)


@given(st.lists(numbers), st.integers(1, 5))
def test_extremes_are_those_of_all_values(values, n):
    assert computed(minimum(), values) == min(values, default=None)
    assert computed(maximum(), values) == max(values, default=None)
    assert computed(top(n), values) == tuple(sorted(values, reverse=True)[:n])


@given(st.lists(plain), st.integers(1, 5))
def test_values_are_returned_in_order(values, limit):
    assert computed(first(), values) == (values[0] if values else None)
    assert computed(latest(), values) == (values[-1] if values else None)
    assert computed(collect(), values) == tuple(values)
    assert computed(collect(limit=limit), values) == tuple(values[:limit])


class Order(msgspec.Struct, frozen=True):
    price: float
    tags: tuple[str, ...] = ()


@dataclass
class Sale:
    price: float


def test_objects_are_returned_with_their_type():
    order = Order(1.5, ("a",))
    with pytest.raises(TypeError, match=r"Order cannot be read back without its type.*latest\(…, type=…\)"):
        computed(latest(), [order])
    assert computed(latest().typed(Order), [order]) == order
    assert computed(latest("tags").typed(Order), [order]) == ("a",)
    assert computed(latest(type=Order), [order]) == order
    assert computed(first("tags", type=tuple[str, ...]), [order]) == ("a",)
    assert computed(collect(type=Order), [order, order]) == (order, order)
    kept = collect(type=Order)
    packed = msgspec.msgpack.encode(kept.pack(accumulated(kept, [order])))
    assert kept.result(kept.unpack(msgspec.msgpack.decode(packed))) == (order,)


# Relative to what is stated, room for the rounding of logarithms only.
ROUNDING = 1 + 1e-9


@given(
    st.lists(
        st.one_of(st.integers(-1000, 1000), st.floats(-1e300, 1e300), st.floats(-10, 10)), min_size=1
    ).map(lambda values: [value if abs(value) >= 1e-300 else 0.0 for value in values]),
    st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]), st.floats(0, 1)),
    st.sampled_from([0.3, 0.05, 0.01, 0.0001]),
)
def test_a_quantile_is_within_the_stated_error(values, q, error):
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    assert abs(computed(quantile(q, error=error), values) - exact) <= error * abs(exact) * ROUNDING


def test_a_quantile_of_extreme_floats_is_a_float():
    largest, smallest = 1.7976931348623157e308, 2.2250738585072014e-308
    for number in (largest, -largest, smallest, -smallest):
        assert computed(quantile(0.5), [number]) == pytest.approx(number, rel=0.01 * ROUNDING)
    assert computed(quantile(0.5), [5e-324]) == 0.0
    assert computed(quantile(0.5), []) is None


def test_quantiles_of_many_values_keep_few_bins():
    draws = random.Random(7)
    values = [draws.lognormvariate(4, 2) for _ in range(100_000)]
    for q in (0.01, 0.5, 0.95, 0.999):
        sketch = accumulated(quantile(q), values)
        exact = sorted(values)[math.floor(q * (len(values) - 1))]
        assert quantile(q).result(sketch) == pytest.approx(exact, rel=0.01 * ROUNDING)
        assert len(sketch) < 1000


@pytest.mark.parametrize("error", [0.2, 0.05, 0.01])
@pytest.mark.parametrize("different", [1, 10, 1_000, 5_000, 30_000, 100_000])
def test_distinct_values_are_counted_within_three_standard_errors(error, different):
    sketch = distinct(error=error)
    values = [f"{error}-user-{number}" for number in range(different)]
    half = different // 2
    accumulator = sketch.merge(accumulated(sketch, values[:half]), accumulated(sketch, values[half // 2 :]))
    assert abs(sketch.result(accumulator) - different) <= 3 * error * different
    assert accumulator == accumulated(sketch, values)
    assert accumulator == accumulated(sketch, values + values[:500])
    unpacked = sketch.unpack(msgspec.msgpack.decode(msgspec.msgpack.encode(sketch.pack(accumulator))))
    assert unpacked == accumulator


def test_distinct_estimates_have_no_bias():
    sketch = distinct(error=0.05)
    for different in (50, 500, 1_500, 5_000):
        estimates = [
            computed(sketch, [run * 10_000 + number for number in range(different)]) for run in range(100)
        ]
        # The mean of 100 estimates has a tenth of the standard error of one.
        assert statistics.fmean(estimates) == pytest.approx(different, rel=3 * 0.05 / 10)
        assert statistics.pstdev(estimates, different) <= 1.2 * 0.05 * different


def test_few_distinct_values_are_counted_exactly():
    assert computed(distinct(), [number % 1024 for number in range(5000)]) == 1024
    assert computed(distinct(), [{"a": 1, "b": 2}, {"b": 2, "a": 1}, (1,), [1], 1, 1.0, True]) == 5


@given(
    st.lists(st.lists(st.integers(0, 30), max_size=40), min_size=1, max_size=6),
    st.integers(1, 10),
    st.data(),
)
def test_frequent_values_have_counts_within_the_guarantee(batches, capacity, data):
    sketch = most_frequent(capacity, capacity=capacity)
    split = data.draw(st.integers(0, len(batches)))
    accumulator = sketch.merge(accumulated(sketch, *batches[:split]), accumulated(sketch, *batches[split:]))
    exact = Counter(value for batch in batches for value in batch)
    result = dict(sketch.result(accumulator))
    assert len(accumulator[1]) <= capacity
    allowed = exact.total() / (capacity + 1)
    assert accumulator[0] <= allowed
    for value, events in exact.items():
        assert events - allowed <= result.get(value, 0) <= events
    assert list(result.values()) == sorted(result.values(), reverse=True)


def test_frequent_values_are_exact_while_they_fit():
    words = ["a"] * 5 + ["b"] * 7 + ["c", "d"]
    assert computed(most_frequent(2, capacity=4), words) == (("b", 7), ("a", 5))


def test_a_program_s_own_functions():
    assert ADDING.record_wise
    assert ADDING.mergeable
    assert not ADDING.removable
    assert computed(NAMES, ["b", "a", "b"]) == ("a", "b")
    both = custom(lambda: 0, lambda a, b: a + b, remove=lambda a, b: a - b, name="both", of="price")
    assert both.removable
    assert not both.mergeable
    assert both.remove(both.add(0, [5, 6]), [5]) == 6
    assert list(both.column([Sale(3.0), {"price": 4}])) == [3.0, 4]
    with pytest.raises(TypeError, match=r"custom\('price', name='both'\) has no function merge"):
        both.merge(1, 2)
    with pytest.raises(TypeError, match="has no function remove"):
        ADDING.remove(1, [2])


def test_several_at_once_give_a_struct():
    sales = Combined({"sales": count(), "revenue": total("price"), "prices": collect("price")})
    result = computed(sales, [Sale(1.5), Sale(2.0)])
    assert (result.sales, result.revenue, result.prices) == (2, 3.5, (1.5, 2.0))
    assert msgspec.json.encode(result) == b'{"sales":2,"revenue":3.5,"prices":[1.5,2.0]}'
    assert hash(result) == hash(computed(sales, [Sale(1.5), Sale(2.0)]))
    assert not sales.record_wise
    assert not sales.removable
    assert sales.mergeable
    assert sales.add(sales.initial(), []) == sales.initial()
    assert Combined({"a": ADDING, "b": count()}).record_wise
    nested = Combined({"outer": Combined({"inner": count()})})
    assert computed(nested, ["x"]).outer.inner == 1


@pytest.mark.parametrize(
    "source",
    [
        (None, [1, 2.5, 3]),
        ("price", [Sale(1), Sale(2.5), Sale(3)]),
        ("price", [{"price": 1}, {"price": 2.5}, {"price": 3}]),
        ("price", [{"price": 1}, Sale(2.5), Order(3)]),
        (lambda sale: sale.price, [Sale(1), Sale(2.5), Sale(3)]),
    ],
)
def test_a_column_is_a_field_a_key_or_a_function_of_the_value(source):
    of, values = source
    assert list(total(of).column(values)) == [1, 2.5, 3]
    assert computed(total(of), values) == 6.5


def until_it_fails(column: Any) -> tuple[list[Any], str]:
    """The entries of a column before it raised, and the error."""
    taken: list[Any] = []
    try:
        taken.extend(column)
    except Exception as error:  # noqa: BLE001 - whatever it is
        return taken, f"{type(error).__name__}: {error}"
    return taken, ""


@pytest.mark.parametrize(
    ("aggregate", "values", "message"),
    [
        (total(), [1, True], "TypeError: total() needs numbers, got bool: True"),
        (mean("p"), [{"p": 1}, {"p": "x"}], "TypeError: mean('p') needs numbers, got str: 'x'"),
        (total(), [1, None, 3], "TypeError: total() needs numbers, got NoneType: None"),
        (maximum(), [1, float("nan")], "ValueError: maximum() needs numbers, got NaN"),
        (total(), [1, float("inf")], "ValueError: total() needs numbers up to 1e+290, got inf"),
        (total(), [1, -(10**400)], "ValueError: total() needs numbers up to 1e+290, got -1000"),
        (variance(), [1, 1e150], "ValueError: variance(sample=False) needs numbers up to 1e+145, got 1e+150"),
        (quantile(0.5), [1, float("-inf")], "ValueError: quantile(q=0.5, error=0.01) needs numbers up to"),
        (total("p"), [{"p": 1}, {}], "KeyError: 'p'"),
        (total("price"), [Sale(1), 5], "AttributeError: 'int' object has no attribute 'price'"),
        (total(lambda value: 1 / value), [1, 0, 1], "ZeroDivisionError"),
        (total(str), [1], "TypeError: total(str) needs numbers, got str: '1'"),  # type: ignore[type-var]  # refused by the type checker too
        (collect(), [1, 2**70], "OverflowError"),
        (latest(), ["a", "\ud800"], "UnicodeEncodeError"),
        (latest(), ["a", object()], "TypeError"),
        (first(type=int), [1, "x"], "ValidationError"),
        (distinct(), [1, object()], "TypeError"),
        (most_frequent(1), ["a", 1.5], "TypeError: most_frequent(n=1, capacity=1000) needs text, bytes"),
        (Combined({"n": count(), "p": total("p")}), [{"p": 1}, {"p": []}], "TypeError: total('p') needs"),
    ],
)
def test_a_value_that_cannot_be_aggregated_is_where_the_column_ends(aggregate, values, message):
    taken, error = until_it_fails(aggregate.column(values))
    assert len(taken) == (0 if values == [1] else 1)
    assert error.startswith(message)


def test_infinite_numbers_have_a_place_among_extremes():
    assert computed(maximum(), [1, float("inf")]) == float("inf")
    assert computed(minimum(), [10**400, 5]) == 5


def test_a_user_s_function_sees_each_value_once():
    seen = []

    def price(value):
        seen.append(value)
        return "bad" if value == 2 else value

    until_it_fails(total(price).column([1, 2, 3]))
    assert seen == [1, 2]


def test_numbers_of_a_subclass_become_plain_numbers():
    class Grade(int):
        pass

    column = list(total().column([Grade(2), 1]))
    assert column == [2, 1]
    assert set(map(type, column)) == {int}


def test_descriptions_stay_as_they_are():
    def price(sale):
        return sale.price

    assert [
        aggregate.describe()
        for aggregate in (
            count(),
            total("price"),
            total(price),
            minimum(),
            maximum("price"),
            mean("price"),
            variance("price"),
            quantile(0.99, "price"),
            top(3, "price"),
            most_frequent(5, "user"),
            distinct("user"),
            collect("user", limit=9),
            first("user"),
            latest(),
            custom(int, max, name="mine"),
            Combined({"n": count(), "sum": total("price")}),
        )
    ] == [
        "count()",
        "total('price')",
        "total(price)",
        "minimum()",
        "maximum('price')",
        "mean('price')",
        "variance('price', sample=False)",
        "quantile('price', q=0.99, error=0.01)",
        "top('price', n=3)",
        "most_frequent('user', n=5, capacity=1000)",
        "distinct('user', error=0.01)",
        "collect('user', limit=9)",
        "first('user')",
        "latest()",
        "custom(name='mine')",
        "combined(n=count(), sum=total('price'))",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: top(0), "top needs n of at least 1, got 0"),
        (lambda: quantile(99), "quantile needs q from 0 to 1, got 99"),
        (lambda: quantile(0.5, error=0), "quantile needs an error from 1e-6 to 0.5, got 0"),
        (lambda: distinct(error=0.001), "distinct needs an error from 0.0021 to 0.26, got 0.001"),
        (lambda: most_frequent(5, capacity=4), "most_frequent needs a capacity of at least 5, got 4"),
        (lambda: collect(limit=0), "collect needs a limit of at least 1, got 0"),
        (lambda: Combined({}), "Combined needs at least one field"),
        (lambda: Combined({"class": count()}), "names that can be attributes .*, got 'class'"),
        (lambda: Combined({"a b": count()}), "got 'a b'"),
        (lambda: Combined({"_a": count()}), "got '_a'"),
    ],
)
def test_parameters_that_cannot_be_say_why(make, message):
    with pytest.raises(TopologyError, match=message):
        make()
