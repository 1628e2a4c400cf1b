"""What a program does not use is not imported: each process of an app starts sooner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import streams
import streams.public

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = """
from streams import App, Json, Text

app = App("plain", bootstrap_servers="127.0.0.1:1")
orders = app.stream("orders", key=Text(), value=Json(dict[str, int]))
orders.filter(lambda order: order["cents"] > 0).to("paid")
orders.group_by_key().count("counts").to("numbers")
"""

AT_WORK = """
import threading
from streams import App, Json, Text
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.records import Output

broker = MemoryBroker()
broker.admin().create_topics([NewTopic(name=name, partitions=1) for name in ("in", "out")])
producer = broker.producer()
producer.produce(Output("in", [b"k"], [b"7"], [1]))
producer.flush(1)

class Local(App):
    def broker(self):
        return broker

def work(value):
    stop.set()
    return value + 1

stop = threading.Event()
app = Local("work", state_store="memory")
app.stream("in", key=Text(), value=Json(int)).map(work).group_by_key().count("counts").to("out")
app.run(own_process=True, stop=stop)
"""

HEAVY = {
    "concurrent.futures.process",
    "cronsim",
    "email",
    "fastavro",
    "http.client",
    "importlib.metadata",
    "multiprocessing",
    "prometheus_client",
    "rich",
    "smtplib",
    "structlog",
    "uvicorn",
}
"""Libraries that some apps need, and large parts of Python's own. The Kafka client itself imports asyncio."""

PARTS = {
    "streams.alerts",
    "streams.connectors.change_avro",
    "streams.http_service",
    "streams.jobs",
    "streams.monitoring.metrics",
    "streams.monitoring.observer",
    "streams.queries.http_server",
    "streams.registry_topics",
    "streams.serde.avro",
}
"""Parts of this library that some apps need."""


def imported(program: str, folder: Path, *arguments: str) -> set[str]:
    """The modules that a process has at its end."""
    said = "import json, sys\nprint(json.dumps(sorted(sys.modules)), flush=True)"
    (folder / "program.py").write_text(f"{program}\n{said}\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMS_", "KAFKA_"))}
    done = subprocess.run(
        [sys.executable, *(arguments or ("program.py",))],
        cwd=folder,
        env={**kept, "STREAMS_STATE_DIR": str(folder), "STREAMS_LOG_FORMAT": "json"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=60,
    )
    return set(json.loads(done.stdout.splitlines()[0]))


def test_the_package_alone_imports_no_library_and_none_of_its_parts(tmp_path: Path):
    found = imported("import streams", tmp_path)
    libraries = {"asyncio", "confluent_kafka", "msgspec", "rocksdict", "sortedcontainers", "ssl", "typer"}
    assert sorted(found & (HEAVY | PARTS | libraries)) == []
    assert {name for name in found if name.startswith("streams.")} == set()


def test_an_app_imports_what_it_uses(tmp_path: Path):
    found = imported(PLAIN, tmp_path)
    assert sorted(found & (HEAVY | PARTS | {"rocksdict", "typer"})) == []


def test_a_worker_at_work_has_imported_what_it_uses(tmp_path: Path):
    found = imported(AT_WORK, tmp_path)
    assert sorted(found & (HEAVY | PARTS | {"rocksdict"})) == []


def test_the_command_imports_no_other_command_and_little_for_its_own(tmp_path: Path):
    found = imported(PLAIN, tmp_path, "-P", "-m", "streams", "describe", "program:app")
    assert sorted(found & (HEAVY | PARTS | {"rocksdict"})) == []
    commands = {name for name in found if name.startswith("streams.cli.")}
    assert "streams.cli.describe" in commands
    assert not commands & {
        f"streams.cli.{name}" for name in ("jobs", "replay", "simulate", "source", "status")
    }


@pytest.mark.parametrize(
    ("use", "module"),
    [
        ("app.log", "structlog"),
        ("from streams import Avro", "fastavro"),
        ("app.job(name='job')(lambda: None)", "streams.jobs.declared"),
        ("from streams import Email", "smtplib"),
    ],
)
def test_what_is_used_is_imported(tmp_path: Path, use: str, module: str):
    """Otherwise the tests above would also pass for modules that have other names by now."""
    assert module in imported(f"{PLAIN}\n{use}", tmp_path)


def test_every_public_name_is_found_where_it_is_defined():
    assert set(streams.__all__) == set(streams.public.__all__) == set(dir(streams))
    for name in streams.public.__all__:
        assert getattr(streams, name) is getattr(streams.public, name)
