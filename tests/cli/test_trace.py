"""``streams trace``: what is refused before a cluster is needed."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from streams.cli.main import cli
from streams.errors import ConfigurationError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of TOPIC:PARTITION:OFFSET, --dead-letter and --store"),
        (["out:0:1", "--dead-letter", "0:1"], "give one of"),
        (["--dead-letter", "0:1", "--store", "s", "--key", "k"], "give one of"),
        (["out"], "'out' is not a record's place"),
        (["out:0"], "'out:0' is not a record's place"),
        (["out:0:-1"], "'out:0:-1' is not a record's place"),
        (["out:0:latest"], "'out:0:latest' is not a record's place"),
        ([":0:1"], "':0:1' is not a record's place"),
        (["out:²:1"], "'out:²:1' is not a record's place"),
        ([f"out:0:{1 << 63}"], "a number that no partition or offset can have"),
        (["--dead-letter", "1"], "'1' is not a record's place"),
        (["--dead-letter", "letters:0:1"], "'letters:0:1' is not a record's place"),
        (["--store", "counts"], "--store and --key belong together"),
        (["out:0:1", "--key", "a"], "--store and --key belong together"),
        (["out:0:1", "--window", "0"], "--window and --base64 are for an entry of a --store"),
        (["--dead-letter", "0:1", "--search", "5"], "--search is for a record of an output topic"),
        (["out:0:1"], "module 'no_such_module' was not found"),
    ],
)
def test_what_names_no_result_is_refused(arguments, message):
    result = CliRunner().invoke(cli, ["trace", "no_such_module:app", *arguments])
    assert isinstance(result.exception, ConfigurationError), result.output
    assert result.exception.exit_code == 2
    assert message in str(result.exception)


@pytest.mark.parametrize("arguments", [["out:0:1", "--search", "-1"], ["--store", "s", "--window", "x"]])
def test_numbers_out_of_range_are_refused(arguments):
    assert CliRunner().invoke(cli, ["trace", "no_such_module:app", *arguments]).exit_code == 2
