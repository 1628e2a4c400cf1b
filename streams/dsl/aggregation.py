"""How aggregations are put together: of a stream's groups and of a table's, for all time or by window."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.aggregates import Combined, check_fields
from streams.dsl.flow import Flow, TableFlow
from streams.errors import TopologyError
from streams.eventtime.windows import Session, Sliding, Windowed
from streams.operators.aggregate import AccumulatorSerde, AggregateByKey, Reduce, TimedAccumulatorSerde
from streams.operators.change import View
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


class Groups:
    """Records with their groups as keys, and the one repartition topic that they go through if need be."""

    def __init__(
        self,
        flow: Flow,
        name: str | None,
        partitions: int | None,
        on_error: ErrorPolicy,
        *,
        needs_value: bool = False,
    ) -> None:
        self._flow = flow
        self._name = name
        self._partitions = partitions
        self._needs_value = needs_value
        self._on_error = on_error
        self._repartitioned: Flow | None = None
        self._used_by: str | None = None

    def source(self, name: str) -> Flow:
        """The records as they come to tasks with whole groups; ``name`` is the store that asks."""
        if not self._flow.rekeyed:
            return self._flow
        if self._name is None and self._used_by not in (None, name):
            raise TopologyError(
                f"{self._used_by!r} and {name!r} share the repartition topic of one group_by without a name",
                hint="give it one: group_by(…, name=…); it must not depend on which of them comes first",
            )
        self._used_by = name
        if self._repartitioned is None:
            self._repartitioned = self._flow.repartition(
                self._name or name,
                self._partitions,
                self._on_error,
                needs_key=True,
                needs_value=self._needs_value,
            )
        return self._repartitioned

    def chosen(
        self, name: str, aggregate: Aggregate[Any, Any] | None, fields: Mapping[str, Aggregate[Any, Any]]
    ) -> Aggregate[Any, Any]:
        """The one aggregate given, or those given by name as one. Raises ``TopologyError``."""
        if (aggregate is None) == (not fields):
            raise TopologyError(
                f"{name!r} needs either one aggregate, or several by name",
                hint='e.g. aggregate("sales", total("amount")) or aggregate("sales", sum=total("amount"))',
            )
        chosen = Combined(fields) if aggregate is None else aggregate
        check_fields(name, chosen, self._flow.value_type)
        return chosen

    def reducing(
        self, name: str, function: Callable[[Any, Any], Any], value: Serde[Any] | None
    ) -> Aggregate[Any, Any]:
        """A function over two values as an aggregate."""
        return Reduce(function, self._kept_by(name, value))

    def removable_reducing(
        self,
        name: str,
        add: Callable[[Any, Any], Any],
        remove: Callable[[Any, Any], Any],
        value: Serde[Any] | None,
    ) -> tuple[Aggregate[Any, Any], Serde[Any]]:
        """Functions that add a value and take one out as an aggregate, and how its results are written."""
        serde = self._kept_by(name, value)
        return RemovableReduce(add, remove, serde), serde

    def _kept_by(self, name: str, value: Serde[Any] | None) -> Serde[Any]:
        return value or self._flow.written_value(f"{name!r} keeps values", "reduce(…, value=…)")


def aggregate_groups(
    groups: Groups, name: str, aggregate: Aggregate[Any, Any], on_error: ErrorPolicy
) -> TableFlow:
    """Aggregate each group of a stream's records; see ``Grouped.aggregate``."""
    flow = groups.source(name)
    computed = aggregate.typed(flow.value_type)
    return _aggregated(flow, name, computed, AggregateByKey(name, computed), None, on_error)


def aggregate_table_groups(
    groups: Groups, name: str, aggregate: Aggregate[Any, Any], value: Serde[Any] | None, on_error: ErrorPolicy
) -> TableFlow:
    """Aggregate each group of a table's values; see ``GroupedTable.aggregate``. Raises ``TopologyError``."""
    if not aggregate.removable:
        raise TopologyError(
            f"{name!r}: {aggregate.describe()} cannot take a value out again, which a table needs when a "
            "value changes",
            hint="use count(), total(…), mean(…), variance(…), quantile(…) or custom(…, remove=…)",
        )
    flow = groups.source(name)
    computed = aggregate.typed(flow.value_type)
    return _aggregated(flow, name, computed, AggregateChanges(name, computed), value, on_error)


def _aggregated(
    flow: Flow,
    name: str,
    computed: Aggregate[Any, Any],
    operator: Operator,
    value: Serde[Any] | None,
    on_error: ErrorPolicy,
) -> TableFlow:
    store = StoreDefinition(
        name=name,
        key=flow.key,
        value=TimedAccumulatorSerde(computed),
        purpose="aggregate",
        view=lambda entry: computed.result(entry[0]),
    )
    step = Step(
        name=flow.builder.name(None, name),
        parents=flow.parents,
        operator=operator,
        policy=on_error,
        owns=(store,),
    )
    flow.builder.add(step)
    view = View(name, (("result", computed.result),))
    return TableFlow(flow.builder, step.name, flow.key, value, view, value_type=known(computed.result_type))


class Windows(NamedTuple):
    """Which windows of event time groups are cut into, and when they close."""

    window: Tumbling | Hopping | Session | Sliding
    grace: int
    close_idle_after: int | None


class WindowResults:
    """What comes out of a step with windows: each kind of result is added when it is asked for."""

    def __init__(self, flow: Flow, step: str, heads: WindowHeads, result_type: Any) -> None:
        self._flow = flow
        self._step = step
        self._heads = heads
        self._type: Any = typing.cast("Any", Windowed)[serde_type(flow.key), result_type]
        self._added: dict[str, Flow] = {}

    def updates(self) -> Flow:
        return self._head(self._heads.updates, Json(Windowed), self._type)

    def final(self) -> Flow:
        return self._head(self._heads.final, Json(Windowed), self._type)

    def late(self) -> Flow:
        return self._head(self._heads.late, None, self._flow.value_type)

    def _head(self, name: str, value: Serde[Any] | None, value_type: Any) -> Flow:
        if name not in self._added:
            builder = self._flow.builder
            builder.add(Step(name=name, parents=(self._step,), operator=Merge()))
            # Results are of no type that a serde could read them as, so they are not compared.
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
    groups: Groups, windows: Windows, name: str, aggregate: Aggregate[Any, Any], on_error: ErrorPolicy
) -> WindowResults:
    """Aggregate each group's records of each window; see ``WindowedGrouped.aggregate``."""
    flow = groups.source(name)
    computed = aggregate.typed(flow.value_type)
    builder = flow.builder
    step = builder.name(None, name)
    heads = WindowHeads(f"{step}.updates", f"{step}.final", f"{step}.late")
    operator, stores = _windowing(windows, name, computed, flow.key, heads)
    builder.add(Step(name=step, parents=flow.parents, operator=operator, policy=on_error, owns=stores))
    return WindowResults(flow, step, heads, known(computed.result_type))


def _windowing(
    windows: Windows, name: str, computed: Aggregate[Any, Any], key: Serde[Any], heads: WindowHeads
) -> tuple[Operator, tuple[StoreDefinition, ...]]:
    """The operator for the kind of window, and the stores that it keeps."""
    window, grace, idle = windows.window, windows.grace, windows.close_idle_after
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
        view=computed.result,
        window_end=lambda start, _: window.end(start),
    )
    fixed = WindowedAggregate(
        store=name, window=window, grace=grace, aggregate=computed, heads=heads, close_idle_after=idle
    )
    return fixed, (store,)
