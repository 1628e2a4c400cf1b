"""Structs of the package that are decoded by their type, in whatever thread comes first."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from streams.monitoring.worker_report import WorkerReport

PACKAGE = Path(__file__).parents[1] / "streams"

FIRST = """
import sys, threading
from streams.monitoring.worker_report import WorkerReport
import msgspec

sys.setswitchinterval(1e-6)
body = sys.stdin.buffer.read()
barrier = threading.Barrier(16)

def decode():
    barrier.wait()
    for _ in range(20):
        msgspec.json.decode(body, type=WorkerReport)

threads = [threading.Thread(target=decode) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_decode_the_first_reports_of_workers_do_not_crash():
    body = msgspec.json.encode(REPORT)
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", FIRST], input=body, timeout=60, check=False)
        assert done.returncode == 0


def decoded() -> list[tuple[str, str]]:
    """The modules and the names of types that ``msgspec.json.decode`` is given, where they are classes."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(["streams", *path.relative_to(PACKAGE).with_suffix("").parts])
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "msgspec.json.decode":
                found += [
                    (module, ast.unparse(keyword.value))
                    for keyword in node.keywords
                    if keyword.arg == "type" and isinstance(keyword.value, ast.Name)
                ]
    return found


@pytest.mark.parametrize(("module", "name"), decoded())
def test_a_struct_that_is_decoded_is_prepared_when_it_is_imported(module, name):
    kind = getattr(importlib.import_module(module), name, None)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        source = (PACKAGE.parent / Path(*kind.__module__.split("."))).with_suffix(".py").read_text()
        classes = {
            node.name: [ast.unparse(each) for each in node.decorator_list]
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ClassDef)
        }
        assert "decodable" in classes[kind.__name__]


REPORT = WorkerReport(
    app="shop",
    worker="a",
    version="1",
    started=1,
    memory_bytes=None,
    state="running",
    time=1,
    measured=1,
    condition="keeping up",
    since=1,
    caught_up_in_seconds=None,
    waiting_seconds=0.0,
    bottlenecks=[],
    busy_seconds={},
    commits=1,
    transactions_aborted=0,
    problems={},
    partitions=[],
    tasks=[],
    steps=[],
    rebalances=[],
)
