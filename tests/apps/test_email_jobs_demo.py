"""A small run of ``make demo-jobs``, on the session's broker, and what its comparison finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from apps.email_jobs.accounts import Accounts, job_of
from apps.email_jobs.smtp_server import Delivery
from apps.email_jobs.traffic import Enqueued, Kind, plan
from streams.devstack.rabbitmq import LocalRabbitMQ
from streams.jobs.record import Ending, JobEnd
from tests.support.processes import running
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
OTHERS = ["Celery", "Redis", *(() if LocalRabbitMQ.missing() else ("RabbitMQ",))]
"""The systems of other clients."""


def environment(kafka_bootstrap: str) -> dict[str, str]:
    return os.environ | {"KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap, "PYTHONPATH": str(ROOT)}


@pytest.mark.kafka
def test_every_job_is_accounted_for_although_a_worker_is_killed(tmp_path, kafka_bootstrap):
    done = subprocess.run(
        [sys.executable, "-m", "apps.email_jobs.demo", "--jobs", "600", "--seed", "7"],
        cwd=tmp_path,
        env=environment(kafka_bootstrap),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every job is accounted for." in done.stdout
    report = json.loads((tmp_path / "build" / "demo-jobs-report.json").read_text())
    assert report["accounted"]
    others = {kind: count for kind, count in report["kinds"].items() if kind.startswith("through ")}
    assert others == {f"through {name}": 15 for name in OTHERS}
    succeeded = 570 + 15 * len(OTHERS)
    assert report["jobs"] == succeeded + 30
    assert report["endings"] == {"succeeded": succeeded, "failed": 30}
    assert report["dead_letters"] == 30
    assert report["mails"] == succeeded + report["repeated"]
    assert len(report["survived"]) == 1
    assert len(report["checks"]) == 12
    assert all(report["checks"].values())


@pytest.mark.kafka
def test_nothing_is_left_running_after_ctrl_c(tmp_path, kafka_bootstrap):
    process = subprocess.Popen(
        [sys.executable, "-m", "apps.email_jobs.demo", "--jobs", "2000"],
        cwd=tmp_path,
        env=environment(kafka_bootstrap),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        journal = tmp_path / "build" / "demo-jobs-client-0.jsonl"
        wait_until(lambda: journal.exists() and journal.stat().st_size > 0, 120, what="a job enqueued")
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 3
        # As a terminal does: to all processes of the group.
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 130, output
        assert output.decode().rstrip().endswith("Stopped.")
        assert running(started) == []
        assert not (tmp_path / "build" / "demo-jobs-state").exists()
    finally:
        process.kill()
        process.wait()


def test_a_plan_has_as_many_jobs_as_wanted_and_is_the_same_for_each_client():
    planned = plan(1_000, 3)
    assert planned.jobs == 1_000
    assert planned == plan(1_000, 3)
    assert planned != plan(1_000, 4)
    assert {mail.kind for mail in planned.mails} == set(Kind)


NOON = 1_800_000_000


class Story:
    """Jobs of each kind as they should go, which a test changes."""

    def __init__(self) -> None:
        self.enqueued: dict[str, Enqueued] = {}
        self.ends: list[JobEnd] = []
        self.letters: list[str] = []
        self.released: list[str] = []
        self.deliveries: list[Delivery] = []
        self.settled = NOON + 0.0
        for number in range(3):
            self.job(f"0-{number}", Kind.ORDERED, "ann@in-order-0.example", begun=NOON + number)
        for number in range(10, 14):
            self.job(f"0-{number}", Kind.LIMITED, f"p-{number}@limited-0.example", begun=NOON + number / 2)
        self.job("1-0", Kind.DELAYED, "p@delayed-0.example", begun=NOON + 6, due=NOON + 5)
        self.released.append("1-0")
        self.job("1-1", Kind.TEMPORARY, "p@refused-for-now-0.example", tries=2, begun=NOON + 2)
        self.deliver("1-1", "p@refused-for-now-0.example", NOON + 1, "451 4.7.1 later")
        self.job(
            "1-2", Kind.PERMANENT, "nobody@refused-for-good-0.example", begun=NOON + 1, ending=Ending.FAILED
        )
        self.letters.append("1-2")
        self.job("1-3", Kind.BUSY, "p@server-busy-0.example", begun=NOON + 3)
        self.deliveries.append(Delivery("p@server-busy-0.example", NOON, ended=NOON, answer="421 busy"))
        self.job("1-4", Kind.LONG, "p@long-0.example", begun=NOON + 1, ended=NOON + 3)
        for number, begun in ((5, NOON), (6, NOON + 5)):
            self.deliver(f"1-{number}", "new@signup-0.example", begun)
            self.end(f"1-{number}", NOON + 10)
        self.released.append("1-6")
        self.answers: dict[str, str] = {}
        for number, system in enumerate(("celery", "redis")):
            self.deliver(f"2-{number}", f"person-0@{system}-0.example", NOON)
            self.end(f"2-{number}", NOON + 10)
        self.answers["person-0@celery-0.example"] = "<x-jobs-2-0@example.com>"

    def job(
        self,
        job: str,
        kind: Kind,
        to: str,
        *,
        begun: float,
        ended: float | None = None,
        due: int | None = None,
        tries: int = 1,
        ending: Ending = Ending.SUCCEEDED,
    ) -> None:
        self.enqueued[job] = Enqueued(job, kind, to, NOON * 1000, None if due is None else due * 1000)
        if ending is Ending.SUCCEEDED:
            self.deliver(job, to, begun, ended=ended)
        else:
            self.deliveries.append(Delivery(to, begun, ended=begun, answer="550 no such user"))
        self.end(job, NOON + 10, tries=tries, ending=ending)

    def deliver(
        self, job: str, to: str, begun: float, answer: str = "250 OK", *, ended: float | None = None
    ) -> None:
        key = f"<x-jobs-{job}@example.com>"
        self.deliveries.append(
            Delivery(to, begun, key, "News", begun + 0.1 if ended is None else ended, answer)
        )

    def end(self, job: str, ended: int, *, tries: int = 1, ending: Ending = Ending.SUCCEEDED) -> None:
        self.ends.append(JobEnd(job, "send-mail", ending, tries, NOON * 1000, ended * 1000))

    def wrong(self) -> list[str]:
        accounts = Accounts(
            enqueued=self.enqueued,
            signups=["new@signup-0.example"],
            elsewhere={"Celery": ["person-0@celery-0.example"], "Redis": ["person-0@redis-0.example"]},
            answers=self.answers,
            ends=self.ends,
            letters=self.letters,
            released=self.released,
            deliveries=self.deliveries,
            settled=self.settled,
            per_second=2,
            at_once=2,
        )
        return [line for check in accounts.checks() for line in check.wrong]


def test_a_run_as_it_should_be_has_nothing_wrong():
    assert Story().wrong() == []


def lost(story: Story) -> None:
    story.ends = [end for end in story.ends if end.id != "0-1"]


def ended_twice(story: Story) -> None:
    story.end("0-1", NOON + 11)


def not_sent(story: Story) -> None:
    story.deliveries = [each for each in story.deliveries if "-1-4@" not in each.message_id]


def sent_and_failed(story: Story) -> None:
    story.deliver("1-2", "nobody@refused-for-good-0.example", NOON + 1)


def one_mail_for_a_signup(story: Story) -> None:
    story.deliveries = [each for each in story.deliveries if "-1-6@" not in each.message_id]
    story.ends = [end for end in story.ends if end.id != "1-6"]


def twice_through_redis(story: Story) -> None:
    story.deliver("2-2", "person-0@redis-0.example", NOON)
    story.end("2-2", NOON + 10)


def another_answer(story: Story) -> None:
    story.answers["person-0@celery-0.example"] = "<x-jobs-2-1@example.com>"


def again_once_recorded(story: Story) -> None:
    story.deliver("1-4", "p@long-0.example", NOON + 11)


def again_without_a_reason(story: Story) -> None:
    story.deliver("1-4", "p@long-0.example", NOON + 5)


def two_letters(story: Story) -> None:
    story.letters.append("1-2")


def a_letter_too_many(story: Story) -> None:
    story.letters.append("0-1")


def a_try_too_many(story: Story) -> None:
    story.ends = [end for end in story.ends if end.id != "1-1"]
    story.end("1-1", NOON + 10, tries=3)
    story.deliver("1-1", "p@refused-for-now-0.example", NOON, "451 later")


def out_of_order(story: Story) -> None:
    first, second, *_ = story.deliveries
    first.message_id, second.message_id = second.message_id, first.message_id


def two_of_a_recipient_at_once(story: Story) -> None:
    story.deliveries[0].ended = NOON + 1.5


def early(story: Story) -> None:
    next(each for each in story.deliveries if each.to == "p@delayed-0.example").begun = NOON + 4.9


def released_twice(story: Story) -> None:
    story.released.append("1-0")


def too_fast(story: Story) -> None:
    for each in story.deliveries:
        if each.to.endswith("@limited-0.example"):
            each.begun, each.ended = NOON + 0.1, NOON + 0.1


def too_many_at_once(story: Story) -> None:
    for each in story.deliveries:
        if each.to.endswith("@limited-0.example"):
            each.ended = NOON + 9


def not_left_alone(story: Story) -> None:
    story.deliveries += [Delivery("p@server-busy-0.example", NOON, ended=NOON, answer="421 busy")] * 4


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lost, "job 0-1 has no end"),
        (ended_twice, "job 0-1 has 2 ends"),
        (not_sent, "job 1-4 has succeeded, and the server has no mail of it"),
        (sent_and_failed, "job 1-2 has not succeeded, and the server has a mail of it"),
        (one_mail_for_a_signup, "new@signup-0.example has signed up and has got 1 mails"),
        (twice_through_redis, "person-0@redis-0.example has got 2 mails of a client that uses Redis"),
        (another_answer, "person-0@celery-0.example: the caller has got '<x-jobs-2-1@example.com>'"),
        (again_once_recorded, "job 1-4 was executed 1000 ms after its end"),
        (again_without_a_reason, "job 1-4 was executed once more, 1.0 s after that"),
        (two_letters, "job 1-2 is 2 dead letters"),
        (a_letter_too_many, "job 0-1 is a dead letter"),
        (a_try_too_many, "job 1-1 has ended as succeeded after 3 tries"),
        (out_of_order, "ann@in-order-0.example: job 0-1 came before job 0-0 had ended"),
        (two_of_a_recipient_at_once, "ann@in-order-0.example: job 0-1 came before job 0-0 had ended"),
        (early, "job 1-0 was executed 100 ms early"),
        (released_twice, "job 1-0 was released 2 times"),
        (too_fast, "limited-0.example: mail 4 came too early"),
        (too_many_at_once, "limited-0.example: 4 at once, 2 allowed"),
        (not_left_alone, "server-busy-0.example: 5 mails were refused"),
    ],
)
def test_what_should_not_be_is_found(change, found):
    story = Story()
    change(story)
    assert found in story.wrong()


def test_the_id_of_a_job_is_read_from_a_message_id():
    assert job_of("<demo-a1b2c3-email-jobs-jobs-11-204@example.com>") == "11-204"
