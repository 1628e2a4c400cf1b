"""The local schema registry of tests."""

from __future__ import annotations

from contextlib import closing

import psutil

from streams.schema_registry import ConfluentRegistry


def test_it_listens_on_this_machine_only_in_bounded_memory(registry):
    process = psutil.Process(registry.pid)
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert process.memory_info().rss < 600 * 1024**2


def test_new_schemas_must_be_backward_compatible(registry):
    with closing(ConfluentRegistry(registry.url)) as client:
        assert client.level("any-value") == "BACKWARD"
