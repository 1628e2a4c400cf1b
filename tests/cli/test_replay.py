"""The options of ``streams replay reset``: what is refused before a cluster is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from streams.cli.main import cli
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no position to reset to"),
        (["--to", "earliest", "--to-latest"], "--to and --to-latest contradict each other"),
        (["--to", "earliest", "--shift-by", "-5"], "--to and --shift-by contradict each other"),
        (
            ["--to-earliest", "--to-latest", "--to-offset", "3"],
            "--to-earliest and --to-latest and --to-offset",
        ),
        (["--to", "yesterday"], "'yesterday' is not a position in a topic"),
        (["--to", "2026-13-01"], "'2026-13-01' is not a position in a topic"),
        (["--to-datetime", "earliest"], "'earliest' is not a position in a topic"),
        (["--by-duration", "2"], "'2' is not a duration"),
        (["--from-file", "missing.json"], "offsets cannot be read from missing.json"),
        (["--to", "missing.csv"], "offsets cannot be read from missing.csv"),
        (["--to", "latest"], "module 'no_such_module' was not found"),
    ],
)
def test_what_is_not_one_position_is_refused(arguments, message):
    result = CliRunner().invoke(cli, ["replay", "reset", "no_such_module:app", *arguments])
    assert isinstance(result.exception, ConfigurationError)
    assert result.exception.exit_code == 2
    assert message in str(result.exception)


@pytest.mark.parametrize("arguments", [["--to-offset", "-1"], ["--rate", "0"], ["--wait", "-1"]])
def test_numbers_out_of_range_are_refused(arguments):
    result = CliRunner().invoke(cli, ["replay", "reset", "no_such_module:app", *arguments])
    assert result.exit_code == 2


def test_switch_of_an_app_without_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alone_app.py").write_text(
        'from streams import App\n\napp = App("alone")\napp.stream("in").to("out")\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("STREAMS_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    result = CliRunner().invoke(cli, ["replay", "switch", "alone_app:app"])
    assert isinstance(result.exception, ConfigurationError)
    assert "app 'alone' belongs to no blue/green pair" in str(result.exception)
