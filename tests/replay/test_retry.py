"""Dead letters are retried by workers on the memory broker: each at its step, once, in order."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from streams import App, Json, Record, Text, fail, skip
from streams.broker import NewTopic
from streams.errors import BrokerError, OutcomeUnknown, ProcessingError, TransactionAborted
from streams.records import Output
from streams.replay.dead_letters import ledger
from streams.replay.dead_letters.retry import order_retry, plan_retry
from streams.replay.dead_letters.rows import Selection
from streams.runtime import retry_requests
from streams.state.memory import MemoryDatabases
from streams.testing import TopologyDriver
from tests.support.connectors import Database, MemorySink
from tests.support.retrying import Retrying

if TYPE_CHECKING:
    from streams.runtime.worker import Worker

GUARANTEES = ("exactly_once", "at_least_once")


class Broken:
    """User code that fails on values with these prefixes, until it is fixed."""

    def __init__(self, *prefixes: str) -> None:
        self.prefixes = prefixes
        self.seen: list[str] = []

    def __call__(self, value: str) -> str:
        self.seen.append(value)
        if value.startswith(self.prefixes) and self.prefixes:
            kind = ValueError if value.startswith("a") else KeyError
            raise kind(f"{value[0]} is not supported")
        return value.upper()


def two_steps(broken: Broken, **settings: Any) -> App:
    app = App("shop", dead_letter_limit=1.0, **settings)
    lines = app.stream("in", key=Text(), value=Text())
    lines.map(broken, name="work").to("out", value=Text())
    lines.map(str.lower, name="other").to("copy", value=Text())
    return app


def test_a_thousand_letters_of_two_kinds_and_the_fix_of_one():
    """Of 500 letters of kind A, 10 fail again; B is untouched, and a second retry adds nothing."""
    broken = Broken("a", "b")
    site = Retrying(two_steps(broken))
    worker = site.worker()
    site.send([f"{kind}{number}" for number in range(500) for kind in "ab"])
    site.settle(worker)
    assert not site.values("out")
    broken.prefixes = ("b", *(f"a{number}" for number in range(490, 500)))
    assert len(plan_retry(site.letters, Selection(exception="ValueError")).ready) == 500
    assert not site.values("out")
    site.retry(exception="ValueError")
    assert len(site.selected(states=["waiting"])) == 500
    assert not site.retry(exception="ValueError").ready
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert Counter(site.values("out")) == Counter(f"A{number}" for number in range(490))
    assert Counter(site.values("copy")) == Counter(f"{kind}{n}" for n in range(500) for kind in "ab")
    states = Counter((value[0], *state) for value, state in site.states().items())
    assert states == {
        ("a", "retried", 2): 490,
        ("a", "open", 2): 10,
        ("b", "open", 1): 500,
    }
    assert len(site.selected()) == 1000
    assert len(site.retry(exception="ValueError").ready) == 10
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert site.states()["a495"] == ("open", 3)
    assert len(site.values("out")) == 490


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_the_same_request_twice_is_processed_once(guarantee):
    broken = Broken("a")
    site = Retrying(two_steps(broken, guarantee=guarantee))
    worker = site.worker()
    site.send(["a1", "x", "a2"])
    site.settle(worker)
    broken.prefixes = ()
    # Two operators at the same time: each has seen the letters as open.
    plans = [(letters, plan_retry(letters, Selection())) for letters in [site.letters] * 3]
    for letters, plan in plans[:2]:
        order_retry(letters, plan, 0)
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    site.let(worker)
    # The third one is slow.
    order_retry(*plans[2], 0)
    site.let(worker)
    worker.close()
    again = site.worker()
    site.let(again)
    assert sorted(site.values("out")) == ["A1", "A2", "X"]
    assert sorted(site.values("copy")) == ["a1", "a2", "x"]


STEPS = ("produce", "begin", "send_offsets", "commit.before", "commit.after", "abort")
FAULTS = [
    *((step, kind, "exactly_once") for step in STEPS for kind in (TransactionAborted, OutcomeUnknown)),
    *(
        (step, kind, "at_least_once")
        for step in ("send_offsets", "commit.before", "commit.after")
        for kind in (TransactionAborted, OutcomeUnknown)
    ),
]


@pytest.mark.parametrize(("step", "kind", "guarantee"), FAULTS)
def test_a_retry_is_exact_whatever_fails_in_its_commit(step, kind, guarantee, monkeypatch):
    # Outcomes are not read at once, so that a worker has to know what it has not read.
    monkeypatch.setattr(retry_requests, "POLL_SECONDS", 1.0)
    broken = Broken("a")
    app = two_steps(broken, guarantee=guarantee)
    app.stream("in2", key=Text(), value=Text()).map(broken, name="count-up").group_by_key().count(
        "counted"
    ).to("counts")
    site = Retrying(app, {"in": 2, "in2": 2})
    worker = site.worker()
    site.send(["a1", "a2", "b1"])
    site.send(["a3", "a3", "a4"], topic="in2")
    site.settle(worker)
    broken.prefixes = ()
    site.retry()
    seen = 0

    def make_fail(reached: str) -> None:
        nonlocal seen
        if step == "abort" and reached == "commit.before" and not seen:
            raise TransactionAborted("made to fail")
        if reached == step and seen < 2:
            seen += 1
            raise kind("made to fail")

    site.broker.before = make_fail
    for _ in range(200):
        worker.run_once()
        site.clock.advance(0.05)
    site.broker.before = None
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    worker.close()
    assert seen
    assert {state for state, _ in site.states().values()} == {"retried"}
    assert latest(site, "counts") == {"a3": 2, "a4": 1}
    if guarantee == "exactly_once":
        assert sorted(site.values("out")) == ["A1", "A2", "B1"]
    assert sorted(set(site.values("out"))) == ["A1", "A2", "B1"]
    assert sorted(site.values("copy")) == ["a1", "a2", "b1"]


def latest(site: Retrying, topic: str) -> dict[str, int]:
    """The last value of each key."""
    return {(key or b"").decode(): int(value or b"0") for key, value in site.rows(topic)}


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("moment", [3, 6, 9, 12, 20])
def test_a_worker_killed_in_the_middle_of_a_retry_leaves_the_rest_to_the_next(guarantee, moment):
    broken = Broken("a")
    app = App("shop", dead_letter_limit=1.0, guarantee=guarantee, commit_interval=0.05)
    work = app.stream("in", key=Text(), value=Text()).map(broken, name="work")
    work.to("out", value=Text())
    work.group_by_key().count("counted").to("counts")
    site = Retrying(app)
    disks = MemoryDatabases()
    first = site.worker(disks)
    keys = [f"k{number % 7}" for number in range(300)]
    site.send([f"a{number}" for number in range(300)], keys=keys)
    site.settle(first)
    broken.prefixes = ()
    site.retry()
    for _ in range(moment):
        first.run_once()
        site.clock.advance(0.03)
    site.freeze(first)
    second = site.worker()
    site.run(second, until=lambda: not site.selected(states=["waiting"]))
    # The first one, which did not notice, cannot commit what it has processed.
    site.let(first, second)
    first.close()
    second.close()
    assert {state for state, _ in site.states().values()} == {"retried"}
    assert latest(site, "counts") == Counter(keys)
    out = Counter(site.values("out"))
    assert set(out) == {f"A{number}" for number in range(300)}
    if guarantee == "exactly_once":
        assert set(out.values()) == {1}


def test_a_worker_begins_with_requests_when_it_has_read_all_outcomes(monkeypatch):
    broken = Broken("a")
    site = Retrying(two_steps(broken))
    first = site.worker()
    site.send([f"a{number}" for number in range(100)])
    site.settle(first)
    broken.prefixes = ()
    site.retry()
    site.run(first, until=lambda: not site.selected(states=["waiting"]))
    first.close()
    monkeypatch.setattr(retry_requests, "CHUNK_RECORDS", 5)
    second = site.worker()
    site.let(second, rounds=200)
    second.close()
    assert len(site.values("out")) == 100


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_worker_that_was_replaced_in_the_middle_of_a_retry_commits_no_outcome(guarantee):
    broken = Broken("a")
    app = App("shop", dead_letter_limit=1.0, guarantee=guarantee)
    app.stream("in", key=Text(), value=Text()).map(broken, name="work").to("out", value=Text())
    site = Retrying(app)
    first = site.worker()
    site.send([f"a{number}" for number in range(100)])
    site.settle(first)
    broken.prefixes = ()
    site.retry()
    taken_over = False

    def replace(reached: str) -> None:
        nonlocal taken_over
        if reached == "produce" and not taken_over:
            # The first one hangs before it writes; the other one does its work.
            taken_over = True
            site.broker.before = None
            other = site.worker()
            site.expire(first)
            site.run(other, until=lambda: not site.selected(states=["waiting"]))
            other.close()
            site.done = {row.letter.id: row.history.outcome for row in site.selected()}

    site.broker.before = replace
    site.let(first)
    assert taken_over
    assert {row.letter.id: row.history.outcome for row in site.selected()} == site.done
    first.close()
    if guarantee == "exactly_once":
        assert Counter(site.values("out")) == Counter(f"A{number}" for number in range(100))


def test_a_command_that_ends_in_the_middle_is_repeated(monkeypatch):
    monkeypatch.setattr(ledger, "CHUNK_ENTRIES", 10)
    broken = Broken("a")
    site = Retrying(two_steps(broken))
    worker = site.worker()
    site.send([f"a{number}" for number in range(55)])
    site.settle(worker)
    broken.prefixes = ()
    chunks = 0

    def end(reached: str) -> None:
        nonlocal chunks
        chunks += reached == "produce"
        if chunks == 3:
            raise BrokerError("the command ends here")

    site.broker.before = end
    with pytest.raises(BrokerError, match="ends here"):
        site.retry()
    site.broker.before = None
    assert len(site.selected(states=["waiting"])) == 20
    plan = site.retry()
    assert (len(plan.ready), plan.waiting) == (35, 20)
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert Counter(site.values("out")) == Counter(f"A{number}" for number in range(55))


def test_retries_move_with_their_partitions():
    broken = Broken("a")
    site = Retrying(two_steps(broken), {"in": 4})
    first = site.worker()
    site.send([f"a{number}" for number in range(400)])
    site.settle(first)
    broken.prefixes = ()
    site.retry()
    workers = [first]
    for _ in range(3):
        workers.append(site.worker())
        for _ in range(3):
            for worker in workers:
                worker.run_once()
            site.clock.advance(0.05)
    workers.pop(0).close()
    site.run(*workers, until=lambda: not site.selected(states=["waiting"]))
    assert Counter(site.values("out")) == Counter(f"A{number}" for number in range(400))


def test_a_retry_ordered_while_nothing_runs_is_processed_by_the_next_start():
    broken = Broken("a")
    site = Retrying(two_steps(broken))
    worker = site.worker()
    site.send(["a1", "a2"])
    site.settle(worker)
    worker.close()
    site.retry()
    fixed = site.app = two_steps(Broken())
    assert fixed is site.app
    site.retry()
    again = site.worker()
    site.run(again, until=lambda: not site.selected(states=["waiting"]))
    assert sorted(site.values("out")) == ["A1", "A2"]
    again.close()


def test_letters_of_a_key_are_retried_in_their_original_order():
    broken = Broken("a")
    site = Retrying(two_steps(broken))
    worker = site.worker()
    values = [f"a{number:03}" for number in range(60)]
    site.send(values, keys=["one", "two", "three"] * 20)
    site.settle(worker)
    broken.prefixes = ()
    site.retry(message=None)
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    keyed: dict[bytes | None, list[bytes | None]] = {}
    for key, value in site.rows("out"):
        keyed.setdefault(key, []).append(value)
    assert len(keyed) == 3
    assert all(values == sorted(filter(None, values)) for values in keyed.values())


def test_later_records_of_the_key_are_noticed():
    broken = Broken("a")
    site = Retrying(two_steps(broken))
    worker = site.worker()
    site.send(["a1", "a2", "a3", "x"], keys=["stale", "last", "last", "stale"])
    site.settle(worker)
    plan = plan_retry(site.letters, Selection())
    later = {row.letter.value for row in plan.ready if row.letter.id in plan.newer}
    # The other dead letter of its key was not processed, and is retried after it.
    assert later == {b"a1"}
    broken.prefixes = ()
    assert site.retry(only_if_newest=True).skipped == 1
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert site.states() == {"a1": ("open", 1), "a2": ("retried", 2), "a3": ("retried", 2)}


def test_a_stateful_step_behind_an_internal_topic_is_retried_where_its_state_is():
    broken = Broken("a")
    app = App("shop", dead_letter_limit=1.0)
    (
        app.stream("in", key=Text(), value=Text())
        .map(str.strip, name="strip")
        .key_by(lambda value: value[0])
        .repartition("by-letter", value=Text())
        .map(broken, name="work")
        .group_by_key()
        .count("counted")
        .to("counts")
    )
    app.stream("in2", value=Text()).to("other")
    site = Retrying(app, {"in": 2, "in2": 1})
    worker = site.worker()
    site.send(["a1", "a2 ", "b1", "a3", "c1"])
    site.settle(worker)
    assert latest(site, "counts") == {"b": 1, "c": 1}
    (one, *_) = site.selected()
    assert one.letter.value in {b"a1", b"a2 ", b"a3"}
    assert one.letter.via is not None
    broken.prefixes = ()
    broken.seen.clear()
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert latest(site, "counts") == {"a": 3, "b": 1, "c": 1}
    # As the step received it, and nothing upstream of the internal topic ran again.
    assert sorted(broken.seen) == ["a1", "a2", "a3"]
    broken.prefixes = ("d",)
    site.send(["d1"])
    site.settle(worker)
    assert ("d1", ("open", 1)) in site.states().items()


def test_of_several_rows_made_of_one_record_only_the_one_that_failed_is_retried():
    broken = Broken("a")
    app = App("shop", dead_letter_limit=1.0)
    words = app.stream("in", value=Text()).flat_map(str.split, name="split")
    words.map(broken, name="work").to("out", value=Text())
    words.to("words", value=Text())
    site = Retrying(app)
    worker = site.worker()
    site.send(["x a1 y a2 z"])
    site.settle(worker)
    assert [(row.letter.row, row.letter.rows) for row in site.selected()] == [(1, 5), (3, 5)]
    broken.prefixes = ("a1",)
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert sorted(site.values("out")) == ["A2", "X", "Y", "Z"]
    assert sorted(site.values("words")) == ["a1", "a2", "x", "y", "z"]
    assert [(row.state, row.history.tries) for row in site.selected()] == [("open", 2), ("retried", 2)]


def test_a_record_that_no_longer_makes_the_same_rows_is_refused_and_stays_a_dead_letter():
    app = App("shop", dead_letter_limit=1.0)
    app.stream("in", value=Text()).flat_map(str.split, name="split").map(Broken("a"), name="work").to("out")
    site = Retrying(app)
    worker = site.worker()
    site.send(["x a1 y"])
    site.settle(worker)
    worker.close()
    app = site.app = App("shop", dead_letter_limit=1.0)
    app.stream("in", value=Text()).flat_map(list, name="split").map(str, name="work").to("out")
    site.retry()
    again = site.worker()
    site.run(again, until=lambda: not site.selected(states=["waiting"]))
    (row,) = site.selected()
    assert (row.state, row.history.tries) == ("open", 1)
    assert row.note == ("6 rows are made of the record for step 'work', and the dead letter is row 2 of 3")
    assert sorted(site.values("out")) == ['"X"', '"Y"']


def test_paths_that_meet_again_downstream_do_not_double():
    broken = Broken("a")
    app = App("shop", dead_letter_limit=1.0)
    lines = app.stream("in", value=Text())
    worked = lines.map(broken, name="work")
    both = worked.merge(lines.map(lambda value: f"{value}-beside", name="beside"))
    both.map(lambda value: f"<{value}>", name="last").to("out", value=Text())
    branches = lines.branch({"even": lambda value: value.endswith("2")}, otherwise="odd")
    branches["even"].to("even", value=Text())
    branches["odd"].to("odd", value=Text())
    site = Retrying(app)
    worker = site.worker()
    site.send(["a1", "a2"])
    site.settle(worker)
    broken.prefixes = ()
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert sorted(site.values("out")) == ["<A1>", "<A2>", "<a1-beside>", "<a2-beside>"]
    assert site.values("even") == ["a2"]
    assert site.values("odd") == ["a1"]


def test_a_record_that_could_not_be_read_runs_all_of_its_topics_steps():
    app = App("shop", dead_letter_limit=1.0)
    lines = app.stream("in", value=Json(int))
    lines.map(lambda value: value + 1, name="more").to("out")
    lines.map(lambda value: value - 1, name="less").to("copy")
    site = Retrying(app)
    worker = site.worker()
    site.send(['"7"', "8"])
    site.settle(worker)
    assert site.values("out") == ["9"]
    worker.close()
    app = site.app = App("shop", dead_letter_limit=1.0)
    lines = app.stream("in", value=Json())
    lines.map(lambda value: int(value) + 1, name="more").to("out")
    lines.map(lambda value: int(value) - 1, name="less").to("copy")
    site.retry()
    again = site.worker()
    site.run(again, until=lambda: not site.selected(states=["waiting"]))
    assert sorted(site.values("out")) == ["8", "9"]
    assert sorted(site.values("copy")) == ["6", "7"]


def test_a_retried_record_that_fails_further_downstream_is_another_dead_letter():
    first, second = Broken("a"), Broken()
    app = App("shop", dead_letter_limit=1.0)
    worked = app.stream("in", value=Text()).map(first, name="first")
    worked.map(str.lower, name="lower").map(second, name="second").to("out", value=Text())
    worked.to("copy", value=Text())
    site = Retrying(app)
    worker = site.worker()
    site.send(["a1"])
    site.settle(worker)
    first.prefixes, second.prefixes = (), ("a",)
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    rows = {row.letter.step: row for row in site.selected()}
    assert {step: str(row.state) for step, row in rows.items()} == {"first": "retried", "second": "open"}
    second.prefixes = ()
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert site.values("copy") == ["A1"]
    assert site.values("out") == ["A1"]
    assert not site.selected(states=["open"])


def test_a_step_upstream_that_fails_now_leaves_the_same_dead_letter():
    first, second = Broken(), Broken("A")
    app = App("shop", dead_letter_limit=1.0)
    worked = app.stream("in", value=Text()).map(first, name="first")
    worked.map(second, name="second").to("out", value=Text())
    worked.to("copy", value=Text())
    site = Retrying(app)
    worker = site.worker()
    site.send(["a1"])
    site.settle(worker)
    first.prefixes, second.prefixes = ("a",), ()
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    (row,) = site.selected()
    assert (row.state, row.history.tries, row.message) == ("open", 2, "a is not supported")
    first.prefixes = ()
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert site.values("out") == ["A1"]
    assert site.values("copy") == ["A1"]


@pytest.mark.parametrize("policy", [fail, skip])
def test_a_retry_that_fails_stops_no_worker_and_loses_nothing_whatever_the_policy(policy):
    app = App("shop", dead_letter_limit=1.0)
    app.stream("in", value=Text()).map(Broken("a"), name="work").to("out", value=Text())
    site = Retrying(app)
    worker = site.worker()
    site.send(["a1", "a2", "a3"])
    site.settle(worker)
    worker.close()
    app = site.app = App("shop", on_error=policy)
    app.stream("in", value=Text()).map(Broken("a2"), name="work").map(str, name="next").map(
        Broken("A3"), name="last"
    ).to("out", value=Text())
    site.counts = site.prepare(app, create_outputs=True)
    site.retry()
    again = site.worker()
    site.run(again, until=lambda: not site.selected(states=["waiting"]))
    states = site.states()
    assert states["a1"] == ("retried", 2)
    assert states["a2"] == ("open", 2)
    assert site.values("out")[0] == "A1"
    again.close()


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_what_the_broker_refuses_again_stays_one_dead_letter(guarantee):
    limit = [3]
    app = App("shop", dead_letter_limit=1.0, guarantee=guarantee)
    lines = app.stream("in", value=Text())
    lines.map(lambda value: value * limit[0], name="times").to("small", value=Text())
    lines.to("copy", value=Text())
    site = Retrying(app)
    site.admin.delete_topics(["small"])
    site.admin.create_topics([NewTopic(name="small", partitions=1, settings={"max.message.bytes": "200"})])
    worker = site.worker()
    site.send(["b" * 10, "a" * 90, "c" * 60], keys=["k", "k", "k"])
    site.settle(worker)
    site.let(worker)
    (row,) = [row for row in site.selected() if row.letter.value == b"a" * 90]
    assert row.letter.step == "to-small"
    count = len(site.selected())
    limit[0] = 2
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    limit[0] = 1
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert len(site.selected()) == count
    assert not site.selected(states=["open"])
    assert Counter(value[0] for value in site.values("small")) == {"a": 1, "b": 1, "c": 1}
    # At least once, the attempts that the broker refused are visible.
    assert len(set(site.values("copy"))) == 3


@hypothesis_settings(max_examples=25)
@given(seed=st.integers(0, 2**32), share=st.floats(0.0, 0.3))
def test_retries_are_exact_under_random_faults_and_rebalances(seed, share):
    chance = random.Random(seed)
    broken = Broken("a")
    app = App("shop", dead_letter_limit=1.0, commit_interval=0.05, max_poll_records=7)
    work = app.stream("in", key=Text(), value=Text()).map(broken, name="work")
    work.to("out", value=Text())
    work.group_by_key().count("counted").to("counts")
    site = Retrying(app, {"in": 3})
    workers = [site.worker()]
    values = [f"{'ax'[number % 2]}{number}" for number in range(120)]
    keys = [f"k{number % 5}" for number in range(120)]
    site.send(values[:80], keys=keys[:80])
    site.settle(*workers)
    broken.prefixes = ()

    def make_fail(reached: str) -> None:
        if reached in STEPS and chance.random() < share:
            raise chance.choice((TransactionAborted, OutcomeUnknown))("made to fail")

    for round_number in range(60):
        if round_number in (1, 10, 30):
            site.retry()
        if round_number == 20:
            site.send(values[80:], keys=keys[80:])
        site.broker.before = make_fail
        for worker in workers:
            worker.run_once()
        site.broker.before = None
        site.clock.advance(0.05)
        happening = chance.random()
        if happening < 0.1 and len(workers) < 3:
            workers.append(site.worker())
        elif happening < 0.2 and len(workers) > 1:
            workers.pop(chance.randrange(len(workers))).close()
        elif happening < 0.3:
            site.expire(chance.choice(workers))
    site.settle(*workers)
    site.retry()
    site.run(*workers, until=lambda: not site.selected(states=["waiting"]))
    for worker in workers:
        worker.close()
    assert {state for state, _ in site.states().values()} == {"retried"}
    assert Counter(site.values("out")) == Counter(value.upper() for value in values)
    assert latest(site, "counts") == Counter(keys)


def test_requests_that_do_not_fit_into_memory_are_read_again_in_their_order(monkeypatch):
    monkeypatch.setattr(retry_requests, "MOST_BYTES", 2_000)
    broken = Broken("a")
    site = Retrying(two_steps(broken))
    worker = site.worker()
    site.send([f"a{number:03}" for number in range(100)], keys=["one", "two"] * 50)
    site.settle(worker)
    broken.prefixes = ()
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert len(site.values("out")) == 100
    for key in (b"one", b"two"):
        values = [value for own, value in site.rows("out") if own == key]
        assert values == sorted(filter(None, values))


class Adding:
    """A processor that forwards what it is given."""

    def process(self, record: Record[Any, str], context: Any) -> None:
        context.forward(record)


def refusing_app(broken: Broken) -> App:
    app = App("shop", dead_letter_limit=1.0)
    lines = app.stream("in", key=Text(), value=Text())
    lines.process(Adding, name="adding").map(broken, name="after-processor").to("out1", value=Text())
    lines.group_by_key().count("counted").to_stream().map(
        lambda number: broken(f"a{number}"), name="after-count"
    ).to("out2")
    table = app.table("table", key=Text(), value=Text())
    table.to_stream().map(broken, name="after-table").to("out3", value=Text())
    return app


def test_results_and_what_state_contains_already_are_refused_with_the_reason():
    site = Retrying(refusing_app(Broken("a")), {"in": 1, "table": 1})
    worker = site.worker()
    site.send(["a1"], keys=["k"])
    site.send(["a2"], keys=["t"], topic="table")
    site.write(Output("table", [b"t"], [b"\xff"], [0]))
    site.settle(worker)
    plan = site.retry()
    assert not plan.ready
    reasons = {row.letter.step: reason for row, reason in plan.refused}
    assert reasons.keys() == {"after-processor", "after-count", "after-table", "table"}
    assert "through 'adding', whose state contains the record already" in reasons["after-processor"]
    assert "a result is made from state" in reasons["after-count"]
    assert "state contains the record" in reasons["after-table"]
    assert "is a copy of its topic: write the record to table again" in reasons["table"]


def test_a_step_that_the_program_no_longer_has_is_refused_by_command_and_worker():
    site = Retrying(two_steps(Broken("a")))
    worker = site.worker()
    site.send(["a1"])
    site.settle(worker)
    site.retry()
    worker.close()
    app = site.app = App("shop")
    app.stream("in", key=Text(), value=Text()).map(str.upper, name="works").to("out", value=Text())
    again = site.worker()
    site.run(again, until=lambda: not site.selected(states=["waiting"]))
    (row,) = site.selected()
    assert (row.state, row.history.tries) == ("open", 1)
    assert row.note == "the program has no step 'work' that reads in"
    ((_, reason),) = site.retry().refused
    assert reason == "the program has no step 'work': did you mean 'works'?"


def delivering(database: Database, other: Database, **settings: Any) -> App:
    app = App("shop", dead_letter_limit=1.0, **settings)
    lines = app.stream("in", key=Text(), value=Text())
    lines.sink(MemorySink(database), name="rows")
    lines.filter(lambda value: value.startswith("x"), name="other").sink(
        MemorySink(other, target="others"), name="others"
    )
    return app


def deliver(site: Retrying, worker: Worker, rows: int) -> None:
    """Send the input, and let it reach the sinks."""
    site.send(["a1", "a2", "b1", "x1", "x2"])
    site.run(worker, until=lambda: len(site.selected()) == rows)


def retried(site: Retrying, *workers: Worker) -> None:
    """Let workers take turns until all requests have outcomes."""

    def done() -> bool:
        site.clock.advance(0.05)
        return not site.selected(states=["waiting"])

    site.run(*workers, until=done)


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize(
    "faults", [{}, {"write": ["unavailable"]}, {"commit": ["unavailable"]}, {"open": ["unavailable"] * 2}]
)
def test_rows_that_a_sink_has_refused_are_written_to_that_sink_alone(guarantee, faults):
    database = Database(refuses=lambda value: value.startswith(("a", "x1")), takes_retries=True)
    other = Database(refuses=lambda value: value == "x1", takes_retries=True)
    site = Retrying(delivering(database, other, guarantee=guarantee))
    worker = site.worker()
    deliver(site, worker, 4)
    assert Counter(row.letter.step for row in site.selected()) == {"rows": 3, "others": 1}
    database.refuses = lambda value: value == "a2"
    database.faults = {call: list(found) for call, found in faults.items()}
    site.retry(step="rows")
    retried(site, worker)
    worker.close()
    assert database.retried
    assert Counter(value for _, value in database.rows) == Counter(["a1", "b1", "x1", "x2"])
    assert [value for _, value in other.rows] == ["x2"]
    tries = {
        (row.letter.step, row.letter.value): (str(row.state), row.history.tries) for row in site.selected()
    }
    assert tries == {
        ("rows", b"a1"): ("retried", 2),
        ("rows", b"a2"): ("open", 2),
        ("rows", b"x1"): ("retried", 2),
        ("others", b"x1"): ("open", 1),
    }


def test_an_answer_that_a_sink_has_lost_may_write_a_row_again_but_never_loses_one():
    database = Database(refuses=lambda value: value.startswith("a"), takes_retries=True)
    site = Retrying(delivering(database, Database(takes_retries=True)))
    worker = site.worker()
    deliver(site, worker, 2)
    database.refuses = lambda _: False
    database.faults = {"commit": ["lost answer"]}
    site.retry()
    retried(site, worker)
    worker.close()
    assert {value for _, value in database.rows} == {"a1", "a2", "b1", "x1", "x2"}
    assert {state for state, _ in site.states().values()} == {"retried"}


def test_a_sink_that_only_appends_is_refused():
    database = Database(refuses=lambda value: value.startswith("a"))
    site = Retrying(delivering(database, Database()))
    worker = site.worker()
    deliver(site, worker, 2)
    assert {reason for _, reason in site.retry().refused} == {
        "'rows' does not write by key, so that a crash might add the row twice"
    }
    worker.close()


def test_the_driver_retries_a_dead_letter_with_the_fixed_program():
    driver = TopologyDriver(two_steps(Broken("a", "b")))
    driver.send("in", "a1", key="k")
    driver.send("in", "b1", key="k")
    first, second = driver.dead_letters()
    driver.restart(two_steps(Broken("b")))
    driver.retry(first)
    with pytest.raises(ProcessingError, match=r"step 'work' has failed again .*KeyError: 'b is not"):
        driver.retry(second)
    assert driver.values("out") == ["A1"]
    assert driver.values("copy") == ["a1", "b1"]
    assert driver.dead_letters() == []
    with pytest.raises(ProcessingError, match="is no dead letter"):
        driver.retry(Record(b"k", b"v", 0))
    driver.close()


def test_the_driver_refuses_what_cannot_be_retried():
    driver = TopologyDriver(refusing_app(Broken("a")))
    driver.send("in", "a1", key="k")
    letters = driver.dead_letters()
    assert len(letters) == 2
    for letter in letters:
        with pytest.raises(ProcessingError, match="cannot be retried: it"):
            driver.retry(letter)
    driver.close()


def test_the_driver_retries_downstream_of_an_internal_topic():
    broken = Broken("a")
    app = App("shop")
    (
        app.stream("in", key=Text(), value=Text())
        .repartition("again", value=Text())
        .map(broken, name="work")
        .group_by_key()
        .count("counted")
        .to("counts")
    )
    driver = TopologyDriver(app)
    for value in ("a1", "b1"):
        driver.send("in", value, key="k")
    (letter,) = driver.dead_letters()
    broken.prefixes = ()
    driver.retry(letter)
    assert driver.values("counts")[-1] == 2
    driver.close()
