"""An app on the memory broker whose dead letters are retried, with workers that a test runs in turns."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from streams.records import Output
from streams.replay.dead_letters.retry import order_retry, plan_retry
from streams.replay.dead_letters.rows import DeadLetters, LetterRow, Selection
from streams.runtime.retry_requests import RetryRequests
from tests.support.cluster import AppCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams import App
    from streams.records import Headers
    from streams.replay.dead_letters.retry import RetryPlan
    from streams.runtime.letter import LetterId
    from streams.runtime.retry_log import RetryOutcome
    from streams.runtime.worker import Worker
    from streams.state.store import Databases

T = TypeVar("T")


def at_once(call: Callable[[], T]) -> Future[T]:
    """Run a call in the caller's thread."""
    future: Future[T] = Future()
    try:
        future.set_result(call())
    except Exception as error:  # noqa: BLE001 - the future's owner handles it
        future.set_exception(error)
    return future


class Retrying(AppCluster):
    """``app`` may be replaced by a changed program: workers that are started later run that one."""

    def __init__(self, app: App, topics: dict[str, int] | None = None) -> None:
        super().__init__(app, topics or {"in": 2})
        self.done: dict[LetterId, RetryOutcome | None] = {}
        """Outcomes at some time of a test."""

    def worker(self, databases: Databases | None = None) -> Worker:
        self.workers += 1
        requests: Any = RetryRequests(self.broker, self.app.name, self.clock, at_once)
        worker = self.make_worker(
            self.app,
            f"worker-{self.workers}",
            partitions=self.counts,
            retries=requests,
            databases=databases,
            wall_clock=self.clock.milliseconds,
        )
        worker.start()
        return worker

    def send(
        self,
        values: Sequence[str],
        *,
        keys: Sequence[str] | None = None,
        topic: str = "in",
        headers: Headers | None = None,
        times: Sequence[int] | None = None,
    ) -> None:
        encoded = [value.encode() for value in values]
        self.write(
            Output(
                topic,
                encoded if keys is None else [key.encode() for key in keys],
                encoded,
                times or [0] * len(encoded),
                None if headers is None else [headers] * len(encoded),
            )
        )

    def settle(self, *workers: Worker) -> None:
        """Let workers take turns until all input is committed."""
        self.run(*workers, until=lambda: self.uncommitted(self.app.name, self.counts) == 0)

    def let(self, *workers: Worker, rounds: int = 60) -> None:
        """Let workers take some turns, in which time passes."""
        for _ in range(rounds):
            for worker in workers:
                worker.run_once()
            self.clock.advance(0.2)

    @property
    def letters(self) -> DeadLetters:
        return DeadLetters(self.app, self.broker)

    def selected(self, **selection: Any) -> list[LetterRow]:
        """The selected dead letters; all unless something is given."""
        return list(self.letters.rows(Selection(**selection) if selection else None))

    def states(self) -> dict[str, tuple[str, int]]:
        """The state of each dead letter, and how often its step was given it, by its value."""
        return {
            (row.letter.value or b"").decode(): (str(row.state), row.history.tries) for row in self.selected()
        }

    def retry(self, *, only_if_newest: bool = False, **selection: Any) -> RetryPlan:
        """Request a retry of the selected dead letters."""
        letters = self.letters
        plan = plan_retry(letters, Selection(**selection), only_if_newest=only_if_newest)
        order_retry(letters, plan, self.clock.milliseconds())
        return plan

    def values(self, topic: str) -> list[str]:
        return [value.decode() for value in self.payloads(topic)]
