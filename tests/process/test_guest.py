"""A worker within another program leaves the process unchanged; the command sets up its own process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

import streams as package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PRELUDE = """
import gc, json, logging, os, resource, signal, sys, threading, time, warnings
from streams import App, Text
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.records import Output

broker = MemoryBroker()
broker.admin().create_topics([NewTopic(name=name, partitions=1) for name in ("in", "out")])

def produce(*values):
    producer = broker.producer()
    count = len(values)
    producer.produce(Output("in", [b"k"] * count, [value.encode() for value in values], [1] * count))
    producer.flush(1)
    producer.close()

class Local(App):
    def broker(self):
        return broker

worked = threading.Event()
while_running = []

def work(value):
    worked.set()
    return value

def say(what):
    print(what, flush=True)

app = Local("guest")
stream = app.stream("in", value=Text()).map(work)
stream.to("out")
produce("a")
"""

SNAPSHOT = """
import structlog

def snapshot():
    loggers = {"": logging.getLogger(), **logging.root.manager.loggerDict}
    return {
        "gc": (gc.isenabled(), gc.get_threshold()),
        "structlog": (structlog.is_configured(), {n: str(v) for n, v in structlog.get_config().items()}),
        "context": structlog.contextvars.get_contextvars(),
        "logging": {
            name: (logger.level, logger.propagate, logger.disabled, list(map(str, logger.handlers)))
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger) and (name in ("", "streams") or name.startswith("uvicorn"))
        } | {"disabled": logging.root.manager.disable},
        "limits": [resource.getrlimit(number) for number in range(10)],
        "environment": dict(os.environ),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "warnings": list(warnings.filters),
        "path": list(sys.path),
        "folder": os.getcwd(),
        "interpreter": (sys.getrecursionlimit(), sys.getswitchinterval(), sys.gettrace(), sys.getprofile()),
    }

def signals():
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return {number: signal.getsignal(number) for number in signal.valid_signals()}, wakeup
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMS_", "KAFKA_"))}
    return kept | {
        "STREAMS_STATE_DIR": str(folder / "state"),
        "STREAMS_LOCAL_KAFKA_DIR": str(folder),
        "PYTHONPATH": str(folder),
        **more,
    }


Start: TypeAlias = "Callable[..., subprocess.Popen[str]]"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a program, or the command with it; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(program: str, *arguments: str, **more: str) -> subprocess.Popen[str]:
        file = tmp_path / "program.py"
        file.write_text(PRELUDE + SNAPSHOT + textwrap.dedent(program))
        process = subprocess.Popen(
            [sys.executable, *(arguments or (str(file),))],
            cwd=tmp_path,
            env=environment(tmp_path, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        with process:
            pass


def finish(process: subprocess.Popen[str], timeout: float = 30.0) -> tuple[str, str]:
    """Standard output and standard error of a process that succeeds."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out, err


def read_until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for said in process.stdout:
        if said == f"{line}\n":
            return
    assert process.stderr is not None
    pytest.fail(f"ended without {line!r}: {process.stderr.read()}")


@pytest.mark.parametrize("thread", ["main", "another"])
def test_a_run_leaves_the_process_as_it_is_while_it_runs_and_afterwards(start: Start, thread: str):
    out, err = finish(
        start(
            f"""
            thread = {thread!r}
            app = Local("guest", http_port=0)
            app.stream("in", value=Text()).map(work).group_by_key().count("counts").to("out")
            logging.getLogger("uvicorn.access").addHandler(logging.NullHandler())
            logging.getLogger("uvicorn.error").setLevel(logging.INFO)
            stop = threading.Event()

            def look():
                assert worked.wait(20)
                while_running.append(snapshot())
                stop.set()

            before, handlers = snapshot(), signals()
            if thread == "main":
                threading.Thread(target=look).start()
                app.run(stop=stop)
            else:
                runner = threading.Thread(target=app.run, kwargs=dict(stop=stop))
                runner.start()
                look()
                assert signals() == handlers
                runner.join()
            assert while_running == [before], (before, while_running)
            assert snapshot() == before
            assert signals() == handlers
            say("as it was")
            """,
        )
    )
    assert out == "as it was\n"
    assert not err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_run_in_the_main_thread_and_the_programs_handlers_are_restored(
    start: Start, number: signal.Signals
):
    process = start(
        """
        heard = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: heard.append(number))
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        handlers = signals()
        threading.Thread(target=lambda: worked.wait() and say("works")).start()
        app.run()
        assert signals() == handlers
        assert not heard
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        assert os.read(reader, 10) == bytes([signal.SIGTERM])
        say("continues")
        """,
    )
    read_until(process, "works")
    process.send_signal(number)
    assert finish(process)[0] == "continues\n"


def test_other_signals_reach_the_program_meanwhile(start: Start):
    out, _ = finish(
        start(
            """
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer)
            heard, stop = [], threading.Event()
            signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))

            def send():
                worked.wait()
                os.kill(os.getpid(), signal.SIGUSR1)
                say(os.read(reader, 10) == bytes([signal.SIGUSR1]))
                stop.set()

            threading.Thread(target=send).start()
            app.run(stop=stop)
            say(heard == [signal.SIGUSR1])
            """,
        )
    )
    assert out == "True\nTrue\n"


def test_a_run_in_another_thread_leaves_signals_to_the_program(start: Start):
    process = start(
        """
        heard, stop = threading.Event(), threading.Event()
        signal.signal(signal.SIGTERM, lambda number, frame: heard.set())
        runner = threading.Thread(target=app.run, kwargs=dict(stop=stop))
        runner.start()
        worked.wait()
        say("works")
        heard.wait()
        assert runner.is_alive()
        stop.set()
        runner.join()
        say("ended by the program")
        """,
    )
    read_until(process, "works")
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == "ended by the program\n"


def test_a_programs_stop_event_is_read_and_not_set(start: Start):
    out, _ = finish(
        start(
            """
            stop = threading.Event()

            def fail(value):
                raise ValueError(value)

            app = Local("failing")
            from streams import fail as policy
            app.stream("in", value=Text()).map(fail, on_error=policy).to("out")
            try:
                app.run(stop=stop)
            except Exception as error:
                say(type(error).__name__)
            say(stop.is_set())
            """,
        )
    )
    assert out == "ProcessingError\nFalse\n"


def test_logs_go_where_the_program_sends_them(start: Start):
    out, err = finish(
        start(
            """
            form = "%(name)s|%(levelname)s|%(message)s"
            logging.basicConfig(stream=sys.stdout, level=logging.INFO, format=form)
            stop = threading.Event()
            threading.Thread(target=lambda: worked.wait() and stop.set()).start()
            app.run(stop=stop)
            """,
        )
    )
    assert "streams|INFO|worker started " in out
    assert "application='guest'" in out
    assert not err


def test_a_program_with_structlog_formats_the_lines_with_their_fields(start: Start):
    out, err = finish(
        start(
            """
            handler = logging.StreamHandler(sys.stdout)
            handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ]))
            logging.basicConfig(level=logging.INFO, handlers=[handler])
            structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
            stop = threading.Event()
            threading.Thread(target=lambda: worked.wait() and stop.set()).start()
            app.run(stop=stop)
            """,
        )
    )
    lines = [json.loads(line) for line in out.splitlines()]
    (started,) = [line for line in lines if line["event"] == "worker started"]
    assert started["application"] == "guest"
    assert started["worker"].endswith("-0")
    assert not err


def test_the_command_takes_the_process(start: Start):
    process = start(
        """
        def look():
            worked.wait()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            say(gc.get_threshold()[0])
            say(soft == min(hard, 1_048_576) or hard == resource.RLIM_INFINITY)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=look).start()
        """,
        *("-m", "streams", "run", "program:app"),
        STREAMS_LOG_FORMAT="json",
    )
    out, err = finish(process)
    assert out == "100000\nTrue\n"
    lines = [json.loads(line) for line in err.splitlines()]
    assert {"worker started", "stop requested", "worker stopped"} <= {line["event"] for line in lines}
    assert {"timestamp", "level", "worker"} <= set(lines[-1])


# --- signals from the first line on


def ends_on_sigterm(process: subprocess.Popen[str], ready: Callable[[], bool], code: int = 0) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert time.monotonic() - begun < 5


def slow_module(reached: Path) -> str:
    """A module that takes a minute to import.

    In short sleeps: of a signal that comes right before a sleep, Python only learns at its end.
    """
    return f"import time\nopen({str(reached)!r}, 'w')\nfor _ in range(1200):\n    time.sleep(0.05)\n"


MAIN_FILE = str(Path(package.__file__).with_name("__main__.py"))


@pytest.mark.parametrize("library", ["structlog", "confluent_kafka", "msgspec", "typer"])
@pytest.mark.parametrize("command", [["-m", "streams"], ["-P", MAIN_FILE]], ids=["module", "file"])
def test_a_worker_hears_signals_before_any_library_is_loaded(
    start: Start, tmp_path: Path, library: str, command: list[str]
):
    reached = tmp_path / "reached"
    (tmp_path / f"{library}.py").write_text(slow_module(reached))
    process = start("", *command, "run", "program:app")
    ends_on_sigterm(process, reached.exists)


def test_another_command_that_is_ended_while_it_is_loaded_does_not_claim_success(
    start: Start, tmp_path: Path
):
    reached = tmp_path / "reached"
    (tmp_path / "typer.py").write_text(slow_module(reached))
    process = start("", "-m", "streams", "topics")
    ends_on_sigterm(process, reached.exists, 128 + signal.SIGTERM)


def test_the_package_is_imported_without_any_library(tmp_path: Path):
    program = (
        "import sys, streams; "
        "libraries = {'structlog', 'msgspec', 'confluent_kafka', 'rocksdict', 'typer', 'prometheus_client'}; "
        "assert not libraries & set(sys.modules); "
        "assert 'count' in dir(streams) and streams.App and libraries & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], env=environment(tmp_path), check=True, timeout=60)


CONNECTING = """
app = App("guest", bootstrap_servers=sys.argv[1], state_dir=os.environ["STREAMS_STATE_DIR"])
app.stream("in", value=Text()).map(work).to("out")
handlers = signals()
say("begins")
app.run()
assert signals() == handlers
say("continues")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_no_broker_answers_ends_the_run(start: Start, tmp_path: Path, number: signal.Signals):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        process = start(CONNECTING, str(tmp_path / "program.py"), address)
        read_until(process, "begins")
        connection, _ = server.accept()
        with connection:
            begun = time.monotonic()
            process.send_signal(number)
            assert finish(process)[0] == "continues\n"
            assert time.monotonic() - begun < 5


def test_a_signal_while_stores_are_restored_ends_the_run(start: Start):
    process = start(
        """
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        app = Local("guest", state_store="memory")
        app.stream("in", value=Text()).group_by_key().count("counts").to("out")
        compacted = {"cleanup.policy": "compact"}
        broker.admin().create_topics(
            [NewTopic(name="guest-counts-changelog", partitions=1, settings=compacted)]
        )
        # Until this transaction ends, no restore knows what was committed.
        other = broker.producer(transactional_id="other", transaction_timeout=60.0)
        other.init_transactions(1.0)
        other.begin()
        other.produce(Output("guest-counts-changelog", [b"k"], [b"1"], [1], partition=0))

        class Watch(logging.Handler):
            def emit(self, record):
                if record.msg.get("event") == "restore started":
                    say("restores")

        logging.getLogger("streams").addHandler(Watch())
        handlers = signals()
        app.run()
        assert signals() == handlers
        say("continues")
        """,
    )
    read_until(process, "restores")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == "continues\n"
    assert time.monotonic() - begun < 5
