"""What the programs that enqueue have in common; it needs the standard library only.

``many N``: N jobs, many at once if the system can do that. ``single SECONDS``: one after another, each
acknowledged. ``steady RATE SECONDS``: jobs that note how long ago they were enqueued. A line of JSON says how
many jobs were enqueued, and how long that took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CHUNK = 1_000


@cache
def _file() -> int:
    return os.open(os.environ["TASK_QUEUE_LATENCIES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def took(sent: int) -> int:
    """Note the nanoseconds since a job was enqueued. Its client and its worker are on one machine."""
    nanoseconds = time.time_ns() - sent
    os.write(_file(), b"%d\n" % nanoseconds)
    return nanoseconds


def main(
    *,
    single: Callable[[int], Any],
    stamped: Callable[[int], Any],
    many: Callable[[Sequence[int]], Any] | None = None,
) -> None:
    """Enqueue what the arguments say."""
    what, *numbers = sys.argv[1:3] if sys.argv[1] != "steady" else sys.argv[1:4]
    # The first call opens the connection.
    single(-1)
    begun, count = time.perf_counter(), 0
    if what == "many":
        total = int(numbers[0]) - 1
        for start in range(0, total, CHUNK):
            chunk = range(start, min(start + CHUNK, total))
            if many is not None:
                many(chunk)
            else:
                for number in chunk:
                    single(number)
        count = total
    elif what == "single":
        while time.perf_counter() - begun < float(numbers[0]):
            single(count)
            count += 1
    else:
        rate, seconds = map(float, numbers)
        while count < rate * seconds:
            wait = begun + count / rate - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            stamped(time.time_ns())
            count += 1
    print(json.dumps({"jobs": count, "seconds": time.perf_counter() - begun}))
