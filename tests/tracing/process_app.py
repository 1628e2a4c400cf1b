"""An app on a broker in memory whose jobs say in which span they run; processes import this module."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry import propagate

from streams import App
from streams.broker.memory import MemoryBroker

if TYPE_CHECKING:
    from streams.broker import Broker

BROKER = MemoryBroker()


class MemoryApp(App):
    def broker(self, *, client_id: str | None = None) -> Broker:
        return BROKER


app = MemoryApp(
    "traced",
    tracing=True,
    job_concurrency=2,
    job_partitions=1,
    state_store="memory",
    shutdown_timeout=6,
    state_dir=str(Path(tempfile.gettempdir()) / f"streams-tests-{os.getuid()}"),
)


def carried() -> str:
    """The current span, as a request to another service would carry it."""
    found: dict[str, str] = {}
    propagate.inject(found)
    return found.get("traceparent", "")


@app.job(name="thread")
def thread() -> str:
    return carried()


@app.job(name="process", executor="process")
def process() -> str:
    return carried()


@app.job(name="loop")
async def loop() -> str:
    return carried()
