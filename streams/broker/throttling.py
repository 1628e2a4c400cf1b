"""How long a cluster has held back the clients of a process because of quotas."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Role: TypeAlias = Literal["consumer", "producer"]
"""Which of its quotas a client has exceeded: for reading or for writing."""


class Throttled(NamedTuple):
    """The clients of one kind at one broker."""

    role: Role
    broker: str
    """The broker's number in the cluster."""
    seconds: float
    """For how long it has held them back up to now, since the process began."""
