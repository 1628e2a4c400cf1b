"""The fluent API: each method adds a step to the topology and returns the stream behind it."""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

import msgspec

from streams.aggregates import Combined, check_fields, count
from streams.errors import TopologyError
from streams.eventtime.windows import JoinWindow, Session, Sliding, Windowed
from streams.operators.aggregate import (
    AccumulatorSerde,
    AggregateByKey,
    Group,
    Reduce,
    TimedAccumulatorSerde,
)
from streams.operators.change import JoinedView, ToStream, View
from streams.operators.foreign_key import (
    AnswerSerde,
    AnswerSubscribers,
    JoinAnswers,
    KeepSubscriptions,
    Subscribe,
    SubscribedSerde,
    SubscriberSerde,
    SubscriptionSerde,
)
from streams.operators.join import JoinGlobal, JoinStreams, JoinTable, WaitingSerde
from streams.operators.map_async import MapAsync
from streams.operators.process import Process
from streams.operators.session import SessionAggregate, session_store
from streams.operators.sliding import SlidingAggregate, sliding_store
from streams.operators.stateless import Branch, Filter, FlatMap, KeyBy, Map, MapBatch, Merge, Peek
from streams.operators.table import (
    AggregateChanges,
    FilterTable,
    GroupChanges,
    JoinTables,
    KeepTable,
    MapTable,
    MergeChanges,
    RemovableReduce,
    StampedSerde,
    TableEntries,
)
from streams.operators.user_code import check_code
from streams.operators.window import WindowedAggregate, WindowHeads
from streams.policy import ErrorPolicy, dead_letter, fail
from streams.serde import Bytes, Json, Serde, Text
from streams.serde.round_trip import RoundTrip
from streams.serde.value_type import given_type, known, member_types, returned_type, serde_type
from streams.state.deadlines import deadlines_definition
from streams.state.definition import StoreDefinition
from streams.state.expiring import ExpiringSerde
from streams.state.unmatched import unmatched_definition, unmatched_name
from streams.topology.graph import (
    GlobalSource,
    Node,
    Repartition,
    Sink,
    Source,
    Step,
    Topic,
    Topology,
    function_name,
    two_steps,
    unique_name,
)
from streams.topology.topic_pattern import OwnTopics, TopicPattern

if TYPE_CHECKING:
    from streams.aggregates import Aggregate
    from streams.eventtime.windows import Hopping, Tumbling
    from streams.operators import Operator
    from streams.operators.change import AnyView, JoinKind
    from streams.operators.processor import ProcessorFactory
    from streams.records import Batch

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
V2 = TypeVar("V2")
R = TypeVar("R")


_PACKAGE = str(Path(__file__).parents[1])


def _calling_line() -> str:
    """The line of the user's program that is being run, as ``file:line``."""
    frame = sys._getframe(1)  # noqa: SLF001 - documented; inspect.stack reads source files, which is slow
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class TopologyBuilder:
    """Collects nodes while the user's program runs, and gives them names.

    ``application`` begins the names of the topics between subtopologies.
    """

    def __init__(self, application: str = "app") -> None:
        self.application = application
        self._nodes: list[Node] = []
        self._global_tables: list[GlobalSource] = []

    def build(self, dead_letter_topic: str | None = None) -> Topology:
        """The graph so far, validated; patterns leave out what it writes. Raises ``TopologyError``."""
        written = {
            node.topic for node in self._nodes if isinstance(node, Sink) and isinstance(node.topic, str)
        }
        if dead_letter_topic is not None:
            written.add(dead_letter_topic)
        own = OwnTopics(self.application, frozenset(written))
        sources = [
            dataclasses.replace(
                node,
                topics=tuple(
                    topic if isinstance(topic, str) else TopicPattern(topic.regex, own)
                    for topic in node.topics
                ),
            )
            if isinstance(node, Source)
            else node
            for node in self._nodes
        ]
        patterns = tuple(
            topic
            for node in sources
            if isinstance(node, Source)
            for topic in node.topics
            if isinstance(topic, TopicPattern)
        )
        nodes = tuple(
            dataclasses.replace(node, closed=patterns)
            if isinstance(node, Sink) and not isinstance(node.topic, str)
            else node
            for node in sources
        )
        return Topology(nodes, tuple(self._global_tables))

    def name(self, wanted: str | None, generated: str) -> str:
        """The name the user wants, or one generated from what the node does that is not taken yet."""
        if wanted is not None:
            first = next((node for node in self._nodes if node.name == wanted), None)
            if first is not None:
                raise two_steps(wanted, first.place, _calling_line())
            return wanted
        return unique_name(generated, (node.name for node in self._nodes))

    def repartition(
        self,
        stream: Stream[Any, Any],
        name: str,
        partitions: int | None,
        on_error: ErrorPolicy,
        *,
        read_key: Serde[Any] | None = None,
        needs_key: bool = False,
        needs_value: bool = False,
    ) -> Stream[Any, Any]:
        """Send a stream through an internal topic, so that equal keys meet in one task.

        ``read_key`` says how keys are read again, if not as they are written. ``needs_key`` and
        ``needs_value`` say that the stream never has null keys, or values.
        """
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
                value=stream.read_again(value),
                policy=on_error,
                repartition=Repartition(partitions),
            )
        )
        source = Source(
            name=self.name(None, f"{name}-repartitioned"),
            topics=(topic,),
            key=read_key or stream.key,
            value=value,
            needs_key=needs_key,
            needs_value=needs_value,
            internal=True,
        )
        self.add(source)
        return Stream(self, (source.name,), source.key, value, as_read=True)

    def add(self, node: Node) -> None:
        """Append a node; its parents must be there already. Raises ``TopologyError`` for async functions."""
        kind = node.operator.kind if isinstance(node, Step) else type(node).__name__.lower()
        place = _calling_line()
        check_code(node.name, kind, node, place)
        self._nodes.append(dataclasses.replace(node, place=place))

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
        if any(isinstance(topic, re.Pattern) and isinstance(topic.pattern, bytes) for topic in several):
            raise TopologyError(
                f"stream {name or several!r}: a pattern of bytes matches no topic",
                hint='topics have names of text: re.compile("…"), not re.compile(b"…")',
            )
        first = several[0] if isinstance(several[0], str) else several[0].pattern
        # What else is the app's own is known once the program is complete: see build.
        own = OwnTopics(self.application, frozenset())
        source = Source(
            name=self.name(name, first),
            topics=tuple(topic if isinstance(topic, str) else TopicPattern(topic, own) for topic in several),
            key=key,
            value=value,
            timestamp=timestamp,
            policy=on_error,
        )
        self.add(source)
        return Stream(self, (source.name,), key, value, as_read=True)

    def table(
        self,
        topic: str,
        *,
        key: Serde[K],
        value: Serde[V],
        name: str | None,
        timestamp: Callable[[V], int] | None,
        on_error: ErrorPolicy,
    ) -> Table[K, V]:
        """Add a source and the table that it feeds; see ``App.table``."""
        store = name or topic
        source = Source(
            name=self.name(None, topic),
            topics=(topic,),
            key=key,
            value=value,
            timestamp=timestamp,
            policy=on_error,
            table=True,
        )
        self.add(source)
        return self.keep(
            StoreDefinition(
                name=store,
                key=key,
                value=StampedSerde(value),
                purpose="table",
                source_topic=topic,
                read_source=TableEntries(key, value, timestamp),
                shown=_value_of,
            ),
            Stream(self, (source.name,), key, value, as_read=True),
            on_error,
        )

    def keep(
        self,
        store: StoreDefinition,
        stream: Stream[K, V],
        on_error: ErrorPolicy,
        check: RoundTrip | None = None,
    ) -> Table[K, V]:
        """Add the step that keeps a stream's latest values in a store."""
        step = Step(
            name=self.name(None, f"{store.name}-table"),
            parents=stream.parents,
            operator=KeepTable(store.name, check),
            policy=on_error,
            owns=(store,),
        )
        self.add(step)
        return Table(self, step.name, stream.key, stream.value, View(store.name), as_read=True)

    def global_table(
        self, topic: str, *, key: Serde[K], value: Serde[V], name: str | None
    ) -> GlobalTable[K, V]:
        """Add a table that every worker reads as a whole; see ``App.global_table``."""
        store = StoreDefinition(
            name=name or topic,
            key=key,
            value=StampedSerde(value),
            purpose="global table",
            source_topic=topic,
            read_source=TableEntries(key, value),
            shown=_value_of,
        )
        source = GlobalSource(topic=topic, key=key, value=value, store=store)
        check_code(store.name, "global table", source)
        self._global_tables.append(source)
        return GlobalTable(self, store.name, key)

    def told_first(self, stores: Iterable[str], left: str, right: str) -> str | None:
        """Which of two steps hears first of a change to a store that both depend on; ``None`` without one."""
        owners = [
            node.name
            for node in self._nodes
            if isinstance(node, Step) and any(store.name in stores for store in node.owns)
        ]
        return next((found for owner in owners if (found := self._reached(owner, (left, right)))), None)

    def _reached(self, start: str, wanted: tuple[str, str]) -> str | None:
        """The first of the wanted steps that something forwarded by ``start`` comes out of."""
        for node in self._nodes:
            if start in node.parents and (found := self._reached(node.name, wanted)):
                return found
        # Steps yet to be added behind it come after those there are.
        return start if start in wanted else None


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
        value_type: Any = Any,
        as_read: bool = False,
    ) -> None:
        self._builder = builder
        self._parents = parents
        self._key = key
        self._value = value
        self._rekeyed = rekeyed
        self._value_type = serde_type(value) if value_type is Any else value_type
        self._as_read = as_read

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

    @property
    def value(self) -> Serde[Any] | None:
        """How values are written, where that is known."""
        return self._value

    @property
    def value_type(self) -> Any:
        """The type of values, ``Any`` where it is not known: aggregates keep values as it says."""
        return self._value_type

    def read_again(self, value: Serde[Any]) -> Serde[Any]:
        """``value`` for records that will be read again: it refuses what would come back as another value.

        Values that are as a serde has read them are not looked at.
        """
        return value if self._as_read and value is self._value else RoundTrip(value)

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
        return self._then(
            Map(function, timestamp),
            on_error,
            name,
            inferred=returned_serde(function),
            value_type=returned_type(function),
        )

    def map_async(
        self,
        function: Callable[[V], Awaitable[V2]],
        *,
        concurrency: int = 100,
        timeout: float | None = 30.0,
        one_call_per_key: bool = True,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Stream[K, V2]:
        """Replace each value by ``await function(value)``, for up to ``concurrency`` records at a time.

        For requests to other services and the like. Records go on in the order of the input, whichever call
        ends first. Calls for records of one key come one after another, in order, unless ``one_call_per_key``
        is false: then only the results keep their order. Records without a key have no order among
        themselves.

        A call that raises, or takes longer than ``timeout`` seconds (``None`` for no limit) and is cancelled,
        fails alone and gets ``on_error``; with ``retry``, failing records are called again together after
        each wait. When the worker stops or loses the partition, calls are cancelled, and their records come
        again: to the next owner, or after the restart.

        The function runs in an event loop on a thread of its own, one for the whole process, so that a client
        it has made once can be used in every call. It must not block: use ``map`` for that.
        Raises ``TopologyError`` for a function that gives nothing to await.
        """
        if concurrency < 1 or (timeout is not None and timeout <= 0):
            raise TopologyError(
                "map_async needs a concurrency of 1 or more and a timeout above 0 s, "
                f"got concurrency={concurrency}, timeout={timeout}"
            )
        return self._then(
            MapAsync(function, concurrency, timeout, one_call_per_key),
            on_error,
            name,
            inferred=returned_serde(function),
            value_type=returned_type(function),
        )

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
        return self._then(Filter(predicate), on_error, name, value=self._value, value_type=self._value_type)

    def flat_map(
        self,
        function: Callable[[V], Iterable[V2]],
        *,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Stream[K, V2]:
        """Replace each record by one for each value in ``function(value)``, none included."""
        return self._then(FlatMap(function), on_error, name, value_type=given_type(function))

    @overload
    def key_by(
        self,
        function: Callable[[V], str],
        *,
        key: None = None,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Stream[str, V]: ...

    @overload
    def key_by(
        self,
        function: Callable[[V], K2],
        *,
        key: Serde[K2],
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Stream[K2, V]: ...

    def key_by(
        self,
        function: Callable[[V], Any],
        *,
        key: Serde[Any] | None = None,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Stream[Any, V]:
        """Replace each key by ``function(value)``, written with the serde ``key`` (text unless given)."""
        operator = KeyBy(function, implied_text=key is None)
        return self._then(
            operator,
            on_error,
            name,
            key=key or _text_keys(name or _generated(operator), function),
            value=self._value,
            value_type=self._value_type,
            rekeyed=True,
        )

    def peek(
        self, function: Callable[[V], object], *, on_error: ErrorPolicy = fail, name: str | None = None
    ) -> Stream[K, V]:
        """Call ``function(value)`` for its effect, which a failure may repeat, and pass the record on."""
        return self._then(Peek(function), on_error, name, value=self._value, value_type=self._value_type)

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
            owns=_with_deadlines([store for store in given if not isinstance(store, str)]),
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

    @overload
    def group_by(
        self,
        function: Callable[[V], str],
        *,
        key: None = None,
        value: Serde[V] | None = None,
        name: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy = dead_letter,
    ) -> Grouped[str, V]: ...

    @overload
    def group_by(
        self,
        function: Callable[[V], K2],
        *,
        key: Serde[K2],
        value: Serde[V] | None = None,
        name: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy = dead_letter,
    ) -> Grouped[K2, V]: ...

    def group_by(
        self,
        function: Callable[[V], Any],
        *,
        key: Serde[Any] | None = None,
        value: Serde[V] | None = None,
        name: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy = dead_letter,
    ) -> Grouped[Any, V]:
        """Bring together the records for which ``function(value)`` is equal, written by ``key`` (text).

        They go through a repartition topic, which is called ``<app>-<name>-repartition``; without ``name`` it
        has the name of the store of what follows. ``value`` says how values are written to it, if the stream
        does not know. Records whose group is ``None`` or cannot be found get ``on_error``.
        """
        operator = Group(function, implied_text=key is None)
        stream = self._then(
            operator,
            on_error,
            None,
            key=key or _text_keys(name or _generated(operator), function),
            value=value or self._value,
            value_type=self._value_type if value is None else Any,
            rekeyed=True,
        )
        return Grouped(stream, name, partitions, on_error)

    def group_by_key(self, *, on_error: ErrorPolicy = dead_letter) -> Grouped[K, V]:
        """Bring together the records with equal keys; those without a key get ``on_error``.

        Where keys were changed before, the records go through a repartition topic first.
        """
        stream = self._then(Group(), on_error, None, value=self._value, value_type=self._value_type)
        return Grouped(stream, None, None, on_error)

    def to_table(
        self, name: str, *, value: Serde[V] | None = None, on_error: ErrorPolicy = dead_letter
    ) -> Table[K, V]:
        """Keep the latest value of each key, in a store of that name; a null value deletes.

        Where keys were changed before, the records go through a repartition topic first. Records without a
        key, and values that cannot be written (by ``value``, if the stream does not know how), get
        ``on_error``.
        """
        stream = self if value is None else self._written_by(value)
        if self._rekeyed:
            stream = self._builder.repartition(stream, name, None, on_error)
        serde = stream.written_value(f"{name!r} keeps values", "to_table(…, value=…)")
        check = None if stream.read_again(serde) is serde else RoundTrip(serde)
        store = StoreDefinition(
            name=name, key=self._key, value=StampedSerde(serde), purpose="table", shown=_value_of
        )
        return self._builder.keep(store, stream._written_by(serde), on_error, check)  # noqa: SLF001 - the same class

    @overload
    def join(
        self,
        other: Stream[K, V2],
        function: Callable[[V, V2], R],
        *,
        within: int | None = None,
        window: JoinWindow | None = None,
        grace: int = 0,
        close_idle_after: int | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy = dead_letter,
        name: str | None = None,
    ) -> JoinedStream[K, R]: ...

    @overload
    def join(
        self,
        other: Table[K, V2],
        function: Callable[[V, V2], R],
        *,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy = dead_letter,
        name: str | None = None,
    ) -> Stream[K, R]: ...

    def join(
        self,
        other: Stream[K, V2] | Table[K, V2],
        function: Callable[[V, V2], R],
        *,
        within: int | None = None,
        window: JoinWindow | None = None,
        grace: int | None = None,
        close_idle_after: int | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy = dead_letter,
        name: str | None = None,
    ) -> Stream[K, R]:
        """Join each record with what has the same key: in a table, or in a stream within a window of time.

        With a table, the result is ``function(value, table_value)`` with the record's event time, for records
        whose key the table has when they come. ``name`` is needed where keys were changed before: the records
        then go through the repartition topic ``<app>-<name>-repartition``.

        With a stream, each pair of a record of this one and one of the other is joined that lie at most
        ``within`` milliseconds apart, or as ``window`` says. Its event time is the later one of both. They
        may come in either order, until stream time has passed the event time of the earlier one by more than
        the window's ``before`` plus ``after`` (twice ``within``) plus ``grace`` milliseconds. What comes
        after that is counted as late and is in ``.late()``. Records wait in stores, ``<name>-left`` and
        ``<name>-right``, as the serdes write them: ``value`` and ``other_value``, if the streams do not know.

        Tombstones, records without a key, and those that the function fails on get ``on_error``.
        """
        options = _JoinOptions(within, window, grace, close_idle_after, value, other_value, on_error, name)
        return self._join(other, function, "inner", options)

    @overload
    def left_join(
        self,
        other: Stream[K, V2],
        function: Callable[[V, V2 | None], R],
        *,
        within: int | None = None,
        window: JoinWindow | None = None,
        grace: int = 0,
        close_idle_after: int | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy = dead_letter,
        name: str | None = None,
    ) -> JoinedStream[K, R]: ...

    @overload
    def left_join(
        self,
        other: Table[K, V2],
        function: Callable[[V, V2 | None], R],
        *,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy = dead_letter,
        name: str | None = None,
    ) -> Stream[K, R]: ...

    def left_join(
        self,
        other: Stream[K, V2] | Table[K, V2],
        function: Callable[[V, V2 | None], R],
        *,
        within: int | None = None,
        window: JoinWindow | None = None,
        grace: int | None = None,
        close_idle_after: int | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy = dead_letter,
        name: str | None = None,
    ) -> Stream[K, R]:
        """As ``join``, with ``function(value, None)`` for records that find nothing, or have no key.

        With a stream, each of these records leaves exactly once, in the order of their event times, and as
        soon as none can be joined with it any more: when stream time has passed its event time by more than
        the window's ``before`` plus ``after`` plus ``grace``.
        """
        options = _JoinOptions(within, window, grace, close_idle_after, value, other_value, on_error, name)
        return self._join(other, function, "left", options)

    def outer_join(
        self,
        other: Stream[K, V2],
        function: Callable[[V | None, V2 | None], R],
        *,
        within: int | None = None,
        window: JoinWindow | None = None,
        grace: int = 0,
        close_idle_after: int | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy = dead_letter,
        name: str | None = None,
    ) -> JoinedStream[K, R]:
        """As ``left_join`` with a stream, and ``function(None, value)`` for its records that find nothing."""
        options = _JoinOptions(within, window, grace, close_idle_after, value, other_value, on_error, name)
        joined = self._join(other, function, "outer", options)
        assert isinstance(joined, JoinedStream)
        return joined

    def join_global(
        self,
        table: GlobalTable[K2, V2],
        key: Callable[[V], K2],
        function: Callable[[V, V2], R],
        *,
        on_error: ErrorPolicy = dead_letter,
        name: str | None = None,
    ) -> Stream[K, R]:
        """Join each record with what a global table has for ``key(value)``; without it, it is left out.

        Which changes of the table a record sees depends on when it is processed. Tombstones, records whose
        ``key`` is ``None``, and those that a function fails on get ``on_error``.
        """
        return self._join_global(table, key, function, on_error, name, is_left=False)

    def left_join_global(
        self,
        table: GlobalTable[K2, V2],
        key: Callable[[V], K2 | None],
        function: Callable[[V, V2 | None], R],
        *,
        on_error: ErrorPolicy = dead_letter,
        name: str | None = None,
    ) -> Stream[K, R]:
        """As ``join_global``, with ``function(value, None)`` for records that find nothing."""
        return self._join_global(table, key, function, on_error, name, is_left=True)

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
            streams[branch] = Stream(
                builder,
                (head,),
                self._key,
                self._value,
                rekeyed=self._rekeyed,
                value_type=self._value_type,
                as_read=self._as_read,
            )
        return Branches(streams)

    def merge(self, *others: Stream[K, V], name: str | None = None) -> Stream[K, V]:
        """Join this stream with others into one; each partition's records keep their order.

        Streams that are merged must be keyed and encoded alike, as the result carries this stream's serdes.
        """
        parents = tuple(parent for stream in (self, *others) for parent in stream._parents)  # noqa: SLF001 - the same class
        if len(set(parents)) < len(parents):
            raise TopologyError("a stream is merged with itself: each record would come twice")
        called = self._builder.name(name, "merge")
        for stream in others:
            check_keys_alike(self._key, stream._key, called)  # noqa: SLF001 - the same class
        step = Step(name=called, parents=parents, operator=Merge())
        self._builder.add(step)
        same = all(_alike(stream._value, self._value) for stream in others)  # noqa: SLF001 - the same class
        rekeyed = any(stream._rekeyed for stream in (self, *others))  # noqa: SLF001 - the same class
        alike = all(stream._value_type == self._value_type for stream in others)  # noqa: SLF001 - the same class
        as_read = all(stream._as_read for stream in (self, *others))  # noqa: SLF001 - the same class
        return Stream(
            self._builder,
            (step.name,),
            self._key,
            self._value if same else None,
            rekeyed=rekeyed,
            value_type=self._value_type if alike else Any,
            as_read=as_read,
        )

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

    def _written_by(self, value: Serde[Any]) -> Stream[K, V]:
        return Stream(self._builder, self._parents, self._key, value, rekeyed=self._rekeyed)

    def _join(
        self,
        other: Stream[K, Any] | Table[K, Any],
        function: Callable[[Any, Any], R],
        how: JoinKind,
        options: _JoinOptions,
    ) -> Stream[K, R]:
        if isinstance(other, Stream):
            check_keys_alike(self._key, other.key, options.name or "join")
            return self._join_stream(other, function, how, options)
        if not isinstance(other, Table):
            raise TopologyError(
                f"{options.name or 'join'}: a stream joins a stream or a table, got {type(other).__name__}",
                hint="a global table is joined by join_global(table, key, function)",
            )
        check_keys_alike(self._key, other.key, options.name or "join")
        given = options.of_streams_only()
        if how == "outer" or given:
            raise TopologyError(
                f"{options.name or 'join'}: a stream joins a table without a window, and not as an outer join"
                + (f"; got {', '.join(given)}" if given else ""),
                hint="for a window, join the stream with table.to_stream(); for changes on both sides to "
                "matter, make the stream a table: stream.to_table(name)",
            )
        source = self if options.value is None else self._written_by(options.value)
        if self._rekeyed:
            if options.name is None:
                raise TopologyError(
                    "keys may have changed before this join, so that the records have to go to other tasks, "
                    "through a topic, and that needs a name",
                    hint="join(…, name=…): the topic is called <app>-<name>-repartition",
                )
            source = self._builder.repartition(source, options.name, None, options.on_error)
        return source._then(  # noqa: SLF001 - the same class
            JoinTable(function, other.view, is_left=how == "left"),
            options.on_error,
            options.name,
            inferred=returned_serde(function),
            value_type=returned_type(function),
            uses=other.view.stores,
        )

    def _join_stream(
        self, other: Stream[K, Any], function: Callable[[Any, Any], R], how: JoinKind, options: _JoinOptions
    ) -> JoinedStream[K, R]:
        name, builder = options.name, self._builder
        if name is None:
            raise TopologyError(
                "a join of two streams keeps records, in stores that need a name",
                hint="join(…, name=…): it must not change while the state is to be kept",
            )
        window, late = options.join_window(), f"{name}.late"
        written: list[Stream[K, Any]] = []
        serdes: list[Serde[Any]] = []
        given = (("left", "value", options.value, self), ("right", "other_value", options.other_value, other))
        for side, argument, serde, stream in given:
            source = stream if serde is None else stream._written_by(serde)  # noqa: SLF001 - the same class
            kept = source.written_value(f"{name!r} keeps records", f"join(…, {argument}=…)")
            serdes.append(kept if stream.rekeyed else source.read_again(kept))
            if stream.rekeyed:
                source = builder.repartition(source, f"{name}-{side}", None, options.on_error)
            written.append(source)
        names = f"{name}-left", f"{name}-right"
        operators = [
            JoinStreams(
                function=function,
                how=how,
                window=window,
                grace=options.grace or 0,
                is_left=own == 0,
                own=names[own],
                other=names[1 - own],
                unmatched=None if how == "inner" else unmatched_name(name),
                value=serdes[own],
                other_value=serdes[1 - own],
                closes=own == 1,
                joined=name,
                late=late,
                close_idle_after=options.close_idle_after,
            )
            for own in (0, 1)
        ]
        stores = tuple(
            StoreDefinition(
                name=operator.own,
                key=self._key,
                value=WaitingSerde(operator.value),
                purpose=window.describe(),
                retention=operator.retention,
                changelog_retention=operator.retention,
                shown=None,
            )
            for operator in operators
        )
        if how != "inner":
            stores += (unmatched_definition(name, self._key, operators[0].lasts),)
        steps: list[str] = []
        for operator, stream in zip(operators, written, strict=True):
            step = Step(
                name=builder.name(None, operator.own),
                parents=stream.parents,
                operator=operator,
                policy=options.on_error,
                # Of two steps that share stores, the first owns them.
                owns=() if steps else stores,
                uses=tuple(store.name for store in stores) if steps else (),
            )
            builder.add(step)
            steps.append(step.name)
        merged = Step(name=builder.name(name, name), parents=tuple(steps), operator=Merge())
        builder.add(merged)
        return JoinedStream(
            builder,
            merged.name,
            self._key,
            returned_serde(function),
            value_type=returned_type(function),
            late=(late, tuple(steps), serdes[0] if _alike(*serdes) else None),
        )

    def _join_global(
        self,
        table: GlobalTable[Any, Any],
        key: Callable[[Any], Any],
        function: Callable[[Any, Any], R],
        on_error: ErrorPolicy,
        name: str | None,
        *,
        is_left: bool,
    ) -> Stream[K, R]:
        operator = JoinGlobal(function, table.name, key, table.key, is_left)
        return self._then(
            operator,
            on_error,
            name,
            inferred=returned_serde(function),
            value_type=returned_type(function),
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
        value_type: Any = Any,
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
            value_type=value_type,
            as_read=self._as_read and value is self._value,
        )


class JoinedStream(Stream[K, V]):
    """What a join of two streams gives, and the records that came too late for it."""

    def __init__(
        self,
        builder: TopologyBuilder,
        step: str,
        key: Serde[Any],
        value: Serde[Any] | None,
        *,
        value_type: Any,
        late: tuple[str, tuple[str, ...], Serde[Any] | None],
    ) -> None:
        """``late`` is the name of the step for late records, the steps they come from, and their serde."""
        super().__init__(builder, (step,), key, value, value_type=value_type)
        self._late_records = late
        self._late: Stream[K, Any] | None = None

    def late(self) -> Stream[K, Any]:
        """The records of both sides that came too late to be joined, with a record or at all.

        A record is here when stream time had passed its event time by more than the window's ``before`` plus
        ``after`` plus the grace as it came: it is in no result. It is also here when that had happened to a
        record of the other side within the window, which it would have been joined with: this pair is in no
        result, while others with the record may be.
        """
        if self._late is None:
            name, parents, value = self._late_records
            self._builder.add(Step(name=self._builder.name(name, name), parents=parents, operator=Merge()))
            self._late = Stream(self._builder, (name,), self._key, value)
        return self._late


class Grouped(Generic[K, V]):
    """Records brought together by key: the methods say what is made of each group.

    Every result has a name of its own, which its store and its changelog topic ``<app>-<name>-changelog`` are
    found by again: it must not change while the state is to be kept.
    """

    def __init__(
        self,
        stream: Stream[K, V],
        name: str | None,
        partitions: int | None,
        on_error: ErrorPolicy,
        *,
        needs_value: bool = False,
    ) -> None:
        self._stream = stream
        self._name = name
        self._partitions = partitions
        self._needs_value = needs_value
        self._on_error = on_error
        self._repartitioned: Stream[K, V] | None = None
        self._used_by: str | None = None

    def window(
        self,
        window: Tumbling | Hopping | Session | Sliding,
        *,
        grace: int = 0,
        close_idle_after: int | None = None,
    ) -> WindowedGrouped[K, V]:
        """Make a result for each window of event time instead of one for all time.

        A window closes when stream time passes its end by ``grace`` milliseconds, a session only after its
        gap and ``grace``; records that come later for it are counted, and left out. Where no records come for
        ``close_idle_after`` milliseconds, stream time goes on with the wall clock from where it stood;
        without it, windows wait for the next record.
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

    @overload
    def aggregate(
        self, name: str, aggregate: Aggregate[V, R], /, *, on_error: ErrorPolicy = fail
    ) -> Table[K, R]: ...

    @overload
    def aggregate(
        self, name: str, /, *, on_error: ErrorPolicy = fail, **fields: Aggregate[V, Any]
    ) -> Table[K, Any]: ...

    def aggregate(
        self,
        name: str,
        aggregate: Aggregate[V, Any] | None = None,
        /,
        *,
        on_error: ErrorPolicy = fail,
        **fields: Aggregate[V, Any],
    ) -> Table[K, Any]:
        """Compute an aggregate of each key's records, or several by name: ``aggregate("s", sum=total())``.

        With names, results are objects with these as attributes.
        """
        stream = self.source(name)
        computed = chosen_aggregate(name, aggregate, fields, stream.value_type)
        store = StoreDefinition(
            name=name,
            key=stream.key,
            value=TimedAccumulatorSerde(computed),
            purpose="aggregate",
            shown=lambda entry: computed.result(entry[0]),
        )
        step = Step(
            name=stream.builder.name(None, name),
            parents=stream.parents,
            operator=AggregateByKey(name, computed),
            policy=on_error,
            owns=(store,),
        )
        stream.builder.add(step)
        view = View(name, (("result", computed.result),))
        return Table(
            stream.builder, step.name, stream.key, None, view, value_type=known(computed.result_type)
        )

    @property
    def value_type(self) -> Any:
        """The type of the values that are brought together, ``Any`` where it is not known."""
        return self._stream.value_type

    def reducing(self, name: str, function: Callable[[V, V], V], value: Serde[V] | None) -> Aggregate[Any, V]:
        """``function`` as an aggregate."""
        return Reduce(function, self.value_serde(name, value))

    def value_serde(self, name: str, value: Serde[V] | None) -> Serde[V]:
        """How a reduced value is kept."""
        return value or self._stream.written_value(f"{name!r} keeps values", "reduce(…, value=…)")

    def source(self, name: str) -> Stream[K, V]:
        """The stream whose tasks have whole groups; ``name`` is the store that asks."""
        if not self._stream.rekeyed:
            return self._stream
        if self._name is None and self._used_by not in (None, name):
            raise TopologyError(
                f"{self._used_by!r} and {name!r} share the repartition topic of one group_by without a name",
                hint="give it one: group_by(…, name=…); it must not depend on which of them comes first",
            )
        self._used_by = name
        if self._repartitioned is None:
            self._repartitioned = self._stream.builder.repartition(
                self._stream,
                self._name or name,
                self._partitions,
                self._on_error,
                needs_key=True,
                needs_value=self._needs_value,
            )
        return self._repartitioned


class WindowedGrouped(Generic[K, V]):
    """Records brought together by key and window of event time."""

    def __init__(
        self,
        grouped: Grouped[K, V],
        window: Tumbling | Hopping | Session | Sliding,
        grace: int,
        close_idle_after: int | None,
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

    @overload
    def aggregate(
        self, name: str, aggregate: Aggregate[V, R], /, *, on_error: ErrorPolicy = fail
    ) -> WindowedResults[K, R]: ...

    @overload
    def aggregate(
        self, name: str, /, *, on_error: ErrorPolicy = fail, **fields: Aggregate[V, Any]
    ) -> WindowedResults[K, Any]: ...

    def aggregate(
        self,
        name: str,
        aggregate: Aggregate[V, Any] | None = None,
        /,
        *,
        on_error: ErrorPolicy = fail,
        **fields: Aggregate[V, Any],
    ) -> WindowedResults[K, Any]:
        """Compute an aggregate, or several by name, for each window and key; see ``Grouped.aggregate``.

        Sessions and sliding windows need an aggregate that can merge two results' worth of events.
        """
        stream = self._grouped.source(name)
        computed = chosen_aggregate(name, aggregate, fields, stream.value_type)
        builder = stream.builder
        step_name = builder.name(None, name)
        heads = WindowHeads(f"{step_name}.updates", f"{step_name}.final", f"{step_name}.late")
        operator, stores = self._windowing(name, computed, stream.key, heads)
        builder.add(
            Step(name=step_name, parents=stream.parents, operator=operator, policy=on_error, owns=stores)
        )
        return WindowedResults(stream, step_name, heads, known(computed.result_type))

    def _windowing(
        self, name: str, computed: Aggregate[Any, Any], key: Serde[Any], heads: WindowHeads
    ) -> tuple[Operator, tuple[StoreDefinition, ...]]:
        """The operator for the kind of window, and the stores that it keeps."""
        window, grace, idle = self._window, self._grace, self._close_idle_after
        if isinstance(window, Session | Sliding) and not computed.mergeable:
            raise TopologyError(
                f"{name!r} aggregates {window.describe()}, whose results are merged, "
                f"and {computed.describe()} cannot be",
                hint="give the aggregate a function for it, custom(…, merge=…), "
                "or use tumbling or hopping windows",
            )
        if isinstance(window, Session):
            sessions = SessionAggregate(
                store=name, window=window, grace=grace, aggregate=computed, heads=heads, close_idle_after=idle
            )
            store = session_store(name, key, window, computed)
            return sessions, (store, deadlines_definition(name, key))
        if isinstance(window, Sliding):
            sliding = SlidingAggregate(
                store=name, window=window, grace=grace, aggregate=computed, heads=heads, close_idle_after=idle
            )
            store = sliding_store(name, key, window, computed)
            return sliding, (store, deadlines_definition(name, key))
        lasts = window.size + grace
        store = StoreDefinition(
            name=name,
            key=key,
            value=AccumulatorSerde(computed),
            purpose=f"{window.describe()}, aggregate",
            retention=lasts,
            changelog_retention=lasts,
            shown=computed.result,
            window_end=lambda start, _: window.end(start),
        )
        fixed = WindowedAggregate(
            store=name, window=window, grace=grace, aggregate=computed, heads=heads, close_idle_after=idle
        )
        return fixed, (store,)


class WindowedResults(Generic[K, R]):
    """The results of windows, to be taken as they change, or once they are final."""

    def __init__(self, source: Stream[K, Any], step: str, heads: WindowHeads, result_type: Any) -> None:
        self._source = source
        self._type: Any = typing.cast("Any", Windowed)[serde_type(source.key), result_type]
        self._step = step
        self._heads = heads
        self._streams: dict[str, Stream[Any, Any]] = {}

    def updates(self) -> Stream[K, Windowed[K, R]]:
        """The latest result of each window that changed, at each commit.

        A session that has grown, or become one with others, is another window: the result of each that it
        has replaced is taken back by one whose ``value`` is ``None``.

        A result has the highest event time of its records, as far as the worker has seen them: never one that
        is ahead of all input, as the end of its window may be.
        """
        return self._head(self._heads.updates, Json(Windowed), self._type)

    def final(self) -> Stream[K, Windowed[K, R]]:
        """Exactly one result for each window, when it has closed.

        Its event time is the last moment that belongs to the window, which stream time has passed.
        """
        return self._head(self._heads.final, Json(Windowed), self._type)

    def late(self) -> Stream[K, Any]:
        """The records that came too late for all of their windows."""
        return self._head(self._heads.late, None, self._source.value_type)

    def _head(self, name: str, value: Serde[Any] | None, value_type: Any) -> Stream[Any, Any]:
        if name not in self._streams:
            builder = self._source.builder
            builder.add(Step(name=name, parents=(self._step,), operator=Merge()))
            # Results are of no type that a serde could read them as, so they are not compared.
            self._streams[name] = Stream(
                builder,
                (name,),
                self._source.key,
                value,
                value_type=value_type,
                as_read=value is not None,
            )
        return self._streams[name]


class Table(Generic[K, V]):
    """The latest value of each key, and the stream of changes to it."""

    def __init__(
        self,
        builder: TopologyBuilder,
        step: str,
        key: Serde[Any],
        value: Serde[Any] | None,
        view: AnyView,
        *,
        value_type: Any = Any,
        as_read: bool = False,
    ) -> None:
        self._builder = builder
        self._step = step
        self._key = key
        self._value = value
        self._view = view
        self._value_type = serde_type(value) if value_type is Any else value_type
        self._as_read = as_read

    @property
    def key(self) -> Serde[Any]:
        """How keys are written."""
        return self._key

    @property
    def view(self) -> AnyView:
        """How the value of a key is found."""
        return self._view

    def filter(
        self, predicate: Callable[[V], object], *, on_error: ErrorPolicy = fail, name: str | None = None
    ) -> Table[K, V]:
        """The table of those keys for whose value ``predicate`` is true."""
        view = self._view.then("filter", predicate)
        return self._then(FilterTable(predicate), view, self._value, on_error, name, self._value_type)

    def map(
        self, function: Callable[[V], V2], *, on_error: ErrorPolicy = fail, name: str | None = None
    ) -> Table[K, V2]:
        """The table with ``function(value)`` for each value; keys for which it is ``None`` are not in it."""
        view = self._view.then("map", function)
        serde = returned_serde(function)
        return self._then(MapTable(function), view, serde, on_error, name, returned_type(function))

    @overload
    def group_by(
        self,
        function: Callable[[V], str],
        *,
        key: None = None,
        value: Serde[V] | None = None,
        name: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy = dead_letter,
    ) -> GroupedTable[str, V]: ...

    @overload
    def group_by(
        self,
        function: Callable[[V], K2],
        *,
        key: Serde[K2],
        value: Serde[V] | None = None,
        name: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy = dead_letter,
    ) -> GroupedTable[K2, V]: ...

    def group_by(
        self,
        function: Callable[[V], Any],
        *,
        key: Serde[Any] | None = None,
        value: Serde[V] | None = None,
        name: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy = dead_letter,
    ) -> GroupedTable[Any, V]:
        """Bring together the keys for whose values ``function(value)`` is equal, written by ``key`` (text).

        When a value changes, it leaves its old group and joins the new one. The changes go through a
        repartition topic, as with ``Stream.group_by``. Values whose group is ``None`` or cannot be found get
        ``on_error`` and belong to no group.
        """
        builder = self._builder
        operator = GroupChanges(function, implied_text=key is None)
        keys = key or _text_keys(name or _generated(operator), function)
        step = Step(
            name=builder.name(None, _generated(operator)),
            parents=(self._step,),
            operator=operator,
            policy=on_error,
        )
        builder.add(step)
        written = value or self._value
        stream: Stream[Any, V] = Stream(
            builder,
            (step.name,),
            keys,
            written,
            rekeyed=True,
            as_read=self._as_read and written is self._value,
        )
        return GroupedTable(Grouped(stream, name, partitions, on_error, needs_value=True))

    def join(
        self,
        other: Table[K, V2],
        function: Callable[[V, V2], R],
        *,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Table[K, R]:
        """The table of the keys that both tables have, with ``function(value, other_value)``.

        It changes with either of both, and has the later event time. Nothing of it is kept: make it a table
        of its own with ``to_stream().to_table(name)`` where asking both and the function takes too long.
        """
        return self._join(other, function, "inner", on_error, name)

    def left_join(
        self,
        other: Table[K, V2],
        function: Callable[[V, V2 | None], R],
        *,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Table[K, R]:
        """As ``join``, with all keys of this table: ``function(value, None)`` where the other has nothing."""
        return self._join(other, function, "left", on_error, name)

    def outer_join(
        self,
        other: Table[K, V2],
        function: Callable[[V | None, V2 | None], R],
        *,
        on_error: ErrorPolicy = fail,
        name: str | None = None,
    ) -> Table[K, R]:
        """As ``join``, with the keys of either table: ``None`` for the side that has nothing."""
        return self._join(other, function, "outer", on_error, name)

    def join_by(
        self,
        other: Table[K2, V2],
        foreign_key: Callable[[V], K2 | None],
        function: Callable[[V, Any], R],
        *,
        name: str,
        left: bool = False,
        result: Serde[R] | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy = dead_letter,
    ) -> Table[K, R]:
        """Join each value with what another table has for its ``foreign_key(value)``.

        The result has this table's keys, changes with either table, and is kept in a store called ``name``.
        Values whose foreign key is ``None``, or not in the other table, are joined only if ``left``, with
        ``None``. Values travel between tasks and are written by ``value`` and ``other_value``, results are
        kept as ``result`` says, if that is not known. Values that a function fails on get ``on_error`` and
        count as deleted.
        """
        builder = self._builder
        own = self._as_stream(value).written_value(f"{name!r} compares values", "join_by(…, value=…)")
        others = other._as_stream(other_value).written_value(
            f"{name!r} sends values of the other table to other tasks", "join_by(…, other_value=…)"
        )
        kept = result or returned_serde(function)
        results: Serde[Any] = Stream(builder, (), self._key, kept).written_value(
            f"{name!r} keeps results", "join_by(…, result=…)"
        )
        subscribe = self._step_behind(
            (self._step,),
            Subscribe(foreign_key, other.key, self._key, own, left),
            f"{name}-subscribe",
            on_error,
        )
        subscriptions = builder.repartition(
            Stream(builder, (subscribe,), other.key, SubscriptionSerde(), as_read=True),
            f"{name}-subscription",
            None,
            on_error,
            needs_value=True,
        )
        subscribers = StoreDefinition(
            name=f"{name}-subscriptions",
            key=SubscriberSerde(),
            value=SubscribedSerde(),
            purpose="subscriptions of a join by foreign key",
            shown=None,
        )
        keep = self._step_behind(
            subscriptions.parents,
            KeepSubscriptions(subscribers.name, other.view),
            subscribers.name,
            on_error,
            owns=(subscribers,),
            uses=other.view.stores,
        )
        answer = self._step_behind(
            (other._step,),
            AnswerSubscribers(subscribers.name, other.key),
            f"{name}-answers",
            on_error,
            uses=(subscribers.name,),
        )
        answer_values = AnswerSerde(other._as_stream(other_value).read_again(others))
        # Keys of answers are bytes already, as the subscriptions brought them.
        answers = builder.repartition(
            Stream(builder, (keep, answer), Bytes(), answer_values, as_read=True),
            f"{name}-answer",
            None,
            on_error,
            read_key=self._key,
            needs_key=True,
            needs_value=True,
        )
        store = StoreDefinition(
            name=name, key=self._key, value=StampedSerde(results), purpose="table", shown=_value_of
        )
        joined = self._step_behind(
            answers.parents,
            JoinAnswers(name, foreign_key, other.key, function, self._view, own, RoundTrip(results), left),
            name,
            on_error,
            owns=(store,),
            uses=self._view.stores,
        )
        return Table(builder, joined, self._key, results, View(name), as_read=True)

    def to_stream(self, *, name: str | None = None) -> Stream[K, V]:
        """The changes as records with the new values; a deletion is a tombstone."""
        step = Step(name=self._builder.name(name, "to_stream"), parents=(self._step,), operator=ToStream())
        self._builder.add(step)
        return Stream(
            self._builder,
            (step.name,),
            self._key,
            self._value,
            value_type=self._value_type,
            as_read=self._as_read,
        )

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

    def _as_stream(self, value: Serde[Any] | None) -> Stream[K, V]:
        written = value or self._value
        as_read = self._as_read and written is self._value
        return Stream(self._builder, (), self._key, written, as_read=as_read)

    def _then(
        self,
        operator: Operator,
        view: AnyView,
        value: Serde[Any] | None,
        on_error: ErrorPolicy,
        name: str | None,
        value_type: Any,
    ) -> Table[K, Any]:
        called = self._builder.name(name, _generated(operator))
        step = self._step_behind((self._step,), operator, called, on_error)
        as_read = self._as_read and value is self._value
        return Table(self._builder, step, self._key, value, view, value_type=value_type, as_read=as_read)

    def _step_behind(
        self,
        parents: tuple[str, ...],
        operator: Operator,
        name: str,
        on_error: ErrorPolicy,
        *,
        owns: tuple[StoreDefinition, ...] = (),
        uses: tuple[str, ...] = (),
    ) -> str:
        step = Step(
            name=self._builder.name(None, name),
            parents=parents,
            operator=operator,
            policy=on_error,
            owns=owns,
            uses=uses,
        )
        self._builder.add(step)
        return step.name

    def _join(
        self,
        other: Table[K, Any],
        function: Callable[[Any, Any], Any],
        how: JoinKind,
        on_error: ErrorPolicy,
        name: str | None,
    ) -> Table[K, Any]:
        if not isinstance(other, Table):
            raise TopologyError(
                f"{name or 'join'}: a table joins a table, got {type(other).__name__}",
                hint="to join records with this table, start from the stream: stream.join(table, function)",
            )
        check_keys_alike(self._key, other.key, name or "join")
        builder = self._builder
        step = builder.name(name, "join")
        shared = set(self._view.stores) & set(other.view.stores)
        first = builder.told_first(shared, self._step, other._step)
        left = self._step_behind(
            (self._step,),
            JoinTables(function, how, other.view, is_left=True, first=first == self._step),
            f"{step}.left",
            on_error,
            uses=other.view.stores,
        )
        right = self._step_behind(
            (other._step,),
            JoinTables(
                function, how, self._view, is_left=False, first=first is not None and first != self._step
            ),
            f"{step}.right",
            on_error,
            uses=self._view.stores,
        )
        joined = self._step_behind((left, right), MergeChanges(), step, fail)
        view = JoinedView(self._view, other.view, function, how)
        return Table(
            builder, joined, self._key, returned_serde(function), view, value_type=returned_type(function)
        )


class GroupedTable(Generic[K, V]):
    """A table's keys brought together by their values: results follow when values change groups or go.

    Names are as those of ``Grouped``'s results.
    """

    def __init__(self, grouped: Grouped[K, V]) -> None:
        self._grouped = grouped

    def count(self, name: str, *, on_error: ErrorPolicy = fail) -> Table[K, int]:
        """How many keys of the table each group has; 0 for a group that all have left."""
        return self.aggregate(name, count(), on_error=on_error)

    def reduce(
        self,
        name: str,
        add: Callable[[V, V], V],
        remove: Callable[[V, V], V | None],
        *,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy = fail,
    ) -> Table[K, V]:
        """What ``add(so far, value)`` makes of the values that join each group; the first stands for itself.

        ``remove(so far, value)`` takes a value out again; when it returns ``None``, the group is deleted.
        """
        serde = self._grouped.value_serde(name, value)
        return self._aggregate(name, RemovableReduce(add, remove, serde), serde, on_error)

    @overload
    def aggregate(
        self, name: str, aggregate: Aggregate[V, R], /, *, on_error: ErrorPolicy = fail
    ) -> Table[K, R]: ...

    @overload
    def aggregate(
        self, name: str, /, *, on_error: ErrorPolicy = fail, **fields: Aggregate[V, Any]
    ) -> Table[K, Any]: ...

    def aggregate(
        self,
        name: str,
        aggregate: Aggregate[V, Any] | None = None,
        /,
        *,
        on_error: ErrorPolicy = fail,
        **fields: Aggregate[V, Any],
    ) -> Table[K, Any]:
        """Compute an aggregate that can take values out again, or several; see ``Grouped.aggregate``."""
        computed = chosen_aggregate(name, aggregate, fields, self._grouped.value_type)
        if not computed.removable:
            raise TopologyError(
                f"{name!r}: {computed.describe()} cannot take a value out again, which a table needs when a "
                "value changes",
                hint="use count(), total(…), mean(…), variance(…), quantile(…) or custom(…, remove=…)",
            )
        return self._aggregate(name, computed, None, on_error)

    def _aggregate(
        self, name: str, computed: Aggregate[Any, Any], value: Serde[Any] | None, on_error: ErrorPolicy
    ) -> Table[K, Any]:
        stream = self._grouped.source(name)
        computed = computed.typed(stream.value_type)
        store = StoreDefinition(
            name=name,
            key=stream.key,
            value=TimedAccumulatorSerde(computed),
            purpose="aggregate",
            shown=lambda entry: computed.result(entry[0]),
        )
        step = Step(
            name=stream.builder.name(None, name),
            parents=stream.parents,
            operator=AggregateChanges(name, computed),
            policy=on_error,
            owns=(store,),
        )
        stream.builder.add(step)
        view = View(name, (("result", computed.result),))
        return Table(
            stream.builder, step.name, stream.key, value, view, value_type=known(computed.result_type)
        )


class GlobalTable(Generic[K, V]):
    """A table that every worker has as a whole, to be joined by any key: ``Stream.join_global``."""

    def __init__(self, builder: TopologyBuilder, name: str, key: Serde[Any]) -> None:
        self._builder = builder
        self._name = name
        self._key = key

    @property
    def name(self) -> str:
        """What its store is called."""
        return self._name

    @property
    def key(self) -> Serde[Any]:
        """How keys are written."""
        return self._key


class _JoinOptions(NamedTuple):
    within: int | None
    window: JoinWindow | None
    grace: int | None
    close_idle_after: int | None
    value: Serde[Any] | None
    other_value: Serde[Any] | None
    on_error: ErrorPolicy
    name: str | None

    def of_streams_only(self) -> list[str]:
        """The options given that mean something between two streams only."""
        options = ("within", "window", "grace", "close_idle_after", "other_value")
        given = ((name, getattr(self, name)) for name in options)
        return [f"{name}={getattr(value, 'name', value)}" for name, value in given if value is not None]

    def join_window(self) -> JoinWindow:
        """The window asked for. Raises ``TopologyError``."""
        if self.grace is not None and self.grace < 0:
            raise TopologyError(f"grace must be 0 ms or more, got {self.grace}")
        if (self.within is None) == (self.window is None):
            raise TopologyError(
                f"the join {self.name!r} of two streams needs to know how far apart records may lie",
                hint="either within=milliseconds or window=JoinWindow(before=…, after=…)",
            )
        return self.window or JoinWindow(before=self.within or 0, after=self.within or 0)


def check_keys_alike(one: Serde[Any], other: Serde[Any], name: str) -> None:
    """Raise ``TopologyError`` when keys are written differently on the two sides of a join or merge."""
    if not _alike(one, other):
        raise TopologyError(
            f"{name}: keys are {one.name} on one side and {other.name} on the other: none would be equal",
            hint="read both with the same key=, or give one of them new keys: key_by(…, key=…)",
        )


def _text_keys(step: str, function: Callable[[Any], Any]) -> Serde[Any]:
    """How keys are written where nothing is said. Raises ``TopologyError`` for a function of other keys."""
    kind = returned_type(function)
    members = member_types(kind)
    if kind is not Any and not all(
        member is type(None) or (isinstance(member, type) and issubclass(member, str)) for member in members
    ):
        described = getattr(kind, "__name__", kind)
        raise TopologyError(
            f"{step}: {function_name(function)} makes keys of type {described}, and keys are written as text "
            "where nothing else is said",
            hint=f"say how keys are written: key=Json({described})",
        )
    return Text()


def _value_of(entry: Any) -> Any:
    """The value of an entry that is stamped with its event time."""
    return entry[0]


def _generated(operator: Operator) -> str:
    called = function_name(operator.code)
    plain = operator.code is None or called == "lambda"
    return operator.kind if plain else f"{operator.kind}-{called}"


def key_value_store(
    name: str,
    *,
    key: Serde[Any] | None = None,
    value: Serde[Any] | None = None,
    migrate: Callable[[Any], Any] | None = None,
    ttl: int | None = None,
) -> StoreDefinition:
    """A store for ``Stream.process(…, stores=[…])``: keys are text and values JSON unless serdes are given.

    ``migrate`` makes a value of an earlier schema, as plain data, into one of this schema. With ``ttl``, an
    entry goes so many milliseconds of stream time after it was last put.
    """
    if ttl is None:
        return StoreDefinition(name=name, key=key or Text(), value=value or Json(), migrate=migrate)
    if ttl < 1:
        raise TopologyError(f"store {name!r} needs a ttl of 1 ms or more, got {ttl}")
    return StoreDefinition(
        name=name,
        key=key or Text(),
        value=ExpiringSerde(value or Json()),
        migrate=migrate,
        ttl=ttl,
        shown=lambda entry: entry.value,
    )


def _with_deadlines(stores: Iterable[StoreDefinition]) -> tuple[StoreDefinition, ...]:
    """The stores, each followed by the one for its deadlines where its entries expire."""
    return tuple(
        each
        for store in stores
        for each in ([store] if store.ttl is None else [store, deadlines_definition(store.name, store.key)])
    )


def chosen_aggregate(
    name: str,
    aggregate: Aggregate[Any, Any] | None,
    fields: Mapping[str, Aggregate[Any, Any]],
    value_type: Any,
) -> Aggregate[Any, Any]:
    """The one aggregate given, or those given by name as one, for values of a type.

    Raises ``TopologyError``, also where an aggregate is of a field that such values do not have.
    """
    if (aggregate is None) == (not fields):
        raise TopologyError(
            f"{name!r} needs either one aggregate, or several by name",
            hint='e.g. aggregate("sales", total("amount")) or aggregate("sales", sum=total("amount"))',
        )
    chosen = Combined(fields) if aggregate is None else aggregate
    check_fields(name, chosen, value_type)
    return chosen.typed(value_type)


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
