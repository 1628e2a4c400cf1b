"""A real Valkey server with a client, which tests kill and start again."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from streams.devstack.redis import LocalRedis


class RedisServer(LocalRedis):
    """Each acknowledged write survives ``kill``."""

    def client(self, **options: Any) -> redis.Redis:
        """A client of its own, which never repeats a command."""
        return redis.Redis(
            port=self.port, decode_responses=True, retry=Retry(NoBackoff(), 0), protocol=2, **options
        )
