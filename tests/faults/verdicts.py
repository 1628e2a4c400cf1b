"""The rules for committed topics after faults, checked from outside.

They follow the system tests of Kafka Streams and Kafka, and Jepsen's tests of logs, adapted to the output of
``fault_app``. Each is a pure function of histories:

========  ==========================================================================================
E2        a result for each good reading up to the committed offsets, and for none beyond
E3        the i-th result of a key is the total of its first i readings
E5        the same downstream of a repartition topic, and each reading went through it
S2        last values: numbers, sums and extremes of each key
S3        the keys of the results are those of the input
S4, W     exactly one final result for each window, equal to brute force; late readings are reported
S5        downstream of retracted changes: how many keys have each count
T         copies: nothing lost, nothing repeated, in order, partition by partition
D         exactly one dead letter for each failing reading
R         joins equal brute force; joined versions never decrease
J         one value for each offset; no aborted reads; no lost writes; order within polls and producers
M         committed offsets never exceed processed ones; checkpoints never decrease; stops take seconds
L         workers end by themselves only where that is the fault
========  ==========================================================================================

Under ``at_least_once`` results may only be repeated: each is right, and none is missing.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.faults.traffic import GRACE, GROUPS, WINDOW, Article, Brand, Reading, Sent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Row(NamedTuple):
    """One committed record; ``value`` is decoded JSON."""

    partition: int
    offset: int
    key: str
    value: Any
    time: int = 0


class Violation(NamedTuple):
    """A rule that was broken, and how."""

    rule: str
    what: str


@dataclass(slots=True)
class Verdict:
    """The number of checks by rule, the violations, and the number of repeated results."""

    checked: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    repeated: Counter[str] = field(default_factory=Counter)

    def add(self, rule: str, what: str) -> None:
        self.violations.append(Violation(rule, what))

    @property
    def records(self) -> int:
        return self.checked.total()


def good(readings: Sequence[Sent]) -> list[Reading]:
    return [item.reading for item in readings if item.reading.amount >= 0]


def by_key(rows: Sequence[Row]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.key].append(row.value)
    return found


def by_partition(rows: Sequence[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.partition].append(row)
    return found


def inputs(verdict: Verdict, sent: Mapping[str, Sequence[Sent]], log: Sequence[Row]) -> None:
    """J: acknowledged records exist exactly once, in the order in which they were written."""
    found = by_key(log)
    for key, readings in sent.items():
        verdict.checked["J"] += len(found.get(key, ()))
        if [value["number"] for value in found.get(key, ())] != [item.reading.number for item in readings]:
            verdict.add(
                "J", f"input of {key}: {len(found.get(key, ()))} of {len(readings)}, or in another order"
            )


def copies(verdict: Verdict, log: Sequence[Row], found: Sequence[Row], *, exactly_once: bool) -> None:
    """T, E2, E4: each partition of the copies equals the input's, without failing readings."""
    outputs = by_partition(found)
    for partition, rows in by_partition(log).items():
        expected = [(row.key, row.value["number"]) for row in rows if row.value["amount"] >= 0]
        results = [(row.key, row.value["number"]) for row in outputs.get(partition, ())]
        _sequence(
            verdict, "T", f"copies, partition {partition}", expected, results, exactly_once=exactly_once
        )


def dead_letters(verdict: Verdict, log: Sequence[Row], found: Sequence[Row], *, exactly_once: bool) -> None:
    """D: the failing readings, unchanged."""
    outputs = by_partition(found)
    for partition, rows in by_partition(log).items():
        expected = [(row.key, row.value["number"]) for row in rows if row.value["amount"] < 0]
        results = [(row.key, row.value["number"]) for row in outputs.get(partition, ())]
        _sequence(
            verdict, "D", f"dead letters, partition {partition}", expected, results, exactly_once=exactly_once
        )


def _sequence(
    verdict: Verdict, rule: str, what: str, expected: list[Any], results: list[Any], *, exactly_once: bool
) -> None:
    verdict.checked[rule] += len(results)
    verdict.repeated[rule] += len(results) - len(set(results))
    if results == expected:
        return
    lost, invented = set(expected) - set(results), set(results) - set(expected)
    twice = [item for item, times in Counter(results).items() if times > 1]
    firsts = list(dict.fromkeys(results))
    if lost or invented:
        verdict.add(
            rule,
            f"{what}: of {len(expected)} lost {len(lost)} {sorted(lost)[:3]}, new {sorted(invented)[:3]}",
        )
    elif exactly_once and twice:
        verdict.add(rule, f"{what}: repeated {len(twice)} {twice[:3]}")
    elif firsts != expected:
        verdict.add(rule, f"{what}: in another order")


def running(
    verdict: Verdict, sent: Mapping[str, Sequence[Sent]], found: Sequence[Row], *, exactly_once: bool
) -> None:
    """E3, S3: prefix by prefix, which reveals loss, repetition, reordering and rolled-back state."""
    results = by_key(found)
    keys = {key for key, readings in sent.items() if good(readings)}
    if results.keys() != keys:
        verdict.add("S3", f"keys without results, or invented: {sorted(results.keys() ^ keys)[:3]}")
    for key in keys:
        readings = good(sent[key])
        amounts = [reading.amount for reading in readings]
        sums, lows, highs = _prefixes(amounts)
        expected = [
            (reading.number, at + 1, sums[at], lows[at], highs[at]) for at, reading in enumerate(readings)
        ]
        rows = [
            (row["number"], row["count"], row["sum"], row["low"], row["high"]) for row in results.get(key, ())
        ]
        _sequence(verdict, "E3", f"running results of {key}", expected, rows, exactly_once=exactly_once)


def running_groups(
    verdict: Verdict, sent: Mapping[str, Sequence[Sent]], found: Sequence[Row], *, exactly_once: bool
) -> None:
    """E5: each result is of a prefix of the repartition topic, whatever order readings have there.

    A record that is repeated in that topic counts again; the results of the same record must then be equal.
    """
    members: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for readings in sent.values():
        for reading in good(readings):
            members[f"group {reading.amount % GROUPS}"].add((reading.key, reading.number))
    results = by_key(found)
    for group in members.keys() | results.keys():
        rows = results.get(group, [])
        verdict.checked["E5"] += len(rows)
        sources = [(row["key"], row["number"]) for row in rows]
        verdict.repeated["E5"] += len(rows) - len(set(sources))
        if set(sources) != members.get(group, set()):
            lost = members.get(group, set()) - set(sources)
            verdict.add(
                "E5", f"{group}: lost {len(lost)} {sorted(lost)[:3]} of {len(members.get(group, ()))}"
            )
            continue
        if exactly_once and len(sources) != len(set(sources)):
            twice = [item for item, times in Counter(sources).items() if times > 1]
            verdict.add("E5", f"{group}: repeated {len(twice)} {twice[:3]}")
            continue
        latest: dict[str, int] = {}
        for key, number in dict.fromkeys(sources):
            if number < latest.get(key, 0):
                verdict.add("E5", f"{group}: {key} goes back from {latest[key]} to {number}")
                break
            latest[key] = number
        by_count: dict[int, Any] = {}
        for row in rows:
            if by_count.setdefault(row["count"], row) != row:
                verdict.add("E5", f"{group}: two results are number {row['count']}")
                break
        in_order = [by_count[number] for number in sorted(by_count)]
        sums, lows, highs = _prefixes([row["amount"] for row in in_order])
        right = list(zip(range(1, len(in_order) + 1), sums, lows, highs, strict=True))
        if [(row["count"], row["sum"], row["low"], row["high"]) for row in in_order] != right:
            verdict.add("E5", f"{group}: results are of no prefix")
        if exactly_once and in_order != rows:
            verdict.add("E5", f"{group} goes back: {[row['count'] for row in rows][:20]} …")


def totals(
    verdict: Verdict, sent: Mapping[str, Sequence[Sent]], found: Sequence[Row], *, exactly_once: bool
) -> None:
    """S2, E3: one result per commit, each of a prefix of the key's readings; the last one of all."""
    results = by_key(found)
    for key, readings in sent.items():
        amounts = [reading.amount for reading in good(readings)]
        if not amounts:
            continue
        rows = results.get(key, [])
        verdict.checked["S2"] += len(rows)
        sums, lows, highs = _prefixes(amounts)
        numbers = [row["number"] for row in rows]
        for row in rows:
            at = row["number"] - 1
            if not 0 <= at < len(amounts) or (row["sum"], row["low"], row["high"]) != (
                sums[at],
                lows[at],
                highs[at],
            ):
                verdict.add("S2", f"totals of {key}: {row} is of no prefix")
                break
        back = sum(later <= earlier for earlier, later in pairwise(numbers))
        verdict.repeated["S2"] += back
        if exactly_once and back:
            verdict.add("S2", f"totals of {key} go back: {numbers[:20]} …")
        if numbers[-1:] != [len(amounts)]:
            verdict.add("S2", f"totals of {key} end at {numbers[-1:]} of {len(amounts)}")


def _prefixes(amounts: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    sums, lows, highs = (list(accumulate(amounts, rule)) for rule in (int.__add__, min, max))
    return sums, lows, highs


def counts_of_counts(
    verdict: Verdict, sent: Mapping[str, Sequence[Sent]], found: Sequence[Row], *, exactly_once: bool
) -> None:
    """S5: in the end, the counts of counts are right. A repeated change would be retracted twice."""
    expected = Counter(f"count {number}" for readings in sent.values() if (number := len(good(readings))))
    results = by_key(found)
    verdict.checked["S5"] += len(found)
    last = {group: values[-1] for group, values in results.items() if values[-1]}
    if exactly_once and last != expected:
        wrong = {group for group in last.keys() | expected.keys() if last.get(group, 0) != expected[group]}
        verdict.add(
            "S5",
            f"{len(wrong)} counts of counts are wrong: "
            f"{[(group, last.get(group), expected[group]) for group in sorted(wrong)[:3]]}",
        )


def windows(
    verdict: Verdict,
    log: Sequence[Row],
    final: Sequence[Row],
    late: Sequence[Row],
    *,
    exactly_once: bool,
) -> None:
    """S4, W: by brute force over the input in the topic's order."""
    expected: Counter[tuple[int, str, int]] = Counter()
    too_late: dict[int, list[tuple[str, int]]] = defaultdict(list)
    ends: dict[int, int] = {}
    for partition, rows in by_partition(log).items():
        now = -1
        for row in rows:
            now = max(now, row.time)
            if row.value["amount"] < 0:
                continue
            start = row.time - row.time % WINDOW
            if now >= start + WINDOW + GRACE:
                too_late[partition].append((row.key, row.value["number"]))
            else:
                expected[partition, row.key, start] += 1
        ends[partition] = now
    closed = {
        place: number for place, number in expected.items() if place[2] + WINDOW + GRACE <= ends[place[0]]
    }
    results = [(row.partition, row.key, row.value["start"]) for row in final]
    verdict.checked["W"] += len(final)
    verdict.repeated["W"] += len(results) - len(set(results))
    wrong = [
        f"{row.key} at {row.value['start']}: {row.value['value']} instead of {closed.get(place)}"
        for place, row in zip(results, final, strict=True)
        if closed.get(place) != row.value["value"]
    ]
    if wrong:
        verdict.add("W", f"{len(wrong)} windows are wrong: {wrong[:3]}")
    missing = closed.keys() - set(results)
    if missing:
        verdict.add("S4", f"{len(missing)} windows never came: {sorted(missing)[:3]}")
    if exactly_once and len(results) != len(set(results)):
        verdict.add("S4", f"windows came twice: {Counter(results).most_common(2)}")
    lates = by_partition(late)
    for partition in too_late.keys() | lates.keys():
        got = [(row.key, row.value["number"]) for row in lates.get(partition, ())]
        _sequence(
            verdict,
            "W",
            f"late readings of partition {partition}",
            too_late[partition],
            got,
            exactly_once=exactly_once,
        )


def branded(
    verdict: Verdict,
    articles: Mapping[str, Sequence[Article]],
    brands: Mapping[str, Sequence[Brand]],
    found: Sequence[Row],
) -> None:
    """R: each result joins two existing versions, and the last results join the last versions."""
    results = by_key(found)
    for key, versions in articles.items():
        rows = results.get(key, [])
        verdict.checked["R"] += len(rows)
        for row in rows:
            if row is None:
                continue
            if not (
                0 < row["article"] <= len(versions)
                and versions[row["article"] - 1].brand == row["brand"]
                and 0 < row["version"] <= len(brands[row["brand"]])
            ):
                verdict.add("R", f"{key} was joined with what it never belonged to: {row}")
                break
        brand = versions[-1].brand
        expected = {"article": len(versions), "brand": brand, "version": len(brands[brand])}
        if rows[-1:] != [expected]:
            verdict.add("R", f"{key} ends as {rows[-1:]} instead of {expected}")


def enriched(
    verdict: Verdict,
    orders: Mapping[int, str],
    articles: Mapping[str, Sequence[Article]],
    found: Sequence[Row],
    *,
    exactly_once: bool,
) -> None:
    """R: each order once, with a version of its article; later orders are not joined with earlier
    versions.
    """
    by_article: dict[str, list[int]] = defaultdict(list)
    for number, article in orders.items():
        by_article[article].append(number)
    results = by_key(found)
    for article in by_article.keys() | results.keys():
        rows = results.get(article, [])
        numbers = [row["number"] for row in rows]
        _sequence(
            verdict,
            "R",
            f"orders of {article}",
            by_article.get(article, []),
            numbers,
            exactly_once=exactly_once,
        )
        versions = [row["version"] for row in rows]
        if any(not 0 < version <= len(articles.get(article, ())) for version in versions):
            verdict.add("R", f"orders of {article} met versions that never were: {max(versions)}")
        if exactly_once and any(later < earlier for earlier, later in pairwise(versions)):
            verdict.add("R", f"orders of {article} met versions that go back: {versions[:20]} …")


def history(
    verdict: Verdict,
    topic: str,
    polls: Sequence[Sequence[Row]],
    final: Sequence[Row],
) -> None:
    """J, T: committed records that a reader saw during the run are equal to those in the end.

    ``polls`` are that reader's, in order.
    """
    in_the_end = {(row.partition, row.offset): (row.key, row.value) for row in final}
    seen: dict[tuple[int, int], Any] = {}
    reached: dict[int, int] = {}
    for poll in polls:
        for row in poll:
            verdict.checked["J"] += 1
            place = row.partition, row.offset
            if row.offset <= reached.get(row.partition, -1):
                verdict.add(
                    "J", f"{topic}: {place} came after {reached[row.partition]} within the same reading"
                )
                return
            reached[row.partition] = row.offset
            if seen.setdefault(place, (row.key, row.value)) != (row.key, row.value):
                verdict.add("J", f"{topic}: two values at {place}")
                return
            if place not in in_the_end:
                verdict.add("J", f"{topic}: {place} was read and is not committed: {row.key} {row.value}")
                return
            if in_the_end[place] != (row.key, row.value):
                verdict.add("J", f"{topic}: {place} was {row.value} and is {in_the_end[place]}")
                return
    missed = [place for place in in_the_end if place not in seen and place[1] < reached.get(place[0], -1)]
    if missed:
        verdict.add(
            "J", f"{topic}: {len(missed)} appeared behind a reader that had passed: {sorted(missed)[:3]}"
        )


def producer_order(verdict: Verdict, topic: str, found: Sequence[Row]) -> None:
    """J: the numbers of a key that one producer wrote only increase."""
    latest: dict[tuple[int, str], int] = {}
    for row in found:
        verdict.checked["J"] += 1
        number = row.value["number"]
        if number <= latest.get((row.partition, row.key), 0):
            verdict.add("J", f"{topic}: {row.key} goes from {latest[row.partition, row.key]} to {number}")
            return
        latest[row.partition, row.key] = number


class Sample(NamedTuple):
    """Committed offsets of the input, and the end of the copies at a moment after that, by partition.

    ``epochs`` are those of the leaders that reported the ends.
    """

    committed: Mapping[int, int]
    ends: Mapping[int, int]
    epochs: Mapping[int, int] = {}


class LeaderEpoch(NamedTuple):
    """From which offset on a partition's records were appended by the leader of that epoch."""

    epoch: int
    start: int


def committed_was_processed(
    verdict: Verdict,
    log: Sequence[Row],
    found: Sequence[Row],
    samples: Sequence[Sample],
    leaders: Mapping[int, Sequence[LeaderEpoch]] | None = None,
) -> None:
    """M, E2: whenever offsets were committed, the copies of all records before them were written.

    ``found`` are the copies that stand in the end, committed; ``leaders`` are the leader epochs of each of
    their partitions. A broker that was paused answers as the leader that it was, until it learns that it is
    not: its end says nothing about what its successor had appended by then.
    """
    written: dict[tuple[str, int], int] = {}
    for row in found:
        written.setdefault((row.key, row.value["number"]), row.offset)
    for partition, rows in by_partition(log).items():
        due = [
            (row.offset, written.get((row.key, row.value["number"]), sys.maxsize))
            for row in rows
            if row.value["amount"] >= 0
        ]
        offsets = [offset for offset, _ in due]
        # The highest offset of the copies of all readings up to each one.
        furthest = list(accumulate((place for _, place in due), max))
        successors = (leaders or {}).get(partition, ())
        for sample in samples:
            number = bisect_left(offsets, sample.committed.get(partition, 0))
            verdict.checked["M"] += 1
            if not number or furthest[number - 1] < sample.ends.get(partition, 0):
                continue
            asked = sample.epochs.get(partition, sys.maxsize)
            known = min((later.start for later in successors if later.epoch > asked), default=sys.maxsize)
            # What is nowhere at all was appended by no successor.
            if known <= furthest[number - 1] < sys.maxsize:
                verdict.checked["M by a replaced leader"] += 1
                continue
            verdict.add(
                "M",
                f"partition {partition}: {sample.committed[partition]} was committed while results "
                f"before it were not written: the copies ended at {sample.ends.get(partition, 0)}",
            )
            return


def checkpoints(verdict: Verdict, place: str, before: Mapping[str, int], now: Mapping[str, int]) -> None:
    """M: in a database that was not damaged or rebuilt, no store's checkpoint decreases."""
    for store, offset in now.items():
        verdict.checked["M"] += 1
        if offset < before.get(store, -1):
            verdict.add("M", f"checkpoint of {store} in {place} went back from {before[store]} to {offset}")
