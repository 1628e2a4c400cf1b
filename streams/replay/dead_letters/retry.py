"""Dead letters are retried: a plan of what can be, and requests that the app's workers process."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING

from streams.broker.reading import read_from
from streams.partitioning import partition_for
from streams.records import TopicPartition
from streams.replay.dead_letters.ledger import LetterState
from streams.runtime.retry_log import Result, RetryRequest, request_for
from streams.runtime.retry_path import letter_refusal, step_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from streams.replay.dead_letters.rows import DeadLetters, LetterRow, Selection
    from streams.runtime.letter import Letter, LetterId

LOOK_SECONDS = 0.5
"""How often outcomes are read while they are waited for."""


@dataclass(slots=True)
class RetryPlan:
    """What a retry would do."""

    ready: list[LetterRow] = field(default_factory=list)
    """In the order in which they will be processed: that of their input, so also for each key."""
    refused: list[tuple[LetterRow, str]] = field(default_factory=list)
    """Dead letters that cannot be retried, and why."""
    waiting: int = 0
    """Dead letters that were selected and are being retried already."""
    newer: dict[LetterId, int] = field(default_factory=dict)
    """Those for whose key the input has later records, and the offset of the last one."""
    skipped: int = 0
    """Dead letters that were left out because of later records of their key."""
    partitions: Mapping[str, int] = field(default_factory=dict)
    """The partition counts of the topics from which the steps read."""


def plan_retry(
    letters: DeadLetters,
    selection: Selection,
    *,
    only_if_newest: bool = False,
    look_for_newer: bool = True,
) -> RetryPlan:
    """Find out what a retry of the selected dead letters would do; nothing is changed.

    With ``only_if_newest``, dead letters for whose key there are later records are left out. Without
    ``look_for_newer``, the input is not read for later records, and ``newer`` is empty. Raises
    ``BrokerError`` and ``TopicError``.
    """
    plan = RetryPlan()
    of_step = cache(partial(step_refusal, letters.topology))
    look_for_newer = look_for_newer or only_if_newest
    unprocessed: set[tuple[str, str, int, int]] = set()
    for row in letters.rows(None if look_for_newer else selection):
        letter = row.letter
        if row.state in (LetterState.OPEN, LetterState.WAITING):
            unprocessed.add((letter.step, letter.topic, letter.partition, letter.offset))
        if not selection.selects(row):
            continue
        if row.state is LetterState.WAITING:
            plan.waiting += 1
        elif row.state is LetterState.OPEN:
            edited = row.history.edit is not None
            reason = letter_refusal(letters.topology, letter, edited=edited, of_step=of_step)
            if reason is None:
                plan.ready.append(row)
            else:
                plan.refused.append((row, reason))
    plan.ready.sort(key=lambda row: _input_order(row.letter))
    if look_for_newer:
        plan.newer = _later_records(letters, plan.ready, unprocessed)
    if only_if_newest:
        plan.skipped = len(plan.newer)
        plan.ready = [row for row in plan.ready if row.letter.id not in plan.newer]
        plan.newer = {}
    plan.partitions = _partition_counts(letters, plan.ready)
    return plan


def order_retry(letters: DeadLetters, plan: RetryPlan, at: int) -> dict[LetterId, int]:
    """Request the retries of a plan, and return the number of each request.

    It may be repeated, also after it was interrupted: a dead letter is processed once for each number.
    ``at`` is the time in milliseconds since the epoch. Raises ``BrokerError``.
    """
    requests = [(row.letter.id, request_of(row, plan.partitions)) for row in plan.ready]
    letters.ledger.write(requests, at)
    return {letter: request.number for letter, request in requests}


def wait_for_outcomes(
    letters: DeadLetters,
    ordered: Mapping[LetterId, int],
    seconds: float,
    *,
    pause: Callable[[float], object] = time.sleep,
) -> Counter[Result]:
    """Wait until the requests have outcomes, at most that long, and count these by result."""
    until = time.monotonic() + seconds
    while True:
        letters.ledger.read()
        found = outcomes(letters, ordered)
        if found.total() >= len(ordered) or time.monotonic() >= until:
            return found
        pause(LOOK_SECONDS)


def outcomes(letters: DeadLetters, ordered: Mapping[LetterId, int]) -> Counter[Result]:
    """The outcomes of requests, as far as they were read."""
    found: Counter[Result] = Counter()
    for letter, number in ordered.items():
        outcome = letters.ledger.history(letter).outcome
        if outcome is not None and outcome.number >= number:
            found[outcome.result] += 1
    return found


def request_of(row: LetterRow, partitions: Mapping[str, int]) -> RetryRequest:
    """The request to retry a dead letter. ``partitions`` are the partition counts of topics."""
    return request_for(
        row.letter,
        row.record,
        number=max(row.history.handled, row.history.request) + 1,
        partition=_partition(row, partitions.get(row.letter.source.topic)),
    )


def _partition(row: LetterRow, count: int | None) -> int:
    """Where the record is processed: if its key was edited, where records of the new key are."""
    edit, own = row.history.edit, row.letter.source.partition
    if edit is None or edit.key is None or count is None:
        return own
    before = row.letter.record.key
    if edit.key == before or (before is not None and partition_for(before, count) != own):
        # The topic was written with another partitioner.
        return own
    return partition_for(edit.key, count)


def _input_order(letter: Letter) -> tuple[str, int, int, int]:
    return letter.topic, letter.partition, letter.offset, letter.row


def _later_records(
    letters: DeadLetters, rows: Iterable[LetterRow], unprocessed: set[tuple[str, str, int, int]]
) -> dict[LetterId, int]:
    """The dead letters for whose key there are later records that their step has processed or will."""
    by_place: dict[TopicPartition, list[Letter]] = {}
    for row in rows:
        letter = row.letter
        if letter.key is not None and not letter.payload and letter.offset >= 0:
            by_place.setdefault(TopicPartition(letter.topic, letter.partition), []).append(letter)
    existing = _existing(letters, {place.topic for place in by_place})
    starts = {
        place: min(letter.offset for letter in own) + 1
        for place, own in by_place.items()
        if place.partition < existing.get(place.topic, 0)
    }
    if not starts:
        return {}
    last: dict[tuple[TopicPartition, bytes, str], int] = {}
    wanted: dict[TopicPartition, dict[bytes, set[str]]] = {}
    for place, own in by_place.items():
        for letter in own:
            if letter.key is not None:
                wanted.setdefault(place, {}).setdefault(letter.key, set()).add(letter.step)
    for fetched in read_from(letters.broker, starts):
        place = TopicPartition(fetched.topic, fetched.partition)
        keys = wanted[place]
        for key, offset in zip(fetched.keys(), fetched.offsets(), strict=True):
            if key is None or key not in keys:
                continue
            for step in keys[key]:
                if (step, place.topic, place.partition, offset) not in unprocessed:
                    last[place, key, step] = offset
    return {
        letter.id: found
        for place, own in by_place.items()
        for letter in own
        if letter.key is not None
        and (found := last.get((place, letter.key, letter.step), -1)) > letter.offset
    }


def _existing(letters: DeadLetters, topics: set[str]) -> dict[str, int]:
    admin = letters.broker.admin()
    try:
        return {
            name: description.partitions for name, description in admin.topics().items() if name in topics
        }
    finally:
        admin.close()


def _partition_counts(letters: DeadLetters, rows: Iterable[LetterRow]) -> dict[str, int]:
    edited = {row.letter.source.topic for row in rows if row.history.edit is not None}
    return _existing(letters, edited) if edited else {}
