"""Detect async functions and awaitables where plain functions and values are needed."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import AsyncIterable, Awaitable, Iterable

_NOT_AWAITABLE: set[type] = {type(None), bool, int, float, str, bytes, list, tuple, dict, set}
"""Types that are known not to be awaitable. Further types are added when they are first seen."""

_MOST_TYPES = 1_000
"""The maximum size of that set, for programs that create classes at run time."""

_RETURNS_AWAITABLE = re.compile(
    r"(?:[\w.]+\.)?(?:Awaitable|Coroutine|Future|Task|Async(?:Iterator|Iterable|Generator))\b"
)

_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
)


def is_asynchronous(code: object) -> bool:
    """Whether calling this returns an awaitable, as far as can be determined without calling it.

    Looks through ``functools.partial``, ``functools.cache``, methods and callable objects. A plain function
    counts if it is annotated to return an awaitable. Plain functions that call async ones are not detected.
    """
    function = plain_function(code)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return True
    if not isinstance(function, types.FunctionType):
        return False
    if function.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE:
        return True
    # A decorator that runs the coroutine itself has the annotations of the decorated function.
    return not hasattr(function, "__wrapped__") and _is_annotated_awaitable(function)


def is_asynchronous_generator(code: object) -> bool:
    """Whether calling this returns an async generator, which cannot be awaited."""
    return inspect.isasyncgenfunction(plain_function(code))


def plain_function(code: object) -> object:
    """The function that runs when this is called: that of a partial, a method or a callable object."""
    while True:
        if isinstance(code, functools.partial):
            code = code.func
        elif isinstance(code, types.MethodType | staticmethod | classmethod):
            code = code.__func__
        elif isinstance(code, functools._lru_cache_wrapper):  # noqa: SLF001 - its type has no other name
            code = code.__wrapped__
        elif isinstance(code, (type, *_FUNCTIONS)) or inspect.iscoroutinefunction(code):
            return code
        else:
            call = getattr(type(code), "__call__", None)  # noqa: B004 - the function itself is needed
            if not isinstance(call, types.FunctionType | staticmethod | functools.partial):
                return code
            code = call


def location(code: object) -> str | None:
    """File and line of the function that runs when this is called; ``None`` if it is not Python code."""
    source = getattr(plain_function(code), "__code__", None)
    return None if source is None else f"{source.co_filename}:{source.co_firstlineno}"


def any_awaitable(column: Iterable[object]) -> bool:
    """Whether a column contains an awaitable or an async iterator."""
    # This runs in C and builds no set of types: most columns only have types that were seen before.
    return not _NOT_AWAITABLE.issuperset(map(type, column)) and any(map(is_awaitable, column))


def is_awaitable(value: object) -> bool:
    """Whether a value is an awaitable or an async iterator."""
    kind = type(value)
    if kind in _NOT_AWAITABLE:
        return False
    if issubclass(kind, Awaitable | AsyncIterable):
        return True
    if len(_NOT_AWAITABLE) < _MOST_TYPES:
        _NOT_AWAITABLE.add(kind)
    return False


def settled(value: typing.Any) -> typing.Any:
    """The value that a function returned. Raises ``TypeError`` for an awaitable."""
    if is_awaitable(value):
        raise unawaited(value)
    return value


def unawaited(value: object) -> TypeError:
    """Close or cancel an awaitable that a plain function returned, and return the error for it."""
    # Without closing it, Python would warn later ("was never awaited"), without naming the record.
    release = getattr(value, "close", None) or getattr(value, "cancel", None)
    if callable(release):
        release()
    return TypeError(
        f"the function returned {_described(value)}, which this step does not await: use map_async"
    )


def _described(value: object) -> str:
    name = getattr(value, "__qualname__", None)
    kind = type(value).__name__
    return f"a {kind} of {name}" if isinstance(name, str) else f"a {kind}"


def _is_annotated_awaitable(function: types.FunctionType) -> bool:
    try:
        annotation = function.__annotations__.get("return")
    except Exception:  # noqa: BLE001 - from Python 3.14 on, annotations are evaluated here and may fail
        return False
    if isinstance(annotation, str):
        return _RETURNS_AWAITABLE.match(annotation) is not None
    kind = typing.get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Awaitable | AsyncIterable)
