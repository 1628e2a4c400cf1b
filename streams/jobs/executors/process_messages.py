"""What a worker and a process that executes its jobs send each other."""

from __future__ import annotations

import msgspec

from streams.structs import decodable


class Item(msgspec.Struct, frozen=True):
    """One job: see ``current.CurrentJob``. ``arguments`` are JSON."""

    id: str
    name: str
    attempt: int
    scheduled: int
    idempotency_key: str
    correlation_id: str | None
    arguments: bytes


class Setup(msgspec.Struct, tag=True, frozen=True):
    """The first message: how the worker's program was started, for functions that it defines itself."""

    argv: list[str]
    main_module: str | None
    """The name of the program's module, if it was started by ``python -m``."""
    main_path: str | None


class Execute(msgspec.Struct, tag=True, frozen=True):
    """Call a function: for one item, or for a batch of them if ``together``."""

    module: str
    function: str
    """Its qualified name in the module."""
    together: bool
    items: list[Item]
    context: dict[str, str] = {}
    """The context of its span, with the setting ``tracing``."""


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """These items of what runs were cancelled."""

    items: list[int]


class Later(msgspec.Struct, frozen=True):
    """A ``RetryLater``: microseconds, or since the epoch."""

    after: int | None
    at: int | None
    alone: bool


class Failure(msgspec.Struct, frozen=True):
    """An exception."""

    kinds: list[tuple[str, str]]
    """Module and qualified name of its class and the classes from which that inherits."""
    message: str
    traceback: str
    hint: str | None = None
    later: Later | None = None


@decodable
class Begun(msgspec.Struct, tag=True, frozen=True):
    """The function is called now: its module is imported."""


class Reported(msgspec.Struct, tag=True, frozen=True):
    """An item has reported its progress."""

    item: int
    progress: str


class Ended(msgspec.Struct, tag=True, frozen=True):
    """The results of the items as JSON, or why they failed, in their order."""

    outcomes: list[bytes | Failure]


ToChild = Setup | Execute | Cancel
FromChild = Begun | Reported | Ended

encode = msgspec.msgpack.Encoder().encode
_to_child = msgspec.msgpack.Decoder(ToChild)
_from_child = msgspec.msgpack.Decoder(FromChild)


def decode_to_child(message: bytes) -> ToChild:
    """A message of the worker."""
    found: ToChild = _to_child.decode(message)
    return found


def decode_from_child(message: bytes) -> FromChild:
    """A message of the process."""
    found: FromChild = _from_child.decode(message)
    return found
