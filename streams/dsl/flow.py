"""What lies between two steps of a program, as data: records on their way, and tables."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from streams.durations import to_milliseconds
from streams.errors import TopologyError
from streams.serde import Avro, Bytes, Json, Serde, Text
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
    """Records on their way: the steps that they come out of, and what is known of them."""

    builder: TopologyBuilder
    parents: tuple[str, ...]
    key: Serde[Any]
    """How keys are written."""
    value: Serde[Any] | None
    """How values are written, where that is known."""
    rekeyed: bool = False
    """Whether keys may have changed since the records were put into partitions by them."""
    value_type: Any = Any
    """The type of values, ``Any`` where it is not known: aggregates keep values as it says."""
    as_read: bool = False
    """Whether values are as ``value`` has read them."""

    def __post_init__(self) -> None:
        if self.value_type is Any:
            object.__setattr__(self, "value_type", serde_type(self.value))

    @property
    def untyped(self) -> bool:
        """Whether values are JSON of no type, so that what functions make of them is taken for that too."""
        return is_untyped(self.value, self.value_type)

    def written_by(self, value: Serde[Any]) -> Flow:
        """The same records with another serde for values. Raises ``TopologyError``, as ``check_written``."""
        check_written(", ".join(self.parents), value, self.value_type)
        return Flow(self.builder, self.parents, self.key, value, self.rekeyed)

    def read_again(self, value: Serde[Any]) -> Serde[Any]:
        """``value`` for records that will be read again: it refuses what would come back as another value.

        Values that are as a serde has read them are not looked at.
        """
        return value if self.as_read and value is self.value else RoundTrip(value)

    def written_value(self, purpose: str, where: str) -> Serde[Any]:
        """How values are written. Raises ``TopologyError`` where that is not known."""
        value = self.value or plain_json(self.value_type)
        if value is None:
            raise TopologyError(
                f"{purpose}, and the type of their values is not known",
                hint=f"say how to write them, e.g. value=Json(Type), in {where}; "
                "or annotate what the function that makes them returns",
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
        """What comes out of a step that is added.

        Of ``untyped`` values, what a function of unknown type makes is taken for plain JSON too: not where it
        is made of others besides, which have a type.
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
        """The records behind an internal topic, so that equal keys meet in one task.

        The topic is named by ``store`` alone, its steps by ``name`` if there is one. ``read_key`` says how
        keys are read again, if not as they are written. ``needs_key`` and ``needs_value`` say that there are
        never null keys, or values.
        """
        topic, label = f"{self.builder.application}-{store}-repartition", name or store
        value = self.written_value(
            f"the records of {store!r} change tasks, through {topic}",
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
    """A table: the step that its changes come out of, and where the value of a key is found."""

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
        """The changes with another serde for their values, where one is given; for what it says of them."""
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
        """The table that comes out of a step that is added."""
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
    """Add a step with a generated name, which is returned."""
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
    """What a step is called unless the program says: what it does, and the function's name if it has one."""
    called = function_name(operator.code)
    plain = operator.code is None or called == "lambda"
    return operator.kind if plain else f"{operator.kind}-{called}"


def value_of(entry: Any) -> Any:
    """The value of an entry that is stamped with its event time."""
    return entry[0]


def idle_milliseconds(close_idle_after: timedelta | None) -> int | None:
    """After how long without records stream time follows the wall clock. Raises ``TopologyError``."""
    return (
        None if close_idle_after is None else to_milliseconds(close_idle_after, "close_idle_after", least=1)
    )


def check_store_named(method: str, store: str | None, name: str | None) -> None:
    """Raise ``TopologyError`` where a step that makes a repartition topic has a label, and the topic no name.

    What a label says must not reach a topic's name; and earlier versions named the topic by ``name=``.
    """
    if name is not None and store is None:
        raise TopologyError(
            f"{method}(…, name={name!r}) makes a repartition topic, and name= is only the step's label",
            hint=f"say what the topic is called: {method}(…, store={name!r}) for <app>-{name}-repartition",
        )


def alike(one: Serde[Any] | None, other: Serde[Any] | None) -> bool:
    """Whether two serdes write the same: one object, or two of one kind and name."""
    if one is None or other is None:
        return one is other
    return one is other or (type(one) is type(other) and one.name == other.name)


def check_keys_alike(one: Serde[Any], other: Serde[Any], name: str) -> None:
    """Raise ``TopologyError`` when keys are written differently on the two sides of a join or merge."""
    if not alike(one, other):
        raise TopologyError(
            f"{name}: keys are {one.name} on one side and {other.name} on the other: none would be equal",
            hint="read both with the same key=, or give one of them new keys: key_by(…, key=…)",
        )


def is_untyped(value: Serde[Any] | None, kind: Any) -> bool:
    """Whether values are plain JSON: read so, by a serde without a type, or of a type that says so."""
    if value is None:
        return kind is not Any and _is_plain(kind)
    return isinstance(value, Json) and _is_plain(value.value_type)


def plain_json(kind: Any) -> Serde[Any] | None:
    """JSON of no type where that keeps values of the type ``kind`` as they are."""
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
    wanted = getattr(serde, "record_type", None) if isinstance(serde, Avro) else serde_type(serde)
    if not isinstance(serde, Text | Bytes | Avro) or not isinstance(wanted, type):
        return
    members = [typing.get_origin(member) or member for member in member_types(kind)]
    classes = [member for member in members if isinstance(member, type) and member not in {Any, type(None)}]
    others = any(member is Any or not isinstance(member, type) for member in members)
    if classes and not others and all(_unrelated(member, wanted) for member in classes):
        made = getattr(kind, "__name__", kind)
        raise TopologyError(
            f"step {step!r}: values are of type {made}, and {serde.name} writes {wanted.__name__} alone",
            hint=f"choose a serde for them, e.g. Json({made}), or map them to {wanted.__name__} first",
        )


def _unrelated(one: type, other: type) -> bool:
    return not issubclass(one, other) and not issubclass(other, one)


def text_keys(step: str, function: Callable[[Any], Any]) -> Serde[Any]:
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


def made_value(function: Callable[..., Any], *, untyped: bool) -> tuple[Serde[Any] | None, Any]:
    """How what a function makes, maybe of ``untyped`` values, is written, and of what type it is."""
    kind = returned_type(function)
    return returned_serde(function) or (Json() if untyped and kind is Any else None), kind


def returned_serde(function: Callable[..., Any]) -> Serde[Any] | None:
    """JSON of the type that the function is annotated to return, where that is a class with fields."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except Exception:  # noqa: BLE001 - annotations may name anything; without one the type is just not known
        return None
    return fields_serde(returned)


def fields_serde(kind: Any) -> Serde[Any] | None:
    """JSON of a type, where that is a class with fields."""
    fields = isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind))
    return Json(kind) if fields else None
