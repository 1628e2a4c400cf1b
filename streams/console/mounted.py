"""The console within a worker's HTTP port: of the worker's own app, on the worker's broker."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from streams.console.application import application
from streams.console.audit import Audit
from streams.console.collector import Collector
from streams.console.console import Console
from streams.console.formats import ValueFormat
from streams.console.lookups import Lookups
from streams.console.sessions import Sessions
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from streams.app import App
    from streams.broker import Broker
    from streams.config import Settings


@contextmanager
def mounted(app: App, broker: Broker) -> Iterator[Any]:
    """The console of a worker's app, which collects until the context ends.

    Raises ``ConfigurationError`` if it may change something without a token.
    """
    settings = app.settings
    if settings.http_console == "full" and settings.http_token is None:
        raise ConfigurationError(
            "http_console='full' needs http_token: whoever reaches the port could retry dead letters",
            hint="set http_token, or http_console='read_only'",
        )
    host = settings.http_advertised_host or settings.http_host
    with served(
        broker,
        settings,
        [app],
        token=settings.http_token,
        read_only=settings.http_console == "read_only",
        hosts=[host, settings.http_host],
    ) as made:
        yield made


@contextmanager
def served(
    broker: Broker,
    settings: Settings,
    apps: Sequence[App],
    *,
    token: str | None,
    read_only: bool,
    urls: Sequence[str] = (),
    discover: bool = False,
    masked: Collection[str] = (),
    hosts: Collection[str] = (),
    user_header: str | None = None,
) -> Iterator[Any]:
    """A console as an ASGI application, which collects until the context ends. See ``Collector``."""
    with ExitStack() as stack:
        lookups = stack.enter_context(closing(Lookups()))
        collector = stack.enter_context(Collector(broker, settings, apps, urls=urls, discover=discover))
        console = Console(
            collector,
            lookups,
            Audit(broker),
            Sessions(token),
            ValueFormat(masked),
            read_only=read_only,
            user_header=user_header,
        )
        yield application(console, hosts)
