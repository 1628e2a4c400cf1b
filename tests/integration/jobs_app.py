"""An app with jobs that the tests run as processes, configured by environment variables."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from streams import App, seconds
from streams.jobs.current import current_job
from streams.jobs.retry import Retry

PREFIX = os.environ.get("JOBS_PREFIX", "none")
FOLDER = Path(os.environ.get("JOBS_FOLDER", "."))
"""Jobs write there when they begin and end, with their idempotency keys."""

app = App(f"{PREFIX}-jobs", job_partitions=1, job_concurrency=50)


def note(what: str, name: str) -> None:
    job = current_job()
    with (FOLDER / name).open("a") as file:
        file.write(f"{what} {job.idempotency_key} {job.attempt} {time.time()}\n")


@app.job(name="sleep")
def sleep(name: str, duration: float) -> str:
    note("begun", name)
    deadline = time.monotonic() + duration
    while time.monotonic() < deadline:
        time.sleep(0.02)
    note("ended", name)
    return name


@app.job(name="gate")
def gate(name: str) -> str:
    note("begun", name)
    while not (FOLDER / "go").exists():
        time.sleep(0.01)
    note("ended", name)
    return name


@app.job(name="nap")
async def nap(name: str, duration: float) -> str:
    note("begun", name)
    try:
        await asyncio.sleep(duration)
    except asyncio.CancelledError:
        note("cancelled", name)
        raise
    note("ended", name)
    return name


@app.job(name="separate", executor="process")
def separate(name: str, duration: float) -> str:
    note("begun", name)
    (FOLDER / f"{name}.pid").write_text(str(os.getpid()))
    time.sleep(duration)
    note("ended", name)
    return name


@app.job(
    name="step", key=lambda key, number: str(key), retry=Retry(4, backoff=seconds(1), factor=1, jitter=0)
)
def step(key: int, number: int) -> int:
    note(f"begun {number}", f"key-{key}")
    time.sleep(0.02)
    if (key, number) == (3, 10) and current_job().attempt < 4:
        note(f"failed {number}", f"key-{key}")
        raise OSError("not now")
    note(f"ended {number}", f"key-{key}")
    return number
