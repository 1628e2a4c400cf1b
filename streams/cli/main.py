"""The ``streams`` command."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import sys
import sysconfig
import time
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn
from urllib.parse import quote, urlencode, urlsplit

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from streams.app import App, check_state_dir, find_bootstrap_servers
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.cli.failures import run_command
from streams.config import PREFIX, load_settings, read_setting
from streams.devstack import localkafka
from streams.errors import ConfigurationError, QueryError, StateUnavailable, TopicError
from streams.events import configure_logging
from streams.ingest import Ingestion
from streams.ingest.line_records import LineRecords, parse_headers, part
from streams.ingest.lines import LineReader
from streams.monitoring.lag import PartitionLag, measure_lag
from streams.process.stop import Stopped, StopSignals
from streams.process.stop_signals import stop_signals
from streams.process.supervisor import Supervisor, follow_supervisor
from streams.queries.http import JSON, UNAUTHORIZED, ask, bearer, client_tls
from streams.runtime.topics import ANY_TIME, input_partitions, prepare_topics
from streams.simulation.inputs import parse_files, read_inputs
from streams.simulation.pool import (
    Simulation,
    as_json as simulation_json,
    explain,
    simulate as run_simulation,
)
from streams.simulation.schedule import parse_kinds
from streams.simulation.simulator import MOST, Report
from streams.topology.graph import parse_format
from streams.topology.topic_names import ADVICE, topic_name_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from streams.queries.http import Response

cli = typer.Typer(
    name="streams",
    help="Stream processing on Kafka in plain Python.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
broker_cli = typer.Typer(help="A real Apache Kafka on this machine, for development.", no_args_is_help=True)
topics_cli = typer.Typer(help="List, create and delete topics.", invoke_without_command=True)
cli.add_typer(broker_cli, name="broker")
cli.add_typer(topics_cli, name="topics")

out = Console()
err = Console(stderr=True)

STOP_SECONDS = 10.0
"""How long a signal may take to end what comes before the app's own settings are known."""

Target = Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the App is, e.g. shop.orders:app.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines instead of a table.")]
Servers = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", help="The cluster; else as for an app without the setting."),
]


class OnRefused(Enum):
    """What becomes of lines that the broker does not take."""

    FAIL = "fail"
    SKIP = "skip"


def main() -> NoReturn:
    """Run the command line and exit: 0, or the exit code of the error (see ``streams.errors``)."""
    sys.exit(run_command(cli))


@cli.command()
def run(
    target: Target,
    *,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Run that many processes and restart those that die.")
    ] = None,
    bootstrap_servers: Servers = None,
    create_topics: Annotated[
        bool, typer.Option("--create-topics", help="Create missing output topics (setting create_topics).")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting of the app.")
    ] = None,
    supervised_by: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run an app until SIGTERM or Ctrl-C; then it commits and leaves the group.

    Settings come from the program, the environment (STREAMS_…) and --set, each overriding the one before.
    """
    chosen = list(settings or [])
    if bootstrap_servers is not None:
        chosen.append(f"bootstrap_servers={bootstrap_servers}")
    if create_topics:
        chosen.append("create_topics=true")
    try:
        # From here on, and not only once it runs: the app's own module may take its time too.
        with StopSignals(STOP_SECONDS) as signals:
            code = _run(target, chosen, workers, supervised_by, signals)
    except Stopped:
        return
    if code:
        raise typer.Exit(code)


def _run(
    target: str,
    settings: Sequence[str],
    workers: int | None,
    supervised_by: int | None,
    signals: StopSignals,
) -> int:
    _into_environment(settings)
    app = load_app(target)
    if workers is None or supervised_by is not None:
        if supervised_by is not None:
            follow_supervisor(supervised_by)
        app.run()
        return 0
    configure_logging(app.settings.log_format, app.settings.log_level)
    _check_workers(app, workers)
    # The settings given here travel to the workers in the environment.
    command = [sys.executable, "-P", str(Path(__file__).parents[1] / "__main__.py"), "run", target]
    supervisor = Supervisor(command, workers, stop_timeout=app.settings.shutdown_timeout + 5)
    # It kills workers that take too long itself.
    signals.running(supervisor.request_stop, limited=False)
    return supervisor.run()


@cli.command()
def describe(
    target: Target,
    form: Annotated[str, typer.Option("--format", help="text, mermaid or json")] = "text",
) -> None:
    """Show an app's topology."""
    print(load_app(target).topology.describe(parse_format(form)))  # noqa: T201 - the output itself


@cli.command()
def ingest(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Files, pipes and devices; - for standard input.")
    ],
    *,
    topic: Annotated[str, typer.Option(help="Where the lines go.")],
    partitions: Annotated[int, typer.Option(min=1, help="When the topic has to be created.")] = 4,
    key: Annotated[
        str | None, typer.Option(metavar="FIELD", help="The key: a field of JSON lines, e.g. user.id.")
    ] = None,
    key_pattern: Annotated[
        str | None, typer.Option(metavar="REGEX", help="The key: the first group of a regular expression.")
    ] = None,
    timestamp: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD", help="The event time: a field with milliseconds since the epoch or ISO 8601."
        ),
    ] = None,
    timestamp_pattern: Annotated[
        str | None, typer.Option(metavar="REGEX", help="The event time: the first group.")
    ] = None,
    headers: Annotated[
        list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="A header of every record.")
    ] = None,
    on_refused: Annotated[
        OnRefused, typer.Option(help="A line that cannot be written ends it, or is left out and counted.")
    ] = OnRefused.FAIL,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Write each line of files into a topic, which is created if it does not exist (and kept for ever).

    Lines go as they arrive; their event time is when they were read, unless it is in the line. A line without
    the key or time asked for is written without. SIGTERM, SIGINT and SIGHUP end it once everything read is
    acknowledged: with exit code 0 for pipes, 128 + the signal's number in the middle of a file.
    """
    shape = LineRecords(
        topic,
        key=part("key", key, key_pattern),
        timestamp=part("timestamp", timestamp, timestamp_pattern),
        headers=parse_headers(headers or ()),
    )
    begun = time.monotonic()
    with stop_signals() as stop, ExitStack() as stack:
        sources = [stack.enter_context(LineReader.open(name)) for name in files]
        cluster = _cluster(bootstrap_servers)
        cluster.admin().create_topics(
            [NewTopic(name=topic, partitions=partitions, settings={"retention.ms": "-1"}, wished=ANY_TIME)]
        )
        writer = cluster.writer(topic)
        stack.callback(writer.close)
        known = [source.size for source in sources if source.size is not None]
        total = sum(known) if len(known) == len(sources) else None
        ingestion = Ingestion(writer, shape, stop, _warn, skip_refused=on_refused is OnRefused.SKIP)
        try:
            with _progress_bar("ingest", total, quiet=as_json) as advance:
                ingestion.progress = advance
                for source in sources:
                    if not stop:
                        ingestion.read(source)
                    elif source.is_file:
                        ingestion.unfinished = ingestion.unfinished or f"{source.name} before line 1"
        finally:
            _show_ingestion(ingestion, time.monotonic() - begun, as_json=as_json)
    if ingestion.stopped_by is not None and ingestion.unfinished is not None:
        raise typer.Exit(128 + ingestion.stopped_by)


@topics_cli.callback()
def list_topics(
    context: typer.Context,
    *,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """List the topics, internal ones left out."""
    if context.invoked_subcommand is not None:
        return
    found = [
        item
        for name, item in sorted(_cluster(bootstrap_servers).admin().topics().items())
        if name[:2] != "__"
    ]
    if as_json:
        for item in found:
            _line(
                {
                    "topic": item.name,
                    "partitions": item.partitions,
                    "replication_factor": item.replication_factor,
                }
            )
        return
    table = Table("topic", "partitions", "replicas")
    for item in found:
        table.add_row(item.name, str(item.partitions), str(item.replication_factor))
    out.print(table)


@topics_cli.command("create")
def create_topics(
    names: Annotated[list[str], typer.Argument(metavar="TOPIC…")],
    *,
    partitions: Annotated[int, typer.Option(min=1)] = 4,
    replication_factor: Annotated[
        int | None, typer.Option(min=1, help="The broker's default if left out.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Topic settings, e.g. retention.ms=-1."),
    ] = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Create topics; those that exist are left as they are."""
    pairs = dict(_pair(item) for item in settings or ())
    for name in names:
        fault = topic_name_fault(name)
        if fault:
            raise ConfigurationError(f"{name!r} cannot name a topic: {fault}", hint=ADVICE)
    created = (
        _cluster(bootstrap_servers)
        .admin()
        .create_topics(
            [
                NewTopic(
                    name=name, partitions=partitions, replication_factor=replication_factor, settings=pairs
                )
                for name in names
            ]
        )
    )
    for name in names:
        out.print(f"{name}: {'created' if name in created else 'exists already'}")


@topics_cli.command("delete")
def delete_topics(
    names: Annotated[list[str], typer.Argument(metavar="TOPIC…")], *, bootstrap_servers: Servers = None
) -> None:
    """Delete topics with all their records."""
    _cluster(bootstrap_servers).admin().delete_topics(names)


@cli.command()
def lag(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP|GROUP", help="An app, or a group's id.")],
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every second until Ctrl-C.")] = False,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a group is behind its input."""
    if ":" in target:
        if bootstrap_servers is not None:
            _into_environment([f"bootstrap_servers={bootstrap_servers}"])
        app = load_app(target)
        admin, group = app.broker().admin(), app.name
        topics = list(input_partitions(app.topology, admin.topics()))
    else:
        admin, group = _cluster(bootstrap_servers).admin(), target
        topics = None
    lags = measure_lag(admin, group, topics)
    if not lags:
        raise TopicError(
            f"group {group!r} has no committed offsets", hint="is the name right? it is the app's"
        )
    if as_json:
        while True:
            for item in lags:
                _line(
                    {
                        "topic": item.partition.topic,
                        "partition": item.partition.partition,
                        "committed": item.committed,
                        "end": item.end,
                        "lag": item.lag,
                    }
                )
            if not watch:
                return
            time.sleep(1)
            lags = measure_lag(admin, group, topics)
    if not watch:
        out.print(_lag_table(lags))
        return
    with Live(_lag_table(lags), console=out) as live:
        while True:
            time.sleep(1)
            live.update(_lag_table(measure_lag(admin, group, topics)))


@cli.command()
def query(
    store: Annotated[str | None, typer.Argument(help="The store; all are listed without it.")] = None,
    key: Annotated[str | None, typer.Argument(help="As in a URL, not encoded; all without it.")] = None,
    *,
    url: Annotated[
        str, typer.Option(help="Where a worker of the app serves HTTP.")
    ] = "http://127.0.0.1:8080",
    start: Annotated[str | None, typer.Option(help="The first key, or start of windows (ms).")] = None,
    stop: Annotated[str | None, typer.Option(help="Where to end: itself no longer shown.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many entries.")] = None,
    base64: Annotated[
        bool, typer.Option("--base64", help="Keys are given and shown in base64: for those that are no text.")
    ] = False,
) -> None:
    """Ask the running workers of an app for their state, as JSON lines: any of them answers for all.

    The token, if they want one, is taken from STREAMS_HTTP_TOKEN, and the file with the authorities by which
    HTTPS certificates are checked, if not the system's, from STREAMS_HTTP_TLS_CA.
    """
    asked = partial(_asked, _parse_url(url))
    stores = {item["name"]: item for item in asked("/stores", {})["stores"]}
    if store is None:
        for item in stores.values():
            _line(item)
        return
    encoding = {"encoding": "base64"} if base64 else {}
    bounds = {"start": start, "stop": stop, "limit": limit} | encoding
    path = f"/stores/{quote(store, safe='')}"
    if key is None:
        for entry in asked(path, bounds | {"all": "true"})["entries"]:
            _line(entry)
        return
    windowed = store in stores and stores[store]["windowed"]
    path += f"/{'windows' if windowed else 'keys'}/{quote(key, safe='', errors='surrogateescape')}"
    answer = asked(path, bounds if windowed else encoding)
    for entry in answer["windows"] if windowed else [answer]:
        _line(entry)


@cli.command()
def simulate(
    target: Target,
    *,
    seeds: Annotated[int, typer.Option(min=1, help="How many schedules, with the seeds from 0 on.")] = 1000,
    seed: Annotated[int | None, typer.Option(min=0, help="Only this one, to see it again.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="TOPIC=FILE", help="Each line is a value, as for ingest."),
    ] = None,
    records: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC=FILE", help="Each line is JSON: key, value, timestamp, headers, partition."
        ),
    ] = None,
    partitions: Annotated[int, typer.Option(min=1, help="Of each input topic.")] = 1,
    most: Annotated[int, typer.Option(min=1, help="Disturbances in a schedule.")] = MOST,
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help="Only these disturbances, see the README."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="TOPIC", help="Topics that are not compared.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="One for each CPU if left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run an app under many schedules of crashes, aborts and rebalances, and compare what it writes.

    It runs in memory, on an input of yours. Exit code 1 if a schedule gives other results than an undisturbed
    run; the schedule is shown as short as it can be made.
    """
    simulation = Simulation(
        load=partial(load_app, target),
        inputs=read_inputs(load_app(target).topology, parse_files(inputs or ()), parse_files(records or ())),
        partitions=partitions,
        most=most,
        kinds=parse_kinds(kinds) if kinds else None,
        ignore=ignore or (),
    )
    wanted = range(seeds) if seed is None else range(seed, seed + 1)
    count = processes or os.cpu_count() or 1
    report = Report()
    begun = time.monotonic()
    stopped = False
    with _schedules_bar(len(wanted), quiet=as_json) as show:
        try:
            for more in run_simulation(simulation, wanted, count):
                report.add(more)
                show(report)
        except KeyboardInterrupt:
            stopped = True
    seconds = time.monotonic() - begun
    if as_json:
        _line(simulation_json(report) | {"seconds": round(seconds, 3), "processes": count})
    else:
        _show_simulation(report, seconds, count)
        for difference in report.differences:
            replay = ["streams", "simulate", target, "--seed", str(difference.seed)]
            given = {"input": inputs, "records": records, "kind": kinds, "ignore": ignore}
            for option, values in given.items():
                for value in values or ():
                    replay += [f"--{option}", value]
            if partitions != 1:
                replay += ["--partitions", str(partitions)]
            if most != MOST:
                replay += ["--most", str(most)]
            out.print(f"[bold red]seed {difference.seed} gives other results[/], with this alone:")
            for line in [*explain(difference), f"again: {shlex.join(replay)}"]:
                out.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if stopped:
        raise typer.Exit(130)
    if report.differences:
        raise typer.Exit(1)


@broker_cli.command("start")
def broker_start(
    *,
    nodes: Annotated[int, typer.Option(help="1 or 3.")] = 1,
    port: Annotated[int | None, typer.Option(help="Of the first node; a free one unless given.")] = None,
) -> None:
    """Start a local Kafka that goes on running; apps find it by themselves."""
    cluster = localkafka.start_detached(nodes=nodes, port=port, report=err.print)
    out.print(cluster.bootstrap_servers)


@broker_cli.command("stop")
def broker_stop() -> None:
    """Stop the local Kafka; its data is kept."""
    localkafka.stop(report=err.print)


@broker_cli.command("clean")
def broker_clean() -> None:
    """Stop the local Kafka and remove its data and the download."""
    localkafka.clean(report=err.print)


@broker_cli.command("status")
def broker_status(*, as_json: AsJson = False) -> None:
    """Show whether the local Kafka runs, and where. Exit code 1 if it does not."""
    cluster = localkafka.running()
    if cluster is None:
        err.print("no local Kafka is running")
        raise typer.Exit(1)
    rows = [
        {
            "node": item.number,
            "state": item.state,
            "address": item.address,
            "pid": item.pid,
            "memory_mb": item.resident_mb,
            "log": str(item.log_file),
        }
        for item in cluster.status()
    ]
    if as_json:
        for row in rows:
            _line(row)
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out.print(table)


@broker_cli.command("logs")
def broker_logs(
    *, lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Of each node's log.")] = 40
) -> None:
    """Show the last lines of the local Kafka's logs."""
    cluster = localkafka.running()
    if cluster is None:
        err.print("no local Kafka is running")
        raise typer.Exit(1)
    for file in cluster.log_files:
        err.print(f"{file}:")
        print("\n".join(file.read_text(errors="replace").splitlines()[-lines:]))  # noqa: T201 - the output itself


def load_app(target: str) -> App:
    """The app at ``module:attribute``; the current folder is importable. Raises ``ConfigurationError``."""
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute) or module_name.startswith("."):
        raise ConfigurationError(f"{target!r} names no app", hint="write MODULE:APP, e.g. shop.orders:app")
    try:
        folder = str(Path.cwd())
    except FileNotFoundError as error:
        raise ConfigurationError(
            "the current folder does not exist any more", hint="cd to another one"
        ) from error
    if folder not in sys.path:
        sys.path.insert(_after_the_standard_library(), folder)
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigurationError(
            f"{target!r} names a module of Python's own", hint="give your file another name"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        hint = f"looked in {folder} and the Python path"
        if module_name.endswith(".py") or "/" in module_name:
            hint = f"write {module_name.removesuffix('.py').strip('./').replace('/', '.')}:{attribute}"
        raise ConfigurationError(f"module {module_name!r} is not found", hint=hint) from error
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        found = [name for name, value in vars(module).items() if isinstance(value, App)]
        raise ConfigurationError(
            f"{target!r} is no App but {type(app).__name__}",
            hint=f"apps in {module_name}: {', '.join(found) or 'none'}",
        )
    return app


def _after_the_standard_library() -> int:
    """Where on the module search path a program's folder belongs.

    Before what is installed, and after Python's own modules: some of these are only imported when they are
    needed, and a file ``queue.py`` or ``token.py`` in that folder would then take their place.
    """
    library = Path(sysconfig.get_path("stdlib"))
    own = [at for at, entry in enumerate(sys.path) if Path(entry) in (library, library / "lib-dynload")]
    return max(own, default=-1) + 1


def _check_workers(app: App, workers: int) -> None:
    topology = app.topology
    check_state_dir(app)
    admin = app.broker().admin()
    inputs = prepare_topics(
        topology,
        admin,
        application=app.name,
        dead_letter_topic=app.dead_letter_topic,
        create_outputs=app.settings.create_topics,
    )
    if workers > max(inputs.values(), default=workers):
        largest = max(inputs, key=lambda name: inputs[name])
        raise TopicError(
            f"{workers} workers, but the largest input topic, {largest}, has {inputs[largest]} partitions",
            hint=f"a partition has one worker at a time: use --workers {inputs[largest]} or add partitions",
        )


def _into_environment(settings: Sequence[str]) -> None:
    for item in settings:
        name, value = _pair(item)
        read_setting(name.lower(), value, f"--set {name}")
        os.environ[PREFIX + name.upper()] = value


def _pair(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals:
        raise ConfigurationError(f"{item!r} is no setting", hint="write NAME=VALUE")
    return name, value


def _cluster(bootstrap_servers: str | None) -> KafkaBroker:
    settings = load_settings({}, os.environ)
    named = bootstrap_servers or settings.bootstrap_servers or find_bootstrap_servers()
    return KafkaBroker(
        settings.client,
        servers=named,
        consumer=settings.consumer,
        producer=settings.producer,
    )


class _Url(NamedTuple):
    """Where a worker, or a proxy in front of workers, serves HTTP."""

    address: str
    prefix: str
    secure: bool


def _parse_url(text: str) -> _Url:
    """Raises ``ConfigurationError`` for what is no address of a worker."""
    hint = "write http://HOST:PORT or https://HOST:PORT, with a path if a proxy serves the workers below one"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is no URL: {error}", hint=hint) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(f"{text!r} is no worker's URL", hint=hint)
    if "@" in parts.netloc:
        raise ConfigurationError(
            "a name and a password in the URL are not sent", hint="give the token in STREAMS_HTTP_TOKEN"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    secure = parts.scheme == "https"
    return _Url(f"{host}:{port or (443 if secure else 80)}", parts.path.rstrip("/"), secure)


def _asked(url: _Url, path: str, options: Mapping[str, object]) -> Any:
    """A worker's answer. Raises ``StateUnavailable`` where none answers, ``QueryError`` with what it says."""
    address = url.address
    chosen = {name: value for name, value in options.items() if value is not None}
    target = url.prefix + (f"{path}?{urlencode(chosen, errors='surrogateescape')}" if chosen else path)
    settings = load_settings({}, os.environ)
    token = settings.http_token
    tls = client_tls(settings.http_tls_ca) if url.secure else None
    try:
        response = ask(address, target, headers=bearer(token), timeout=10, tls=tls)
    except SSLCertVerificationError as error:
        raise QueryError(
            f"the certificate of {address} is not trusted: {error}",
            hint="STREAMS_HTTP_TLS_CA names a file (PEM) with the authority that signed it",
        ) from error
    if response is None:
        raise StateUnavailable(
            f"nobody answers at {address}", hint="--url names a worker's HTTP port (setting http_port)"
        )
    if response.status == UNAUTHORIZED.status:
        raise QueryError(
            f"{address} does not answer without {'another' if token else 'a'} token",
            hint="set STREAMS_HTTP_TOKEN to the app's http_token",
        )
    answer = _json_object(response)
    if answer is None:
        text = response.body.decode(errors="replace").strip()
        raise QueryError(f"{address} has no {path}: {text[:200]}", hint="is a worker's HTTP port there?")
    if response.status != 200:
        raise QueryError(str(answer.get("error", answer)))
    return answer


def _json_object(response: Response) -> dict[str, Any] | None:
    """The object in an answer; ``None`` where there is something else, as of another server."""
    if response.content_type.partition(";")[0].strip() != JSON:
        return None
    try:
        found = json.loads(response.body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _show_ingestion(ingestion: Ingestion, seconds: float, *, as_json: bool) -> None:
    """What was written. Whoever reads that may be gone, as a closed terminal: the exit code stands."""
    shape, count, stopped = ingestion.shape, ingestion.records, ingestion.stopped_by
    notes = {
        "refused": ingestion.refused,
        "without_key": shape.without_key,
        "without_timestamp": shape.without_timestamp,
    }
    try:
        if as_json:
            _line(
                {"topic": shape.topic, "records": count, "seconds": round(seconds, 3)}
                | {name: number for name, number in notes.items() if number}
                | ({"stopped_by": stopped.name} if stopped is not None else {})
            )
            return
        if stopped is not None:
            _warn(
                f"stopped by {stopped.name}" + (f", {ingestion.unfinished}" if ingestion.unfinished else "")
            )
        if ingestion.half_line:
            _warn("the last record is a line that had not ended")
        for name, number in notes.items():
            if number:
                _warn(f"{number:,} lines {name.replace('_', ' ')}")
        rate = count / max(seconds, 1e-9)
        out.print(f"{count:,} records into {shape.topic} in {seconds:.1f} s ({rate:,.0f} a second)")
        out.file.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warn(text: str) -> None:
    err.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress_bar(title: str, total: int | None, *, quiet: bool) -> Iterator[Any]:
    """A bar over bytes that also counts records; ``advance(records, bytes)`` moves it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[records]:,} records, {task.fields[rate]:,.0f} a second"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as progress:
        task = progress.add_task(title, total=total, records=0, rate=0.0)
        begun, records = time.monotonic(), 0

        def advance(more: int, size: int) -> None:
            nonlocal records
            records += more
            rate = records / max(time.monotonic() - begun, 1e-9)
            progress.update(task, advance=size, records=records, rate=rate)

        yield advance


@contextmanager
def _schedules_bar(total: int, *, quiet: bool) -> Iterator[Callable[[Report], None]]:
    columns = (
        TextColumn("simulate"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} schedules, {task.fields[rate]:,.0f} a second"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as progress:
        task = progress.add_task("simulate", total=total, rate=0.0)
        begun = time.monotonic()

        def show(report: Report) -> None:
            rate = report.schedules / max(time.monotonic() - begun, 1e-9)
            progress.update(task, completed=report.schedules, rate=rate)

        yield show


def _show_simulation(report: Report, seconds: float, processes: int) -> None:
    table = Table("disturbance", "times")
    for kind, times in sorted(report.disturbances.items()):
        table.add_row(kind, f"{times:,}")
    table.add_section()
    table.add_row("total", f"{report.disturbances.total():,}")
    out.print(table)
    for topic, how in report.compared.items():
        out.print(f"{topic}: {how}", highlight=False)
    rate = report.schedules / max(seconds, 1e-9)
    out.print(
        f"{report.schedules:,} schedules in {seconds:.1f} s ({rate:,.0f} a second, {processes} "
        f"{'process' if processes == 1 else 'processes'}): {report.records:,} records compared, "
        f"{report.again:,} records of the input read again, {len(report.differences)} "
        f"{'difference' if len(report.differences) == 1 else 'differences'}",
        highlight=False,
    )


def _lag_table(lags: Sequence[PartitionLag]) -> Table:
    table = Table("topic", "partition", "committed", "end", "lag")
    for item in lags:
        committed = "none" if item.committed is None else f"{item.committed:,}"
        table.add_row(
            item.partition.topic, str(item.partition.partition), committed, f"{item.end:,}", f"{item.lag:,}"
        )
    table.add_section()
    table.add_row("total", "", "", "", f"{sum(item.lag for item in lags):,}")
    return table


def _line(fields: dict[str, Any]) -> None:
    print(json.dumps(fields), flush=True)  # noqa: T201 - the output itself
