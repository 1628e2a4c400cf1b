"""Changes, which tables forward to each other, and views, which read a table's values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

from streams.coroutines.awaitables import settled
from streams.operators import Operator, fan_out
from streams.records import take

if TYPE_CHECKING:
    from streams.operators import Account, Binding, Children, Forward
    from streams.operators.guard import Guard
    from streams.records import Batch

JoinKind: TypeAlias = Literal["inner", "left", "outer"]
"""Which rows are joined without a match: none, those of the left side, or all."""


class Change(NamedTuple):
    """A change of one key's value, ``None`` without a value; ``old`` is only set if a step needs it."""

    new: Any
    old: Any


@dataclass(frozen=True, slots=True)
class ToStream(Operator):
    """Converts changes to records with the new values, without deletions unless ``tombstones``."""

    kind: ClassVar[str] = "to_stream"

    tombstones: bool

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, tombstones, account = fan_out(children), self.tombstones, step.account

        def run(batch: Batch[Any, Any]) -> None:
            values = [new for new, _ in batch.values]
            changes = batch.with_values(values)
            if tombstones:
                forward(changes)
                return
            rows = [row for row, value in enumerate(values) if value is not None]
            if len(rows) < len(values):
                account.filtered(len(values) - len(rows))
            if rows:
                forward(changes if len(rows) == len(values) else changes.select(rows))

        return run


@dataclass(frozen=True, slots=True)
class View:
    """How a table's value for a key is read: from a store, then through functions in order.

    The store holds pairs of a value and its event time. Each function has a kind: ``result`` and ``map``
    replace the value, ``filter`` removes it if false. If a function fails, there is no value: its step has
    applied the policy when it processed the change.
    """

    store: str
    functions: tuple[tuple[str, Any], ...] = ()

    @property
    def stores(self) -> tuple[str, ...]:
        """The stores that it reads."""
        return (self.store,)

    def then(self, kind: str, function: Any) -> View:
        """Return the view with one more function."""
        return View(self.store, (*self.functions, (kind, function)))


@dataclass(frozen=True, slots=True)
class JoinedView:
    """How the value of a join of two tables is read: from both, then through functions as in ``View``."""

    left: AnyView
    right: AnyView
    join: Callable[[Any, Any], Any]
    how: JoinKind
    functions: tuple[tuple[str, Any], ...] = ()

    @property
    def stores(self) -> tuple[str, ...]:
        """The stores that it reads."""
        return tuple(dict.fromkeys((*self.left.stores, *self.right.stores)))

    def then(self, kind: str, function: Any) -> JoinedView:
        """Return the view with one more function."""
        return JoinedView(self.left, self.right, self.join, self.how, (*self.functions, (kind, function)))


AnyView: TypeAlias = "View | JoinedView"

Found: TypeAlias = "tuple[Any, int] | None"
"""A table's value for a key and its event time; ``None`` where there is none."""

Reader: TypeAlias = Callable[[Sequence[Any]], list[Found]]
"""The values of several keys, in one read."""

Read: TypeAlias = Literal["current", "forwarded", "before"]
"""Which changes a reader sees: all, those its table has forwarded, or those before the current ones."""


def bind_view(view: AnyView, step: Binding, read: Read) -> Reader:
    """A reader of the table for one step, which uses the view's stores."""
    plain: Reader
    if isinstance(view, View):
        state = step.state(view.store)
        forwarded = partial(state.forwarded_many, before=read == "before")
        plain = state.get_many if read == "current" else forwarded
    else:
        left, right = bind_view(view.left, step, read), bind_view(view.right, step, read)
        join, how = view.join, view.how

        def plain(keys: Sequence[Any]) -> list[Found]:
            return [
                None if pair is None else _timed(quietly(lambda both: join(*both), pair[0]), pair[1])
                for pair in map(partial(paired, how), left(keys), right(keys))
            ]

    functions = view.functions
    if not functions:
        return plain
    return lambda keys: [_through(functions, found) for found in plain(keys)]


def paired(how: JoinKind, left: Found, right: Found) -> tuple[tuple[Any, Any], int] | None:
    """The two values to join and their later event time; ``None`` if the row is not joined."""
    if (left is None and how != "outer") or (right is None and how == "inner"):
        return None
    if left is None:
        return None if right is None else ((None, right[0]), right[1])
    if right is None:
        return (left[0], None), left[1]
    return (left[0], right[0]), max(left[1], right[1])


def quietly(function: Callable[[Any], Any], argument: Any) -> Any:
    """The function's result; ``None`` where it fails, as its step has applied the policy to that already."""
    try:
        return settled(function(argument))
    except Exception:  # noqa: BLE001 - user code may raise anything
        return None


def _timed(value: Any, time: int) -> Found:
    return None if value is None else (value, time)


def _through(functions: Sequence[tuple[str, Any]], found: Found) -> Found:
    if found is None:
        return None
    value, time = found
    for kind, function in functions:
        result = quietly(function, value)
        if kind == "filter":
            try:
                kept = bool(result)
            except Exception:  # noqa: BLE001 - the result of a predicate may have no truth value
                kept = False
            if not kept:
                return None
        elif result is None:
            return None
        else:
            value = result
    return value, time


def apply_present(
    guard: Guard, compute: Callable[[Any], Any], arguments: Sequence[Any], batch: Batch[Any, Any]
) -> list[Any]:
    """The results of ``compute`` for each argument; ``None`` for ``None``, and where the policy applied."""
    present = [row for row, argument in enumerate(arguments) if argument is not None]
    results: list[Any] = [None] * len(arguments)
    if present:
        found, kept = guard.each(
            partial(map, compute),
            take(arguments, present),
            batch if len(present) == len(arguments) else batch.select(present),
        )
        if kept is not None:
            # Their rows stay, as deletions.
            guard.resumed(len(present) - len(kept))
        rows = present if kept is None else [present[at] for at in kept]
        for row, result in zip(rows, found, strict=True):
            results[row] = result
    return results


def forward_changes(
    forward: Forward, account: Account, batch: Batch[Any, Any], new: Sequence[Any], old: Sequence[Any]
) -> None:
    """Forward the rows that have a new or an old value."""
    rows = [row for row in range(len(batch)) if new[row] is not None or old[row] is not None]
    if len(rows) < len(new):
        account.filtered(len(new) - len(rows))
    if rows:
        changes = [Change(new[row], old[row]) for row in rows]
        forward((batch if len(rows) == len(batch) else batch.select(rows)).with_values(changes))
