"""The URL of a server, with its secrets kept out of everything that is shown."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from streams.errors import ConfigurationError, ConnectorError

USER_VARIABLE: Final = "RABBITMQ_USERNAME"
PASSWORD_VARIABLE: Final = "RABBITMQ_PASSWORD"  # noqa: S105 - the name of the variable
PASSWORD_FILE_VARIABLE: Final = "RABBITMQ_PASSWORD_FILE"  # noqa: S105 - the name of the variable
"""Have the user and the password that a URL leaves out; the file is read at each connection."""

HEARTBEAT_SECONDS: Final = 10
"""How often each side has to send something. A side that is silent for twice this time is gone."""

_PORTS: Final = {"amqp": 5672, "amqps": 5671}
_OPTIONS: Final = frozenset(
    {"auth_mechanism", "cacertfile", "certfile", "heartbeat", "keyfile", "server_name_indication", "verify"}
)
"""What a URL may have after its ``?``, by RabbitMQ's own names."""
_HINT: Final = "write amqp://USER@HOST:PORT/VIRTUAL_HOST, or amqps://… for TLS; %2F is the virtual host /"


class Login(NamedTuple):
    """Who connects."""

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server is, and how it is connected to."""

    host: str
    port: int
    virtual_host: str
    secured: bool
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)
    options: dict[str, str] = field(repr=False)

    @classmethod
    def parse(cls, url: str, what: str) -> ServerAddress:
        """Read a URL. Raises ``ConfigurationError``, which shows none of it; ``what`` names the connector."""
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
            options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        except ValueError:
            # Its message may have a part of the URL, and with it the password.
            raise ConfigurationError(f"{what}: the url is none of RabbitMQ", hint=_HINT) from None
        path = parts.path.removeprefix("/")
        if parts.scheme not in _PORTS or "/" in path or parts.fragment:
            raise ConfigurationError(f"{what}: the url is none of RabbitMQ", hint=_HINT)
        if not parts.hostname:
            raise ConfigurationError(f"{what}: the url names no host", hint=_HINT)
        _check_options(options, what, secured=parts.scheme == "amqps")
        return cls(
            host=parts.hostname,
            port=port,
            virtual_host=unquote(path) or "/",
            secured=parts.scheme == "amqps",
            user=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
            options=options,
        )

    def __str__(self) -> str:
        """The server as errors and descriptions name it: without user, password and options."""
        scheme = "amqps" if self.secured else "amqp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{self.virtual_host.removeprefix('/')}"

    @property
    def place(self) -> str:
        """Host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def heartbeat(self) -> int:
        """In seconds."""
        return int(self.options.get("heartbeat", HEARTBEAT_SECONDS))

    @property
    def mechanism(self) -> str:
        """How the server recognises the user: by a password, or by the certificate of the connection."""
        return self.options.get("auth_mechanism", "PLAIN").upper()

    def login(self) -> Login:
        """User and password, as URL, environment and file have them now. Raises ``ConnectorError``."""
        user = self.user or os.environ.get(USER_VARIABLE) or "guest"
        password = self.password
        if password is None:
            password = os.environ.get(PASSWORD_VARIABLE)
        file = os.environ.get(PASSWORD_FILE_VARIABLE)
        if password is None and file:
            try:
                password = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise ConnectorError(
                    f"the file of {PASSWORD_FILE_VARIABLE} cannot be read: {error}",
                    hint="correct the variable, or let this user read the file",
                ) from error
        return Login(user, ("guest" if user == "guest" else "") if password is None else password)

    def tls(self) -> ssl.SSLContext | None:
        """How the connection is secured, ``None`` without TLS. Raises ``ConnectorError``."""
        if not self.secured:
            return None
        options = self.options
        try:
            context = ssl.create_default_context(cafile=options.get("cacertfile"))
            if "certfile" in options:
                context.load_cert_chain(options["certfile"], options.get("keyfile"), password="")
        except (OSError, ssl.SSLError) as error:
            raise ConnectorError(
                f"{self}: a file of its certificates cannot be read: {error}",
                hint="correct cacertfile=, certfile= and keyfile= in the url; a key must not be encrypted",
            ) from error
        if options.get("verify") == "verify_none":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    @property
    def server_name(self) -> str:
        """The name that the server's certificate must have."""
        return self.options.get("server_name_indication", self.host)


def _check_options(options: dict[str, str], what: str, *, secured: bool) -> None:
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise ConfigurationError(
            f"{what}: the url has the options {', '.join(unknown)}, which are not known",
            hint=f"these are: {', '.join(sorted(_OPTIONS))}",
        )
    plain = options.keys() - {"heartbeat"}
    if plain and not secured:
        raise ConfigurationError(f"{what}: {', '.join(sorted(plain))} in the url is for amqps://")
    for option, allowed in (
        ("verify", ("verify_peer", "verify_none")),
        ("auth_mechanism", ("plain", "external")),
    ):
        if options.get(option, allowed[0]) not in allowed:
            raise ConfigurationError(f"{what}: {option} in the url is none of {', '.join(allowed)}")
    if not options.get("heartbeat", "1").isdecimal() or int(options.get("heartbeat", "1")) < 1:
        raise ConfigurationError(f"{what}: heartbeat in the url is a number of seconds, at least 1")
