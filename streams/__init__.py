"""Stream processing on Kafka in plain Python: exactly once, in batches, as consumer-group replicas.

The names below are the public ones; everything else may change between versions.
"""

from streams.app import App
from streams.errors import (
    BrokerError,
    ConfigurationError,
    DeadLetterLimitExceeded,
    ProcessingError,
    StreamsError,
    TopologyError,
)
from streams.policy import ErrorPolicy, dead_letter, fail, retry, skip
from streams.processor import BatchProcessor, Context, Processor
from streams.records import Batch, Record
from streams.serde import Avro, Bytes, Json, Serde, Text
from streams.stream import Stream
from streams.topology import Topology

__all__ = [
    "App",
    "Avro",
    "Batch",
    "BatchProcessor",
    "BrokerError",
    "Bytes",
    "ConfigurationError",
    "Context",
    "DeadLetterLimitExceeded",
    "ErrorPolicy",
    "Json",
    "ProcessingError",
    "Processor",
    "Record",
    "Serde",
    "Stream",
    "StreamsError",
    "Text",
    "Topology",
    "TopologyError",
    "dead_letter",
    "fail",
    "retry",
    "skip",
]
