"""How joins are put together: of streams, of a stream with a table, of tables, and by a foreign key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from streams.dsl.flow import (
    Flow,
    TableFlow,
    add_step,
    alike,
    check_keys_alike,
    returned_serde,
    value_of,
)
from streams.errors import TopologyError
from streams.eventtime.windows import JoinWindow
from streams.operators.change import JoinedView, View
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
from streams.operators.join import JoinStreams, JoinTable, WaitingSerde
from streams.operators.stateless import Merge
from streams.operators.table import JoinTables, MergeChanges, StampedSerde
from streams.policy import fail
from streams.serde import Bytes
from streams.serde.round_trip import RoundTrip
from streams.serde.value_type import returned_type
from streams.state.definition import StoreDefinition
from streams.state.unmatched import unmatched_definition, unmatched_name
from streams.topology.graph import Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.operators.change import JoinKind
    from streams.policy import ErrorPolicy
    from streams.serde import Serde


class JoinOptions(NamedTuple):
    """What a join of a stream was given."""

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


class LateRecords(NamedTuple):
    """Where the records come out that came too late for a join of streams."""

    name: str
    steps: tuple[str, ...]
    value: Serde[Any] | None

    def read(self, joined: Flow) -> Flow:
        """Add the step that brings them together."""
        builder = joined.builder
        builder.add(Step(name=builder.name(self.name, self.name), parents=self.steps, operator=Merge()))
        return Flow(builder, (self.name,), joined.key, self.value)


def join_streams(
    flow: Flow, other: Flow, function: Callable[[Any, Any], Any], how: JoinKind, options: JoinOptions
) -> tuple[Flow, LateRecords]:
    """Join two streams within a window of time; see ``Stream.join``."""
    check_keys_alike(flow.key, other.key, options.name or "join")
    name, builder = options.name, flow.builder
    if name is None:
        raise TopologyError(
            "a join of two streams keeps records, in stores that need a name",
            hint="join(…, name=…): it must not change while the state is to be kept",
        )
    window, late = options.join_window(), f"{name}.late"
    written: list[Flow] = []
    serdes: list[Serde[Any]] = []
    given = (("left", "value", options.value, flow), ("right", "other_value", options.other_value, other))
    for side, argument, serde, each in given:
        source = each if serde is None else each.written_by(serde)
        kept = source.written_value(f"{name!r} keeps records", f"join(…, {argument}=…)")
        serdes.append(kept if each.rekeyed else source.read_again(kept))
        if each.rekeyed:
            source = source.repartition(f"{name}-{side}", None, options.on_error)
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
            key=flow.key,
            value=WaitingSerde(operator.value),
            purpose=window.describe(),
            retention=operator.retention,
            changelog_retention=operator.retention,
            view=None,
        )
        for operator in operators
    )
    if how != "inner":
        stores += (unmatched_definition(name, flow.key, operators[0].lasts),)
    steps: list[str] = []
    for operator, each in zip(operators, written, strict=True):
        step = Step(
            name=builder.name(None, operator.own),
            parents=each.parents,
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
    joined = Flow(
        builder,
        (merged.name,),
        flow.key,
        returned_serde(function),
        value_type=returned_type(function),
    )
    return joined, LateRecords(late, tuple(steps), serdes[0] if alike(*serdes) else None)


def join_table(
    flow: Flow, table: TableFlow, function: Callable[[Any, Any], Any], how: JoinKind, options: JoinOptions
) -> Flow:
    """Join each record with what a table has for its key; see ``Stream.join``."""
    check_keys_alike(flow.key, table.key, options.name or "join")
    given = options.of_streams_only()
    if how == "outer" or given:
        raise TopologyError(
            f"{options.name or 'join'}: a stream joins a table without a window, and not as an outer join"
            + (f"; got {', '.join(given)}" if given else ""),
            hint="for a window, join the stream with table.to_stream(); for changes on both sides to "
            "matter, make the stream a table: stream.to_table(name)",
        )
    source = flow if options.value is None else flow.written_by(options.value)
    if flow.rekeyed:
        if options.name is None:
            raise TopologyError(
                "keys may have changed before this join, so that the records have to go to other tasks, "
                "through a topic, and that needs a name",
                hint="join(…, name=…): the topic is called <app>-<name>-repartition",
            )
        source = source.repartition(options.name, None, options.on_error)
    return source.then(
        JoinTable(function, table.view, is_left=how == "left"),
        options.on_error,
        options.name,
        inferred=returned_serde(function),
        value_type=returned_type(function),
        uses=table.view.stores,
    )


def join_tables(
    table: TableFlow,
    other: TableFlow,
    function: Callable[[Any, Any], Any],
    how: JoinKind,
    on_error: ErrorPolicy,
    name: str | None,
) -> TableFlow:
    """Join two tables by their keys; see ``Table.join``."""
    check_keys_alike(table.key, other.key, name or "join")
    builder = table.builder
    step = builder.name(name, "join")
    shared = set(table.view.stores) & set(other.view.stores)
    first = builder.told_first(shared, table.step, other.step)
    left = add_step(
        builder,
        (table.step,),
        JoinTables(function, how, other.view, is_left=True, first=first == table.step),
        f"{step}.left",
        on_error,
        uses=other.view.stores,
    )
    right = add_step(
        builder,
        (other.step,),
        JoinTables(function, how, table.view, is_left=False, first=first is not None and first != table.step),
        f"{step}.right",
        on_error,
        uses=table.view.stores,
    )
    joined = add_step(builder, (left, right), MergeChanges(), step, fail)
    view = JoinedView(table.view, other.view, function, how)
    return TableFlow(
        builder, joined, table.key, returned_serde(function), view, value_type=returned_type(function)
    )


def join_foreign_key(
    table: TableFlow,
    other: TableFlow,
    foreign_key: Callable[[Any], Any],
    function: Callable[[Any, Any], Any],
    *,
    name: str,
    left: bool,
    result: Serde[Any] | None,
    value: Serde[Any] | None,
    other_value: Serde[Any] | None,
    on_error: ErrorPolicy,
) -> TableFlow:
    """Join each value of a table with what another has for its foreign key; see ``Table.join_by``."""
    builder = table.builder
    own = table.written_by(value).written_value(f"{name!r} compares values", "join_by(…, value=…)")
    others = other.written_by(other_value).written_value(
        f"{name!r} sends values of the other table to other tasks", "join_by(…, other_value=…)"
    )
    kept = result or returned_serde(function)
    results: Serde[Any] = Flow(builder, (), table.key, kept).written_value(
        f"{name!r} keeps results", "join_by(…, result=…)"
    )
    subscribe = add_step(
        builder,
        (table.step,),
        Subscribe(foreign_key, other.key, table.key, own, left),
        f"{name}-subscribe",
        on_error,
    )
    sent = Flow(builder, (subscribe,), other.key, SubscriptionSerde(), as_read=True)
    subscriptions = sent.repartition(f"{name}-subscription", None, on_error, needs_value=True)
    subscribers = StoreDefinition(
        name=f"{name}-subscriptions",
        key=SubscriberSerde(),
        value=SubscribedSerde(),
        purpose="subscriptions of a join by foreign key",
        view=None,
    )
    keep = add_step(
        builder,
        subscriptions.parents,
        KeepSubscriptions(subscribers.name, other.view),
        subscribers.name,
        on_error,
        owns=(subscribers,),
        uses=other.view.stores,
    )
    answer = add_step(
        builder,
        (other.step,),
        AnswerSubscribers(subscribers.name, other.key),
        f"{name}-answers",
        on_error,
        uses=(subscribers.name,),
    )
    answer_values = AnswerSerde(other.written_by(other_value).read_again(others))
    # Keys of answers are bytes already, as the subscriptions brought them.
    answered = Flow(builder, (keep, answer), Bytes(), answer_values, as_read=True)
    answers = answered.repartition(
        f"{name}-answer",
        None,
        on_error,
        read_key=table.key,
        needs_key=True,
        needs_value=True,
    )
    store = StoreDefinition(
        name=name, key=table.key, value=StampedSerde(results), purpose="table", view=value_of
    )
    joined = add_step(
        builder,
        answers.parents,
        JoinAnswers(name, foreign_key, other.key, function, table.view, own, RoundTrip(results), left),
        name,
        on_error,
        owns=(store,),
        uses=table.view.stores,
    )
    return TableFlow(builder, joined, table.key, results, View(name), as_read=True)
