"""Functions that are given many jobs at once, in the driver."""

from __future__ import annotations

import msgspec
import pytest

from streams import App, milliseconds, seconds
from streams.errors import StreamsError, TopologyError
from streams.jobs.current import current_job, current_jobs
from streams.jobs.limits import Limit
from streams.jobs.retry import Retry, RetryLater
from streams.testing import TopologyDriver

NOON = 1_800_000_000_000


class Mail(msgspec.Struct):
    to: str
    number: int = 0


class Work:
    """An app whose function notes the batches that it is given, and a driver that fills its queue."""

    driver: TopologyDriver

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.app = App("work")

    def begin(self) -> None:
        self.driver = TopologyDriver(self.app, clock=NOON, check_dead_letters=False)

    def send(self, *calls) -> None:
        for call in calls:
            key = call.partition_key
            self.driver.send_bytes(
                "work-jobs", call.payload(self.driver.clock), key=None if key is None else key.encode()
            )

    def wait(self, count: int) -> None:
        """Let that many seconds pass, in steps."""
        for _ in range(count * 4):
            self.driver.advance(milliseconds(250))

    def ends(self) -> dict[str, tuple[str, int, object]]:
        return {
            end.key: (end.value.ending.value, end.value.tries, msgspec.json.decode(end.value.result))
            for end in self.driver.read("work-job-results")
        }


@pytest.fixture
def work():
    return Work()


def test_a_batch_begins_when_it_is_full_or_its_first_job_has_waited(work: Work):
    @work.app.job(name="send", batch=3, within=seconds(5))
    def send(mails: list[Mail]) -> list[str]:
        work.batches.append([mail.number for mail in mails])
        return [mail.to for mail in mails]

    work.begin()
    work.send(*(send.call(Mail("a", number)) for number in range(5)))
    assert work.batches == [[0, 1, 2]]
    work.wait(4)
    assert work.batches == [[0, 1, 2]]
    work.wait(1)
    assert work.batches == [[0, 1, 2], [3, 4]]
    assert work.ends()["0-4"] == ("succeeded", 1, "a")
    assert work.driver.store("jobs") == {}


def test_without_within_a_batch_is_what_waits_now(work: Work):
    @work.app.job(name="send", batch=10)
    def send(mails: list[Mail]) -> None:
        work.batches.append([mail.number for mail in mails])

    work.begin()
    work.send(
        send.using(delay=seconds(1)).call(Mail("a", 1)), send.using(delay=seconds(1)).call(Mail("a", 2))
    )
    work.send(send.call(Mail("a", 3)))
    work.wait(1)
    assert work.batches == [[3], [1, 2]]


def test_the_first_job_of_a_function_can_follow_one_of_its_key_that_expires_when_a_batch_begins(work: Work):
    @work.app.job(name="send", batch=3, within=seconds(5), key=lambda mails: "a")
    def send(mails: list[Mail]) -> None:
        work.batches.append([mail.number for mail in mails])

    @work.app.job(name="receive", batch=3, key=lambda mails: "a")
    def receive(mails: list[Mail]) -> None:
        work.batches.append([mail.number for mail in mails])

    work.begin()
    work.send(send.using(expires=seconds(3)).call(Mail("a", 1)), receive.call(Mail("a", 2)))
    work.wait(6)
    assert work.batches == [[2]]
    assert {job: ending for job, (ending, _, _) in work.ends().items()} == {
        "0-0": "expired",
        "0-1": "succeeded",
    }


def test_each_item_succeeds_or_fails_alone(work: Work):
    @work.app.job(
        name="send", batch=4, within=seconds(1), retry=Retry(2, backoff=seconds(10), jitter=0, on=(OSError,))
    )
    def send(mails: list[Mail]) -> list[str | Exception]:
        work.batches.append([mail.number for mail in mails])
        outcomes = {1: OSError("down"), 2: ValueError("wrong"), 3: RetryLater(after=seconds(3), alone=True)}
        again = [job.attempt > 1 or len(work.batches) > 1 for job in current_jobs()]
        return [
            "sent" if retried else outcomes.get(mail.number, "sent")
            for mail, retried in zip(mails, again, strict=True)
        ]

    work.begin()
    work.send(*(send.call(Mail("a", number)) for number in range(4)))
    ends = work.ends()
    assert set(ends) == {"0-0", "0-2"}
    work.wait(20)
    assert work.batches == [[0, 1, 2, 3], [3], [1]]
    ends |= work.ends()
    assert ends["0-1"] == ("succeeded", 2, "sent")
    assert ends["0-2"] == ("failed", 1, None)
    assert ends["0-3"] == ("succeeded", 1, "sent")
    (letter,) = work.driver.dead_letters()
    assert dict(letter.headers or ())["__streams.errors.message"] == b"wrong"


def test_an_exception_or_a_wrong_number_of_results_fails_all_of_them(work: Work):
    returned: list[object] = [["one"], "no list", OSError("down")]

    @work.app.job(name="send", batch=2, retry=Retry(3, backoff=seconds(1), jitter=0))
    def send(mails: list[Mail]):
        work.batches.append([mail.number for mail in mails])
        outcome = returned[len(work.batches) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    work.begin()
    work.send(
        send.using(delay=seconds(1)).call(Mail("a", 1)), send.using(delay=seconds(1)).call(Mail("a", 2))
    )
    work.wait(10)
    assert work.batches == [[1, 2], [1, 2], [1, 2]]
    assert work.ends() == {"0-0": ("failed", 3, None), "0-1": ("failed", 3, None)}
    messages = [
        dict(letter.headers or ())["__streams.errors.message"] for letter in work.driver.dead_letters()
    ]
    assert messages == [b"down", b"down"]


def test_of_each_key_a_batch_has_one_job_and_the_others_follow_in_order(work: Work):
    @work.app.job(name="send", batch=10, within=seconds(1), key=lambda mail: mail.to)
    def send(mails: list[Mail]) -> None:
        work.batches.append([mail.number for mail in mails])

    work.begin()
    work.send(*(send.call(Mail(to, number)) for number, to in enumerate("aabac")))
    work.wait(10)
    assert work.batches == [[0, 2, 4], [1], [3]]


def test_limits_count_each_job_of_a_batch(work: Work):
    @work.app.job(name="send", batch=10, limit=Limit(rate=3, per=seconds(10)))
    def send(mails: list[Mail]) -> None:
        work.batches.append([mail.number for mail in mails])

    work.begin()
    later = send.using(delay=seconds(1))
    work.send(*(later.call(Mail("a", number)) for number in range(5)))
    work.wait(1)
    assert work.batches == [[0, 1, 2]]
    work.wait(10)
    assert sorted(number for batch in work.batches for number in batch) == [0, 1, 2, 3, 4]


def test_a_batch_waits_over_a_restart_and_is_not_lost(work: Work):
    @work.app.job(name="send", batch=10, within=seconds(5))
    def send(mails: list[Mail]) -> None:
        work.batches.append([mail.number for mail in mails])

    work.begin()
    work.send(*(send.call(Mail("a", number)) for number in range(3)))
    work.driver.restart()
    work.wait(4)
    assert work.batches == []
    work.driver.restart()
    work.wait(6)
    assert work.batches == [[0, 1, 2]]


def test_an_async_function_takes_a_list_too(work: Work):
    @work.app.job(name="send", batch=2)
    async def send(mails: list[Mail]) -> list[int]:
        work.batches.append([mail.number for mail in mails])
        return [mail.number for mail in mails]

    work.begin()
    work.send(send.call(Mail("a", 1)))
    assert work.ends() == {"0-0": ("succeeded", 1, 1)}


def test_the_jobs_of_a_batch_are_known_in_it(work: Work):
    seen: list[object] = []

    @work.app.job(name="send", batch=2, within=seconds(1))
    def send(mails: list[Mail]) -> None:
        seen.extend(job.id for job in current_jobs())
        with pytest.raises(StreamsError, match="current_jobs"):
            current_job()

    work.begin()
    work.send(send.call(Mail("a", 1)), send.call(Mail("a", 2)))
    assert seen == ["0-0", "0-1"]


def test_what_is_no_batch_is_refused(work: Work):
    with pytest.raises(TopologyError, match="given a list of jobs"):

        @work.app.job(name="send", batch=2)  # type: ignore[arg-type]
        def send(mail: Mail) -> None: ...

    with pytest.raises(TopologyError, match="exactly one parameter"):

        @work.app.job(name="send", batch=2)  # type: ignore[arg-type]
        def send_two(mails: list[Mail], more: int) -> None: ...

    with pytest.raises(StreamsError, match="within needs batch"):

        @work.app.job(name="send", within=milliseconds(2))  # type: ignore[call-overload, untyped-decorator]
        def send_one(mail: Mail) -> None: ...

    @work.app.job(name="send", batch=2)
    def send_three(mails: list[Mail]) -> None: ...

    with pytest.raises(TypeError, match="cannot be enqueued"):
        send_three.call([Mail("a")])  # type: ignore[arg-type]
