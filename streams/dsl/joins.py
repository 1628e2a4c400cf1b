"""Builds the steps of joins: of streams, of a stream with a table, of tables, and by a foreign key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from streams.dsl.flow import (
    Flow,
    TableFlow,
    add_step,
    alike,
    check_keys_alike,
    idle_milliseconds,
    made_value,
    returned_serde,
    value_of,
)
from streams.durations import to_milliseconds
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
from streams.serde import Bytes
from streams.serde.round_trip import RoundTrip
from streams.serde.value_type import returned_type
from streams.state.definition import StoreDefinition
from streams.state.unmatched import unmatched_definition, unmatched_name
from streams.topology.graph import Step

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from streams.operators.change import JoinKind
    from streams.policy import ErrorPolicy
    from streams.serde import Serde


class JoinOptions(NamedTuple):
    """The arguments of a join of a stream."""

    within: timedelta | None
    window: JoinWindow | None
    grace: timedelta | None
    close_idle_after: timedelta | None
    value: Serde[Any] | None
    other_value: Serde[Any] | None
    on_error: ErrorPolicy | None
    store: str | None
    name: str | None

    @property
    def step(self) -> str:
        """The name of the join in errors."""
        return self.name or self.store or "join"

    def of_streams_only(self) -> list[str]:
        """The options passed that apply only to a join of two streams."""
        options = ("within", "window", "grace", "close_idle_after", "other_value")
        given = ((name, getattr(self, name)) for name in options)
        return [f"{name}={getattr(value, 'name', value)}" for name, value in given if value is not None]

    def join_window(self) -> JoinWindow:
        """The window of the join. Raises ``TopologyError``."""
        if self.within is not None and self.window is not None:
            raise TopologyError(
                f"the join {self.step!r}: within={self.within} and window={self.window} both define "
                "the window",
                hint="leave one out: within=minutes(5) is JoinWindow(before=minutes(5), after=minutes(5))",
            )
        if self.within is None and self.window is None:
            raise TopologyError(
                f"the join {self.step!r} of two streams needs within= or window=, got neither",
                hint="either within=minutes(5) or window=JoinWindow(before=…, after=…)",
            )
        if self.within is not None:
            to_milliseconds(self.within, f"the join {self.step!r}: within")
            return JoinWindow(before=self.within, after=self.within)
        if not isinstance(self.window, JoinWindow):
            raise TopologyError(
                f"the join {self.step!r}: window must be a JoinWindow, got {self.window!r:.80}",
                hint="window=JoinWindow(before=minutes(1), after=minutes(5)), or within=minutes(5)",
            )
        return self.window


class LateRecords(NamedTuple):
    """The output for records that were too late for a join of streams."""

    name: str
    steps: tuple[str, ...]
    value: Serde[Any] | None

    def read(self, joined: Flow) -> Flow:
        """Add the step that merges the late records of both sides."""
        builder = joined.builder
        builder.add(
            Step(
                name=builder.name(self.name, self.name),
                parents=self.steps,
                operator=Merge(),
                policy=builder.policy(None),
            )
        )
        return Flow(builder, (self.name,), joined.key, self.value)


def join_streams(
    flow: Flow, other: Flow, function: Callable[[Any, Any], Any], how: JoinKind, options: JoinOptions
) -> tuple[Flow, LateRecords]:
    """Join two streams within a window of time; see ``Stream.join``."""
    check_keys_alike(flow.key, other.key, options.step)
    store, builder = options.store, flow.builder
    if store is None:
        raise TopologyError(
            "a join of two streams buffers records in stores, which need a name",
            hint="join(…, store=…): changing it starts with empty state; name= is only a label",
        )
    label = options.name or store
    window, late = options.join_window(), f"{label}.late"
    grace = 0 if options.grace is None else to_milliseconds(options.grace, "grace")
    idle = idle_milliseconds(options.close_idle_after)
    written: list[Flow] = []
    serdes: list[Serde[Any]] = []
    given = (("left", "value", options.value, flow), ("right", "other_value", options.other_value, other))
    for side, argument, serde, each in given:
        source = each if serde is None else each.written_by(serde)
        kept = source.written_value(f"{store!r} keeps records", f"join(…, {argument}=…)")
        serdes.append(kept if each.rekeyed else source.read_again(kept))
        if each.rekeyed:
            source = source.repartition(f"{store}-{side}", None, options.on_error, name=f"{label}-{side}")
        written.append(source)
    names = f"{store}-left", f"{store}-right"
    operators = [
        JoinStreams(
            function=function,
            how=how,
            window=window,
            grace=grace,
            is_left=own == 0,
            own=names[own],
            other=names[1 - own],
            unmatched=None if how == "inner" else unmatched_name(store),
            value=serdes[own],
            other_value=serdes[1 - own],
            closes=own == 1,
            joined=label,
            late=late,
            close_idle_after=idle,
        )
        for own in (0, 1)
    ]
    stores = tuple(
        StoreDefinition(
            name=operator.own,
            key=flow.key,
            value=WaitingSerde(operator.value, lineage=builder.lineage),
            purpose=window.describe(),
            retention=operator.retention,
            changelog_retention=operator.retention,
            view=None,
        )
        for operator in operators
    )
    if how != "inner":
        stores += (unmatched_definition(store, flow.key, operators[0].lasts),)
    steps: list[str] = []
    for operator, each, side in zip(operators, written, ("left", "right"), strict=True):
        step = Step(
            name=builder.name(None, f"{label}-{side}"),
            parents=each.parents,
            operator=operator,
            policy=builder.policy(options.on_error),
            # Of two steps that share stores, the first owns them.
            owns=() if steps else stores,
            uses=tuple(store.name for store in stores) if steps else (),
        )
        builder.add(step)
        steps.append(step.name)
    merged = Step(
        name=builder.name(label, label),
        parents=tuple(steps),
        operator=Merge(),
        policy=builder.policy(options.on_error),
    )
    builder.add(merged)
    value, kind = made_value(function, untyped=flow.untyped and other.untyped)
    joined = Flow(builder, (merged.name,), flow.key, value, value_type=kind)
    return joined, LateRecords(late, tuple(steps), serdes[0] if alike(*serdes) else None)


def join_table(
    flow: Flow, table: TableFlow, function: Callable[[Any, Any], Any], how: JoinKind, options: JoinOptions
) -> Flow:
    """Join each record with what a table has for its key; see ``Stream.join``."""
    check_keys_alike(flow.key, table.key, options.step)
    given = options.of_streams_only()
    if how == "outer" or given:
        raise TopologyError(
            f"{options.step}: a stream joins a table without a window, and not as an outer join"
            + (f"; got {', '.join(given)}" if given else ""),
            hint="for a window, join the stream with table.to_stream(); to update the result on changes of "
            "either side, make the stream a table: stream.to_table(store)",
        )
    source = flow if options.value is None else flow.written_by(options.value)
    if flow.rekeyed:
        if options.store is None:
            raise TopologyError(
                "keys may have changed before this join, so its records go through a repartition topic, "
                "which needs a name",
                hint="join(…, store=…): the topic is named <app>-<store>-repartition; name= is only a label",
            )
        source = source.repartition(options.store, None, options.on_error, name=options.name)
    return source.then(
        JoinTable(function, table.view, is_left=how == "left"),
        options.on_error,
        options.name or options.store,
        inferred=returned_serde(function),
        value_type=returned_type(function),
        untyped=table.untyped,
        uses=table.view.stores,
    )


def join_tables(
    table: TableFlow,
    other: TableFlow,
    function: Callable[[Any, Any], Any],
    how: JoinKind,
    on_error: ErrorPolicy | None,
    name: str | None,
) -> TableFlow:
    """Join two tables by their keys; see ``Table.join``."""
    check_keys_alike(table.key, other.key, name or "join")
    builder = table.builder
    step = builder.name(name, "join")
    shared = set(table.view.stores) & set(other.view.stores)
    first = builder.receives_first(shared, table.step, other.step)
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
    joined = add_step(builder, (left, right), MergeChanges(), step, on_error)
    view = JoinedView(table.view, other.view, function, how)
    value, kind = made_value(function, untyped=table.untyped and other.untyped)
    return TableFlow(builder, joined, table.key, value, view, value_type=kind)


def join_foreign_key(
    table: TableFlow,
    other: TableFlow,
    foreign_key: Callable[[Any], Any],
    function: Callable[[Any, Any], Any],
    *,
    store: str,
    name: str | None,
    left: bool,
    result: Serde[Any] | None,
    value: Serde[Any] | None,
    other_value: Serde[Any] | None,
    on_error: ErrorPolicy | None,
) -> TableFlow:
    """Join each value with what another table has for its foreign key; see ``Table.join_foreign_key``."""
    builder, label = table.builder, name or store
    own = table.written_by(value).written_value(f"{store!r} compares values", "join_foreign_key(…, value=…)")
    others = other.written_by(other_value).written_value(
        f"{store!r} sends values of the other table to other tasks", "join_foreign_key(…, other_value=…)"
    )
    kept = result or made_value(function, untyped=table.untyped and other.untyped)[0]
    results: Serde[Any] = Flow(builder, (), table.key, kept).written_value(
        f"{store!r} keeps results", "join_foreign_key(…, result=…)"
    )
    subscribe = add_step(
        builder,
        (table.step,),
        Subscribe(foreign_key, other.key, table.key, own, left),
        f"{label}-subscribe",
        on_error,
    )
    sent = Flow(builder, (subscribe,), other.key, SubscriptionSerde(), as_read=True)
    subscriptions = sent.repartition(
        f"{store}-subscription", None, on_error, name=f"{label}-subscription", needs_value=True
    )
    subscribers = StoreDefinition(
        name=f"{store}-subscriptions",
        key=SubscriberSerde(),
        value=SubscribedSerde(),
        purpose="subscriptions of a join by foreign key",
        view=None,
    )
    keep = add_step(
        builder,
        subscriptions.parents,
        KeepSubscriptions(subscribers.name, other.view),
        f"{label}-subscriptions",
        on_error,
        owns=(subscribers,),
        uses=other.view.stores,
    )
    answer = add_step(
        builder,
        (other.step,),
        AnswerSubscribers(subscribers.name, other.key),
        f"{label}-answers",
        on_error,
        uses=(subscribers.name,),
    )
    answer_values = AnswerSerde(other.written_by(other_value).read_again(others))
    # The keys of answers are still encoded, as they were in the subscriptions.
    answered = Flow(builder, (keep, answer), Bytes(), answer_values, as_read=True)
    answers = answered.repartition(
        f"{store}-answer",
        None,
        on_error,
        name=f"{label}-answer",
        read_key=table.key,
        needs_key=True,
        needs_value=True,
    )
    definition = StoreDefinition(
        name=store, key=table.key, value=StampedSerde(results), purpose="table", view=value_of
    )
    joined = add_step(
        builder,
        answers.parents,
        JoinAnswers(store, foreign_key, other.key, function, table.view, own, RoundTrip(results), left),
        builder.name(name, store),
        on_error,
        owns=(definition,),
        uses=table.view.stores,
    )
    return TableFlow(builder, joined, table.key, results, View(store), as_read=True)
