"""``make faults``: campaigns of faults for some minutes, then scenarios one by one, and a report.

Environment variables: ``MINUTES`` (10) is the duration of all campaigns together and ``SEED`` (1) the first
seed; a seed gives the same plan again, but timing depends on the machine. ``ONLY`` selects a guarantee, a
group protocol, or both, or ``campaigns``, ``scenarios``, ``jobs`` or ``sync`` (data sync, with databases).
Without it, all four follow each other, and ``jobs`` and ``sync`` have each of their faults once. ``SOAK=1``
adds ten minutes (or the given number, if more than one) of even traffic, after a warm-up of twelve.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from streams.devstack.kafka import LocalKafka
from streams.errors import StreamsError
from tests.conftest import QUICK_GROUPS
from tests.faults.campaign import BROKER_FAULTS, WORKER_FAULTS, Campaign, Outcome, plan
from tests.faults.jobs_campaign import FAULTS as JOBS_FAULTS, JobsCampaign
from tests.faults.scenarios import SCENARIOS, play
from tests.faults.soak import soak
from tests.faults.sync_campaign import FAULTS as SYNC_FAULTS, SyncCampaign

FOLDER = Path("build/faults").absolute()
RESULTS = Path("build/faults.json")
SYNC_RESULTS = Path("build/faults-sync.json")
JOBS_RESULTS = Path("build/faults-jobs.json")
BALLAST = 50_000
READ_AGAIN_SEEDS = 3
SOAK_MINUTES = 10.0
PARTS = {"campaigns", "scenarios", "jobs", "sync"}
KINDS = (
    ("exactly_once", "consumer"),
    ("exactly_once", "classic"),
    ("at_least_once", "consumer"),
)

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def main() -> int:
    minutes = float(os.environ.get("MINUTES") or "10")
    seed = int(os.environ.get("SEED") or "1")
    only = (os.environ.get("ONLY") or "").split()
    soak_minutes = float(os.environ.get("SOAK") or "0")
    parts = PARTS.intersection(only) or PARTS
    wanted = set(only) - parts
    kinds = [kind for kind in KINDS if wanted <= set(kind)]
    if not kinds:
        console.print(f"ONLY={' '.join(only)} selects nothing of {KINDS}")
        return 2
    # Brokers are unreachable on purpose: hide the clients' messages about them.
    logging.getLogger("streams.librdkafka").addHandler(logging.NullHandler())
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    outcomes: list[Outcome] = []
    if parts == {"sync"}:
        return _sync(seed, minutes * 60)
    if parts == {"jobs"}:
        return _jobs(seed, minutes * 60)
    with LocalKafka.start(FOLDER / "kafka", nodes=3, heap_mb=512, properties=QUICK_GROUPS) as kafka:
        try:
            if "campaigns" in parts:
                _campaigns(kafka, seed, minutes * 60, kinds, outcomes)
            if "scenarios" in parts:
                _scenarios(kafka, seed, kinds[0], outcomes)
            if soak_minutes:
                _say(f"[bold]soak[/], seed {seed}")
                length = soak_minutes if soak_minutes > 1 else SOAK_MINUTES
                outcomes.append(soak(kafka, FOLDER, seed, length, report=_dim))
        except (AssertionError, StreamsError) as error:
            # The processes are in an unknown state: further results would be meaningless.
            outcomes.append(Outcome(seed, *kinds[0], name="given up"))
            outcomes[-1].verdict.add("L", str(error))
    _report(outcomes, seed)
    failed = any(outcome.verdict.violations for outcome in outcomes)
    if "jobs" in parts:
        failed = bool(_jobs(seed, 0.0)) or failed
    if "sync" in parts:
        failed = bool(_sync(seed, 0.0)) or failed
    return 1 if failed else 0


def _jobs(seed: int, seconds: float) -> int:
    """Run the campaign of jobs for so long, at least with each fault once; return the exit code."""
    _say(f"[bold]jobs, seed {seed}[/]")
    faults = list(JOBS_FAULTS)
    random.Random(seed).shuffle(faults)
    campaign = JobsCampaign(FOLDER / "jobs", seed, _dim)
    outcome = campaign.outcome
    try:
        campaign.run(faults, seconds)
    except (AssertionError, StreamsError) as error:
        outcome.verdict.add("L", str(error))
    table = Table(title=f"Jobs, seed {seed}")
    for column in ("fault", "injected", "a job ended again, median s", "longest s"):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for fault, number in sorted(outcome.faults.items()):
        times = outcome.recovery.get(fault) or [0.0]
        table.add_row(fault, str(number), f"{statistics.median(times):.1f}", f"{max(times):.1f}")
    console.print(table)
    for rule, what in outcome.verdict.violations:
        console.print(f"{rule}: {what}", markup=False, style="red")
    ended = ", ".join(f"{count:,} {ending}" for ending, count in outcome.ends.most_common())
    console.print(
        f"{outcome.faults.total()} faults, {outcome.jobs.total():,} jobs ({ended}) in {outcome.attempts:,} "
        f"attempts, {outcome.verdict.checked.total():,} checks (tests/faults/jobs_verdicts.py), "
        f"{outcome.verdict.repeated['B']:,} attempts begun by a worker that had just been frozen although "
        f"another one had recorded the end, [bold]{len(outcome.verdict.violations)} violations[/]"
    )
    JOBS_RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=2))
    console.print(
        f"All figures: {JOBS_RESULTS}. To repeat: make faults ONLY=jobs SEED={seed}. Logs: {FOLDER}"
    )
    return 1 if outcome.verdict.violations else 0


def _sync(seed: int, seconds: float) -> int:
    """Run the campaign of data sync for so long, at least with each fault once; return the exit code."""
    _say(f"[bold]data sync, seed {seed}[/]")
    faults = list(SYNC_FAULTS)
    random.Random(seed).shuffle(faults)
    campaign = SyncCampaign(FOLDER / "sync", seed, _dim)
    try:
        outcome = campaign.run(faults, seconds)
    except (AssertionError, StreamsError) as error:
        outcome = campaign.outcome
        outcome.violations.append(str(error))
    table = Table(title=f"Data sync, seed {seed}")
    for column in ("fault", "injected", "copied again, median s", "longest s"):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for fault, number in sorted(outcome.faults.items()):
        times = outcome.recovery.get(fault) or [0.0]
        table.add_row(fault, str(number), f"{statistics.median(times):.1f}", f"{max(times):.1f}")
    console.print(table)
    for violation in outcome.violations:
        console.print(violation, markup=False, style="red")
    console.print(
        f"{outcome.faults.total()} faults, {outcome.operations:,} operations, {outcome.rows:,} rows equal in "
        f"two targets, {outcome.history:,} changes exactly once in the third, "
        f"[bold]{len(outcome.violations)} violations[/]"
    )
    SYNC_RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=2))
    console.print(
        f"All figures: {SYNC_RESULTS}. To repeat: make faults ONLY=sync SEED={seed}. Logs: {FOLDER}"
    )
    return 1 if _read_again(seed) or outcome.violations else 0


def _read_again(seed: int) -> int:
    """Read tables again while writers go on and readers are killed, with more seeds than in tests."""
    test = "tests/connectors/debezium/test_table_snapshots.py"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "writers_and_readers",
        test,
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "SEED": str(seed), "SEEDS": str(READ_AGAIN_SEEDS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        console.print(done.stdout, markup=False, style="red")
    console.print(
        f"tables read again beside writers, seeds {seed} to {seed + READ_AGAIN_SEEDS - 1}: "
        f"[bold]{'a failure' if done.returncode else 'all equal'}[/]"
    )
    return done.returncode


def _campaigns(
    kafka: LocalKafka, seed: int, seconds: float, kinds: list[tuple[str, str]], outcomes: list[Outcome]
) -> None:
    # One plan for all campaigns: each kind of fault occurs before any is repeated.
    faults = plan(seed, WORKER_FAULTS + BROKER_FAULTS)
    for number, (guarantee, protocol) in enumerate(kinds):
        _say(f"[bold]seed {seed + number}[/], {guarantee}, group protocol {protocol}")
        campaign = Campaign(kafka, FOLDER, seed + number, guarantee=guarantee, protocol=protocol, report=_dim)
        outcomes.append(campaign.outcome)
        campaign.run(faults, seconds=seconds / len(kinds), ballast=BALLAST)
        _show_violations(campaign.outcome)


def _scenarios(kafka: LocalKafka, seed: int, kind: tuple[str, str], outcomes: list[Outcome]) -> None:
    guarantee, protocol = kind
    for scenario in SCENARIOS:
        _say(f"[bold]{scenario.name}[/], {guarantee}, group protocol {protocol}")
        begun = time.monotonic()
        outcome = play(scenario, kafka, FOLDER, seed, guarantee=guarantee, protocol=protocol, report=_dim)
        outcomes.append(outcome)
        _dim(f"took {time.monotonic() - begun:.0f} s")
        _show_violations(outcome)


def _show_violations(outcome: Outcome) -> None:
    for rule, what in outcome.verdict.violations:
        _say(f"[bold red]{rule}[/]: ", end="")
        console.print(what, markup=False, style="red")


def _say(text: str, end: str = "\n") -> None:
    console.print(text, end=end)


def _dim(text: str) -> None:
    console.print(text, markup=False, style="dim")


def _report(outcomes: list[Outcome], seed: int) -> None:
    faults: Counter[str] = sum((outcome.faults for outcome in outcomes), Counter[str]())
    table = Table(title=f"Faults, seed {seed}")
    for column in ("fault", "injected", "recovered, median s", "longest s"):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for fault, number in sorted(faults.items()):
        seconds = [took for outcome in outcomes for took in outcome.recovery.get(fault, ())]
        median, longest = (
            (f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("ends", "")
        )
        table.add_row(fault, str(number), median, longest)
    console.print(table)
    checked: Counter[str] = sum((outcome.verdict.checked for outcome in outcomes), Counter[str]())
    violations = [violation for outcome in outcomes for violation in outcome.verdict.violations]
    broken = Counter(rule for rule, _ in violations)
    rules = Table(title="Rules (tests/faults/verdicts.py)")
    for column in ("rule", "looked at", "violations"):
        rules.add_column(column, justify="left" if column == "rule" else "right")
    for rule in sorted(checked.keys() | broken.keys()):
        rules.add_row(rule, f"{checked[rule]:,}", str(broken[rule]))
    console.print(rules)
    repeated: Counter[str] = sum(
        (outcome.verdict.repeated for outcome in outcomes if outcome.guarantee == "at_least_once"),
        Counter[str](),
    )
    console.print(
        f"{len(outcomes)} runs, {faults.total()} faults, {sum(outcome.sent for outcome in outcomes):,} "
        f"records sent, {checked.total():,} results verified, [bold]{len(violations)} violations[/]; "
        f"{repeated.total():,} repeated results under at_least_once"
    )
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(outcomes), indent=2))
    console.print(f"All figures: {RESULTS}. To repeat: make faults SEED={seed}. Logs: {FOLDER}")


if __name__ == "__main__":
    sys.exit(main())
