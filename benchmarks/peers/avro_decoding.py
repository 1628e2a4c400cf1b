"""Decodes Avro records: ``avro_decoding.py streams|fastavro own|earlier RECORDS`` prints its figures."""

from __future__ import annotations

import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastavro
import msgspec

from streams.serde import Avro

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 10_000

FIELDS: list[dict[str, Any]] = [
    {"name": "id", "type": "long"},
    {"name": "customer", "type": "string"},
    {"name": "amount", "type": "double"},
    {"name": "currency", "type": "string"},
    {"name": "quantity", "type": "int"},
    {"name": "paid", "type": "boolean"},
    {"name": "placed", "type": "long"},
    {"name": "city", "type": ["null", "string"], "default": None},
    {"name": "discount", "type": ["null", "double"], "default": None},
    {"name": "note", "type": "string", "default": "none"},
]


class Sale(msgspec.Struct):
    id: int
    customer: str
    amount: float
    currency: str
    quantity: int
    paid: bool
    placed: int
    city: str | None = None
    discount: float | None = None
    note: str = "none"


def make_sales() -> list[dict[str, Any]]:
    return [
        {
            "id": 1000 * number,
            "customer": f"customer-{number}",
            "amount": 1.5 * number,
            "currency": "EUR",
            "quantity": number % 7,
            "paid": number % 2 == 0,
            "placed": 1_700_000_000_000 + number,
            "city": "Berlin" if number % 3 else None,
            "discount": None if number % 5 else 0.1,
            "note": "some words of text",
        }
        for number in range(BATCH)
    ]


def write_schema(folder: Path, name: str, fields: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text(json.dumps({"type": "record", "name": "shop.Sale", "fields": fields}))
    return path


def by_hand(own: Path, earlier: Path, schema: str) -> Callable[[list[bytes]], list[Sale]]:
    wanted, before = (fastavro.parse_schema(json.loads(path.read_text())) for path in (own, earlier))
    written, resolved = (wanted, None) if schema == "own" else (before, wanted)
    read, convert = fastavro.schemaless_reader, msgspec.convert

    def decode(payloads: list[bytes]) -> list[Sale]:
        return [convert(read(io.BytesIO(payload[5:]), written, resolved), Sale) for payload in payloads]

    return decode


def main(reader: str, schema: str, records: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        earlier = write_schema(Path(folder), "shop.Sale.1.avsc", FIELDS[:-1])
        own = write_schema(Path(folder), "shop.Sale.avsc", FIELDS)
        payloads = list(Avro(own if schema == "own" else earlier).serialize(make_sales()))
        serde = Avro(own, Sale)
        decode = (
            by_hand(own, earlier, schema)
            if reader == "fastavro"
            else lambda batch: list(serde.deserialize(batch))
        )
        expected = [Sale(**sale) for sale in make_sales()]
        if schema == "earlier":
            for sale in expected:
                sale.note = "none"
        assert decode(payloads) == expected
        begun, used = time.perf_counter(), time.process_time()
        for _ in range(records // BATCH):
            decode(payloads)
        cpu_seconds, seconds = time.process_time() - used, time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "records": records // BATCH * BATCH,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        # Kibibytes on Linux, bytes on macOS.
        "peak_rss_mb": peak / (1024**2 if sys.platform == "darwin" else 1024),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
