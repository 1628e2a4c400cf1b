"""``make demo-replay``, on a short log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]


def test_each_failure_is_reported_once_by_the_version_in_charge(kafka_bootstrap: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "apps.log_analysis.replay_demo", "--lines", "8000"],
        cwd=tmp_path,
        env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "build" / "demo-replay-report.json").read_text())
    assert report["problems"] == []
    assert set(report["by_version"]) == {"failures-1", "failures-2"}
    added = [topic["added"] for name, topic in report["shadow"].items() if name.endswith("-failures")]
    assert added[0] > 0
    assert (tmp_path / "build" / "demo-replay-shadow.html").read_text().startswith("<!doctype html>")
