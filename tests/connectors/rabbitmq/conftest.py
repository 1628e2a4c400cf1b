from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streams.devstack.rabbitmq import LocalRabbitMQ
from tests.support.rabbitmq import Program

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server() -> Iterator[LocalRabbitMQ]:
    """A server for all tests of this process that do it no harm."""
    if missing := LocalRabbitMQ.missing():
        pytest.skip(missing)
    with LocalRabbitMQ.create() as server:
        yield server


@pytest.fixture
def program(server: LocalRabbitMQ) -> Iterator[Program]:
    with Program(server) as program:
        yield program
