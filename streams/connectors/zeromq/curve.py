"""CURVE: the encryption of ZeroMQ, and the keys by which both sides know each other.

A connector names where its keys are and never has them, so that they are in no description, log or error.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import zmq
from zmq.utils import z85

from streams.errors import ConfigurationError, ConnectorError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

_KEY: Final = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
"""A key as text, in the encoding Z85."""
_LINE: Final = re.compile(rb"^\s*(?P<name>public-key|secret-key)\s*=\s*\"(?P<key>[^\"]*)\"\s*$", re.MULTILINE)
"""A key in a certificate, as ``zmq.auth.create_certificates`` writes it."""
_PLACES: Final = "file:/path, or env:NAME of a variable"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveServer:
    """The keys of the side that is bound.

    ``secret_key`` is the place of its own secret key: ``file:/path`` of a certificate or of the key alone as
    text, or ``env:NAME``. ``clients`` is a folder with the certificates or public keys of those that may
    connect, which is read at each connection; or ``"any"``, for all who know the server's public key.
    """

    secret_key: str
    clients: str | os.PathLike[str]

    def __post_init__(self) -> None:
        _check_place("CurveServer: secret_key", self.secret_key)

    def secret(self) -> bytes:
        """Read its secret key. Raises ``ConnectorError``, without the key."""
        return _read("secret_key", self.secret_key, "secret-key")

    @property
    def folder(self) -> Path | None:
        """The folder of those that may connect; ``None`` for all."""
        return None if self.clients == "any" else Path(self.clients)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveClient:
    """The keys of the side that connects.

    ``secret_key`` is the place of its own secret key, as of ``CurveServer``; ``server_key`` is the public key
    of the other side, as text or by its place.
    """

    secret_key: str
    server_key: str

    def __post_init__(self) -> None:
        _check_place("CurveClient: secret_key", self.secret_key)
        if not _is_place(self.server_key) and not _KEY.fullmatch(self.server_key.encode()):
            raise ConfigurationError(
                "CurveClient: server_key is a public key (40 characters in Z85) or its place",
                hint=f"places are {_PLACES}",
            )

    def secret(self) -> bytes:
        """Read its secret key. Raises ``ConnectorError``, without the key."""
        return _read("secret_key", self.secret_key, "secret-key")

    def server(self) -> bytes:
        """The public key of the other side. Raises ``ConnectorError``."""
        if _is_place(self.server_key):
            return _read("server_key", self.server_key, "public-key")
        return self.server_key.encode()


def check_keys(curve: CurveServer | CurveClient | None) -> None:
    """Read the keys, if there are any. Raises ``ConnectorError`` for those that are missing or are none."""
    if curve is None:
        return
    if not zmq.has("curve"):
        raise ConnectorError("this build of libzmq has no CURVE", hint="install pyzmq from a wheel")
    curve.secret()
    if isinstance(curve, CurveClient):
        curve.server()
    elif curve.folder is not None and not curve.folder.is_dir():
        raise ConnectorError(
            f"CurveServer: clients: {curve.folder} is not a folder",
            hint="create it, with the public keys of the clients",
        )


def set_keys(socket: zmq.Socket[bytes], curve: CurveServer | CurveClient | None) -> None:
    """Give a socket its keys, before it is bound or connects. Raises ``ConnectorError``."""
    if curve is None:
        return
    secret = curve.secret()
    socket.curve_secretkey = secret
    if isinstance(curve, CurveServer):
        socket.curve_server = True
        return
    socket.curve_publickey = zmq.curve_public(secret)
    socket.curve_serverkey = curve.server()


def public_keys(folder: Path) -> AbstractSet[bytes]:
    """The public keys in a folder, in binary form; files that have none are passed over."""
    found = set()
    for path in folder.iterdir():
        try:
            key = _key_in(path.read_bytes(), "public-key")
        except OSError:
            continue
        if key is not None:
            found.add(z85.decode(key))
    return found


def _is_place(text: str) -> bool:
    return text.startswith(("file:", "env:"))


def _check_place(what: str, text: str) -> None:
    if not _is_place(text):
        # It may be the key itself.
        raise ConfigurationError(
            f"{what} names the place of the key and is not the key itself", hint=f"write {_PLACES}"
        )


def _read(what: str, place: str, name: str) -> bytes:
    scheme, _, rest = place.partition(":")
    if scheme == "env":
        content = os.environb.get(rest.encode())
        if content is None:
            raise ConnectorError(f"{what}: the environment has no variable {rest}")
    else:
        try:
            content = Path(rest).read_bytes()
        except OSError as error:
            raise ConnectorError(f"{what}: {rest} cannot be read: {error.strerror}") from None
    key = _key_in(content, name)
    if key is None:
        raise ConnectorError(
            f"{what}: {place} has no {name}",
            hint="a certificate as zmq.auth.create_certificates writes it, or 40 characters in Z85",
        )
    return key


def _key_in(content: bytes, name: str) -> bytes | None:
    """The key of that name in a certificate, or the key that is the complete content."""
    found = {match["name"].decode(): match["key"] for match in _LINE.finditer(content)}
    key = found.get(name) if found else content.strip()
    return key if key is not None and _KEY.fullmatch(key) else None
