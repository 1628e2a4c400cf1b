"""Builds the steps of aggregations: of grouped streams and tables, over all time or by window."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.aggregates import Combined, check_aggregate, check_fields
from streams.dsl.flow import Flow, TableFlow
from streams.durations import whole_milliseconds
from streams.errors import TopologyError
from streams.eventtime.windows import Session, Sliding, Windowed
from streams.operators.aggregate import AccumulatorSerde, AggregateByKey, Reduce, TimedAccumulatorSerde
from streams.operators.change import View
from streams.operators.closed_windows import KEYED_SPAN, closed_definition, kept_windows
from streams.operators.session import SessionAggregate, session_store
from streams.operators.sliding import SlidingAggregate, sliding_store
from streams.operators.stateless import Merge
from streams.operators.table import AggregateChanges, RemovableReduce
from streams.operators.window import WindowedAggregate, WindowHeads
from streams.serde import Json
from streams.serde.value_type import known, serde_type
from streams.state.deadlines import deadlines_definition
from streams.state.definition import StoreDefinition
from streams.topology.graph import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.aggregates import Aggregate
    from streams.eventtime.windows import Hopping, Tumbling
    from streams.operators import Operator
    from streams.policy import ErrorPolicy
    from streams.serde import Serde
    from streams.state.definition import KeptWindows


class Groups:
    """Records with their groups as keys, and the one repartition topic that they go through if necessary."""

    def __init__(
        self,
        flow: Flow,
        store: str | None,
        partitions: int | None,
        on_error: ErrorPolicy | None,
        *,
        needs_value: bool = False,
    ) -> None:
        self._flow = flow
        self._store = store
        self._partitions = partitions
        self._needs_value = needs_value
        self._on_error = on_error
        self._repartitioned: Flow | None = None
        self._used_by: str | None = None

    def source(self, store: str) -> Flow:
        """The records, repartitioned if necessary so that one task has all of a group, for ``store``."""
        if not self._flow.rekeyed:
            return self._flow
        if self._store is None and self._used_by not in (None, store):
            raise TopologyError(
                f"{self._used_by!r} and {store!r} share the repartition topic of a group_by without store=",
                hint="name the topic: group_by(…, store=…); the name must not depend on the order of steps",
            )
        self._used_by = store
        if self._repartitioned is None:
            self._repartitioned = self._flow.repartition(
                self._store or store,
                self._partitions,
                self._on_error,
                needs_key=True,
                needs_value=self._needs_value,
            )
        return self._repartitioned

    def chosen(
        self, store: str, aggregate: Aggregate[Any, Any] | None, fields: Mapping[str, Aggregate[Any, Any]]
    ) -> Aggregate[Any, Any]:
        """The one aggregate, or those by name combined into one. Raises ``TopologyError``."""
        if (aggregate is None) == (not fields):
            raise TopologyError(
                f"{store!r} needs either one aggregate, or several by name",
                hint='e.g. aggregate("sales", total("amount")) or aggregate("sales", sum=total("amount"))',
            )
        for name, part in {"": aggregate, **fields}.items():
            if part is not None:
                check_aggregate(store, name, part)
        chosen = Combined(fields) if aggregate is None else aggregate
        check_fields(store, chosen, self._flow.value_type)
        return chosen

    def reducing(
        self, store: str, function: Callable[[Any, Any], Any], value: Serde[Any] | None
    ) -> Aggregate[Any, Any]:
        """A function over two values as an aggregate."""
        return Reduce(function, self._kept_by(store, value))

    def removable_reducing(
        self,
        store: str,
        add: Callable[[Any, Any], Any],
        remove: Callable[[Any, Any], Any],
        value: Serde[Any] | None,
    ) -> tuple[Aggregate[Any, Any], Serde[Any]]:
        """Functions that add and subtract a value as an aggregate, and the serde of its results."""
        serde = self._kept_by(store, value)
        return RemovableReduce(add, remove, serde), serde

    def _kept_by(self, store: str, value: Serde[Any] | None) -> Serde[Any]:
        return value or self._flow.written_value(f"{store!r} keeps values", "reduce(…, value=…)")


def aggregate_groups(
    groups: Groups,
    store: str,
    aggregate: Aggregate[Any, Any],
    on_error: ErrorPolicy | None,
    name: str | None = None,
) -> TableFlow:
    """Aggregate each group of a stream's records; see ``Grouped.aggregate``."""
    flow = groups.source(store)
    computed = flow.builder.traced(aggregate.typed(flow.value_type))
    return _aggregated(flow, store, computed, AggregateByKey(store, computed), None, on_error, name)


def aggregate_table_groups(
    groups: Groups,
    store: str,
    aggregate: Aggregate[Any, Any],
    value: Serde[Any] | None,
    on_error: ErrorPolicy | None,
    name: str | None = None,
) -> TableFlow:
    """Aggregate each group of a table's values; see ``GroupedTable.aggregate``. Raises ``TopologyError``."""
    if not aggregate.removable:
        raise TopologyError(
            f"{store!r}: {aggregate.describe()} cannot subtract a value, which a table needs when a "
            "value changes",
            hint="use count(), total(…), mean(…), variance(…), quantile(…) or custom(…, remove=…)",
        )
    flow = groups.source(store)
    computed = flow.builder.traced(aggregate.typed(flow.value_type))
    return _aggregated(flow, store, computed, AggregateChanges(store, computed), value, on_error, name)


def _aggregated(
    flow: Flow,
    store: str,
    computed: Aggregate[Any, Any],
    operator: Operator,
    value: Serde[Any] | None,
    on_error: ErrorPolicy | None,
    name: str | None,
) -> TableFlow:
    definition = StoreDefinition(
        name=store,
        key=flow.key,
        value=TimedAccumulatorSerde(computed),
        purpose="aggregate",
        view=lambda entry: computed.result(entry[0]),
    )
    step = Step(
        name=flow.builder.name(name, store),
        parents=flow.parents,
        operator=operator,
        policy=flow.builder.policy(on_error),
        owns=(definition,),
    )
    flow.builder.add(step)
    view = View(store, (("result", computed.result),))
    return TableFlow(flow.builder, step.name, flow.key, value, view, value_type=known(computed.result_type))


class Windows(NamedTuple):
    """The event-time windows of an aggregation, when they close, and how long queries can read them then."""

    window: Tumbling | Hopping | Session | Sliding
    grace: int
    close_idle_after: int | None
    keep: int = 0


class WindowResults:
    """The outputs of a windowed step; the step for each kind of result is added when it is first used."""

    def __init__(self, flow: Flow, step: str, heads: WindowHeads, result_type: Any) -> None:
        self._flow = flow
        self._step = step
        self._heads = heads
        self._type: Any = typing.cast("Any", Windowed)[serde_type(flow.key), result_type]
        self._added: dict[str, Flow] = {}

    def updates(self, *, tombstones: bool) -> Flow:
        head = self._heads.replacing if tombstones and self._heads.replacing else self._heads.updates
        return self._head(head, Json(Windowed), self._type)

    def final(self) -> Flow:
        return self._head(self._heads.final, Json(Windowed), self._type)

    def late(self) -> Flow:
        return self._head(self._heads.late, None, self._flow.value_type)

    def _head(self, name: str, value: Serde[Any] | None, value_type: Any) -> Flow:
        if name not in self._added:
            builder = self._flow.builder
            builder.add(Step(name=name, parents=(self._step,), operator=Merge(), policy=builder.policy(None)))
            # No serde reads results back as their type, so they are not compared after a round trip.
            self._added[name] = Flow(
                builder,
                (name,),
                self._flow.key,
                value,
                value_type=value_type,
                as_read=value is not None,
            )
        return self._added[name]


def aggregate_windows(
    groups: Groups,
    windows: Windows,
    store: str,
    aggregate: Aggregate[Any, Any],
    on_error: ErrorPolicy | None,
    name: str | None = None,
) -> WindowResults:
    """Aggregate each group's records of each window; see ``WindowedGrouped.aggregate``."""
    flow = groups.source(store)
    computed = flow.builder.traced(aggregate.typed(flow.value_type))
    builder = flow.builder
    step = builder.name(name, store)
    replacing = f"{step}.replacing" if isinstance(windows.window, Session) else ""
    heads = WindowHeads(f"{step}.updates", f"{step}.final", f"{step}.late", replacing)
    operator, stores = _windowing(windows, store, computed, flow.key, heads)
    builder.add(
        Step(name=step, parents=flow.parents, operator=operator, policy=builder.policy(on_error), owns=stores)
    )
    return WindowResults(flow, step, heads, known(computed.result_type))


def _windowing(
    windows: Windows, name: str, computed: Aggregate[Any, Any], key: Serde[Any], heads: WindowHeads
) -> tuple[Operator, tuple[StoreDefinition, ...]]:
    """The operator for the kind of window, and the stores that it keeps."""
    window, grace, idle = windows.window, windows.grace, windows.close_idle_after
    if isinstance(window, Session | Sliding) and not computed.mergeable:
        raise TopologyError(
            f"{name!r} aggregates {window.describe()}, whose results are merged, "
            f"but {computed.describe()} cannot be merged",
            hint="define how to merge two results, custom(…, merge=…), or use tumbling or hopping windows",
        )
    if isinstance(window, Session):
        # A session closes when stream time is greater than this bound, not when it is equal: hence + 1.
        kept = _kept(windows, name, KEYED_SPAN, whole_milliseconds(window.gap) + grace + 1)
        sessions = SessionAggregate(
            store=name,
            window=window,
            grace=grace,
            aggregate=computed,
            heads=heads,
            close_idle_after=idle,
            kept=kept,
        )
        store = session_store(name, key, window, computed, kept)
        return sessions, (store, deadlines_definition(name, key), *_closed(kept, key, window, computed))
    if isinstance(window, Sliding):
        kept = _kept(windows, name, KEYED_SPAN, grace + 1)
        sliding = SlidingAggregate(
            store=name,
            window=window,
            grace=grace,
            aggregate=computed,
            heads=heads,
            close_idle_after=idle,
            kept=kept,
        )
        store = sliding_store(name, key, window, computed, kept)
        return sliding, (store, deadlines_definition(name, key), *_closed(kept, key, window, computed))
    lasts = whole_milliseconds(window.size) + grace
    kept = _kept(windows, name, 1, grace)
    store = StoreDefinition(
        name=name,
        key=key,
        value=AccumulatorSerde(computed),
        purpose=f"{window.describe()}, aggregate",
        retention=lasts,
        changelog_retention=lasts,
        view=computed.result,
        window_end=lambda start, _: window.end(start),
        kept=kept,
    )
    fixed = WindowedAggregate(
        store=name,
        window=window,
        grace=grace,
        aggregate=computed,
        heads=heads,
        close_idle_after=idle,
        kept=kept,
    )
    return fixed, (store, *_closed(kept, key, window, computed))


def _kept(windows: Windows, name: str, span: int, closes_after: int) -> KeptWindows | None:
    """Where windows that close ``closes_after`` milliseconds after their end are kept; ``None``: nowhere."""
    return kept_windows(name, span=span, lasts=closes_after + windows.keep) if windows.keep else None


def _closed(
    kept: KeptWindows | None,
    key: Serde[Any],
    window: Tumbling | Hopping | Session | Sliding,
    computed: Aggregate[Any, Any],
) -> tuple[StoreDefinition, ...]:
    return () if kept is None else (closed_definition(kept, key, window, computed),)
