"""``streams jobs`` on a broker in memory: what it says with and without workers, and what its commands do."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from streams import App, days, hours, milliseconds, minutes, seconds
from streams.broker import GroupSettings
from streams.broker.memory import MemoryBroker
from streams.cli import dead_letters as letters_module, jobs as jobs_module, lag as lag_module
from streams.cli.main import cli
from streams.jobs.current import current_job
from streams.jobs.limits import Limit
from streams.jobs.retry import Retry
from streams.jobs.unfinished import read_unfinished
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from streams.broker import Consumer

WAIT = 20.0


class Shop:
    """An app on a broker in memory, with the command line for it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broker = MemoryBroker()
        self.gate = threading.Event()
        self.began: list[str] = []
        self.saw_cancel: list[str] = []
        self.monkeypatch = monkeypatch
        self.app = self.program(folder)
        for module in (jobs_module, lag_module, letters_module):
            monkeypatch.setattr(module, "load_app", lambda _target: self.app)

    def program(self, folder: Path) -> App:
        app = App("shop", job_partitions=1, state_dir=str(folder), commit_interval=0.02)
        self.monkeypatch.setattr(app, "broker", lambda **_: self.broker)

        @app.job(name="step", key=lambda key, number: key, retry=Retry(3, backoff=hours(1), jitter=0))
        def step(key: str, number: int) -> int:
            if number < 0:
                raise OSError("not\nnow")
            return number

        @app.job(name="wait", timeout=milliseconds(50))
        def wait(name: str) -> None:
            self.began.append(name)
            deadline = time.monotonic() + WAIT
            while not self.gate.wait(0.005) and time.monotonic() < deadline:
                if current_job().cancelled:
                    self.saw_cancel.append(name)
                current_job().check_cancelled()

        @app.job(name="mail", limit=Limit(rate=1, per=hours(1), key=lambda host: host))
        def mail(host: str) -> None: ...

        self.step, self.wait, self.mail = step, wait, mail
        return app

    @contextmanager
    def worker(self, *, http: bool = False) -> Iterator[None]:
        stop = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            try:
                self.app.run(broker=self.broker, stop=stop)
            except BaseException as error:  # noqa: BLE001 - the test reports it
                failed.append(error)

        if http:
            with closing(socket.create_server(("127.0.0.1", 0))) as free:
                self.port = free.getsockname()[1]
            self.app.settings = msgspec.structs.replace(self.app.settings, http_port=self.port)
        thread = threading.Thread(target=run)
        thread.start()
        if http:
            self.until(self.listens)
        try:
            yield
        finally:
            self.gate.set()
            stop.set()
            thread.join(WAIT)
            self.gate.clear()
        assert not failed, failed

    def listens(self) -> bool:
        try:
            urlopen(f"http://127.0.0.1:{self.port}/readyz").close()
        except OSError:
            return False
        return True

    def call(self, *words: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli, ["jobs", words[0], "shop:app", *words[1:]])
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    def waits_for_attempt(self, job: str, attempt: int) -> bool:
        fields = self.list().get(job, {})
        return fields.get("state") == "retrying" and fields["tries"] == attempt - 1

    def list(self, *words: str) -> dict[str, dict[str, Any]]:
        lines = map(json.loads, self.call("list", "--json", *words).splitlines())
        return {line["id"]: line for line in lines}

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(tmp_path, monkeypatch)


def test_without_workers_each_job_says_why_it_does_not_run(shop: Shop) -> None:
    shop.step.enqueue("a", 1)
    shop.step.using(delay=days(3)).enqueue("a", 2)
    shop.step.using(expires=seconds(3600)).enqueue("b", 3)
    found = shop.list()
    assert [line["state"] for line in found.values()] == ["waiting", "delayed", "waiting"]
    assert found["0-0"]["why"] == "there is no live worker: the app's group has no members"
    due = "it is due in (3 d|2 d 23 h); there is no live worker now"
    assert re.fullmatch(due, found["0-1"]["why"])
    assert found["0-0"]["arguments"] == {"key": "a", "number": 1}
    assert list(shop.list("--key", "b")) == ["0-2"]
    assert list(shop.list("--state", "delayed")) == ["0-1"]
    assert list(shop.list("--since", "1h")) == ["0-0", "0-1", "0-2"]
    assert list(shop.list("--until", "1h")) == []
    assert list(shop.list("--function", "mail")) == []


def test_a_worker_s_jobs_are_read_from_the_topics(shop: Shop) -> None:
    with shop.worker():
        shop.step.enqueue("a", 1).result(timeout=seconds(WAIT))
        shop.step.enqueue("k", -1)
        shop.step.enqueue("k", 2)
        shop.step.using(delay=hours(5)).enqueue("k", 3)
        shop.mail.enqueue("a.de").result(timeout=seconds(WAIT))
        shop.mail.enqueue("a.de")
        waiting = shop.wait.enqueue("w")
        shop.until(
            lambda: {line["state"] for line in shop.list().values()} >= {"retrying", "limited", "delayed"}
        )
        shop.until(lambda: len(shop.list()) == 5)
        found = list(shop.list().values())
        assert [line["job"] for line in found] == ["step", "step", "step", "mail", "wait"]
        retrying, held, delayed, limited, running = found
        assert re.fullmatch(
            "attempt 2 of 3 begins in (59 min|1 h).*, after OSError: not now", retrying["why"]
        )
        assert held["state"] == "held"
        holding = f'key "k" is held by job {retrying["id"]}, which waits for its next attempt, in '
        assert held["why"].startswith(holding)
        assert delayed["why"].startswith(("it is due in 4 h 59 min", "it is due in 5 h"))
        assert limited["why"].startswith('limit "mail:a.de" opens at ')
        assert running["why"] == "it runs, or begins as soon as its worker has a free place for it"
        assert "attempt 2 of 3" in shop.call("show", retrying["id"])
        shop.gate.set()
        waiting.result(timeout=seconds(WAIT))
    assert len(shop.list()) == 4
    ended = shop.list("--state", "succeeded")
    assert [line["job"] for line in ended.values()] == ["step", "mail", "wait"]
    shown = json.loads(shop.call("show", waiting.id, "--json"))
    assert shown["why"].startswith("it succeeded at")
    assert shown["result"] is None
    shop.call("show", "0-999", code=1)


def test_cancel_ends_what_waits_and_what_runs(shop: Shop) -> None:
    with shop.worker():
        running = shop.wait.enqueue("running")
        delayed = shop.step.using(delay=hours(1)).enqueue("a", 1)
        shop.until(lambda: "delayed" in {line["state"] for line in shop.list().values()})
        assert "was cancelled at" in shop.call("cancel", delayed.id)
        assert "was cancelled at" in shop.call("cancel", running.id)
        assert shop.saw_cancel == ["running"]
        shop.call("cancel", running.id, code=1)
        shop.until(lambda: not shop.list())
    assert len(shop.list("--state", "cancelled")) == 2


def test_a_job_that_runs_while_its_partition_leaves_and_comes_back_is_cancelled_there(shop: Shop) -> None:
    members: list[Consumer] = []
    make = shop.broker.consumer

    def consumer(settings: GroupSettings) -> Consumer:
        made = make(settings)
        if settings.group == "shop":
            members.append(made)
        return made

    shop.monkeypatch.setattr(shop.broker, "consumer", consumer)
    with shop.worker():
        running = shop.wait.enqueue("w")
        shop.until(lambda: shop.began)
        shop.broker.expire(members[0])
        shop.step.enqueue("a", 1).result(timeout=seconds(WAIT))
        assert "was cancelled at" in shop.call("cancel", running.id)
    assert shop.began == shop.saw_cancel == ["w"], "it was executed again beside itself"


def test_retry_enqueues_again_what_was_cancelled_and_hastens_what_waits(shop: Shop) -> None:
    again = shop.step.using(delay=hours(1)).enqueue("a", 7)
    shop.call("cancel", again.id, "--wait", "0")
    with shop.worker():
        shop.until(lambda: not shop.list())
        text = shop.call("retry", again.id)
        new = text.split()[-1]
        assert shop.app.job_handle(new).result(timeout=seconds(WAIT)) == 7
        shop.call("retry", new, code=1)
        failing = shop.step.enqueue("k", -1)
        for tries in (1, 2):
            shop.until(partial(shop.waits_for_attempt, failing.id, tries + 1))
            shop.call("retry", failing.id)
        shop.until(lambda: not shop.list())
    (line,) = shop.list("--state", "failed").values()
    assert line["tries"] == 3
    assert "failed for good" in line["why"]
    assert "streams jobs retry" in refused(shop)
    # Its result was deleted, and its dead letter is still there.
    admin = shop.broker.admin()
    admin.delete_records(admin.end_offsets([TopicPartition("shop-job-results", 0)]))
    assert "is enqueued again" in shop.call("retry", failing.id)
    assert [line["arguments"] for line in shop.list().values()] == [{"key": "k", "number": -1}]


def refused(shop: Shop) -> str:
    """Why the command for dead letters does not retry a job."""
    result = CliRunner().invoke(cli, ["dead-letters", "retry", "shop:app", "--dry-run"])
    assert result.exit_code == 0, result.output
    return result.output


def test_pause_and_resume(shop: Shop) -> None:
    shop.call("pause", "step")
    with shop.worker():
        step = shop.step.enqueue("a", 1)
        shop.mail.enqueue("b.de").result(timeout=seconds(WAIT))
        shop.until(lambda: [line["state"] for line in shop.list().values()] == ["paused"])
        assert "function step is paused by " in shop.list()[step.id]["why"]
        shop.call("resume", "step")
        assert step.result(timeout=seconds(WAIT)) == 1
        # In effect at once, for the jobs that are enqueued after the command as well.
        shop.call("pause", "--all")
        assert [list(part.pauses) for part in read_unfinished(shop.broker, "shop")] == [["all"]]
        again = shop.step.enqueue("a", 2)
        shop.call("resume", "--all")
        assert [list(part.pauses) for part in read_unfinished(shop.broker, "shop")] == [[]]
        assert again.result(timeout=seconds(WAIT)) == 2
    shop.call("pause", code=1)
    shop.call("pause", "step", "--all", code=1)


def test_pause_says_so_if_a_worker_has_not_applied_it(shop: Shop) -> None:
    with shop.worker():
        shop.step.enqueue("a", 1).result(timeout=seconds(WAIT))
    assert "not applied" not in shop.call("pause", "step")
    # A member that does nothing, as one that is frozen.
    member = shop.broker.consumer(GroupSettings(group="shop"))
    member.subscribe(["shop-jobs"], NoListener())
    member.poll(1, 0)
    assert "1 partitions of the queue have not applied it within 0.1 s" in shop.call(
        "pause", "step", "--wait", "0.1"
    )
    assert "not applied" not in shop.call("pause", "step", "--wait", "0")
    member.close()


class NoListener:
    """Of a member that does nothing with its partitions."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> None: ...

    def revoked(self, partitions: Sequence[TopicPartition]) -> None: ...

    def lost(self, partitions: Sequence[TopicPartition]) -> None: ...


def test_purge_counts_and_asks(shop: Shop) -> None:
    for number in range(5):
        shop.step.using(delay=minutes(10)).enqueue("a", number)
    shop.mail.enqueue("a.de")
    shop.call("purge", code=1)
    shop.call("purge", "--state", "failed", code=1)
    shop.call("purge", "--function", "step", code=1)  # nobody answers
    assert json.loads(shop.call("purge", "--function", "step", "--older-than", "1h", "--json", "--yes")) == {
        "jobs": 0
    }
    assert json.loads(shop.call("purge", "--function", "step", "--json", "--yes")) == {"jobs": 5}
    with shop.worker():
        shop.until(lambda: not shop.list())
    assert len(shop.list("--state", "cancelled")) == 5


def test_check_reads_all_arguments_by_the_program_s_signatures(shop: Shop) -> None:
    shop.step.enqueue("a", 1)
    shop.step.using(delay=days(9)).enqueue("b", 2)
    shop.mail.enqueue("a.de")
    assert "all 3 jobs fit" in shop.call("check")
    changed = App("shop")
    shop.monkeypatch.setattr(changed, "broker", lambda **_: shop.broker)

    @changed.job(name="step")
    def step(key: str, number: list[int]) -> None: ...

    shop.app = changed
    lines = [json.loads(line) for line in shop.call("check", "--json", code=1).splitlines() if line[0] == "{"]
    assert [(line["job"], line["count"], line["first"]) for line in lines] == [
        ("mail", 1, "0-2"),
        ("step", 2, "0-0"),
    ]
    assert "arguments do not fit" in lines[1]["reason"]


def test_the_lag_of_a_queue_is_what_could_run(shop: Shop) -> None:
    def lag() -> int:
        result = CliRunner().invoke(cli, ["lag", "shop:app", "--json"])
        assert result.exit_code == 0, result.output
        (line,) = [
            line for line in map(json.loads, result.output.splitlines()) if line["topic"] == "shop-jobs"
        ]
        return int(line["lag"])

    def metrics() -> dict[tuple[str, ...], float]:
        url = f"http://127.0.0.1:{shop.port}/metrics"
        families = text_string_to_metric_families(urlopen(url).read().decode())
        return {
            (
                sample.name.removeprefix("streams_"),
                *(sample.labels[name] for name in sorted(sample.labels)),
            ): sample.value
            for family in families
            for sample in family.samples
        }

    shop.step.using(delay=hours(1)).enqueue("a", 1)
    running = [shop.wait.enqueue("w") for _ in range(2)]
    assert lag() == 2
    with shop.worker(http=True):
        for number in range(50):
            shop.step.enqueue("b", number)
        shop.step.enqueue("k", -1)
        shop.until(lambda: metrics().get(("jobs_retrying", "step")) == 1)
        shop.until(lambda: lag() == 2)
        found = metrics()
        assert found["jobs_delayed", "step"] == 1
        assert found["jobs_running", "wait"] == 2
        assert found["jobs_ended_total", "succeeded", "step"] == 50
        assert found["lag", "0", "shop-jobs"] == 2
        assert found["jobs_oldest_due_seconds",] == 0
        shop.until(lambda: metrics().get(("jobs_overdue",)) == 2)
        shop.call("pause", "--all")
        shop.call("purge", "--state", "delayed", "--yes")
        shop.until(lambda: ("jobs_delayed", "step") not in metrics())
        shop.mail.enqueue("c.de")
        shop.until(lambda: metrics().get(("jobs_waiting", "mail")) == 1)
        assert metrics()["jobs_oldest_due_seconds",] > 0
        assert metrics()["lag", "0", "shop-jobs"] == 2
        shop.gate.set()
        for handle in running:
            handle.result(timeout=seconds(WAIT))
        shop.until(lambda: lag() == 0)
        assert metrics()["lag", "0", "shop-jobs"] == 0


def test_a_job_is_asked_for_over_http(shop: Shop) -> None:
    def get(path: str) -> tuple[int, dict[str, Any]]:
        try:
            with urlopen(f"http://127.0.0.1:{shop.port}{path}") as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)

    with shop.worker(http=True):
        done = shop.step.enqueue("a", 7)
        done.result(timeout=seconds(WAIT))
        running = shop.wait.enqueue("w")
        failing = shop.step.enqueue("k", -1)
        behind = shop.step.enqueue("k", 2)
        status, fields = get(f"/jobs/{done.id}")
        assert (status, fields["state"], fields["result"], fields["tries"]) == (200, "succeeded", 7, 1)
        shop.until(lambda: get(f"/jobs/{running.id}")[1].get("state") == "running")
        assert get(f"/jobs/{running.id}")[1]["why"].startswith("it runs for ")
        shop.until(lambda: get(f"/jobs/{failing.id}")[1].get("state") == "retrying")
        status, fields = get(f"/jobs/{behind.id}")
        assert (status, fields["state"]) == (200, "held")
        assert f"is held by job {failing.id}, which waits for its next attempt" in fields["why"]
        assert get("/jobs/0-9999")[0] == 404
        assert get("/jobs/7-0")[0] == 404
        assert get("/jobs/nothing")[0] == 400
