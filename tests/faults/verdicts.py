"""What committed topics must say after whatever happened, judged from outside.

The rules are those by which Kafka Streams' and Kafka's own system tests judge (EOS and smoke test,
transaction copy), made anew for what ``fault_app`` writes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from streams.reading import read_to_end

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.broker import Broker

WINDOW = 10_000
GRACE = 5_000


@dataclass(slots=True)
class Sent:
    """The readings of each key, in order: amounts and event times (milliseconds since the epoch)."""

    amounts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    times: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    @property
    def records(self) -> int:
        return sum(map(len, self.amounts.values()))


@dataclass(slots=True)
class Verdict:
    """How many committed records were looked at, what is wrong with them, and how many came twice."""

    records: int = 0
    violations: list[str] = field(default_factory=list)
    repeated: int = 0


def judge(broker: Broker, prefix: str, sent: Sent, groups: int, *, exactly_once: bool) -> Verdict:
    """Hold the app's outputs against what was sent."""
    verdict = Verdict()
    _copies(verdict, _by_key(broker, f"{prefix}-copies"), sent, exactly_once=exactly_once)
    _totals(verdict, _by_key(broker, f"{prefix}-totals"), sent, exactly_once=exactly_once)
    _windows(verdict, _by_key(broker, f"{prefix}-windows"), sent, exactly_once=exactly_once)
    _groups(verdict, _by_key(broker, f"{prefix}-groups"), sent, groups, exactly_once=exactly_once)
    return verdict


def _by_key(broker: Broker, topic: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    decode = msgspec.json.decode
    for fetched in read_to_end(broker, [topic]):
        for key, value in zip(fetched.keys(), fetched.values(), strict=True):
            found[(key or b"").decode()].append(decode(value or b"null"))
    return found


def _copies(verdict: Verdict, found: Mapping[str, Sequence[Any]], sent: Sent, *, exactly_once: bool) -> None:
    """T: nothing lost, nothing twice, in order."""
    for key, amounts in sent.amounts.items():
        copies = [(copy["number"], copy["amount"]) for copy in found.get(key, ())]
        expected = list(enumerate(amounts, 1))
        verdict.records += len(copies)
        verdict.repeated += len(copies) - len(set(copies))
        if copies != expected and (exactly_once or set(copies) != set(expected)):
            lost = sorted(set(expected) - set(copies))[:3]
            verdict.violations.append(
                f"copies of {key}: {len(copies)} for {len(expected)} readings, lost {lost}, "
                f"twice {[copy for copy, times in Counter(copies).items() if times > 1][:3]}"
            )


def _totals(verdict: Verdict, found: Mapping[str, Sequence[Any]], sent: Sent, *, exactly_once: bool) -> None:
    """E2, E3, E4: each result is that of a prefix of the key's readings; they grow to the whole."""
    for key, amounts in sent.amounts.items():
        results = found.get(key, ())
        verdict.records += len(results)
        sums, lows, highs = (list(accumulate(amounts, rule)) for rule in (int.__add__, min, max))
        numbers = [result["number"] for result in results]
        for result in results:
            number = result["number"]
            right = 0 < number <= len(amounts) and (result["sum"], result["low"], result["high"]) == (
                sums[number - 1],
                lows[number - 1],
                highs[number - 1],
            )
            if not right:
                verdict.violations.append(f"totals of {key}: {result} is of no prefix")
                break
        verdict.repeated += sum(later <= earlier for earlier, later in pairwise(numbers))
        if exactly_once and any(later <= earlier for earlier, later in pairwise(numbers)):
            verdict.violations.append(f"totals of {key} go back: {numbers[:20]} …")
        if numbers[-1:] != [len(amounts)]:
            verdict.violations.append(f"totals of {key} end at {numbers[-1:]} of {len(amounts)}")


def _windows(verdict: Verdict, found: Mapping[str, Sequence[Any]], sent: Sent, *, exactly_once: bool) -> None:
    """S4: exactly one final result for each window that closed, and it is right."""
    for key, times in sent.times.items():
        expected = Counter(time - time % WINDOW for time in times)
        results = [(result["start"], result["value"]) for result in found.get(key, ())]
        verdict.records += len(results)
        verdict.repeated += len(results) - len(set(results))
        for start, value in results:
            if expected.get(start) != value:
                verdict.violations.append(
                    f"window {start} of {key}: {value} instead of {expected.get(start)}"
                )
        if exactly_once and len(results) != len(set(results)):
            verdict.violations.append(f"windows of {key} came twice: {Counter(results).most_common(1)}")
        missing = expected.keys() - {start for start, _ in results} - {max(expected, default=0)}
        if missing:
            verdict.violations.append(f"windows of {key} never came: {sorted(missing)[:5]}")


def _groups(
    verdict: Verdict, found: Mapping[str, Sequence[Any]], sent: Sent, groups: int, *, exactly_once: bool
) -> None:
    """E5: behind a repartition step counts only grow, to the right end."""
    expected = Counter(f"group {amount % groups}" for amounts in sent.amounts.values() for amount in amounts)
    for group, number in expected.items():
        counts = found.get(group, ())
        verdict.records += len(counts)
        steps = [later <= earlier for earlier, later in pairwise(counts)]
        verdict.repeated += sum(steps)
        if exactly_once and any(steps):
            verdict.violations.append(f"{group} goes back: {list(counts)[:20]} …")
        # Records that went through the repartition topic twice count twice, where that is allowed.
        if not counts or counts[-1] < number or (exactly_once and counts[-1] != number):
            verdict.violations.append(f"{group} ends at {list(counts[-1:])} of {number}")
