"""The alert rules: that they fire when they should, and what they say."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

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
