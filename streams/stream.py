"""The fluent API: each method adds a step to the topology and returns the stream behind it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from streams.errors import TopologyError
from streams.operators.process import Process
from streams.operators.stateless import Branch, Filter, FlatMap, KeyBy, Map, MapBatch, Merge, Peek
from streams.policy import ErrorPolicy, dead_letter, fail
from streams.serde import Json, Serde, Text
from streams.topology import Node, Sink, Source, Step, Topic, Topology, function_name, unique_name

if TYPE_CHECKING:
    from streams.operators import Operator
    from streams.processor import ProcessorFactory
    from streams.records import Batch

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
V2 = TypeVar("V2")


class TopologyBuilder:
    """Collects nodes while the user's program runs, and gives them names."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []

    def build(self) -> Topology:
        """The graph so far, validated. Raises ``TopologyError``."""
        return Topology(tuple(self._nodes))

    def name(self, wanted: str | None, generated: str) -> str:
        """The name the user wants, or one generated from what the node does that is not taken yet."""
        if wanted is not None:
            if any(node.name == wanted for node in self._nodes):
                raise TopologyError(f"two steps are named {wanted!r}", hint="give one of them another name=")
            return wanted
        return unique_name(generated, (node.name for node in self._nodes))

    def add(self, node: Node) -> None:
        """Append a node; its parents must be there already."""
        self._nodes.append(node)

    def stream(
        self,
        topics: Topic | Iterable[Topic],
        *,
        key: Serde[K],
        value: Serde[V],
        timestamp: Callable[[V], int] | None = None,
        on_error: ErrorPolicy = dead_letter,
        name: str | None = None,
    ) -> Stream[K, V]:
        """Add a source; see ``App.stream``."""
        several = (topics,) if isinstance(topics, (str, re.Pattern)) else tuple(topics)
        if not several:
            raise TopologyError("a stream needs at least one topic")
        first = several[0] if isinstance(several[0], str) else several[0].pattern
        source = Source(
            name=self.name(name, first),
            topics=several,
            key=key,
            value=value,
            timestamp=timestamp,
            policy=on_error,
        )
        self.add(source)
        return Stream(self, (source.name,), key, value)


class Stream(Generic[K, V]):
    """Records on their way from a topic: the methods say what happens to them next.

    Functions take a record's value, unless a method says otherwise. A tombstone's value is ``None``. Every
    method that runs user code takes ``on_error=``, the policy for records it fails on (default ``fail``),
    and ``name=``, which errors, metrics and descriptions use.
    """

    def __init__(
        self,
        builder: TopologyBuilder,
        parents: tuple[str, ...],
        key: Serde[Any],
        value: Serde[Any] | None,
    ) -> None:
        self._builder = builder
        self._parents = parents
        self._key = key
        self._value = value

    def map(
        self,
        function: Callable[[V], V2],
        *,
        timestamp: Callable[[V2], int] | None = None,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Stream[K, V2]:
        """Replace each value by ``function(value)``; key, headers and event time stay.

        ``timestamp`` takes a new event time, in milliseconds since the epoch, from the new value.
        """
        return self._then(Map(function, timestamp), on_error, name)

    def map_batch(
        self,
        function: Callable[[Batch[K, V]], Batch[Any, Any]],
        *,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Stream[Any, Any]:
        """Replace each batch by ``function(batch)``, made with ``Batch.select`` and the ``with_`` methods.

        For columnar code, and where keys, headers or timestamps are needed. When the function raises, it is
        called again with each record alone, so that one failing record fails alone.
        """
        return self._then(MapBatch(function), on_error, name)

    def filter(
        self, predicate: Callable[[V], object], *, on_error: ErrorPolicy = fail, name: str | None = None
    ) -> Stream[K, V]:
        """Keep the records for whose value ``predicate`` is true."""
        return self._then(Filter(predicate), on_error, name, value=self._value)

    def flat_map(
        self,
        function: Callable[[V], Iterable[V2]],
        *,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Stream[K, V2]:
        """Replace each record by one for each value in ``function(value)``, none included."""
        return self._then(FlatMap(function), on_error, name)

    def key_by(
        self,
        function: Callable[[V], K2],
        *,
        key: Serde[K2] | None = None,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Stream[K2, V]:
        """Replace each key by ``function(value)``, written with the serde ``key`` (text unless given)."""
        return self._then(KeyBy(function), on_error, name, key=key or Text(), value=self._value)

    def peek(
        self, function: Callable[[V], object], *, on_error: ErrorPolicy = fail, name: str | None = None
    ) -> Stream[K, V]:
        """Call ``function(value)`` for its effect, which a failure may repeat, and pass the record on."""
        return self._then(Peek(function), on_error, name, value=self._value)

    def process(
        self, processor: ProcessorFactory, *, on_error: ErrorPolicy = fail, name: str | None = None
    ) -> Stream[Any, Any]:
        """Run a processor of your own; what it forwards is the stream returned.

        ``processor`` is a class (or factory): one instance is made for each task. Instances have ``process``
        or ``process_batch``, as ``Processor`` and ``BatchProcessor`` say.
        """
        return self._then(Process(processor), on_error, name)

    def branch(
        self,
        routes: Mapping[str, Callable[[V], object]],
        *,
        otherwise: str | None = None,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Branches[K, V]:
        """Split the stream: each record goes to the first branch whose predicate is true for its value.

        ``otherwise`` names a branch for the rest; without it the rest is filtered out. The result gives each
        branch's stream by name: ``branches["slow"]``.
        """
        if not routes:
            raise TopologyError("branch needs at least one predicate")
        if otherwise in routes:
            raise TopologyError(f"branch {otherwise!r} has a predicate and is for the rest too")
        builder = self._builder
        step = builder.name(name, f"branch-{'-'.join(routes)}")
        names = [*routes] + ([otherwise] if otherwise is not None else [])
        heads = {branch: f"{step}.{branch}" for branch in names}
        operator = Branch(
            tuple((heads[branch], predicate) for branch, predicate in routes.items()),
            None if otherwise is None else heads[otherwise],
        )
        builder.add(Step(name=step, parents=self._parents, operator=operator, policy=on_error))
        streams: dict[str, Stream[K, V]] = {}
        for branch, head in heads.items():
            builder.add(Step(name=builder.name(head, head), parents=(step,), operator=Merge()))
            streams[branch] = Stream(builder, (head,), self._key, self._value)
        return Branches(streams)

    def merge(self, *others: Stream[K, V], name: str | None = None) -> Stream[K, V]:
        """Join this stream with others into one; each partition's records keep their order.

        Streams that are merged must be keyed and encoded alike, as the result carries this stream's serdes.
        """
        parents = tuple(parent for stream in (self, *others) for parent in stream._parents)  # noqa: SLF001 - the same class
        if len(set(parents)) < len(parents):
            raise TopologyError("a stream is merged with itself: each record would come twice")
        step = Step(name=self._builder.name(name, "merge"), parents=parents, operator=Merge())
        self._builder.add(step)
        same = all(_alike(stream._value, self._value) for stream in others)  # noqa: SLF001 - the same class
        return Stream(self._builder, (step.name,), self._key, self._value if same else None)

    def to(
        self,
        topic: str | Callable[[V], str],
        *,
        key: Serde[K] | None = None,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> None:
        """Write the records to a topic, or to the topic that ``topic(value)`` names for each.

        Event times and headers go with them, and keys decide the partition as for Java clients. Serdes not
        given are those the stream was read with, as long as its values are the same; else JSON.
        """
        generated = f"to-{topic}" if isinstance(topic, str) else f"to-{function_name(topic)}"
        self._builder.add(
            Sink(
                name=self._builder.name(name, generated),
                parents=self._parents,
                topic=topic,
                key=key or self._key,
                value=value or self._value or Json(),
                policy=on_error,
            )
        )

    def _then(
        self,
        operator: Operator,
        policy: ErrorPolicy,
        name: str | None,
        *,
        key: Serde[Any] | None = None,
        value: Serde[Any] | None = None,
    ) -> Stream[Any, Any]:
        called = function_name(operator.code)
        generated = operator.kind if called == "lambda" else f"{operator.kind}-{called}"
        step = Step(
            name=self._builder.name(name, generated), parents=self._parents, operator=operator, policy=policy
        )
        self._builder.add(step)
        return Stream(self._builder, (step.name,), key or self._key, value)


def _alike(one: Serde[Any] | None, other: Serde[Any] | None) -> bool:
    """Whether two serdes write the same: one object, or two of one kind and name."""
    if one is None or other is None:
        return one is other
    return one is other or (type(one) is type(other) and one.name == other.name)


class Branches(Mapping[str, Stream[K, V]]):
    """The streams that ``Stream.branch`` split into, by name."""

    def __init__(self, streams: Mapping[str, Stream[K, V]]) -> None:
        self._streams = dict(streams)

    def __getitem__(self, name: str) -> Stream[K, V]:
        return self._streams[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams)

    def __len__(self) -> int:
        return len(self._streams)
