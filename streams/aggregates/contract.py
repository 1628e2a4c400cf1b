"""What an aggregate is, and what all of them have in common."""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from streams.errors import TopologyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from decimal import Decimal

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")
V = TypeVar("V")
R_co = TypeVar("R_co", covariant=True)
N = TypeVar("N", bound="int | float | Decimal")
V_contra = TypeVar("V_contra", contravariant=True)
Type: TypeAlias = builtins.type[T]

Number: TypeAlias = "int | float | Decimal"

Of: TypeAlias = "str | Callable[[Any], Any] | None"
"""What of a value is aggregated: the attribute (or a dictionary's key) of that name, what a function makes of
it, or the value itself."""


Place: TypeAlias = "tuple[int, str, int]"
"""Where an event stands in the order of events: its event time, then its topic and its offset."""

NOWHERE: Place = (-1, "", -1)


class Aggregate(Protocol[V_contra, R_co]):
    """Computes a result from the values of one group, be it a key's, a window's or a session's.

    The accumulator is all that is kept of the events so far. It is never changed in place: an accumulator may
    be kept and used again after others were made from it.
    """

    @property
    def record_wise(self) -> bool:
        """Whether ``add`` and ``remove`` run user code, so that they are to be given one entry at a time.

        Where this is false they never raise for entries that ``column`` has let through.
        """

    @property
    def ordered(self) -> bool:
        """Whether ``add`` needs the places of events, as the result depends on their order."""

    @property
    def removable(self) -> bool:
        """Whether ``remove`` may be called."""

    @property
    def mergeable(self) -> bool:
        """Whether ``merge`` may be called."""

    def describe(self) -> str:
        """Stable text of the kind and its parameters.

        Aggregates with the same text can read each other's packed accumulators. Of a function only the name
        is told.
        """

    @property
    def schema(self) -> Any:
        """What decides how packed accumulators are read, as plain data: see ``aggregate_resolution``."""

    @property
    def result_type(self) -> Any:
        """The type of results; ``Any`` where it is not known."""

    def typed(self, kind: Any) -> Aggregate[V_contra, R_co]:
        """The aggregate for values of that type (``Any`` where it is not known)."""

    def column(self, values: Sequence[V_contra]) -> Iterable[Any]:
        """What ``add`` and ``remove`` need of each value: lazily, one entry a value, in order.

        Raises at the value that cannot be aggregated.
        """

    def initial(self) -> Any:
        """The accumulator of no events."""

    def add(self, accumulator: Any, column: Sequence[Any], places: Sequence[Place] | None = None) -> Any:
        """The accumulator with further events, given by their entries in the order they came.

        ``places`` are those of the events, where ``ordered``; without them, events stand in the order they
        were added.
        """

    def remove(self, accumulator: Any, column: Sequence[Any]) -> Any:
        """The accumulator without events that were added before."""

    def merge(self, first: Any, second: Any) -> Any:
        """The accumulator of both, where ``first`` has the earlier events."""

    def result(self, accumulator: Any) -> R_co:
        """What the events so far amount to."""

    def pack(self, accumulator: Any) -> Any:
        """The accumulator as plain values that msgpack can hold."""

    def unpack(self, packed: Any) -> Any:
        """The accumulator that was packed."""


class BaseAggregate(ABC):
    """What most aggregates have in common."""

    __slots__ = ()

    @property
    def record_wise(self) -> bool:
        return False

    @property
    def ordered(self) -> bool:
        return False

    @property
    def removable(self) -> bool:
        return False

    @property
    def mergeable(self) -> bool:
        return True

    @property
    def result_type(self) -> Any:
        return Any

    @property
    def schema(self) -> Any:
        return self.describe()

    def typed(self, kind: Any) -> Any:  # noqa: ARG002 - the protocol's
        return self

    @abstractmethod
    def describe(self) -> str: ...

    def remove(self, accumulator: Any, column: Sequence[Any]) -> Any:  # noqa: ARG002 - the protocol's
        raise TypeError(f"{self.describe()} cannot take events back")

    def pack(self, accumulator: Any) -> Any:
        return accumulator

    def unpack(self, packed: Any) -> Any:
        return packed


def require(condition: bool, what: str, needed: str, came: object) -> None:
    """Raise ``TopologyError`` unless the condition holds."""
    if not condition:
        raise TopologyError(f"{what} needs {needed}, got {came!r}")
