"""The decoding of Avro records to structs, without a broker."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.measure import MeasurementFailed, Result
from benchmarks.systems import PEERS, RAW_CLIENT, THIS_RUNTIME

if TYPE_CHECKING:
    from collections.abc import Collection

    from benchmarks.systems import System
    from benchmarks.works import Bench

LONGEST_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Decoding:
    """Decodes records of ten fields to structs, in batches of 10,000.

    They were written with the reader's ``own`` schema, or with an ``earlier`` one that lacks a field. The raw
    client is fastavro with msgspec's conversion, called by hand.
    """

    name: str
    schema: str
    rounds: int = 3
    systems: Collection[str] = (THIS_RUNTIME, RAW_CLIENT)

    def warm_up(self, bench: Bench, system: System) -> None:
        """There is no broker to warm up."""

    def measure(self, bench: Bench, system: System) -> Result:
        reader = "streams" if system.name == THIS_RUNTIME else "fastavro"
        command = [sys.executable, str(PEERS / "avro_decoding.py"), reader, self.schema, str(bench.records)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False)
        if done.returncode:
            raise MeasurementFailed(f"{system.name}: {done.stderr[-2000:]}")
        figures = json.loads(done.stdout)
        return Result(
            work=self.name,
            system=system.name,
            records=figures["records"],
            records_per_second=figures["records"] / figures["seconds"],
            records_per_cpu_second=figures["records"] / figures["cpu_seconds"],
            peak_rss_mb=figures["peak_rss_mb"],
        )
