"""Files as sinks (one complete file for each transaction and partition) and as sources (followed lines)."""

from streams.connectors.files.csv_serde import Csv
from streams.connectors.files.file_source import CsvSource, JsonLinesSource
from streams.connectors.files.json_lines_sink import JsonLinesSink
from streams.connectors.files.parquet_sink import ParquetSink

__all__ = ["Csv", "CsvSource", "JsonLinesSink", "JsonLinesSource", "ParquetSink"]
