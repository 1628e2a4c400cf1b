"""Why a job is not running: its state, and one sentence for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from streams.jobs.commands import scope_text

if TYPE_CHECKING:
    from streams.jobs.commands import CommandNote
    from streams.jobs.record import JobError, JobRecord


class JobState(StrEnum):
    """The states of a job that has not ended, as far as they can be known."""

    RUNNING = "running"
    DELAYED = "delayed"
    """It is not due."""
    RETRYING = "retrying"
    """It waits for the time of its next attempt."""
    PAUSED = "paused"
    HELD = "held"
    """It waits for another job of its key."""
    LIMITED = "limited"
    """It waits for its limit."""
    EXPIRED = "expired"
    """It has not begun in time, and becomes a dead letter at its turn."""
    UNKNOWN = "unknown"
    """This program has no function of its name."""
    WAITING = "waiting"
    """For its turn. Read from the topics alone, it may run."""


@dataclass(slots=True)
class Case:
    """What is known of a job that has not ended. Times are milliseconds since the epoch."""

    record: JobRecord
    now: int
    stage: JobState
    """Running, delayed, retrying or, in all other cases, waiting."""
    due: int = 0
    """When the stage ends, where it ends by time."""
    tries: int = 0
    """How many attempts have ended."""
    most_tries: int | None = None
    error: JobError | None = None
    """Of the last attempt."""
    failed_at: int = 0
    began: int = 0
    progress: str = ""
    pause: tuple[str, CommandNote] | None = None
    """The scope that is paused, and by whom."""
    cancelled: CommandNote | None = None
    registered: bool = True
    holder: tuple[str, str] | None = None
    """The job that holds its key, and what that one does."""
    opens: float = 0.0
    """When its limit opens."""
    ahead: int | None = None
    """How many jobs of its limit run at once at most, if that many are ahead of it."""
    workers: bool = True
    """Whether the group has members."""
    exact: bool = True
    """Whether it is known whether it runs."""

    @property
    def state(self) -> JobState:
        """The state in a word."""
        if self.stage is not JobState.WAITING:
            return self.stage
        if self.record.expires is not None and self.now >= self.record.expires:
            return JobState.EXPIRED
        if self.pause is not None:
            return JobState.PAUSED
        if not self.registered:
            return JobState.UNKNOWN
        if self.holder is not None:
            return JobState.HELD
        if self.ahead is not None or self.opens > self.now:
            return JobState.LIMITED
        return JobState.WAITING

    def sentence(self) -> str:
        """Why it is not running."""
        text = self._sentence()
        if not self.workers and self.stage in (JobState.DELAYED, JobState.RETRYING):
            text += "; there is no live worker now"
        if self.cancelled is not None:
            text += f"; it was cancelled by {self.cancelled.by} and has not ended"
        return text

    def _sentence(self) -> str:
        record, now, state = self.record, self.now, self.state
        if state is JobState.RUNNING:
            said = f", and reports: {self.progress}" if self.progress else ""
            since = f" for {span(now - self.began)}" if self.began else ""
            return f"it runs{since}, {attempt_of(self.tries + 1, self.most_tries)}{said}"
        if state is JobState.DELAYED:
            return f"it is due {when(self.due, now)}"
        if state is JobState.RETRYING:
            after = "" if self.error is None else f", after {error_line(self.error)}"
            return f"{attempt_of(self.tries + 1, self.most_tries)} begins {when(self.due, now)}{after}"
        if state is JobState.EXPIRED:
            assert record.expires is not None
            text = f"it expired at {time_text(record.expires, now)} and becomes a dead letter at its turn"
            return text if self.workers else f"{text}; there is no live worker"
        if not self.workers:
            return "there is no live worker: the app's group has no members"
        if self.pause is not None:
            scope, note = self.pause
            return f"{scope_text(scope)} is paused by {note.by} since {time_text(note.at, now)}"
        if state is JobState.UNKNOWN:
            return f"function {record.job} is not registered in this program"
        if self.holder is not None:
            identifier, does = self.holder
            return f'key "{record.key}" is held by job {identifier}, which {does}'
        if self.ahead is not None:
            return f'limit "{record.limit}" lets {self.ahead} run at once, and that many are ahead of it'
        if self.opens > now:
            return f'limit "{record.limit}" opens at {time_text(-int(-self.opens // 1), now)}'
        if self.exact:
            return "it begins as soon as its worker has a free place for it"
        return "it runs, or begins as soon as its worker has a free place for it"

    def does(self) -> str:
        """What it does, for a job that waits for it."""
        if self.stage is JobState.RETRYING:
            return f"waits for its next attempt, {when(self.due, self.now)}"
        if self.stage is JobState.RUNNING:
            return "runs"
        if self.state is JobState.WAITING:
            return "begins next" if self.exact else "runs or begins next"
        return f"does not run either: {self.sentence()}"


def attempt_of(attempt: int, most: int | None) -> str:
    """The number of an attempt in words."""
    return f"attempt {attempt}" if most is None else f"attempt {attempt} of {most}"


def error_line(error: JobError) -> str:
    """An error in one line."""
    line = " ".join(f"{error.type}: {error.message}".split())
    return line if len(line) <= 200 else f"{line[:199]}…"


def span(milliseconds: int) -> str:
    """A duration in its two largest units."""
    seconds = max(0, milliseconds) // 1000
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, length)
        if count or (parts and len(parts) < 2):
            parts.append(f"{count} {unit}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 ")) or "0 s"


def when(time: int, now: int) -> str:
    """A time that is to come."""
    return "now" if time <= now else f"in {span(time - now + 999)}"


def time_text(time: int, now: int) -> str:
    """A time on this machine's clock; with its date unless that is today's."""
    at = datetime.fromtimestamp(time / 1000).astimezone()
    today = datetime.fromtimestamp(now / 1000).astimezone().date()
    return f"{at:%H:%M:%S}" if at.date() == today else at.isoformat(timespec="seconds")
