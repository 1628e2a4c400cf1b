"""Files as sinks: one complete file for each transaction and partition, with its offsets in the name."""

from streams.connectors.files.json_lines_sink import JsonLinesSink
from streams.connectors.files.parquet_sink import ParquetSink

__all__ = ["JsonLinesSink", "ParquetSink"]
