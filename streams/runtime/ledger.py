"""What becomes of the records of a task, counted where they pass.

Terms are counted at separate places, so that they agree only if no record was lost on the way:
``streams.monitoring.ledger`` compares them. Counts are of batches, never of single records. Written by the
worker's thread; other threads see those of complete slices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from streams.topology.graph import SinkConnectorNode, SourceNode, Step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.operators import Forward
    from streams.policy import Action
    from streams.records import Batch, Fetched, TopicPartition
    from streams.topology.graph import Node, Subtopology

    TaskKey: TypeAlias = tuple[int, int]
    """A ``TaskId``, whose module imports this one."""


class Term:
    """What is counted of each node. Values are places in a page's counts, from the node's first one on.

    Plain integers: members of an ``Enum`` take three times as long to look up, for each batch.
    """

    ENTERED: Final = 0
    """Records that reached the node; of a source, those that were read."""
    RESUMED: Final = 1
    """Failures that took no record away: it goes on as a deletion, or had been counted before."""
    MADE: Final = 2
    """Records that the step made for each step downstream."""
    FILTERED: Final = 3
    LATE: Final = 4
    HELD: Final = 5
    """Records that a store or a queue has taken in."""
    REPLACED: Final = 6
    """Records in whose place the step forwards those that it makes."""
    ENDED: Final = 7
    """Records that have reached the end of the topology, in a step that is no sink."""
    EMITTED: Final = 8
    """Rows that a sink has handed on to be written."""
    DEAD_LETTERS: Final = 9
    SKIPPED: Final = 10
    FAILED_AGAIN: Final = 11
    """Dead letters that were retried and have failed again."""
    WITHHELD: Final = 12
    """Records that did not enter, as they are beside the path of dead letters that are retried."""


class Outside:
    """What is counted between slices, for the whole task."""

    TAKEN: Final = 0
    """Rows for topics that were taken to be written, dead letters included."""
    TAKEN_ROWS: Final = 1
    """Rows that were taken for sink connectors."""
    REFUSED: Final = 2
    """Rows for topics that were refused when they were written."""
    REFUSED_ROWS: Final = 3
    """Rows that sink connectors have refused."""
    REQUEUED: Final = 4
    """Dead letters that were refused and will be written with less content."""
    KNOWN: Final = 5
    """Dead letters that were not written, as they were before."""
    ACCEPTED: Final = 6
    """Rows that the producer has accepted."""
    MUTED: Final = 7
    """Rows that were dropped, as another app of a blue/green pair emits."""


TERMS: Final = 13
"""How many places each node has."""

OUTSIDE: Final = 8
"""How many are counted outside of slices."""


class Edge(NamedTuple):
    """Where the counts of the edge to a child are: records that left for it, records made for it alone."""

    child: str
    left: int
    made: int


class LedgerNode(NamedTuple):
    """Where the counts of a node are, and how they are related."""

    name: str
    at: int
    """The place of its first term."""
    edges: tuple[Edge, ...]
    parents: tuple[int, ...]
    """The places of what left its parents for it."""
    splits: bool
    """Whether each record goes to one of the children, and not to each of them."""
    must_end: bool
    """Without children: whether the step says of each record where it has ended."""
    is_source: bool
    delivers: bool
    """Whether it is a sink connector."""


class Page(NamedTuple):
    """What was counted of one input partition, or of work without input, in complete slices."""

    first: int
    """The first offset that was processed; -1 without input."""
    next: int
    """The next offset; -1 if it is not known from where reading continues."""
    repeated: int
    """Offsets below the next one that were processed again without a reason."""
    counts: Sequence[int]
    """Never changed: the next slice has another list."""


class Settled(NamedTuple):
    """The pages of the last commit, with what was counted outside of slices until then."""

    pages: Mapping[TopicPartition | None, Page]
    outside: Sequence[int]
    pending: int
    """Rows for topics that had not been taken."""
    pending_rows: int
    """The same for sink connectors."""


class StepAccount:
    """The terms that a step declares; see ``streams.operators.Account``."""

    __slots__ = ("_at", "_counts", "_edges", "_emitted", "_filtered", "_held")

    def __init__(self, counts: list[int], node: LedgerNode) -> None:
        self._counts = counts
        self._at = node.at
        self._filtered = node.at + Term.FILTERED
        self._held = node.at + Term.HELD
        self._emitted = node.at + Term.EMITTED
        self._edges = {edge.child: edge.made for edge in node.edges}

    def filtered(self, records: int) -> None:
        self._counts[self._filtered] += records

    def held(self, records: int) -> None:
        self._counts[self._held] += records

    def replaced(self, records: int) -> None:
        self._counts[self._at + Term.REPLACED] += records

    def resumed(self, records: int) -> None:
        self._counts[self._at + Term.RESUMED] += records

    def made(self, records: int, child: str | None = None) -> None:
        if child is None:
            self._counts[self._at + Term.MADE] += records
        elif child in self._edges:
            self._counts[self._edges[child]] += records

    def late(self, records: int, kept: int, child: str | None) -> None:
        """Count late records, and expect them all to leave for the step that receives them."""
        self._counts[self._at + Term.LATE] += records - kept
        if child is not None and child in self._edges:
            self._counts[self._edges[child]] += records

    def emitted(self, records: int) -> None:
        """Count rows of a sink."""
        self._counts[self._emitted] += records

    def ended(self, batch: Batch[Any, Any]) -> None:
        self._counts[self._at + Term.ENDED] += len(batch)

    def stored(self, batch: Batch[Any, Any]) -> None:
        self._counts[self._held] += len(batch)


class TaskLedger:
    """The counts of a task: a page for each input partition, and one for work without input.

    A slice counts in a list of its own, which becomes a page when the slice is complete. Slices that are
    abandoned, and transactions that are rewound, leave the pages as they were.
    """

    def __init__(self, subtopology: Subtopology) -> None:
        self.nodes, size = _layout(subtopology)
        self._by_name = {node.name: node for node in self.nodes}
        self._nothing = [0] * size
        self._counts = [0] * size
        """Of the open slice and of the page that it continues."""
        self._open: tuple[TopicPartition | None, int, int] = (None, -1, -1)
        """The page that the open slice continues, with its first and its next offset."""
        self.pages: dict[TopicPartition | None, Page] = {}
        self.outside = [0] * OUTSIDE
        self.settled = Settled({}, tuple(self.outside), 0, 0)
        self._reached: dict[TopicPartition, int] = {}
        """The offset up to which each partition was moved for a reason, e.g. to its end."""
        self._committed: dict[TopicPartition, int] = {}

    # --- what the task binds its steps to

    def account(self, node: str) -> StepAccount:
        """The account of a node."""
        return StepAccount(self._counts, self._by_name[node])

    def entrance(self, node: str) -> tuple[list[int], int]:
        """The list and the place in which records are counted that enter a node."""
        return self._counts, self._by_name[node].at + Term.ENTERED

    def leaving(self, node: str, children: Mapping[str, Forward]) -> dict[str, Forward]:
        """The functions by which a node forwards, which count what leaves it."""
        edges = {edge.child: edge.left for edge in self._by_name[node].edges}
        return {name: _counted(self._counts, edges[name], forward) for name, forward in children.items()}

    def withheld(self, child: str, records: int) -> None:
        """Count records that did not enter a step, or that enter it after all."""
        self._counts[self._by_name[child].at + Term.WITHHELD] += records

    # --- slices

    def begin_slice(self, partition: TopicPartition | None, fetched: Fetched | None) -> None:
        """Open a slice: of a partition with the records to be processed, or of other work."""
        page = self.pages.get(partition)
        self._counts[:] = self._nothing if page is None else page.counts
        if partition is None or fetched is None:
            self._open = partition, -1, -1
            return
        first = next_offset = fetched.next_offset
        first -= len(fetched)
        if page is None or first != page.next:
            # Not right after the last slice: only then the offset is read.
            first = fetched.offsets([0])[0]
        self._open = partition, first, next_offset

    def read(self, source: str, records: int) -> None:
        """Count records that are given to a source."""
        self._counts[self._by_name[source].at + Term.ENTERED] += records

    def end_slice(self) -> None:
        """The open slice is complete."""
        partition, first, next_offset = self._open
        page = self.pages.get(partition)
        begun, repeated = first, 0
        if page is not None:
            begun, repeated = page.first, page.repeated
            if -1 < first < page.next:
                repeated += page.next - first
        self.pages[partition] = Page(begun, next_offset, repeated, self._counts[:])

    def failed(self, step: str, action: Action | None, *, in_slice: bool) -> None:
        """Count a record to which a step's policy applied; no action: a dead letter has failed again.

        Outside of a slice it is a row that was emitted and is refused now.
        """
        term = Term.DEAD_LETTERS if action == "dead_letter" else Term.SKIPPED
        if action is None:
            term = Term.FAILED_AGAIN
        node = self._by_name[step]
        if in_slice:
            self._counts[node.at + term] += 1
            return
        page = self.pages.get(None, Page(-1, -1, 0, self._nothing))
        counts = list(page.counts)
        counts[node.at + term] += 1
        counts[node.at + Term.EMITTED] -= 1
        self.pages[None] = page._replace(counts=counts)
        self.outside[Outside.REFUSED_ROWS if node.delivers else Outside.REFUSED] += 1

    # --- commits

    def settle(self, pending: int, pending_rows: int) -> None:
        """All complete slices are committed."""
        self.settled = Settled(dict(self.pages), tuple(self.outside), pending, pending_rows)

    def rewind(self, positions: Mapping[TopicPartition, int]) -> None:
        """Undo what was counted since the last commit: reading continues at these positions."""
        pages = dict(self.settled.pages)
        for partition, page in pages.items():
            if partition is not None:
                pages[partition] = page._replace(next=positions.get(partition, -1))
        self.pages = pages
        self.outside[:] = self.settled.outside
        self._reached = dict(positions)

    def move(self, partition: TopicPartition, to: int) -> None:
        """Reading continues at another offset, for a reason that is logged; -1: at one to be seen."""
        page = self.pages.get(partition)
        if page is not None:
            self.pages[partition] = page._replace(next=to)
        self._committed.pop(partition, None)
        self._reached.pop(partition, None)
        if to >= 0:
            self._reached[partition] = to

    def advance(self, partition: TopicPartition, to: int) -> None:
        """There are no records up to an offset, as the broker has reported its end."""
        self._reached[partition] = max(to, self._reached.get(partition, -1))

    def commit(self, partition: TopicPartition, offset: int) -> tuple[int, int] | None:
        """Note a committed offset. Returns the two offsets between which records were left out or repeated.

        An offset beyond what was processed leaves out records; one before the last committed one has them
        processed twice.
        """
        page = self.pages.get(partition)
        reached = max(-1 if page is None else page.next, self._reached.get(partition, -1))
        before = self._committed.get(partition)
        self._committed[partition] = offset
        if -1 < reached < offset:
            return reached, offset
        if before is not None and offset < before:
            return before, offset
        return None


def _counted(counts: list[int], place: int, forward: Forward) -> Forward:
    def pass_on(batch: Batch[Any, Any]) -> None:
        counts[place] += len(batch)
        forward(batch)

    return pass_on


def _layout(subtopology: Subtopology) -> tuple[tuple[LedgerNode, ...], int]:
    """Where the counts of each node are, and how many there are."""
    size = 0
    edges: dict[str, tuple[Edge, ...]] = {}
    for node in subtopology.nodes:
        places = []
        for child in subtopology.children(node.name):
            places.append(Edge(child.name, size, size + 1))
            size += 2
        edges[node.name] = tuple(places)
    nodes = []
    for node in subtopology.nodes:
        into = [edge.left for own in edges.values() for edge in own if edge.child == node.name]
        nodes.append(_ledger_node(node, size, edges[node.name], tuple(into)))
        size += TERMS
    return tuple(nodes), size


def _ledger_node(node: Node, at: int, edges: tuple[Edge, ...], parents: tuple[int, ...]) -> LedgerNode:
    return LedgerNode(
        node.name,
        at,
        edges,
        parents,
        splits=node.operator.splits,
        must_end=not isinstance(node, Step) or node.operator.terminal,
        is_source=isinstance(node, SourceNode),
        delivers=isinstance(node, SinkConnectorNode),
    )
