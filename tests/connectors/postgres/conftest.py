from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from tests.support.postgres_target import PostgresTarget

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def target(module_database: str) -> Iterator[PostgresTarget]:
    with PostgresTarget(module_database, f"s{uuid.uuid4().hex[:8]}").closing() as target:
        yield target
