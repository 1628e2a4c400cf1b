"""Dead letters are selected, edited and purged; what remains of them in each case."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest

from streams import App, Json, Text
from streams.cli.letter_lines import SelectionOptions, letter_fields, parse_time
from streams.connectors.sqlite import SqliteSink
from streams.errors import ConfigurationError, TopicError
from streams.records import Output
from streams.replay.dead_letters.edit import edit_letter
from streams.replay.dead_letters.export import exported
from streams.replay.dead_letters.ledger import LetterState
from streams.replay.dead_letters.purge import purge_letters
from streams.replay.dead_letters.retry import plan_retry
from streams.replay.dead_letters.rows import Selection
from streams.runtime.letter import LetterId, read_letter
from streams.runtime.retry_log import Result
from tests.support.retrying import Retrying

if TYPE_CHECKING:
    from pathlib import Path

    from streams.runtime.worker import Worker


class Payment(msgspec.Struct):
    cents: int


def booking() -> App:
    app = App("bank", dead_letter_limit=1.0)

    def book(payment: Payment) -> Payment:
        if payment.cents < 0:
            raise ValueError(f"{payment.cents} cents cannot be booked")
        return payment

    payments = app.stream("in", key=Text(), value=Json(Payment))
    payments.map(book, name="book").to("booked")
    payments.to("copy")
    return app


@pytest.fixture
def site() -> Retrying:
    return Retrying(booking())


def fill(site: Retrying) -> Worker:
    worker = site.worker()
    site.send(['{"cents":-1}', '{"cents":-2}', '{"cents":3}', "{"], keys=["a", "b", "c", "d"])
    site.settle(worker)
    return worker


def options(site: Retrying, **given: object) -> list[str]:
    """The keys of the dead letters that options of a command select."""
    names = ("places", "step", "topic", "exception", "message", "since", "until", "key", "where")
    chosen = SelectionOptions(**dict.fromkeys(names) | given)
    letters = site.letters
    selection = chosen.selection(letters, [LetterState.OPEN, LetterState.WAITING])
    return sorted((row.letter.key or b"").decode() for row in letters.rows(selection))


def test_letters_are_selected_by_what_failed_where_when_and_on_which_record(site):
    fill(site)
    assert options(site) == ["a", "b", "d"]
    assert options(site, step="book") == ["a", "b"]
    assert options(site, topic="in") == ["a", "b", "d"]
    assert options(site, topic="other") == []
    assert options(site, exception="ValueError") == ["a", "b"]
    assert options(site, message="-[2-9] cents") == ["b"]
    assert options(site, key="d") == ["d"]
    assert options(site, where=["value.cents=-1"]) == ["a"]
    assert options(site, where=["exception=ValueError", "key=b"]) == ["b"]
    assert options(site, until="1970-01-01T00:00+00:00") == []
    assert options(site, since="1970-01-01T00:00+00:00") == ["a", "b", "d"]
    (place,) = [row.letter.id.place for row in site.selected() if row.letter.key == b"b"]
    assert options(site, places=[place]) == ["b"]
    with pytest.raises(ConfigurationError, match="'b' is not a dead letter"):
        options(site, places=["b"])


def test_times_are_dates_or_ages():
    assert parse_time("2h", 10_000) == 2_800_000
    assert parse_time("3d", 1_000_000) == 740_800_000
    assert parse_time("2026-05-01T10:00:00.5+02:00", 0) == 1_777_622_400_500
    with pytest.raises(ConfigurationError, match="'soon' is not a time"):
        parse_time("soon", 0)


def test_a_record_is_shown_as_its_step_reads_it_or_as_bytes(site):
    fill(site)
    letters = site.letters
    fields = {row.letter.key: letter_fields(letters, row) for row in letters.rows()}
    assert msgspec.json.decode(fields[b"a"]["value"]) == {"cents": -1}
    assert fields[b"a"]["message"] == "-1 cents cannot be booked"
    assert fields[b"d"]["value_base64"] == "ew=="
    assert "unreadable" in fields[b"d"]
    line = msgspec.json.decode(exported(next(iter(letters.rows()))))
    assert line["application"] == "bank"
    assert line["tries"] == 1


def test_an_edited_record_is_retried_and_keeps_its_identity_and_headers(site):
    worker = site.worker()
    site.send(['{"cents":-1}', "{"], keys=["a", "d"], headers=[("trace", b"7")])
    site.settle(worker)
    letters = site.letters
    rows = {row.letter.key: row for row in letters.rows()}
    with pytest.raises(ConfigurationError, match=r"value cannot be read as Json\(Payment\)"):
        edit_letter(letters, rows[b"a"], key=b"a", value=b'{"euros":1}', at=0)
    with pytest.raises(ConfigurationError, match="a value is needed"):
        edit_letter(letters, rows[b"a"], key=b"a", value=None, at=0)
    edit_letter(letters, rows[b"a"], key=b"a", value=b'{"cents":1}', at=0)
    edit_letter(letters, rows[b"d"], key=b"e", value=b'{"cents":4}', at=0)
    before = {row.letter.id for row in site.selected()}
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert {row.letter.id for row in site.selected()} == before
    assert sorted(site.values("booked")) == ['{"cents":1}', '{"cents":4}']
    # The other record could not be read before, so all steps of its topic process it now.
    assert sorted(site.values("copy")) == ['{"cents":-1}', '{"cents":4}']
    (again,) = [row for row in site.selected() if row.letter.key == b"a"]
    with pytest.raises(ConfigurationError, match="is retried: only open ones can be edited"):
        edit_letter(site.letters, again, key=b"a", value=b'{"cents":1}', at=0)


def test_an_edited_key_is_processed_where_records_of_that_key_are():
    app = App("shop", dead_letter_limit=1.0)

    def known(value: str) -> str:
        if value == "bad":
            raise ValueError(value)
        return value

    app.stream("in", key=Text(), value=Text()).map(known, name="known").group_by_key().count("counted").to(
        "counts"
    )
    site = Retrying(app, {"in": 4})
    worker = site.worker()
    keys = [f"k{number}" for number in range(8)]
    site.send(["good"] * 8, keys=keys)
    site.send(["bad"] * 8, keys=keys)
    site.settle(worker)
    letters = site.letters
    for row in list(letters.rows()):
        edit_letter(letters, row, key=b"k3", value=b"good", at=0)
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    last = dict(site.rows("counts"))
    assert last == {key.encode(): b"1" for key in keys} | {b"k3": b"9"}


def test_purged_letters_are_gone_for_good_and_others_stay(site):
    worker = fill(site)
    letters = site.letters
    everything = Selection()
    assert purge_letters(letters, everything, at=0, dry_run=True).letters == 3
    assert len(site.selected(states=["open"])) == 3
    purge_letters(letters, Selection(exception="ValueError"), at=0)
    assert options(site) == ["d"]
    assert plan_retry(site.letters, Selection(exception="ValueError")).ready == []
    # Repeated, as after an interruption.
    assert purge_letters(site.letters, Selection(exception="ValueError"), at=0).letters == 0
    purge_letters(site.letters, everything, at=0)
    assert not site.payloads(site.app.dead_letter_topic)
    site.send(['{"cents":-9}'], keys=["z"])
    site.settle(worker)
    assert options(site) == ["z"]


def test_letters_that_are_being_retried_are_not_purged(site):
    fill(site).close()
    site.retry(exception="ValueError")
    result = purge_letters(site.letters, Selection(), at=0)
    assert (result.letters, result.waiting) == (1, 2)
    assert options(site) == ["a", "b"]


def test_a_purge_deletes_nothing_before_a_letter_of_another_app(site):
    site.write(
        Output(
            site.app.dead_letter_topic,
            [b"x", b"x"],
            [b"1", b"2"],
            [0, 0],
            [[("__streams.errors.topic", b"in")], None],
            partition=0,
        )
    )
    fill(site)
    purge_letters(site.letters, Selection(), at=0)
    assert {b"1", b"2"} <= set(site.payloads(site.app.dead_letter_topic))
    assert options(site) == []


def test_a_letter_that_was_cut_needs_an_edit_first(site):
    headers: list[tuple[str, bytes | None]] = [
        (f"__streams.errors.{name}", text)
        for name, text in (
            ("topic", b"in"),
            ("partition", b"0"),
            ("offset", b"7"),
            ("timestamp", b"5"),
            ("application", b"bank"),
            ("step", b"book"),
            ("exception", b"ValueError"),
            ("message", b"too large"),
            ("left_out", b"most of the value"),
        )
    ]
    site.write(Output(site.app.dead_letter_topic, [b"a"], [b'{"cen'], [0], [headers], partition=0))
    site.send(['{"cents":1}'], keys=["b"])
    worker = site.worker()
    site.settle(worker)
    letters = site.letters
    ((row, reason),) = plan_retry(letters, Selection()).refused
    assert reason == "the dead letter lacks most of the value: edit it first"
    edit_letter(letters, row, key=b"a", value=b'{"cents":5}', at=0)
    site.retry()
    site.run(worker, until=lambda: not site.selected(states=["waiting"]))
    assert '{"cents":5}' in site.values("booked")


def test_a_letter_of_a_letter_is_read_by_its_own_headers():
    def headers(step: bytes) -> list[tuple[str, bytes | None]]:
        names = ("topic", "partition", "offset", "timestamp", "application", "step", "exception", "message")
        values = (b"in", b"0", b"1", b"2", b"app", step, b"E", b"m")
        return [(f"__streams.errors.{name}", value) for name, value in zip(names, values, strict=True)]

    own = [("user", b"1"), *headers(b"first"), *headers(b"second")]
    letter = read_letter(LetterId("t", 0, 0), 0, None, None, own)
    assert letter is not None
    assert letter.step == "second"
    assert letter.headers == own[:9]


def test_without_a_dead_letter_topic_the_command_says_so():
    site = Retrying(booking())
    site.admin.delete_topics([site.app.dead_letter_topic])
    with pytest.raises(TopicError, match="there is no topic bank-dead-letters"):
        list(site.letters.rows())


def test_a_row_that_a_table_has_refused_is_edited_and_written(tmp_path: Path):
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE payments (id TEXT PRIMARY KEY, cents INTEGER CHECK (cents >= 0))")
    app = App("bank", dead_letter_limit=1.0)
    payments = app.stream("in", key=Text(), value=Json(dict[str, object]))
    payments.sink(SqliteSink(path, "payments", key="id"), name="rows")
    site = Retrying(app)
    worker = site.worker()
    site.send([f'{{"id":"{key}","cents":{cents}}}' for key, cents in (("a", -1), ("b", 2), ("c", -3))])

    def read() -> list[tuple[str, int]]:
        with closing(sqlite3.connect(path)) as connection:
            return list(connection.execute("SELECT id, cents FROM payments ORDER BY id"))

    site.run(worker, until=lambda: len(site.selected()) == 2)
    letters = site.letters
    (row,) = [row for row in letters.rows() if b'"a"' in (row.letter.value or b"")]
    edit_letter(letters, row, key=row.letter.key, value=b'{"id":"a","cents":1}', at=0)
    site.retry()
    site.run(worker, until=lambda: site.clock.advance(0.05) or not site.selected(states=["waiting"]))  # type: ignore[func-returns-value]  # None
    assert read() == [("a", 1), ("b", 2)]
    outcomes = [row.history.outcome for row in site.selected()]
    assert sorted(outcome.result for outcome in outcomes if outcome) == [Result.DONE, Result.FAILED]
    worker.close()
