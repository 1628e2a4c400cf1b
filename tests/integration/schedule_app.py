"""Jobs of a schedule that is due each second, and nothing else."""

from __future__ import annotations

import os

from streams import App, seconds
from streams.jobs.current import current_job
from streams.jobs.schedule_rules import Every

PREFIX = os.environ["SCHEDULE_PREFIX"]

app = App(f"{PREFIX}-schedule", job_partitions=3)


@app.job(name="tick", schedule=Every(seconds(1), missed="all", overlap="allow"))
def tick() -> int:
    return current_job().scheduled
