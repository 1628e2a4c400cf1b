"""Aggregates by the program's own functions."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, overload

from streams.aggregates.columns import described_parameters, entries_of
from streams.aggregates.contract import BaseAggregate
from streams.aggregates.values import codec_for, schema_of_values
from streams.coroutines.awaitables import is_asynchronous, location, settled
from streams.errors import TopologyError
from streams.serde.value_type import known, returned_type, traits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.aggregates.contract import A, Aggregate, Of, Place, R, T, Type, V
    from streams.aggregates.value_codec import ValueCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class Custom(BaseAggregate):
    """See ``custom``."""

    start: Callable[[], Any]
    step: Callable[[Any, Any], Any]
    unite: Callable[[Any, Any], Any] | None
    take_back: Callable[[Any, Any], Any] | None
    finish: Callable[[Any], Any] | None
    name: str
    of: Of
    type: Type[Any] | None

    _codec: ValueCodec = field(init=False, repr=False, compare=False)
    _kept_as: Any = field(init=False, repr=False, compare=False)
    """The type of accumulators that are not self-describing."""

    def __post_init__(self) -> None:
        if is_asynchronous(self.start):
            raise TopologyError(
                f"{self.describe()}: initial is {getattr(self.start, '__name__', self.start)} "
                f"({location(self.start)}), which is async: its result would not be awaited",
                hint="await it in a separate step before: map_async",
            )
        kind = self.type
        if kind is None:
            kind = next(filter(_needs_type, (returned_type(self.start), returned_type(self.step))), None)
        codec = codec_for(self.describe(), kind)
        try:
            begins = settled(self.start())
            if kind is None and _needs_type(known(builtins.type(begins))):
                kind = builtins.type(begins)
                codec = codec_for(self.describe(), kind)
            codec.keep(begins)
        except Exception as error:
            raise TopologyError(
                f"{self.describe()}: the accumulator that initial returns cannot be stored: "
                f"{builtins.type(error).__name__}: {error}",
                hint=f"accumulators are {_STORABLE}; give the type: custom(…, type=…)",
            ) from error
        object.__setattr__(self, "_codec", codec)
        object.__setattr__(self, "_kept_as", kind)

    @property
    def record_wise(self) -> bool:
        return True

    @property
    def removable(self) -> bool:
        return self.take_back is not None

    @property
    def mergeable(self) -> bool:
        return self.unite is not None

    @property
    def schema(self) -> Any:
        return schema_of_values(self.describe(), self._kept_as)

    @property
    def result_type(self) -> Any:
        if self.finish is not None:
            return returned_type(self.finish)
        return Any if self._kept_as is None else self._kept_as

    def describe(self) -> str:
        return f"custom({described_parameters(self.of, f'name={self.name!r}')})"

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return entries_of(self.of, values)

    def initial(self) -> Any:
        return self._keep(self.start())

    def add(self, accumulator: Any, column: Sequence[Any], places: Sequence[Place] | None = None) -> Any:  # noqa: ARG002 - the protocol's
        return self._keep(reduce(self.step, column, self._codec.restore(accumulator)))

    def remove(self, accumulator: Any, column: Sequence[Any]) -> Any:
        if self.take_back is None:
            raise TypeError(f"{self.describe()} has no function remove")
        return self._keep(reduce(self.take_back, column, self._codec.restore(accumulator)))

    def merge(self, first: Any, second: Any) -> Any:
        if self.unite is None:
            raise TypeError(f"{self.describe()} has no function merge")
        return self._keep(self.unite(self._codec.restore(first), self._codec.restore(second)))

    def result(self, accumulator: Any) -> Any:
        value = self._codec.restore(accumulator)
        return value if self.finish is None else settled(self.finish(value))

    def pack(self, accumulator: Any) -> Any:
        return self._codec.pack(accumulator)

    def unpack(self, packed: Any) -> Any:
        return self._codec.unpack(packed)

    def _keep(self, accumulator: Any) -> Any:
        # Encoded now, not at the commit, as the failing record is known here.
        try:
            return self._codec.keep(settled(accumulator))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{self.describe()} cannot store its accumulator: {error}; accumulators are {_STORABLE}: "
                "give the type, custom(…, type=…)"
            ) from None


_STORABLE = (
    "numbers, text, bytes, times, Decimal, UUID and collections of these, or objects of a class that msgspec "
    "supports (msgspec.Struct, dataclass, NamedTuple, enum)"
)


def _needs_type(kind: Any) -> bool:
    """Whether values of a type can be read back unchanged only if the type is known."""
    return kind is not Any and bool(traits(kind).classes)


@overload
def custom(
    initial: Callable[[], A],
    add: Callable[[A, V], A],
    *,
    name: str,
    of: None = None,
    merge: Callable[[A, A], A] | None = None,
    remove: Callable[[A, V], A] | None = None,
    result: None = None,
    type: Type[A] | None = None,
) -> Aggregate[V, A]: ...
@overload
def custom(
    initial: Callable[[], A],
    add: Callable[[A, V], A],
    *,
    name: str,
    of: None = None,
    merge: Callable[[A, A], A] | None = None,
    remove: Callable[[A, V], A] | None = None,
    result: Callable[[A], R],
    type: Type[A] | None = None,
) -> Aggregate[V, R]: ...
@overload
def custom(
    initial: Callable[[], A],
    add: Callable[[A, Any], A],
    *,
    name: str,
    of: str,
    merge: Callable[[A, A], A] | None = None,
    remove: Callable[[A, Any], A] | None = None,
    result: None = None,
    type: Type[A] | None = None,
) -> Aggregate[Any, A]: ...
@overload
def custom(
    initial: Callable[[], A],
    add: Callable[[A, Any], A],
    *,
    name: str,
    of: str,
    merge: Callable[[A, A], A] | None = None,
    remove: Callable[[A, Any], A] | None = None,
    result: Callable[[A], R],
    type: Type[A] | None = None,
) -> Aggregate[Any, R]: ...
@overload
def custom(
    initial: Callable[[], A],
    add: Callable[[A, T], A],
    *,
    name: str,
    of: Callable[[V], T],
    merge: Callable[[A, A], A] | None = None,
    remove: Callable[[A, T], A] | None = None,
    result: None = None,
    type: Type[A] | None = None,
) -> Aggregate[V, A]: ...
@overload
def custom(
    initial: Callable[[], A],
    add: Callable[[A, T], A],
    *,
    name: str,
    of: Callable[[V], T],
    merge: Callable[[A, A], A] | None = None,
    remove: Callable[[A, T], A] | None = None,
    result: Callable[[A], R],
    type: Type[A] | None = None,
) -> Aggregate[V, R]: ...
def custom(
    initial: Callable[[], Any],
    add: Callable[[Any, Any], Any],
    *,
    name: str,
    of: Of = None,
    merge: Callable[[Any, Any], Any] | None = None,
    remove: Callable[[Any, Any], Any] | None = None,
    result: Callable[[Any], Any] | None = None,
    type: Type[Any] | None = None,  # noqa: A002 - as in the serdes
) -> Aggregate[Any, Any]:
    """An aggregation by the program's own functions.

    ``initial`` returns the accumulator of no events; ``add`` returns an accumulator with one more value,
    values in the order in which they are processed. ``remove`` does the opposite; ``merge`` combines two, the
    earlier one first; ``result`` converts the accumulator to the result, which is the accumulator itself
    without it. Sessions and sliding windows need ``merge``, aggregations of tables need ``remove``. Each call
    gets its own accumulator, which it may change and return.

    Accumulators are stored and read back unchanged: numbers, text, bytes, times, ``Decimal``, ``UUID`` and
    collections of these without a type, objects of a class (``msgspec.Struct``, dataclass, ``NamedTuple``,
    enum) with ``type``, which defaults to the type of ``initial``'s value or its annotation. An accumulator
    that could not be read back unchanged is refused, and the record gets the error policy. ``name``
    identifies the meaning of the accumulators: change it when stored accumulators no longer fit.

    Raises ``TopologyError`` for an argument that must be a function and is none.
    """
    functions = {"initial": initial, "add": add, "merge": merge, "remove": remove, "result": result}
    for argument, function in functions.items():
        if function is None and argument not in {"initial", "add"}:
            continue
        if not callable(function):
            raise TopologyError(
                f"custom(name={name!r}) needs a function as {argument}, got {function!r:.80}",
                hint=f"write lambda: {function!r:.80}" if argument == "initial" else "give a function",
            )
    return Custom(
        start=initial,
        step=add,
        unite=merge,
        take_back=remove,
        finish=result,
        name=name,
        of=of,
        type=type,
    )
