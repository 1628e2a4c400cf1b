"""An app whose jobs wait until a file appears, or until they are cancelled."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from streams import App
from streams.jobs.current import current_job

PREFIX = os.environ["JOB_OPERATION_PREFIX"]
GATE = Path(os.environ["JOBS_GATE"])

app = App(f"{PREFIX}-job_operation", job_partitions=2)


@app.job(name="hold", key=lambda key: key)
def hold(key: str) -> str:
    """Ends when the file of its key exists."""
    GATE.joinpath(f"{key}-began").touch()
    while not GATE.joinpath(key).exists():
        current_job().check_cancelled()
        time.sleep(0.02)
    return key


@app.job(name="sleep")
async def sleep(key: str) -> None:
    """Never ends by itself."""
    GATE.joinpath(f"{key}-began").touch()
    await asyncio.sleep(3_600)


@app.job(name="note", key=lambda key: key)
def note(key: str) -> str:
    """Notes that it was executed."""
    GATE.joinpath(f"{key}-began").touch()
    return key
