"""Jobs: functions, lists with reasons, one job, schedules, and actions that are commands for the queue."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, Every, hours
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.broker.reading import read_to_end
from streams.console.audit import TOPIC
from streams.jobs.commands import Command
from streams.jobs.current import current_job
from streams.jobs.operator import own_topics
from streams.jobs.queue_client import QueueClient
from streams.jobs.record import JobRecord
from streams.jobs.survey import survey
from tests.console.pages import answer, browsing, report, reporting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streams.broker.kafka import KafkaBroker


def shop() -> App:
    app = App("shop", job_partitions=1)

    @app.job(name="mail", key=lambda address: address)
    def mail(address: str) -> None:
        raise AssertionError("no worker runs")

    @app.job(name="report", schedule=Every(hours(1)))
    def make_report() -> None:
        raise AssertionError("no worker runs")

    return app


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def queue(broker: MemoryBroker) -> Iterator[QueueClient]:
    broker.admin().create_topics(
        [
            NewTopic(name=name, partitions=topic.partitions, settings=dict(topic.settings))
            for name, topic in own_topics("shop", 1).items()
        ]
    )
    client = QueueClient("shop", lambda: broker, lambda _: None)
    yield client
    client.close()


def enqueue(queue: QueueClient, job: str, **fields: Any) -> str:
    arguments = msgspec.Raw(msgspec.json.encode(fields.pop("arguments", {})))
    return queue.enqueue_again(JobRecord(job, arguments, **fields))


def commands(broker: MemoryBroker) -> list[Command]:
    return [
        msgspec.json.decode(value, type=Command)
        for fetched in read_to_end(broker, ["shop-job-commands"])
        for value in fetched.values()
        if value is not None
    ]


def test_jobs_are_counted_by_function_and_each_has_its_reason(broker, queue):
    first = enqueue(queue, "mail", key="a@b", arguments={"address": "a@b"})
    enqueue(queue, "mail", key="a@b")
    enqueue(queue, "gone")
    with browsing(shop(), broker) as browser:
        page = browser.wait("/apps/shop/jobs", "1 to 3 of 3, oldest first")
        assert "No worker runs: the app's group has no members" in page
        assert "there is no live worker: the app's group has no members" in page
        assert "gone not in the program" in page
        only = browser.text("/apps/shop/jobs?function=mail&key=a%40b")
        assert "1 to 2 of 2" in only
        assert "No job of these." in browser.text("/apps/shop/jobs?state=retrying")
        assert "is no state of a job" in browser.text("/apps/shop/jobs?state=asleep")
        assert "is not a duration" in browser.text("/apps/shop/jobs?since=2x3h")
        assert "1 to 2 of 2" in browser.text("/apps/shop/jobs?function=mail&since=1h")
        shown = browser.wait(f"/apps/shop/jobs/{first}", "Arguments")
        assert '{ "address": "a@b" }' in shown
        browser.wait("/apps/shop/jobs/0-77", "There is no job 0-77")
        assert browser.client.get("/apps/shop/jobs/seven").status_code == 404


def test_a_long_list_has_parts(broker, queue):
    for number in range(60):
        enqueue(queue, "mail", key=f"k{number}")
    with browsing(shop(), broker) as browser:
        assert "Next" in browser.wait("/apps/shop/jobs", "1 to 50 of 60")
        page = browser.wait("/apps/shop/jobs?part=2&function=mail", "51 to 60 of 60")
        assert "Previous page 2 of 2" in page
        assert "k59" in page


def test_arguments_are_masked(broker, queue):
    job = enqueue(queue, "mail", arguments={"address": "a@b", "text": "hello"})
    with browsing(shop(), broker, masked=["address"]) as browser:
        page = browser.wait(f"/apps/shop/jobs/{job}", "Arguments")
    assert '{ "address": "•••", "text": "hello" }' in page
    assert "a@b" not in page


def test_a_job_is_cancelled_and_a_function_paused_by_commands_that_name_who_gave_them(broker, queue):
    job = enqueue(queue, "mail")
    with browsing(shop(), broker) as browser:
        said = browser.send(f"/apps/shop/jobs/{job}", "/apps/shop/jobs/cancel", id=job)
        assert f"job {job} is asked to end" in said
        said = browser.send("/apps/shop/jobs", "/apps/shop/jobs/pause", function="mail")
        assert "function mail: paused; it is applied when a worker starts" in said
        browser.send("/apps/shop/jobs", "/apps/shop/jobs/resume", key="a@b")
        listed = browser.wait("/apps/shop/jobs/commands", "pause function mail testclient, console by 0 of 1")
        assert listed.index("resume key a@b") < listed.index("pause function mail") < listed.index("cancel")
    given = [(item.action.value, item.jobs, item.function, item.key) for item in commands(broker)]
    assert given == [("cancel", [job], None, None), ("pause", [], "mail", None), ("resume", [], None, "a@b")]
    outcomes = [
        msgspec.json.decode(value or b"")["outcome"].partition(":")[0]
        for fetched in read_to_end(broker, [TOPIC])
        for value in fetched.values()
    ]
    assert outcomes == ["begun", "done"] * 3


def test_a_purge_cancels_the_jobs_that_were_counted_and_no_others(broker, queue):
    wanted = [enqueue(queue, "mail") for _ in range(3)]
    enqueue(queue, "report")
    with browsing(shop(), broker) as browser:
        path = "/apps/shop/jobs/purge?function=mail&asked=1"
        browser.wait(path, "Type their number, 3, to confirm")
        late = enqueue(queue, "mail")
        fields = {"function": "mail", "asked": "1"}
        token = browser.client.get(path).text.split('name="form_token" value="')[1].split('"')[0]
        refused = browser.client.post(
            "/apps/shop/jobs/purge", data={"form_token": token, **fields, "count": "4"}
        )
        assert (refused.status_code, commands(broker)) == (400, [])
        for bad in ({}, {"form_token": "0"}):
            refused = browser.client.post("/apps/shop/jobs/purge", data={**bad, **fields, "count": "3"})
            assert refused.status_code == 403
        assert browser.client.get("/apps/shop/jobs/cancel").status_code in (404, 405)
        assert "3 jobs are cancelled" in browser.send(path, "/apps/shop/jobs/purge", **fields, count="3")
        # What ended is not cancelled, whatever the number.
        assert "have ended cannot be cancelled" in browser.text("/apps/shop/jobs/purge?state=failed&asked=1")
    (command,) = commands(broker)
    assert command.jobs == wanted
    assert late not in command.jobs


def test_a_read_only_console_has_no_actions(broker, queue):
    job = enqueue(queue, "mail")
    with browsing(shop(), broker, read_only=True) as browser:
        page = browser.wait("/apps/shop/jobs", "1 to 1 of 1")
        assert "Pause" not in page.replace("Paused", "")
        assert "Cancel" not in browser.wait(f"/apps/shop/jobs/{job}", "What happened")
        assert browser.client.post("/apps/shop/jobs/cancel", data={"id": job}).status_code == 403


def test_without_the_program_jobs_are_listed_and_no_function_is_called_unknown(broker, queue):
    enqueue(queue, "mail")
    states = [item.case.state.value for item in survey(broker, "shop", None)]
    assert states == ["waiting"]
    assert [item.case.state.value for item in survey(broker, "shop", {})] == ["unknown"]


def test_workers_say_how_many_run(broker, queue):
    job = enqueue(queue, "mail")
    metrics = 'streams_jobs_running{job="mail"} 1.0\n'
    running = {
        "id": job,
        "job": "mail",
        "state": "running",
        "why": "it runs for 3 s",
        "enqueued": 1,
        "tries": 0,
    }
    answers = {f"/jobs/{job}": answer(running)}
    with (
        reporting(report("shop", "w1"), metrics=metrics, answers=answers) as address,
        browsing(shop(), broker, urls=[address]) as browser,
    ):
        page = browser.wait("/apps/shop/jobs", "it runs for 3 s")
    assert "none due oldest job that is due 1 running 0 waiting" in page


def test_schedules_have_their_next_runs(broker, queue):
    enqueue(queue, "mail")
    with browsing(shop(), broker) as browser:
        page = browser.wait("/apps/shop/jobs/schedules", "nothing yet")
    assert "report report" in page


def test_an_app_without_jobs_says_so(broker):
    app = App("shop")
    app.stream("orders").to("out")
    with browsing(app, broker) as browser:
        assert "This app has no jobs" in browser.text("/apps/shop/jobs")


@pytest.mark.kafka
def test_a_running_job_is_shown_with_its_progress_and_cancelled(
    kafka_bootstrap: str, kafka: KafkaBroker, prefix: str, tmp_path: Path
) -> None:
    app = App(
        f"{prefix}-shop",
        bootstrap_servers=kafka_bootstrap,
        http_port=0,
        state_dir=str(tmp_path),
        job_partitions=1,
    )

    @app.job(name="hold")
    def hold() -> None:
        while True:
            current_job().report("page 7 of 9")
            current_job().check_cancelled()
            time.sleep(0.02)

    stop = threading.Event()
    worker = threading.Thread(target=lambda: app.run(stop=stop))
    worker.start()
    base = f"/apps/{app.name}/jobs"
    try:
        job = hold.enqueue().id
        with browsing(app, kafka) as browser:
            page = browser.wait(base, "and reports: page 7 of 9")
            assert "1 running 0 waiting" in page
            browser.wait(f"{base}/{job}", "It reports: page 7 of 9")
            said = browser.send(base, f"{base}/pause", function="hold")
            assert "function hold: paused" in said
            assert "when a worker starts" not in said
            browser.wait(base, "function hold paused by testclient, console since")
            browser.wait(f"{base}/commands", "by all partitions")
            assert "was cancelled at" in browser.send(f"{base}/{job}", f"{base}/cancel", id=job)
            browser.wait(f"{base}?state=cancelled", "it was cancelled at")
            again = browser.send(f"{base}/{job}", f"{base}/retry", id=job)
            assert f"job {job} is enqueued again, as job 0-" in again
            browser.wait(base, "function hold is paused by testclient, console since")
    finally:
        stop.set()
        worker.join(60)
