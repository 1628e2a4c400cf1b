"""One run of the fault suite: faults in workers and brokers while records flow, by a seeded plan."""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_args

from confluent_kafka.admin import AdminClient

from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.errors import BrokerError
from streams.records import TopicPartition
from tests.faults import verdicts
from tests.faults.crew import Crew, in_state
from tests.faults.leaders import Leaders
from tests.faults.traffic import Traffic
from tests.faults.verdicts import Sample, Verdict
from tests.faults.watch import Watch, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from streams.devstack.kafka import LocalKafka, Node
    from tests.faults.crew import Worker
    from tests.faults.verdicts import Row

WorkerFault: TypeAlias = Literal[
    "worker killed",
    "worker stopped",
    "worker frozen beyond its session",
    "worker frozen for a moment",
    "worker killed and its disk lost",
    "worker killed and its disk damaged",
    "worker killed at a step of a commit",
    "worker joins and leaves",
    "all workers redeployed one by one",
    "workers redeployed with a changed topology",
    "user code is slow",
    "user code fails",
    "user code needs retries",
    "full producer queue",
    "clock jumps",
    "rebalance during a restore",
]
BrokerFault: TypeAlias = Literal[
    "broker killed",
    "broker paused for a moment",
    "broker paused and left so",
    "broker restarted",
    "transaction coordinator killed during a commit",
    "transaction coordinator paused during a commit",
    "group coordinator paused as a worker joins",
]
Fault: TypeAlias = WorkerFault | BrokerFault

WORKER_FAULTS: tuple[Fault, ...] = get_args(WorkerFault)
BROKER_FAULTS: tuple[Fault, ...] = get_args(BrokerFault)

STEPS = [
    f"{call} {number} {moment}"
    for call in ("begin", "produce", "send_offsets", "commit")
    for number in (2, 5)
    for moment in ("before", "after")
]
HELD_STEPS = [f"{call} 4 before" for call in ("produce", "send_offsets", "commit")]

SESSION_SECONDS = 6
PARTITIONS = 4
WORKERS = 3
SETTLE_SECONDS = 120.0
TRANSACTION_SECONDS = 10.0
SEND_SECONDS = 0.05
"""Between two batches of some hundred readings while a fault is injected."""

MOOD_SECONDS = 5.0


@dataclass(slots=True)
class Outcome:
    """The faults of a run, and its results."""

    seed: int
    guarantee: str
    protocol: str
    name: str = "campaign"
    faults: Counter[str] = field(default_factory=Counter)
    recovery: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from the end of each fault until everything sent before that was processed and committed."""
    sent: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    events: Counter[str] = field(default_factory=Counter)


class Run:
    """The app under test with its topics, workers, traffic and reader, and the verification of its output.

    ``name`` is the prefix of all names in Kafka; ``every`` is the time in seconds between two batches of
    readings during a fault. As a context manager it ends all its processes.
    """

    def __init__(
        self,
        kafka: LocalKafka,
        folder: Path,
        seed: int,
        *,
        guarantee: str = "exactly_once",
        protocol: str = "consumer",
        name: str = "campaign",
        state: Path | None = None,
        settings: dict[str, str] | None = None,
        every: float = SEND_SECONDS,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.kafka = kafka
        self._every = every
        self.report = report
        self.choose = random.Random(seed)
        self.prefix = f"faults-{seed}-{guarantee.replace('_', '-')}-{protocol}-{name.replace(' ', '-')}"
        self.group = f"{self.prefix}-app"
        # The recovery of the workers is measured, not that of the observing clients.
        self.broker = KafkaBroker(
            {"bootstrap.servers": kafka.bootstrap_servers, "socket.timeout.ms": 3000},
            consumer={"socket.timeout.ms": 3000},
        )
        self.admin = self.broker.admin()
        self.outcome = Outcome(seed, guarantee, protocol, name)
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            "FAULT_PREFIX": self.prefix,
            "STREAMS_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "STREAMS_STATE_DIR": str(state or folder / "state"),
            "STREAMS_LOG_FORMAT": "json",
            "STREAMS_GUARANTEE": guarantee,
            "STREAMS_GROUP_PROTOCOL": protocol,
            "STREAMS_SESSION_TIMEOUT": str(SESSION_SECONDS),
            "STREAMS_COMMIT_INTERVAL": "0.5",
            "STREAMS_TRANSACTION_TIMEOUT": str(TRANSACTION_SECONDS),
            **(settings or {}),
        }
        self.crew = Crew(folder, self.prefix, self.group, environment, self.outcome.verdict)
        self.producer = self.broker.producer()
        self.traffic = Traffic(self.producer, self.prefix, self.choose, self.insist)
        self._watch: Watch | None = None
        self._samples: list[Sample] = []
        self._leaders = Leaders(kafka)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.crew.clear()
        if self._watch is not None:
            self._watch.stop()
        self.producer.close()
        self.admin.close()

    def topic(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def begin(self, workers: int, *, ballast: int = 0, watched: bool = True) -> None:
        """Create topics, start workers, and let them process the first readings; then start the reader, if
        wanted.
        """
        replicas = len(self.kafka.status())
        tables = {"cleanup.policy": "compact", "min.compaction.lag.ms": "9000000000"}
        self.admin.create_topics(
            [
                NewTopic(
                    name=self.topic(name),
                    partitions=PARTITIONS,
                    settings=tables if name in ("articles", "brands") else {"retention.ms": "-1"},
                    replication_factor=replicas,
                )
                for name in ("readings", "articles", "brands", "orders", "news")
            ]
        )
        self.traffic.fill_tables()
        self.crew.fill(workers)
        self.traffic.send_ballast(ballast)
        # Orders are joined with the tables' values at that moment, so the tables come first.
        self.wait(lambda: self.lag() == 0, "the tables are read")
        self.traffic.send(2_000)
        self.wait(lambda: self.lag() == 0, "the first readings are processed")
        if watched:
            self._watch = Watch(
                self.broker,
                {self.topic(name): PARTITIONS for name in ("copies", "running", "running-groups")},
            )

    def finish(self) -> None:
        """Close the windows, let the workers finish and stop."""
        self.traffic.end_windows(PARTITIONS)
        self.wait(lambda: self.lag() == 0, "all readings are processed")
        for worker in self.crew.members:
            self.crew.stop(worker)
        self.wait(self._no_open_transaction, "no transaction is left open")

    def judge(self, *, without: Sequence[str] = ()) -> Outcome:
        """Verify all outputs against the input, except topics that were damaged."""
        outcome, traffic = self.outcome, self.traffic
        verdict = outcome.verdict
        exactly_once = outcome.guarantee == "exactly_once"
        found = {
            name: self.read(name)
            for name in (
                "readings",
                "copies",
                "running",
                "running-groups",
                "totals",
                "windows",
                "late",
                "keys-by-count",
                "branded",
                "enriched",
                "app-dead-letters",
            )
        }
        log = found["readings"]
        verdicts.inputs(verdict, traffic.readings, log)
        if "copies" not in without:
            verdicts.copies(verdict, log, found["copies"], exactly_once=exactly_once)
            leaders = {place.partition: self._leaders.epochs(place) for place in self.places(("copies",))}
            verdicts.committed_was_processed(verdict, log, found["copies"], self._samples, leaders)
            if exactly_once:
                verdicts.producer_order(verdict, "copies", found["copies"])
        verdicts.dead_letters(verdict, log, found["app-dead-letters"], exactly_once=exactly_once)
        verdicts.running(verdict, traffic.readings, found["running"], exactly_once=exactly_once)
        verdicts.running_groups(verdict, traffic.readings, found["running-groups"], exactly_once=exactly_once)
        verdicts.totals(verdict, traffic.readings, found["totals"], exactly_once=exactly_once)
        verdicts.windows(verdict, log, found["windows"], found["late"], exactly_once=exactly_once)
        verdicts.counts_of_counts(
            verdict, traffic.readings, found["keys-by-count"], exactly_once=exactly_once
        )
        verdicts.branded(verdict, traffic.articles, traffic.brands, found["branded"])
        verdicts.enriched(
            verdict, traffic.orders, traffic.articles, found["enriched"], exactly_once=exactly_once
        )
        if self._watch is not None:
            watch = self._watch
            ends = self.admin.end_offsets(self.places(("copies", "running", "running-groups")))
            self.wait(lambda: watch.is_at(ends), "the reader has seen everything")
            watch.stop()
            for name in ("copies", "running", "running-groups"):
                verdicts.history(verdict, name, watch.polls[self.topic(name)], found[name])
        outcome.sent = traffic.sent
        outcome.events = self.crew.count_events()
        return outcome

    def read(self, name: str) -> list[Row]:
        return list(self.insist(lambda: read(self.broker, self.topic(name))))

    # --- traffic and waiting

    def keep_sending(self, seconds: float) -> None:
        until_then = time.monotonic() + seconds
        while time.monotonic() < until_then:
            self.traffic.send(self.choose.randrange(50, 400))
            time.sleep(self._every)

    def send_while(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Send until a condition no longer holds; returns whether that happened in time."""
        deadline = time.monotonic() + seconds
        while condition():
            if time.monotonic() > deadline:
                return False
            self.keep_sending(0.1)
        return True

    def renew_sender(self) -> None:
        """Send with a new client, which reads the topics' metadata again."""
        self.producer.close()
        self.producer = self.traffic.producer = self.broker.producer()

    def insist(self, call: Callable[[], Any]) -> Any:
        """Repeat a call until the broker answers."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                return call()
            except BrokerError:
                if time.monotonic() > deadline:
                    raise
                # A client that waits for a hanging broker keeps waiting, so a new one is used.
                self.admin.close()
                self.admin = self.broker.admin()
                time.sleep(0.2)

    def wait(
        self,
        condition: Callable[[], bool],
        what: str,
        seconds: float = SETTLE_SECONDS,
        *,
        revive: bool = True,
    ) -> None:
        """Wait, and restart workers that end. Raises ``AssertionError`` with the last logs."""
        deadline = time.monotonic() + seconds
        while not self.insist(condition):
            if revive:
                self.crew.revive()
            if time.monotonic() > deadline:
                last = "\n".join(self.crew.log_of(worker)[-2_000:] for worker in self.crew.members)
                raise AssertionError(
                    f"seed {self.outcome.seed}: not within {seconds:.0f} s: {what}; faults so far: "
                    f"{dict(self.outcome.faults)}; violations: {self.outcome.verdict.violations[:3]}; "
                    f"the last logs:\n{last}"
                )
            time.sleep(0.05)

    def places(self, names: Sequence[str]) -> list[TopicPartition]:
        return [TopicPartition(self.topic(name), number) for name in names for number in range(PARTITIONS)]

    def wait_until_recovered(self, what: str) -> None:
        """Whether everything sent so far is processed and committed."""
        targets = self.insist(lambda: self.admin.end_offsets(self.places(("readings", "orders"))))
        self.wait(partial(self._reached, targets), f"recovered from: {what}")

    def _reached(self, targets: dict[TopicPartition, int]) -> bool:
        committed = self.admin.committed_offsets(self.group)
        if not self._samples or len(self._samples) < 2_000:
            # In this order: what was committed was written before.
            ends = self._leaders.ends(self.places(("copies",)))
            self._samples.append(
                Sample(
                    {place.partition: committed.get(place, 0) for place in self.places(("readings",))},
                    {place.partition: end.offset for place, end in ends.items()},
                    {
                        place.partition: end.leader_epoch
                        for place, end in ends.items()
                        if end.leader_epoch is not None
                    },
                )
            )
        return all(committed.get(partition, 0) >= end for partition, end in targets.items())

    def lag(self) -> int:
        topics = self.admin.topics()
        places = [
            TopicPartition(name, number)
            for name in topics
            if name.startswith(self.prefix)
            and (
                name.endswith("-repartition") or name.rpartition("-")[2] in ("readings", "articles", "orders")
            )
            for number in range(topics[name].partitions)
        ]
        committed = self.admin.committed_offsets(self.group)
        ends = self.admin.end_offsets(places, "read_uncommitted")
        # After the last record there may be a transaction's marker.
        return sum(max(0, ends[place] - committed.get(place, 0) - 1) for place in places)

    def _no_open_transaction(self) -> bool:
        topics = self.admin.topics()
        places = [
            TopicPartition(name, number)
            for name, topic in topics.items()
            if name.startswith(self.prefix)
            for number in range(topic.partitions)
        ]
        uncommitted = self.admin.end_offsets(places, "read_uncommitted")
        return self.admin.end_offsets(places, "read_committed") == uncommitted


def plan(seed: int, faults: Sequence[Fault]) -> Iterator[Fault]:
    """Every kind once before any is repeated, in an order given by the seed."""
    choose = random.Random(seed)
    while True:
        yield from choose.sample(faults, len(faults))


class Campaign(Run):
    """Runs workers, sends readings and injects faults for some time, then verifies the results."""

    _paused: Node | None = None
    """A broker that is to stay frozen until the workers have recovered without it."""

    def run(self, faults: Iterable[Fault], *, seconds: float = math.inf, ballast: int = 0) -> Outcome:
        """Inject one fault after another, for at most that many seconds, then verify the results."""
        with self:
            self.begin(WORKERS, ballast=ballast)
            end = time.monotonic() + seconds
            for fault in faults:
                self.disturb(fault)
                if time.monotonic() > end:
                    break
            self.finish()
            return self.judge()

    def disturb(self, fault: Fault) -> None:
        """Inject one fault, and wait until everything that was sent by its end is processed."""
        self.traffic.send(self.choose.randrange(500, 3_000))
        begun = time.monotonic()
        self.inject(fault)
        ended = time.monotonic()
        self.outcome.faults[fault] += 1
        self.wait_until_recovered(fault)
        now = time.monotonic()
        if self._paused is not None:
            self._paused.resume()
            self._paused = None
        self.outcome.recovery.setdefault(fault, []).append(now - ended)
        self.report(
            f"seed {self.outcome.seed}: {fault}: {ended - begun:.1f} s, recovered in {now - ended:.1f} s"
        )

    def inject(self, fault: Fault) -> None:
        place = self.choose.randrange(len(self.crew.members))
        crew = self.crew
        worker = crew.members[place]
        if fault == "worker killed":
            crew.kill(worker)
            crew.replace(place)
        elif fault == "worker stopped":
            crew.stop(worker)
            crew.replace(place)
        elif fault.startswith("worker frozen"):
            worker.send_signal(signal.SIGSTOP)
            beyond = fault == "worker frozen beyond its session"
            self.keep_sending(SESSION_SECONDS + 4 if beyond else 1.5)
            worker.send_signal(signal.SIGCONT)
        elif fault == "worker killed and its disk lost":
            crew.kill(worker)
            crew.lose_disks()
            crew.replace(place)
        elif fault == "worker killed and its disk damaged":
            crew.kill(worker)
            self.report(f"disk damaged: {crew.damage_disks(self.choose)}")
            crew.replace(place)
        elif fault == "worker killed at a step of a commit":
            self._with_fault(place, 20, FAULT_STEP=self.choose.choice(STEPS))
        elif fault == "worker joins and leaves":
            another = crew.start()
            self.keep_sending(3)
            crew.stop(another)
        elif fault == "all workers redeployed one by one":
            self._redeploy()
        elif fault == "workers redeployed with a changed topology":
            crew.version = {} if crew.version else {"FAULT_EXTRA": "1"}
            self._redeploy()
        elif fault.startswith("user code"):
            self._with_mood(place, fault)
        elif fault == "full producer queue":
            small = json.dumps({"queue.buffering.max.messages": 20})
            said = "producer queue full"
            self._with_fault(place, 8 * MOOD_SECONDS, until=said, STREAMS_PRODUCER=small, FAULT_QUEUE="1")
        elif fault == "clock jumps":
            for number in self.choose.sample([signal.SIGUSR1, signal.SIGUSR2], 2):
                for member in crew.members:
                    if crew.wait_for_log(member, '"worker started"'):
                        member.send_signal(number)
                self.keep_sending(1)
                # Results written under one clock are continued under another.
                crew.stop(worker)
                worker = crew.replace(place)
                self.keep_sending(2)
        elif fault == "rebalance during a restore":
            self._rebalance_during_restore(place)
        elif fault.startswith("transaction coordinator"):
            self._lose_coordinator(place, kill="killed" in fault)
        elif fault.startswith("group coordinator"):
            self._join_with_coordinator_paused()
        else:
            self._disturb_broker(fault)

    # --- the longer ones

    def _with_fault(self, place: int, seconds: float, until: str = "", **environment: str) -> Worker:
        """Run one worker with a fault until it ends or for some time, then an ordinary one again.

        With ``until``, the worker must log that event in this time, which shows that the fault happened.
        """
        crew = self.crew
        crew.stop(crew.members[place])
        faulty = crew.replace(place, **environment)
        crew.wait_for_log(faulty, '"partitions assigned"')
        if until:
            if self.send_while(lambda: until not in crew.log_of(faulty), seconds):
                self.keep_sending(1)
            else:
                self.outcome.verdict.add("fault", f"{environment}: nothing came of it in {seconds:.0f} s")
        else:
            self.send_while(lambda: faulty.poll() is None, seconds)
        if faulty.poll() is None:
            crew.stop(faulty)
        crew.look_at_checkpoints()
        crew.replace(place)
        return faulty

    def _with_mood(self, place: int, fault: str) -> None:
        mood = {"slow": "slow", "fails": "failing", "retries": "retrying"}[fault.rsplit(maxsplit=1)[-1]]
        if mood == "slow":
            self._with_fault(place, MOOD_SECONDS, FAULT_MOOD=mood)
            return
        if mood == "retrying":
            self._with_fault(place, 8 * MOOD_SECONDS, until='"record retried"', FAULT_MOOD=mood)
            return
        # Like an orchestrator, restart it each time that it ends by policy ``fail``.
        for _ in range(3):
            failing = self._with_fault(place, 2 * MOOD_SECONDS, FAULT_MOOD=mood)
            code = failing.returncode
            if code not in (0, 4, -signal.SIGTERM):
                self.outcome.verdict.add("L", f"a worker whose user code fails ended with {code}")
            self.outcome.events[f"user code failed: {code == 4}"] += 1

    def _redeploy(self) -> None:
        for place, old in enumerate(list(self.crew.members)):
            self.crew.stop(old)
            self.crew.replace(place)
            self.keep_sending(1)

    def _rebalance_during_restore(self, place: int) -> None:
        """A worker that lost its disk restores in small pieces; others join and leave meanwhile."""
        crew = self.crew
        crew.kill(crew.members[place])
        crew.lose_disks()
        slow = crew.replace(place, FAULT_CHUNK="20")
        for _ in range(2):
            if not crew.wait_for_log(slow, '"restore started"'):
                break
            another = crew.start(FAULT_CHUNK="20")
            crew.wait_for_log(another, '"partitions assigned"', 20)
            self.keep_sending(0.5)
            crew.kill(another) if self.choose.random() < 0.5 else crew.stop(another)
        log = crew.log_of(slow)
        interrupted = log.count('"restore started"') - log.count('"restored"')
        self.outcome.events["restores interrupted"] += max(0, interrupted)
        crew.kill(slow)
        crew.replace(place)

    def _lose_coordinator(self, place: int, *, kill: bool) -> None:
        """Stop a worker at a step of a commit, disable its transaction coordinator, resume the worker."""
        crew = self.crew
        crew.stop(crew.members[place])
        held = crew.replace(place, FAULT_HOLD=self.choose.choice(HELD_STEPS))
        if not self.send_while(lambda: held.poll() is None and not in_state(held, "T"), 40):
            self.outcome.verdict.add(
                "fault", "no worker came to the step of a commit where it was to be held"
            )
            return
        node = self._leader("__transaction_state", self._transactional_id(held))
        if kill:
            node.kill()
        else:
            node.pause()
        held.send_signal(signal.SIGCONT)
        self.keep_sending(4)
        if kill:
            node.start()
        else:
            node.resume()

    def _join_with_coordinator_paused(self) -> None:
        """A worker joins, and the coordinator's answers to the others are lost or late."""
        another = self.crew.start()
        self.crew.wait_for_log(another, '"worker started"')
        self.keep_sending(self.choose.uniform(0, 1))
        node = self._leader("__consumer_offsets", self.group)
        node.pause()
        # Longer than the heartbeats' time-out, and sometimes long enough for another broker to take over.
        self.keep_sending(self.choose.choice([1.6, 3, 11]))
        node.resume()
        self.keep_sending(1)
        self.crew.stop(another)

    def _transactional_id(self, worker: Worker) -> str:
        line = next(line for line in self.crew.log_of(worker).splitlines() if '"worker started"' in line)
        return f"{self.group}-{json.loads(line)['worker']}"

    def _leader(self, topic: str, name: str) -> Node:
        """The node that leads the partition of a broker-internal topic for a group or transactional id."""
        client = AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers})
        partitions = client.list_topics(topic, timeout=20).topics[topic].partitions
        return self.kafka.node(partitions[abs(_java_hash(name)) % len(partitions)].leader)

    def _disturb_broker(self, fault: Fault) -> None:
        node = self.kafka.node(1 + self.choose.randrange(len(self.kafka.status())))
        if fault == "broker killed":
            node.kill()
            self.keep_sending(3)
            node.start()
        elif fault.startswith("broker paused"):
            node.pause()
            self.keep_sending(4)
            if fault.endswith("left so"):
                self._paused = node
            else:
                node.resume()
        else:
            node.stop()
            node.start()


def _java_hash(text: str) -> int:
    """``String.hashCode``, by which brokers assign transactional ids to coordinators."""
    value = 0
    for character in text:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
