"""Which conditions hold, from what workers say."""

from __future__ import annotations

from typing import Any

import pytest

from streams.alerts.alert import AlertKey
from streams.alerts.conditions import FINDERS, Conditions, duration
from streams.alerts.figures import WorkerFigures, covers
from streams.alerts.rules import DEFAULTS, AlertName

NOW = 10_000_000_000


def worker(**known: Any) -> WorkerFigures:
    return WorkerFigures(time=NOW, **known)


def holding(*figures: WorkerFigures, rules: Any = DEFAULTS) -> dict[tuple[str, str], str]:
    found = Conditions("shop", rules, goal=30.0).holding(figures, NOW)
    return {(key.name.value, key.subject): symptom.sentence for key, symptom in found.items()}


QUIET = worker(partitions={"orders": [0]}, waiting={"orders": 0.0}, arrival_rate=0.0, processing_rate=0.0)


def test_nothing_holds_for_an_app_that_keeps_up():
    assert holding(QUIET, QUIET) == {}


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (
            [worker(waiting={"orders": 31.0, "returns": 2.0}), worker(waiting={"orders": 400.0})],
            {
                (
                    "StreamsBehind",
                    "orders",
                ): "App shop is behind: a record of orders has waited for 6 min 40 s."
            },
        ),
        (
            # 2,000 records at a gain of half a record a second take longer than an hour.
            [
                worker(waiting={"orders": 31.0}, lag=1_500, arrival_rate=1.0, processing_rate=1.25),
                worker(waiting={"orders": 1.0}, lag=500, arrival_rate=1.0, processing_rate=1.25),
            ],
            {
                ("StreamsBehind", "orders"): "App shop is behind: a record of orders has waited for 31 s.",
                (
                    "StreamsNotCatchingUp",
                    "",
                ): "App shop does not catch up within 1 h 0 min at the present rates, "
                "with 2,000 records to process.",
            },
        ),
        (
            [worker(stalled=1), worker(stalled=2)],
            {("StreamsStalled", ""): "3 partitions of app shop have records and make no progress."},
        ),
        (
            [worker(deleted_in={"orders": 86_400.0}), worker(deleted_in={"orders": 3_600.0})],
            {
                ("StreamsRetentionSoon", "orders"): "Topic orders deletes records in 1 h 0 min that app shop "
                "has not processed."
            },
        ),
        (
            [worker(records=1_000, dead_letters=5), worker(records=1_000, dead_letters=25)],
            {("StreamsDeadLetterShare", ""): "1.50% of the records of app shop become dead letters."},
        ),
        (
            [worker(rebalances=6), worker(rebalances=7)],
            {
                ("StreamsRebalanceStorm", ""): "The partitions of a worker of app shop have changed 7 times "
                "within ten minutes."
            },
        ),
        (
            [worker(to_restore=1_000), worker(to_restore=2_000)],
            {
                ("StreamsRestoreLong", ""): "App shop has been restoring stores for long, "
                "with 3,000 records left."
            },
        ),
        (
            [worker(oldest_due=301.0), worker()],
            {("StreamsJobsOverdue", ""): "A job of app shop has been due for 5 min 1 s and has not begun."},
        ),
        (
            [worker(next_instants={"nightly": NOW - 180_000, "weekly": NOW + 5})],
            {
                (
                    "StreamsCronMissed",
                    "nightly",
                ): "Schedule nightly of app shop is late or has missed instants, since 3 min 0 s."
            },
        ),
        (
            [worker(missed_instants={"nightly": NOW - 890_000, "weekly": NOW - 910_000})],
            {
                (
                    "StreamsCronMissed",
                    "nightly",
                ): "Schedule nightly of app shop is late or has missed instants, since 14 min 50 s."
            },
        ),
        (
            [worker(retained_bytes={"rows": 12.5e9})],
            {
                ("StreamsSlotUnhealthy", "rows"): "The replication slot of source rows of app shop makes its "
                "database keep 12.5 GB of its log."
            },
        ),
        (
            [worker(unavailable=["rows"]), worker(unavailable=["rows"])],
            {
                (
                    "StreamsConnectorUnavailable",
                    "rows",
                ): "Connector rows of app shop cannot be used: its system does not answer, or refuses."
            },
        ),
        (
            [
                worker(differences={"orders": 2}, difference_of={"orders": "2 records of orders-0: missing"}),
                worker(differences={"orders": 1}, difference_of={"orders": "1 record of orders-1: missing"}),
            ],
            {
                (
                    "StreamsLedgerDifference",
                    "orders",
                ): "3 records of orders are not accounted for in app shop: 2 records of orders-0: missing."
            },
        ),
        (
            [worker(unknown=True)],
            {
                ("StreamsConditionUnknown", ""): "What waits for app shop has not been known for long: "
                "its broker does not answer."
            },
        ),
        ([], {("StreamsNoWorkers", ""): "App shop has no workers."}),
    ],
)
def test_a_condition_that_holds_is_named_with_its_value(
    figures: list[WorkerFigures], expected: dict[tuple[str, str], str]
):
    assert holding(*figures) == expected


def test_every_alert_can_be_found_and_switched_off():
    assert set(FINDERS) | {AlertName.NO_WORKERS} == set(AlertName) == set(DEFAULTS)
    everything = worker(
        waiting={"orders": 1e6},
        deleted_in={"orders": 1.0},
        lag=1_000_000,
        arrival_rate=1.0,
        processing_rate=0.0,
        stalled=1,
        records=1,
        dead_letters=1,
        rebalances=100,
        to_restore=1,
        oldest_due=1e6,
        next_instants={"nightly": 0},
        retained_bytes={"rows": 1e12},
        unavailable=["rows"],
        differences={"orders": 1},
        difference_of={"orders": "1 record of orders-0: missing"},
        unknown=True,
    )
    assert {name for name, _ in holding(everything)} == {name.value for name in FINDERS}
    assert holding(everything, rules={}) == {}
    assert holding(rules={}) == {}


def test_what_is_unknown_of_one_worker_says_nothing_of_catching_up():
    late = worker(waiting={"orders": 31.0}, lag=1_000, arrival_rate=5.0, processing_rate=1.0)
    assert ("StreamsNotCatchingUp", "") in holding(late)
    assert ("StreamsNotCatchingUp", "") not in holding(late, worker(lag=10))


def test_it_is_known_what_waits_once_all_partitions_are_reported():
    one, two = worker(partitions={"a": [0, 1]}), worker(partitions={"a": [2], "b": [0]})
    assert covers([one, two], {"a": 3, "b": 1})
    assert not covers([one], {"a": 3, "b": 1})
    assert not covers([one, two], {"a": 3, "b": 2})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (3_661, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_durations_for_people(seconds: float, text: str):
    assert duration(seconds) == text


def test_keys_say_what_an_alert_is_about():
    assert str(AlertKey(AlertName.BEHIND, "orders")) == "StreamsBehind/orders"
    assert str(AlertKey(AlertName.STALLED, "")) == "StreamsStalled"
