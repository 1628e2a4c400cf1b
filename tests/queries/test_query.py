"""Querying state: from the process, over HTTP, and from the worker that holds it."""

from __future__ import annotations

import base64
import json
import socket
import threading
import urllib.error
import urllib.request
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import trustme
from typer.testing import CliRunner

from streams import App, Bytes, ClosedWindow, Json, Session, Text, Tumbling, count, key_value_store, total
from streams.broker import NewTopic
from streams.cli.main import cli
from streams.durations import milliseconds
from streams.errors import ConfigurationError, HeldElsewhere, QueryError, StateUnavailable, UnknownStore
from streams.partitioning import partition_for
from streams.queries.http import Request, Response, Tls, ask, client_tls
from streams.queries.http_server import HttpServer
from streams.queries.query import Queries
from streams.records import Output
from tests.support.cluster import MemoryCluster
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streams.broker.memory import MemoryBroker

soon = partial(wait_until, timeout=20.0)

PARTITIONS = 4
NAMES = [f"user-{number:02d}" for number in range(20)]


class Remember:
    """Keeps the last value of each key."""

    def open(self, context: Any) -> None:
        self.store = context.store("last")

    def process(self, record: Any, context: Any) -> None:
        self.store.put(record.key, record.value)


def visits(*, keep: int = 0, **settings: Any) -> App:
    """Counts, windows and a processor's store over one topic of numbers by user.

    With ``keep``, windows stay when they have closed, and there are sessions too.
    """
    app = App("visits", guarantee="at_least_once", state_store="memory", **settings)
    numbers = app.stream("numbers", key=Text(), value=Json(int))
    grouped = numbers.group_by_key()
    grouped.aggregate("totals", visits=count(), sum=total()).to("totals")
    kept = milliseconds(keep)
    windows = grouped.window(Tumbling(seconds=10), grace=milliseconds(5_000), keep=kept).count("by-window")
    windows.updates().to("windows")
    if keep:
        grouped.window(Session(seconds=1), keep=kept).count("sessions")
    numbers.process(Remember, stores=[key_value_store("last", key=Text(), value=Json())])
    return app


class Runner:
    """One ``app.run`` in a thread."""

    def __init__(self, app: App, broker: MemoryBroker) -> None:
        self.app = app
        self.port = app.settings.http_port
        self.failed: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(broker,))
        self._thread.start()

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def status(self, path: str) -> tuple[int, str]:
        """The response of a path with text."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self.failed is None

    def _run(self, broker: MemoryBroker) -> None:
        try:
            self.app.run(broker=broker, stop=self._stop)
        except BaseException as error:  # noqa: BLE001 - looked at by stop
            self.failed = error


class Site(MemoryCluster):
    """A broker with the topics, and the workers on it."""

    def __init__(self, folder: Path) -> None:
        topics = ("numbers", "totals", "windows", "visits-dead-letters")
        super().__init__(dict.fromkeys(topics, PARTITIONS), real_time=True)
        self.runners: list[Runner] = []
        self._folder = folder

    def start(self, make: Callable[..., App] = visits, **settings: Any) -> Runner:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        name = f"machine-{len(self.runners)}"
        folder = str(self._folder / name)
        app = make(http_port=port, worker_id=name, state_dir=folder, log_level="error", **settings)
        runner = Runner(app, self.broker)
        self.runners.append(runner)
        return runner

    def send(self, records: list[tuple[str, int]], timestamp: int = 1_000) -> None:
        keys: list[bytes | None] = [key.encode() for key, _ in records]
        self.write(Output("numbers", keys, [b"%d" % value for _, value in records], [timestamp] * len(keys)))

    def wait_until_held(self, *runners: Runner) -> None:
        """Wait until these workers have all partitions, each at least one."""

        def spread() -> bool:
            shares = [self.held(runner) for runner in runners]
            return all(shares) and sorted(chain(*shares)) == list(range(PARTITIONS))

        soon(spread)

    def held(self, runner: Runner) -> list[int]:
        try:
            _, answer = runner.get("/stores")
        except OSError:
            return []
        return answer["stores"][0]["held"]  # type: ignore[no-any-return]  # from JSON

    def wait_until_counted(self, runner: Runner, records: int) -> None:
        def counted() -> bool:
            status, answer = runner.get("/stores/totals?all=true")
            return status == 200 and sum(e["value"]["visits"] for e in answer["entries"]) == records

        soon(counted)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for runner in site.runners:
        runner.stop()


@pytest.fixture
def one(site: Site) -> Runner:
    runner = site.start()
    site.wait_until_held(runner)
    return runner


class TestInProcess:
    def test_a_key_has_the_result_and_not_what_is_stored_for_it(self, site, one):
        site.send([("ann", 3), ("ann", 4), ("bob", 5)])
        site.wait_until_counted(one, 3)
        found = one.app.query("totals", "ann")
        assert (found.visits, found.sum) == (2, 7)
        assert one.app.query("last", "ann") == 4
        assert one.app.query("totals", "nobody") is None

    def test_a_range_is_in_order_over_all_partitions(self, site, one):
        site.send([(name, 1) for name in NAMES])
        site.wait_until_counted(one, len(NAMES))
        assert [key for key, _ in one.app.query_range("totals")] == NAMES
        found = one.app.query_range("totals", "user-05", "user-10", limit=3)
        assert [key for key, _ in found] == NAMES[5:8]

    def test_windows_of_a_key_and_of_all_in_a_range_of_starts(self, site, one):
        for start in (0, 10_000):
            site.send([("ann", 1), ("ann", 1), ("bob", 1)], timestamp=start + 3)
            site.wait_until_counted(one, 3 if start == 0 else 6)
        windows = one.app.query_windows("by-window", "ann")
        assert [(w.key, w.start, w.end, w.value) for w in windows] == [
            ("ann", 0, 10_000, 2),
            ("ann", 10_000, 20_000, 2),
        ]
        assert [w.start for w in one.app.query_windows("by-window", "ann", start=1)] == [10_000]
        assert [(w.key, w.start) for w in one.app.query_windows("by-window", stop=10_000)] == [
            ("ann", 0),
            ("bob", 0),
        ]

    def test_a_window_that_has_closed_is_not_shown_any_more(self, site, one):
        site.send([("ann", 1)], timestamp=0)
        site.wait_until_counted(one, 1)
        assert len(one.app.query_windows("by-window", "ann")) == 1
        site.send([("ann", 1)], timestamp=15_000)
        site.wait_until_counted(one, 2)
        assert [w.start for w in one.app.query_windows("by-window", "ann")] == [10_000]

    def test_a_window_that_has_closed_is_shown_as_such_while_it_is_kept(self, site):
        one = site.start(partial(visits, keep=60_000))
        site.wait_until_held(one)
        site.send([("ann", 1), ("ann", 1)], timestamp=3)
        site.send([("ann", 1)], timestamp=20_003)
        site.wait_until_counted(one, 3)
        kept = {"start": 0, "end": 10_000, "value": 2, "closed": True}
        session = {"start": 3, "end": 3, "value": 2, "closed": True}

        def check(runner: Runner) -> None:
            first, second = runner.app.query_windows("by-window", "ann")
            assert first == ClosedWindow("ann", 0, 10_000, 2)
            assert (second.start, isinstance(second, ClosedWindow)) == (20_000, False)
            assert runner.app.query_windows("by-window", stop=1) == [first]
            assert runner.app.query_windows("sessions", "ann", stop=20_000) == [ClosedWindow("ann", 3, 3, 2)]
            windows = runner.get("/stores/by-window/windows/ann?stop=20000")[1]["windows"]
            assert windows == [kept]
            assert runner.get("/stores/by-window?all=true")[1]["entries"][0] == {"key": "ann"} | kept
            assert runner.get("/stores/sessions/windows/ann")[1]["windows"][0] == session
            # The value of a key is the sessions that are open.
            assert [item["start"] for item in runner.get("/stores/sessions/keys/ann")[1]["value"]] == [20_003]
            url = f"http://127.0.0.1:{runner.port}"
            for store, shown in (("by-window", kept), ("sessions", session)):
                done = CliRunner().invoke(cli, ["query", store, "ann", "--stop", "5000", "--url", url])
                assert json.loads(done.output) == shown

        check(one)
        one.stop()
        site.runners.remove(one)
        # On another machine, whose disk has nothing: from the changelogs.
        other = site.start(partial(visits, keep=60_000))
        site.wait_until_held(other)
        site.wait_until_counted(other, 3)
        check(other)
        site.send([("ann", 1)], timestamp=4)
        site.send([(name, 1) for name in NAMES], timestamp=80_000)
        site.wait_until_counted(other, 3 + 1 + len(NAMES))
        gone = partition_for(b"ann", PARTITIONS)
        assert any(partition_for(name.encode(), PARTITIONS) == gone for name in NAMES)
        assert [w.start for w in other.app.query_windows("by-window", "ann")] == [20_000]

    def test_questions_that_make_no_sense_are_answered_in_words(self, one):
        with pytest.raises(UnknownStore, match=r"no store 'nothing'[^$]*stores are: totals, by-window, last"):
            one.app.query("nothing", "ann")
        with pytest.raises(QueryError, match=r"'by-window' is windowed"):
            one.app.query("by-window", "ann")
        with pytest.raises(QueryError, match=r"'totals' is not windowed"):
            one.app.query_windows("totals", "ann")
        with pytest.raises(QueryError, match=r"keys of Text, not 7"):
            one.app.query("totals", 7)

    def test_an_app_that_does_not_run_has_no_state(self, site):
        with pytest.raises(StateUnavailable, match="does not run in this process"):
            visits().query("totals", "ann")
        runner = site.start()
        site.wait_until_held(runner)
        runner.stop()
        with pytest.raises(StateUnavailable):
            runner.app.query("totals", "ann")

    def test_a_partition_of_another_worker_raises_held_elsewhere(self, site, one):
        two = site.start()
        site.wait_until_held(one, two)
        site.send([(name, 1) for name in NAMES])
        site.wait_until_counted(one, len(NAMES))
        for name in NAMES:
            holder, other = (one, two) if partition_of(name) in site.held(one) else (two, one)
            assert holder.app.query("totals", name).visits == 1
            with pytest.raises(HeldElsewhere, match=f"partition {partition_of(name)} of store 'totals'"):
                other.app.query("totals", name)


def write_claim(broker: MemoryBroker, name: bytes, value: bytes) -> None:
    producer = broker.producer()
    producer.produce(Output("visits-replicas", [name], [value], [0], partition=0))
    producer.flush(5)
    producer.close()


def shows(runner: Runner, path: str, status: int) -> bool:
    return runner.status(path)[0] == status


class TestForeignRecordsAmongWorkers:
    @pytest.mark.parametrize("address", ["nowhere.invalid:80", "a..b:1", "127.0.0.1:99999"])
    def test_each_key_is_found_again_after_a_false_claim(self, site, monkeypatch, address):
        # Claims are looked up for each question.
        monkeypatch.setattr("streams.queries.directory.KNOWN_SECONDS", 0.0)
        first, second = site.start(), site.start()
        site.wait_until_held(first, second)
        site.send([(name, 1) for name in NAMES])
        for runner in (first, second):
            site.wait_until_counted(runner, len(NAMES))
        write_claim(site.broker, b"\xff", b"no JSON")
        claim = {"address": address, "stores": {"totals": list(range(PARTITIONS))}}
        write_claim(site.broker, b"elsewhere", json.dumps(claim).encode())

        def answered() -> bool:
            answers = [
                runner.get(f"/stores/totals/keys/{name}") for runner in (first, second) for name in NAMES
            ]
            # What cannot be answered meanwhile says so.
            assert {status for status, _ in answers} <= {200, 503}
            return all(status == 200 for status, _ in answers)

        soon(answered)
        site.wait_until_counted(first, len(NAMES))
        assert first.status("/readyz") == (200, "ok\n")

    def test_health_fails_when_the_directory_cannot_be_read(self, site, one, monkeypatch):
        monkeypatch.setattr("streams.queries.directory.TROUBLE_SECONDS", 0.1)
        monkeypatch.setattr("streams.queries.directory.ANSWER_SECONDS", 0.1)
        go_on = threading.Event()

        def hang(step: str) -> None:
            if step == "poll" and threading.current_thread().name == "streams-replicas":
                go_on.wait(30)

        site.broker.before = hang
        for path in ("/readyz", "/healthz"):
            soon(partial(shows, one, path, 503))
            assert "visits-replicas" in one.status(path)[1]
        text = one.status("/metrics")[1]
        (age,) = [line for line in text.splitlines() if line.startswith("streams_replicas_age_seconds")]
        assert float(age.split()[1]) > 0.1
        monkeypatch.undo()
        go_on.set()
        for path in ("/readyz", "/healthz"):
            soon(partial(shows, one, path, 200))


class TestOverHttp:
    def test_stores_are_listed(self, site, one):
        site.send([(name, 1) for name in NAMES])
        site.wait_until_counted(one, len(NAMES))
        status, answer = one.get("/stores")
        assert status == 200
        assert answer["stores"] == [
            {
                "name": name,
                "windowed": windowed,
                "key": "Text",
                "partitions": PARTITIONS,
                "held": [0, 1, 2, 3],
                "restoring": [],
                "approximate_count": len(NAMES),
            }
            for name, windowed in (("totals", False), ("by-window", True), ("last", False))
        ]

    def test_keys_windows_and_ranges(self, site, one):
        site.send([("a/b ü", 3), ("bob", 5)])
        site.wait_until_counted(one, 2)
        key = quote("a/b ü", safe="")
        assert one.get(f"/stores/totals/keys/{key}") == (
            200,
            {"key": "a/b ü", "value": {"visits": 1, "sum": 3}},
        )
        assert one.get(f"/stores/by-window/windows/{key}") == (
            200,
            {"key": "a/b ü", "windows": [{"start": 0, "end": 10_000, "value": 1}]},
        )
        assert one.get(f"/stores/by-window/windows/{key}?start=1") == (200, {"key": "a/b ü", "windows": []})
        assert one.get("/stores/last?start=b&limit=5") == (
            200,
            {"partitions": [0, 1, 2, 3], "entries": [{"key": "bob", "value": 5}]},
        )
        assert one.get("/stores/by-window?stop=1&limit=1") == (
            200,
            {
                "partitions": [0, 1, 2, 3],
                "entries": [{"key": "a/b ü", "start": 0, "end": 10_000, "value": 1}],
            },
        )

    def test_failed_queries_have_a_reason(self, one):
        for path, status, reason, words in (
            ("/stores/nothing/keys/a", 404, "unknown store", "stores are: totals"),
            ("/stores/nothing", 404, "unknown store", "no store 'nothing'"),
            ("/stores/totals/keys/nobody", 404, "no value", "no value for the key 'nobody'"),
            ("/stores/totals/keys/%FF", 400, "bad request", "keys of Text"),
            ("/stores/by-window/keys/a", 400, "bad request", "query its windows"),
            ("/stores/totals/windows/a", 400, "bad request", "query its keys"),
            ("/stores/totals?limit=0", 400, "bad request", "limit must be 1 or more"),
            ("/stores/totals?limit=x", 400, "bad request", "limit must be a whole number"),
            ("/stores/by-window?start=soon", 400, "bad request", "start must be a whole number"),
            (
                "/stores/totals/keys/a?partition=9",
                400,
                "bad request",
                "has no partition 9: its partitions are 0 to 3",
            ),
        ):
            found, answer = one.get(path)
            assert (found, answer["reason"]) == (status, reason), path
            assert words in answer["error"]

    def test_each_worker_answers_for_the_keys_of_the_other(self, site, one):
        two = site.start()
        site.wait_until_held(one, two)
        site.send([(name, 1) for name in NAMES])
        site.wait_until_counted(one, len(NAMES))
        for runner in (one, two):
            for name in NAMES:
                assert runner.get(f"/stores/totals/keys/{name}") == (
                    200,
                    {"key": name, "value": {"visits": 1, "sum": 1}},
                )
                assert runner.get(f"/stores/by-window/windows/{name}")[1]["windows"][0]["value"] == 1
                assert runner.get(f"/stores/last/keys/{name}?partition={partition_of(name)}")[0] == 200
            here = [entry["key"] for entry in runner.get("/stores/totals")[1]["entries"]]
            assert here == [name for name in NAMES if partition_of(name) in site.held(runner)]
            _, everywhere = runner.get("/stores/totals?all=true")
            assert [entry["key"] for entry in everywhere["entries"]] == NAMES
            assert everywhere["partitions"] == [0, 1, 2, 3]
            _, some = runner.get("/stores/by-window?all=true&limit=7")
            assert [entry["key"] for entry in some["entries"]] == NAMES[:7]

    def test_a_question_from_another_worker_is_not_passed_on(self, site, one):
        two = site.start()
        site.wait_until_held(one, two)
        foreign = next(name for name in NAMES if partition_of(name) in site.held(two))
        status, answer = one.get(f"/stores/totals/keys/{foreign}", **{"X-Streams-Asked-By": "somebody:1"})
        assert (status, answer["reason"]) == (421, "held elsewhere")

    def test_a_holder_that_does_not_answer_is_unavailable(self, site, one):
        two = site.start(http_advertised_host="127.0.0.2")
        two_port = two.port
        site.wait_until_held(one, two)
        foreign = next(name for name in NAMES if partition_of(name) in site.held(two))
        # It listens at one address and advertises another.
        status, answer = one.get(f"/stores/totals/keys/{foreign}")
        assert (status, answer["reason"]) == (503, "unavailable")
        assert f"no worker answers for partition {partition_of(foreign)}" in answer["error"]
        assert one.get("/stores/totals?all=true")[0] == 503
        assert two_port != one.port

    def test_the_state_of_a_stopped_worker_is_read_from_its_successor(self, site, one):
        two = site.start()
        site.wait_until_held(one, two)
        site.send([(name, 1) for name in NAMES])
        site.wait_until_counted(one, len(NAMES))
        foreign = [name for name in NAMES if partition_of(name) in site.held(two)]
        assert one.get(f"/stores/totals/keys/{foreign[0]}")[0] == 200
        two.stop()
        site.wait_until_held(one)
        assert [one.get(f"/stores/totals/keys/{name}")[0] for name in foreign] == [200] * len(foreign)


def test_the_command_asks_any_worker_for_everything(site, one):
    two = site.start()
    site.wait_until_held(one, two)
    site.send([(name, 1) for name in NAMES])
    site.wait_until_counted(one, len(NAMES))

    def lines(*arguments: str) -> list[Any]:
        done = CliRunner().invoke(cli, ["query", *arguments, "--url", f"http://127.0.0.1:{two.port}"])
        if done.exception is not None:
            raise done.exception
        return [json.loads(line) for line in done.stdout.splitlines()]

    assert [item["name"] for item in lines()] == ["totals", "by-window", "last"]
    assert [item["key"] for item in lines("totals")] == NAMES
    assert [item["key"] for item in lines("totals", "--start", "user-03", "--limit", "2")] == NAMES[3:5]
    for name in NAMES[:5]:
        assert lines("totals", name) == [{"key": name, "value": {"visits": 1, "sum": 1}}]
        assert lines("by-window", name, "--stop", "1") == [{"start": 0, "end": 10_000, "value": 1}]
    with pytest.raises(QueryError, match="has no value for the key 'nobody'"):
        lines("totals", "nobody")
    with pytest.raises(QueryError, match="no store 'nothing'"):
        lines("nothing", "a")
    with pytest.raises(StateUnavailable, match="no worker answers"):
        CliRunner().invoke(cli, ["query", "--url", "http://127.0.0.1:1"], catch_exceptions=False)


def test_state_that_is_being_restored_or_not_committed_is_not_shown(site):
    app = visits()
    partitions = {"numbers": PARTITIONS}
    for store in ("totals", "by-window", "last"):
        site.broker.admin().create_topics([NewTopic(name=f"visits-{store}-changelog", partitions=PARTITIONS)])
    worker = site.make_worker(app, "slot", partitions=partitions)
    queries = Queries(app.topology, worker, partitions)
    assert queries.held() == {}
    with pytest.raises(HeldElsewhere):
        queries.get("totals", "ann")
    worker.start()
    worker.run_once()
    assert queries.held()["totals"] == list(range(PARTITIONS))
    assert queries.status()[0].restoring == list(range(PARTITIONS))
    with pytest.raises(StateUnavailable, match=f"partition {partition_of('ann')} of store 'totals' is being"):
        queries.get("totals", "ann")
    with pytest.raises(StateUnavailable):
        queries.entries("totals")
    while queries.status()[0].restoring:
        worker.run_once()
    site.send([("ann", 1)])
    while queries.get("totals", "ann") is None:
        worker.run_once()
    assert queries.get("totals", "ann").visits == 1
    worker.close()
    with pytest.raises(HeldElsewhere):
        queries.get("totals", "ann")


def by_bytes(**settings: Any) -> App:
    app = App("visits", guarantee="at_least_once", state_store="memory", **settings)
    app.stream("numbers", key=Bytes(), value=Json(int)).group_by_key().count("totals").to("totals")
    return app


def test_keys_of_bytes_are_text_or_base64(site):
    runner = site.start(by_bytes)
    site.wait_until_held(runner)
    site.write(Output("numbers", [b"ann", b"\xfb\xff\x00"], [b"1", b"2"], [0, 0]))
    encoded = base64.b64encode(b"\xfb\xff\x00").decode()
    assert "+" in encoded or "/" in encoded
    soon(lambda: runner.get("/stores/totals/keys/%FB%FF%00?encoding=base64")[0] != 503)
    soon(lambda: runner.get(f"/stores/totals/keys/{quote(encoded, safe='')}?encoding=base64")[0] == 200)
    assert runner.get("/stores/totals/keys/ann") == (200, {"key": "ann", "value": 1})
    _, answer = runner.get("/stores/totals?encoding=base64")
    assert [entry["key"] for entry in answer["entries"]] == [base64.b64encode(b"ann").decode(), encoded]
    _, answer = runner.get(f"/stores/totals?encoding=base64&start={encoded}")
    assert [entry["key"] for entry in answer["entries"]] == [encoded]
    assert runner.get("/stores/totals/keys/%FB%FF%00")[1]["error"].count("encoding=base64") == 1
    assert runner.get("/stores/totals/keys/!?encoding=base64")[0] == 400


def answered(runner: Runner, path: str) -> bool:
    return runner.get(path)[0] not in (404, 503)


def test_keys_in_any_encoding_reach_the_same_value_directly_and_forwarded(site):
    one, two = site.start(by_bytes), site.start(by_bytes)
    site.wait_until_held(one, two)
    keys = [bytes([number, 255 - number, 43, 47, 32]) for number in range(12)]
    site.write(Output("numbers", keys, [b"1"] * len(keys), [0] * len(keys)))
    for key in keys:
        encoded = base64.b64encode(key).decode()
        spellings = [
            f"{quote(key, safe='')}?encoding=percent",
            f"{quote(encoded, safe='')}?encoding=base64",
            f"{encoded.replace('+', '-').replace('/', '_')}?encoding=base64",
            f"{quote(encoded.rstrip('='), safe='')}?encoding=base64",
        ]
        for runner in (one, two):
            for spelling in spellings[1:]:
                path = f"/stores/totals/keys/{spelling}"
                soon(partial(answered, runner, path))
                assert runner.get(path) == (200, {"key": encoded, "value": 1}), (key, path)
            status, answer = runner.get(f"/stores/totals/keys/{spellings[0]}")
            assert (status, answer["error"]) == (400, "unknown encoding 'percent': only base64 is supported")
            done = CliRunner().invoke(
                cli, ["query", "totals", encoded, "--base64", "--url", f"http://127.0.0.1:{runner.port}"]
            )
            assert json.loads(done.stdout) == {"key": encoded, "value": 1}
    done = CliRunner().invoke(cli, ["query", "totals", "--base64", "--url", f"http://127.0.0.1:{one.port}"])
    assert sorted(base64.b64decode(json.loads(line)["key"]) for line in done.stdout.splitlines()) == sorted(
        keys
    )


def test_what_cannot_be_a_key_or_a_limit_is_a_bad_request(site, one):
    site.wait_until_held(one)
    for path in (
        "/stores/totals/keys/%FF",
        "/stores/totals?limit=10001",
        "/stores/totals?limit=0",
        "/stores/totals?limit=" + "9" * 5000,
        "/stores/totals?encoding=hex",
        "/stores/totals/keys/a?encoding=base64",
    ):
        status, answer = one.get(path)
        assert (status, answer["reason"]) == (400, "bad request"), path
    assert one.get("/stores/totals?limit=10000")[0] == 200


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:8080", "is not the URL of a worker"),
        ("ftp://127.0.0.1:8080", "is not the URL of a worker"),
        ("http://", "is not the URL of a worker"),
        ("http://127.0.0.1:8080/?a=b", "is not the URL of a worker"),
        ("http://[::1", "is not a URL: Invalid IPv6 URL"),
        ("http://127.0.0.1:99999", "is not a URL: Port out of range"),
        ("http://ann:secret@127.0.0.1:8080", "is not supported"),
    ],
)
def test_a_url_that_cannot_be_honoured_is_refused(url, says):
    with pytest.raises(ConfigurationError) as caught:
        CliRunner().invoke(cli, ["query", "--url", url], catch_exceptions=False)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_command_honours_scheme_and_path(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "certificate.pem"))
    tls = Tls(*[str(tmp_path / "certificate.pem")] * 2)
    seen: list[str | None] = []

    def stores(request: Request) -> Response:
        seen.append(request.headers.get("authorization"))
        return Response(200, b'{"stores": []}', "application/json")

    with HttpServer("127.0.0.1", 0, {}, {"/proxied/{app}/stores": stores}, tls=tls) as server:
        url = f"https://localhost:{server.port}/proxied/shop/"
        token = {"STREAMS_HTTP_TOKEN": "long-enough"}
        with pytest.raises(QueryError, match=r"not trusted[\s\S]*STREAMS_HTTP_TLS_CA"):
            CliRunner().invoke(cli, ["query", "--url", url], catch_exceptions=False, env=token)
        assert seen == []
        trusting = token | {"STREAMS_HTTP_TLS_CA": str(tmp_path / "ca.pem")}
        assert CliRunner().invoke(cli, ["query", "--url", url], env=trusting).exit_code == 0
        assert seen == ["Bearer long-enough"]
        # Without TLS, it would be sent to any program that answers at the port.
        with pytest.raises(StateUnavailable):
            CliRunner().invoke(
                cli, ["query", "--url", url.replace("https", "http")], catch_exceptions=False, env=trusting
            )
        assert len(seen) == 1


def test_workers_ask_each_other_by_https(site, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "certificate.pem"))
    files = {"certificate": "certificate.pem", "key": "certificate.pem", "ca": "ca.pem"}
    settings = {f"http_tls_{name}": str(tmp_path / file) for name, file in files.items()}
    one, two = site.start(**settings), site.start(**settings)
    trusting = client_tls(settings["http_tls_ca"])

    def get(runner: Runner, path: str) -> Any:
        response = ask(f"127.0.0.1:{runner.port}", path, headers={}, timeout=10, tls=trusting)
        return None if response is None else (response.status, json.loads(response.body))

    def answered(runner: Runner, name: str) -> bool:
        answer = get(runner, f"/stores/totals/keys/{name}")
        return answer is not None and answer[0] == 200

    site.send([(name, 1) for name in NAMES])
    for name in NAMES:
        for runner in (one, two):
            soon(partial(answered, runner, name))


def by_pair(**settings: Any) -> App:
    app = App("visits", guarantee="at_least_once", state_store="memory", **settings)
    numbers = app.stream("numbers", key=Text(), value=Json(int))
    numbers.group_by(
        lambda value: (value % 2, "odd" if value % 2 else "even"), key=Json(tuple[int, str])
    ).count("totals")
    return app


def test_keys_of_json_are_json(site):
    site.broker.admin().create_topics([NewTopic(name="visits-totals-repartition", partitions=PARTITIONS)])
    runner, other = site.start(by_pair), site.start(by_pair)
    site.wait_until_held(runner, other)
    site.send([("a", 1), ("b", 2), ("c", 3)])
    path = f"/stores/totals/keys/{quote(json.dumps([1, 'odd']), safe='')}"
    everything = [{"key": [0, "even"], "value": 1}, {"key": [1, "odd"], "value": 2}]

    def complete(asked: Runner) -> bool:
        status, answer = asked.get("/stores/totals?all=true")
        return status == 200 and bool(answer["entries"] == everything)

    for asked in (runner, other):
        soon(partial(complete, asked))
        assert asked.get(path) == (200, {"key": [1, "odd"], "value": 2})
    assert runner.get("/stores/totals/keys/odd")[0] == 400


def partition_of(name: str) -> int:
    return partition_for(name.encode(), PARTITIONS)
