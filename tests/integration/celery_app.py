"""An app that executes the tasks of a program with Celery, run as processes."""

from __future__ import annotations

import os
from pathlib import Path

from streams import App, current_job
from streams.celery import read_celery

PREFIX = os.environ["CELERY_PREFIX"]
NOTES = Path(os.environ["CELERY_NOTES"])

app = App(f"{PREFIX}-celery", job_partitions=2, job_concurrency=8)


@app.job(name="square")
def square(number: int) -> int:
    job = current_job()
    with NOTES.open("a") as file:
        file.write(f"{job.correlation_id} {job.idempotency_key}\n")
    return number * number


read_celery(app, os.environ["CELERY_BROKER"], results=os.environ["CELERY_RESULTS"])
