"""Jobs and schedules: what waits and why, what runs, what has failed, and what is to be done about it."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from streams.app import queue_if_any
from streams.console.console import Planned
from streams.console.job_actions import JobActions
from streams.console.job_figures import events, functions, selected, totals
from streams.console.job_lookups import Filters, JobLookups
from streams.console.moments import HINT
from streams.console.page import Page
from streams.console.worker_figures import worker_figures
from streams.errors import ConfigurationError
from streams.jobs.reasons import JobState
from streams.jobs.record import Ending, JobId, jobs_topic
from streams.jobs.selection import STATES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console

SHOWN: Final = 50
"""Jobs on one page."""

SHOWN_FUNCTIONS: Final = 100
SHOWN_SCHEDULES: Final = 200
SHOWN_COMMANDS: Final = 100


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""
    read = JobLookups(console)

    def jobs(request: Request) -> Response:
        app = console.app(request)
        filters = Filters.of(request.query_params)
        queue, day = read.queue(app), read.day(app)
        figures = worker_figures(console, app)
        running = read.running(app)
        problem, count = "", 0
        rows: list[dict[str, Any]] = []
        number = max(1, _number(request.query_params.get("part", "1")))
        try:
            selection = filters.selection()
        except ConfigurationError as error:
            problem = str(error)
        else:
            rows, count = selected(queue.value, day.value, selection, (number - 1) * SHOWN, SHOWN)
        rows_of_functions = functions(app, queue.value, day.value, running)
        return console.render(
            request,
            "jobs.html",
            page="jobs",
            title="Jobs and schedules",
            app=app,
            tab="jobs",
            absent=_absent(console, app),
            queue=queue,
            day=day,
            figures=figures,
            functions=rows_of_functions[:SHOWN_FUNCTIONS],
            more_functions=max(0, len(rows_of_functions) - SHOWN_FUNCTIONS),
            totals=totals(rows_of_functions),
            exact=running is not None,
            filters=filters,
            states=STATES,
            hint=HINT,
            problem=problem,
            rows=rows,
            count=count,
            number=number,
            last=max(1, -(-count // SHOWN)),
            first=(number - 1) * SHOWN + 1,
        )

    def schedules(request: Request) -> Response:
        app = console.app(request)
        program = app.program
        looked = None if program is None else read.schedules(app)
        known = {} if program is not None else _known_schedules(console, app)
        return console.render(
            request,
            "job_schedules.html",
            page="jobs",
            title="Jobs and schedules",
            app=app,
            tab="schedules",
            absent=_absent(console, app),
            looked=looked,
            known=known,
            shown=SHOWN_SCHEDULES,
            now=time.time_ns() // 1_000_000,
        )

    def commands(request: Request) -> Response:
        app = console.app(request)
        return console.render(
            request,
            "job_commands.html",
            page="jobs",
            title="Jobs and schedules",
            app=app,
            tab="commands",
            absent=_absent(console, app),
            queue=read.queue(app),
            shown=SHOWN_COMMANDS,
        )

    def job(request: Request) -> Response:
        app = console.app(request)
        try:
            identifier = JobId.parse(request.path_params["id"])
        except ConfigurationError as error:
            raise HTTPException(404, str(error)) from error
        looked = read.job(app, identifier)
        fields = None if looked.value is None else looked.value.fields
        return console.render(
            request,
            "job.html",
            page="jobs",
            title=f"Job {identifier}",
            app=app,
            id=str(identifier),
            looked=looked,
            fields=fields,
            arguments=_shown(console, fields, "arguments"),
            result=_shown(console, fields, "result"),
            error=None if looked.value is None or looked.value.end is None else looked.value.end.error,
            events=[] if looked.value is None else events(looked.value.fields or {}, looked.value.commands),
            can_retry=fields is not None and fields["state"] in _RETRIED,
            can_cancel=fields is not None and "ended" not in fields,
        )

    def confirm(request: Request) -> Response:
        app = console.app(request)
        filters = Filters.of(request.query_params)
        asked = request.query_params.get("asked", "")
        if not asked:
            now = time.time_ns() // 1_000_000
            return RedirectResponse(
                console.app_url(request, app.name, "jobs/purge", **filters.query, asked=now), 303
            )
        problem, looked = "", None
        try:
            _purged(filters)
            looked = read.purge(app, filters, asked)
        except ConfigurationError as error:
            problem = str(error)
        jobs = [] if looked is None or looked.value is None else looked.value
        return console.render(
            request,
            "jobs_purge.html",
            page="jobs",
            title="Cancel jobs",
            app=app,
            filters=filters,
            asked=asked,
            problem=problem,
            looked=looked,
            count=len(jobs),
            groups=sorted(Counter((name, state) for _, name, state in jobs).items()),
        )

    return [
        console.get("/apps/{app}/jobs", jobs),
        console.get("/apps/{app}/jobs/schedules", schedules),
        console.get("/apps/{app}/jobs/commands", commands),
        console.get("/apps/{app}/jobs/purge", confirm),
        console.get("/apps/{app}/jobs/{id}", job),
        *_actions(console, read),
    ]


_RETRIED: Final = (
    JobState.RETRYING.value,
    Ending.FAILED.value,
    Ending.EXPIRED.value,
    Ending.CANCELLED.value,
)
"""The states of jobs that can be retried."""


def _actions(console: Console, read: JobLookups) -> list[Route]:
    def plan(
        request: Request, target: str, details: Mapping[str, str], location: str, run: str, **arguments: Any
    ) -> Planned:
        app = console.app(request)
        by = console.who(request)

        def act() -> str:
            actions = JobActions(console.collector.broker, app.name, app.program, by)
            try:
                return str(getattr(actions, run)(**arguments))
            finally:
                console.lookups.forget("jobs", app.name)

        return Planned(app.name, target, details, act, f"/apps/{quote(app.name, safe='')}/{location}")

    def one(run: str) -> Any:
        def planned(request: Request, form: Mapping[str, str]) -> Planned:
            job = JobId.parse(form.get("id", ""))
            return plan(request, str(job), {}, f"jobs/{job}", run, job=job)

        return planned

    def scope(run: str) -> Any:
        def planned(request: Request, form: Mapping[str, str]) -> Planned:
            function, key = form.get("function") or None, form.get("key") or None
            if (function is not None) + (key is not None) + (form.get("all") == "1") != 1:
                raise ConfigurationError("one of a function, a key and all jobs is to be chosen")
            details = {
                name: text for name, text in (("function", function), ("key", key)) if text is not None
            }
            target = function or key or "all jobs"
            return plan(request, target, details, "jobs", run, function=function, key=key)

        return planned

    def purge(request: Request, form: Mapping[str, str]) -> Planned:
        app = console.app(request)
        filters = Filters.of(form)
        _purged(filters)
        looked = read.purge(app, filters, form.get("asked", ""))
        if looked.value is None or not looked.value:
            raise ConfigurationError("the jobs have to be counted again", hint="load the page again")
        jobs = [identifier for identifier, _, _ in looked.value]
        if form.get("count", "").strip() != str(len(jobs)):
            raise ConfigurationError(
                f"{len(jobs):,} jobs would be cancelled, and {form.get('count')!r:.20} was confirmed",
                hint="type the number that the page shows",
            )
        details = filters.query | {"count": str(len(jobs))}
        return plan(request, f"{len(jobs)} jobs", details, "jobs", "purge", jobs=jobs)

    return [
        console.post("/apps/{app}/jobs/cancel", "cancel job", one("cancel")),
        console.post("/apps/{app}/jobs/retry", "retry job", one("retry")),
        console.post("/apps/{app}/jobs/pause", "pause jobs", scope("pause")),
        console.post("/apps/{app}/jobs/resume", "resume jobs", scope("resume")),
        console.post("/apps/{app}/jobs/purge", "purge jobs", purge),
    ]


def _absent(console: Console, app: AppSnapshot) -> bool:
    """Whether it is certain that the app has no queue."""
    if app.program is not None and queue_if_any(app.program) is None:
        return True
    return console.cluster.time is not None and jobs_topic(app.name) not in console.cluster.topics


def _purged(filters: Filters) -> None:
    """Raise ``ConfigurationError`` for filters by which nothing can be cancelled."""
    if filters.selection().ended:
        raise ConfigurationError("jobs that have ended cannot be cancelled", hint="choose another state")


def _shown(console: Console, fields: Mapping[str, Any] | None, name: str) -> str | None:
    return None if fields is None or name not in fields else console.values.text(fields[name], indent=2)


def _known_schedules(console: Console, app: AppSnapshot) -> dict[str, tuple[int, int | None]]:
    """Without the program: the next instants that workers report, and when some were missed, in ms."""
    figures = worker_figures(console, app)
    found: dict[str, tuple[int, int | None]] = {}
    for scrape in (figures.value or {}).values():
        if scrape is not None:
            missed = scrape.by_label("streams_schedule_missed_seconds")
            for name, seconds in scrape.by_label("streams_schedule_next_seconds").items():
                found[name] = int(seconds * 1000), int(missed[name] * 1000) if name in missed else None
    return dict(sorted(found.items()))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 9 else 1


JOBS: Final = Page("jobs", "Jobs and schedules", of_app=True, routes=routes)
