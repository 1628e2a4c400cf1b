"""The local Postgres: its whole life, and that it ends with the process that started it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from streams.devstack.postgres import LocalPostgres
from streams.errors import LocalPostgresError
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def server():
    with LocalPostgres.create(settings={"max_connections": 17}) as server:
        yield server


def count(server: LocalPostgres) -> int:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("select count(*) from kept").fetchone()
        assert row is not None
        return int(row[0])


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_committed_rows_survive_every_way_to_end(server):
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("create table kept (id int)")
        connection.execute("insert into kept values (1)")
    server.restart()
    assert count(server) == 1
    server.restart("immediate")
    assert count(server) == 1
    with psycopg.connect(server.dsn()) as open_connection:
        open_connection.execute("insert into kept values (2)")
        server.kill()
        assert server.pid is None
        server.start()
        assert count(server) == 1
        with pytest.raises(psycopg.OperationalError):
            open_connection.execute("select 1")


def test_settings_and_logical_replication(server):
    with psycopg.connect(server.dsn()) as connection:
        names = ("wal_level", "listen_addresses", "fsync", "max_connections")
        found = {name: connection.execute(f"show {name}").fetchone() for name in names}
    assert found == {
        "wal_level": ("logical",),
        "listen_addresses": ("127.0.0.1",),
        "fsync": ("off",),
        "max_connections": ("17",),
    }


def test_a_paused_server_accepts_no_connection_until_it_is_resumed(server):
    server.pause()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn(), connect_timeout=2)
    server.resume()
    psycopg.connect(server.dsn()).close()


def test_a_folder_keeps_the_data_for_a_later_server():
    # The server's account, if it is another one, cannot enter the folders that pytest makes.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with LocalPostgres.create(folder) as first, psycopg.connect(first.dsn()) as connection:
            connection.execute("create table kept (id int)")
        with LocalPostgres.create(folder, port=first.port) as second:
            assert count(second) == 0
            with pytest.raises(LocalPostgresError, match=f"(?s)port {second.port} .*in use.*hint: end that"):
                LocalPostgres.create(port=second.port)


def test_it_ends_with_the_process_that_started_it():
    program = (
        "from streams.devstack.postgres import LocalPostgres; import time\n"
        "server = LocalPostgres.create(); print(server.pid, server.folder, flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pid, folder = child.stdout.readline().split()
    assert is_running(int(pid))
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    wait_until(lambda: not is_running(int(pid)), 20, what="the end of the server")
    subprocess.run(["rm", "-r", folder], check=True)
