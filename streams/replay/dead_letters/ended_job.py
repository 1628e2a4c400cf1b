"""The record of a job that has ended, to enqueue it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streams.errors import ConfigurationError
from streams.jobs.fields import end_sentence
from streams.jobs.record import JobRecord, jobs_topic
from streams.jobs.unfinished import find_end
from streams.replay.dead_letters.ledger import LetterState
from streams.replay.dead_letters.rows import DeadLetters, Selection

if TYPE_CHECKING:
    from streams.app import App
    from streams.broker import Broker
    from streams.jobs.record import JobId


def ended_record(broker: Broker, application: str, job: JobId, app: App | None) -> JobRecord | None:
    """The record of a job that has ended, from its result or its dead letter; ``None`` without either.

    Dead letters are only read with the program, ``app``. Raises ``ConfigurationError`` for a job that has
    succeeded or was left out, ``BrokerError``.
    """
    end = find_end(broker, application, job)
    if end is not None:
        record = msgspec.json.decode(end.record, type=JobRecord | None)
        if record is None:
            raise ConfigurationError(
                f"job {job} is not retried: {end_sentence(end)}", hint="enqueue another one in the program"
            )
        return record
    if app is None:
        return None
    selection = Selection(states=tuple(LetterState), topic=jobs_topic(application))
    for row in DeadLetters(app, broker).rows(selection):
        if (row.letter.partition, row.letter.offset) == job and row.record.value is not None:
            return msgspec.json.decode(row.record.value, type=JobRecord)
    return None
