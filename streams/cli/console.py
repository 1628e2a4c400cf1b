"""``streams console``: the console in the browser, for any cluster and its apps."""

from __future__ import annotations

import os
import threading
from typing import Annotated

import typer

from streams.cli.apps import load_app
from streams.cli.options import Servers, WorkerUrls, connected_cluster, into_environment
from streams.config import load_settings
from streams.errors import ConfigurationError
from streams.process.stop import StopSignals
from streams.queries.http_server import HttpServer

try:
    from streams.console.mounted import served
except ModuleNotFoundError as error:
    raise ConfigurationError(
        f"the console needs {error.name}, which is not installed", hint="pip install 'streams[console]'"
    ) from error

STOP_SECONDS = 5.0


def console(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODULE:APP]…",
            help="Programs: with them, records are decoded and dead letters can be retried.",
        ),
    ] = None,
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 chooses a free one.")] = 8090,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="STREAMS_CONSOLE_TOKEN",
            help="What browsers must send to sign in; needed for an address other than loopback.",
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Nothing can be changed.")] = False,
    discover: Annotated[
        bool, typer.Option(help="Watch all apps of the cluster, not only the named programs.")
    ] = True,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="Hide this field of values: a name, or a path such as customer.email; repeatable.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Serve requests for this host too, without a token; repeatable."),
    ] = None,
    user_header: Annotated[
        str | None,
        typer.Option(
            metavar="HEADER", help="The header in which a proxy sends the user's name, for the audit."
        ),
    ] = None,
    url: WorkerUrls = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Serve the console: whether apps keep up, why not, dead letters, state, jobs, replays, topics."""
    if token is None and host not in {"127.0.0.1", "localhost", "::1"} and not allow_host:
        raise ConfigurationError(
            f"the console would be open to whoever reaches {host}",
            hint="set --token (or STREAMS_CONSOLE_TOKEN), or --allow-host NAME behind a proxy that signs in",
        )
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    stopped = threading.Event()
    # Signals are handled before programs are imported, which may take long.
    with StopSignals(STOP_SECONDS) as signals:

        def serve() -> None:
            apps = [load_app(target) for target in targets or ()]
            with (
                served(
                    apps[0].broker() if apps else connected_cluster(bootstrap_servers),
                    apps[0].settings if apps else load_settings({}, os.environ),
                    apps,
                    token=token,
                    read_only=read_only,
                    urls=url or (),
                    discover=discover,
                    masked=mask or (),
                    hosts=[host, *(allow_host or ())],
                    user_header=user_header,
                ) as application,
                HttpServer(host, port, {}, mounts={"": application}) as server,
            ):
                print(f"The console is at {server.url}/", flush=True)  # noqa: T201 - the output itself
                signals.running(stopped.set, limited=False)
                stopped.wait()

        signals.call(serve)
