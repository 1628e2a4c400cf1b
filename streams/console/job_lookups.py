"""What is looked up of an app's queue, and what an address selects of it."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.app import queue_if_any
from streams.console.job_actions import declared_jobs
from streams.console.job_reading import EndsReading, JobReading, QueueReading, read_day, read_job, read_queue
from streams.console.moments import optional_moment
from streams.console.worker_figures import worker_figures
from streams.jobs.schedule_status import ScheduleStatus, schedule_statuses
from streams.jobs.selection import JobSelection, require_states

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console
    from streams.console.lookups import Lookup
    from streams.jobs.record import JobId

QUEUE_SECONDS: Final = 4.0
DAY_SECONDS: Final = 15.0
SCHEDULE_SECONDS: Final = 10.0
PURGE_SECONDS: Final = 1_800.0
"""How long the jobs that a purge would cancel can be confirmed."""

REST: Final = 4
"""A queue that takes long to read is not read again before so many times that long."""


class Filters(NamedTuple):
    """What the address selects."""

    function: str
    state: str
    key: str
    since: str
    until: str

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Filters:
        """Those of a query or of a form."""
        return cls(*(fields.get(name, "").strip() for name in cls._fields))

    def selection(self) -> JobSelection:
        """The jobs that are selected. Raises ``ConfigurationError``."""
        states = [self.state] if self.state else []
        require_states(states)
        return JobSelection(
            self.function or None,
            states,
            self.key or None,
            optional_moment(self.since),
            optional_moment(self.until),
        )

    @property
    def query(self) -> dict[str, str]:
        """As an address has them."""
        return {name: text for name, text in self._asdict().items() if text}


class JobLookups:
    """The lookups of the page."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seconds: dict[str, float] = {}
        """How long it took to read the queue of each app."""

    def queue(self, app: AppSnapshot) -> Lookup[QueueReading]:
        """The jobs that have not ended."""
        console = self._console
        watched, addresses = console.collector.watched(app.name), list(app.addresses.values())
        running = sum((self.running(app) or {}).values())

        def run() -> QueueReading:
            found = read_queue(
                console.collector.broker, watched, addresses, declared_jobs(app.program), running
            )
            self._seconds[app.name] = found.seconds
            return found

        keep = max(QUEUE_SECONDS, REST * self._seconds.get(app.name, 0.0))
        return console.lookups.get(("jobs", app.name, "queue"), run, keep=keep)

    def running(self, app: AppSnapshot) -> Mapping[str, int] | None:
        """How many jobs run, by function; ``None`` where a worker does not say."""
        figures = worker_figures(self._console, app)
        scrapes = list((figures.value or {}).values())
        if not app.addresses:
            return None if app.report.silent or app.report.workers else {}
        if not scrapes or app.report.silent or None in scrapes:
            return None
        found: Counter[str] = Counter()
        for scrape in scrapes:
            if scrape is not None:
                found.update(
                    {name: int(value) for name, value in scrape.by_label("streams_jobs_running").items()}
                )
        return found

    def day(self, app: AppSnapshot) -> Lookup[EndsReading]:
        """The jobs that have ended within a day."""
        broker = self._console.collector.broker
        return self._console.lookups.get(
            ("jobs", app.name, "day"), lambda: read_day(broker, app.name), keep=DAY_SECONDS
        )

    def job(self, app: AppSnapshot, job: JobId) -> Lookup[JobReading]:
        """One job."""
        console = self._console
        watched, addresses = console.collector.watched(app.name), list(app.addresses.values())
        return console.lookups.get(
            ("jobs", app.name, "job", job),
            lambda: read_job(console.collector.broker, watched, addresses, declared_jobs(app.program), job),
            keep=QUEUE_SECONDS,
        )

    def schedules(self, app: AppSnapshot) -> Lookup[list[ScheduleStatus]]:
        """The schedules that the program declares."""
        queue = None if app.program is None else queue_if_any(app.program)
        broker = self._console.collector.broker
        schedules = {} if queue is None else queue.schedules
        return self._console.lookups.get(
            ("jobs", app.name, "schedules"),
            lambda: schedule_statuses(schedules, broker, app.name, time.time_ns() // 1_000_000),
            keep=SCHEDULE_SECONDS,
        )

    def purge(self, app: AppSnapshot, filters: Filters, asked: str) -> Lookup[list[tuple[str, str, str]]]:
        """The ids, functions and states of the jobs that a purge would cancel, as they were when asked."""
        broker, console = self._console.collector.broker, self._console
        watched = console.collector.watched(app.name)

        def run() -> list[tuple[str, str, str]]:
            selection = filters.selection()
            found = read_queue(broker, watched, (), declared_jobs(app.program), 0)
            return [
                (str(item.job.id), item.job.record.job, item.case.state.value)
                for item in selection.unfinished(found.jobs)
            ]

        return console.lookups.get(("jobs", app.name, "purge", filters, asked), run, keep=PURGE_SECONDS)
