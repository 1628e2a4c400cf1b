"""``streams run``: one worker, or several under a supervisor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.app import check_state_dir
from streams.cli.apps import load_app
from streams.cli.options import Servers, Target, into_environment
from streams.errors import TopicError
from streams.process.ownership import own_process
from streams.process.stop import StopSignals
from streams.process.supervisor import Supervisor, follow_supervisor
from streams.runtime.topics import prepare_topics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.app import App

STOP_SECONDS = 10.0
"""How long a stop may take, in seconds, before the app's own ``shutdown_timeout`` is known."""


def run(
    target: Target,
    *,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of worker processes; those that die are restarted.")
    ] = None,
    bootstrap_servers: Servers = None,
    create_topics: Annotated[
        bool, typer.Option("--create-topics", help="Create missing output topics (setting create_topics).")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a setting of the app.")
    ] = None,
    supervised_by: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run an app until SIGTERM or Ctrl-C; it then commits and leaves the group.

    Settings come from the program, the environment (STREAMS_…) and --set; later ones override earlier ones.
    """
    chosen = list(settings or [])
    if create_topics:
        chosen.append("create_topics=true")
    run_app(
        lambda: load_app(target),
        ["run", target],
        settings=chosen,
        bootstrap_servers=bootstrap_servers,
        workers=workers,
        supervised_by=supervised_by,
    )


def run_app(
    make: Callable[[], App],
    arguments: Sequence[str],
    *,
    settings: Sequence[str],
    bootstrap_servers: str | None,
    workers: int | None,
    supervised_by: int | None,
) -> None:
    """Run the app that ``make`` returns, or workers under a supervisor: ``streams`` with ``arguments``.

    Exits with the code of the workers.
    """
    chosen = list(settings)
    if bootstrap_servers is not None:
        chosen.append(f"bootstrap_servers={bootstrap_servers}")
    codes: list[int] = []
    # Signals are handled before the app's module is imported, which may take long.
    with StopSignals(STOP_SECONDS) as signals:
        signals.call(lambda: codes.append(_run(make, arguments, chosen, workers, supervised_by, signals)))
    if any(codes):
        raise typer.Exit(codes[0])


def _run(
    make: Callable[[], App],
    arguments: Sequence[str],
    settings: Sequence[str],
    workers: int | None,
    supervised_by: int | None,
    signals: StopSignals,
) -> int:
    into_environment(settings)
    app = make()
    if workers is None or supervised_by is not None:
        if supervised_by is not None:
            follow_supervisor(supervised_by)
        app.run(own_process=True)
        return 0
    own_process(app.settings.log_format, app.settings.log_level)
    _check_workers(app, workers)
    # The workers inherit the settings given here through the environment.
    command = [sys.executable, "-P", str(Path(__file__).parents[1] / "__main__.py"), *arguments]
    supervisor = Supervisor(command, workers, stop_timeout=app.settings.shutdown_timeout + 5)
    # The supervisor itself kills workers that exceed the time limit.
    signals.running(supervisor.request_stop, limited=False)
    return supervisor.run()


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
    # Further workers stand by to take over a source.
    if not topology.source_topics and workers > max(inputs.values(), default=workers):
        largest = max(inputs, key=lambda name: inputs[name])
        raise TopicError(
            f"{workers} workers, but the largest input topic, {largest}, has {inputs[largest]} partitions",
            hint=f"one worker processes a partition: use --workers {inputs[largest]}, or add partitions",
        )
