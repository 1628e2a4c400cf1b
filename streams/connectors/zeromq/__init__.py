"""ZeroMQ as sources (PULL, SUB) and as sinks (PUSH, PUB). Nothing is stored between the two programs."""

from streams.connectors.zeromq.curve import CurveClient, CurveServer
from streams.connectors.zeromq.sink import PubSink, PushSink
from streams.connectors.zeromq.source import PullSource, SubSource

__all__ = ["CurveClient", "CurveServer", "PubSink", "PullSource", "PushSink", "SubSource"]
