"""What lies between two steps of a program, as data: records on their way, and tables."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from streams.errors import TopologyError
from streams.serde import Json, Serde, Text
from streams.serde.round_trip import RoundTrip
from streams.serde.value_type import member_types, returned_type, serde_type
from streams.topology.graph import Repartition, Sink, Source, Step, function_name

if TYPE_CHECKING:
    from collections.abc import Callable

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

    def written_by(self, value: Serde[Any]) -> Flow:
        """The same records with another serde for their values."""
        return Flow(self.builder, self.parents, self.key, value, self.rekeyed)

    def read_again(self, value: Serde[Any]) -> Serde[Any]:
        """``value`` for records that will be read again: it refuses what would come back as another value.

        Values that are as a serde has read them are not looked at.
        """
        return value if self.as_read and value is self.value else RoundTrip(value)

    def written_value(self, purpose: str, where: str) -> Serde[Any]:
        """How values are written. Raises ``TopologyError`` where that is not known."""
        if self.value is None:
            raise TopologyError(
                f"{purpose}, and the type of their values is not known",
                hint=f"say how to write them, e.g. value=Json(Type), in {where}; "
                "or annotate what the function that makes them returns",
            )
        return self.value

    def then(
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
    ) -> Flow:
        """What comes out of a step that is added."""
        step = Step(
            name=self.builder.name(name, generated_name(operator)),
            parents=self.parents,
            operator=operator,
            policy=policy,
            owns=owns,
            uses=uses,
        )
        self.builder.add(step)
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
        name: str,
        partitions: int | None,
        on_error: ErrorPolicy,
        *,
        read_key: Serde[Any] | None = None,
        needs_key: bool = False,
        needs_value: bool = False,
    ) -> Flow:
        """The records behind an internal topic, so that equal keys meet in one task.

        ``read_key`` says how keys are read again, if not as they are written. ``needs_key`` and
        ``needs_value`` say that there are never null keys, or values.
        """
        topic = f"{self.builder.application}-{name}-repartition"
        value = self.written_value(
            f"the records of {name!r} change tasks, through {topic}",
            "group_by(…, value=…), repartition(…, value=…)",
        )
        self.builder.add(
            Sink(
                name=self.builder.name(None, f"{name}-to-repartition"),
                parents=self.parents,
                topic=topic,
                key=self.key,
                value=self.read_again(value),
                policy=on_error,
                repartition=Repartition(partitions),
            )
        )
        source = Source(
            name=self.builder.name(None, f"{name}-repartitioned"),
            topics=(topic,),
            key=read_key or self.key,
            value=value,
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

    def written_by(self, value: Serde[Any] | None) -> Flow:
        """The changes with another serde for their values, where one is given; for what it says of them."""
        written = value or self.value
        as_read = self.as_read and written is self.value
        return Flow(self.builder, (), self.key, written, as_read=as_read)

    def then(
        self,
        operator: Operator,
        view: AnyView,
        value: Serde[Any] | None,
        on_error: ErrorPolicy,
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
    on_error: ErrorPolicy,
    *,
    owns: tuple[StoreDefinition, ...] = (),
    uses: tuple[str, ...] = (),
) -> str:
    """Add a step with a generated name, which is returned."""
    step = Step(
        name=builder.name(None, name),
        parents=parents,
        operator=operator,
        policy=on_error,
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
