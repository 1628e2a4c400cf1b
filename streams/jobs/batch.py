"""Functions that are given many jobs at once: their signature for one job, and the outcome of each."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from typing import TYPE_CHECKING, Any

from streams.errors import TopologyError, error_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


def items_function(job: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the signature that ``function`` has for one item of its list.

    Raises ``TopologyError`` if it takes anything but one list.
    """
    parameters = list(inspect.signature(function).parameters.values())
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise TopologyError(
            f"job {job!r}: its annotations cannot be read: {type(error).__name__}: {error_text(error)}",
            hint="types must be importable where the function is defined, not only under TYPE_CHECKING",
        ) from error
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if (
        len(parameters) != 1
        or parameters[0].kind not in positional
        or (item := _item(hints.get(parameters[0].name, list))) is None
    ):
        raise TopologyError(
            f"job {job!r} has batch=, so it is given a list of jobs: its parameters are "
            f"{inspect.signature(function)}",
            hint="give it exactly one parameter that is a list: def send(mails: list[Mail])",
        )
    (kind,) = item

    def describes_one_item() -> None: ...

    described: Any = describes_one_item
    annotations = {parameters[0].name: kind, "return": _result(hints.get("return", Any))}
    described.__annotations__ = annotations
    described.__signature__ = inspect.Signature(
        [inspect.Parameter(parameters[0].name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)]
    )
    described.__module__ = function.__module__
    result: Callable[..., Any] = described
    return result


def outcomes(job: str, returned: object, count: int) -> Sequence[object]:
    """The outcome of each of ``count`` jobs: a result, or an exception.

    Raises ``TypeError`` or ``ValueError`` if the function has returned something else than that.
    """
    if returned is None:
        return [None] * count
    if not isinstance(returned, list | tuple):
        raise TypeError(
            f"job {job!r} was given {count} jobs at once: it must return None, or a list with a result or an "
            f"exception for each, got {type(returned).__name__}"
        )
    if len(returned) != count:
        raise ValueError(
            f"job {job!r} was given {count} jobs at once and returned {len(returned)} results: which belongs "
            "to which is not known"
        )
    return returned


def _item(kind: Any) -> tuple[Any] | None:
    """The type of a list's items; ``None`` if it is no list."""
    origin = typing.get_origin(kind) or kind
    if origin not in _LISTS:
        return None
    arguments = typing.get_args(kind)
    return (arguments[0] if arguments else Any,)


def _result(kind: Any) -> Any:
    """The type of one result, without the exceptions that may stand for it."""
    if kind is None or kind is type(None):
        return None
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [_result(each) for each in typing.get_args(kind)]
        return _union([each for each in kinds if each is not Any]) if kinds else Any
    item = _item(kind)
    return Any if item is None else _without_exceptions(item[0])


def _without_exceptions(kind: Any) -> Any:
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return Any if _is_exception(kind) else kind
    return _union([each for each in typing.get_args(kind) if not _is_exception(each)])


def _union(kinds: Sequence[Any]) -> Any:
    return typing.Union[tuple(kinds)] if kinds else Any  # noqa: UP007 - of a list of types


def _is_exception(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)
