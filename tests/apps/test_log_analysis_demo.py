"""The demonstration as ``make demo`` runs it, small, on the session's broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]


def run_demo(folder: Path, servers: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "apps.log_analysis.demo", *arguments],
        cwd=folder,
        env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": servers, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_the_report_accounts_for_every_generated_line(tmp_path, kafka_bootstrap):
    done = run_demo(tmp_path, kafka_bootstrap, "--lines", "4000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every line is accounted for" in done.stdout
    report = json.loads((tmp_path / "build" / "demo-report.json").read_text())
    assert report["accounted_for"]
    assert (report["lines"], report["hits"], report["dead_letters"]) == (4_000, 3_980, 20)
    assert report["errors"] + report["filtered"] + report["dead_letters"] == 4_000
    assert report["hits_in_windows"] + report["late_hits"] == report["hits_in_visits"] == 3_980
    assert sum(report["teams"].values()) == 3_980


def test_a_log_of_ones_own_is_read_to_its_last_line(tmp_path, kafka_bootstrap):
    line = '::1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 500 12'
    log = tmp_path / "own.log"
    log.write_text(f"{line}\n\n{line}\nbroken")
    done = run_demo(tmp_path, kafka_bootstrap, str(log))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "build" / "demo-report.json").read_text())
    assert (report["lines"], report["hits"], report["errors"], report["dead_letters"]) == (4, 2, 2, 2)


def test_a_log_that_is_not_there_is_named(tmp_path, kafka_bootstrap):
    done = run_demo(tmp_path, kafka_bootstrap, "missing.log")
    assert done.returncode == 1
    assert "missing.log is no file" in done.stdout
