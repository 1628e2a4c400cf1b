"""A short part of the campaign of jobs, always the same faults; ``make faults ONLY=jobs`` runs all."""

from __future__ import annotations

import msgspec
import pytest

from streams.jobs.record import Ending, JobEnd, JobRecord, Release
from tests.faults.jobs_app import Note
from tests.faults.jobs_campaign import JobsCampaign
from tests.faults.jobs_verdicts import (
    Appended,
    Attempt,
    Enqueued,
    Frozen,
    History,
    Released,
    judge,
    judge_transactions,
    pair,
)
from tests.faults.verdicts import Verdict


@pytest.mark.kafka
@pytest.mark.timeout(280)
def test_jobs_keep_their_guarantees_in_faults(tmp_path):
    faults = ("worker killed and its disk lost", "worker stopped")
    outcome = JobsCampaign(tmp_path, 1, nodes=1, workers=2).run(faults)
    assert outcome.verdict.violations == []
    assert set(outcome.faults) == set(faults)
    assert set(outcome.jobs) == {"charge", "later", "limited", "narrow", "once", "fleeting", "ping"}
    assert {"B", "C", "D", "E", "M", "O", "Q", "R", "X"} <= set(outcome.verdict.checked)


def enqueued(offset: int, job: str, arguments: bytes = b'{"number":0}', **options) -> Enqueued:
    return Enqueued(f"0-{offset}", offset, 0, JobRecord(job, msgspec.Raw(arguments), **options))


def end(offset: int, job: str, ending: Ending = Ending.SUCCEEDED, at: int = 100, **more) -> Appended:
    result = msgspec.Raw(b"0" if ending is Ending.SUCCEEDED else b"null")
    return Appended(JobEnd(f"0-{offset}", job, ending, 1, 0, at, result, **more), at)


def attempt(offset: int, job: str, begun: int, ended: int, pid: int = 1) -> Attempt:
    first, last = (Note(f"q-0-{offset}", job, 1, pid, at) for at in (begun, ended))
    last.ending = "succeeded"
    return Attempt(first, last)


def rules(history: History) -> set[str]:
    verdict = Verdict()
    judge(verdict, history)
    return {violation.rule for violation in verdict.violations}


def good() -> History:
    """Two jobs of one key, one that was delayed, one that failed, and one that was left out."""
    return History(
        "q",
        [
            enqueued(0, "ping", key="k"),
            enqueued(1, "ping", key="k"),
            enqueued(2, "ping", due=50),
            enqueued(3, "charge", b'{"number":5}', key="c"),
            enqueued(4, "once", b'{"what":0}', unique="u"),
            enqueued(5, "once", b'{"what":0}', unique="u"),
        ],
        [
            end(0, "ping"),
            end(1, "ping", at=200),
            end(2, "ping"),
            end(3, "charge", Ending.FAILED),
            end(4, "once"),
            end(5, "once", Ending.DUPLICATE, at=90, duplicate_of="0-4"),
        ],
        [Released(Release("0-2", "ping", 50, 51), 52)],
        ["0-3"],
        [
            attempt(0, "ping", 10, 20),
            attempt(1, "ping", 30, 40),
            attempt(2, "ping", 60, 61),
            attempt(4, "once", 70, 80),
        ],
    )


def test_what_is_right_passes():
    assert rules(good()) == set()


def test_ends():
    history = good()
    history.ends.append(end(0, "ping"))
    assert rules(history) == {"Q"}
    history = good()
    del history.ends[0]
    assert rules(history) == {"Q"}
    history = good()
    history.ends[0] = end(0, "ping", Ending.FAILED)
    assert "Q" in rules(history)


def test_a_beginning_after_the_end():
    history = good()
    history.attempts.append(attempt(2, "ping", 101, 102, pid=2))
    assert rules(history) == {"B"}
    history.frozen.append(Frozen(2, 90, 100))
    assert rules(history) == set()


def test_order():
    history = good()
    history.attempts[1] = attempt(1, "ping", 15, 40)
    assert rules(history) == {"O"}
    history.attempts[1] = attempt(1, "ping", 5, 6)
    assert rules(history) == {"O"}


def test_releases():
    history = good()
    history.releases *= 2
    assert rules(history) == {"D"}
    history.releases.clear()
    assert rules(history) == {"D"}
    history = good()
    history.attempts[2] = attempt(2, "ping", 49, 61)
    assert rules(history) == {"D"}


def test_dead_letters():
    history = good()
    history.letters *= 2
    assert rules(history) == {"X"}
    history.letters[:] = ["0-3", "0-0"]
    assert rules(history) == {"X"}
    history.letters.clear()
    assert rules(history) == {"X"}


def test_limits():
    history = good()
    for offset in range(10, 14):
        history.jobs.append(enqueued(offset, "narrow"))
        history.ends.append(end(offset, "narrow"))
        history.attempts.append(attempt(offset, "narrow", 10, 20))
    assert rules(history) == {"R"}
    history = good()
    for offset in range(10, 300):
        history.jobs.append(enqueued(offset, "limited"))
        history.ends.append(end(offset, "limited"))
        history.attempts.append(attempt(offset, "limited", 10, 20))
    assert rules(history) == {"R"}


def test_duplicates():
    history = good()
    history.ends[5] = end(5, "once", Ending.DUPLICATE, at=101, duplicate_of="0-4")
    assert rules(history) == {"U"}


def test_what_was_acknowledged():
    history = good()
    history.acknowledged.append("0-9")
    assert rules(history) == {"E"}
    history = good()
    history.orders = 1
    assert rules(history) == {"E"}
    verdict = Verdict()
    judge_transactions(verdict, [enqueued(0, "charge", b'{"number":101}')], 2, 100)
    assert [violation.rule for violation in verdict.violations] == ["E"]


def test_an_attempt_without_an_end_is_one_whose_process_has_ended():
    first, second = attempt(0, "ping", 1, 2), attempt(1, "ping", 3, 4)
    assert second.ended is not None
    assert [each.ended for each in pair([first.begun, second.begun, second.ended])] == [None, second.ended]
