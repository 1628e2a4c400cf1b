"""The command line: its output, errors and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

import streams as package
from streams.cli.main import cli
from tests.support.commands import Done, run_streams

MAIN_FILE = str(Path(package.__file__).with_name("__main__.py"))

APP = """
from streams import App, Text
app = App("shop")
app.stream("orders", value=Text()).filter(bool, name="paid").to("paid-orders")
nothing = 7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "broken.py").write_text("from streams import App\napp = App('x', comit_interval=1.0)\n")
    (tmp_path / "deadend.py").write_text("from streams import App\napp = App('x')\napp.stream('in')\n")
    return tmp_path


def streams(
    folder: Path, *arguments: str, timeout: float = 60.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return run([sys.executable, "-m", "streams", *arguments], folder, timeout=timeout, **environment)


def run(
    command: list[str], folder: Path, timeout: float = 60.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=variables(folder, environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def here(folder: Path, *arguments: str, **environment: str) -> Done:
    """Run the command in this process."""
    return run_streams(*arguments, folder=folder, environment=variables(folder, environment))


def variables(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMS_", "KAFKA_"))}
    return {
        **kept,
        "STREAMS_STATE_DIR": str(folder),
        "STREAMS_LOCAL_KAFKA_DIR": str(folder),
        "STREAMS_LOG_FORMAT": "json",
        **environment,
    }


def test_describe_shows_the_topology_in_three_forms(folder):
    text = streams(folder, "describe", "shop:app")
    assert text.returncode == 0
    assert "step   paid: filter bool" in text.stdout
    assert streams(folder, "describe", "shop:app", "--format", "mermaid").stdout.startswith("flowchart TD")
    described = json.loads(streams(folder, "describe", "shop:app", "--format", "json").stdout)
    assert [node["name"] for node in described["subtopologies"][0]["nodes"]] == [
        "orders",
        "paid",
        "to-paid-orders",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["describe", "shop"], "'shop' does not name an app"),
        (["describe", "nowhere:app"], "module 'nowhere' was not found"),
        (["describe", "shop:nothing"], "'shop:nothing' is not an App but int\n  hint: apps in shop: app"),
        (["describe", "shop:app", "--format", "png"], "unknown format 'png': text, mermaid, json"),
        (["run", "broken:app"], "unknown setting 'comit_interval'\n  hint: did you mean commit_interval?"),
        (["run", "deadend:app"], "'in' is a dead end"),
        (["run", "shop:app", "--set", "http_port=many"], "--set http_port='many'"),
        (["run", "shop:app", "--set", "foo=1"], "--set foo: unknown setting 'foo'"),
        (["run", "shop:app", "--set", "comit_interval=1"], "hint: did you mean commit_interval?"),
        (["run", "shop:app", "--set", "log_level=loud"], "hint: one of: debug, info, warning, error"),
        (["run", "shop:app", "--set", "http_token=short"], "--set http_token=***"),
        (["run", "shop:app", "--set", "client={"], "--set client is not JSON"),
        (["describe", "token:app"], "'token:app' names a module of Python's standard library"),
        (
            ["run", "shop:app", "--set", "state_dir=/dev/null/x", "--bootstrap-servers", "127.0.0.1:1"],
            "hint: set state_dir (or STREAMS_STATE_DIR) to a writable folder",
        ),
        (
            *(["run", "shop:app", "--workers", "2", "--set", "state_dir=/dev/null/x"],),
            "hint: set state_dir (or STREAMS_STATE_DIR) to a writable folder",
        ),
        (["run", "shop:app", "--set", "nonsense"], "'nonsense' is not a setting"),
        (["run", "shop:app"], "no broker is configured and no local Kafka is running"),
        (
            ["ingest", "missing.log", "--topic", "t", "--bootstrap-servers", "127.0.0.1:1"],
            "file 'missing.log' does not exist",
        ),
    ],
)
def test_what_cannot_start_is_refused_with_advice_and_code_2(folder, arguments, says):
    done = here(folder, *arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_an_apps_own_import_error_is_shown_as_it_is(folder):
    (folder / "needy.py").write_text("import not_installed_anywhere\n")
    done = streams(folder, "describe", "needy:app")
    assert done.returncode == 1
    assert "No module named 'not_installed_anywhere'" in done.stderr


def test_broker_status_reports_that_none_is_running(folder):
    done = here(folder, "broker", "status")
    assert done.returncode == 1
    assert "no local Kafka is running" in done.stderr


@pytest.mark.kafka
def test_topics_ingest_and_lag_work_together(folder, kafka_bootstrap, prefix):
    name = f"{prefix}-lines"
    servers = ("--bootstrap-servers", kafka_bootstrap)
    (folder / "log.txt").write_bytes(b"one\ntwo\r\n\nfour")
    assert "created" in here(folder, "topics", "create", name, "--partitions", "2", *servers).stdout
    assert "exists already" in here(folder, "topics", "create", name, *servers).stdout
    done = here(folder, "ingest", "log.txt", "--topic", name, "--json", *servers)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == 4
    listed = [json.loads(line) for line in here(folder, "topics", "--json", *servers).stdout.splitlines()]
    assert {"topic": name, "partitions": 2, "replication_factor": 1} in listed
    (folder / "lines.py").write_text(
        "from streams import App, Text\n"
        f"app = App('{prefix}-app')\napp.stream('{name}', value=Text()).peek(print)\n"
    )
    done = here(folder, "lag", "lines:app", "--json", *servers)
    assert done.returncode == 0, done.stderr
    lags = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(line["lag"] for line in lags) == 4
    assert {line["committed"] for line in lags} == {None}
    assert "has no committed offsets" in here(folder, "lag", f"{prefix}-nobody", *servers).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["run", "describe", "ingest", "lag", "topics", "broker"]),
        (["run"], ["MODULE:APP", "--workers", "--bootstrap-servers", "--create-topics", "--set", "SIGTERM"]),
        (["describe"], ["MODULE:APP", "--format", "mermaid"]),
        (["ingest"], ["FILE", "--topic", "--partitions"]),
        (["lag"], ["MODULE:APP|GROUP", "--watch", "--json"]),
        (["consume"], ["TOPIC", "--app", "--offset", "--follow", "--where", "--grep", "--limit"]),
        (["topics"], ["create", "delete", "--json"]),
        (["replay"], ["reset"]),
        (["replay", "reset"], ["MODULE:APP", "--to", "--topic", "--dry-run", "--yes", "--wait", "--json"]),
        (["topics", "create"], ["TOPIC", "--partitions", "--replication-factor", "--set"]),
        (["broker"], ["start", "stop", "clean", "status", "logs"]),
    ],
)
def test_help_names_what_there_is(arguments, says):
    done = CliRunner().invoke(cli, [*arguments, "--help"], env={"TERMINAL_WIDTH": "200", "NO_COLOR": "1"})
    assert done.exit_code == 0
    for part in says:
        assert part in done.output
    assert "supervised-by" not in done.output


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "shop:app", "--workers", "0"], ["describe", "shop:app", "--colour"], ["nonsense"]],
)
def test_a_wrong_use_is_code_2(arguments):
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert "Usage:" in done.output


@pytest.mark.parametrize("target", ["", ":", "shop:", ":app", ".shop:app", "..:app"])
def test_a_target_that_names_no_module_and_app_is_refused_with_advice(folder, target):
    done = here(folder, "describe", target)
    assert done.returncode == 2, done.stderr
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


NO_BROKER = ("--bootstrap-servers", "127.0.0.1:1")


def test_a_broker_that_does_not_answer_is_soon_code_3_and_a_few_lines(folder):
    commands = [
        "run shop:app",
        "run shop:app --workers 2",
        "replay reset shop:app --to earliest",
        "ingest shop.py --topic t",
    ]
    # At once, as each waits ten seconds for an answer.
    with ThreadPoolExecutor(len(commands)) as pool:
        outcomes = pool.map(lambda command: without_a_broker(folder, *command.split()), commands)
        wrong = {command: said for command, said in zip(commands, outcomes, strict=True) if said != "code 3"}
    assert wrong == {}


def without_a_broker(folder: Path, *arguments: str) -> str:
    """What is wrong with a command's error, or ``code 3``."""
    try:
        done = streams(folder, *arguments, *NO_BROKER, timeout=45)
    except subprocess.TimeoutExpired:
        return "did not end within 45 s"
    return verdict(done)


def verdict(done: subprocess.CompletedProcess[str] | Done) -> str:
    said = done.stderr
    explained = "no broker answers at 127.0.0.1:1" in said and "streams broker start" in said
    return f"code {done.returncode}" if explained and len(said.splitlines()) < 8 else said


@pytest.mark.parametrize(
    "command",
    [
        "run shop:app --set guarantee=at_least_once",
        "lag shop:app",
        "lag some-group",
        "topics",
        "topics create t",
        "topics delete t",
    ],
)
def test_every_command_fails_if_no_broker_answers(folder, monkeypatch, command):
    monkeypatch.setattr("streams.broker.kafka.admin.REQUEST_SECONDS", 1.0)
    assert verdict(here(folder, *command.split(), *NO_BROKER)) == "code 3"


def test_options_win_over_the_environment_and_the_environment_over_the_program(folder):
    (folder / "shown.py").write_text(
        "from streams import App\n"
        "app = App('shown', commit_interval=1.0, max_poll_records=1, session_timeout=1.0)\n"
        "print(app.settings.commit_interval, app.settings.max_poll_records, app.settings.session_timeout)\n"
    )
    done = here(
        folder,
        *("run", "shown:app", "--set", "commit_interval=3.0"),
        STREAMS_COMMIT_INTERVAL="2.0",
        STREAMS_MAX_POLL_RECORDS="2",
    )
    assert done.stdout.split() == ["3.0", "2", "1.0"]


def test_a_state_folder_given_on_the_command_line_is_used(folder):
    (folder / "shown.py").write_text(
        "from streams import App\napp = App('shown', state_dir='program')\nprint(app.settings.state_dir)\n"
    )
    assert here(folder, "run", "shown:app", "--set", "state_dir=chosen").stdout.strip() == "chosen"


SHADOWING = [
    "calendar",
    "email",
    "http",
    "json",
    "queue",
    "random",
    "select",
    "streams",
    "token",
    "types",
    "uuid",
]


@pytest.mark.kafka
def test_files_named_like_pythons_own_modules_take_no_place_in_any_process(folder, kafka_bootstrap, prefix):
    for name in SHADOWING:
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    (folder / "lines.py").write_text(
        "from streams import App, Text, fail\n"
        f"app = App('{prefix}-app', on_error=fail)\n"
        f"app.stream('{prefix}-lines', value=Text()).peek(lambda line: app.nothing, name='failing')\n"
    )
    (folder / "log.txt").write_text("one line\n")
    command = [sys.executable, "-P", MAIN_FILE]
    servers = ["--bootstrap-servers", kafka_bootstrap]
    ingested = run([*command, "ingest", "log.txt", "--topic", f"{prefix}-lines", *servers], folder)
    assert ingested.returncode == 0, ingested.stderr
    # The line reaches the program in a worker process, whose failure ends all of them.
    done = run([*command, "run", "lines:app", "--workers", "2", *servers], folder)
    assert done.returncode == 4, done.stderr
    assert "AttributeError" in done.stderr


def test_simulations_run_beside_files_named_like_pythons_own_modules(folder):
    for name in SHADOWING:
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    (folder / "orders.txt").write_text("one\ntwo\n")
    command = [sys.executable, "-P", MAIN_FILE, "simulate", "shop:app"]
    done = run([*command, "--input", "orders=orders.txt", "--seeds", "4", "--processes", "2"], folder)
    assert done.returncode == 0, done.stderr
