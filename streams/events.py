"""The names of all log events, and the configuration of logging.

Log lines go to the logger ``streams`` of Python's ``logging``. The program that uses this library configures
how they are written, through ``logging`` or structlog. structlog itself is imported only for the program's
log lines and for the text on a terminal: it takes a fifth of a worker's start.

Levels: ERROR data or service is at risk, WARNING unexpected but handled, INFO a state change, DEBUG the rest.
Values go into fields, never into the event's name.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from structlog.stdlib import BoundLogger


class Event(StrEnum):
    """The ``event`` field of a log line."""

    WORKER_STARTED = "worker started"
    """INFO: settings are checked and the group is being joined."""
    WORKER_STOPPED = "worker stopped"
    """INFO: everything processed is committed, and the worker has left the group."""
    CLOSE_FAILED = "close failed"
    """ERROR: the ``close`` of a ``step``'s processor, or of a ``resource``, raised."""
    PAIR_JOINED = "blue/green pair joined"
    """INFO: the app belongs to a blue/green ``pair``; whether its results are dropped (``muted``)."""
    SWITCH_PHASE = "switch phase"
    """INFO: this worker obeys another ``phase`` of a switch, or has another ``emitter``; see ``reason``."""
    REPLAY_WAITS = "replay waits for a transaction"
    """INFO: an open transaction before the ``end`` of a replay's range hides records from ``offset`` on."""
    WORKER_FAILED = "worker failed"
    """ERROR: the worker ends because of ``error``; see the exit codes."""
    STOP_REQUESTED = "stop requested"
    """INFO: a signal requested a graceful stop."""
    STOP_OVERDUE = "stop overdue"
    """ERROR: a stop takes longer than ``shutdown_timeout``: the process exits with ``code``; all stacks."""
    PARTITIONS_ASSIGNED = "partitions assigned"
    """INFO: these partitions were assigned to this worker, in addition to those it has."""
    PARTITIONS_REVOKED = "partitions revoked"
    """INFO: these partitions were committed and released."""
    PARTITIONS_LOST = "partitions lost"
    """WARNING: the group has evicted this worker; uncommitted work is discarded."""
    TRANSACTION_ABORTED = "transaction aborted"
    """WARNING: none of its records are visible; input is read again from the committed offsets."""
    OUTCOME_UNKNOWN = "commit outcome unknown"
    """WARNING: a new producer was created; input is read again from the offsets that the broker has."""
    BROKER_TROUBLE = "broker trouble"
    """WARNING: a call that may be repeated failed; the worker keeps trying."""
    REGISTRY_TROUBLE = "schema registry trouble"
    """WARNING: the schema registry did not answer a request at the start; it is repeated each second."""
    RECORD_REFUSED = "record refused"
    """WARNING: the broker rejects a record; the transaction is repeated, and the step's policy applied."""
    DEAD_LETTERS = "dead letters"
    """WARNING: records went to the dead-letter topic; at most one line per second and step."""
    STEP_FAILED = "step failed"
    """WARNING: ``step`` continues without a ``record`` on which it failed; once a step and error type."""
    RECORDS_SKIPPED = "records skipped"
    """WARNING: records of a global table's topic, or of the workers' directory, cannot be read: skipped."""
    ORIGINALS_UNREAD = "originals unread"
    """WARNING: input records could not be read again within five seconds for their dead letters."""
    JOBS_COMMAND = "jobs command"
    """INFO: a partition of the queue has applied a command: ``action``, given ``by``, for a scope or jobs."""
    RETRIES_UNREAD = "retries unread"
    """WARNING: the topic with requests to retry dead letters cannot be read; it is tried again."""
    DEAD_LETTERS_RETRIED = "dead letters retried"
    """INFO: dead letters were processed again on request, and that is committed; with their results."""
    RECORD_RETRIED = "record retried"
    """WARNING: user code failed on a record and is called again after ``seconds``."""
    JOB_OVERDUE = "job overdue"
    """WARNING: ``job`` takes longer than its ``timeout`` in a thread, which nothing can end; once each."""
    PARTITION_STALLED = "partition stalled"
    """ERROR: a partition has lag and made no progress for ``stall_timeout``; the cause and all stacks."""
    WATCHDOG_FAILED = "watchdog failed"
    """ERROR: a check of the worker's progress failed; it is repeated each second, and logged once."""
    ALERT_RAISED = "alert raised"
    """WARNING: an ``alert`` of the app fires, once for all workers; with its ``sentence``."""
    ALERT_CLEARED = "alert cleared"
    """INFO: an alert that was raised does not fire any more; with its ``sentence`` of then."""
    ALERT_NOT_DELIVERED = "alert not delivered"
    """WARNING: a ``receiver`` could not be notified of an alert; it is tried again."""
    ALERTS_FAILED = "alerts failed"
    """WARNING: the app's alerts could not be decided, or their topics not read; logged once a reason."""
    ALERTS_FILE_REFUSED = "alerts file refused"
    """ERROR: ``alerts_file`` has changed and cannot be used: what it said before holds."""
    OBSERVER_FAILED = "observer failed"
    """ERROR: an observation of the worker's input failed; it is repeated each second, and logged once."""
    CONSOLE_ACTION = "console action"
    """INFO: somebody has changed something in the console; it is in the topic of its audit too."""
    CONSOLE_FAILED = "console failed"
    """ERROR: a page of the console failed, or asking workers or the cluster did, which is logged once."""
    PARTITION_RECOVERED = "partition recovered"
    """INFO: a stalled partition makes progress again."""
    OFFSET_OUT_OF_RANGE = "offset out of range"
    """WARNING: the log no longer has the next offset; records are skipped by ``out_of_range_reset``."""
    STATE_DAMAGED = "state damaged"
    """WARNING: the files of a task's stores are damaged; they were moved aside, and the stores are empty."""
    TOPIC_CREATED = "topic created"
    """INFO: a topic that the app needs did not exist."""
    GROUP_BEGINS = "group begins"
    """INFO: the offsets at which the group starts with ``offset_reset=latest``, which are now committed."""
    PARTITIONS_FROM_BEGINNING = "partitions from their beginning"
    """INFO: with ``offset_reset=latest``, partitions that were created after the group had started."""
    OWN_TOPICS_LEFT_OUT = "own topics left out"
    """INFO: patterns match topics that the app writes itself; they are not read."""
    KEYS_ELSEWHERE = "keys elsewhere"
    """WARNING: an input topic of stores was written with another partitioner than murmur2."""
    JOINED_KEYS_APART = "joined keys apart"
    """WARNING: joined topics were written with different partitioners: equal keys are not joined."""
    TOPIC_GONE = "topic gone"
    """INFO: a topic that a pattern matched was deleted; its partitions are no longer waited for."""
    RESTORE_STARTED = "restore started"
    """INFO: a task's stores are being restored from their changelogs before it processes records."""
    RESTORE_PROGRESS = "restore progress"
    """INFO: every few seconds, with the rate (records per second) and the time left."""
    RESTORE_INCOMPLETE = "restore incomplete"
    """WARNING: more was committed than the changelogs' reported ends allow: they are requested again."""
    RESTORED = "restored"
    """INFO: a task's stores are up to date."""
    STANDBY_STARTED = "standby started"
    """INFO: this worker starts a standby replica of a task; it still has to read ``records``."""
    STANDBY_READY = "standby ready"
    """INFO: the standby replica is up to date."""
    STANDBY_STOPPED = "standby stopped"
    """INFO: with the current workers the task cannot move here; the files of its replica stay on disk."""
    STANDBY_ABANDONED = "standby abandoned"
    """ERROR: this worker keeps no replica of a task, because its changelog or its files cannot be used."""
    STANDBY_UNPLACED = "standby unplaced"
    """WARNING: the group's assignment is not the predicted one, so the replicas to keep are not known."""
    STATE_REBUILT = "state rebuilt"
    """WARNING: state on disk does not match its changelog and is rebuilt from it; with the reason."""
    STORE_BEGINS_EMPTY = "store begins empty"
    """WARNING: a store's changelog was created although the group has already processed input."""
    AGGREGATE_BEGINS_EMPTY = "aggregate begins empty"
    """WARNING: of a store's aggregates, ``aggregates`` are new and do not cover earlier records.

    They begin at ``since`` (milliseconds since the epoch), with the records from ``offsets`` on."""
    STATE_DELETED = "state deleted"
    """INFO: a task has run elsewhere for ``state_cleanup_delay``: its stores here were deleted."""
    TABLE_NOT_COMPACTED = "table not compacted"
    """WARNING: a table's topic deletes records by age or size: a restore misses the deleted records."""
    CHANGELOG_KEPT_TOO_SHORT = "changelog kept too short"
    """WARNING: a changelog deletes records before their windows have expired: a restore misses these.

    ``retention`` is the ``retention.ms`` that its topic needs. It was created when windows were shorter."""
    SINK_UNAVAILABLE = "sink unavailable"
    """WARNING: a sink connector cannot be written to; its input waits, and it is tried again."""
    MESSAGES_DISCARDED = "messages discarded"
    """WARNING: a sink was closed while messages were not on their way yet, after ``linger`` seconds: lost."""
    SINK_AVAILABLE = "sink available"
    """INFO: a sink connector that was unavailable has been opened again."""
    SOURCE_UNAVAILABLE = "source unavailable"
    """WARNING: a source connector cannot be read; it is opened again at its position."""
    SOURCE_AVAILABLE = "source available"
    """INFO: a source connector that was unavailable is read again."""
    SOURCE_OUT_OF_RANGE = "source out of range"
    """WARNING: a system no longer has what follows a source's position; it is skipped by ``out_of_range``."""
    SOURCE_WENT_BACK = "source went back"
    """WARNING: a system lost its last writes in a crash, so that some records may be read twice."""
    SUPERVISOR_STARTED = "supervisor started"
    """INFO: workers are being started."""
    PROCESS_STARTED = "worker process started"
    """INFO: with its process id."""
    PROCESS_EXITED = "worker process exited"
    """INFO for a stop, ERROR otherwise: with its exit code, and when it is restarted."""
    WORKER_UNPUBLISHED = "worker not published"
    """WARNING: the worker may not write its address to ``<app>-replicas``, where commands look for it."""
    HTTP_LISTENING = "http listening"
    """INFO: metrics and health are served at ``url``."""


class Line(dict[str, Any]):
    """A structured log line: ``event`` and its fields.

    Formatters for structured lines (structlog's, those for JSON) receive a dictionary; others, which format
    it as text, get ``event field=value …``.
    """

    def __str__(self) -> str:
        fields = [f"{name}={value!r}" for name, value in self.items() if name not in _NO_FIELDS]
        return " ".join([str(self.get("event", "")), *fields])


_NO_FIELDS = {"event", "exc_info"}


def _to_logging(
    logger: Any, method: str, line: MutableMapping[str, Any]
) -> tuple[tuple[Line], dict[str, Any]]:
    # The traceback as logging expects it.
    return (Line(line),), {"extra": _formatter_extra(logger, method), "exc_info": line.get("exc_info")}


def _formatter_extra(logger: logging.Logger, method: str) -> dict[str, Any]:
    """Attributes of a log record that structlog's ``ProcessorFormatter`` expects."""
    return {"_logger": logger, "_name": method}


CONTEXT_PREFIX: Final = "structlog_"
"""By this prefix of their names structlog finds the context variables whose values belong to each line."""

_FIELDS: Final[dict[str, ContextVar[str]]] = {
    name: ContextVar(CONTEXT_PREFIX + name) for name in ("worker", "task", "partition")
}


@contextmanager
def log_fields(**fields: str) -> Iterator[None]:
    """Add fields to the lines that are logged in this context: ``worker``, ``task`` or ``partition``.

    Also to the program's, and to those of a program that uses structlog with its own configuration.
    """
    tokens = [(_FIELDS[name], _FIELDS[name].set(value)) for name, value in fields.items()]
    try:
        yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


def _context_fields() -> dict[str, Any]:
    return {
        variable.name.removeprefix(CONTEXT_PREFIX): value
        for variable, value in copy_context().items()
        # structlog marks a field that was removed by an ellipsis.
        if variable.name.startswith(CONTEXT_PREFIX) and value is not ...
    }


class Logger:
    """Writes the library's lines to a logger of ``logging``: an event and its fields."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """As ``error``, with the traceback of the exception that is being handled."""
        self._write(logging.ERROR, event, {"exc_info": True, **fields})

    def log(self, level: int, event: str, **fields: Any) -> None:
        """Write a line of a level of ``logging``."""
        self._write(level, event, fields)

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        logger = self._logger
        if logger.isEnabledFor(level):
            line = Line(fields, event=event)
            for name, value in _context_fields().items():
                line.setdefault(name, value)
            method = logging.getLevelName(level).lower()
            # The line's place in the code is that of the caller.
            logger.log(
                level,
                line,
                exc_info=line.get("exc_info"),
                extra=_formatter_extra(logger, method),
                stacklevel=3,
            )


class JsonLines(logging.Formatter):
    """A line of JSON for each log record, with its fields, ``level`` and ``timestamp``."""

    def format(self, record: logging.LogRecord) -> str:
        # Other libraries, such as librdkafka, log texts.
        line = (
            dict(record.msg)
            if isinstance(record.msg, Line)
            else {"event": record.getMessage(), **_context_fields()}
        )
        line.pop("exc_info", None)
        line["level"] = record.levelname.lower()
        line["timestamp"] = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=repr)


def configure_logging(
    form: Literal["auto", "console", "json"] = "auto",
    level: Literal["debug", "info", "warning", "error"] = "info",
) -> None:
    """Write this library's logs to standard error: readable text on a terminal, JSON lines otherwise.

    It is for processes that only run a worker, and replaces the handlers of the logger ``streams`` and of no
    other. The log lines of librdkafka are in the logger ``streams.librdkafka``.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_console_formatter() if console else JsonLines())
    logger = logging.getLogger("streams")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def _console_formatter() -> logging.Formatter:
    import structlog  # noqa: PLC0415 - see the head of this file

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.contextvars.merge_contextvars],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # structlog's default prints the local variables of every frame, passwords included.
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ],
    )


def program_logger(application: str) -> BoundLogger:
    """The logger for the program's own log lines.

    It has structlog's interface, but ignores structlog's global configuration, which belongs to the program.
    """
    import structlog  # noqa: PLC0415 - see the head of this file

    logger: BoundLogger = structlog.wrap_logger(
        logging.getLogger("streams.app"),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            _to_logging,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return logger.bind(app=application)


# It is made with the import, so that the loggers of a program are the same before and during a run.
_LIBRARY: Final = Logger("streams")


def get_logger() -> Logger:
    """The logger of this library."""
    return _LIBRARY
