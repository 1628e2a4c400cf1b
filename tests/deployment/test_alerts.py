"""The alert rules: that they fire when they should, and what they say."""

from __future__ import annotations

import math
import re
import shutil
import subprocess

import pytest

from streams.alerts.rules import DEFAULTS, AlertName
from streams.replay.positions import parse_duration
from tests.support.deploy import DEPLOY, ROOT, document, rules

FOLDER = DEPLOY / "prometheus"
RULES = {rule["alert"]: rule for rule in rules()}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    return subprocess.run([program, *arguments], check=False, capture_output=True, text=True, timeout=60)


def test_the_rules_fire_when_they_should():
    answer = promtool("test", "rules", str(FOLDER / "alerts_test.yml"))
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_each_rule_is_tested():
    tested = [
        item
        for test in document(FOLDER / "alerts_test.yml")["tests"]
        for item in test.get("alert_rule_test", [])
    ]
    for expected in (True, False):
        assert {item["alertname"] for item in tested if bool(item["exp_alerts"]) is expected} == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_waits_has_a_severity_and_says_what_is_wrong_in_a_sentence(name):
    rule = RULES[name]
    assert re.fullmatch(r"\d+m", rule["for"])
    assert rule["labels"] == {"severity": rule["labels"]["severity"]}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    summary = rule["annotations"]["summary"]
    assert summary.endswith(".")
    assert ". " not in summary
    assert "{{ $labels.app }}" in summary


@pytest.mark.parametrize("name", RULES)
def test_a_rule_leads_to_its_part_of_the_documentation(name):
    page, _, anchor = RULES[name]["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == name.lower()
    assert name in headings


def test_the_documentation_has_no_other_alerts():
    text = (ROOT / "docs" / "monitoring.md").read_text()
    table = {
        name: (severity, wait)
        for name, wait, severity in re.findall(
            r"^\| \[`(Streams\w+)`\]\(#\w+\) \|.*\| (\d+ min) \| (\w+) \|$", text, re.MULTILINE
        )
    }
    assert table == {
        name: (rule["labels"]["severity"], f"{rule['for'].removesuffix('m')} min")
        for name, rule in RULES.items()
    }


def test_the_alerts_of_the_library_are_the_same():
    """By name, duration, severity and, where the expression has it as a number, by threshold."""
    own = {name.value: (rule.lasting, rule.severity) for name, rule in DEFAULTS.items()}
    assert own == {
        name: (parse_duration(rule["for"]), rule["labels"]["severity"]) for name, rule in RULES.items()
    }
    written = {
        AlertName.NOT_CATCHING_UP: "3600",
        AlertName.RETENTION_SOON: "4 * 3600",
        AlertName.DEAD_LETTER_SHARE: "0.01",
        AlertName.REBALANCE_STORM: "6",
        AlertName.JOBS_OVERDUE: "300",
        AlertName.CRON_MISSED: "120",
        AlertName.SLOT_UNHEALTHY: "10e9",
    }
    for name, text in written.items():
        assert math.prod(map(float, text.split("*"))) == DEFAULTS[name].threshold
        assert re.search(rf"[<>] {re.escape(text)}\b", RULES[name]["expr"]), name
