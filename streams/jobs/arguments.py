"""The arguments of a function as JSON, encoded and decoded by the types of its parameters."""

from __future__ import annotations

import copy
import inspect
import typing
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from streams.errors import TopologyError, error_text
from streams.serde import Json
from streams.serde.round_trip import RoundTrip

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
}


class Arguments:
    """Encodes the arguments of ``function`` as a JSON object, by the names of its parameters.

    Raises ``TopologyError`` for a function whose arguments have no names, ``*args`` and ``**kwargs``, and for
    types that JSON cannot hold.
    """

    def __init__(self, job: str, function: Callable[..., Any]) -> None:
        self._job = job
        self.signature = inspect.signature(function)
        hints = _hints(job, function)
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        self._keywords: list[str] = []
        for parameter in self.signature.parameters.values():
            if parameter.kind not in _KINDS:
                raise TopologyError(
                    f"job {job!r} takes {parameter}: arguments of a job need names and types",
                    hint="give it parameters of their own, or one that is a list or a dict",
                )
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                self._keywords.append(parameter.name)
            kind = hints.get(parameter.name, Any)
            if parameter.default is inspect.Parameter.empty:
                fields.append((parameter.name, kind))
            else:
                fields.append((parameter.name, kind, _default(parameter.default)))
        try:
            struct = msgspec.defstruct(
                "Arguments", fields, kw_only=True, forbid_unknown_fields=True, module=function.__module__
            )
            self._serde = RoundTrip(Json(struct))
            self._decoder = msgspec.json.Decoder(struct)
        except Exception as error:
            raise TopologyError(
                f"job {job!r}: its arguments cannot be written as JSON: {error_text(error)}",
                hint="annotate parameters with types that msgspec can decode, or a dataclass",
            ) from error
        self._struct = struct
        self._positional = [name for name in self.signature.parameters if name not in self._keywords]
        self._astuple = msgspec.structs.astuple

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """The arguments as JSON. Raises ``TypeError`` where they do not fit, as a call would."""
        bound = self.signature.bind(*args, **kwargs)
        # Defaults are those of the program that executes the job.
        value = self._struct(**bound.arguments)
        try:
            for payload in self._serde.serialize([value]):
                return (
                    payload
                    if len(bound.arguments) == len(self._struct.__struct_fields__)
                    else _only(payload, bound.arguments)
                )
        except Exception as error:
            raise TypeError(f"job {self._job!r} cannot be enqueued with these arguments: {error}") from error
        raise AssertionError("a serde returns a payload for each value")

    def converted(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Plain values, e.g. read from JSON, as arguments of the annotated types.

        Raises ``TypeError`` where a call would, and ``ValueError`` for a value of another type.
        """
        bound = self.signature.bind(*args, **kwargs)
        value = msgspec.convert(bound.arguments, self._struct)
        for name in bound.arguments:
            bound.arguments[name] = getattr(value, name)
        return bound.args, bound.kwargs

    def named(self, payload: bytes | msgspec.Raw) -> dict[str, Any]:
        """All arguments by name, defaults included. Raises ``ValueError`` where they do not fit any more."""
        values = self._astuple(self._decoder.decode(payload))
        return dict(zip(self._struct.__struct_fields__, values, strict=True))

    def decode(self, payload: bytes | msgspec.Raw) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments. Raises ``ValueError`` where they do not fit any more."""
        values = self._astuple(self._decoder.decode(payload))
        if not self._keywords:
            return values, {}
        named = dict(zip(self._struct.__struct_fields__, values, strict=True))
        return tuple(named[name] for name in self._positional), {name: named[name] for name in self._keywords}


class ChosenArguments:
    """Calls a function of some of a job's arguments, by the names of its parameters.

    Raises ``TopologyError`` if it has a parameter that the job does not have. ``what`` names it in errors.
    """

    def __init__(self, what: str, function: Callable[..., object], arguments: Arguments) -> None:
        self._what = what
        self._function = function
        parameters = inspect.signature(function).parameters.values()
        known = arguments.signature.parameters
        self._all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        self._names = [parameter.name for parameter in parameters if parameter.kind in _KINDS]
        # The only argument needs no name.
        self._only = len(known) == len(self._names) == 1
        if self._only:
            return
        for parameter in parameters:
            if parameter.kind in _KINDS and parameter.name not in known:
                raise TopologyError(
                    f"{what} has a parameter {parameter.name!r}, which the job does not have",
                    hint=f"name its parameters as those of the job: {', '.join(known)}",
                )

    def text(self, arguments: Mapping[str, Any]) -> str:
        """What the function returns for a job. Raises ``TypeError`` for anything but text."""
        chosen = {name: value for name, value in arguments.items() if self._all or name in self._names}
        found = self._function(*arguments.values()) if self._only else self._function(**chosen)
        if not isinstance(found, str):
            raise TypeError(f"{self._what} must return text, got {type(found).__name__}: return str(…)")
        return found


class Result:
    """Encodes the result of ``function`` as JSON, and decodes it by the annotated type."""

    def __init__(self, job: str, function: Callable[..., Any]) -> None:
        self._encode = msgspec.json.Encoder().encode
        kind = _hints(job, function).get("return", Any)
        try:
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
        except Exception as error:
            raise TopologyError(
                f"job {job!r}: its result of type {kind!r} cannot be read from JSON: {error_text(error)}",
                hint="annotate it with a type that msgspec can decode, or a dataclass",
            ) from error

    def encode(self, value: Any) -> bytes:
        """The result as JSON. Raises ``TypeError`` if it cannot be written."""
        return b"null" if value is None else self._encode(value)

    def decode(self, payload: bytes | msgspec.Raw) -> Any:
        """The result. Raises ``ValueError`` if it does not have the annotated type."""
        return self._decoder.decode(payload)


def _hints(job: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise TopologyError(
            f"job {job!r}: its annotations cannot be read: {type(error).__name__}: {error_text(error)}",
            hint="types must be importable where the function is defined, not only under TYPE_CHECKING",
        ) from error


def _default(value: Any) -> Any:
    """The default as a field of a struct: a mutable one is made for each job."""
    if isinstance(value, list | dict | set | bytearray):
        return msgspec.field(default_factory=partial(copy.copy, value))
    return value


def _only(payload: bytes, given: Mapping[str, Any]) -> bytes:
    """The JSON object with only the arguments that were given."""
    fields = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({name: fields[name] for name in fields if name in given})
