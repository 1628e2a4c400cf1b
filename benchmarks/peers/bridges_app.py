"""One bridge as an app: ``streams run benchmarks.peers.bridges_app:app``, of the environment variables."""

from __future__ import annotations

import os
from typing import Any

from streams import App, Bytes

work, address, topic = (os.environ[f"BENCH_{name}"] for name in ("WORK", "ADDRESS", "TOPIC"))
app = App(topic)


def source() -> Any:
    if work.startswith("zeromq"):
        from streams.connectors.zeromq import PullSource  # noqa: PLC0415 - only what is measured

        return PullSource(connect=address, value=Bytes())
    if work.startswith("rabbitmq"):
        from streams.connectors.rabbitmq import RabbitMQQueue  # noqa: PLC0415 - as above

        return RabbitMQQueue(address, topic, value=Bytes())
    from streams.connectors.redis import RedisList, RedisStream  # noqa: PLC0415 - as above

    if work.startswith("redis list"):
        return RedisList(address, topic, value=Bytes())
    return RedisStream(address, topic, field="value", value=Bytes())


def sink() -> Any:
    if work.endswith("zeromq"):
        from streams.connectors.zeromq import PushSink  # noqa: PLC0415 - as above

        return PushSink(connect=address, value=Bytes(), frames=["value"])
    name = f"{topic}-out"
    if work.endswith("rabbitmq"):
        from streams.connectors.rabbitmq import RabbitMQSink  # noqa: PLC0415 - as above

        return RabbitMQSink(address, exchange="", routing_key=name, value=Bytes())
    from streams.connectors.redis import RedisSink  # noqa: PLC0415 - as above

    return RedisSink(address, list=name) if work.endswith("redis list") else RedisSink(address, stream=name)


if work.endswith("→ Kafka"):
    app.source(source()).to(topic)
else:
    app.stream(topic, value=Bytes()).sink(sink())
