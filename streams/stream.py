"""The fluent API: each method adds a step to the topology and returns the stream behind it."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from streams.aggregates import Combined, count
from streams.errors import TopologyError
from streams.operators.aggregate import (
    AccumulatorSerde,
    AggregateByKey,
    Group,
    Reduce,
    TimedAccumulatorSerde,
)
from streams.operators.change import ToStream, View
from streams.operators.process import Process
from streams.operators.stateless import Branch, Filter, FlatMap, KeyBy, Map, MapBatch, Merge, Peek
from streams.operators.window import WindowedAggregate, WindowHeads
from streams.policy import ErrorPolicy, dead_letter, fail
from streams.serde import Json, Serde, Text
from streams.state.definition import StoreDefinition
from streams.topology import (
    Node,
    Repartition,
    Sink,
    Source,
    Step,
    Topic,
    Topology,
    function_name,
    unique_name,
)
from streams.windows import Windowed

if TYPE_CHECKING:
    from streams.aggregates import Aggregate
    from streams.operators import Operator
    from streams.processor import ProcessorFactory
    from streams.records import Batch
    from streams.windows import Hopping, Tumbling

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
V2 = TypeVar("V2")
R = TypeVar("R")


class TopologyBuilder:
    """Collects nodes while the user's program runs, and gives them names.

    ``application`` begins the names of the topics between subtopologies.
    """

    def __init__(self, application: str = "app") -> None:
        self.application = application
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

    def repartition(
        self, stream: Stream[Any, Any], name: str, partitions: int | None, on_error: ErrorPolicy
    ) -> Stream[Any, Any]:
        """Send a stream through an internal topic, so that equal keys meet in one task."""
        topic = f"{self.application}-{name}-repartition"
        value = stream.written_value(
            f"the records of {name!r} change tasks, through {topic}",
            "group_by(…, value=…), repartition(…, value=…)",
        )
        self.add(
            Sink(
                name=self.name(None, f"{name}-to-repartition"),
                parents=stream.parents,
                topic=topic,
                key=stream.key,
                value=value,
                policy=on_error,
                repartition=Repartition(partitions),
            )
        )
        source = Source(
            name=self.name(None, f"{name}-repartitioned"), topics=(topic,), key=stream.key, value=value
        )
        self.add(source)
        return Stream(self, (source.name,), stream.key, value)

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
        *,
        rekeyed: bool = False,
    ) -> None:
        self._builder = builder
        self._parents = parents
        self._key = key
        self._value = value
        self._rekeyed = rekeyed

    @property
    def builder(self) -> TopologyBuilder:
        """Where the stream's steps are collected."""
        return self._builder

    @property
    def parents(self) -> tuple[str, ...]:
        """The steps whose records these are."""
        return self._parents

    @property
    def key(self) -> Serde[Any]:
        """How keys are written."""
        return self._key

    @property
    def rekeyed(self) -> bool:
        """Whether keys may have changed since the records were put into partitions by them."""
        return self._rekeyed

    def written_value(self, purpose: str, where: str) -> Serde[Any]:
        """How values are written. Raises ``TopologyError`` where the stream does not know it."""
        if self._value is None:
            raise TopologyError(
                f"{purpose}, and the type of their values is not known",
                hint=f"say how to write them, e.g. value=Json(Type), in {where}; "
                "or annotate what the function that makes them returns",
            )
        return self._value

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
        return self._then(Map(function, timestamp), on_error, name, inferred=returned_serde(function))

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
        return self._then(MapBatch(function), on_error, name, rekeyed=True)

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
        return self._then(KeyBy(function), on_error, name, key=key or Text(), value=self._value, rekeyed=True)

    def peek(
        self, function: Callable[[V], object], *, on_error: ErrorPolicy = fail, name: str | None = None
    ) -> Stream[K, V]:
        """Call ``function(value)`` for its effect, which a failure may repeat, and pass the record on."""
        return self._then(Peek(function), on_error, name, value=self._value)

    def process(
        self,
        processor: ProcessorFactory,
        *,
        stores: Iterable[StoreDefinition | str] = (),
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Stream[Any, Any]:
        """Run a processor of your own; what it forwards is the stream returned.

        ``processor`` is a class (or factory): one instance is made for each task. Instances have ``process``
        or ``process_batch``, as ``Processor`` and ``BatchProcessor`` say. ``stores`` are made with
        ``key_value_store(name)``; a name alone is a store of another step. With stores, keys that changed
        send the records through a repartition topic first, named like the first store.
        """
        given = list(stores)
        names = tuple(store if isinstance(store, str) else store.name for store in given)
        source: Stream[Any, Any] = self
        if given and self._rekeyed:
            source = self._builder.repartition(self, name or names[0], None, on_error)
        return source._then(  # noqa: SLF001 - the same class
            Process(processor, names),
            on_error,
            name,
            rekeyed=True,
            owns=tuple(store for store in given if not isinstance(store, str)),
            uses=tuple(store for store in given if isinstance(store, str)),
        )

    def repartition(
        self,
        name: str,
        *,
        partitions: int | None = None,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy = fail,
    ) -> Stream[K, V]:
        """Send the records through an internal topic, ``<app>-<name>-repartition``, by their keys.

        ``partitions`` are as many as those of the topics it is read together with, else as the largest input
        has, unless given.
        """
        stream = self if value is None else Stream(self._builder, self._parents, self._key, value)
        return self._builder.repartition(stream, name, partitions, on_error)

    def group_by(
        self,
        function: Callable[[V], K2],
        *,
        key: Serde[K2] | None = None,
        value: Serde[V] | None = None,
        name: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy = dead_letter,
    ) -> Grouped[K2, V]:
        """Bring together the records for which ``function(value)`` is equal, written by ``key`` (text).

        They go through a repartition topic, which is called ``<app>-<name>-repartition``; without ``name`` it
        has the name of the store of what follows. ``value`` says how values are written to it, if the stream
        does not know. Records whose group is ``None`` or cannot be found get ``on_error``.
        """
        stream = self._then(
            Group(function), on_error, None, key=key or Text(), value=value or self._value, rekeyed=True
        )
        return Grouped(stream, name, partitions)

    def group_by_key(self, *, on_error: ErrorPolicy = dead_letter) -> Grouped[K, V]:
        """Bring together the records with equal keys; those without a key get ``on_error``.

        Where keys were changed before, the records go through a repartition topic first.
        """
        stream = self._then(Group(), on_error, None, value=self._value)
        return Grouped(stream, None, None)

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
            streams[branch] = Stream(builder, (head,), self._key, self._value, rekeyed=self._rekeyed)
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
        rekeyed = any(stream._rekeyed for stream in (self, *others))  # noqa: SLF001 - the same class
        return Stream(self._builder, (step.name,), self._key, self._value if same else None, rekeyed=rekeyed)

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
        inferred: Serde[Any] | None = None,
        rekeyed: bool = False,
        owns: tuple[StoreDefinition, ...] = (),
        uses: tuple[str, ...] = (),
    ) -> Stream[Any, Any]:
        called = function_name(operator.code)
        generated = operator.kind if called == "lambda" else f"{operator.kind}-{called}"
        step = Step(
            name=self._builder.name(name, generated if operator.code is not None else operator.kind),
            parents=self._parents,
            operator=operator,
            policy=policy,
            owns=owns,
            uses=uses,
        )
        self._builder.add(step)
        return Stream(
            self._builder,
            (step.name,),
            key or self._key,
            value or inferred,
            rekeyed=rekeyed or self._rekeyed,
        )


class Grouped(Generic[K, V]):
    """Records brought together by key: the methods say what is made of each group.

    Every result has a name of its own, which its store and its changelog topic ``<app>-<name>-changelog`` are
    found by again: it must not change while the state is to be kept.
    """

    def __init__(self, stream: Stream[K, V], name: str | None, partitions: int | None) -> None:
        self._stream = stream
        self._name = name
        self._partitions = partitions
        self._repartitioned: Stream[K, V] | None = None
        self._used_by: str | None = None

    def window(
        self,
        window: Tumbling | Hopping,
        *,
        grace: int = 0,
        close_idle_after: int | None = None,
    ) -> WindowedGrouped[K, V]:
        """Make a result for each window of event time instead of one for all time.

        A window closes when stream time passes its end by ``grace`` milliseconds; records that come later for
        it are counted, and left out. Where no records come for ``close_idle_after`` milliseconds, stream time
        goes on with the wall clock from where it stood; without it, windows wait for the next record.
        """
        if grace < 0:
            raise TopologyError(f"grace must be 0 ms or more, got {grace}")
        return WindowedGrouped(self, window, grace, close_idle_after)

    def count(self, name: str, *, on_error: ErrorPolicy = fail) -> Table[K, int]:
        """How many records each key has."""
        return self.aggregate(name, count(), on_error=on_error)

    def reduce(
        self,
        name: str,
        function: Callable[[V, V], V],
        *,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy = fail,
    ) -> Table[K, V]:
        """What ``function(so far, value)`` makes of each key's values; the first stands for itself."""
        return self.aggregate(name, self.reducing(name, function, value), on_error=on_error)

    def aggregate(
        self,
        name: str,
        aggregate: Aggregate[Any, R] | None = None,
        /,
        *,
        on_error: ErrorPolicy = fail,
        **fields: Aggregate[Any, Any],
    ) -> Table[K, Any]:
        """Compute an aggregate of each key's records, or several by name: ``aggregate("sales", sum=total())``.

        With names, results are objects with these as attributes.
        """
        computed = chosen_aggregate(name, aggregate, fields)
        stream = self.source(name)
        store = StoreDefinition(
            name=name,
            key=stream.key,
            value=TimedAccumulatorSerde(computed),
            purpose=f"aggregate {computed.describe()}",
        )
        step = Step(
            name=stream.builder.name(None, name),
            parents=stream.parents,
            operator=AggregateByKey(name, computed),
            policy=on_error,
            owns=(store,),
        )
        stream.builder.add(step)
        return Table(stream.builder, step.name, stream.key, None, View(name, (("result", computed.result),)))

    def reducing(self, name: str, function: Callable[[V, V], V], value: Serde[V] | None) -> Aggregate[Any, V]:
        """``function`` as an aggregate."""
        serde = value or self._stream.written_value(f"{name!r} keeps values", "reduce(…, value=…)")
        return Reduce(function, serde)

    def source(self, name: str) -> Stream[K, V]:
        """The stream whose tasks have whole groups; ``name`` is the store that asks."""
        if not self._stream.rekeyed:
            return self._stream
        if self._name is None and self._used_by not in (None, name):
            raise TopologyError(
                f"{self._used_by!r} and {name!r} share the repartition topic of one group_by, which has no name",
                hint="give it one: group_by(…, name=…); it must not depend on which of them comes first",
            )
        self._used_by = name
        if self._repartitioned is None:
            self._repartitioned = self._stream.builder.repartition(
                self._stream, self._name or name, self._partitions, dead_letter
            )
        return self._repartitioned


class WindowedGrouped(Generic[K, V]):
    """Records brought together by key and window of event time."""

    def __init__(
        self, grouped: Grouped[K, V], window: Tumbling | Hopping, grace: int, close_idle_after: int | None
    ) -> None:
        self._grouped = grouped
        self._window = window
        self._grace = grace
        self._close_idle_after = close_idle_after

    def count(self, name: str, *, on_error: ErrorPolicy = fail) -> WindowedResults[K, int]:
        """How many records each window and key has."""
        return self.aggregate(name, count(), on_error=on_error)

    def reduce(
        self,
        name: str,
        function: Callable[[V, V], V],
        *,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy = fail,
    ) -> WindowedResults[K, V]:
        """What ``function(so far, value)`` makes of each window's and key's values."""
        return self.aggregate(name, self._grouped.reducing(name, function, value), on_error=on_error)

    def aggregate(
        self,
        name: str,
        aggregate: Aggregate[Any, R] | None = None,
        /,
        *,
        on_error: ErrorPolicy = fail,
        **fields: Aggregate[Any, Any],
    ) -> WindowedResults[K, Any]:
        """Compute an aggregate, or several by name, for each window and key; see ``Grouped.aggregate``."""
        computed = chosen_aggregate(name, aggregate, fields)
        stream = self._grouped.source(name)
        builder = stream.builder
        step_name = builder.name(None, name)
        heads = WindowHeads(f"{step_name}.updates", f"{step_name}.final", f"{step_name}.late")
        lasts = self._window.size + self._grace
        store = StoreDefinition(
            name=name,
            key=stream.key,
            value=AccumulatorSerde(computed),
            purpose=f"{self._window.describe()}, aggregate {computed.describe()}",
            retention=lasts,
            changelog_retention=lasts,
        )
        operator = WindowedAggregate(
            store=name,
            window=self._window,
            grace=self._grace,
            aggregate=computed,
            heads=heads,
            close_idle_after=self._close_idle_after,
        )
        builder.add(
            Step(name=step_name, parents=stream.parents, operator=operator, policy=on_error, owns=(store,))
        )
        return WindowedResults(stream, step_name, heads)


class WindowedResults(Generic[K, R]):
    """The results of windows, to be taken as they change, or once they are final."""

    def __init__(self, source: Stream[K, Any], step: str, heads: WindowHeads) -> None:
        self._source = source
        self._step = step
        self._heads = heads
        self._streams: dict[str, Stream[Any, Any]] = {}

    def updates(self) -> Stream[K, Windowed[K, R]]:
        """The latest result of each window that changed, at each commit."""
        return self._head(self._heads.updates, Json(Windowed))

    def final(self) -> Stream[K, Windowed[K, R]]:
        """Exactly one result for each window, when it has closed."""
        return self._head(self._heads.final, Json(Windowed))

    def late(self) -> Stream[K, Any]:
        """The records that came too late for all of their windows."""
        return self._head(self._heads.late, None)

    def _head(self, name: str, value: Serde[Any] | None) -> Stream[Any, Any]:
        if name not in self._streams:
            builder = self._source.builder
            builder.add(Step(name=name, parents=(self._step,), operator=Merge()))
            self._streams[name] = Stream(builder, (name,), self._source.key, value)
        return self._streams[name]


class Table(Generic[K, V]):
    """The latest value of each key, and the stream of changes to it."""

    def __init__(
        self,
        builder: TopologyBuilder,
        step: str,
        key: Serde[Any],
        value: Serde[Any] | None,
        view: View,
    ) -> None:
        self._builder = builder
        self._step = step
        self._key = key
        self._value = value
        self._view = view

    def to_stream(self, *, name: str | None = None) -> Stream[K, V]:
        """The changes as records with the new values; a deletion is a tombstone."""
        step = Step(name=self._builder.name(name, "to_stream"), parents=(self._step,), operator=ToStream())
        self._builder.add(step)
        return Stream(self._builder, (step.name,), self._key, self._value)

    def to(
        self,
        topic: str | Callable[[V], str],
        *,
        key: Serde[K] | None = None,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> None:
        """Write the changes to a topic: ``to_stream().to(…)``."""
        self.to_stream().to(topic, key=key, value=value, on_error=on_error, name=name)


def key_value_store(
    name: str,
    *,
    key: Serde[Any] | None = None,
    value: Serde[Any] | None = None,
    migrate: Callable[[Any], Any] | None = None,
) -> StoreDefinition:
    """A store for ``Stream.process(…, stores=[…])``: keys are text and values JSON unless serdes are given.

    ``migrate`` makes a value of an earlier schema, as plain data, into one of this schema.
    """
    return StoreDefinition(name=name, key=key or Text(), value=value or Json(), migrate=migrate)


def chosen_aggregate(
    name: str, aggregate: Aggregate[Any, Any] | None, fields: Mapping[str, Aggregate[Any, Any]]
) -> Aggregate[Any, Any]:
    """The one aggregate given, or those given by name as one. Raises ``TopologyError``."""
    if (aggregate is None) == (not fields):
        raise TopologyError(
            f"{name!r} needs either one aggregate, or several by name",
            hint='for instance aggregate("sales", total("amount")) or aggregate("sales", sum=total("amount"))',
        )
    return Combined(fields) if aggregate is None else aggregate


def returned_serde(function: Callable[..., Any]) -> Serde[Any] | None:
    """JSON of the type that the function is annotated to return, where that is a class with fields."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except Exception:  # noqa: BLE001 - annotations may name anything; without one the type is just not known
        return None
    fields = isinstance(returned, type) and (
        issubclass(returned, msgspec.Struct) or dataclasses.is_dataclass(returned)
    )
    return Json(returned) if fields else None


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
