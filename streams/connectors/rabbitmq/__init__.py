"""RabbitMQ as a source and a target of records: queues, and exchanges.

Needs the extra ``rabbitmq``.
"""

from streams.errors import ConfigurationError

try:
    import amqp  # noqa: F401 - a missing extra is reported here, by its name
except ImportError as error:
    raise ConfigurationError(
        f"the RabbitMQ connector needs the package amqp: {error}", hint="pip install 'streams[rabbitmq]'"
    ) from error

from streams.connectors.rabbitmq.declarations import Binding, Header, Key, Queue
from streams.connectors.rabbitmq.queue_source import RabbitMQQueue
from streams.connectors.rabbitmq.sink import RabbitMQSink

__all__ = ["Binding", "Header", "Key", "Queue", "RabbitMQQueue", "RabbitMQSink"]
