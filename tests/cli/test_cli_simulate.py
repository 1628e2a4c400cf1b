"""``streams simulate``: its input, the output for a difference, and exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from streams import App, Json, Text
from streams.errors import ConfigurationError
from streams.simulation.inputs import parse_files, read_inputs
from streams.simulation.schedule import parse_kinds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHOP = """
from pathlib import Path
from streams import App, Text, key_value_store


class Numbered:
    def process(self, record, context):
        numbers = context.store("numbers")
        number = (numbers.get(record.key) or 0) + 1
        numbers.put(record.key, number)
        record.value = f"{record.value} {number}"
        context.forward(record)


class Forgetful:
    def __init__(self):
        self.numbers = {}

    def process(self, record, context):
        self.numbers[record.key] = self.numbers.get(record.key, 0) + 1
        record.value = f"{record.value} {self.numbers[record.key]}"
        context.forward(record)


def numbering(name, processor, **options):
    app = App(name)
    keyed = app.stream("orders", value=Text()).key_by(lambda line: line[0]).repartition("keyed", value=Text())
    keyed.process(processor, **options).to("numbered", value=Text())
    return app


sound = numbering("sound", Numbered, stores=[key_value_store("numbers")])
broken = numbering("broken", Forgetful)
slow = App("slow")
slow.stream("orders", value=Text()).peek(lambda _: Path("running").touch()).to("copies", value=Text())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "orders.txt").write_text("".join(f"{'abc'[row % 3]} {row}\r\n" for row in range(30)))
    return tmp_path


def arguments(*options: str) -> list[str]:
    return [sys.executable, "-m", "streams", "simulate", *options]


def surroundings(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMS_", "KAFKA_"))}
    return kept | {"COLUMNS": "300"} | more


def simulate(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(*options),
        cwd=folder,
        env=surroundings(**environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_sound_app_gives_code_0_and_the_figures(folder):
    done = simulate(folder, "shop:sound", "--seeds", "20", "--input", "orders=orders.txt", "--processes", "1")
    assert done.returncode == 0, done.stderr
    assert "20 schedules in" in done.stdout
    assert "0 differences" in done.stdout
    assert re.search(r"crash +│ +\d+", done.stdout)
    assert "numbered: every record, in the order of each key" in done.stdout


def test_a_difference_is_shown_step_by_step_and_can_be_seen_again(folder):
    options = ["shop:broken", "--input", "orders=orders.txt", "--kind", "crash", "--kind", "evict"]
    done = simulate(folder, *options)
    assert done.returncode == 1
    (seed,) = re.findall(r"^seed (\d+) gives different results", done.stdout, re.MULTILINE)
    assert re.search(r"1\. +\d+\.\d+ s +worker \d: (crash|evict) .*\(assigned ", done.stdout)
    assert re.search(r"topic numbered, key '[abc]', record \d+ ", done.stdout)
    assert re.search(r"expected '[abc] (\d+) \d+' of time \d+\n +got +'[abc] \1 \d+' of time", done.stdout)
    (again,) = re.findall(r"to reproduce: streams simulate (.*)", done.stdout)
    assert shlex.split(again)[:3] == ["shop:broken", "--seed", seed]
    first = simulate(folder, *shlex.split(again), "--json", PYTHONHASHSEED="1")
    second = simulate(folder, *shlex.split(again), "--json", PYTHONHASHSEED="2")
    assert first.returncode == second.returncode == 1
    results = [json.loads(run.stdout) | {"seconds": 0} for run in (first, second)]
    assert results[0] == results[1]
    assert results[0]["differences"][0]["topic"] == "numbered"
    assert results[0]["differences"][0]["schedule"]


def test_a_reset_and_a_bounded_run_can_be_simulated(folder):
    options = ["--input", "orders=orders.txt", "--seeds", "12"]
    done = simulate(folder, "shop:sound", *options, "--reset")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"reset +│ +12", done.stdout)
    done = simulate(folder, "shop:sound", *options, "--from", "earliest", "--to", "2027-01-15T08:00:00.020Z")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "numbered: every record of each partition, byte by byte" in done.stdout
    done = simulate(folder, "shop:sound", *options, "--from", "earliest", "--reset")
    assert done.returncode == 2
    assert "belongs to none" in done.stderr


def test_a_difference_with_a_reset_can_be_seen_again(folder):
    done = simulate(folder, "shop:broken", "--input", "orders=orders.txt", "--reset", "--kind", "join")
    assert done.returncode == 1
    assert "reset of the group, its workers stopped" in done.stdout
    (again,) = re.findall(r"to reproduce: streams simulate (.*)", done.stdout)
    repeated = json.loads(simulate(folder, *shlex.split(again), "--json").stdout)
    assert repeated["differences"][0]["reset"]["position"] >= 0


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle SIGINT: background jobs of a shell script ignore it, and so do their child processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_with_the_figures_so_far(folder):
    process = subprocess.Popen(
        arguments("shop:slow", "--input", "orders=orders.txt", "--seeds", "1000000", "--json"),
        cwd=folder,
        env=surroundings(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    give_up = time.monotonic() + 60
    while not (folder / "running").exists():
        assert time.monotonic() < give_up
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(output)["differences"] == []


def test_an_app_without_input_is_refused_with_advice_and_code_2(folder):
    done = simulate(folder, "shop:sound")
    assert done.returncode == 2
    assert "the simulation needs records of orders\n  hint: --input orders=FILE" in done.stderr


@pytest.mark.parametrize(
    ("inputs", "records", "says"),
    [
        (["orders"], [], "'orders' does not name a topic and a file"),
        (["orders=none.txt"], [], "file 'none.txt' does not exist"),
        (["sales=orders.txt"], [], "the app does not read sales\n  hint: it reads orders"),
        ([], ["orders=orders.txt"], "orders.txt:1 is not a record"),
    ],
)
def test_files_that_are_no_input_are_refused(folder, monkeypatch, inputs, records, says):
    monkeypatch.chdir(folder)
    app = App("shop")
    app.stream("orders", value=Text()).to("copies", value=Text())
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        read_inputs(app.topology, parse_files(inputs), parse_files(records))


def test_an_unknown_fault_is_refused():
    with pytest.raises(ConfigurationError, match="unknown fault 'flood'"):
        parse_kinds(["crash", "flood"])


def test_lines_are_values_and_json_lines_are_records(tmp_path):
    app = App("reading")
    orders = app.table("orders", key=Text(), value=Json())
    app.stream("lines").to("copies")
    orders.to_stream().to("changes", key=Text(), value=Json())
    (tmp_path / "lines").write_bytes(b"one\r\n\ntwo")
    (tmp_path / "orders").write_text(
        '{"key": "a", "value": {"n": 1}, "timestamp": 5, "headers": {"h": "x"}, "partition": 2}\n'
        '{"key": "a"}\n\n{"key_base64": "/w==", "value_base64": "AA=="}\n'
    )
    lines, records = tmp_path / "lines", tmp_path / "orders"
    read = read_inputs(app.topology, parse_files([f"lines={lines}"]), parse_files([f"orders={records}"]))
    assert [(record.key, record.value) for record in read["lines"]] == [
        (None, b"one"),
        (None, b""),
        (None, b"two"),
    ]
    assert read["orders"][0] == (b"a", b'{"n":1}', 5, [("h", b"x")], 2)
    assert [(record.key, record.value) for record in read["orders"][1:]] == [(b"a", None), (b"\xff", b"\0")]
    times = [record.timestamp for record in read["lines"]]
    assert times == sorted(set(times))
