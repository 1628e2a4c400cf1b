"""The apps of a blue/green pair on one memory broker, with workers that take turns and are killed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from streams import App, Json, Text, Tumbling, key_value_store
from streams.broker import Polled
from streams.broker.reading import read_to_end
from streams.durations import seconds
from streams.errors import NotCommitted, SwitchAborted
from streams.partitioning import partition_for
from streams.records import Output
from streams.replay.switch import Switch
from streams.state.memory import MemoryDatabases
from tests.support.cluster import Broker, MemoryCluster, places_of
from tests.support.connectors import Database, MemorySink

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams import Context, KeyValueStore, Record
    from streams.broker import GroupSettings
    from streams.broker.memory import MemoryConsumer
    from streams.replay.switch import Switched
    from streams.runtime.worker import Worker
    from streams.state.store import Databases

SETTINGS: dict[str, Any] = {"blue_green": "pair", "commit_interval": 0.05, "max_poll_records": 7}
PARTITIONS = 2
KEYS = 6
WINDOW = 1_000
GRACE = 6_000
"""In milliseconds. No record is late unless one partition is 60 ``send``s behind another."""
ANSWER_SECONDS = 10.0
"""Longest wait for a sink that is asked for positions: another worker's transaction may have locked them."""


class Numbered:
    """Numbers the records of each group, so that lost and repeated state shows in the results."""

    def open(self, context: Context) -> None:
        self.seen: KeyValueStore = context.store("numbers")

    def process(self, record: Record[str, Any], context: Context) -> None:
        number = (self.seen.get(record.key) or 0) + 1
        self.seen.put(record.key, number)
        context.forward(record.with_(value={"number": number, **record.value}))


def numbering(name: str, **settings: Any) -> App:
    """Stateless results, numbered results of other keys behind an internal topic, windows behind a second."""
    app = App(name, **(SETTINGS | settings))
    orders = app.stream("in", key=Text(), value=Json(dict[str, Any]))
    orders.filter(lambda order: order["n"] % 3 > 0).peek(lambda order: PEEKED.append((name, order["id"]))).to(
        "plain"
    )
    grouped = orders.key_by(lambda order: order["group"]).process(
        Numbered, stores=[key_value_store("numbers", value=Json(int))]
    )
    grouped.to("numbered")
    grouped.group_by(lambda value: value["key"]).window(
        Tumbling(seconds(WINDOW / 1000)), grace=seconds(GRACE / 1000)
    ).count("windows").final().to("windowed")
    return app


PEEKED: list[tuple[str, str]] = []
"""The app and record of each call of a function of ``peek``."""


class LateBroker(Broker):
    """Readers outside of groups do not always get at once what is there, as over a network."""

    late: Callable[[], bool] = staticmethod(lambda: False)

    def consumer(self, settings: GroupSettings) -> MemoryConsumer:
        consumer = super().consumer(settings)
        poll = consumer.poll

        def poll_late(max_records: int, timeout: float) -> Polled:
            return Polled([], {}) if timeout == 0 and self.late() else poll(max_records, timeout)

        if settings.group == "streams-reading":
            consumer.poll = poll_late  # type: ignore[method-assign]  # of this one alone
        return consumer


class Pair(MemoryCluster):
    """Apps by name, with the workers that are alive by app and slot."""

    inputs: tuple[str, ...] = ("in",)

    def __init__(
        self, make: Callable[..., App] = numbering, *, partitions: int = PARTITIONS, **settings: Any
    ) -> None:
        super().__init__(dict.fromkeys(self.inputs, partitions))
        PEEKED.clear()
        self.partitions = partitions
        self.apps = {name: make(name, **settings) for name in ("blue", "green")}
        self.counts = {name: self.prepare(app, create_outputs=True) for name, app in self.apps.items()}
        self.alive: dict[tuple[str, int], Worker] = {}
        self.disks: dict[tuple[str, int], Databases] = {}
        self.sent: Counter[str] = Counter()
        """How many records of each key there are."""
        self.windows: Counter[tuple[str, int]] = Counter()
        """How many records each window of a key has."""
        self.time = 0

    def make_broker(self, **options: Any) -> LateBroker:
        self.late_broker = LateBroker(**options)
        return self.late_broker

    # --- workers

    def start(self, app: str, slot: int = 0) -> Worker:
        disk = self.disks.setdefault((app, slot), MemoryDatabases())
        worker = self.make_worker(
            self.apps[app],
            f"{app}-{slot}",
            partitions=self.counts[app],
            databases=disk,
            wall_clock=self.clock.milliseconds,
        )
        worker.start()
        self.alive[app, slot] = worker
        return worker

    def kill(self, app: str, slot: int = 0) -> None:
        """The session ends at once; an open transaction stays until it times out."""
        self.expire(self.alive.pop((app, slot)))
        self.disks[app, slot].close()

    def stop(self, app: str, slot: int = 0) -> None:
        self.alive.pop((app, slot)).close()

    def turn(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            for worker in list(self.alive.values()):
                worker.run_once()
            self.answered()
            self.clock.advance(0.01)

    def answered(self) -> None:
        """Wait for sinks that are asked for positions, in threads.

        Their systems need the machine's time, and the cluster's would go on by half a minute meanwhile: more
        than a switch may take.
        """
        for worker in self.alive.values():
            for session in vars(vars(worker)["_sinks"])["_sessions"].values():
                if (claim := vars(session)["_claim"]) is not None:
                    wait([claim], ANSWER_SECONDS)

    def until(self, condition: Callable[[], object], rounds: int = 3_000) -> None:
        for _ in range(rounds):
            if condition():
                return
            self.turn()
        raise AssertionError(f"still not so after {rounds} rounds: {self.command('green').status()}")

    def settle(self) -> None:
        """Run until all running apps have processed everything."""
        apps = {app for app, _ in self.alive}
        self.until(lambda: all(self.uncommitted(app, self.counts[app]) == 0 for app in apps))

    # --- the command

    def command(self, app: str, **options: Any) -> Switch:
        return Switch(
            self.broker,
            pair="pair",
            app=app,
            clock=self.clock,
            pause=self.clock.advance,
            **options,
        )

    def switch(self, app: str, **options: Any) -> Switched:
        """Switch while the workers take turns."""
        command = self.command(app, **options)
        try:
            for _ in range(3_000):
                if (result := command.step()) is not None:
                    return result
                self.turn()
        finally:
            command.close()
        raise AssertionError(f"not switched: {command.missing}")

    # --- records

    def send(self, count: int) -> None:
        """The next records of all keys, in turns."""
        for _ in range(count):
            self.time += 100
            for number in range(KEYS):
                key = f"k{number}"
                n = self.sent[key]
                self.sent[key] += 1
                self.windows[key, self.time // WINDOW * WINDOW] += 1
                value = {"key": key, "n": n, "id": f"{key}-{n}", "group": f"g{n % 2}"}
                for topic in self.inputs:
                    self.write(
                        Output(
                            topic,
                            [key.encode()],
                            [json.dumps(value).encode()],
                            [self.time],
                            partition=partition_for(key.encode(), self.partitions),
                        )
                    )

    def results(self, topic: str) -> list[tuple[str, Any]]:
        """Keys and values as committed, partition by partition in order."""
        return [
            ((key or b"").decode(), json.loads(value or b"null"))
            for fetched in read_to_end(self.broker, [topic])
            for key, value in zip(fetched.keys(), fetched.values(), strict=True)
        ]

    def disturb(self, random: Random) -> None:
        """Let something fail outside of the brokers."""

    def finish(self) -> None:
        """Process everything, and close all windows."""
        self.settle()
        self.time += 10 * GRACE
        self.send(1)
        self.settle()

    def check(self) -> None:
        """All results are those of one app without an interruption: each once, in the order of its key."""
        self.finish()
        plain: dict[str, list[int]] = defaultdict(list)
        for key, value in self.results("plain"):
            plain[key].append(value["n"])
        assert plain == {key: [n for n in range(count) if n % 3] for key, count in self.sent.items()}

        numbers: dict[str, list[int]] = defaultdict(list)
        inputs: dict[tuple[str, str], list[int]] = defaultdict(list)
        for group, value in self.results("numbered"):
            numbers[group].append(value["number"])
            inputs[group, value["key"]].append(value["n"])
        assert all(found == list(range(1, len(found) + 1)) for found in numbers.values()), numbers
        assert inputs == {
            (group, key): [n for n in range(count) if f"g{n % 2}" == group]
            for key, count in self.sent.items()
            for group in ("g0", "g1")
        }

        found = [((key, value["start"]), value["value"]) for key, value in self.results("windowed")]
        last = max(start for _, start in self.windows)
        assert sorted(found) == sorted(item for item in self.windows.items() if item[0][1] < last)


def joining(name: str, **settings: Any) -> App:
    """Joins the input with itself by way of an internal topic: its tasks merge partitions by event time."""
    app = App(name, **(SETTINGS | settings))
    orders = app.stream("in", key=Text(), value=Json(dict[str, Any]))
    others = app.stream("others", key=Text(), value=Json(dict[str, Any]))
    orders.join(
        others,
        lambda one, two: [one["id"], two["id"]],
        within=seconds(0),
        grace=seconds(GRACE / 1000),
        store="met",
    ).to("pairs")
    moved = orders.key_by(lambda order: order["key"]).repartition("moved")
    moved.join(
        others,
        lambda one, two: [one["id"], two["id"]],
        within=seconds(0),
        grace=seconds(GRACE / 1000),
        store="met-again",
    ).to("pairs-again")
    return app


class JoiningPair(Pair):
    """Each record of ``in`` has one of the same id, key and time in ``others``."""

    inputs = ("in", "others")

    def __init__(self, **settings: Any) -> None:
        super().__init__(joining, **settings)

    def check(self) -> None:
        self.finish()
        expected = {key: [f"{key}-{n}" for n in range(count)] for key, count in self.sent.items()}
        for topic in ("pairs", "pairs-again"):
            found: dict[str, list[str]] = defaultdict(list)
            for key, (one, two) in self.results(topic):
                assert one == two
                found[key].append(one)
            assert found == expected, topic


class SinkPair(Pair):
    """Rows for sink connectors; each app keeps positions of its own in the same system."""

    def __init__(self, **settings: Any) -> None:
        self.databases = {name: Database() for name in ("blue", "green")}
        self.databases["green"].rows = self.databases["blue"].rows

        def make(name: str, **own: Any) -> App:
            app = App(name, **(SETTINGS | own))
            orders = app.stream("in", key=Text(), value=Json(dict[str, Any]))
            orders.filter(lambda order: order["n"] % 3 > 0).sink(MemorySink(self.databases[name]))
            return app

        super().__init__(make, **settings)

    def disturb(self, random: Random) -> None:
        faults = self.databases[random.choice(["blue", "green"])].faults.setdefault("commit", [])
        if not faults:
            faults.append(random.choice(["unavailable", "lost answer"]))

    def check(self) -> None:
        self.finish()
        found: dict[str, list[int]] = defaultdict(list)
        for key, value in self.databases["blue"].rows:
            found[key].append(value["n"])
        assert found == {key: [n for n in range(count) if n % 3] for key, count in self.sent.items()}


class Killed(BaseException):
    """The process that makes a broker call is gone."""


class Chaos:
    """Workers and commands that are killed at any broker call, workers that are evicted and go on.

    The pair is switched forth and back meanwhile, ``switches`` times.
    """

    def __init__(self, pair: Pair, seed: int, *, workers: int = 2) -> None:
        self.pair = pair
        self.random = Random(seed)
        self.workers = workers
        self.target = "green"
        self.done = 0
        self.aborted = 0
        self.kills: Counter[str] = Counter()
        """How many processes were killed, by kind and phase."""
        self._command: Switch | None = None
        self._next_at = 0
        """When the next switch may begin, by the records' time: some are emitted first."""
        self._calls = 0

    def run(self, switches: int, *, rounds: int = 20_000) -> None:
        pair, random = self.pair, self.random
        pair.late_broker.late = lambda: random.random() < (0.8 if self.workers == 2 else 0.97)
        for slot in range(self.workers):
            pair.start("blue", slot)
        pair.send(10)
        pair.settle()
        for slot in range(self.workers):
            pair.start("green", slot)
        for _ in range(rounds):
            if self.done == switches:
                break
            self._round()
        assert self.done == switches, f"{self.done} switches; {pair.command('green').status()}"
        for app in pair.apps:
            for slot in range(self.workers):
                if (app, slot) not in pair.alive:
                    pair.start(app, slot)
        pair.check()

    def _round(self) -> None:
        pair, random = self.pair, self.random
        if random.random() < 0.3:
            pair.answered()
        pair.clock.advance(random.choice([0.001, 0.01, 0.05, 0.2]))
        if random.random() < 0.08 and self._backlog() < 30:
            pair.send(random.randint(1, 5))
        if random.random() < 0.3:
            self._step_command()
        for place in list(pair.alive):
            if random.random() < 0.6:
                self._run_worker(*place)
        for app in pair.apps:
            for slot in range(self.workers):
                if (app, slot) not in pair.alive and random.random() < 0.05:
                    self._guarded(f"{app} starting", 0.05, partial(pair.start, app, slot))
        active = self._phase() != "running"
        if random.random() < (0.1 if active else 0.01):
            pair.disturb(random)
        if random.random() < (0.03 if active else 0.004) and pair.alive:
            # Evicted, and does not know: it goes on with what it has.
            self.kills["evicted"] += 1
            pair.expire(pair.alive[random.choice(list(pair.alive))])
        if random.random() < 0.003 and pair.alive:
            place = random.choice(list(pair.alive))
            with suppress(NotCommitted):
                pair.alive.pop(place).close()
            pair.disks[place].close()
        if random.random() < 0.002:
            # The command is stopped for longer than the limit.
            pair.clock.advance(random.choice([5, 31]))

    def _backlog(self) -> int:
        """How many ``send``s the app that is further behind has not processed, about.

        Internal topics count too: otherwise one partition of them gets so far ahead that windows close.
        """
        pair = self.pair
        waiting = []
        for app, counts in pair.counts.items():
            places = places_of(counts)
            ends, committed = pair.admin.end_offsets(places), pair.admin.committed_offsets(app)
            waiting.append(sum(end - committed.get(place, 0) for place, end in ends.items()))
        return max(waiting) // KEYS

    def _step_command(self) -> None:
        if self._command is None:
            if self.pair.time < self._next_at:
                return
            self._command = self.pair.command(self.target, max_lag=10_000)
        command = self._command
        try:
            result = self._guarded("command", 0.02, command.step)
        except SwitchAborted:
            self.aborted += 1
            self._command = None
            return
        if result is KILLED:
            self._command = None
        elif result is not None:
            self.done += 1
            self._next_at = self.pair.time + 100 * self.random.randint(0, 20)
            self.target = "blue" if self.target == "green" else "green"
            self._command = None
            command.close()

    def _run_worker(self, app: str, slot: int) -> None:
        worker = self.pair.alive[app, slot]
        if self._guarded(app, 0.002, worker.run_once) is KILLED:
            self.pair.kill(app, slot)

    def _guarded(self, kind: str, likely: float, call: Callable[[], Any]) -> Any:
        """Call; with some likelihood the process is killed at one of its broker calls."""
        if self._phase() != "running":
            likely *= 8
        if self.random.random() >= likely:
            return call()
        self._calls = self.random.randint(0, 12)
        self.pair.broker.before = self._kill
        phase = self._phase()
        try:
            return call()
        except Killed:
            self.kills[f"{kind}, {phase}"] += 1
            return KILLED
        finally:
            self.pair.broker.before = None

    def _phase(self) -> str:
        phase = None if self._command is None else self._command.phase
        return "running" if phase is None else phase.value

    def _kill(self, _: object) -> None:
        self._calls -= 1
        if self._calls < 0:
            raise Killed


KILLED: Any = object()
