"""``make faults``: campaigns of faults for some minutes, and a report.

``MINUTES`` and ``SEED`` in the environment change how long (10) and where it begins (1). A seed gives the
same plan again; what the processes make of it depends on the machine.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from streams.localkafka import LocalKafka
from tests.conftest import QUICK_GROUPS
from tests.faults.campaign import BROKER_FAULTS, WORKER_FAULTS, Campaign, Outcome

FOLDER = Path("build/faults").absolute()
RESULTS = Path("build/faults.json")
CAMPAIGN_SECONDS = 100.0
KINDS = (
    ("exactly_once", "consumer"),
    ("exactly_once", "classic"),
    ("at_least_once", "consumer"),
)

console = Console(width=None if sys.stdout.isatty() else 120)


def main() -> int:
    minutes = float(os.environ.get("MINUTES", "10"))
    seed = int(os.environ.get("SEED", "1"))
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    end = time.monotonic() + minutes * 60
    outcomes: list[Outcome] = []
    with LocalKafka.start(FOLDER / "kafka", nodes=3, heap_mb=512, properties=QUICK_GROUPS) as kafka:
        while not outcomes or time.monotonic() + CAMPAIGN_SECONDS < end:
            guarantee, protocol = KINDS[len(outcomes) % len(KINDS)]
            console.print(f"[bold]seed {seed}[/], {guarantee}, group protocol {protocol}")
            campaign = Campaign(
                kafka,
                FOLDER,
                seed,
                guarantee=guarantee,
                protocol=protocol,
                report=lambda line: console.print(f"[dim]{line}[/]"),
            )
            seconds = min(CAMPAIGN_SECONDS, max(20.0, end - time.monotonic() - 20))
            outcome = campaign.run(seconds, WORKER_FAULTS + BROKER_FAULTS)
            outcomes.append(outcome)
            for violation in outcome.verdict.violations:
                console.print(f"[bold red]{violation}[/]")
            seed += 1
    _report(outcomes)
    return 1 if any(outcome.verdict.violations for outcome in outcomes) else 0


def _report(outcomes: list[Outcome]) -> None:
    faults: Counter[str] = sum((outcome.faults for outcome in outcomes), Counter())
    table = Table(title="Faults")
    for column in ("fault", "injected", "recovered, median s", "longest s"):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for fault, number in faults.most_common():
        seconds = [took for outcome in outcomes for took in outcome.recovery.get(fault, ())]
        table.add_row(fault, str(number), f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}")
    console.print(table)
    records = sum(outcome.verdict.records for outcome in outcomes)
    violations = [violation for outcome in outcomes for violation in outcome.verdict.violations]
    repeated = sum(o.verdict.repeated for o in outcomes if o.guarantee == "at_least_once")
    console.print(
        f"{len(outcomes)} runs, {faults.total()} faults, {sum(o.sent for o in outcomes):,} readings sent, "
        f"{records:,} results verified, [bold]{len(violations)} violations[/]; "
        f"{repeated:,} results came again under at_least_once"
    )
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(outcomes), indent=2))
    console.print(f"The same as data: {RESULTS}")


if __name__ == "__main__":
    sys.exit(main())
