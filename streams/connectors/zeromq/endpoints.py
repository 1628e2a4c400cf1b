"""Where a socket is: the addresses that it connects to, or the one that it is bound to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from streams.errors import ConfigurationError
from streams.redaction import scrub

if TYPE_CHECKING:
    from collections.abc import Sequence

_TCP: Final = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^\s:/@\[\];]+):(?P<port>[0-9]{1,5})")
_IPC: Final = re.compile(r"ipc://(?P<path>/[^\0]+)")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses ``tcp://host:port`` or ``ipc:///path``, of one side."""

    addresses: tuple[str, ...]
    bound: bool
    """Whether the socket waits there for the other side to connect."""

    @classmethod
    def of(cls, name: str, connect: str | Sequence[str] | None, bind: str | None) -> Self:
        """The endpoints of the connector ``name``. Raises ``ConfigurationError``."""
        if (connect is None) == (bind is None):
            raise ConfigurationError(
                f"{name} needs either connect= or bind=",
                hint='connect="tcp://host:5555" to a program that is bound there: '
                "tasks and sinks may then move to other workers",
            )
        if bind is not None:
            return cls((_checked(name, bind, bound=True),), bound=True)
        assert connect is not None
        addresses = (connect,) if isinstance(connect, str) else tuple(connect)
        if not addresses:
            raise ConfigurationError(f"{name}: connect= has no address")
        if len(set(addresses)) < len(addresses):
            raise ConfigurationError(f"{name}: connect= has an address twice")
        return cls(tuple(_checked(name, address, bound=False) for address in addresses), bound=False)

    @property
    def ipv6(self) -> bool:
        """Whether any address is one of IPv6, in brackets."""
        return any("[" in address for address in self.addresses)

    def missing_folder(self) -> Path | None:
        """The folder of an address ``ipc://`` that does not exist, if any."""
        folders = [
            Path(match["path"]).parent
            for address in self.addresses
            if (match := _IPC.fullmatch(address)) is not None
        ]
        return next((folder for folder in folders if not folder.is_dir()), None)

    def __str__(self) -> str:
        return ", ".join(self.addresses)


def _checked(name: str, address: str, *, bound: bool) -> str:
    tcp = _TCP.fullmatch(address)
    if tcp is None and _IPC.fullmatch(address) is None:
        raise ConfigurationError(
            f"{name}: {scrub(address)!r:.200} is no address",
            hint='write "tcp://host:port" or "ipc:///path"; keys are given by curve=',
        )
    if tcp is not None and not 0 < int(tcp["port"]) < 65_536:
        raise ConfigurationError(f"{name}: {address} needs a port from 1 to 65535")
    if tcp is not None and tcp["host"] == "*" and not bound:
        raise ConfigurationError(f"{name}: connect={address!r} needs the host of the other program")
    return address
