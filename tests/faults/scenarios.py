"""Faults that end workers or damage a topic permanently, and therefore need separate runs.

The rule for all of them is that nothing goes wrong silently: a worker continues with right results, or ends
with an error that names the cause.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from confluent_kafka.admin import AdminClient, NewPartitions

from streams.broker import NewTopic
from streams.errors import TopicError
from streams.records import TopicPartition
from tests.faults import verdicts
from tests.faults.campaign import PARTITIONS, SEND_SECONDS, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streams.devstack.kafka import LocalKafka
    from tests.faults.campaign import Outcome
    from tests.faults.crew import Worker

Act: TypeAlias = "Callable[[Run], None]"

LOUD_SECONDS = 60.0
"""The time within which an error must be reported."""

DISK_MB = 64
QUICK_METADATA = {"STREAMS_CLIENT": '{"topic.metadata.refresh.interval.ms": 2000}'}


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario, which begins when the app has processed its first readings."""

    name: str
    act: Act
    settings: dict[str, str] = field(default_factory=dict)
    small_disk: bool = False


def play(
    scenario: Scenario,
    kafka: LocalKafka,
    folder: Path,
    seed: int,
    *,
    guarantee: str = "exactly_once",
    protocol: str = "consumer",
    every: float = SEND_SECONDS,
    report: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run one scenario with two workers."""
    state = folder / f"state {scenario.name}"
    with small_disk(state) if scenario.small_disk else _no_disk():
        run = Run(
            kafka,
            folder,
            seed,
            guarantee=guarantee,
            protocol=protocol,
            name=scenario.name,
            state=state,
            settings=scenario.settings,
            every=every,
            report=report,
        )
        with run:
            run.begin(2, watched=False)
            run.outcome.faults[scenario.name] += 1
            scenario.act(run)
        run.outcome.sent = run.traffic.sent
        run.outcome.events = run.crew.count_events()
    return run.outcome


# --- disks


@contextmanager
def _no_disk() -> Iterator[None]:
    yield


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A small separate file system, if this user may mount one."""
    place.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(place)]
    mount = shutil.which("mount")
    mounted = (
        mount is not None
        and not subprocess.run([mount, *options], capture_output=True, check=False).returncode
    )
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def no_space(run: Run) -> Iterator[str]:
    """Fill the workers' disk, and free it again; yields the error that a process then gets.

    Without a separate file system, the size of the workers' files is limited instead.
    """
    state = run.crew.state
    if os.path.ismount(state.parent):
        filler = state.parent / "filler"
        with filler.open("wb", buffering=0) as file:
            for size in (1024 * 1024, 4096, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue
        try:
            yield "No space left on device"
        finally:
            filler.unlink()
        return
    for worker in run.crew.members:
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    yield "File too large"
    for worker in run.crew.members:
        if worker.poll() is None:
            limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, limits)


def disk_full(run: Run) -> None:
    """Workers end with an error; with space again they continue normally."""
    crew = run.crew
    crew.expected = {8}
    with no_space(run) as words:
        run.send_while(lambda: all(worker.poll() is None for worker in crew.members), LOUD_SECONDS)
        ended = [worker for worker in crew.members if worker.poll() is not None]
        _must_end(run, ended[0] if ended else None, (8,), words)
        if words.startswith("No space"):
            # No worker makes progress without space.
            crew.revive()
            run.keep_sending(3)
    begun = time.monotonic()
    run.wait_until_recovered(run.outcome.name)
    run.outcome.recovery[run.outcome.name] = [time.monotonic() - begun]
    run.finish()
    run.judge()


# --- topics


def retention_overtakes(run: Run) -> None:
    """Readings were deleted before they were processed: the loss must be reported."""
    crew = run.crew
    for worker in crew.members:
        crew.stop(worker)
    committed = run.admin.committed_offsets(run.group)
    run.traffic.send(4_000)
    first = {place: committed[place] + 200 for place in run.places(("readings",))}
    run.admin.delete_records(first)
    crew.members = [crew.start() for _ in crew.members]
    _must_end(run, _first_to_end(run), (11,), "readings")
    copied = {(row.key, row.value["number"]) for row in run.read("copies")}
    gone = {
        (row.key, row.value["number"])
        for row in run.read("readings")
        if row.offset < first.get(TopicPartition(run.topic("readings"), row.partition), 0)
    }
    run.outcome.verdict.checked["T"] += len(copied)
    if not copied.isdisjoint(gone):
        run.outcome.verdict.add("T", "deleted readings were processed")


def partitions_added(run: Run) -> None:
    """Keys are in other partitions than their state now: no result may use the wrong state."""
    client = AdminClient({"bootstrap.servers": run.kafka.bootstrap_servers})
    for future in client.create_partitions([NewPartitions(run.topic("readings"), PARTITIONS + 2)]).values():
        future.result(20)
    run.crew.expected = {3}
    # The sender learns of the new partitions later than the workers: until then keys stay where they were.
    begun = time.monotonic()
    run.send_while(
        lambda: time.monotonic() - begun < 5 and all(worker.poll() is None for worker in run.crew.members), 10
    )
    run.renew_sender()
    run.send_while(lambda: all(worker.poll() is None for worker in run.crew.members), LOUD_SECONDS)
    _must_end(run, _first_to_end(run), (3,), "partitions")
    again = run.crew.replace(0)
    run.crew.members = [run.crew.members[0]]
    _must_end(run, again if _ends(again) else None, (3,), "partitions")
    for key, rows in verdicts.by_key(run.read("running")).items():
        counts = [row["count"] for row in rows]
        run.outcome.verdict.checked["E3"] += len(counts)
        if counts != list(range(1, len(counts) + 1)):
            run.outcome.verdict.add("E3", f"{key} was counted as {counts[:20]} …")
            break


def input_deleted(run: Run) -> None:
    run.admin.delete_topics([run.topic("readings")])
    _must_end(run, _first_to_end(run), (3,), "readings")


def repartition_deleted(run: Run) -> None:
    """The workers that write the topic or those that read it may notice first."""
    run.admin.delete_topics([f"{run.group}-by-group-repartition"])
    run.crew.expected = {3}
    run.send_while(lambda: all(worker.poll() is None for worker in run.crew.members), LOUD_SECONDS)
    _must_end(run, _first_to_end(run), (3, 4), "by-group-repartition")


def output_deleted(run: Run) -> None:
    """Nothing is committed while its results cannot be written; they come when the topic exists again."""
    topic = run.topic("copies")
    run.admin.delete_topics([topic])
    # Deleting takes effect on the brokers a little later; until then records may still be written to the old
    # topic.
    gone = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    run.wait(lambda: not _exists(run, gone), "the topic is deleted")
    before = run.traffic.sent
    sent = {key: len(rows) for key, rows in run.traffic.readings.items()}
    run.traffic.send(500)
    run.keep_sending(10)
    run.crew.expected = {3}
    committed = run.admin.committed_offsets(run.group)
    run.admin.create_topics([NewTopic(name=topic, partitions=PARTITIONS, settings={"retention.ms": "-1"})])
    begun = time.monotonic()
    run.wait_until_recovered(run.outcome.name)
    run.outcome.recovery[run.outcome.name] = [time.monotonic() - begun]
    run.finish()
    run.judge(without=("copies",))
    assert before < run.traffic.sent
    log = run.read("readings")
    found = {(row.key, row.value["number"]) for row in run.read("copies")}
    run.outcome.verdict.checked["T"] += len(found)
    lost = [
        (row.key, row.value["number"])
        for row in log
        if row.value["amount"] >= 0
        and row.value["number"] > sent.get(row.key, 0)
        and (row.key, row.value["number"]) not in found
    ]
    if lost:
        early = sum(
            row.offset < committed.get(TopicPartition(run.topic("readings"), row.partition), 0)
            for row in log
            if (row.key, row.value["number"]) in set(lost)
        )
        run.outcome.verdict.add(
            "T", f"{len(lost)} results went with the deleted topic, {early} committed meanwhile: {lost[:3]}"
        )


def changelog_deleted(run: Run) -> None:
    """Lost state is reported, or processing continues with right results; state never begins empty
    silently.
    """
    crew = run.crew
    run.admin.delete_topics([f"{run.group}-running-changelog"])
    crew.expected = {3, 8}
    run.traffic.send(500)
    first = _first_to_end(run)
    if first is not None:
        _must_end(run, first, (3, 8), "running-changelog")
    for each in crew.members:
        crew.kill(each)
    # With this disk, and with an empty one.
    for lost in (False, True):
        if lost:
            crew.lose_disks()
        crew.members = [crew.start() for _ in crew.members]
        run.traffic.send(500)
        ended = _first_to_end(run, 20)
        if ended is not None:
            _must_end(run, ended, (3, 8), "running-changelog")
        for each in crew.members:
            crew.kill(each)
    # Without the disk, only the number in the offsets' metadata shows that there was more, which ends the
    # worker after a minute; until then, a store that begins empty is logged as a warning.
    if not run.crew.count_events()["store begins empty"]:
        run.outcome.verdict.add(
            "loud", "a changelog was created again in the middle of the input without a warning"
        )


def same_instance(run: Run) -> None:
    """Two machines with one instance id: one of them works, the other ends or waits, and reports why."""
    crew = run.crew
    crew.expected = {3}
    for worker in crew.members:
        crew.stop(worker)
    crew.fill(1)
    crew.wait_for_log(crew.members[0], '"partitions assigned"')
    twin = crew.start(STREAMS_STATE_DIR=str(crew.state.parent / "twin"), STREAMS_WORKER_ID="twin")
    crew.members.append(twin)
    run.outcome.verdict.checked["loud"] += 1
    begun = time.monotonic()
    if not run.send_while(
        lambda: all("nstance" not in crew.log_of(worker) for worker in crew.members), LOUD_SECONDS
    ):
        run.outcome.verdict.add("loud", "two workers have one instance id and neither reports it")
    run.report(f"said within {time.monotonic() - begun:.0f} s")
    run.wait_until_recovered(run.outcome.name)
    run.finish()
    run.judge()


def _exists(run: Run, places: list[TopicPartition]) -> bool:
    try:
        run.admin.end_offsets(places)
    except TopicError:
        return False
    return True


def _first_to_end(run: Run, seconds: float = LOUD_SECONDS) -> Worker | None:
    """The first worker that ends by itself."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for worker in run.crew.members:
            if worker.poll() is not None:
                return worker
        time.sleep(0.05)
    return None


def _ends(worker: Worker) -> bool:
    try:
        worker.wait(LOUD_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _must_end(run: Run, worker: Worker | None, codes: tuple[int, ...], words: str) -> None:
    """A worker must have ended with one of these exit codes and this text."""
    verdict = run.outcome.verdict
    verdict.checked["loud"] += 1
    if worker is None:
        last = run.crew.log_of(run.crew.members[0])[-800:]
        verdict.add("loud", f"{run.outcome.name}: no worker has ended within {LOUD_SECONDS:.0f} s: …{last}")
        return
    log = run.crew.log_of(worker)
    failed = log[log.find('"worker failed"') :] if '"worker failed"' in log else log
    run.report(f"ended with {worker.returncode}: {failed[-300:].strip()}")
    if worker.returncode not in codes or words not in failed:
        verdict.add(
            "loud", f"{run.outcome.name}: ended with {worker.returncode} instead of {codes}: …{failed[-800:]}"
        )


SCENARIOS = (
    Scenario("disk full", disk_full, small_disk=True),
    Scenario("retention overtakes a committed offset", retention_overtakes),
    Scenario("partitions added to the input", partitions_added, QUICK_METADATA),
    Scenario("input topic deleted", input_deleted, QUICK_METADATA),
    Scenario("output topic deleted", output_deleted, QUICK_METADATA),
    Scenario("repartition topic deleted", repartition_deleted, QUICK_METADATA),
    Scenario("changelog topic deleted", changelog_deleted, QUICK_METADATA),
    Scenario("two workers with one instance id", same_instance, {"STREAMS_GROUP_INSTANCE_ID": "fixed"}),
)
