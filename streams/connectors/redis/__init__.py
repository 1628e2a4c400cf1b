"""Redis, also Valkey, as a source and a target of records: streams, lists, hashes, and pub/sub.

Needs the extra ``redis``.
"""

from streams.errors import ConfigurationError

try:
    import redis  # noqa: F401 - a missing extra is reported here, by its name
except ImportError as error:
    raise ConfigurationError(
        f"the Redis connector needs the package redis: {error}", hint="pip install 'streams[redis]'"
    ) from error

from streams.connectors.redis.channel_source import RedisChannel
from streams.connectors.redis.list_source import RedisList
from streams.connectors.redis.sink import RedisSink
from streams.connectors.redis.stream_source import RedisStream

__all__ = ["RedisChannel", "RedisList", "RedisSink", "RedisStream"]
