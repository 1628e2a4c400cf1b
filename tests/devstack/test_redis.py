"""The local Redis: what it keeps over a kill, and that it ends with the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from streams.devstack.redis import LocalRedis
from streams.errors import LocalRedisError
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


def test_acknowledged_writes_survive_every_way_to_end(tmp_path):
    with RedisServer.create(folder=tmp_path / "data") as server:
        for number, end in enumerate((server.kill, server.stop)):
            with server.client() as client:
                client.rpush("kept", number)
            end()
            assert server.pid is None
            server.start()
            with server.client() as client:
                assert client.lrange("kept", 0, -1) == [str(each) for each in range(number + 1)]
        server.pause()
        server.resume()
        with server.client() as client:
            assert client.ping()
    with RedisServer.create(folder=tmp_path / "data") as again, again.client() as client:
        assert client.lrange("kept", 0, -1) == ["0", "1"]


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(LocalRedisError, match="ended"):
        LocalRedis.create("--maxmemory-policy", "never")


def test_it_ends_with_a_process_that_is_killed():
    program = (
        "from streams.devstack.redis import LocalRedis\n"
        "server = LocalRedis.create()\nprint(server.pid, flush=True)\ninput()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert psutil.pid_exists(pid)
        os.kill(owner.pid, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(pid), what="the end of the server")
