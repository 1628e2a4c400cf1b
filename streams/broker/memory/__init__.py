"""A broker in this process, for tests: partitioned logs with groups, rebalances and transactions.

It behaves as Kafka does where a caller can tell: transaction markers take offsets, ``read_committed``
stops at the first open transaction, groups rebalance incrementally by the ``range`` assignor of KIP-848, and
members and producers that are out of date are fenced. Clients may live in several threads; used from one
thread, the same calls give the same results, as nothing here is random.

Where Kafka leaves something open or late, this broker takes the strict side at once, so that a wrong caller
fails in a test and not by chance:

- A plain producer's rows are written by ``flush``, not before. A transaction's rows are written at once.
- A member may commit only for partitions that it holds. Kafka compares the membership alone.
- A poll in which the assignment changed brings no records.
- A fenced commit, plain or in a transaction, raises ``TransactionAborted``: it did not happen and never will.
- A producer whose transaction timed out is fenced: ``OutcomeUnknown`` from every further call.
- Offsets that an open transaction has sent hide the last committed ones, as Kafka's stable offset fetch does:
  ``Consumer.committed`` raises ``Retriable`` and a new owner reads nothing of these partitions until the
  transaction ends. ``Admin.committed_offsets`` returns what was committed last.
- Records that Kafka refuses after they were queued (times too far ahead, larger than the topic takes,
  without a key in a compacted topic) have none of their ``Output`` written, and fail the transaction at once.
  Once ``take_refused`` has told of one, others for the topic are refused by ``produce``.
- With ``instance_id``, a closed member's partitions stay reserved for ``session_timeout`` or until its
  successor joins; joining under the instance id of a living member raises ``FatalBrokerError``.
"""

from streams.broker.memory.admin import MemoryAdmin
from streams.broker.memory.broker import MemoryBroker
from streams.broker.memory.cluster import Step
from streams.broker.memory.consumer import MemoryConsumer
from streams.broker.memory.producer import MemoryProducer

__all__ = ["MemoryAdmin", "MemoryBroker", "MemoryConsumer", "MemoryProducer", "Step"]
