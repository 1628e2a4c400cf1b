"""Values as rows of Parquet files, with a schema that is the same in all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.connectors.files.sink_folder import FolderWriter, check_folder
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    import os

    from streams.connectors.files.parquet_encoder import ParquetEncoder
    from streams.connectors.sink import SinkContext


@dataclass(frozen=True, slots=True)
class ParquetSink:
    """A folder of Parquet files, each with the rows of one partition and transaction, exactly once.

    ``schema`` is a ``pyarrow.Schema``, or a class with annotated fields. It chooses the fields of the values
    (mappings, structs, dataclasses, named tuples, or changes of these) that are written; one that a
    value lacks is null. Deletions are refused. Needs the extra ``parquet``.
    """

    folder: str | os.PathLike[str]
    schema: Any = field(kw_only=True)
    compression: str = field(default="zstd", kw_only=True)
    max_rows: int = field(default=100_000, kw_only=True)

    def __post_init__(self) -> None:
        self._encoder()

    @property
    def kind(self) -> str:
        """The system."""
        return "parquet"

    @property
    def target(self) -> str:
        """What it writes to."""
        return Path(self.folder).name

    def check(self, context: SinkContext) -> None:
        """Create the folder, and check that it is this sink's."""
        check_folder(Path(self.folder), context, self._encoder().suffix)

    def open(self, context: SinkContext) -> FolderWriter:  # noqa: ARG002 - the protocol's
        """Open the folder."""
        return FolderWriter(Path(self.folder), self._encoder())

    def _encoder(self) -> ParquetEncoder:
        try:
            from streams.connectors.files.parquet_encoder import ParquetEncoder  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigurationError(
                f"ParquetSink needs pyarrow: {error}", hint="pip install 'streams[parquet]'"
            ) from error
        return ParquetEncoder.of(self.schema, self.compression)
