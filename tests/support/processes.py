"""Which of some processes still run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable


def running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended. RabbitMQ's own children may have, and wait for init to read that."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
