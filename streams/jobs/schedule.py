"""A call of a job that is enqueued again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from streams.errors import TopologyError
from streams.jobs.job import enqueued

if TYPE_CHECKING:
    from streams.jobs.job import BaseJob, Call
    from streams.jobs.schedule_rules import Rule

LONGEST_NAME = 200

_decode = msgspec.json.decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Schedule:
    """A call and when it is due. All its jobs are in one partition, whose owner decides about overlaps.

    Raises ``TopologyError`` for a call whose options contradict the schedule.
    """

    name: str
    call: Call[Any]
    rule: Rule

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise TopologyError(
                f"{name!r:.80} cannot name a schedule: a name has 1 to {LONGEST_NAME} printable characters"
            )
        calling = self.call.calling
        if calling.delay is not None or calling.at is not None:
            raise TopologyError(
                f"schedule {name!r}: its call has using({'delay' if calling.at is None else 'at'}=…), but "
                "the schedule decides when it is due",
                hint="leave it out",
            )
        if self.rule.overlap == "queue" and self.call.job.definition.on_failure == "continue":
            raise TopologyError(
                f"schedule {name!r}: with overlap='queue', calls wait for the ones before; with "
                f"on_failure='continue', job {self.call.job.name!r} lets them pass while it waits for its "
                "next attempt",
                hint="use overlap='skip', or on_failure='wait'",
            )

    @property
    def _own_key(self) -> str:
        return f"schedule:{self.name}"

    @property
    def partition_key(self) -> str:
        """The key of its records, which decides the partition."""
        return self.call.partition_key or self._own_key

    def payload(self, instant: int, now: int) -> bytes:
        """The value of the record of the job for an instant."""
        record = enqueued(self.call, now)
        key = record.key or (self._own_key if self.rule.overlap == "queue" else None)
        return _encode(
            msgspec.structs.replace(
                record, key=key, schedule=self.name, scheduled=instant, overlap=self.rule.overlap
            )
        )


def schedule_of(job: BaseJob[Any, Any], rule: Rule) -> Schedule:
    """The schedule of a job's decorator, which calls it without arguments. Raises ``TopologyError``."""
    try:
        call = job.call()
    except TypeError as error:
        required = [
            name
            for name, parameter in job.arguments.signature.parameters.items()
            if parameter.default is parameter.empty
        ]
        if not required:
            raise
        raise TopologyError(
            f"job {job.name!r} has a schedule, which calls it without arguments, but needs: "
            f"{', '.join(required)}",
            hint=f"app.schedule({job.function.__name__}.call({', '.join(f'{name}=…' for name in required)}), "
            f"{type(rule).__name__}(…))",
        ) from error
    return Schedule(job.name, call, rule)
