"""Where something can happen to a worker in a simulation."""

from __future__ import annotations

from typing import Literal, TypeAlias

from streams.broker.memory import Step

Point: TypeAlias = Step | Literal["poll.after", "process", "store.before", "store.after"]
"""Where a fault can be injected into a worker: at its calls to the broker, and between them.

``poll.after`` is between polling records and processing them, ``process`` where a step's code is entered or
left, ``store`` before and after a write to a task's database.
"""
