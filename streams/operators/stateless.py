"""Operators that process one record at a time, without state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain, compress, repeat, starmap
from typing import TYPE_CHECKING, Any, ClassVar

from streams.coroutines.awaitables import any_awaitable, is_awaitable, settled, unawaited
from streams.operators import Operator, fan_out
from streams.operators.keys import ImpliedText
from streams.operators.snapshot import snapshot
from streams.records import Batch, take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.operators import Binding, Children, Forward
    from streams.operators.guard import Guard
    from streams.operators.keys import KeptKeys

Function = Callable[[Any], Any]

LATEST = 1 << 63
"""The limit of event times (exclusive): a broker stores them in 64 bits."""


@dataclass(frozen=True, slots=True)
class Map(Operator):
    """Replaces each value, and the event time by ``timestamp`` of the new value."""

    kind: ClassVar[str] = "map"
    one_to_one: ClassVar[bool] = True

    function: Function
    timestamp: Callable[[Any], int] | None = None

    @property
    def stamps(self) -> bool:
        return self.timestamp is not None

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard = fan_out(children), step.guard
        transform = partial(map, self.function)
        timestamp = self.timestamp

        def run(batch: Batch[Any, Any]) -> None:
            kept, values = guard.apply(transform, batch.values, batch)
            batch = kept.with_values(values)
            if timestamp is not None:
                batch = extract_timestamps(guard, timestamp, batch)
            if len(batch):
                forward(batch)

        return run


@dataclass(frozen=True, slots=True)
class MapBatch(Operator):
    """Calls the user's function with complete batches, for columnar code."""

    kind: ClassVar[str] = "map_batch"
    stamps: ClassVar[bool] = True

    function: Callable[[Batch[Any, Any]], Batch[Any, Any]]
    kept_keys: KeptKeys | None = None

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, function, kept_keys = fan_out(children), step.guard, self.function, self.kept_keys
        account = step.account

        def checked(batch: Batch[Any, Any]) -> Batch[Any, Any]:
            # A copy of the columns: if the function raises, it is called again with the original rows.
            lent = batch if kept_keys is None else kept_keys.lent(batch)
            result = settled(function(lent.copy()))
            if not isinstance(result, Batch):
                raise TypeError(f"the function of map_batch must return a Batch, got {type(result).__name__}")
            if kept_keys is not None:
                kept_keys.check_batch(result, batch)
            # A function may reuse the same lists for each batch.
            copied = result.copy()
            account.replaced(len(batch))
            account.made(len(copied))
            return copied

        def run(batch: Batch[Any, Any]) -> None:
            for result in guard.whole(checked, batch):
                if len(result):
                    forward(result)

        return run


@dataclass(frozen=True, slots=True)
class Filter(Operator):
    """Keeps the records whose value satisfies the predicate."""

    kind: ClassVar[str] = "filter"
    one_to_one: ClassVar[bool] = True

    predicate: Function

    @property
    def code(self) -> object:
        return self.predicate

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard = fan_out(children), step.guard
        transform = partial(map, self.predicate)
        account = step.account

        def run(batch: Batch[Any, Any]) -> None:
            judged, verdicts = guard.apply(transform, batch.values, batch)
            try:
                rows = list(compress(range(len(judged)), verdicts))
            except Exception:  # noqa: BLE001 - the result may have no truth value; it fails with its record
                judged, truths = guard.apply(partial(map, bool), verdicts, judged)
                verdicts, rows = truths, list(compress(range(len(judged)), truths))
            if len(rows) < len(verdicts):
                account.filtered(len(verdicts) - len(rows))
            if rows:
                forward(judged if len(rows) == len(judged) else judged.select(rows))

        return run


@dataclass(frozen=True, slots=True)
class FlatMap(Operator):
    """Replaces each record by one for each value that the function returns or yields."""

    kind: ClassVar[str] = "flat_map"

    function: Callable[[Any], Iterable[Any]]

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, function = fan_out(children), step.guard, self.function
        account = step.account

        def expand(value: Any) -> list[Any]:
            # A generator would raise later, where its record is no longer known, and may change a value that
            # it has given already.
            found = function(value)
            if type(found) in {list, tuple}:
                return list(found)
            return list(map(snapshot, map(settled, several(found))))

        transform = partial(map, expand)

        def run(batch: Batch[Any, Any]) -> None:
            sources, expanded = guard.apply(transform, batch.values, batch)
            flat = list(chain.from_iterable(expanded))
            if any_awaitable(flat):
                sources, expanded = without_awaitables(guard, sources, expanded)
                flat = list(chain.from_iterable(expanded))
            account.replaced(len(expanded))
            if flat:
                account.made(len(flat))
                rows = list(
                    chain.from_iterable(repeat(row, len(values)) for row, values in enumerate(expanded))
                )
                forward(sources.select(rows).with_values(flat))

        return run


@dataclass(frozen=True, slots=True)
class KeyBy(Operator):
    """Replaces each key by the function's result for the value."""

    kind: ClassVar[str] = "key_by"
    one_to_one: ClassVar[bool] = True

    function: Function
    implied_text: bool = False
    """Whether keys are written as text by default, because there is no ``key=``."""

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard = fan_out(children), step.guard
        transform = partial(map, self.function)
        text = ImpliedText(guard, implied=self.implied_text)

        def run(batch: Batch[Any, Any]) -> None:
            keyed, keys = guard.apply(transform, batch.values, batch)
            text.check(keys, keyed)
            if keys:
                forward(keyed.with_keys(keys))

        return run


@dataclass(frozen=True, slots=True)
class Peek(Operator):
    """Calls a function with each value and forwards the record unchanged."""

    kind: ClassVar[str] = "peek"
    one_to_one: ClassVar[bool] = True
    terminal: ClassVar[bool] = True

    function: Function
    muted: Callable[[], bool] | None = None
    """Whether the function is not to be called now; asked for each batch."""

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward = fan_out(children) if children else step.account.ended
        guard, muted = step.guard, self.muted
        transform = partial(map, self.function)

        def run(batch: Batch[Any, Any]) -> None:
            if muted is not None and muted():
                forward(batch)
                return
            seen, _ = guard.apply(transform, batch.values, batch)
            if len(seen):
                forward(seen)

        return run


@dataclass(frozen=True, slots=True)
class Merge(Operator):
    """Forwards the records of several parents unchanged; also the first step of a branch."""

    kind: ClassVar[str] = "merge"
    one_to_one: ClassVar[bool] = True

    def bind(self, step: Binding, children: Children) -> Forward:  # noqa: ARG002 - the binding is not used
        return fan_out(children)


@dataclass(frozen=True, slots=True)
class Branch(Operator):
    """Sends each record to the first child whose predicate its value satisfies.

    ``routes`` pairs the names of child steps with their predicates; what satisfies none goes to
    ``otherwise``, or nowhere.
    """

    kind: ClassVar[str] = "branch"
    one_to_one: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    routes: tuple[tuple[str, Function], ...]
    otherwise: str | None = None

    def bind(self, step: Binding, children: Children) -> Forward:
        guard, account = step.guard, step.account
        predicates = [predicate for _, predicate in self.routes]
        targets = [children[name] for name, _ in self.routes]
        nowhere = len(predicates)
        if self.otherwise is not None:
            targets.append(children[self.otherwise])

        def choose(value: Any) -> int:
            for index, predicate in enumerate(predicates):
                verdict = predicate(value)
                if verdict is True or (verdict and settled(verdict)):
                    return index
            return nowhere

        transform = partial(map, choose)

        def run(batch: Batch[Any, Any]) -> None:
            chosen, choices = guard.apply(transform, batch.values, batch)
            by_target: dict[int, list[int]] = {}
            for row, choice in enumerate(choices):
                by_target.setdefault(choice, []).append(row)
            for index, target in enumerate(targets):
                if index in by_target:
                    target(chosen.select(by_target[index]))
            if nowhere in by_target and self.otherwise is None:
                account.filtered(len(by_target[nowhere]))

        return run


def without_awaitables(
    guard: Guard, batch: Batch[Any, Any], expanded: Sequence[list[Any]]
) -> tuple[Batch[Any, Any], Sequence[list[Any]]]:
    """The rows whose values contain no awaitable, and these values; the policy applies to the others."""
    errors: dict[int, list[TypeError]] = {}
    for row, values in enumerate(expanded):
        found = [unawaited(value) for value in values if is_awaitable(value)]
        if found:
            errors[row] = found
    for row, found in errors.items():
        guard.refuse(batch, row, found[0])
    good = [row for row in range(len(expanded)) if row not in errors]
    return batch.select(good), take(expanded, good)


def extract_timestamps(
    guard: Guard, timestamp: Callable[[Any], int], batch: Batch[Any, Any], *, table: bool = False
) -> Batch[Any, Any]:
    """Extract event times from values; the policy applies to rows without a valid one.

    Deletions from a table keep their record's time.
    """
    if table and any(value is None for value in batch.values):

        def time_of(value: Any, time: int) -> int:
            return time if value is None else timestamp(value)

        timed, times = guard.apply(
            partial(starmap, time_of), list(zip(batch.values, batch.timestamps, strict=True)), batch
        )
    else:
        timed, times = guard.apply(partial(map, timestamp), batch.values, batch)
    if not times or (set(map(type, times)) <= {int} and min(times) >= 0 and max(times) < LATEST):
        return timed.with_timestamps(times)
    errors = {
        row: no_event_time(time)
        for row, time in enumerate(times)
        if type(time) is not int or not 0 <= time < LATEST
    }
    for row, error in errors.items():
        guard.refuse(timed, row, error)
    good = [row for row in range(len(times)) if row not in errors]
    return timed.select(good).with_timestamps(take(times, good))


def several(found: Any) -> Iterable[Any]:
    """The results that a function returns for one record. Raises ``TypeError`` if it returns no iterable."""
    found = settled(found)
    try:
        results: Iterable[Any] = iter(found)
    except TypeError:
        raise TypeError(
            "the function must return a list, generator or other iterable, empty for no record, "
            f"got {found!r:.80}"
        ) from None
    return results


def no_event_time(time: object) -> Exception:
    """The error for a function's result that is not a valid event time."""
    if is_awaitable(time):
        return unawaited(time)
    return ValueError(f"an event time is a whole number of milliseconds since the epoch, got {time!r:.80}")
