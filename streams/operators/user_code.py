"""Checks of the user's code in the nodes of a topology, when a step is created."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from streams.coroutines.awaitables import is_asynchronous, is_asynchronous_generator, location, plain_function
from streams.errors import TopologyError
from streams.policy import ErrorPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.operators import NodeOperator

_CALLED = (
    *("serialize", "deserialize"),
    *("column", "initial", "add", "remove", "merge", "result", "pack", "unpack"),
)
"""The methods that are called of a program's own serdes and aggregates."""

_PLAIN = frozenset({str, bytes, int, float, bool, type(None), timedelta})
"""Types without code of the user's: most fields of a node."""

_CALLED_OF_PROCESSORS = ("open", "process", "process_batch", "close")


def check_code(
    step: str,
    kind: str,
    node: object,
    *,
    policy: object = None,
    operator: NodeOperator | None = None,
    place: str = "",
) -> None:
    """Check the user's code in a node, added at ``place`` (``file:line``), with its policy and operator.

    A function that is called as a plain one must not be async, because nothing would await its result. Raises
    ``TopologyError`` for code that the step cannot use.
    """
    if policy is not None and not isinstance(policy, ErrorPolicy):
        raise TopologyError(
            f"step {step!r}: on_error takes a policy, got {policy!r:.80}{_declared(place)}",
            hint="fail, dead_letter, skip or retry(…)",
        )
    if operator is not None and operator.awaits:
        _require_awaitable(step, kind, operator.code, place)
        return
    timestamp = getattr(operator, "timestamp", None)
    for code in () if operator is None else (operator.code, timestamp):
        if code is not None and not callable(code):
            raise TopologyError(
                f"step {step!r} ({kind}) needs a function, got {code!r:.80}{_declared(place)}",
                hint="e.g. lambda value: value.path" if isinstance(code, str) else None,
            )
    if operator is not None and operator.makes_processors:
        for method in _methods(plain_function(operator.code)):
            _refuse_asynchronous(step, kind, method, place)
    for code in _functions(node, set()):
        _refuse_asynchronous(step, kind, code, place)


def check_processor(step: str, processor: object) -> None:
    """As ``check_code``, for a new processor."""
    for name in _CALLED_OF_PROCESSORS:
        _refuse_asynchronous(step, "process", getattr(processor, name, None))


def check_call(step: str, call: object) -> None:
    """As ``check_code``, for a call that a processor schedules."""
    _refuse_asynchronous(step, "schedule", call)


def _refuse_asynchronous(step: str, kind: str, code: object, place: str = "") -> None:
    if code is None or not is_asynchronous(code):
        return
    raise TopologyError(
        f"step {step!r} ({kind}) was given {_named(code)}, which is async: "
        f"nothing would await what it returns{_declared(place)}",
        hint=f"await it in a step of its own before this one: map_async({_short(code)}, concurrency=100)",
    )


def _require_awaitable(step: str, kind: str, code: object, place: str) -> None:
    if not callable(code) or is_asynchronous_generator(code):
        raise TopologyError(
            f"step {step!r} ({kind}) was given {_named(code)}, which does not return an awaitable"
            f"{_declared(place)}",
            hint="give it an async function that returns one value",
        )


def _methods(factory: object) -> Iterator[object]:
    """The methods of the processors that a class, or a factory with a return annotation, creates."""
    if not isinstance(factory, type):
        try:
            factory = typing.get_type_hints(factory).get("return")
        except Exception:  # noqa: BLE001 - annotations may name anything; then the check is when the task is created
            return
    for name in _CALLED_OF_PROCESSORS:
        yield getattr(factory, name, None)


def _functions(value: object, seen: set[int]) -> Iterator[object]:
    """Every function of the user's in a node, or in the value of one of its fields."""
    if type(value) in _PLAIN or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, tuple | list | set | frozenset):
        for item in value:
            yield from _functions(item, seen)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _functions(item, seen)
    elif isinstance(value, type):
        return
    elif type(value).__module__.partition(".")[0] == "streams":
        for name in _attributes(value):
            yield from _functions(getattr(value, name, None), seen)
    elif callable(value):
        yield value
    else:
        # The program's own serde or aggregate.
        for name in _CALLED:
            yield getattr(value, name, None)


def _attributes(value: object) -> Iterator[str]:
    yield from getattr(value, "__dict__", ())
    for parent in type(value).__mro__:
        slots = vars(parent).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def _declared(place: str) -> str:
    return f" (the step is declared at {place})" if place else ""


def _named(code: object) -> str:
    place = location(code)
    return _short(code) + (f" ({place})" if place else "")


def _short(code: object) -> str:
    function = plain_function(code)
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)
