"""All types that the public API takes, returns or raises can be imported from ``streams``."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import streams
from streams import errors

PACKAGE = Path(streams.__file__).parent


@cache
def declared() -> tuple[set[str], set[str]]:
    """The names of the package's classes and of its type aliases; read once, and only where tests need it."""
    nodes = [node for path in PACKAGE.rglob("*.py") for node in ast.parse(path.read_text()).body]
    classes = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    aliases = {
        node.target.id
        for node in nodes
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and ast.unparse(node.annotation) == "TypeAlias"
    }
    return classes, aliases


OF_THE_ENGINE = {
    "Batch.__init__": "batches are made of batches, by select and the with_ methods",
    "Batch.fetched": "where the engine reads columns that no step has replaced",
    "Batch.traces": "what the engine writes dead letters from",
    "Batch.tracing": "what the engine writes dead letters from",
    "Batch.rows": "which input rows the engine has in the batch",
    "Batch.of_rows": "which input rows the engine has in the batch",
    "Avro.connected": "an app with a schema registry connects its serdes",
    "Record.__init__": "headers are written as a list of pairs",
    "ErrorPolicy.__init__": "policies are fail, dead_letter, skip, and what retry makes",
    "StoreDefinition.__init__": "stores are made by key_value_store",
    "SourceBatch.__init__": "users make batches with SourceBatch.of",
    "Job.__init__": "jobs are made by App.job",
    "AsyncJob.__init__": "jobs are made by App.job",
    "BatchJob.__init__": "jobs are made by App.job",
    "Handle.__init__": "handles are returned by enqueue",
    "Call.__init__": "calls are made by Job.call",
    "Call.enqueued": "what the queue writes of a call",
    "Broker": "what a cluster is to the engine: users pass one on",
    "Topology": "a program's nodes are the engine's: users describe it",
}
"""Members of public classes that are not part of the public API, and why."""

ERRORS = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
}
HANDLED = {
    *("Retriable", "TransactionAborted", "OutcomeUnknown", "RecordRefused", "RecordsRefused", "TopicMissing"),
    *("FatalBrokerError", "WorkersFailed", "LocalKafkaError", "LocalPostgresError"),
    *("LocalRabbitMQError", "LocalRedisError", "GroupActive", "SwitchAborted"),
}
"""Errors that a worker handles or that end it as one of their bases, and those of the command line."""


def functions(public: Any) -> dict[str, Any]:
    """The functions and properties that a public name shows, by name."""
    if inspect.isfunction(public):
        return {"": public}
    found: dict[str, Any] = {}
    for kind in inspect.getmro(public) if isinstance(public, type) else ():
        if kind.__module__.startswith("streams"):
            for name, member in vars(kind).items():
                function = getattr(member, "fget", None) or getattr(member, "func", None) or member
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and (not name.startswith("_") or name == "__init__"):
                    found.setdefault(name, function)
    return found


def parts(annotations: dict[str, object]) -> set[str]:
    """The classes of this package in a signature, and the aliases in what it returns."""

    def named(kind: object) -> set[str]:
        tree = ast.parse(kind if isinstance(kind, str) else "None", mode="eval")
        return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}

    classes, aliases = declared()
    found = {name for kind in annotations.values() for name in named(kind)}
    return found & classes | named(annotations.get("return", "None")) & aliases


@pytest.mark.parametrize("name", streams.__all__)
def test_what_a_public_name_takes_and_returns_is_exported(name):
    public = getattr(streams, name)
    missing = {
        f"{name}.{method}: {other}"
        for method, function in functions(public).items()
        # Users do not create the fluent API's classes and errors.
        if not (method == "__init__" and public.__module__ in {"streams.dsl.stream", "streams.errors"})
        if not {name, f"{name}.{method}"} & OF_THE_ENGINE.keys()
        for signature in typing.get_overloads(function) or [function]
        for other in parts(signature.__annotations__)
        if other not in streams.__all__
    }
    assert not missing


@pytest.mark.parametrize("name", streams.__all__)
def test_what_a_public_name_raises_is_exported(name):
    public = getattr(streams, name)
    texts = [public.__doc__, *(function.__doc__ for function in functions(public).values())]
    raised = {word for text in texts if text for word in re.findall(r"``(\w+)``", text)} & ERRORS
    assert raised <= set(streams.__all__)


def test_errors_that_end_a_worker_are_exported():
    assert set(streams.__all__) >= ERRORS - HANDLED


PUBLIC = {
    streams.App: (
        *(
            "broker",
            "dead_letter_topic",
            "global_table",
            "job",
            "job_handle",
            "log",
            "query",
            "query_range",
            "query_windows",
            "resource",
            "run",
            "schedule",
        ),
        *("source", "stream", "table", "topology"),
    ),
    streams.Stream: (
        *(
            "branch",
            "enqueue",
            "filter",
            "flat_map",
            "group_by",
            "group_by_key",
            "join",
            "join_global",
            "key_by",
        ),
        *("left_join", "left_join_global", "map", "map_async", "map_batch", "merge", "outer_join", "peek"),
        *("process", "repartition", "sink", "to", "to_change_topics", "to_table"),
        *("filter_records", "flat_map_records", "map_records", "peek_records"),
    ),
    streams.Table: (
        *(
            "filter",
            "group_by",
            "join",
            "join_foreign_key",
            "left_join",
            "map",
            "outer_join",
            "sink",
            "to",
            "to_stream",
        ),
    ),
    streams.GlobalTable: (),
    streams.Grouped: ("aggregate", "count", "reduce", "window"),
    streams.GroupedTable: ("aggregate", "count", "reduce"),
    streams.WindowedGrouped: ("aggregate", "count", "reduce"),
    streams.WindowedResults: ("final", "late", "updates"),
}


@pytest.mark.parametrize("kind", PUBLIC)
def test_completion_shows_what_users_need(kind: type):
    assert [name for name in dir(kind) if not name.startswith("_")] == sorted(PUBLIC[kind])


def test_completion_of_the_package_shows_the_public_names():
    assert dir(streams) == sorted(streams.__all__)


def test_completion_of_what_an_app_makes_shows_no_state():
    app = streams.App("shown")
    stream = app.stream("in")
    made = (stream, app.table("t"), app.global_table("g"), stream.group_by_key())
    assert not [name for each in made for name in vars(each) if not name.startswith("_")]
    assert {name for name in vars(app) if not name.startswith("_")} == {"name", "settings", "metrics"}
