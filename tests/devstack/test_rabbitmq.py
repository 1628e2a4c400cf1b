"""The local RabbitMQ: its whole life, and that it ends with the process that started it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from streams.devstack.rabbitmq import LocalRabbitMQ
from streams.errors import LocalRabbitMQError
from tests.support.rabbitmq import Program
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(bool(LocalRabbitMQ.missing()), reason=LocalRabbitMQ.missing())


def processes_of(folder: str) -> list[int]:
    """The processes of a server, by its folder in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"HOME={folder}/home".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_it_ends_with_the_process_that_started_it_and_another_one_continues_with_its_folder(tmp_path):
    folder = tmp_path / "data"
    program = (
        "import sys, time; from streams.devstack.rabbitmq import LocalRabbitMQ\n"
        "from tests.support.rabbitmq import Program\n"
        "server = LocalRabbitMQ.create(sys.argv[1])\n"
        "with Program(server) as program:\n"
        "    program.channel.queue_declare('kept', durable=True, auto_delete=False)\n"
        "    program.put('kept', [b'1'])\n"
        # That a queue was declared is confirmed before the log of it is written.
        "server.control('eval', 'mnesia:sync_log().')\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    assert len(processes_of(str(folder))) > 1
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    wait_until(lambda: not processes_of(str(folder)), 20, what="the end of the server")
    with LocalRabbitMQ.create(folder) as server:
        with pytest.raises(LocalRabbitMQError, match=f"(?s)port {server.port} .*in use.*hint: end that"):
            LocalRabbitMQ.create(port=server.port)
        server.pause()
        with socket.create_connection(("127.0.0.1", server.port), 5) as probe:
            probe.settimeout(0.3)
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            with pytest.raises(TimeoutError):
                probe.recv(1)
        server.resume()
        with Program(server) as other:
            assert other.count("kept") == 1
        assert server.control("list_queues", "name", "messages").split() == ["name", "messages", "kept", "1"]
    wait_until(lambda: not processes_of(str(folder)), 20, what="the end of the server")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "package rabbitmq-server" in LocalRabbitMQ.missing()
    with pytest.raises(LocalRabbitMQError, match="hint: install it"):
        LocalRabbitMQ.create()
