from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import msgspec
import pyarrow.parquet as pq
import pytest

from streams.connectors.files import JsonLinesSink, ParquetSink
from streams.errors import ConnectorError, SinkFenced
from streams.testing.sinks import RefusingSinkContract

if TYPE_CHECKING:
    from pathlib import Path


class Row(msgspec.Struct):
    id: int
    text: str


class _FolderContract(RefusingSinkContract):
    """As the contract, but a claim already ends an earlier owner's rights, and a folder has one sink."""

    @pytest.fixture(autouse=True)
    def target(self, tmp_path):
        self.folder = tmp_path / "out"

    def crash(self, writer):
        """Nothing is cleaned up."""

    def files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_file()] if self.folder.exists() else []

    def test_an_owner_is_fenced_where_a_zombie_was_faster(self):
        zombie, owner = self.opened(worker="zombie"), self.opened(worker="owner")
        self.claimed(zombie)
        self.claimed(owner)
        with pytest.raises(SinkFenced):
            self.write(zombie, self.batch([(1, "a")]))
        self.write(owner, self.batch([(1, "a"), (2, "b")]))
        owner.close()
        self.expect((1, "a"), (2, "b"))

    def test_sinks_and_applications_have_their_own_positions(self):
        self.opened().close()
        for who in ({"name": "other sink"}, {"application": "other application"}):
            with pytest.raises(ConnectorError, match="folder of its own"):
                self.opened(**who)


class TestJsonLines(_FolderContract):
    def connector(self):
        return JsonLinesSink(self.folder)

    def rows(self):
        values = [json.loads(line) for path in self.files() for line in path.read_bytes().splitlines()]
        return [(value["id"], value["text"]) for value in values]

    def refused_value(self, number):
        return {"id": number, "text": math.nan}


class TestParquet(_FolderContract):
    def connector(self):
        return ParquetSink(self.folder, schema=Row)

    def rows(self):
        values = [row for path in self.files() for row in pq.read_table(path, partitioning=None).to_pylist()]
        return [(value["id"], value["text"]) for value in values]

    def refused_value(self, number):
        return {"id": number + 0.5, "text": ""}
