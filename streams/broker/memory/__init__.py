"""An in-memory broker for tests: partitioned logs with groups, rebalances and transactions.

Its observable behaviour is that of Kafka: transaction markers take offsets, ``read_committed`` stops at the
first open transaction, groups rebalance incrementally by the ``range`` assignor of KIP-848, and outdated
members and producers are fenced. Clients may be in several threads. In a single thread it is deterministic:
the same calls give the same results.

Where Kafka's behaviour varies or is delayed, this broker is strict and immediate, so that a wrong caller
fails in every test and not by chance:

- A non-transactional producer's rows are written by ``flush``, not before. Those of a transaction are written
  at once.
- A member may only commit offsets of its own partitions. Kafka only checks the membership.
- A poll in which the assignment changed returns no records.
- A fenced commit, with or without a transaction, raises ``TransactionAborted``: it did not and will not
happen.
- A producer whose transaction timed out is fenced: every further call raises ``OutcomeUnknown``.
- Offsets that an open transaction has sent hide the last committed ones, as Kafka's stable offset fetch does:
  ``Consumer.committed`` raises ``Retriable``, and a new owner reads no records of these partitions until the
  transaction ends. ``Admin.committed_offsets`` returns the last committed offsets.
- If a record is one that Kafka rejects after queueing (event time too far ahead, larger than the topic's
  limit, without a key in a compacted topic), no row of its ``Output`` is written, and the transaction fails
  at once. After ``take_refused`` has returned one, ``produce`` raises for further ones of the topic.
- With ``instance_id``, a closed member's partitions stay reserved for ``session_timeout`` or until its
  successor joins; joining with the instance id of a running member raises ``FatalBrokerError``.
"""

from streams.broker.memory.admin import MemoryAdmin
from streams.broker.memory.broker import MemoryBroker
from streams.broker.memory.cluster import Step
from streams.broker.memory.consumer import MemoryConsumer
from streams.broker.memory.producer import MemoryProducer

__all__ = ["MemoryAdmin", "MemoryBroker", "MemoryConsumer", "MemoryProducer", "Step"]
