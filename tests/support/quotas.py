"""Quotas of a real broker, set with Kafka's own tool: the client library cannot."""

from __future__ import annotations

import os
import subprocess

from streams.devstack.kafka.download import intact_jars
from streams.devstack.kafka.folders import cache_folder
from streams.devstack.kafka.java import find_java, java_command, java_environment


def set_quota(servers: str, client_id: str, quota: str, value: int) -> None:
    """Limit all clients with an id: bytes a second, or a percentage of one of the broker's threads."""
    _alter(servers, client_id, "--add-config", f"{quota}={value}")


def remove_quota(servers: str, client_id: str, quota: str) -> None:
    """Remove such a limit."""
    _alter(servers, client_id, "--delete-config", quota)


def _alter(servers: str, client_id: str, *change: str) -> None:
    java, _ = find_java()
    jars = intact_jars(cache_folder())
    assert jars is not None, "a local Kafka was started before, with these jars"
    command = java_command(
        java,
        os.pathsep.join(map(str, jars)),
        128,
        "-XX:TieredStopAtLevel=1",
        "kafka.admin.ConfigCommand",
        *("--bootstrap-server", servers, "--alter"),
        *("--entity-type", "clients", "--entity-name", client_id),
        *change,
    )
    done = subprocess.run(command, env=java_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
