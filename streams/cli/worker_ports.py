"""The HTTP ports of an app's workers, for commands that read what workers report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.errors import ConfigurationError, TopicError
from streams.queries.directory import read_replicas
from streams.queries.http import ask, bearer, client_tls

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from streams.app import App
    from streams.config import Settings

ANSWER_SECONDS = 10.0


def published_addresses(app: App) -> list[str]:
    """The addresses that the app's workers have published. Raises ``ConfigurationError`` without any."""
    try:
        replicas = read_replicas(app.broker(), app.name)
    except TopicError:
        replicas = {}
    addresses = [address for replica in replicas.values() if (address := replica.address) is not None]
    if not addresses:
        raise ConfigurationError(
            f"no worker of {app.name!r} has published an HTTP port: what it does is reported there",
            hint="run the workers with http_port set (streams run MODULE:APP --set http_port=8080), or name "
            "their ports with --url HOST:PORT",
        )
    return sorted(set(addresses))


class WorkerPorts:
    """The workers at some addresses."""

    def __init__(self, settings: Settings, addresses: Sequence[str]) -> None:
        self.addresses = [address.removeprefix("http://").removeprefix("https://") for address in addresses]
        self._headers = bearer(settings.http_token)
        self._tls: ssl.SSLContext | None = None
        if settings.http_tls_certificate or any(address.startswith("https://") for address in addresses):
            self._tls = client_tls(settings.http_tls_ca)

    def read(self, path: str) -> dict[str, bytes | None]:
        """What each answers; ``None`` where none does: a worker that was killed stays published."""
        found: dict[str, bytes | None] = {}
        for address in self.addresses:
            response = ask(address, path, headers=self._headers, timeout=ANSWER_SECONDS, tls=self._tls)
            found[address] = None if response is None or response.status != 200 else response.body
        return found
