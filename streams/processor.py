"""The Processor API: what a user's own processor is, and what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.records import Batch, Record


class Context(Protocol):
    """What a processor may do besides computing."""

    @property
    def step(self) -> str:
        """The name of the processor's step in the topology."""

    @property
    def subtopology(self) -> int:
        """Number of the subtopology that the processor's task runs."""

    @property
    def partition(self) -> int:
        """Partition number that the processor's task runs on."""

    def forward(self, output: Record[Any, Any] | Batch[Any, Any], *, to: str | None = None) -> None:
        """Send a record or a batch to the steps that follow, or only to the one named ``to``.

        It takes effect when the ``process`` call that made it returns, and not at all when that call raises.
        A record forwarded keeps its own key, value, timestamp and headers; its topic, partition and offset
        stay those of the input record.
        """


class Processor(Protocol):
    """One record at a time. A new one is made for every task: keep per-partition things on ``self``."""

    def process(self, record: Record[Any, Any], context: Context) -> None:
        """Handle one record. Where it raises, the step's error policy applies to that record."""


class BatchProcessor(Protocol):
    """A batch at a time: the faster form.

    Where ``process_batch`` raises, what it forwarded is dropped and it is called again with each record of
    the batch alone, so that only the failing one meets the error policy. Effects outside of the context must
    bear that.
    """

    def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
        """Handle a batch of at least one record."""


ProcessorFactory: TypeAlias = "Callable[[], Processor | BatchProcessor]"
