"""The ledger of a worker: whether each record that was read is accounted for.

Checked by the observer's thread on complete slices; see ``streams.runtime.ledger`` for what is counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.runtime.ledger import Outside, Term
from streams.runtime.worker_ledger import MOST_KEPT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from streams.records import TopicPartition
    from streams.runtime.ledger import LedgerNode, Page, TaskKey, TaskLedger
    from streams.runtime.task import Task
    from streams.runtime.worker import Worker
    from streams.runtime.worker_ledger import Fault, WorkerLedger

MOST_REPORTED = 100
"""So many differences are reported one by one."""


class Imbalance(NamedTuple):
    """A balance that does not close."""

    place: str
    """What was balanced, in words: the same as long as it is the same balance."""
    records: int
    """Records that are missing; negative: that there are too many."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Records that are not accounted for, with where and when they were counted."""

    task: str
    """Empty for what concerns the whole worker."""
    topic: str
    """The input topic; empty for work without input. Where writing differs, the topic that is written."""
    partition: int
    """-1 without one."""
    first: int | None
    """The offsets in whose processing the difference arose begin here, as far as that is known."""
    next: int | None
    """The offset after them."""
    records: int
    """Missing records; negative: there are too many."""
    place: str
    sentence: str
    """All of that in words."""


class LedgerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the records of a topic in a task, since the worker has it: numbers of records."""

    task: str
    topic: str
    """Empty for what is made without input: by timers, and by steps that forward at commits."""
    read: int
    made: int
    """Made by steps: several of one, results of stores, and copies for all but one of several steps."""
    written: int
    """Handed on by sinks. Refused ones are dead letters or skipped."""
    filtered: int
    late: int
    dead_letters: int
    skipped: int
    held: int
    """Taken in by stores."""
    replaced: int
    """Those in whose place a step has made others, or none."""
    ended: int
    """Those that have ended in a step that is no sink."""
    empty_offsets: int
    """Offsets without a record: markers, aborted and deleted records."""
    difference: int
    """Records that are missing or too many."""


class Ledger:
    """Checks the balances of a worker's tasks. ``check`` is for one thread, the rest for any."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._seen: dict[tuple[TaskKey, TopicPartition | None], Page] = {}
        """The pages of the last check."""
        self._open: dict[tuple[TaskKey, TopicPartition | None], dict[str, Difference]] = {}
        """The differences of running tasks, by place."""
        self._settled: dict[TaskKey, object] = {}
        self._unsettled: dict[TaskKey, dict[str, Difference]] = {}
        """Differences between the tasks' sinks and the producer, by place."""
        self._kept: list[Difference] = []
        """Those of tasks that have ended, and what was found while counting."""
        self.differences: Sequence[Difference] = ()
        self.figures: Sequence[LedgerFigures] | None = None
        """``None`` until the first check."""

    def check(self) -> Sequence[Difference]:
        """Check once, and return all differences since the worker's start."""
        ledger = self._worker.ledger
        tasks = self._worker.tasks
        self._keep_closed(ledger)
        while ledger.faults:
            self._keep(_of_fault(ledger.faults.popleft()))
        figures: list[LedgerFigures] = []
        for identifier, task in tasks.items():
            figures += self._check_task(identifier, task)
        self._forget_others(tasks)
        found = [item for own in self._open.values() for item in own.values()]
        found += [item for own in self._unsettled.values() for item in own.values()]
        self.figures = figures
        self.differences = tuple([*self._kept, *found][:MOST_REPORTED])
        return self.differences

    def by_topic(self) -> Mapping[tuple[str, str], int]:
        """How many records differ, by task and topic: also 0, where everything is accounted for."""
        found = {(item.task, item.topic): 0 for item in self.figures or ()}
        for item in self.differences:
            key = item.task, item.topic
            found[key] = found.get(key, 0) + abs(item.records)
        return found

    def _check_task(self, identifier: TaskKey, task: Task) -> Iterator[LedgerFigures]:
        ledger = task.ledger
        for partition, page in dict(ledger.pages).items():
            self._check_page(identifier, ledger.nodes, partition, page)
            own = self._open.get((identifier, partition), {})
            difference = sum(abs(item.records) for item in own.values())
            topic = "" if partition is None else partition.topic
            yield _figures(str(identifier), topic, ledger.nodes, page, difference)
        settled = ledger.settled
        if self._settled.get(identifier) is not settled:
            self._settled[identifier] = settled
            self._unsettled[identifier] = {
                item.place: _of_imbalance(str(identifier), None, None, item)
                for item in between_commits(ledger, by_worker=True)
            }

    def _check_page(
        self,
        identifier: TaskKey,
        nodes: Sequence[LedgerNode],
        partition: TopicPartition | None,
        page: Page,
    ) -> None:
        key = identifier, partition
        before = self._seen.get(key)
        if page is before:
            return
        self._seen[key] = page
        known = self._open.pop(key, {})
        found = {item.place: item for item in imbalances(nodes, page)}
        if not found:
            return
        # Where the last check still had it closed, the difference is of the slices since then.
        since = page.first if before is None or before.next < 0 else before.next
        offsets = None if partition is None else (min(since, page.next), page.next)
        self._open[key] = {
            place: known[place]
            if place in known and known[place].records == item.records
            else _of_imbalance(str(identifier), partition, offsets, item)
            for place, item in found.items()
        }

    def _keep_closed(self, ledger: WorkerLedger) -> None:
        """Check tasks that have ended since the last check, as of their last commits."""
        while ledger.closed:
            identifier, closed = ledger.closed.popleft()
            for partition, page in closed.settled.pages.items():
                self._check_page(identifier, closed.nodes, partition, page)
                for difference in self._open.pop((identifier, partition), {}).values():
                    self._keep(difference)
            for item in between_commits(closed, by_worker=True):
                self._keep(_of_imbalance(str(identifier), None, None, item))
            self._forget(identifier)

    def _keep(self, difference: Difference) -> None:
        if len(self._kept) < MOST_KEPT:
            self._kept.append(difference)

    def _forget_others(self, tasks: Collection[TaskKey]) -> None:
        for identifier in {identifier for identifier, _ in self._seen}.difference(tasks):
            self._forget(identifier)

    def _forget(self, identifier: TaskKey) -> None:
        for key in [key for key in self._seen if key[0] == identifier]:
            del self._seen[key]
            self._open.pop(key, None)
        self._settled.pop(identifier, None)
        self._unsettled.pop(identifier, None)


def imbalances(nodes: Iterable[LedgerNode], page: Page) -> Iterator[Imbalance]:
    """The balances of a page that do not close.

    For each step: what entered it, less what its terms say, has left it for each step downstream. For each
    edge: what left one step has entered the next.
    """
    counts = page.counts
    for node in nodes:
        yield from _step_imbalances(node, counts)
        if not node.is_source:
            at = node.at
            left = sum(counts[place] for place in node.parents)
            missing = left - counts[at + Term.ENTERED] - counts[at + Term.WITHHELD]
            if missing:
                yield Imbalance(f"before step {node.name!r}", missing)
    if page.repeated:
        yield Imbalance("among offsets that were processed before", -page.repeated)


def _step_imbalances(node: LedgerNode, counts: Sequence[int]) -> Iterator[Imbalance]:
    passed = _passed(node, counts)
    at = node.at
    name = repr(node.name)
    if not node.edges:
        if passed and node.must_end:
            yield Imbalance(f"in step {name}", passed)
        return
    made = counts[at + Term.MADE]
    if node.splits:
        expected = passed + made + sum(counts[edge.made] for edge in node.edges)
        missing = expected - sum(counts[edge.left] for edge in node.edges)
        if missing:
            yield Imbalance(f"in step {name}", missing)
        return
    differing = {
        edge.child: missing
        for edge in node.edges
        if (missing := passed + made + counts[edge.made] - counts[edge.left])
    }
    values = set(differing.values())
    if len(differing) == len(node.edges) and len(values) == 1:
        yield Imbalance(f"in step {name}", values.pop())
        return
    for child, missing in differing.items():
        yield Imbalance(f"from step {name} to {child!r}", missing)


def _passed(node: LedgerNode, counts: Sequence[int]) -> int:
    """How many of the records that entered have to leave the node."""
    at = node.at
    return (
        counts[at + Term.ENTERED]
        + counts[at + Term.RESUMED]
        - sum(counts[at + Term.FILTERED : at + Term.FAILED_AGAIN + 1])
    )


def between_commits(ledger: TaskLedger, *, by_worker: bool) -> Iterator[Imbalance]:
    """The balances of a task as of its last commit that do not close: from its sinks to the producer.

    ``by_worker`` says whether a worker writes its rows, and not a test or a replay.
    """
    pages, outside, pending, pending_rows = ledger.settled
    rows = letters = delivered = 0
    for page in pages.values():
        for node in ledger.nodes:
            emitted = page.counts[node.at + Term.EMITTED]
            if node.delivers:
                delivered += emitted
            else:
                rows += emitted
            letters += page.counts[node.at + Term.DEAD_LETTERS]
    queued = rows + outside[Outside.REFUSED] + letters + outside[Outside.REQUEUED] - outside[Outside.KNOWN]
    taken = outside[Outside.TAKEN]
    if missing := queued - taken - pending:
        yield Imbalance("between the sinks and what was taken to be written", missing)
    written = (
        outside[Outside.ACCEPTED]
        + outside[Outside.MUTED]
        + outside[Outside.REFUSED]
        + outside[Outside.REQUEUED]
    )
    if by_worker and (missing := taken - written):
        yield Imbalance("between what was taken to be written and the producer", missing)
    rows_taken = outside[Outside.TAKEN_ROWS] + pending_rows
    if missing := delivered + outside[Outside.REFUSED_ROWS] - rows_taken:
        yield Imbalance("between the sink connectors' steps and what was taken for them", missing)


def _figures(
    task: str, topic: str, nodes: Sequence[LedgerNode], page: Page, difference: int
) -> LedgerFigures:
    counts = page.counts

    def total(term: int) -> int:
        return sum(counts[node.at + term] for node in nodes)

    read = sum(counts[node.at + Term.ENTERED] for node in nodes if node.is_source)
    span = page.next - page.first if page.first >= 0 and page.next >= 0 else read
    ended = sum(_passed(node, counts) for node in nodes if not node.edges and not node.must_end)
    return LedgerFigures(
        task=task,
        topic=topic,
        read=read,
        made=sum(_made(node, counts) for node in nodes),
        written=total(Term.EMITTED),
        filtered=total(Term.FILTERED),
        late=total(Term.LATE),
        dead_letters=total(Term.DEAD_LETTERS) + total(Term.FAILED_AGAIN),
        skipped=total(Term.SKIPPED),
        held=total(Term.HELD),
        replaced=total(Term.REPLACED),
        ended=total(Term.ENDED) + ended,
        empty_offsets=max(0, span - read),
        difference=difference,
    )


def _made(node: LedgerNode, counts: Sequence[int]) -> int:
    """What the node has made, with a copy for each child but the first of what it forwards to all."""
    own = sum(counts[edge.made] for edge in node.edges) + counts[node.at + Term.RESUMED]
    if node.splits or not node.edges:
        return own + counts[node.at + Term.MADE]
    copies = (len(node.edges) - 1) * _passed(node, counts)
    return own + len(node.edges) * counts[node.at + Term.MADE] + copies


def _of_imbalance(
    task: str, partition: TopicPartition | None, offsets: tuple[int, int] | None, item: Imbalance
) -> Difference:
    topic, number = ("", -1) if partition is None else partition
    return _difference(task, topic, number, offsets, item.records, item.place, "")


def _of_fault(fault: Fault) -> Difference:
    return _difference(
        fault.task,
        fault.topic,
        fault.partition,
        fault.offsets,
        fault.records,
        fault.kind,
        fault.sentence,
    )


def _difference(
    task: str,
    topic: str,
    partition: int,
    offsets: tuple[int, int] | None,
    records: int,
    place: str,
    found: str,
) -> Difference:
    count = f"{abs(records):,} record{'' if abs(records) == 1 else 's'}"
    where = f" of {topic}" if topic else ""
    if partition >= 0:
        where += f"-{partition}"
    if offsets is not None:
        where += f", offsets {offsets[0]} to {offsets[1] - 1}"
    if not found:
        found = f"{'missing' if records > 0 else 'too many'} {place}"
    return Difference(
        task=task,
        topic=topic,
        partition=partition,
        first=None if offsets is None else offsets[0],
        next=None if offsets is None else offsets[1],
        records=records,
        place=place,
        sentence=f"{count}{where}{f', task {task}' if task else ''}: {found}",
    )
