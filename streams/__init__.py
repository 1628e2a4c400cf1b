"""Stream processing on Kafka in plain Python: exactly once, in batches, as consumer-group replicas.

The names in ``__all__`` are public; everything else may change between versions. Each is imported when it is
first used: a program loads only the parts that it uses, and the command can handle signals before imports
that take long.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.public import *  # noqa: F403 - the same names, which ``public.__all__`` lists
    from streams.public import __all__ as __all__
else:
    _MODULES = {
        "aggregates": (
            "Aggregate",
            "collect",
            "count",
            "custom",
            "distinct",
            "first",
            "latest",
            "maximum",
            "mean",
            "minimum",
            "most_frequent",
            "quantile",
            "top",
            "total",
            "variance",
        ),
        "alerts.declared": (
            "Alerts",
            "Silence",
        ),
        "alerts.mail": ("Email",),
        "alerts.rules": (
            "AlertName",
            "AlertRule",
        ),
        "alerts.webhook": ("Webhook",),
        "app": ("App",),
        "broker": ("Broker",),
        "config": (
            "Settings",
            "SettingsArguments",
        ),
        "connectors.change": ("Change",),
        "connectors.sink": (
            "RefusedRow",
            "SinkConnector",
            "SinkContext",
            "SinkRows",
            "SinkWriter",
        ),
        "connectors.source": (
            "SourceBatch",
            "SourceConnector",
            "SourceContext",
            "SourceHealth",
            "SourceReader",
        ),
        "dsl.stores": ("key_value_store",),
        "dsl.stream": (
            "Branches",
            "GlobalTable",
            "Grouped",
            "GroupedTable",
            "JoinedStream",
            "Stream",
            "Table",
            "WindowedGrouped",
            "WindowedResults",
        ),
        "durations": (
            "days",
            "hours",
            "milliseconds",
            "minutes",
            "seconds",
        ),
        "errors": (
            "AccessDenied",
            "BrokerError",
            "BrokerUnreachable",
            "ConfigurationError",
            "ConnectorError",
            "ConnectorUnavailable",
            "DeadLetterLimitExceeded",
            "HeldElsewhere",
            "JobFailed",
            "JobPending",
            "JobUnknown",
            "NotAuthenticated",
            "NotAuthorized",
            "NotCommitted",
            "OffsetOutOfRange",
            "ProcessingError",
            "QueryError",
            "RegistryUnavailable",
            "SchemaRefused",
            "SchemaRegistryError",
            "SinkFenced",
            "SinkMismatch",
            "SinkOutcomeUnknown",
            "SinkUnavailable",
            "SourceUnavailable",
            "Stalled",
            "StateError",
            "StateUnavailable",
            "StreamsError",
            "TopicError",
            "TopologyError",
            "UnknownStore",
        ),
        "eventtime.windows": (
            "ClosedWindow",
            "Hopping",
            "JoinWindow",
            "Session",
            "Sliding",
            "Tumbling",
            "Windowed",
        ),
        "jobs.batch_job": (
            "BatchDecorator",
            "BatchJob",
            "BatchOptions",
        ),
        "jobs.current": (
            "CurrentJob",
            "JobCancelled",
            "current_job",
            "current_jobs",
        ),
        "jobs.handle": ("Handle",),
        "jobs.job": (
            "AsyncJob",
            "Call",
            "CallOptions",
            "Job",
            "JobDecorator",
            "JobOptions",
        ),
        "jobs.limits": ("Limit",),
        "jobs.retry": (
            "Retry",
            "RetryLater",
        ),
        "jobs.schedule_rules": (
            "Cron",
            "Every",
        ),
        "monitoring.program_metrics": (
            "Counter",
            "Gauge",
            "Metrics",
        ),
        "operators.processor": (
            "BatchProcessor",
            "Cancel",
            "Context",
            "KeyValueStore",
            "Processor",
        ),
        "policy": (
            "ErrorPolicy",
            "dead_letter",
            "fail",
            "retry",
            "skip",
        ),
        "records": (
            "Batch",
            "Headers",
            "Record",
            "TopicPartition",
        ),
        "replaying": (
            "Replay",
            "current_replay",
        ),
        "runtime.resources": ("Resource",),
        "serde": (
            "Avro",
            "Bytes",
            "Json",
            "Serde",
            "Text",
        ),
        "state.definition": ("StoreDefinition",),
        "topology.graph": ("Topology",),
    }
    _HOMES = {name: module for module, names in _MODULES.items() for name in names}
    __all__ = sorted(_HOMES)  # noqa: PLE0605 - computed

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is not None:
            return getattr(import_module(f"streams.{home}"), name)
        # Tools and the import system look for names such as __path__; these must not trigger an import.
        if not name.startswith("__"):
            import_module("streams.public")
            if name in globals():
                # A submodule, which was imported in the meantime.
                return globals()[name]
        raise AttributeError(f"module 'streams' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return __all__
