"""The connections between the steps of a program, as data: streams of records, and tables."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from streams.durations import to_milliseconds
from streams.errors import TopologyError
from streams.serde import Bytes, Json, Serde, Text
from streams.serde.round_trip import RoundTrip
from streams.serde.value_type import member_types, returned_type, serde_type
from streams.topology.graph import Repartition, SinkNode, SourceNode, Step, function_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from streams.dsl.builder import TopologyBuilder
    from streams.operators import Operator
    from streams.operators.change import AnyView
    from streams.policy import ErrorPolicy
    from streams.state.definition import StoreDefinition


@dataclass(frozen=True, slots=True)
class Flow:
    """A stream of records: the steps that forward them, their serdes and types."""

    builder: TopologyBuilder
    parents: tuple[str, ...]
    key: Serde[Any]
    """How keys are written."""
    value: Serde[Any] | None
    """How values are written, where that is known."""
    rekeyed: bool = False
    """Whether keys may have changed since the records were partitioned by key."""
    value_type: Any = Any
    """The type of values, ``Any`` where it is not known; aggregates store values as this type."""
    as_read: bool = False
    """Whether values are unchanged since ``value`` deserialized them."""

    def __post_init__(self) -> None:
        if self.value_type is Any:
            object.__setattr__(self, "value_type", serde_type(self.value))

    @property
    def untyped(self) -> bool:
        """Whether values are JSON without a type, so that results of functions default to that too."""
        return is_untyped(self.value, self.value_type)

    def written_by(self, value: Serde[Any]) -> Flow:
        """The same records with another serde for values. Raises as ``check_written``."""
        check_written(", ".join(self.parents), value, self.value_type)
        return Flow(self.builder, self.parents, self.key, value, self.rekeyed)

    def read_again(self, value: Serde[Any]) -> Serde[Any]:
        """``value`` for records that are read again: it rejects values that a round trip would change.

        Values that are unchanged since the serde read them are not checked.
        """
        return value if self.as_read and value is self.value else RoundTrip(value)

    def written_value(self, purpose: str, where: str) -> Serde[Any]:
        """The serde of the values. Raises ``TopologyError`` where it is not known."""
        value = self.value or plain_json(self.value_type)
        if value is None:
            raise TopologyError(
                f"{purpose}, but the type of the values is not known",
                hint=f"pass their serde, e.g. value=Json(Type), to {where}; "
                "or annotate the return type of the function that makes them",
            )
        return value

    def then(
        self,
        operator: Operator,
        policy: ErrorPolicy | None,
        name: str | None,
        *,
        key: Serde[Any] | None = None,
        value: Serde[Any] | None = None,
        inferred: Serde[Any] | None = None,
        value_type: Any = Any,
        untyped: bool = True,
        rekeyed: bool = False,
        owns: tuple[StoreDefinition, ...] = (),
        uses: tuple[str, ...] = (),
    ) -> Flow:
        """Add a step, and return its output.

        For a function without a known return type, values are JSON without a type if its arguments are. With
        ``untyped`` false, this default does not apply: the function has other, typed arguments too.
        """
        step = Step(
            name=self.builder.name(name, generated_name(operator)),
            parents=self.parents,
            operator=operator,
            policy=self.builder.policy(policy),
            owns=owns,
            uses=uses,
        )
        self.builder.add(step)
        if untyped and self.untyped and value_type is Any:
            inferred = inferred or Json()
        return Flow(
            self.builder,
            (step.name,),
            key or self.key,
            value or inferred,
            rekeyed=rekeyed or self.rekeyed,
            value_type=value_type,
            as_read=self.as_read and value is self.value,
        )

    def repartition(
        self,
        store: str,
        partitions: int | None,
        on_error: ErrorPolicy | None,
        *,
        name: str | None = None,
        read_key: Serde[Any] | None = None,
        needs_key: bool = False,
        needs_value: bool = False,
    ) -> Flow:
        """Send the records through an internal topic, so that one task has all records of a key.

        The topic is named by ``store`` alone, its steps by ``name`` if there is one. ``read_key`` is the
        serde that reads the keys, if it is not the one that writes them. ``needs_key`` and ``needs_value``
        declare that keys, or values, are never null.
        """
        topic, label = f"{self.builder.application}-{store}-repartition", name or store
        value = self.written_value(
            f"the records of {store!r} go through the repartition topic {topic}",
            "group_by(…, value=…), repartition(…, value=…)",
        )
        self.builder.add(
            SinkNode(
                name=self.builder.name(None, f"{label}-to-repartition"),
                parents=self.parents,
                topic=topic,
                key=self.key,
                value=self.read_again(value),
                policy=self.builder.policy(on_error),
                repartition=Repartition(partitions),
            )
        )
        source = SourceNode(
            name=self.builder.name(None, f"{label}-repartitioned"),
            topics=(topic,),
            key=read_key or self.key,
            value=value,
            policy=self.builder.policy(None),
            tombstones=True,
            needs_key=needs_key,
            needs_value=needs_value,
            internal=True,
        )
        self.builder.add(source)
        return Flow(self.builder, (source.name,), source.key, value, as_read=True)


@dataclass(frozen=True, slots=True)
class TableFlow:
    """A table: the step that forwards its changes, and the view that reads the value of a key."""

    builder: TopologyBuilder
    step: str
    key: Serde[Any]
    value: Serde[Any] | None
    view: AnyView
    """How the value of a key is found."""
    value_type: Any = Any
    as_read: bool = False

    def __post_init__(self) -> None:
        if self.value_type is Any:
            object.__setattr__(self, "value_type", serde_type(self.value))

    @property
    def untyped(self) -> bool:
        """As ``Flow.untyped``."""
        return is_untyped(self.value, self.value_type)

    def written_by(self, value: Serde[Any] | None) -> Flow:
        """The changes, with another serde for their values if one is passed."""
        written = value or self.value or plain_json(self.value_type)
        as_read = self.as_read and written is self.value
        return Flow(self.builder, (), self.key, written, as_read=as_read)

    def then(
        self,
        operator: Operator,
        view: AnyView,
        value: Serde[Any] | None,
        on_error: ErrorPolicy | None,
        name: str | None,
        value_type: Any,
    ) -> TableFlow:
        """Add a step, and return the table that is its output."""
        called = self.builder.name(name, generated_name(operator))
        step = add_step(self.builder, (self.step,), operator, called, on_error)
        as_read = self.as_read and value is self.value
        return TableFlow(self.builder, step, self.key, value, view, value_type=value_type, as_read=as_read)


def add_step(
    builder: TopologyBuilder,
    parents: tuple[str, ...],
    operator: Operator,
    name: str,
    on_error: ErrorPolicy | None,
    *,
    owns: tuple[StoreDefinition, ...] = (),
    uses: tuple[str, ...] = (),
) -> str:
    """Add a step under a generated name; return the name."""
    step = Step(
        name=builder.name(None, name),
        parents=parents,
        operator=operator,
        policy=builder.policy(on_error),
        owns=owns,
        uses=uses,
    )
    builder.add(step)
    return step.name


def generated_name(operator: Operator) -> str:
    """The default name of a step: what it does, and the function's name if it has one."""
    called = function_name(operator.code)
    plain = operator.code is None or called == "lambda"
    return operator.kind if plain else f"{operator.kind}-{called}"


def value_of(entry: Any) -> Any:
    """The value of a pair of a value and its event time."""
    return entry[0]


def idle_milliseconds(close_idle_after: timedelta | None) -> int | None:
    """``close_idle_after`` in milliseconds, or ``None``. Raises ``TopologyError``."""
    return (
        None if close_idle_after is None else to_milliseconds(close_idle_after, "close_idle_after", least=1)
    )


def check_store_named(method: str, store: str | None, name: str | None) -> None:
    """Raise ``TopologyError`` if a step that creates a repartition topic has a label, but no ``store``.

    A label must not become a topic's name; and earlier versions named the topic by ``name=``.
    """
    if name is not None and store is None:
        raise TopologyError(
            f"{method}(…, name={name!r}) creates a repartition topic, and name= is only the step's label",
            hint=f"name the topic with store=: {method}(…, store={name!r}) for <app>-{name}-repartition",
        )


def alike(one: Serde[Any] | None, other: Serde[Any] | None) -> bool:
    """Whether two serdes write the same bytes: they are one object, or have the same class and name."""
    if one is None or other is None:
        return one is other
    return one is other or (type(one) is type(other) and one.name == other.name)


def check_keys_alike(one: Serde[Any], other: Serde[Any], name: str) -> None:
    """Raise ``TopologyError`` when keys are written differently on the two sides of a join or merge."""
    if not alike(one, other):
        raise TopologyError(
            f"{name}: keys are {one.name} on one side and {other.name} on the other: none would match",
            hint="read both sides with the same key=, or re-key one of them: key_by(…, key=…)",
        )


def is_untyped(value: Serde[Any] | None, kind: Any) -> bool:
    """Whether values are JSON without a type, by their serde or by their own type."""
    if value is None:
        return kind is not Any and _is_plain(kind)
    return isinstance(value, Json) and _is_plain(value.value_type)


def plain_json(kind: Any) -> Serde[Any] | None:
    """JSON without a type, if a round trip through it keeps values of the type ``kind`` unchanged."""
    return Json() if kind is not Any and _is_plain(kind) else None


def _is_plain(kind: Any) -> bool:
    if kind in _PLAIN or kind is Any:
        return True
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return all(map(_is_plain, arguments))
    if origin is dict:
        return not arguments or ((arguments[0] is str or arguments[0] is Any) and _is_plain(arguments[1]))
    members = member_types(kind)
    return len(members) > 1 and all(map(_is_plain, members))


_PLAIN = (dict, list, str, int, float, bool, type(None))


def check_written(step: str, serde: Serde[Any], kind: Any) -> None:
    """Raise ``TopologyError`` where a serde of text, bytes or one class cannot write values of a type."""
    one_class = not isinstance(serde, Text | Bytes)
    wanted = getattr(serde, "record_type", None) if one_class else serde_type(serde)
    if not isinstance(wanted, type):
        return
    members = [typing.get_origin(member) or member for member in member_types(kind)]
    classes = [member for member in members if isinstance(member, type) and member not in {Any, type(None)}]
    others = any(member is Any or not isinstance(member, type) for member in members)
    if classes and not others and all(_unrelated(member, wanted) for member in classes):
        made = getattr(kind, "__name__", kind)
        raise TopologyError(
            f"step {step!r}: values are of type {made}, but {serde.name} writes only {wanted.__name__}",
            hint=f"use a serde for them, e.g. Json({made}), or map them to {wanted.__name__} first",
        )


def _unrelated(one: type, other: type) -> bool:
    return not issubclass(one, other) and not issubclass(other, one)


def text_keys(step: str, function: Callable[[Any], Any]) -> Serde[Any]:
    """The default serde of keys, text. Raises ``TopologyError`` for a function that returns other keys."""
    kind = returned_type(function)
    members = member_types(kind)
    if kind is not Any and not all(
        member is type(None) or (isinstance(member, type) and issubclass(member, str)) for member in members
    ):
        described = getattr(kind, "__name__", kind)
        raise TopologyError(
            f"{step}: {function_name(function)} makes keys of type {described}, but keys are written as text "
            "by default",
            hint=f"pass a serde for the keys: key=Json({described})",
        )
    return Text()


def made_value(function: Callable[..., Any], *, untyped: bool) -> tuple[Serde[Any] | None, Any]:
    """The serde and type of a function's results; ``untyped`` if its arguments are JSON without a type."""
    kind = returned_type(function)
    return returned_serde(function) or (Json() if untyped and kind is Any else None), kind


def returned_serde(function: Callable[..., Any]) -> Serde[Any] | None:
    """JSON of the function's annotated return type, if that is a class with fields."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except Exception:  # noqa: BLE001 - annotations may name anything; without one the type is just not known
        return None
    return fields_serde(returned)


def fields_serde(kind: Any) -> Serde[Any] | None:
    """JSON of a type, if that is a class with fields."""
    fields = isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind))
    return Json(kind) if fields else None
