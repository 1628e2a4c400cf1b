"""The fluent API: each method adds a step to the topology and returns the stream downstream of it.

The classes refer to each other, so they share one file, which holds signatures and documentation. The steps
that a method adds are built by functions over plain data, in ``flow``, ``joins`` and ``aggregation``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from streams.aggregates import count
from streams.dsl.aggregation import (
    Groups,
    Windows,
    aggregate_groups,
    aggregate_table_groups,
    aggregate_windows,
)
from streams.dsl.connectors import write_changes, write_connector
from streams.dsl.flow import (
    Flow,
    add_step,
    alike,
    check_keys_alike,
    check_store_named,
    check_written,
    fields_serde,
    generated_name,
    idle_milliseconds,
    made_value,
    returned_serde,
    text_keys,
    value_of,
)
from streams.dsl.joins import JoinOptions, join_foreign_key, join_streams, join_table, join_tables
from streams.dsl.sources import keep_table
from streams.dsl.stores import with_deadlines
from streams.durations import seconds, to_milliseconds
from streams.errors import TopologyError
from streams.eventtime.windows import Hopping, Session, Sliding, Tumbling
from streams.operators.aggregate import Group
from streams.operators.change import ToStream
from streams.operators.join import JoinGlobal
from streams.operators.keys import KeptKeys
from streams.operators.map_async import MapAsync
from streams.operators.process import Process
from streams.operators.single_records import FilterRecords, FlatMapRecords, MapRecords, PeekRecords
from streams.operators.sink_columns import SinkColumns
from streams.operators.stateless import Branch, Filter, FlatMap, KeyBy, Map, MapBatch, Merge, Peek
from streams.operators.table import FilterTable, GroupChanges, MapTable, StampedSerde
from streams.serde import Bytes, Json, Serde, Text
from streams.serde.round_trip import RoundTrip
from streams.serde.value_type import given_type, record_value_type, returned_type
from streams.state.definition import StoreDefinition
from streams.topology.graph import SinkNode, Step, function_name

if TYPE_CHECKING:
    from streams.aggregates import Aggregate
    from streams.connectors.change import Change
    from streams.connectors.sink import SinkConnector
    from streams.dsl.aggregation import WindowResults
    from streams.dsl.flow import TableFlow
    from streams.dsl.joins import LateRecords
    from streams.eventtime.windows import JoinWindow, Windowed
    from streams.jobs.batch_job import BatchJob
    from streams.jobs.job import AsyncJob, Call, Job
    from streams.operators import Operator
    from streams.operators.change import JoinKind
    from streams.operators.processor import ProcessorFactory
    from streams.policy import ErrorPolicy
    from streams.records import Batch, Headers, Record

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
V2 = TypeVar("V2")
R = TypeVar("R")

_NO_GRACE, _TIMEOUT = timedelta(), seconds(30)


class Stream(Generic[K, V]):
    """A stream of records from a topic; each method adds a processing step.

    Functions receive a record's value, unless a method says otherwise. They receive ``None`` only where the
    stream forwards tombstones, with ``tombstones=True``, and its type says so. Every method that runs user
    code takes ``on_error=``, the policy for records on which it fails (by default the app's, which is
    ``dead_letter``), and ``name=``, the step's label in errors, metrics and descriptions, which may change at
    any time. Where a method keeps state or creates an internal topic, ``store=`` names them: under another
    ``store``, the step starts with empty state and a new topic.
    """

    def __init__(self, flow: Flow) -> None:
        """Made by ``App.stream`` and by steps."""
        self._flow = flow

    def map(
        self,
        function: Callable[[V], V2],
        *,
        timestamp: Callable[[V2], int] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V2]:
        """Replace each value by ``function(value)``; key, headers and event time stay the same.

        ``timestamp`` computes a new event time, in milliseconds since the epoch, from the new value.
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
        timeout: timedelta | None = _TIMEOUT,
        one_call_per_key: bool = True,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V2]:
        """Replace each value by ``await function(value)``, for up to ``concurrency`` records at a time.

        For example, for requests to other services. Records are forwarded in the order of the input,
        whichever call ends first. Calls for records with the same key run one after another, in order, unless
        ``one_call_per_key`` is false: then only the results keep their order. Calls for records without a key
        run in any order.

        A call that raises, or takes longer than ``timeout`` seconds (``None`` for no limit) and is cancelled,
        fails only its own record, to which ``on_error`` applies; with ``retry``, the failed records are
        retried together after each wait. When the worker stops or loses the partition, calls are cancelled
        and their records are processed again, by the next owner or after the restart.

        The function runs in an event loop on a separate thread, one for the process, so that a client created
        once can be used in every call. It must not block: use ``map`` for functions that do.
        Raises ``TopologyError`` for a function that does not return an awaitable.
        """
        limit = None if timeout is None else to_milliseconds(timeout, "map_async: timeout", least=None)
        if concurrency < 1 or (limit is not None and limit <= 0):
            raise TopologyError(
                "map_async needs a concurrency of 1 or more and a timeout above 0 s, "
                f"got concurrency={concurrency}, timeout={timeout}"
            )
        seconds_for_each = None if limit is None else limit / 1000
        return self._then(
            MapAsync(function, concurrency, seconds_for_each, one_call_per_key),
            on_error,
            name,
            inferred=returned_serde(function),
            value_type=returned_type(function),
        )

    @overload
    def map_batch(
        self,
        function: Callable[[Batch[K, V]], Batch[K, V2]],
        *,
        keeps_key: Literal[True],
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V2]: ...

    @overload
    def map_batch(
        self,
        function: Callable[[Batch[K, V]], Batch[Any, Any]],
        *,
        keeps_key: Literal[False] = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[Any, Any]: ...

    def map_batch(
        self,
        function: Callable[[Batch[K, V]], Batch[Any, Any]],
        *,
        keeps_key: bool = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[Any, Any]:
        """Replace each batch by ``function(batch)``, made with ``Batch.select`` and the ``with_`` methods.

        For columnar code, and for functions that read the keys, headers or timestamps of many records. When
        the function raises, it is called again with a batch for each record, so that only the records at
        fault fail.

        ``keeps_key`` declares that rows keep their keys, so that no repartition topic is needed downstream; a
        row whose key changed fails.
        """
        kept_keys = self._kept_keys(None, name, keeps_key=keeps_key)
        return self._then(MapBatch(function, kept_keys), on_error, name, rekeyed=not keeps_key)

    @overload
    def map_records(
        self,
        function: Callable[[Record[K, V]], Record[K, V2]],
        *,
        keeps_key: Literal[True],
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V2]: ...

    @overload
    def map_records(
        self,
        function: Callable[[Record[K, V]], Record[K2, V2]],
        *,
        key: Serde[K2] | None = None,
        keeps_key: Literal[False] = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K2, V2]: ...

    def map_records(
        self,
        function: Callable[[Record[K, V]], Record[Any, V2]],
        *,
        key: Serde[Any] | None = None,
        keeps_key: bool = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[Any, V2]:
        """Replace each record by ``function(record)``: one made with ``record.with_``, or itself, changed.

        For functions that need keys, event times or headers as well as values; ``map`` is faster, and so is
        ``map_batch`` for columnar code. The function may change the record, but its value is not a copy:
        assign a new value instead of modifying it. Topic, partition and offset stay those of the input
        record.

        ``key`` is the serde of the new keys, by default that of the input. ``keeps_key`` declares that
        records keep their keys, so that no repartition topic is needed downstream; a record whose key changed
        fails.
        """
        operator = MapRecords(function, self._kept_keys(key, name, keeps_key=keeps_key))
        kind = record_value_type(function)
        return self._then(
            operator,
            on_error,
            name,
            key=key,
            inferred=fields_serde(kind),
            value_type=kind,
            rekeyed=not keeps_key,
        )

    @overload
    def flat_map_records(
        self,
        function: Callable[[Record[K, V]], Iterable[Record[K, V2]]],
        *,
        keeps_key: Literal[True],
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V2]: ...

    @overload
    def flat_map_records(
        self,
        function: Callable[[Record[K, V]], Iterable[Record[K2, V2]]],
        *,
        key: Serde[K2] | None = None,
        keeps_key: Literal[False] = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K2, V2]: ...

    def flat_map_records(
        self,
        function: Callable[[Record[K, V]], Iterable[Record[Any, V2]]],
        *,
        key: Serde[Any] | None = None,
        keeps_key: bool = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[Any, V2]:
        """Replace each record by those in ``function(record)``, which may be empty; see ``map_records``.

        A generator may modify a record and yield it again: each result is the record as it was when yielded.
        """
        operator = FlatMapRecords(function, self._kept_keys(key, name, keeps_key=keeps_key))
        kind = record_value_type(function, many=True)
        return self._then(
            operator,
            on_error,
            name,
            key=key,
            inferred=fields_serde(kind),
            value_type=kind,
            rekeyed=not keeps_key,
        )

    def filter_records(
        self,
        predicate: Callable[[Record[K, V]], object],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V]:
        """Keep the records for which ``predicate(record)`` is true."""
        return self._then(
            FilterRecords(predicate), on_error, name, value=self._flow.value, value_type=self._flow.value_type
        )

    def peek_records(
        self,
        function: Callable[[Record[K, V]], object],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V]:
        """Call ``function(record)`` for its side effect, which a failure may repeat; forward the record."""
        return self._then(
            PeekRecords(function), on_error, name, value=self._flow.value, value_type=self._flow.value_type
        )

    def filter(
        self,
        predicate: Callable[[V], object],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V]:
        """Keep the records for which ``predicate(value)`` is true."""
        return self._then(
            Filter(predicate), on_error, name, value=self._flow.value, value_type=self._flow.value_type
        )

    def flat_map(
        self,
        function: Callable[[V], Iterable[V2]],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V2]:
        """Replace each record by one for each value in ``function(value)``, which may be empty."""
        return self._then(FlatMap(function), on_error, name, value_type=given_type(function))

    @overload
    def key_by(
        self,
        function: Callable[[V], str],
        *,
        key: None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[str, V]: ...

    @overload
    def key_by(
        self,
        function: Callable[[V], K2],
        *,
        key: Serde[K2],
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K2, V]: ...

    def key_by(
        self,
        function: Callable[[V], Any],
        *,
        key: Serde[Any] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[Any, V]:
        """Replace each key by ``function(value)``; ``key`` is the serde of the new keys, text by default."""
        operator = KeyBy(function, implied_text=key is None)
        return self._then(
            operator,
            on_error,
            name,
            key=key or text_keys(name or generated_name(operator), function),
            value=self._flow.value,
            value_type=self._flow.value_type,
            rekeyed=True,
        )

    def peek(
        self, function: Callable[[V], object], *, on_error: ErrorPolicy | None = None, name: str | None = None
    ) -> Stream[K, V]:
        """Call ``function(value)`` for its side effect, which a failure may repeat; forward the record."""
        return self._then(
            Peek(function), on_error, name, value=self._flow.value, value_type=self._flow.value_type
        )

    @overload
    def process(
        self,
        processor: ProcessorFactory,
        *,
        stores: Iterable[StoreDefinition | str] = (),
        store: str | None = None,
        keeps_key: Literal[True],
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, Any]: ...

    @overload
    def process(
        self,
        processor: ProcessorFactory,
        *,
        stores: Iterable[StoreDefinition | str] = (),
        store: str | None = None,
        keeps_key: Literal[False] = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[Any, Any]: ...

    def process(
        self,
        processor: ProcessorFactory,
        *,
        stores: Iterable[StoreDefinition | str] = (),
        store: str | None = None,
        keeps_key: bool = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[Any, Any]:
        """Run a custom processor; the returned stream holds the records that it forwards.

        ``processor`` is a class or factory that is called once for each task. Its instances have ``process``
        or ``process_batch``, see ``Processor`` and ``BatchProcessor``. ``stores`` are created with
        ``key_value_store(name)``; a bare name refers to a store of another step. With stores, where keys were
        changed upstream, the records go through the repartition topic ``<app>-<store>-repartition`` first:
        ``store`` is by default the name of the first store. ``name`` is only the step's label, by default
        ``store``; where there is such a topic, ``name`` requires ``store``.

        ``keeps_key`` declares that forwarded records have the key of the record being processed, so that no
        repartition topic is needed downstream; ``forward`` raises for another key. Records that timers
        forward are not checked, because the step cannot tell which partition a key belongs to: timers must
        forward keys of their own partition, e.g. those in a store of the step. A record with a key of another
        partition would be aggregated apart from the other records with its key.
        """
        given = list(stores)
        names = tuple(each if isinstance(each, str) else each.name for each in given)
        flow = self._flow
        if given and flow.rekeyed:
            check_store_named("process", store, name)
            flow = flow.repartition(store or names[0], None, on_error, name=name)
        return Stream(
            flow.then(
                Process(processor, names, self._kept_keys(None, name, keeps_key=keeps_key)),
                on_error,
                name or store,
                rekeyed=not keeps_key,
                owns=with_deadlines([each for each in given if not isinstance(each, str)]),
                uses=tuple(each for each in given if isinstance(each, str)),
            )
        )

    def repartition(
        self,
        store: str,
        *,
        partitions: int | None = None,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V]:
        """Send the records through an internal topic, ``<app>-<store>-repartition``, by their keys.

        By default, the number of ``partitions`` is that of the topics it is co-partitioned with, or else that
        of the largest input. ``name`` is only the steps' label.
        """
        flow = self._flow if value is None else self._flow.written_by(value)
        return Stream(flow.repartition(store, partitions, on_error, name=name))

    @overload
    def group_by(
        self,
        function: Callable[[V], str],
        *,
        key: None = None,
        value: Serde[V] | None = None,
        store: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Grouped[str, V]: ...

    @overload
    def group_by(
        self,
        function: Callable[[V], K2],
        *,
        key: Serde[K2],
        value: Serde[V] | None = None,
        store: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Grouped[K2, V]: ...

    def group_by(
        self,
        function: Callable[[V], Any],
        *,
        key: Serde[Any] | None = None,
        value: Serde[V] | None = None,
        store: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Grouped[Any, V]:
        """Group the records by ``function(value)``; ``key`` is the serde of the groups, text by default.

        The records go through a repartition topic named ``<app>-<store>-repartition``; by default, ``store``
        is the store of the aggregation that follows. ``name`` is only the step's label and requires
        ``store``. ``value`` is the serde of the values in the topic, needed where the stream has none.
        ``on_error`` applies to records whose group is ``None`` or for which the function raises.
        """
        check_store_named("group_by", store, name)
        operator = Group(function, implied_text=key is None)
        if value is not None:
            check_written(name or generated_name(operator), value, self._flow.value_type)
        flow = self._flow.then(
            operator,
            on_error,
            name,
            key=key or text_keys(name or generated_name(operator), function),
            value=value or self._flow.value,
            value_type=self._flow.value_type if value is None else Any,
            rekeyed=True,
        )
        return Grouped(Groups(flow, store, partitions, on_error))

    def group_by_key(
        self, *, store: str | None = None, on_error: ErrorPolicy | None = None, name: str | None = None
    ) -> Grouped[K, V]:
        """Group the records by key; ``on_error`` applies to records without a key.

        Where keys were changed upstream, the records go through a repartition topic first, named like that of
        ``group_by``. ``name`` is only the step's label.
        """
        flow = self._flow
        flow = flow.then(Group(), on_error, name, value=flow.value, value_type=flow.value_type)
        return Grouped(Groups(flow, store, None, on_error))

    @overload
    def to_table(
        self: Stream[K, V2 | None],
        store: str,
        *,
        value: Serde[V2] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[K, V2]: ...

    @overload
    def to_table(
        self,
        store: str,
        *,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[K, V]: ...

    def to_table(
        self,
        store: str,
        *,
        value: Serde[Any] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[K, Any]:
        """Keep the latest value of each key in the store ``store``; a null value deletes the key.

        Changing ``store`` starts with empty state; ``name`` is only the step's label. Where keys were changed
        upstream, the records go through a repartition topic first. ``value`` is the serde of the stored
        values, needed where the stream has none. ``on_error`` applies to records without a key and to values
        that the serde cannot write.
        """
        flow = self._flow if value is None else self._flow.written_by(value)
        if self._flow.rekeyed:
            flow = flow.repartition(store, None, on_error, name=name)
        serde = flow.written_value(f"{store!r} keeps values", "to_table(…, value=…)")
        check = None if flow.read_again(serde) is serde else RoundTrip(serde)
        definition = StoreDefinition(
            name=store, key=flow.key, value=StampedSerde(serde), purpose="table", view=value_of
        )
        return Table(keep_table(definition, flow.written_by(serde), on_error, check, name))

    @overload
    def join(
        self,
        other: Stream[K, V2],
        function: Callable[[V, V2], R],
        *,
        within: timedelta | None = None,
        window: JoinWindow | None = None,
        grace: timedelta = _NO_GRACE,
        close_idle_after: timedelta | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy | None = None,
        store: str | None = None,
        name: str | None = None,
    ) -> JoinedStream[K, R]: ...

    @overload
    def join(
        self,
        other: Table[K, V2],
        function: Callable[[V, V2], R],
        *,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy | None = None,
        store: str | None = None,
        name: str | None = None,
    ) -> Stream[K, R]: ...

    def join(
        self,
        other: Stream[K, V2] | Table[K, V2],
        function: Callable[[V, V2], R],
        *,
        within: timedelta | None = None,
        window: JoinWindow | None = None,
        grace: timedelta | None = None,
        close_idle_after: timedelta | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy | None = None,
        store: str | None = None,
        name: str | None = None,
    ) -> Stream[K, R]:
        """Join each record with the table value, or with the other stream's records in a window, of its key.

        With a table, the result is ``function(value, table_value)`` with the record's event time, for records
        whose key is in the table when they are processed. ``store`` is required where keys were changed
        upstream: the records then go through the repartition topic ``<app>-<store>-repartition``.

        With a stream, each record of this stream is joined with each record of the other with the same key
        whose event time is at most ``within`` away, e.g. ``minutes(5)``, or inside ``window``. The result has
        the later of the two event times. The two may arrive in either order, until stream time has passed the
        event time of the earlier one by more than the window's ``before`` plus ``after`` (twice ``within``)
        plus ``grace``. Records that arrive later are counted as late and are in ``.late()``. Records are
        buffered in the stores ``<store>-left`` and ``<store>-right``; ``value`` and ``other_value`` are the
        serdes for them, needed where the streams have none.

        Changing ``store`` starts with empty state; ``name`` is only the step's label, by default ``store``.
        ``on_error`` applies to tombstones, to records without a key, and to those on which the function
        fails.
        """
        options = JoinOptions(
            within, window, grace, close_idle_after, value, other_value, on_error, store, name
        )
        return self._join(other, function, "inner", options)

    @overload
    def left_join(
        self,
        other: Stream[K, V2],
        function: Callable[[V, V2 | None], R],
        *,
        within: timedelta | None = None,
        window: JoinWindow | None = None,
        grace: timedelta = _NO_GRACE,
        close_idle_after: timedelta | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy | None = None,
        store: str | None = None,
        name: str | None = None,
    ) -> JoinedStream[K, R]: ...

    @overload
    def left_join(
        self,
        other: Table[K, V2],
        function: Callable[[V, V2 | None], R],
        *,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy | None = None,
        store: str | None = None,
        name: str | None = None,
    ) -> Stream[K, R]: ...

    def left_join(
        self,
        other: Stream[K, V2] | Table[K, V2],
        function: Callable[[V, V2 | None], R],
        *,
        within: timedelta | None = None,
        window: JoinWindow | None = None,
        grace: timedelta | None = None,
        close_idle_after: timedelta | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy | None = None,
        store: str | None = None,
        name: str | None = None,
    ) -> Stream[K, R]:
        """As ``join``, with ``function(value, None)`` for records without a match or without a key.

        With a stream, each of these records is forwarded exactly once, in the order of their event times, as
        soon as no record can match it any more: when stream time has passed its event time by more than the
        window's ``before`` plus ``after`` plus ``grace``.
        """
        options = JoinOptions(
            within, window, grace, close_idle_after, value, other_value, on_error, store, name
        )
        return self._join(other, function, "left", options)

    def outer_join(
        self,
        other: Stream[K, V2],
        function: Callable[[V | None, V2 | None], R],
        *,
        within: timedelta | None = None,
        window: JoinWindow | None = None,
        grace: timedelta = _NO_GRACE,
        close_idle_after: timedelta | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy | None = None,
        store: str | None = None,
        name: str | None = None,
    ) -> JoinedStream[K, R]:
        """As ``left_join`` with a stream, and ``function(None, value)`` for its records without a match."""
        options = JoinOptions(
            within, window, grace, close_idle_after, value, other_value, on_error, store, name
        )
        joined = self._join(other, function, "outer", options)
        assert isinstance(joined, JoinedStream)
        return joined

    def join_global(
        self,
        table: GlobalTable[K2, V2],
        key: Callable[[V], K2],
        function: Callable[[V, V2], R],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, R]:
        """Join each record with a global table's value for ``key(value)``; drop records without a match.

        The global table is not synchronized with the stream by event time: a record is joined with the value
        that the table has when it is processed. ``on_error`` applies to tombstones, to records whose ``key``
        is ``None``, and to those on which a function fails.
        """
        return self._join_global(table, key, function, on_error, name, is_left=False)

    def left_join_global(
        self,
        table: GlobalTable[K2, V2],
        key: Callable[[V], K2 | None],
        function: Callable[[V, V2 | None], R],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, R]:
        """As ``join_global``, with ``function(value, None)`` for records without a match."""
        return self._join_global(table, key, function, on_error, name, is_left=True)

    def branch(
        self,
        routes: Mapping[str, Callable[[V], object]],
        *,
        otherwise: str | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Branches[K, V]:
        """Split the stream: each record goes to the first branch whose predicate is true for its value.

        ``otherwise`` names a branch for the remaining records; without it they are dropped. The result maps
        the name of each branch to its stream: ``branches["slow"]``.
        """
        if not routes:
            raise TopologyError("branch needs at least one predicate")
        if otherwise in routes:
            raise TopologyError(f"branch {otherwise!r} has a predicate and is the otherwise branch too")
        flow, builder = self._flow, self._flow.builder
        step = builder.name(name, f"branch-{'-'.join(routes)}")
        names = [*routes] + ([otherwise] if otherwise is not None else [])
        heads = {branch: f"{step}.{branch}" for branch in names}
        operator = Branch(
            tuple((heads[branch], predicate) for branch, predicate in routes.items()),
            None if otherwise is None else heads[otherwise],
        )
        builder.add(Step(name=step, parents=flow.parents, operator=operator, policy=builder.policy(on_error)))
        streams: dict[str, Stream[K, V]] = {}
        for branch, head in heads.items():
            policy = builder.policy(on_error)
            builder.add(Step(name=builder.name(head, head), parents=(step,), operator=Merge(), policy=policy))
            streams[branch] = Stream(replace(flow, parents=(head,)))
        return Branches(streams)

    def merge(self, *others: Stream[K, V], name: str | None = None) -> Stream[K, V]:
        """Merge this stream and others into one; the records of each input partition keep their order.

        The streams must have the same key serde and value serde, as the result has this stream's serdes.
        """
        flow, builder = self._flow, self._flow.builder
        for other in others:
            if not isinstance(other, Stream):
                raise TopologyError(
                    f"{name or 'merge'}: a stream is merged with streams, got {type(other).__name__}",
                    hint="the changes of a table are a stream: table.to_stream()",
                )
        flows = [flow, *(stream._flow for stream in others)]
        parents = tuple(parent for each in flows for parent in each.parents)
        if len(set(parents)) < len(parents):
            raise TopologyError("a stream is merged with itself: each record would be processed twice")
        called = builder.name(name, "merge")
        for each in flows:
            check_keys_alike(flow.key, each.key, called)
        builder.add(Step(name=called, parents=parents, operator=Merge(), policy=builder.policy(None)))
        return Stream(
            Flow(
                builder,
                (called,),
                flow.key,
                flow.value if all(alike(each.value, flow.value) for each in flows) else None,
                rekeyed=any(each.rekeyed for each in flows),
                value_type=flow.value_type
                if all(each.value_type == flow.value_type for each in flows)
                else Any,
                as_read=all(each.as_read for each in flows),
            )
        )

    @overload
    def to(
        self,
        topic: str | Callable[[V], str],
        *,
        key: Serde[K] | None = None,
        value: Serde[V] | None = None,
        partition: int | Callable[[Record[K, V]], int] | None = None,
        headers: Headers | Callable[[Record[K, V]], Headers | None] | None = None,
        timestamp: Callable[[Record[K, V]], int] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> None: ...

    @overload
    def to(
        self: Stream[K, V2 | None],
        topic: str | Callable[[V2 | None], str],
        *,
        key: Serde[K] | None = None,
        value: Serde[V2] | None = None,
        partition: int | Callable[[Record[K, V2 | None]], int] | None = None,
        headers: Headers | Callable[[Record[K, V2 | None]], Headers | None] | None = None,
        timestamp: Callable[[Record[K, V2 | None]], int] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> None: ...

    def to(
        self,
        topic: str | Callable[[Any], str],
        *,
        key: Serde[K] | None = None,
        value: Serde[Any] | None = None,
        partition: int | Callable[[Any], int] | None = None,
        headers: Headers | Callable[[Any], Headers | None] | None = None,
        timestamp: Callable[[Any], int] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> None:
        """Write the records to a topic, or to the topic that ``topic(value)`` names for each.

        Event times and headers are written too, and keys are partitioned as by the Java client. The default
        serdes are those the stream was read with, as long as its values are unchanged, and else JSON.

        ``partition`` is a number for all records, or a function of the record; ``on_error`` applies to a
        record for whose partition the topic is too small. ``headers``, as pairs or a function of the record
        that returns pairs, and ``timestamp``, a function of the record, replace the record's own.
        """
        if not isinstance(topic, str) and not callable(topic):
            raise TopologyError(
                f"{name or 'to'} takes a topic's name, or a function of the value that returns one, got "
                f"{topic!r:.80}"
            )
        generated = f"to-{topic}" if isinstance(topic, str) else f"to-{function_name(topic)}"
        flow = self._flow
        called = flow.builder.name(name, generated)
        if value is not None:
            check_written(called, value, flow.value_type)
        flow.builder.add(
            SinkNode(
                name=called,
                parents=flow.parents,
                topic=topic,
                key=key or flow.key,
                value=value or flow.value or Json(),
                policy=flow.builder.policy(on_error),
                columns=SinkColumns.chosen(called, partition, headers, timestamp),
            )
        )

    def enqueue(
        self,
        job: Job[..., Any] | AsyncJob[..., Any] | BatchJob[Any, Any],
        call: Callable[[V], Call[Any] | None],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> None:
        """Put calls of a job into its queue, in the transaction of the records that they are made of.

        ``call`` returns what ``job.call(…)`` makes of a value, or ``None`` for no job. So a record enqueues
        its job once, however often it is processed after a failure. ::

            orders.enqueue(charge, lambda order: charge.call(order.id, order.cents))
        """
        from streams.jobs.enqueue import MakeCalls  # noqa: PLC0415 - an app without jobs does without it

        flow = self._flow
        made = flow.then(MakeCalls(job.name, job.topic, call), on_error, name, key=Text(), value=Bytes())
        made.builder.add(
            SinkNode(
                name=made.builder.name(None, f"enqueue-to-{job.topic}"),
                parents=made.parents,
                topic=job.topic,
                key=Text(),
                value=Bytes(),
                policy=made.builder.policy(on_error),
            )
        )

    def to_change_topics(
        self: Stream[K, Change[Any]],
        prefix: str,
        *,
        partitions: int = 4,
        key: Serde[K] | None = None,
        value: Serde[Any] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> None:
        """Write the changes of each table to the topic ``<prefix>.<schema>.<table>``, by their keys.

        A deletion is followed by a tombstone, so that a compacted topic forgets the key. With the setting
        ``create_topics``, topics of the source's tables that are missing are created: compacted, with
        ``partitions`` partitions. ``value`` writes the changes; by default as JSON in Debezium's form,
        without its schema part. ``key`` writes the keys, which decide the partition; by default as JSON, also
        if the changes are Avro: its bytes do not depend on the ids of schemas.
        """
        write_changes(
            self._flow, prefix, partitions=partitions, key=key, value=value, on_error=on_error, name=name
        )

    def sink(
        self,
        connector: SinkConnector,
        *,
        store: str | None = None,
        key: Serde[K] | None = None,
        value: Serde[Any] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> None:
        """Write the records to another system, exactly once where it supports transactions.

        The sink keeps the position of each input partition itself, in the transaction that writes the rows,
        under the app's name and ``store`` (default: what the connector writes to, e.g. the table's name).
        With another ``store``, all input is written again. Null values delete, where the sink writes by key.

        ``on_error`` applies to a row that the system refuses for what is in it: by default it becomes a dead
        letter with the system's message, and the other rows are written. While the system is not available,
        the sink's input waits and other steps continue.

        Records downstream of a store, or of a stream that is written to topics too, go through an internal
        topic, ``<app>-<store>-sink``: ``key`` and ``value`` are its serdes where they are not known.
        """
        write_connector(
            self._flow, connector, key=key, value=value, store=store, on_error=on_error, name=name
        )

    def _then(
        self, operator: Operator, policy: ErrorPolicy | None, name: str | None, **known: Any
    ) -> Stream[Any, Any]:
        return Stream(self._flow.then(operator, policy, name, **known))

    def _kept_keys(self, key: Serde[Any] | None, step: str | None, *, keeps_key: bool) -> KeptKeys | None:
        """The check that a step declared with ``keeps_key`` keeps keys, if any. Raises ``TopologyError``."""
        if keeps_key and key is not None:
            raise TopologyError(
                f"{step or 'map_records'}: key= is the serde of new keys, but keeps_key=True declares that "
                "keys do not change",
                hint="leave out one of the two",
            )
        return KeptKeys(self._flow.key) if keeps_key else None

    def _join(
        self,
        other: Stream[K, Any] | Table[K, Any],
        function: Callable[[Any, Any], R],
        how: JoinKind,
        options: JoinOptions,
    ) -> Stream[K, R]:
        if isinstance(other, Stream):
            joined, late = join_streams(self._flow, other._flow, function, how, options)
            return JoinedStream(joined, late)
        if not isinstance(other, Table):
            raise TopologyError(
                f"{options.step}: a stream joins a stream or a table, got {type(other).__name__}",
                hint="a global table is joined by join_global(table, key, function)",
            )
        return Stream(join_table(self._flow, other._flow, function, how, options))

    def _join_global(
        self,
        table: GlobalTable[Any, Any],
        key: Callable[[Any], Any],
        function: Callable[[Any, Any], R],
        on_error: ErrorPolicy | None,
        name: str | None,
        *,
        is_left: bool,
    ) -> Stream[K, R]:
        if not isinstance(table, GlobalTable):
            raise TopologyError(
                f"{name or 'join_global'} takes a table of app.global_table, got {type(table).__name__}",
                hint="a table of app.table is joined by the stream's keys: stream.join(table, function)",
            )
        operator = JoinGlobal(function, table._name, key, table._key, is_left)
        return self._then(
            operator,
            on_error,
            name,
            inferred=returned_serde(function),
            value_type=returned_type(function),
            untyped=table._untyped,
        )


class JoinedStream(Stream[K, V]):
    """The results of a join of two streams, and the records that were too late for it."""

    def __init__(self, flow: Flow, late: LateRecords) -> None:
        """Made by ``join``, ``left_join`` and ``outer_join`` of ``Stream`` with a stream."""
        super().__init__(flow)
        self._late_records = late
        self._late: Stream[K, Any] | None = None

    def late(self) -> Stream[K, Any]:
        """The records of both sides that arrived too late to be joined with some or all of their matches.

        A record is late when, at its arrival, stream time had passed its event time by more than the window's
        ``before`` plus ``after`` plus ``grace``: it is in no result. It is also late when that was so for a
        matching record of the other side: this pair is in no result, but other pairs with the record may be.
        """
        if self._late is None:
            self._late = Stream(self._late_records.read(self._flow))
        return self._late


class Grouped(Generic[K, V]):
    """Records grouped by key; each method aggregates the groups.

    Every aggregation keeps its results in a ``store``, which names its changelog topic
    ``<app>-<store>-changelog``: changing it starts with empty state. ``name`` is only the step's label, by
    default ``store``; keywords of ``aggregate`` are fields of the result, so its step is always labelled by
    ``store``.
    """

    def __init__(self, groups: Groups) -> None:
        """Made by ``Stream.group_by`` and ``group_by_key``."""
        self._groups = groups

    def window(
        self,
        window: Tumbling | Hopping | Session | Sliding,
        *,
        grace: timedelta = _NO_GRACE,
        keep: timedelta = _NO_GRACE,
        close_idle_after: timedelta | None = None,
    ) -> WindowedGrouped[K, V]:
        """Aggregate by window of event time instead of over all time.

        A window closes when stream time passes its end by ``grace``, a session when it passes its end by the
        gap plus ``grace``; records that arrive for it later are counted as late and dropped. When no records
        arrive for ``close_idle_after``, stream time advances with the wall clock from its last value; by
        default, windows stay open until the next record.

        Queries return the result of a closed window until stream time has advanced by ``keep``.
        """
        if not isinstance(window, Tumbling | Hopping | Session | Sliding):
            raise TopologyError(
                f"window needs Tumbling, Hopping, Session or Sliding windows, got {window!r:.80}",
                hint="e.g. window(Tumbling(minutes(1)))",
            )
        windows = Windows(
            window,
            to_milliseconds(grace, "grace"),
            idle_milliseconds(close_idle_after),
            to_milliseconds(keep, "keep"),
        )
        return WindowedGrouped(self._groups, windows)

    def count(
        self, store: str, *, on_error: ErrorPolicy | None = None, name: str | None = None
    ) -> Table[K, int]:
        """Count the records of each key."""
        return Table(aggregate_groups(self._groups, store, count(), on_error, name))

    def reduce(
        self,
        store: str,
        function: Callable[[V, V], V],
        *,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[K, V]:
        """Combine each key's values with ``function(result, value)``; the first value is the first result."""
        reduced = self._groups.reducing(store, function, value)
        return Table(aggregate_groups(self._groups, store, reduced, on_error, name))

    @overload
    def aggregate(
        self, store: str, aggregate: Aggregate[V, R], /, *, on_error: ErrorPolicy | None = None
    ) -> Table[K, R]: ...

    @overload
    def aggregate(
        self, store: str, /, *, on_error: ErrorPolicy | None = None, **fields: Aggregate[V, Any]
    ) -> Table[K, Any]: ...

    def aggregate(
        self,
        store: str,
        aggregate: Aggregate[V, Any] | None = None,
        /,
        *,
        on_error: ErrorPolicy | None = None,
        **fields: Aggregate[V, Any],
    ) -> Table[K, Any]:
        """Compute an aggregate of each key's records, or several by name: ``aggregate("s", sum=total())``.

        Several by name give results that are objects with these names as attributes.
        """
        chosen = self._groups.chosen(store, aggregate, fields)
        return Table(aggregate_groups(self._groups, store, chosen, on_error))


class WindowedGrouped(Generic[K, V]):
    """Records grouped by key and by window of event time."""

    def __init__(self, groups: Groups, windows: Windows) -> None:
        """Made by ``Grouped.window``."""
        self._groups = groups
        self._windows = windows

    def count(
        self, store: str, *, on_error: ErrorPolicy | None = None, name: str | None = None
    ) -> WindowedResults[K, int]:
        """Count the records of each window and key."""
        return self._results(store, count(), on_error, name)

    def reduce(
        self,
        store: str,
        function: Callable[[V, V], V],
        *,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> WindowedResults[K, V]:
        """Combine the values of each window and key with ``function(result, value)``."""
        return self._results(store, self._groups.reducing(store, function, value), on_error, name)

    @overload
    def aggregate(
        self, store: str, aggregate: Aggregate[V, R], /, *, on_error: ErrorPolicy | None = None
    ) -> WindowedResults[K, R]: ...

    @overload
    def aggregate(
        self, store: str, /, *, on_error: ErrorPolicy | None = None, **fields: Aggregate[V, Any]
    ) -> WindowedResults[K, Any]: ...

    def aggregate(
        self,
        store: str,
        aggregate: Aggregate[V, Any] | None = None,
        /,
        *,
        on_error: ErrorPolicy | None = None,
        **fields: Aggregate[V, Any],
    ) -> WindowedResults[K, Any]:
        """Compute an aggregate, or several by name, for each window and key; see ``Grouped.aggregate``.

        Sessions and sliding windows need an aggregate that can merge two partial results.
        """
        return self._results(store, self._groups.chosen(store, aggregate, fields), on_error)

    def _results(
        self,
        store: str,
        aggregate: Aggregate[Any, Any],
        on_error: ErrorPolicy | None,
        name: str | None = None,
    ) -> WindowedResults[K, Any]:
        results = aggregate_windows(self._groups, self._windows, store, aggregate, on_error, name)
        return WindowedResults(results)


class WindowedResults(Generic[K, R]):
    """The results of windows: each update, or only the final result of each window."""

    def __init__(self, results: WindowResults) -> None:
        """Made by the methods of ``WindowedGrouped``."""
        self._results = results

    @overload
    def updates(self, *, tombstones: Literal[False] = False) -> Stream[K, Windowed[K, R]]: ...

    @overload
    def updates(self, *, tombstones: Literal[True]) -> Stream[K, Windowed[K, R | None]]: ...

    def updates(self, *, tombstones: bool = False) -> Stream[K, Any]:
        """The latest result of each window that changed, at each commit.

        A session that has grown, or has merged with others, is a new window. With ``tombstones``, each window
        that it replaces is retracted by a result whose ``value`` is ``None``.

        The event time of a result is the highest of the records that this worker has read for the window. It
        is not the end of the window, which may be later than all input.
        """
        return Stream(self._results.updates(tombstones=tombstones))

    def final(self) -> Stream[K, Windowed[K, R]]:
        """Exactly one result for each window, once it has closed.

        Its event time is the last millisecond that belongs to the window, which stream time has passed.
        """
        return Stream(self._results.final())

    def late(self) -> Stream[K, Any]:
        """The records that arrived after all of their windows had closed."""
        return Stream(self._results.late())


class Table(Generic[K, V]):
    """The latest value of each key, and the stream of its changes."""

    def __init__(self, flow: TableFlow) -> None:
        """Made by ``App.table``, ``Stream.to_table`` and steps."""
        self._flow = flow

    def filter(
        self,
        predicate: Callable[[V], object],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[K, V]:
        """Keep the keys for which ``predicate(value)`` is true."""
        flow = self._flow
        view = flow.view.then("filter", predicate)
        return Table(flow.then(FilterTable(predicate), view, flow.value, on_error, name, flow.value_type))

    def map(
        self,
        function: Callable[[V], V2 | None],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[K, V2]:
        """Replace each value by ``function(value)``; keys for which it is ``None`` are not in the result."""
        view = self._flow.view.then("map", function)
        serde, kind = made_value(function, untyped=self._flow.untyped)
        return Table(self._flow.then(MapTable(function), view, serde, on_error, name, kind))

    @overload
    def group_by(
        self,
        function: Callable[[V], str],
        *,
        key: None = None,
        value: Serde[V] | None = None,
        store: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> GroupedTable[str, V]: ...

    @overload
    def group_by(
        self,
        function: Callable[[V], K2],
        *,
        key: Serde[K2],
        value: Serde[V] | None = None,
        store: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> GroupedTable[K2, V]: ...

    def group_by(
        self,
        function: Callable[[V], Any],
        *,
        key: Serde[Any] | None = None,
        value: Serde[V] | None = None,
        store: str | None = None,
        partitions: int | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> GroupedTable[Any, V]:
        """Group the rows by ``function(value)``; ``key`` is the serde of the groups, text by default.

        When a value changes, it is removed from its old group and added to the new one. The changes go
        through a repartition topic, as with ``Stream.group_by``. ``on_error`` applies to values whose group
        is ``None`` or for which the function raises; they belong to no group.
        """
        check_store_named("group_by", store, name)
        flow = self._flow
        operator = GroupChanges(function, implied_text=key is None)
        keys = key or text_keys(name or generated_name(operator), function)
        called = flow.builder.name(name, generated_name(operator))
        step = add_step(flow.builder, (flow.step,), operator, called, on_error)
        changes = replace(flow.written_by(value), parents=(step,), key=keys, rekeyed=True)
        return GroupedTable(Groups(changes, store, partitions, on_error, needs_value=True))

    def join(
        self,
        other: Table[K, V2],
        function: Callable[[V, V2], R],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[K, R]:
        """Join the keys that are in both tables, with ``function(value, other_value)``.

        A change of either table updates the result, which has the later of the two event times. The result is
        not stored: each read of it reads both tables and calls the function. Where that takes too long, store
        it with ``to_stream(tombstones=True).to_table(store)``.
        """
        return self._join(other, function, "inner", on_error, name)

    def left_join(
        self,
        other: Table[K, V2],
        function: Callable[[V, V2 | None], R],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[K, R]:
        """As ``join``, with all keys of this table: ``function(value, None)`` for those not in the other."""
        return self._join(other, function, "left", on_error, name)

    def outer_join(
        self,
        other: Table[K, V2],
        function: Callable[[V | None, V2 | None], R],
        *,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[K, R]:
        """As ``join``, with the keys of either table: ``None`` for the value of a table without the key."""
        return self._join(other, function, "outer", on_error, name)

    def join_foreign_key(
        self,
        other: Table[K2, V2],
        foreign_key: Callable[[V], K2 | None],
        function: Callable[[V, Any], R],
        *,
        store: str,
        left: bool = False,
        result: Serde[R] | None = None,
        value: Serde[V] | None = None,
        other_value: Serde[V2] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[K, R]:
        """Join each value with another table's value for ``foreign_key(value)``.

        The result has this table's keys, is updated by changes of either table, and is kept in the store
        ``store``, which names the internal topics too; ``name`` is only the step's label. Values whose
        foreign key is ``None``, or not in the other table, are joined only with ``left``, with ``None``.
        Values are sent between tasks with the serdes ``value`` and ``other_value``, and results are stored
        with ``result``; each is needed where it is not known. ``on_error`` applies to values on which a
        function fails; they are treated as deleted.
        """
        self._check_table(other, store)
        return Table(
            join_foreign_key(
                self._flow,
                other._flow,
                foreign_key,
                function,
                store=store,
                name=name,
                left=left,
                result=result,
                value=value,
                other_value=other_value,
                on_error=on_error,
            )
        )

    @overload
    def to_stream(self, *, tombstones: Literal[False] = False, name: str | None = None) -> Stream[K, V]: ...

    @overload
    def to_stream(self, *, tombstones: Literal[True], name: str | None = None) -> Stream[K, V | None]: ...

    def to_stream(self, *, tombstones: bool = False, name: str | None = None) -> Stream[K, Any]:
        """Convert the table to a stream of its changes: records with the new values.

        With ``tombstones``, a deletion is a record whose value is ``None``; by default it is dropped.
        """
        flow, builder = self._flow, self._flow.builder
        step = Step(
            name=builder.name(name, "to_stream"),
            parents=(flow.step,),
            operator=ToStream(tombstones),
            policy=builder.policy(None),
        )
        builder.add(step)
        changes = Flow(
            builder, (step.name,), flow.key, flow.value, value_type=flow.value_type, as_read=flow.as_read
        )
        return Stream(changes)

    def to(
        self,
        topic: str | Callable[[V | None], str],
        *,
        key: Serde[K] | None = None,
        value: Serde[V] | None = None,
        partition: int | Callable[[Record[K, V | None]], int] | None = None,
        headers: Headers | Callable[[Record[K, V | None]], Headers | None] | None = None,
        timestamp: Callable[[Record[K, V | None]], int] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> None:
        """Write the changes to a topic, deletions as tombstones: ``to_stream(tombstones=True).to(…)``.

        Functions receive ``None`` as the value of a deletion.
        """
        self.to_stream(tombstones=True).to(
            topic,
            key=key,
            value=value,
            partition=partition,
            headers=headers,
            timestamp=timestamp,
            on_error=on_error,
            name=name,
        )

    def sink(
        self,
        connector: SinkConnector,
        *,
        store: str | None = None,
        key: Serde[K] | None = None,
        value: Serde[Any] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> None:
        """Write the changes to another system: ``to_stream(tombstones=True).sink(…)``.

        Its internal topic is compacted, so that the target can be filled from it at any time.
        """
        write_connector(
            self.to_stream(tombstones=True)._flow,
            connector,
            key=key,
            value=value,
            store=store,
            on_error=on_error,
            name=name,
            table=True,
        )

    def _join(
        self,
        other: Table[K, Any],
        function: Callable[[Any, Any], Any],
        how: JoinKind,
        on_error: ErrorPolicy | None,
        name: str | None,
    ) -> Table[K, Any]:
        self._check_table(other, name or "join")
        return Table(join_tables(self._flow, other._flow, function, how, on_error, name))

    @staticmethod
    def _check_table(other: object, step: str) -> None:
        if not isinstance(other, Table):
            raise TopologyError(
                f"{step}: a table joins a table, got {type(other).__name__}",
                hint="to join records with this table, start from the stream: stream.join(table, function)",
            )


class GroupedTable(Generic[K, V]):
    """A table's rows grouped by their values: a change or deletion of a row updates its old and new group.

    ``store`` and ``name`` are as for ``Grouped``'s results.
    """

    def __init__(self, groups: Groups) -> None:
        """Made by ``Table.group_by``."""
        self._groups = groups

    def count(
        self, store: str, *, on_error: ErrorPolicy | None = None, name: str | None = None
    ) -> Table[K, int]:
        """Count the table's keys in each group; 0 for a group that has become empty."""
        return Table(aggregate_table_groups(self._groups, store, count(), None, on_error, name))

    def reduce(
        self,
        store: str,
        add: Callable[[V, V], V],
        remove: Callable[[V, V], V | None],
        *,
        value: Serde[V] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[K, V]:
        """Add each value to its group with ``add(result, value)``; the first value is the first result.

        ``remove(result, value)`` subtracts a value that left the group; ``None`` from it deletes the group.
        """
        reduced, serde = self._groups.removable_reducing(store, add, remove, value)
        return Table(aggregate_table_groups(self._groups, store, reduced, serde, on_error, name))

    @overload
    def aggregate(
        self, store: str, aggregate: Aggregate[V, R], /, *, on_error: ErrorPolicy | None = None
    ) -> Table[K, R]: ...

    @overload
    def aggregate(
        self, store: str, /, *, on_error: ErrorPolicy | None = None, **fields: Aggregate[V, Any]
    ) -> Table[K, Any]: ...

    def aggregate(
        self,
        store: str,
        aggregate: Aggregate[V, Any] | None = None,
        /,
        *,
        on_error: ErrorPolicy | None = None,
        **fields: Aggregate[V, Any],
    ) -> Table[K, Any]:
        """Compute an aggregate that can subtract values, or several by name; see ``Grouped.aggregate``."""
        chosen = self._groups.chosen(store, aggregate, fields)
        return Table(aggregate_table_groups(self._groups, store, chosen, None, on_error))


class GlobalTable(Generic[K, V]):
    """A table of which every worker has a complete copy, to join by any key: ``Stream.join_global``."""

    def __init__(self, name: str, key: Serde[Any], *, untyped: bool) -> None:
        """Made by ``App.global_table``."""
        self._name = name
        self._key = key
        self._untyped = untyped


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
