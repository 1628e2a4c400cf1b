"""Failing commands: an exit code and a message, without a traceback of this library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import streams as package

MAIN_FILE = str(Path(package.__file__).with_name("__main__.py"))
APP = """
from streams import App, Text
app = App("shop")
app.stream("größe-in".replace("ö", "o").replace("ß", "s"), value=Text()).filter(bool, name="größe").to("out")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "broken.py").write_text("def half():\n    return 1 / 0\nhalf()\n")
    return tmp_path


def shell(folder: Path, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command line in which ``streams`` is available."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("STREAMS_", "KAFKA_"))}
    return subprocess.run(
        ["bash", "-c", f'streams() {{ "{sys.executable}" -P "{MAIN_FILE}" "$@"; }}; set -o pipefail; {line}'],
        cwd=folder,
        env=kept | {"STREAMS_LOCAL_KAFKA_DIR": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("streams describe shop.py:app", 2, "hint: write shop:app"),
        ("streams describe apps/shop.py:app", 2, "hint: write apps.shop:app"),
        ("mkdir gone; cd gone; rmdir ../gone; streams describe shop:app", 2, "folder no longer exists"),
        ("streams describe shop:app > /dev/full", 1, "No space left on device"),
        ("streams topics create größe --bootstrap-servers 127.0.0.1:1", 2, "'größe' cannot name a topic"),
        ("env -u HOME true; HOME= streams broker status", 1, "no local Kafka is running"),
        ("STREAMS_LOCAL_KAFKA_DIR=/dev/null streams broker status", 1, "no local Kafka is running"),
        ("echo '[]' > local-kafka.json; streams broker status", 1, "no local Kafka is running"),
        ("echo '{}' > local-kafka.json; streams broker status", 1, "no local Kafka is running"),
        ("mkdir local-kafka.json; streams broker status", 7, "folder cannot be read"),
        ("streams describe nowhere:app 2>&-", 2, ""),
    ],
)
def test_a_failing_command_prints_one_message(folder, line, code, says):
    done = shell(folder, line)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert says in done.stderr


@pytest.mark.parametrize("line", ["streams describe shop:app >&-", "streams describe shop:app 2>&- <&-"])
def test_standard_streams_may_be_closed(folder, line):
    done = shell(folder, line)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_is_not_reported(folder):
    done = shell(folder, "streams describe shop:app --format json | true")
    assert done.returncode in (0, 1)
    assert done.stderr == ""


def test_letters_that_the_terminal_lacks_are_escaped(folder):
    done = shell(folder, "streams describe shop:app", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0
    assert "gr\\xf6\\xdfe" in done.stdout


def test_a_programs_own_error_is_shown_with_its_own_lines_alone(folder):
    done = shell(folder, "streams describe broken:app")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "in half" in done.stderr
    assert str(Path(MAIN_FILE).parent) not in done.stderr
