"""A real PgBouncer in transaction mode, which may give each transaction another session of the server."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from streams.devstack.kafka.ports import free_ports
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.devstack.postgres import LocalPostgres

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@contextlib.contextmanager
def pgbouncer(server: LocalPostgres, *, mode: str = "transaction", **settings: str) -> Iterator[int]:
    """Its port. Sessions are used in turns, so that two transactions rarely have the same one."""
    if PROGRAM is None:
        pytest.skip("PgBouncer is not installed (on Debian: apt-get install pgbouncer)")
    folder = Path(tempfile.mkdtemp(prefix="streams-pgbouncer-"))
    (port,) = free_ports(1)
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    options = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": mode,
        "default_pool_size": "3",
        "min_pool_size": "3",
        "server_round_robin": "1",
        **settings,
    }
    lines = [f"{name} = {value}" for name, value in options.items()]
    databases = f"[databases]\n* = host=127.0.0.1 port={server.port} user={server.user}\n"
    (folder / "pgbouncer.ini").write_text(f"{databases}[pgbouncer]\n" + "\n".join(lines) + "\n")
    folder.chmod(0o755)
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [PROGRAM, str(folder / "pgbouncer.ini")],
        user=account and account.pw_uid,
        group=account and account.pw_gid,
        stdout=log,
        stderr=log,
    )

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user={server.user} dbname=postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        wait_until(ready, what="PgBouncer")
        yield port
    finally:
        process.terminate()
        process.wait(10)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)
