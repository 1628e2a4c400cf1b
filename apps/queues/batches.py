"""Sending in batches, and processing in batches.

``python -m apps.queues.batches FILE`` sends the lines of a file, ``sensor,value``, 500 at a time: all of a
batch or none. ``streams run apps.queues.batches:app`` saves them, up to 500 in one transaction of SQLite, or
what is there after half a second. A line that is no number fails alone, and becomes a dead letter.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from streams import App, current_jobs, milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterable

BATCH: Final = 500

app = App(f"{os.environ.get('QUEUES_PREFIX', '')}readings")


class Reading(msgspec.Struct):
    """A line of the file."""

    sensor: str
    value: str


@app.job(name="save", batch=BATCH, within=milliseconds(500))
def save(readings: list[Reading]) -> list[ValueError | None]:
    """Save readings, once each: the key is that of the job, which is the same if it is executed again."""
    rows: list[tuple[str, str, float]] = []
    results: list[ValueError | None] = []
    for job, reading in zip(current_jobs(), readings, strict=True):
        try:
            rows.append((job.idempotency_key, reading.sensor, float(reading.value)))
            results.append(None)
        except ValueError as error:
            results.append(error)
    with closing(sqlite3.connect(os.environ["READINGS"], timeout=30)) as database, database:
        database.execute("create table if not exists readings (id text primary key, sensor text, value real)")
        database.executemany("insert into readings values (?, ?, ?) on conflict do nothing", rows)
    return results


def send(lines: Iterable[str]) -> int:
    """Send lines; returns how many."""
    readings = (Reading(*line.strip().split(",", 1)) for line in lines if "," in line)
    count = 0
    while batch := list(islice(readings, BATCH)):
        save.enqueue_many([save.call(reading) for reading in batch])
        count += len(batch)
    return count


if __name__ == "__main__":
    with Path(sys.argv[1]).open(encoding="utf-8") as file:
        print(f"{send(file)} readings sent")
