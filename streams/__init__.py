"""Stream processing on Kafka in plain Python: exactly once, in batches, as consumer-group replicas.

The names below are the public ones; everything else may change between versions.
"""

from streams.aggregates import (
    Aggregate,
    collect,
    count,
    custom,
    distinct,
    first,
    latest,
    maximum,
    mean,
    minimum,
    most_frequent,
    quantile,
    top,
    total,
    variance,
)
from streams.app import App
from streams.dsl.stores import key_value_store
from streams.dsl.stream import GlobalTable, GroupedTable, Stream, Table
from streams.errors import (
    BrokerError,
    ConfigurationError,
    DeadLetterLimitExceeded,
    ProcessingError,
    StateError,
    StreamsError,
    TopologyError,
)
from streams.eventtime.windows import (
    Hopping,
    JoinWindow,
    Session,
    Sliding,
    Tumbling,
    Windowed,
    days,
    hours,
    milliseconds,
    minutes,
    seconds,
)
from streams.operators.processor import BatchProcessor, Context, KeyValueStore, Processor
from streams.policy import ErrorPolicy, dead_letter, fail, retry, skip
from streams.records import Batch, Record
from streams.serde import Avro, Bytes, Json, Serde, Text
from streams.topology.graph import Topology

__all__ = [
    "Aggregate",
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
    "GlobalTable",
    "GroupedTable",
    "Hopping",
    "JoinWindow",
    "Json",
    "KeyValueStore",
    "ProcessingError",
    "Processor",
    "Record",
    "Serde",
    "Session",
    "Sliding",
    "StateError",
    "Stream",
    "StreamsError",
    "Table",
    "Text",
    "Topology",
    "TopologyError",
    "Tumbling",
    "Windowed",
    "collect",
    "count",
    "custom",
    "days",
    "dead_letter",
    "distinct",
    "fail",
    "first",
    "hours",
    "key_value_store",
    "latest",
    "maximum",
    "mean",
    "milliseconds",
    "minimum",
    "minutes",
    "most_frequent",
    "quantile",
    "retry",
    "seconds",
    "skip",
    "top",
    "total",
    "variance",
]
