"""A small run of ``make demo``, on the session's broker."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apps.log_analysis.generate import generate_lines

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


@pytest.mark.parametrize(
    ("name", "content", "example"),
    [
        ("shop.csv", b"id,name,price\n" + b"1,garden chair,19.90\n" * 5_000, "'id,name,price'"),
        ("small.csv", b"id,name\n1,chair\n", "'id,name'"),
        ("image.bin", bytes(range(256)) * 20_000, "line 1, "),
        ("access.log.gz", gzip.compress(b"x" * 100_000), "zcat them first"),
        (
            "service.log",
            b"2026-07-25 17:38:53,123 INFO [main] com.shop.Orders - placed\n" * 3_000,
            "INFO [main]",
        ),
    ],
)
def test_a_file_that_is_no_access_log_is_refused_within_seconds(
    tmp_path, kafka_bootstrap, name, content, example
):
    (tmp_path / name).write_bytes(content)
    done = run_demo(tmp_path, kafka_bootstrap, name)
    assert done.returncode == 5, done.stdout + done.stderr
    assert f"{name} is not an access log" in done.stdout
    assert example in done.stdout
    assert "expected: common, combined, main" in done.stdout
    # Nothing was started for it.
    assert not (tmp_path / "build" / "demo-workers.log").exists()


def test_workers_that_end_end_the_demo_with_their_code_and_reason(tmp_path, kafka_bootstrap):
    log = tmp_path / "half.log"
    lines = [*generate_lines(1_000, malformed_share=0), *("1,garden chair,19.90" for _ in range(20_000))]
    log.write_text("\n".join(lines))
    begun = time.monotonic()
    done = run_demo(tmp_path, kafka_bootstrap, str(log))
    assert done.returncode == 5, done.stdout + done.stderr
    assert time.monotonic() - begun < 100
    assert "the workers ended early, with exit code 5" in done.stdout
    assert "became dead letters, dead_letter_limit is 50.0%" in done.stdout
    assert "'1,garden chair,19.90': not a known format at column 1" in done.stdout
    assert "expected: common, combined, main" in done.stdout


def test_a_log_in_a_format_of_ones_own_is_read(tmp_path, kafka_bootstrap, monkeypatch):
    log = tmp_path / "own.log"
    log.write_text("203.0.113.9|1431857103.123|GET / HTTP/1.1|500|12\n" * 3)
    monkeypatch.setenv("LOG_ANALYSIS_FORMAT", "$remote_addr|$msec|$request|$status|$body_bytes_sent")
    done = run_demo(tmp_path, kafka_bootstrap, str(log))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "build" / "demo-report.json").read_text())
    assert (report["lines"], report["hits"], report["errors"], report["dead_letters"]) == (3, 3, 3, 0)


def test_a_log_that_is_not_there_is_named(tmp_path, kafka_bootstrap):
    done = run_demo(tmp_path, kafka_bootstrap, "missing.log")
    assert done.returncode == 1
    assert "missing.log is not a file" in done.stdout
