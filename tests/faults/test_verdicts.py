"""Tests of the fault suite's rules on constructed histories, valid and invalid."""

from __future__ import annotations

from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import verdicts
from tests.faults.campaign import WORKER_FAULTS, plan
from tests.faults.traffic import Article, Brand, Reading, Sent
from tests.faults.verdicts import LeaderEpoch, Row, Sample, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

AMOUNTS = {"a": [5, 2, -1, 9], "b": [40]}
SENT = {
    key: [Sent(Reading(key, number, amount), 1_000 * number) for number, amount in enumerate(amounts, 1)]
    for key, amounts in AMOUNTS.items()
}
LOG = [
    Row(
        0, offset, item.reading.key, {"number": item.reading.number, "amount": item.reading.amount}, item.time
    )
    for offset, item in enumerate([*SENT["a"], *SENT["b"]])
]
COPIES = [
    Row(0, offset, row.key, row.value)
    for offset, row in enumerate(row for row in LOG if row.value["amount"] >= 0)
]


def rows(key: str, values: Iterable[Any]) -> list[Row]:
    return [Row(0, offset, key, value) for offset, value in enumerate(values)]


def running_of(key: str, numbers_and_amounts: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    amounts = [amount for _, amount in numbers_and_amounts]
    sums, lows, highs = accumulate(amounts), accumulate(amounts, min), accumulate(amounts, max)
    return [
        {"key": key, "number": number, "amount": amount, "count": at, "sum": total, "low": low, "high": high}
        for at, ((number, amount), total, low, high) in enumerate(
            zip(numbers_and_amounts, sums, lows, highs, strict=True), 1
        )
    ]


RUNNING_A = running_of("a", [(1, 5), (2, 2), (4, 9)])
RUNNING_B = running_of("b", [(1, 40)])


def broken(judge: Callable[..., None], *arguments: Any, **options: Any) -> set[str]:
    """The rules that a verdict finds broken."""
    verdict = Verdict()
    judge(verdict, *arguments, **options)
    return {violation.rule for violation in verdict.violations}


@pytest.mark.parametrize(
    ("found", "once", "at_least"),
    [
        (COPIES, set(), set()),
        (COPIES[1:], {"T"}, {"T"}),
        ([*COPIES, COPIES[0]], {"T"}, set()),
        ([COPIES[1], COPIES[0], *COPIES[2:]], {"T"}, {"T"}),
        ([*COPIES, Row(0, 9, "a", {"number": 3, "amount": -1})], {"T"}, {"T"}),
    ],
    ids=["right", "lost", "twice", "swapped", "poison"],
)
def test_copies(found, once, at_least):
    assert broken(verdicts.copies, LOG, found, exactly_once=True) == once
    assert broken(verdicts.copies, LOG, found, exactly_once=False) == at_least


def test_dead_letters():
    letter = Row(0, 0, "a", {"number": 3, "amount": -1})
    for found, expected in (
        ([letter], set()),
        ([], {"D"}),
        ([letter, letter], {"D"}),
        ([letter, COPIES[0]], {"D"}),
    ):
        assert broken(verdicts.dead_letters, LOG, found, exactly_once=True) == expected


@pytest.mark.parametrize(
    ("found", "once", "at_least"),
    [
        (RUNNING_A, set(), set()),
        (RUNNING_A[:-1], {"E3"}, {"E3"}),
        ([*RUNNING_A[:2], *RUNNING_A], {"E3"}, set()),
        ([RUNNING_A[0], RUNNING_A[2], RUNNING_A[1]], {"E3"}, {"E3"}),
        # State that was rolled back: right numbers, wrong sums.
        ([*RUNNING_A[:2], {**RUNNING_A[2], "count": 1, "sum": 9}], {"E3"}, {"E3"}),
    ],
    ids=["right", "lost", "again", "swapped", "fallen back"],
)
def test_running_results(found, once, at_least):
    everything = rows("a", found) + rows("b", RUNNING_B)
    assert broken(verdicts.running, SENT, everything, exactly_once=True) == once
    assert broken(verdicts.running, SENT, everything, exactly_once=False) == at_least


def test_results_have_the_keys_of_the_input():
    assert broken(verdicts.running, SENT, rows("a", RUNNING_A), exactly_once=True) == {"S3", "E3"}
    invented = rows("a", RUNNING_A) + rows("b", RUNNING_B) + rows("c", RUNNING_B)
    assert broken(verdicts.running, SENT, invented, exactly_once=True) == {"S3"}


GROUPS = {
    "group 5": running_of("a", [(1, 5)]),
    "group 2": running_of("a", [(2, 2)]),
    "group 9": [*running_of("a", [(4, 9)])],
}
MIXED = [
    {"key": "a", "number": 4, "amount": 9, "count": 1, "sum": 9, "low": 9, "high": 9},
    {"key": "b", "number": 1, "amount": 40, "count": 2, "sum": 49, "low": 9, "high": 40},
]


@pytest.mark.parametrize(
    ("mixed", "once", "at_least"),
    [
        (MIXED, set(), set()),
        (MIXED[:1], {"E5"}, {"E5"}),
        ([*MIXED, MIXED[1]], {"E5"}, set()),
        ([*MIXED, {**MIXED[1], "count": 3, "sum": 89}], {"E5"}, set()),
        ([MIXED[0], {**MIXED[1], "count": 1, "sum": 40, "low": 40}], {"E5"}, {"E5"}),
        ([MIXED[0], {**MIXED[1], "sum": 50}], {"E5"}, {"E5"}),
        (MIXED[::-1], {"E5"}, set()),
    ],
    ids=["right", "lost", "result twice", "record twice", "fallen back", "wrong sum", "back"],
)
def test_running_results_downstream_of_a_repartition_topic(mixed, once, at_least):
    groups = {name: values for name, values in GROUPS.items() if name != "group 9"} | {"group 9": mixed}
    found = [row for name, values in groups.items() for row in rows(name, values)]
    assert broken(verdicts.running_groups, SENT, found, exactly_once=True) == once
    assert broken(verdicts.running_groups, SENT, found, exactly_once=False) == at_least


def test_a_repartition_topic_keeps_the_order_of_a_key():
    sent = {"a": [Sent(Reading("a", number, 31 * number), 0) for number in (1, 2)]}
    swapped = running_of("a", [(2, 62), (1, 31)])
    assert broken(verdicts.running_groups, sent, rows("group 0", swapped), exactly_once=True) == {"E5"}


def test_totals():
    def result(number: int, total: int, low: int, high: int) -> dict[str, int]:
        return {"number": number, "sum": total, "low": low, "high": high}

    b = rows("b", [result(1, 40, 40, 40)])
    first, last = result(1, 5, 5, 5), result(3, 16, 2, 9)
    for found, once, at_least in (
        ([first, last], set(), set()),
        ([last], set(), set()),
        ([first], {"S2"}, {"S2"}),
        ([last, last], {"S2"}, set()),
        ([result(1, 6, 5, 5), last], {"S2"}, {"S2"}),
        ([result(4, 16, 2, 9), last], {"S2"}, {"S2"}),
    ):
        everything = rows("a", found) + b
        assert broken(verdicts.totals, SENT, everything, exactly_once=True) == once
        assert broken(verdicts.totals, SENT, everything, exactly_once=False) == at_least


def test_counts_of_counts():
    right = rows("count 3", [1]) + rows("count 1", [1, 2, 1])
    assert broken(verdicts.counts_of_counts, SENT, right, exactly_once=True) == set()
    assert broken(verdicts.counts_of_counts, SENT, right[:-1], exactly_once=True) == {"S5"}
    left_over = [*right, *rows("count 2", [1])]
    assert broken(verdicts.counts_of_counts, SENT, left_over, exactly_once=True) == {"S5"}


def test_windows():
    def reading(offset: int, number: int, time: int, amount: int = 1) -> Row:
        return Row(0, offset, "a", {"number": number, "amount": amount}, time)

    log = [
        reading(0, 1, 1_000),
        reading(1, 2, 12_000),
        reading(2, 3, 2_000),
        reading(3, 4, 3_000, amount=-1),
        reading(4, 5, 15_000),
        reading(5, 6, 4_000),
        reading(6, 7, 26_000),
    ]
    final = rows("a", [{"start": 0, "value": 2}, {"start": 10_000, "value": 2}])
    late = rows("a", [{"number": 6}])
    # The second window is open until 25,000, the third has not closed.
    assert broken(verdicts.windows, log, final, late, exactly_once=True) == set()
    assert broken(verdicts.windows, log, final[:1], late, exactly_once=True) == {"S4"}
    assert broken(verdicts.windows, log, [*final, final[0]], late, exactly_once=True) == {"S4"}
    assert broken(verdicts.windows, log, [*final, final[0]], late, exactly_once=False) == set()
    wrong = [final[0]._replace(value={"start": 0, "value": 3}), final[1]]
    assert broken(verdicts.windows, log, wrong, late, exactly_once=False) == {"W"}
    early = [*final, *rows("a", [{"start": 20_000, "value": 1}])]
    assert broken(verdicts.windows, log, early, late, exactly_once=True) == {"W"}
    assert broken(verdicts.windows, log, final, [], exactly_once=True) == {"W"}


def test_branded():
    articles = {"x": [Article(1, "p"), Article(2, "q")]}
    brands = {"p": [Brand(1)], "q": [Brand(1), Brand(2)]}
    last = {"article": 2, "brand": "q", "version": 2}
    for found, expected in (
        ([{"article": 1, "brand": "p", "version": 1}, None, last], set()),
        ([{"article": 1, "brand": "q", "version": 1}, last], {"R"}),
        ([last, {"article": 2, "brand": "q", "version": 1}], {"R"}),
        ([{"article": 1, "brand": "p", "version": 2}, last], {"R"}),
        ([], {"R"}),
    ):
        assert broken(verdicts.branded, articles, brands, rows("x", found)) == expected


def test_enriched():
    articles = {"x": [Article(1, "p"), Article(2, "p")]}
    orders = {1: "x", 2: "x"}

    def result(number: int, version: int) -> dict[str, int]:
        return {"number": number, "version": version}

    for found, once, at_least in (
        ([result(1, 1), result(2, 2)], set(), set()),
        ([result(1, 2), result(2, 1)], {"R"}, set()),
        ([result(1, 1)], {"R"}, {"R"}),
        ([result(1, 1), result(1, 1), result(2, 1)], {"R"}, set()),
        ([result(1, 1), result(2, 3)], {"R"}, {"R"}),
    ):
        assert broken(verdicts.enriched, orders, articles, rows("x", found), exactly_once=True) == once
        assert broken(verdicts.enriched, orders, articles, rows("x", found), exactly_once=False) == at_least


def test_inputs():
    assert broken(verdicts.inputs, SENT, LOG) == set()
    assert broken(verdicts.inputs, SENT, LOG[1:]) == {"J"}
    assert broken(verdicts.inputs, SENT, [*LOG, LOG[0]]) == {"J"}


@pytest.mark.parametrize(
    "polls",
    [
        [[COPIES[1], COPIES[0]]],
        [COPIES[:2], COPIES[1:]],
        [[COPIES[0], Row(0, 17, "a", "aborted")]],
        [[COPIES[0]._replace(value="another")]],
        [[COPIES[0], COPIES[2]]],
    ],
    ids=["inverted within a poll", "again", "aborted read", "another value", "appeared behind"],
)
def test_histories_that_a_log_cannot_have(polls):
    assert broken(verdicts.history, "copies", polls, COPIES) == {"J"}


def test_histories_that_a_log_can_have():
    assert broken(verdicts.history, "copies", [COPIES[:1], COPIES[1:3]], COPIES) == set()


def test_a_producers_order():
    assert broken(verdicts.producer_order, "copies", COPIES) == set()
    assert broken(verdicts.producer_order, "copies", COPIES[1::-1]) == {"J"}


def test_committed_is_behind_processed():
    judge = verdicts.committed_was_processed
    assert broken(judge, LOG, COPIES, [Sample({0: 2}, {0: 2}), Sample({0: 3}, {0: 2})]) == set()
    assert broken(judge, LOG, COPIES, [Sample({0: 2}, {0: 1})]) == {"M"}
    assert broken(judge, LOG, COPIES[:-1], [Sample({0: 5}, {0: 9})]) == {"M"}


def test_an_end_reported_by_a_replaced_leader_says_nothing_of_its_successor():
    judge = verdicts.committed_was_processed
    leaders = {0: [LeaderEpoch(0, 0), LeaderEpoch(1, 1)]}
    assert broken(judge, LOG, COPIES, [Sample({0: 2}, {0: 1}, {0: 0})], leaders) == set()
    assert broken(judge, LOG, COPIES, [Sample({0: 2}, {0: 1}, {0: 1})], leaders) == {"M"}
    assert broken(judge, LOG, COPIES, [Sample({0: 1}, {0: 0}, {0: 0})], leaders) == {"M"}
    assert broken(judge, LOG, COPIES[:1], [Sample({0: 2}, {0: 1}, {0: 0})], leaders) == {"M"}


def test_checkpoints():
    assert broken(verdicts.checkpoints, "0", {"s": 5}, {"s": 5, "new": 1}) == set()
    assert broken(verdicts.checkpoints, "0", {"s": 5}, {"s": 4}) == {"M"}


def test_a_seed_gives_a_plan_with_every_kind_in_each_round():
    first, again, other = (list(islice(plan(seed, WORKER_FAULTS), 50)) for seed in (1, 1, 2))
    assert first == again != other
    assert set(first[: len(WORKER_FAULTS)]) == set(WORKER_FAULTS)
