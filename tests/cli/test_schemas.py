"""``streams schemas`` on a real schema registry, and on a schema folder."""

from __future__ import annotations

import json
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from streams.cli.main import cli
from streams.schema_registry import ConfluentRegistry
from tests.support.avro_schemas import NOTE, NUMBER, write_schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APP = """
from streams import App, Avro
app = App("shop")
schema = {schema!r}
app.stream({name!r}, value=Avro(schema)).to({copies!r}, value=Avro(schema))
"""


class Program:
    """A user's program in the current folder, under a module name of its own."""

    def __init__(self, folder: Path) -> None:
        self.topic = f"shop_{uuid.uuid4().hex[:8]}"
        self.subject = f"{self.topic}-copies-value"
        self.folder = folder
        schema = write_schema(folder, "shop.Order.avsc", [NUMBER, NOTE])
        text = APP.format(schema=str(schema), name=self.topic, copies=f"{self.topic}-copies")
        (folder / f"{self.topic}.py").write_text(text)

    def run(self, command: str, *arguments: str) -> Any:
        result = CliRunner().invoke(cli, ["schemas", command, f"{self.topic}:app", *arguments])
        sys.modules.pop(self.topic, None)
        return result


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("URL", "S"):
        monkeypatch.delenv(f"STREAMS_SCHEMA_REGISTRY_{name}", raising=False)
    return Program(tmp_path)


@pytest.fixture
def at_registry(program, registry, monkeypatch) -> Iterator[ConfluentRegistry]:
    monkeypatch.setenv("STREAMS_SCHEMA_REGISTRY_URL", registry.url)
    monkeypatch.setenv("STREAMS_REGISTER_SCHEMAS", "false")
    client = ConfluentRegistry(registry.url)
    yield client
    client.close()


def test_schemas_of_output_topics_are_registered_once(program, at_registry):
    first, again = program.run("register"), program.run("register")
    assert first.exit_code == again.exit_code == 0
    assert first.output == again.output
    assert program.subject in first.output
    assert at_registry.versions(program.subject) == [1]
    assert program.run("check").exit_code == 0


def test_a_check_names_the_field_and_registers_nothing(program, at_registry):
    source = {"type": "record", "name": "shop.Order", "fields": [{"name": "number", "type": "string"}]}
    at_registry.register(program.subject, source)
    result = program.run("check", "--json")
    assert result.exception.exit_code == 14
    reads, writes = (json.loads(line) for line in result.output.splitlines())
    assert (reads["schema"], reads["differences"]) == (f"{program.topic}-value", [])
    assert "field 'number': was string, is long" in writes["differences"][0]
    assert at_registry.versions(program.subject) == [1]


def test_a_diff_shows_both_directions(program, at_registry):
    fields = [NUMBER, {"name": "place", "type": "string"}]
    at_registry.register(program.subject, {"type": "record", "name": "shop.Order", "fields": fields})
    result = program.run("diff", "--json")
    assert result.exit_code == 0
    writes = json.loads(result.output.splitlines()[1])
    (difference,) = writes["differences"]
    assert difference == (
        "reading new records with the old schema: field 'place': is new and has no default (version 1)"
    )


def test_without_a_registry_the_folders_versions_are_checked(program):
    assert program.run("check").exit_code == 0
    write_schema(program.folder, "shop.Order.1.avsc", [{"name": "note", "type": ["null", "string"]}])
    result = program.run("check", "--json")
    assert result.exception.exit_code == 14
    found = json.loads(result.output.splitlines()[0])
    assert found["schema"] == "shop.Order.avsc"
    assert "field 'number': is new and has no default (shop.Order.1.avsc)" in found["differences"][0]


def test_without_a_registry_nothing_is_registered(program):
    result = program.run("register")
    assert "has no schema registry" in str(result.exception)
