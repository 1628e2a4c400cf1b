"""The protocol of aggregates, and their common base class."""

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
"""The aggregated part of a value: the attribute (or dictionary key) of that name, a function's result, or the
value itself.
"""


Place: TypeAlias = "tuple[int, str, int]"
"""An event's position in the order of events: its event time, then its topic and its offset."""

NOWHERE: Place = (-1, "", -1)


class Aggregate(Protocol[V_contra, R_co]):
    """Computes a result from the values of one group, be it a key's, a window's or a session's.

    The accumulator represents the events so far. It is never changed in place: an accumulator may be kept and
    used again after others were computed from it.
    """

    @property
    def record_wise(self) -> bool:
        """Whether ``add`` and ``remove`` run user code and must be called with one entry at a time.

        If false, they never raise for entries that ``column`` returned.
        """

    @property
    def ordered(self) -> bool:
        """Whether ``add`` needs the positions of events, as the result depends on their order."""

    @property
    def removable(self) -> bool:
        """Whether ``remove`` may be called."""

    @property
    def mergeable(self) -> bool:
        """Whether ``merge`` may be called."""

    def describe(self) -> str:
        """Stable text of the kind and its parameters.

        Aggregates with the same text can read each other's packed accumulators. Functions are represented by
        their names.
        """

    @property
    def schema(self) -> Any:
        """The schema of packed accumulators, as plain data: see ``streams.aggregates.resolution``."""

    @property
    def result_type(self) -> Any:
        """The type of results; ``Any`` where it is not known."""

    def typed(self, kind: Any) -> Aggregate[V_contra, R_co]:
        """The aggregate for values of that type (``Any`` where it is not known)."""

    def column(self, values: Sequence[V_contra]) -> Iterable[Any]:
        """The entries for ``add`` and ``remove``: lazily, one entry per value, in order.

        Raises at the value that cannot be aggregated.
        """

    def initial(self) -> Any:
        """The accumulator of no events."""

    def add(self, accumulator: Any, column: Sequence[Any], places: Sequence[Place] | None = None) -> Any:
        """The accumulator with more events, given by their entries in order of arrival.

        ``places`` are the events' positions, if ``ordered``; without them, the order of arrival counts.
        """

    def remove(self, accumulator: Any, column: Sequence[Any]) -> Any:
        """The accumulator without events that were added before."""

    def merge(self, first: Any, second: Any) -> Any:
        """The accumulator of both, where ``first`` has the earlier events."""

    def result(self, accumulator: Any) -> R_co:
        """The result of the events so far."""

    def pack(self, accumulator: Any) -> Any:
        """The accumulator as plain values that msgpack can hold."""

    def unpack(self, packed: Any) -> Any:
        """The accumulator that was packed."""


class BaseAggregate(ABC):
    """Defaults that most aggregates share."""

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
        raise TypeError(f"{self.describe()} cannot remove events")

    def pack(self, accumulator: Any) -> Any:
        return accumulator

    def unpack(self, packed: Any) -> Any:
        return packed


def require(condition: bool, what: str, needed: str, came: object) -> None:
    """Raise ``TopologyError`` unless the condition holds."""
    if not condition:
        raise TopologyError(f"{what} needs {needed}, got {came!r}")
