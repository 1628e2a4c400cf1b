"""Where the programs of RabbitMQ and Erlang are on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from streams.errors import LocalRabbitMQError


class Programs(NamedTuple):
    """The programs of the system's packages."""

    scripts: Path
    """The folder of the server's own scripts, which run for every user."""
    erlang: Path
    """The folder of Erlang's programs."""
    epmd: Path


def find_programs() -> Programs:
    """The programs of the system's packages. Raises ``LocalRabbitMQError``."""
    hint = "install it, e.g. apt-get install rabbitmq-server; its own service need not run"
    # The one on the path is Debian's wrapper, which only runs for its own user.
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    on_path = shutil.which("rabbitmq-server")
    if not found and on_path is not None:
        found = [path for path in [Path(on_path).resolve()] if (path.parent / "rabbitmq-env").exists()]
    if not found:
        raise LocalRabbitMQError(
            "a local RabbitMQ needs the package rabbitmq-server, which is not installed", hint=hint
        )
    erlang = shutil.which("erl", path="/usr/lib/erlang/bin") or shutil.which("erl")
    if erlang is None:
        raise LocalRabbitMQError("a local RabbitMQ needs Erlang, which is not installed", hint=hint)
    names = sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))
    epmd = names[-1] if names else shutil.which("epmd")
    if epmd is None:
        raise LocalRabbitMQError("a local RabbitMQ needs Erlang's epmd, which is not installed", hint=hint)
    return Programs(found[-1].parent, Path(erlang).parent, Path(epmd))
