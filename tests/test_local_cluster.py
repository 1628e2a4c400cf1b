"""An app finds the cluster that runs on this machine by the file that records it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from streams import App, ConfigurationError
from streams.app import find_bootstrap_servers
from streams.errors import LocalKafkaError
from streams.local_cluster import ClusterRecord, Seat, note_file, running, write_note
from streams.process.identity import ProcessIdentity

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch, tmp_path):
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setenv("STREAMS_LOCAL_KAFKA_DIR", str(tmp_path / "state"))


def left_running(folder: Path, *processes: ProcessIdentity | None) -> ClusterRecord:
    """Record a cluster like the code that starts one, with a node for each process."""
    seats = [Seat(number, 20_000 + number, 21_000 + number) for number, _ in enumerate(processes, 1)]
    record = ClusterRecord(folder, "x", 512, dict(zip(seats, processes, strict=True)))
    record.write()
    write_note(folder)
    return record


def test_an_app_finds_the_cluster_that_runs(tmp_path):
    record = left_running(tmp_path, ProcessIdentity.of(os.getpid()), None)
    assert running() == record
    assert find_bootstrap_servers() == "127.0.0.1:20001,127.0.0.1:20002"


def test_the_environment_and_settings_take_precedence_over_the_note(tmp_path, monkeypatch):
    left_running(tmp_path, ProcessIdentity.of(os.getpid()))
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "elsewhere:9092")
    assert find_bootstrap_servers() == "elsewhere:9092"


def test_a_note_of_dead_processes_is_ignored_and_removed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        gone = ProcessIdentity.of(child.pid)
        left_running(tmp_path, gone)
        assert running() is not None
    with pytest.raises(ConfigurationError, match="no broker is configured and no local Kafka is running"):
        find_bootstrap_servers()
    assert not note_file().exists()


def test_a_later_process_with_a_noted_id_is_not_taken_for_the_cluster(tmp_path):
    left_running(tmp_path, ProcessIdentity(os.getpid(), "long ago"))
    assert running() is None
    assert not note_file().exists()


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON", json.dumps({"folder": "/nowhere"})])
def test_an_invalid_note_counts_as_none(content):
    note_file().parent.mkdir()
    note_file().write_text(content)
    assert running() is None


def test_a_note_that_cannot_be_read_is_an_error_with_a_hint():
    note_file().mkdir(parents=True)
    with pytest.raises(
        LocalKafkaError, match=r"(?s)cannot be read.*bootstrap_servers.*STREAMS_LOCAL_KAFKA_DIR"
    ):
        App("shop").broker()
