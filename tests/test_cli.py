"""The command line: what it shows, what it refuses, and the codes it ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

APP = """
from streams import App, Text
app = App("shop")
app.stream("orders", value=Text()).filter(bool, name="paid").to("paid-orders")
nothing = 7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "broken.py").write_text("from streams import App\napp = App('x', comit_interval=1.0)\n")
    (tmp_path / "deadend.py").write_text("from streams import App\napp = App('x')\napp.stream('in')\n")
    return tmp_path


def streams(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streams", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith(("STREAMS_", "KAFKA_"))}
        | {"STREAMS_STATE_DIR": str(folder), "STREAMS_LOG_FORMAT": "json", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_describe_shows_the_topology_in_three_forms(folder):
    text = streams(folder, "describe", "shop:app")
    assert text.returncode == 0
    assert "step   paid: filter bool" in text.stdout
    assert streams(folder, "describe", "shop:app", "--format", "mermaid").stdout.startswith("flowchart TD")
    described = json.loads(streams(folder, "describe", "shop:app", "--format", "json").stdout)
    assert [node["name"] for node in described["subtopologies"][0]["nodes"]] == [
        "orders",
        "paid",
        "to-paid-orders",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["describe", "shop"], "'shop' names no app"),
        (["describe", "nowhere:app"], "module 'nowhere' is not found"),
        (["describe", "shop:nothing"], "'shop:nothing' is no App but int\n  hint: apps in shop: app"),
        (["describe", "shop:app", "--format", "png"], "unknown format 'png': text, mermaid, json"),
        (["run", "broken:app"], "unknown setting 'comit_interval'\n  hint: did you mean commit_interval?"),
        (["run", "deadend:app"], "'in' is a dead end"),
        (["run", "shop:app", "--set", "http_port=many"], "STREAMS_HTTP_PORT='many'"),
        (["run", "shop:app", "--set", "nonsense"], "'nonsense' is no setting"),
        (["run", "shop:app"], "no broker is named and no local Kafka is running"),
        (
            ["ingest", "missing.log", "--topic", "t", "--bootstrap-servers", "127.0.0.1:1"],
            "file 'missing.log' does not exist",
        ),
    ],
)
def test_what_cannot_start_is_refused_with_advice_and_code_2(folder, arguments, says):
    done = streams(folder, *arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_broker_that_does_not_answer_is_code_3(folder):
    done = streams(folder, "run", "shop:app", "--bootstrap-servers", "127.0.0.1:1")
    assert done.returncode == 3
    assert "no broker answers at 127.0.0.1:1" in done.stderr
    assert "streams broker start" in done.stderr


def test_an_apps_own_import_error_is_shown_as_it_is(folder):
    (folder / "needy.py").write_text("import not_installed_anywhere\n")
    done = streams(folder, "describe", "needy:app")
    assert done.returncode == 1
    assert "No module named 'not_installed_anywhere'" in done.stderr


def test_broker_status_says_when_none_is_running(folder):
    done = streams(folder, "broker", "status")
    assert done.returncode == 1
    assert "no local Kafka is running" in done.stderr


@pytest.mark.kafka
def test_topics_ingest_and_lag_work_together(folder, kafka_bootstrap, prefix):
    name = f"{prefix}-lines"
    servers = ("--bootstrap-servers", kafka_bootstrap)
    (folder / "log.txt").write_bytes(b"one\ntwo\r\n\nfour")
    assert "created" in streams(folder, "topics", "create", name, "--partitions", "2", *servers).stdout
    assert "exists already" in streams(folder, "topics", "create", name, *servers).stdout
    done = streams(folder, "ingest", "log.txt", "--topic", name, "--json", *servers)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == 4
    listed = [json.loads(line) for line in streams(folder, "topics", "--json", *servers).stdout.splitlines()]
    assert {"topic": name, "partitions": 2, "replication_factor": 1} in listed
    (folder / "lines.py").write_text(
        "from streams import App, Text\n"
        f"app = App('{prefix}-app')\napp.stream('{name}', value=Text()).peek(print)\n"
    )
    done = streams(folder, "lag", "lines:app", "--json", *servers)
    assert done.returncode == 0, done.stderr
    lags = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(line["lag"] for line in lags) == 4
    assert {line["committed"] for line in lags} == {None}
    assert "has no committed offsets" in streams(folder, "lag", f"{prefix}-nobody", *servers).stderr
