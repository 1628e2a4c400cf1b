"""The README and the pages in ``docs``: programs run, links and commands are valid."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import typer
from prometheus_client.parser import text_string_to_metric_families
from typer.core import TyperGroup

from streams import App, Json, Text
from streams.broker.memory import MemoryBroker
from streams.cli.main import cli
from streams.config import Settings
from streams.errors import StreamsError
from streams.events import Event
from streams.monitoring.metrics import WorkerMetrics
from streams.runtime.commit import AtLeastOnce
from streams.runtime.worker import Worker
from streams.simulation import Simulator
from streams.testing import TopologyDriver
from tests.support.pages import DOCS, FENCE, PAGES, README, ROOT, Block, blocks

if TYPE_CHECKING:
    from pathlib import Path

LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def programs(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs blocks of a page, in order, as one module in a folder that holds the page's files."""

    def run(page: Path, *chosen: Block) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        for block in blocks(page):
            if block.title is not None:
                file = tmp_path / block.title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.text)
        module = ModuleType("page")
        monkeypatch.setitem(sys.modules, "page", module)
        for block in chosen:
            # Errors name the line of the page.
            exec(compile("\n" * block.line + block.text, name(page), "exec"), module.__dict__)
        return module.__dict__

    return run


@pytest.mark.parametrize("page", [page for page in PAGES if programs(page)], ids=name)
def test_the_programs_of_a_page_run_as_printed(page, run):
    run(page, *programs(page))


def test_the_django_project_runs_as_printed(tmp_path):
    pytest.importorskip("django", reason="Django's tasks need Django 6, and that Python 3.12 or later")
    files = [block for block in blocks(DOCS / "django-tasks.md") if block.title is not None]
    for block in files:
        (tmp_path / str(block.title)).write_text(block.text)
    assert {block.title for block in files} == {
        "settings.py",
        "jobs.py",
        "tasks.py",
        "queues.py",
        "test_tasks.py",
    }
    for script in ("queues.py", "test_tasks.py"):
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings"}
        done = subprocess.run(
            [sys.executable, script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_first_app_and_its_test_run_as_printed(run):
    app = programs(README)[0]
    page = DOCS / "getting-started.md"
    assert programs(page)[0].text == app.text
    driver = run(page, *programs(page))["driver"]
    assert isinstance(driver, TopologyDriver)
    assert driver.topics == []


def test_the_first_app_fits_on_the_first_screen():
    text = README.read_text()
    assert text.index('App("alerts")') < text.index("## Features")
    assert len(programs(README)[0].text.strip().splitlines()) <= 15


def test_the_readme_is_one_page():
    assert len(README.read_text().splitlines()) <= 120


def test_the_readme_s_figures_are_those_of_the_performance_page():
    rows = [line for line in README.read_text().splitlines() if line.endswith(" MB |")]
    assert len(rows) > 10
    assert set(rows) <= set((DOCS / "performance.md").read_text().splitlines())


def test_the_processor_example_runs_as_printed(run):
    page = DOCS / "processors.md"
    namespace = run(page, programs(page)[0])
    driver = TopologyDriver(namespace["app"])
    for value in (1, 1, 2):
        driver.send("readings", value, key="sensor-1")
    assert driver.values("changes") == [1, 2]


READINGS = [(b"sensor-%d" % (row % 2), b"%d" % (row // 6), row * 1_000) for row in range(60)]


def test_the_processor_example_gives_the_same_results_under_faults(run):
    page = DOCS / "processors.md"
    namespace = run(page, programs(page)[0])
    reports = list(Simulator(namespace["app"], {"readings": READINGS}).run(range(200)))
    assert len(reports) == 200
    assert reports[-1].differences == []


def test_the_processor_example_without_its_store_gives_other_results_under_faults():
    class Deduplicate:
        def __init__(self):
            self.last = {}

        def process(self, record, context):
            if record.value != self.last.get(record.key):
                self.last[record.key] = record.value
                context.forward(record)

    app = App("readings")
    app.stream("readings", key=Text(), value=Json(float)).process(Deduplicate).to("changes")
    reports = list(Simulator(app, {"readings": READINGS}).run(range(200)))
    assert reports[-1].differences


def test_the_aggregating_app_runs_as_printed(run):
    page = DOCS / "aggregations.md"
    namespace = run(page, programs(page)[0])
    driver = TopologyDriver(namespace["app"])
    for time, path in ((0, "/"), (1000, "/"), (2000, "/cart"), (200_000, "/")):
        driver.send("hits", namespace["Hit"](path, 10, 1.0), timestamp=time)
    assert driver.values("hit-counts") == [1, 2, 1, 3]
    results = [(window.key, window.start, window.value["bytes"]) for window in driver.values("traffic")]
    assert results == [("/", 0, 20), ("/cart", 0, 10)]


def test_every_setting_is_in_the_tables():
    table = (DOCS / "configuration.md").read_text()
    assert {name for name in Settings.__struct_fields__ if f"`{name}`" not in table} == set()


def every_error(base: type[StreamsError] = StreamsError) -> set[type[StreamsError]]:
    return {base}.union(*map(every_error, base.__subclasses__()))


def test_every_exit_code_is_in_the_table():
    table = (DOCS / "command-line.md").read_text()
    assert {
        code for code in {error.exit_code for error in every_error()} if f"\n| {code} | " not in table
    } == set()


def test_every_event_is_in_the_table():
    table = (DOCS / "monitoring.md").read_text()
    assert {event for event in Event if f"\n| `{event}` | " not in table} == set()


def test_every_metric_is_in_the_table():
    app = App("numbers")
    app.stream("in", value=Text()).to("out")
    broker = MemoryBroker()
    guarantee = AtLeastOnce(broker, "numbers", timeout=10.0)
    worker = Worker(app.topology, broker, guarantee, app.settings, application="numbers")
    shown = text_string_to_metric_families(WorkerMetrics(worker).exposition().decode())
    names = {family.name + "_total" * (family.type == "counter") for family in shown}
    # The client library's own: of the process, and when a histogram was made.
    own = {name for name in names if not name.startswith("process_") and not name.endswith("_created")}
    table = (DOCS / "monitoring.md").read_text()
    assert {name for name in own if f"`{name}`" not in table} == set()


def commands() -> list[Any]:
    """The ``streams`` commands in the shell blocks of all pages, each as a pytest parameter."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language != "sh":
                continue
            for number, line in enumerate(block.text.replace("\\\n", "  ").splitlines(), block.line + 1):
                words = shlex.split(line, comments=True) if "streams " in line else []
                if "streams" in words:
                    found.append(
                        pytest.param(words[words.index("streams") + 1 :], id=f"{name(page)}:{number}")
                    )
    return found


@pytest.mark.parametrize("words", commands())
def test_a_command_has_the_options_that_are_printed(words):
    command = typer.main.get_command(cli)
    context = command.make_context("streams", [], resilient_parsing=True)
    while words and isinstance(command, TyperGroup) and (found := command.get_command(context, words[0])):
        command, words = found, words[1:]
    command.make_context("streams", list(words), resilient_parsing=False)


def test_the_navigation_has_every_page_once():
    def pages(entries: list[Any]) -> list[str]:
        found: list[str] = []
        for entry in entries:
            for target in entry.values():
                found += [target] if isinstance(target, str) else pages(target)
        return found

    navigation = pages(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    assert sorted(navigation) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES if page != README)


def anchors(page: Path) -> set[str]:
    """The anchors of a page: its headings, as named by Markdown renderers."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "DESIGN.md"], ids=name)
def test_the_links_of_a_page_lead_somewhere(page):
    dead = []
    for target in LINK.findall(prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        # The site has only the pages of its folder.
        there = file.is_file() and (DOCS not in page.parents or DOCS in file.parents)
        if not there or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_has_one_title(page):
    titles = re.findall(r"^# .+$", prose(page), re.MULTILINE)
    assert len(titles) == 1
