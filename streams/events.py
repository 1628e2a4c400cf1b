"""The names of everything that is logged, in one place, and how logs are written.

Lines go to the logger ``streams`` of Python's ``logging``, whatever the program that this library runs in has
configured there or in structlog: who writes them, and how, is the program's to say.

Levels: ERROR data or service is at risk, WARNING unexpected but handled, INFO the state changed, DEBUG the
rest. Values go into fields, never into the event's name.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping


class Event(StrEnum):
    """What can happen, as written in the ``event`` field of a log line."""

    WORKER_STARTED = "worker started"
    """INFO: settings are checked and the group is being joined."""
    WORKER_STOPPED = "worker stopped"
    """INFO: everything processed is committed and the group was left."""
    CLOSE_FAILED = "close failed"
    """ERROR: the ``close`` of a ``step``'s processor, or of a ``resource``, raised."""
    WORKER_FAILED = "worker failed"
    """ERROR: the worker ends because of ``error``; see the exit codes."""
    STOP_REQUESTED = "stop requested"
    """INFO: a signal asked for a graceful stop."""
    STOP_OVERDUE = "stop overdue"
    """ERROR: a stop takes longer than ``shutdown_timeout``: the process ends with ``code``; what hangs."""
    PARTITIONS_ASSIGNED = "partitions assigned"
    """INFO: these were added to what this worker holds."""
    PARTITIONS_REVOKED = "partitions revoked"
    """INFO: these were committed and given up."""
    PARTITIONS_LOST = "partitions lost"
    """WARNING: the group went on without this worker; what was not committed is dropped."""
    TRANSACTION_ABORTED = "transaction aborted"
    """WARNING: nothing of it is visible; input is read again from the committed offsets."""
    OUTCOME_UNKNOWN = "commit outcome unknown"
    """WARNING: a new producer was made; input is read again from what the broker has committed."""
    """WARNING: the broker did not take a commit; it is tried again or the input is read again."""
    BROKER_TROUBLE = "broker trouble"
    """WARNING: a call that may be made again failed; the worker keeps trying."""
    RECORD_REFUSED = "record refused"
    """WARNING: the broker does not take a record; the transaction is repeated with its step's policy."""
    DEAD_LETTERS = "dead letters"
    """WARNING: records went to the dead-letter topic; at most one line a second and step."""
    RECORDS_SKIPPED = "records skipped"
    """WARNING: records of a global table's topic, or of the workers' directory, cannot be read: left out."""
    ORIGINALS_UNREAD = "originals unread"
    """WARNING: input records could not be read again within five seconds for their dead letters."""
    RECORD_RETRIED = "record retried"
    """WARNING: user code failed on a record and is tried again after ``seconds``."""
    PARTITION_STALLED = "partition stalled"
    """ERROR: a partition has lag and made no progress for ``stall_timeout``; why, and what all threads do."""
    WATCHDOG_FAILED = "watchdog failed"
    """ERROR: a look at the worker's progress failed; it is tried again each second, and logged once."""
    PARTITION_RECOVERED = "partition recovered"
    """INFO: a stalled partition makes progress again."""
    OFFSET_OUT_OF_RANGE = "offset out of range"
    """WARNING: the log has no such offset any more; records are left out by ``out_of_range_reset``."""
    STATE_DAMAGED = "state damaged"
    """WARNING: the files of a task's stores are broken; they were moved aside and the stores start empty."""
    TOPIC_CREATED = "topic created"
    """INFO: a topic the app needs did not exist."""
    GROUP_BEGINS = "group begins"
    """INFO: where it begins with ``offset_reset=latest``, which is committed now."""
    PARTITIONS_FROM_BEGINNING = "partitions from their beginning"
    """INFO: with ``offset_reset=latest``, partitions that came after the group had begun."""
    OWN_TOPICS_LEFT_OUT = "own topics left out"
    """INFO: patterns match topics that the app writes itself; they are not read."""
    KEYS_ELSEWHERE = "keys elsewhere"
    """WARNING: an input topic of stores was written with another partitioner than murmur2."""
    JOINED_KEYS_APART = "joined keys apart"
    """WARNING: topics that are joined were placed by different partitioners: equal keys do not meet."""
    TOPIC_GONE = "topic gone"
    """INFO: a topic that a pattern matched was deleted; its partitions are not waited for any more."""
    RESTORE_STARTED = "restore started"
    """INFO: a task's stores are brought up to date from their changelogs before it goes on."""
    RESTORE_PROGRESS = "restore progress"
    """INFO: every few seconds, with rate (records a second) and the time left."""
    RESTORE_INCOMPLETE = "restore incomplete"
    """WARNING: more was committed than the changelogs are said to have: their ends are asked for again."""
    RESTORED = "restored"
    """INFO: a task's stores are up to date."""
    STANDBY_STARTED = "standby started"
    """INFO: a copy of another worker's task is kept from now on; ``records`` are missing yet."""
    STANDBY_READY = "standby ready"
    """INFO: that copy is up to date."""
    STANDBY_STOPPED = "standby stopped"
    """INFO: the task cannot come here any more as workers are now; what the copy has stays on disk."""
    STANDBY_ABANDONED = "standby abandoned"
    """ERROR: no replica of a task is kept any more, as its changelog or its files cannot be used."""
    STANDBY_UNPLACED = "standby unplaced"
    """WARNING: the group does not assign as foreseen, so it is not known which copies to keep."""
    STATE_REBUILT = "state rebuilt"
    """WARNING: state on disk does not fit its changelog and is made from that anew; with the reason."""
    STORE_BEGINS_EMPTY = "store begins empty"
    """WARNING: a store's changelog had to be made though the group is in the middle of the input already."""
    AGGREGATE_BEGINS_EMPTY = "aggregate begins empty"
    """WARNING: of several aggregates of a store, ``aggregates`` are new and have nothing of earlier records.

    They begin at ``since`` (milliseconds since the epoch), with the records from ``offsets`` on."""
    STATE_DELETED = "state deleted"
    """INFO: a task has been elsewhere for ``state_cleanup_delay``: its stores are not kept here any more."""
    TABLE_NOT_COMPACTED = "table not compacted"
    """WARNING: a table's topic deletes records by age or size: a restore misses what it has deleted."""
    SUPERVISOR_STARTED = "supervisor started"
    """INFO: workers are being started."""
    PROCESS_STARTED = "worker process started"
    """INFO: with its process id."""
    PROCESS_EXITED = "worker process exited"
    """INFO for a stop, ERROR otherwise: with its exit code, and when it is restarted."""
    HTTP_LISTENING = "http listening"
    """INFO: metrics and health are served at ``url``."""


class Line(dict[str, Any]):
    """What is logged: ``event`` and the fields beside it.

    Formatters that know structured lines (structlog's, those for JSON) find a dictionary; others, which ask
    for a text, get ``event field=value …``.
    """

    def __str__(self) -> str:
        fields = [f"{name}={value!r}" for name, value in self.items() if name not in _NO_FIELDS]
        return " ".join([str(self.get("event", "")), *fields])


_NO_FIELDS = {"event", "exc_info"}


def _to_logging(
    logger: Any, method: str, line: MutableMapping[str, Any]
) -> tuple[tuple[Line], dict[str, Any]]:
    # What structlog's ProcessorFormatter looks for, and the traceback where everybody else does.
    extra = {"_logger": logger, "_name": method}
    return (Line(line),), {"extra": extra, "exc_info": line.get("exc_info")}


def configure_logging(
    form: Literal["auto", "console", "json"] = "auto",
    level: Literal["debug", "info", "warning", "error"] = "info",
) -> None:
    """Write this library's logs to standard error: for people on a terminal, as JSON lines otherwise.

    For processes that do nothing else: it replaces the handlers of the logger ``streams``, and no other. What
    librdkafka has to say comes along under the logger ``streams.librdkafka``.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    # The default shows the local variables of every frame, passwords included.
    plain = structlog.dev.plain_traceback
    renderer: Any = structlog.processors.JSONRenderer()
    if console:
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=plain)
    finish: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not console:
        finish.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.contextvars.merge_contextvars], processors=[*finish, renderer]
        )
    )
    logger = logging.getLogger("streams")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def program_logger(application: str) -> structlog.stdlib.BoundLogger:
    """The logger for log lines of the program itself."""
    logger: structlog.stdlib.BoundLogger = get_logger("streams.app").bind(app=application)
    return logger


def get_logger(name: str = "streams") -> structlog.stdlib.BoundLogger:
    """The logger of this library, or one below it.

    It has structlog's interface and none of its global configuration, which is the program's.
    """
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            _to_logging,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return logger
