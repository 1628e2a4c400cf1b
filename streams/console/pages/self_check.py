"""Self-check: whether anything is missing that the other pages need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from streams.console.page import Page

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console


class Check(NamedTuple):
    """What was checked: whether it is as it should be, and what to do if it is not."""

    subject: str
    good: bool
    sentence: str
    advice: str = ""


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def self_check(request: Request) -> Response:
        checks = [*_of_cluster(console)]
        for app in console.apps.values():
            checks += _of_app(app)
        return console.render(
            request,
            "self_check.html",
            page="self-check",
            title="Self-check",
            checks=sorted(checks, key=lambda check: check.good),
        )

    return [console.get("/self-check", self_check)]


def _of_cluster(console: Console) -> Iterator[Check]:
    cluster = console.cluster
    if cluster.problem:
        yield Check(
            "cluster",
            False,
            f"it could not be read: {cluster.problem}",
            "Topics, dead letters and the directory of workers cannot be read meanwhile; workers can.",
        )
    elif cluster.time is None:
        yield Check("cluster", False, "it is being read for the first time")
    else:
        yield Check("cluster", True, f"{len(cluster.topics):,} topics are visible")
    if console.read_only:
        yield Check("actions", True, "the console is read-only: nothing can be changed here")
    elif console.sessions.open:
        yield Check(
            "actions", True, "whoever reaches this port may act: it is bound to loopback or trusted hosts"
        )


def _of_app(app: AppSnapshot) -> Iterator[Check]:
    report = app.report
    if app.problems:
        for problem in app.problems:
            yield Check(
                app.name, False, problem, "Set http_port for the workers, or name them: --url HOST:PORT."
            )
    if report.silent:
        yield Check(
            app.name,
            False,
            f"no worker answers at {', '.join(report.silent)}",
            "They were killed, cannot be reached from here, or have another http_token. An address that is "
            "wrong from here is corrected by http_advertised_host.",
        )
    if report.workers:
        yield Check(app.name, True, f"{len(report.workers)} workers answer")
        versions = sorted({worker.version for worker in report.workers})
        if len(versions) > 1:
            yield Check(
                app.name,
                False,
                f"its workers run different versions: {', '.join(versions)}",
                "During a rolling upgrade that is expected.",
            )
    if report.missing:
        yield Check(
            app.name,
            False,
            f"{len(report.missing)} partitions of its input are reported by no worker",
            "During a rebalance that is expected; else too few workers answer.",
        )
    if app.topology is None:
        yield Check(
            app.name, False, "its topology is unknown", "It is read from a worker, or from the program."
        )
    if app.program is None:
        yield Check(
            app.name,
            False,
            "the console does not have its program: records are shown as text or bytes, and dead letters "
            "cannot be retried",
            f"Start the console with it: streams console MODULE:app, where app is App({app.name!r}).",
        )
    else:
        yield Check(app.name, True, "its program is here: records are decoded by its serdes")


SELF_CHECK: Final = Page("self-check", "Self-check", of_app=False, routes=routes)
