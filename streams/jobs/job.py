"""A function whose calls can be put into the queue."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

import msgspec

from streams.coroutines.awaitables import is_asynchronous
from streams.durations import to_milliseconds
from streams.errors import ConfigurationError, TopologyError
from streams.jobs.arguments import Arguments, ChosenArguments, Result
from streams.jobs.limits import Limit
from streams.jobs.record import JobRecord, partition_key
from streams.jobs.retry import ONCE, Retry, epoch_milliseconds
from streams.jobs.schedule_rules import Cron, Every

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from streams.jobs.handle import Handle

P = ParamSpec("P")
R = TypeVar("R")

JobExecutor: TypeAlias = Literal["thread", "process"]
"""What executes a function that is not async: a thread of the worker, or a process of its own."""

FailureOrder: TypeAlias = Literal["wait", "continue"]

_encode = msgspec.json.Encoder().encode


class JobOptions(TypedDict, total=False):
    """The options of ``App.job``."""

    name: str
    retry: Retry
    key: Callable[..., str]
    limit: Limit
    priority: int
    timeout: timedelta
    expires: timedelta
    executor: JobExecutor
    on_failure: FailureOrder
    schedule: Cron | Every


class CallOptions(TypedDict, total=False):
    """The options of ``Job.using``."""

    delay: timedelta
    at: datetime
    expires: timedelta
    priority: int
    unique: bool | str
    key: str


class Enqueuer(Protocol):
    """Puts calls into a queue; see ``QueueClient``."""

    def enqueue(self, calls: Sequence[Call[Any]]) -> list[Handle[Any]]:
        """Each for itself. Raises ``BrokerError``."""

    def enqueue_many(self, calls: Sequence[Call[Any]]) -> list[Handle[Any]]:
        """In one transaction. Raises ``BrokerError``."""


@dataclass(frozen=True, slots=True)
class JobDefinition:
    """How a job's function is executed; see ``App.job``."""

    name: str
    retry: Retry = ONCE
    key: Callable[..., str] | None = None
    limit: Limit | None = None
    priority: int = 0
    timeout: timedelta | None = None
    expires: timedelta | None = None
    executor: JobExecutor = "thread"
    on_failure: FailureOrder = "wait"
    batch: int | None = None
    within: timedelta | None = None
    schedule: Cron | Every | None = None


@dataclass(frozen=True, slots=True)
class Calling:
    """How one call is enqueued; see ``Job.using``."""

    delay: timedelta | None = None
    at: datetime | None = None
    expires: timedelta | None = None
    priority: int | None = None
    unique: bool | str = False
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A call of a job that is not enqueued yet, with its arguments encoded."""

    job: BaseJob[Any, R] = field(repr=False)
    record: JobRecord
    """What is written, but for the times, which count from when it is."""
    calling: Calling

    @property
    def partition_key(self) -> str | None:
        """The key of its record, which decides the partition."""
        return partition_key(self.record)

    def payload(self, now: int) -> bytes:
        """The value of its record, enqueued at ``now``, milliseconds since the epoch."""
        return _encode(enqueued(self, now))


def enqueued(call: Call[Any], now: int) -> JobRecord:
    """The record of a call, enqueued at ``now``, milliseconds since the epoch."""
    record, calling, due = call.record, call.calling, None
    if calling.at is not None:
        due = epoch_milliseconds(calling.at, f"job {record.job!r}: at")
    elif calling.delay is not None:
        due = now + to_milliseconds(calling.delay, f"job {record.job!r}: delay")
    lifetime = calling.expires or call.job.definition.expires
    expires = None if lifetime is None else max(now, due or now) + to_milliseconds(lifetime, "expires")
    if due is None and expires is None:
        return record
    return msgspec.structs.replace(record, due=due, expires=expires)


class BaseJob(Generic[P, R]):
    """What jobs of plain and of async functions have in common."""

    def __init__(
        self,
        function: Callable[P, Any],
        client: Callable[[], Enqueuer],
        options: Mapping[str, Any],
        *,
        topic: str,
    ) -> None:
        self.definition = definition_of(function, options)
        self.name = self.definition.name
        self.function = function
        self.topic = topic
        """The topic of its queue."""
        self.asynchronous = is_asynchronous(function)
        described = self._described(function)
        self.arguments = Arguments(self.name, described)
        self.result = Result(self.name, described)
        definition = self.definition
        self._key = self._chosen("key", definition.key)
        self._limit_key = self._chosen(
            "limit's key", None if definition.limit is None else definition.limit.key
        )
        self._client = client
        self._calling = Calling()
        if self.asynchronous and self.definition.executor != "thread":
            raise TopologyError(
                f"job {self.name!r} is async: it runs in the worker's event loop, not in a process",
                hint="leave executor= out, or make the function a plain one",
            )
        functools.update_wrapper(cast("Any", self), function)

    def _described(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function with the parameters and the result of one job."""
        return function

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Put a call into the queue; returns once Kafka has acknowledged it.

        Raises ``TypeError`` for arguments that do not fit or cannot be written as JSON, ``BrokerError``.
        """
        return self._client().enqueue([self.call(*args, **kwargs)])[0]

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """A call with these arguments, for ``enqueue_many`` and ``Stream.enqueue``. Raises ``TypeError``."""
        definition, calling = self.definition, self._calling
        arguments = self.arguments.encode(args, kwargs)
        key = calling.key
        limit = None
        wants_key = self._key is not None and key is None
        if wants_key or self._limit_key is not None:
            named = self.arguments.named(arguments)
            if wants_key and self._key is not None:
                key = self._key.text(named)
            if self._limit_key is not None:
                limit = f":{self._limit_key.text(named)}"
        if definition.limit is not None:
            limit = f"{definition.limit.name or self.name}{limit or ''}"
        unique = calling.unique
        return Call(
            self,
            JobRecord(
                self.name,
                msgspec.Raw(arguments),
                key=key,
                limit=limit,
                priority=definition.priority if calling.priority is None else calling.priority,
                unique=(f"{self.name}:{unique}" if isinstance(unique, str) else self._identity(arguments))
                if unique
                else None,
            ),
            calling,
        )

    def enqueue_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Put several calls into the queue in one transaction: all of them, or none.

        Raises ``BrokerError``; its message says so if it is not known whether the transaction was committed.
        """
        wanted = list(calls)
        for each in wanted:
            if each.job.name != self.name:
                raise TypeError(f"job {self.name!r} cannot enqueue a call of job {each.job.name!r}")
        return self._client().enqueue_many(wanted)

    def using(self, **options: Unpack[CallOptions]) -> Any:
        """The same job with other options for its calls; the subclasses tell type checkers which class."""
        unknown = options.keys() - CallOptions.__annotations__.keys()
        if unknown:
            raise TypeError(
                f"job {self.name!r}: using() has no option {min(unknown)!r}; "
                f"there are: {', '.join(sorted(CallOptions.__annotations__))}"
            )
        calling = replace(self._calling, **options)
        if calling.delay is not None and calling.at is not None:
            raise ConfigurationError(f"job {self.name!r}: using() takes either delay= or at=")
        for name in ("delay", "expires"):
            duration = getattr(calling, name)
            if duration is not None:
                to_milliseconds(duration, f"job {self.name!r}: {name}")
        if calling.at is not None:
            epoch_milliseconds(calling.at, f"job {self.name!r}: at")
        if calling.priority is not None:
            _check_priority(self.name, calling.priority)
        # Not by copy.copy, which uses __reduce__ and returns this very object.
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__)
        changed.__dict__["_calling"] = calling
        return changed

    def _chosen(self, what: str, function: Callable[..., str] | None) -> ChosenArguments | None:
        if function is None:
            return None
        return ChosenArguments(f"job {self.name!r}: its {what}", function, self.arguments)

    def _identity(self, arguments: bytes) -> str:
        """What all calls with the same arguments have in common."""
        fields = msgspec.json.decode(arguments)
        return f"{self.name}:{msgspec.json.encode(fields, order='deterministic').decode()}"

    def __repr__(self) -> str:
        return f"<job {self.name}>"

    def __reduce__(self) -> str:
        # A process executor's child imports the module and finds the job by the function's name.
        return self.function.__qualname__


class Job(BaseJob[P, R]):
    """A function whose calls can be put into the queue, made by ``App.job``. It can be called as before."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function here and now."""
        result: R = self.function(*args, **kwargs)
        return result

    def using(self, **options: Unpack[CallOptions]) -> Job[P, R]:
        """The same job, enqueued in another way; this one stays as it is.

        ``delay`` is a duration and ``at`` a time with a time zone before which it is not executed;
        ``expires`` is how long after that, or after it is enqueued, it must have begun. A higher
        ``priority`` is earlier. With ``unique``, a call is left out while another one with the same
        arguments, or with the same text, is not finished. ``key`` replaces the key of the job's function.
        """
        changed: Job[P, R] = super().using(**options)
        return changed


class AsyncJob(BaseJob[P, R]):
    """As ``Job``, of an async function, which workers execute in their event loop."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call the function here: a coroutine to be awaited."""
        coroutine: Coroutine[Any, Any, R] = self.function(*args, **kwargs)
        return coroutine

    def using(self, **options: Unpack[CallOptions]) -> AsyncJob[P, R]:
        """The same job, enqueued in another way; see ``Job.using``."""
        changed: AsyncJob[P, R] = super().using(**options)
        return changed


class JobDecorator(Protocol):
    """What ``App.job(…)`` returns: it makes a function a job."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function matches both: the first is meant
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncJob[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Job[P, R]: ...


def definition_of(function: Callable[..., Any], options: Mapping[str, Any]) -> JobDefinition:
    """The definition of a job. Raises ``TypeError`` for an unknown option, ``ConfigurationError``."""
    given = dict(options)
    known = {option.name for option in fields(JobDefinition)}
    unknown = given.keys() - known
    if unknown:
        raise TypeError(f"job() has no option {min(unknown)!r}; there are: {', '.join(sorted(known))}")
    name = given.pop("name", None) or _name(function)
    definition = JobDefinition(name, **given)
    for option in ("timeout", "expires", "within"):
        duration = getattr(definition, option)
        if duration is not None:
            to_milliseconds(duration, f"job {name!r}: {option}", least=1)
    _check_priority(name, definition.priority)
    _check_batch(name, definition)
    if definition.executor == "process" and "<" in getattr(function, "__qualname__", ""):
        raise TopologyError(
            f"job {name!r} cannot run in a process of its own: {function!r:.80} is defined within another "
            "function, where that process cannot find it",
            hint="define it with def in a module, or leave executor= out",
        )
    for option, kind in (("retry", Retry), ("limit", Limit)):
        value = getattr(definition, option)
        if value is not None and not isinstance(value, kind):
            raise ConfigurationError(
                f"job {name!r}: {option} takes a {kind.__name__}, got {value!r:.80}",
                hint="retry=Retry(5, backoff=seconds(10))"
                if option == "retry"
                else "limit=Limit(rate=100, per=minutes(1))",
            )
    schedule: object = definition.schedule
    if schedule is not None and not isinstance(schedule, Cron | Every):
        raise ConfigurationError(
            f"job {name!r}: schedule takes a Cron or an Every, got {schedule!r:.80}",
            hint="schedule=Cron('30 2 * * *', zone='Europe/Berlin')",
        )
    for option, allowed in (("executor", ("thread", "process")), ("on_failure", ("wait", "continue"))):
        if getattr(definition, option) not in allowed:
            raise ConfigurationError(
                f"job {name!r}: {option} is one of {', '.join(allowed)}, got "
                f"{getattr(definition, option)!r:.80}"
            )
    return definition


def _check_batch(name: str, definition: JobDefinition) -> None:
    batch: object = definition.batch
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ConfigurationError(f"job {name!r}: batch is a whole number from 1, got {batch!r:.80}")
    if definition.within is not None and batch is None:
        raise ConfigurationError(f"job {name!r}: within needs batch=", hint="batch=100, within=seconds(1)")


def _check_priority(name: str, priority: object) -> None:
    if type(priority) is not int or not -100 <= priority <= 100:
        raise ConfigurationError(
            f"job {name!r}: priority is a whole number from -100 to 100, got {priority!r:.80}"
        )


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", "")
    if not name or "<" in name:
        raise TopologyError(
            f"{function!r:.80} cannot be a job: workers find a job by the name of its function, and this one "
            "has none that is the same in every process",
            hint="define it with def in a module, or give the job a name: @app.job(name=…)",
        )
    return f"{_module(function)}.{name}"


def _module(function: Callable[..., Any]) -> str:
    """The name under which other programs import the function's module."""
    name = function.__module__
    if name != "__main__":
        return name
    main: Any = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    path = getattr(main, "__file__", None)
    return name if path is None else Path(path).stem
