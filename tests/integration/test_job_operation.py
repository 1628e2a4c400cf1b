"""Commands for jobs, and jobs over HTTP, with workers on the real broker."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
import pytest

from streams.jobs.queue_client import QueueClient
from streams.jobs.record import JobRecord
from tests.integration.conftest import HERE, Copy
from tests.support.commands import run_streams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kafka


class Jobs(Copy):
    """The app of ``job_operation_app``."""

    name = "job_operation"

    def __init__(self, servers: str, prefix: str, folder: Path) -> None:
        super().__init__(servers, prefix, folder)
        self.gate = folder / "gate"
        self.gate.mkdir()
        self.environment["JOBS_GATE"] = str(self.gate)
        self.client = QueueClient(self.group, lambda: self.broker, lambda _broker: None)

    def command(self, *words: str) -> str:
        """``streams jobs`` with these words, for the app."""
        return self.streams("jobs", words[0], "job_operation_app:app", *words[1:])

    def streams(self, *words: str) -> str:
        """What a command prints."""
        environment = {
            **os.environ,
            "JOB_OPERATION_PREFIX": self.prefix,
            "STREAMS_BOOTSTRAP_SERVERS": self.servers,
            **self.environment,
        }
        done = run_streams(*words, folder=HERE, environment=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def enqueue(self, job: str, key: str) -> str:
        arguments = msgspec.Raw(json.dumps({"key": key}).encode())
        return self.client.enqueue_again(JobRecord(job, arguments, key=key))

    def began(self, key: str) -> bool:
        return self.gate.joinpath(f"{key}-began").exists()

    def ending(self, job: str, timeout: float = 30.0) -> str:
        end = self.client.wait(job, timeout)
        assert end is not None, f"job {job} has not ended"
        return end.ending.value

    def is_in(self, state: str, url: str, job: str) -> bool:
        return get(f"{url}/jobs/{job}")[1].get("state") == state

    def stop(self) -> None:
        for worker in self._workers:
            worker.stop()

    def ports(self) -> list[str]:
        return [event["url"] for worker in self._workers for event in worker.events("http listening")]


def get(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urlopen(url) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def jobs(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(kafka_bootstrap, prefix, tmp_path)
    yield made
    made.client.close()
    made.end()


def test_commands_reach_the_workers_that_have_the_jobs(jobs: Jobs) -> None:
    for _ in range(2):
        jobs.start(http_port=0)
    jobs.wait_for(lambda: len(jobs.ports()) == 2, 60, "two workers listen")
    jobs.wait_for(
        lambda: {f"{jobs.group}-jobs", f"{jobs.group}-job-results"} <= jobs.broker.admin().topics().keys(),
        60,
        "the topics exist",
    )
    running = jobs.enqueue("hold", "a")
    behind = jobs.enqueue("note", "a")
    asleep = jobs.enqueue("sleep", "b")
    jobs.wait_for(lambda: jobs.began("a") and jobs.began("b"), 60, "two jobs run")

    # Both workers know of a job, whichever of them has it.
    for url in jobs.ports():
        jobs.wait_for(partial(jobs.is_in, "running", url, running), 30, f"{url} finds it")
        # Also one that was not read yet.
        assert get(f"{url}/jobs/{behind}")[0] == 200
        jobs.wait_for(partial(jobs.is_in, "held", url, behind), 30, f"{url} has read the one behind it")
        _, fields = get(f"{url}/jobs/{behind}")
        assert fields["why"] == f'key "a" is held by job {running}, which runs'
    listed = [json.loads(line) for line in jobs.command("list", "--json").splitlines()]
    assert {line["id"] for line in listed} == {running, behind, asleep}

    # What waits never begins, what runs is asked to end, and a coroutine is cancelled.
    assert "was cancelled at" in jobs.command("cancel", behind)
    assert "was cancelled at" in jobs.command("cancel", asleep)
    assert "was cancelled at" in jobs.command("cancel", running)
    assert [jobs.ending(job) for job in (behind, asleep, running)] == ["cancelled"] * 3
    assert json.loads(jobs.command("show", running, "--json"))["tries"] == 1
    for url in jobs.ports():
        assert get(f"{url}/jobs/{running}")[1]["state"] == "cancelled"
        assert get(f"{url}/jobs/0-999999")[0] == 404

    # What is paused does not begin, also after a restart, and others do.
    assert "not applied" not in jobs.command("pause", "note", "--wait", "60")
    paused = [jobs.enqueue("note", f"paused-{number}") for number in range(20)]
    other = jobs.enqueue("hold", "c")
    jobs.gate.joinpath("c").touch()
    assert jobs.ending(other) == "succeeded"
    jobs.stop()
    jobs.start()
    last = jobs.enqueue("hold", "d")
    jobs.gate.joinpath("d").touch()
    assert jobs.ending(last, 60) == "succeeded"
    states = [json.loads(line)["state"] for line in jobs.command("list", "--json").splitlines()]
    assert states == ["paused"] * 20
    assert not any(jobs.began(f"paused-{number}") for number in range(20))
    jobs.command("resume", "note")
    assert [jobs.ending(job) for job in paused] == ["succeeded"] * 20
    assert not jobs.began(behind)


def test_the_places_that_jobs_need_are_measured_by_the_published_ports(jobs: Jobs) -> None:
    jobs.start(http_port=0, job_concurrency=2)
    jobs.wait_for(jobs.ports, 60, "a worker listens")
    done = [jobs.enqueue("note", f"n{number}") for number in range(20)]
    for job in done:
        assert jobs.ending(job) == "succeeded"
    for number in range(3):
        jobs.enqueue("hold", f"h{number}")
    jobs.wait_for(lambda: jobs.began("h0") and jobs.began("h1"), 60, "both places are taken")
    printed = jobs.streams("size", "job_operation_app:app", "--over", "60s", "--measure", "1s", "--json")
    found = json.loads(printed)["jobs"]
    functions = {item["job"]: item for item in found["functions"]}
    # Of jobs that have never ended, those that run tell how many places they need: with a reserve, three.
    assert functions["hold"] == {
        "job": "hold",
        "per_second": 0.0,
        "seconds": None,
        "at_once": 2.0,
        "waiting": 1,
    }
    assert functions["note"]["seconds"] < 1
    assert (found["places"], found["wanted"], found["enough"]) == (2, 3, False)
    said = jobs.streams("size", "job_operation_app:app", "--over", "60s", "--measure", "1s")
    assert "Set job_concurrency=3 for 1 worker" in " ".join(said.split())
    for number in range(3):
        (jobs.gate / f"h{number}").touch()
