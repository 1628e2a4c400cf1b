from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, strategies as st

from streams import App, Text
from streams.eventtime.merge import InputQueue
from streams.records import FetchedLists, TopicPartition
from streams.runtime.task import Task, TaskId
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.records import Fetched

A, B, C = (TopicPartition(name, 0) for name in ("a", "b", "c"))


def fetched(partition: TopicPartition, times: Sequence[int], first: int = 0) -> FetchedLists:
    count = len(times)
    return FetchedLists(
        partition.topic, 0, [None] * count, [None] * count, list(times), range(first, first + count), None
    )


def queue(**ranks: int) -> InputQueue:
    return InputQueue(
        {TopicPartition(name, 0): rank for name, rank in ranks.items()}, lambda item: item.timestamps()
    )


def taken(waiting: InputQueue, limit: int = 100) -> list[tuple[str, int]]:
    """Topic and offset of all available records, in the order in which the queue returns them."""
    order: list[tuple[str, int]] = []
    while (found := waiting.peek(limit)) is not None:
        assert 0 < len(found) <= limit
        order += [(found.topic, offset) for offset in found.offsets()]
        waiting.taken(found)
    return order


def test_the_lowest_time_comes_first():
    waiting = queue(a=0, b=1)
    waiting.add(fetched(A, [1, 4, 5]))
    waiting.add(fetched(B, [2, 3, 9]))
    assert taken(waiting) == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2)]


def test_at_equal_times_the_rank_decides():
    waiting = queue(a=1, b=0)
    waiting.add(fetched(A, [5, 5]))
    waiting.add(fetched(B, [5, 5]))
    waiting.at_end(A, 2)
    waiting.at_end(B, 2)
    assert taken(waiting) == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]


def test_a_partition_keeps_its_order_whatever_its_times():
    waiting = queue(a=0, b=1)
    waiting.add(fetched(A, [9, 1]))
    waiting.add(fetched(B, [5]))
    waiting.at_end(A, 2)
    waiting.at_end(B, 1)
    assert taken(waiting) == [("b", 0), ("a", 0), ("a", 1)]


def test_an_empty_partition_is_waited_for_until_it_is_at_its_end():
    waiting = queue(a=0, b=1)
    waiting.add(fetched(A, [1]))
    assert waiting.peek(1) is None
    waiting.at_end(B, 0)
    assert taken(waiting) == [("a", 0)]
    assert waiting.ends() == {B: 0}


def test_an_end_counts_until_more_comes():
    waiting = queue(a=0, b=1)
    waiting.at_end(A, 0)
    waiting.at_end(B, 0)
    waiting.add(fetched(A, [1]))
    assert taken(waiting) == [("a", 0)]
    assert waiting.ends() == {B: 0}
    waiting.add(fetched(B, [2]))
    assert waiting.peek(1) is None
    waiting.at_end(A, 1)
    assert taken(waiting) == [("b", 0)]


def test_what_was_not_taken_stays():
    waiting = queue(a=0)
    waiting.add(fetched(A, [1, 2, 3]))
    first = waiting.peek(2)
    assert first is not None
    again = waiting.peek(2)
    assert again is not None
    assert list(again.offsets()) == list(first.offsets()) == [0, 1]
    assert waiting.size(A) == 3
    waiting.taken(first)
    assert waiting.size(A) == 1


def test_nothing_is_left_after_clear():
    waiting = queue(a=0, b=1)
    waiting.add(fetched(A, [1, 2]))
    waiting.at_end(B, 0)
    assert taken(waiting, limit=1) == [("a", 0), ("a", 1)]
    waiting.add(fetched(A, [3]))
    waiting.clear()
    assert waiting.size(A) == 0
    assert waiting.ends() == {}
    assert waiting.peek(1) is None


records = st.lists(st.integers(0, 6), max_size=12)


@given(times=st.tuples(records, records, records), ranks=st.permutations([0, 0, 1]), data=st.data())
def test_the_order_is_that_of_times_and_ranks_however_the_records_were_polled(times, ranks, data):
    partitions = (A, B, C)
    waiting = InputQueue(dict(zip(partitions, ranks, strict=True)), lambda item: item.timestamps())
    polled = dict.fromkeys(partitions, 0)
    columns = dict(zip(partitions, times, strict=True))
    order: list[tuple[str, int]] = []
    while True:
        order += taken(waiting, data.draw(st.integers(1, 5)))
        unread = [item for item in partitions if polled[item] < len(columns[item])]
        if not unread:
            break
        chosen = data.draw(st.sampled_from(unread))
        count = data.draw(st.integers(1, len(columns[chosen]) - polled[chosen]))
        waiting.add(fetched(chosen, columns[chosen][polled[chosen] :][:count], polled[chosen]))
        polled[chosen] += count
    for partition in partitions:
        waiting.at_end(partition, polled[partition])
    order += taken(waiting, data.draw(st.integers(1, 5)))

    expected = []
    at = dict.fromkeys(partitions, 0)
    rank = dict(zip(partitions, ranks, strict=True))
    while heads := [item for item in partitions if at[item] < len(columns[item])]:
        first = min(heads, key=lambda item: (columns[item][at[item]], rank[item], item))
        expected.append((first.topic, at[first]))
        at[first] += 1
    assert order == expected


def test_event_times_are_those_of_the_source():
    app = App("times")
    app.stream("a", value=Text(), timestamp=int).to("out")
    seen = times_of(app, [b"5", b"x", None, b"7"])
    assert seen == [5, 5, 5, 7]


def times_of(app: App, values: Sequence[bytes | None]) -> list[int]:
    """The event times that a task of the app uses for these values."""
    (subtopology,) = app.topology.subtopologies
    task = Task(
        TaskId(0, 0), subtopology, TopologyDriver(app), application=app.name, dead_letter_topic="letters"
    )
    item: Fetched = FetchedLists("a", 0, [None] * 4, list(values), [1] * 4, range(4), None)
    return list(task.event_times(item))
