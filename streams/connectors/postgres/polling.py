"""Rows of a query as a source: those that are new or changed since the last poll, by increasing columns.

Numbers from a sequence, and times of changes, become visible in another order than they were given: a
transaction may commit after another one that began later. So a poll notes which transactions are running, and
reads only up to what was there at that moment, and only after those transactions have ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from streams.durations import seconds, to_milliseconds
from streams.errors import (
    ConfigurationError,
)
from streams.serde import Json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import timedelta

    from streams.serde import Serde

V = TypeVar("V")

LOOK_SECONDS: Final = 0.1
"""How often it is asked whether transactions have ended."""

SLOW_SECONDS: Final = 60.0
"""After how long a wait for transactions is reported as a problem."""

STATEMENT_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PollingQuery(Generic[V]):
    """The rows of a query in Postgres, again whenever they change, as JSON.

    ``order_by`` names the columns that together increase strictly with every new row (a number from a
    sequence), or with every change too (the time of the change, and then the key). ``key`` names the columns
    of the records' keys, mappings as the values are. The query is asked every ``interval``; rows appear after
    ``lag`` at the earliest. Values are of the serde ``value``.

    It never sees a deletion, nor a state that a row had between two polls; a row whose ``order_by`` is null or
    later than now; or the rows of a transaction that takes its number or time, writes nothing for longer than
    ``lag``, and commits after other rows were read.
    """

    dsn: str = field(repr=False)
    query: str
    order_by: str | Sequence[str]
    key: str | Sequence[str] = ()
    value: Serde[V] = field(default_factory=Json)
    interval: timedelta = seconds(1)
    lag: timedelta = seconds(5)
    max_rows: int = 2_000

    def __post_init__(self) -> None:
        if not self.ordered_columns:
            raise ConfigurationError("order_by= needs at least one column")
        to_milliseconds(self.interval, "PollingQuery: interval")
        if self.lag:
            to_milliseconds(self.lag, "PollingQuery: lag")
        if self.query.rstrip().endswith(";"):
            raise ConfigurationError("the query is part of a larger one: write it without the last ';'")

    @property
    def kind(self) -> str:
        """The system."""
        return "postgres"

    @property
    def tasks(self) -> int:
        return 1

    @property
    def key_serde(self) -> Serde[Any]:
        return Json()

    @property
    def process(self) -> Callable[[], Any] | None:
        return None

    @property
    def stores(self) -> Mapping[str, tuple[Serde[Any], Serde[Any]]]:
        return {}

    @property
    def ordered_columns(self) -> tuple[str, ...]:
        return (self.order_by,) if isinstance(self.order_by, str) else tuple(self.order_by)
