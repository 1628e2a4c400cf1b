"""The app: ``streams run apps.bridges.app:app`` moves messages from other systems into topics, and back.

What it connects to are environment variables: ``RABBITMQ_URL`` (if there is one), ``REDIS_URL``,
``ZEROMQ_<NAME>`` for each socket of the other programs, and ``BRIDGES_PREFIX``, which precedes the names of
the app and of its topics.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from streams import App, Bytes, Json
from streams.connectors.rabbitmq import Queue, RabbitMQQueue, RabbitMQSink
from streams.connectors.redis import RedisChannel, RedisList, RedisSink, RedisStream
from streams.connectors.zeromq import PubSink, PullSource, PushSink, SubSource

if TYPE_CHECKING:
    from streams.connectors.sink import SinkConnector
    from streams.connectors.source import SourceConnector

PREFIX = os.environ.get("BRIDGES_PREFIX", "")
RABBITMQ = os.environ.get("RABBITMQ_URL", "")
REDIS = os.environ["REDIS_URL"]
PUSH, PUB, PULL, SUB = (os.environ[f"ZEROMQ_{name}"] for name in ("PUSH", "PUB", "PULL", "SUB"))

app = App(f"{PREFIX}bridges", create_topics=True)

sources: dict[str, SourceConnector[Any, bytes]] = {
    "from-redis-stream": RedisStream(REDIS, "stream-in", field="n", value=Bytes()),
    "from-redis-group": RedisStream(REDIS, "group-in", field="n", value=Bytes(), group="bridge"),
    "from-redis-list": RedisList(REDIS, "list-in", value=Bytes()),
    "from-redis-channel": RedisChannel(REDIS, "channel-in", value=Bytes()),
    "from-zeromq-push": PullSource(connect=PUSH, value=Bytes()),
    "from-zeromq-pub": SubSource(connect=PUB, value=Bytes()),
}
if RABBITMQ:
    sources["from-rabbitmq"] = RabbitMQQueue(RABBITMQ, "queue-in", value=Bytes(), declare=Queue())
for name, source in sources.items():
    app.source(source, store=name).to(f"{PREFIX}{name}", value=Bytes())

sinks: dict[str, SinkConnector] = {
    "to-redis-stream": RedisSink(REDIS, stream="stream-out", field="n"),
    "to-redis-list": RedisSink(REDIS, list="list-out"),
    "to-redis-strings": RedisSink(REDIS, strings="string-out:"),
    "to-zeromq-pull": PushSink(connect=PULL, value=Bytes(), frames=["value", "origin"]),
    "to-zeromq-sub": PubSink(connect=SUB, value=Bytes(), frames=["value", "origin"], subscribers=1),
}
if RABBITMQ:
    sinks["to-rabbitmq"] = RabbitMQSink(RABBITMQ, exchange="", routing_key="queue-out", value=Bytes())
for name, sink in sinks.items():
    app.stream(f"{PREFIX}{name}", value=Bytes()).sink(sink, store=name)

# A hash for each key, whose fields are those of the value.
counts = app.stream(f"{PREFIX}to-redis-hashes", value=Json(dict[str, int]))
counts.sink(RedisSink(REDIS, hashes="hash-out:"), store="to-redis-hashes")
