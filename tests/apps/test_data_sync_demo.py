"""A small run of ``make demo-sync``, on the session's broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]


def test_source_and_targets_are_equal_whatever_fails(tmp_path, kafka_bootstrap):
    done = subprocess.run(
        [sys.executable, "-m", "apps.data_sync.demo", "--operations", "2000", "--seed", "7"],
        cwd=tmp_path,
        env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Source and targets are equal, row by row." in done.stdout
    report = json.loads((tmp_path / "build" / "demo-sync-report.json").read_text())
    assert report["equal"]
    assert (report["operations"], report["dead_letters"], report["differences"]) == (2_200, 0, [])
    assert report["changes"] >= 2_200
    assert len(report["survived"]) == 3
    assert len(report["checks"]) == 8
    assert all(report["checks"].values())
    assert report["rows"]["customers"] > 50
    assert report["rows"]["order_view"] > 50
    assert report["latency_seconds"]["when caught up"]["samples"] > 5
