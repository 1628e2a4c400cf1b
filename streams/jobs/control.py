"""What commands have changed for the jobs of one partition: which are paused, and which must not begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from streams.events import Event, get_logger
from streams.jobs.commands import MOST_READ, Action, CommandNote, scope_text, scopes
from streams.jobs.record import JobId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.jobs.commands import Command, CommandLog
    from streams.jobs.job_store import JobStore
    from streams.jobs.record import JobRecord


class Controlled(Protocol):
    """What commands change in a queue. Called within a slice."""

    def cancel(self, offset: int, note: CommandNote, now: int) -> None:
        """Cancel the job whose record has that offset, if it has not ended."""

    def retry_now(self, offset: int, now: int) -> None:
        """Let a job that waits for its next attempt begin."""

    def ready_again(self, offset: int, rank: int) -> None:
        """Let a job that was paused take its place."""


class Control:
    """The commands of one partition's task, and the jobs that they hold back.

    What holds on is in the store, so that it is applied, and taken back, with everything else: the position
    in the commands, the pauses, and the jobs that are cancelled and have not ended. What is in memory is read
    from there by ``reload``.
    """

    def __init__(self, store: JobStore, log: CommandLog | None, partition: int) -> None:
        self._store = store
        self._log = log
        self._partition = partition
        self._position = 0
        self.pauses: dict[str, CommandNote] = {}
        """By scope."""
        self.cancelled: dict[int, CommandNote] = {}
        """Jobs that end without being executed, or as soon as they do not run any more, by offset."""
        self._held: dict[str, dict[int, int]] = {}
        """By the scope of a pause, the jobs that would begin: their ranks by offset."""

    def reload(self) -> None:
        """Read the store, and forget which jobs are held."""
        self._position = self._store.command_position()
        self.pauses = dict(self._store.pauses())
        self.cancelled = dict(self._store.cancelled())
        self._held.clear()

    @property
    def has_news(self) -> bool:
        """Whether there are commands that were not applied."""
        return self._log is not None and self._log.end > self._position

    def apply(self, queue: Controlled, now: int) -> None:
        """Apply new commands."""
        if self._log is None:
            return
        end = min(self._log.end, self._position + MOST_READ)
        if end <= self._position:
            return
        for command in self._log.read(self._position, end):
            note = CommandNote(command.at, command.by)
            self._report(command)
            if command.action is Action.PAUSE:
                self.pauses[command.scope] = note
                self._store.put_pause(command.scope, note)
            elif command.action is Action.RESUME:
                self.pauses.pop(command.scope, None)
                self._store.put_pause(command.scope, None)
                for offset, rank in self._held.pop(command.scope, {}).items():
                    queue.ready_again(offset, rank)
            else:
                for offset in self._own(command.jobs):
                    if command.action is Action.CANCEL:
                        queue.cancel(offset, note, now)
                    else:
                        queue.retry_now(offset, now)
        self._position = end
        self._store.put_command_position(end)

    def _report(self, command: Command) -> None:
        jobs = self._own(command.jobs)
        if command.action in (Action.PAUSE, Action.RESUME) or jobs:
            get_logger().info(
                Event.JOBS_COMMAND,
                action=command.action.value,
                by=command.by,
                queue_partition=self._partition,
                **({"jobs": len(jobs)} if jobs else {"scope": scope_text(command.scope)}),
            )

    def _own(self, identifiers: list[str]) -> list[int]:
        jobs = [JobId.parse(identifier) for identifier in identifiers]
        return [job.offset for job in jobs if job.partition == self._partition]

    def pause_of(self, record: JobRecord) -> str | None:
        """The scope by which a job is paused, if it is."""
        return pausing(self.pauses, record)

    def hold(self, scope: str, offset: int, rank: int) -> None:
        """Keep a job that would begin until the scope is resumed."""
        self._held.setdefault(scope, {})[offset] = rank

    def held(self) -> list[int]:
        """The offsets of the jobs that are held."""
        return [offset for held in self._held.values() for offset in held]

    def note_cancelled(self, offset: int, note: CommandNote) -> None:
        """Remember that a job is cancelled, until it ends."""
        self.cancelled[offset] = note
        self._store.put_cancelled(offset, note)

    def note_end(self, offset: int) -> None:
        """A job has ended."""
        if self.cancelled.pop(offset, None) is not None:
            self._store.put_cancelled(offset, None)


def pausing(pauses: Mapping[str, CommandNote], record: JobRecord) -> str | None:
    """The scope of the pause that holds a job back, if there is one."""
    if not pauses:
        return None
    return next((scope for scope in scopes(record) if scope in pauses), None)
