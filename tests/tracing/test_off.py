"""Without the setting, without an SDK and without the extra."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from streams import App
from streams.errors import ConfigurationError

PROGRAM = """
import sys
from streams import App, Text, seconds
from streams.testing import TopologyDriver

app = App("program"{settings})
app.stream("in", value=Text()).map(str.upper).to("out", value=Text())

@app.job(name="work")
def work() -> None: ...

with TopologyDriver(app) as driver:
    driver.send("in", "a", headers=[("traceparent", b"00-{trace}-{span}-01")])
    driver.send("in", "b")
    work.enqueue().result(timeout=seconds(1))
    for record in driver.read("out"):
        print(record.value, record.headers)
print("opentelemetry" in sys.modules, "opentelemetry.sdk" in sys.modules)
"""


def run(settings: str = "", **environment: str) -> list[str]:
    program = PROGRAM.format(settings=settings, trace="1" * 32, span="2" * 16)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


UNTOUCHED = [f"A [('traceparent', b'00-{'1' * 32}-{'2' * 16}-01')]", "B None"]


def test_without_the_setting_opentelemetry_is_not_imported():
    assert run() == [*UNTOUCHED, "False False"]


def test_without_an_sdk_headers_stay_as_they_are():
    assert run(", tracing=True") == [*UNTOUCHED, "True False"]


def test_the_setting_may_come_from_the_environment():
    assert run(STREAMS_TRACING="true") == [*UNTOUCHED, "True False"]


def test_a_disabled_sdk_is_as_none():
    program = "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider; "
    program += "trace.set_tracer_provider(TracerProvider())\n"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program + PROGRAM.format(settings=", tracing=True", trace="1" * 32, span="2" * 16),
        ],
        env={"OTEL_SDK_DISABLED": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == UNTOUCHED


def test_the_setting_needs_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(
        ConfigurationError, match=r"tracing.*not installed\n.*pip install 'streams\[tracing\]'"
    ):
        App("traced", tracing=True)
    App("plain")
