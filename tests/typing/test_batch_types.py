"""The types of jobs that are given in batches: an item when one is enqueued, a result in its handle."""

from __future__ import annotations

from typing import assert_type

import msgspec
import pytest

from streams import App, seconds
from streams.jobs.batch_job import BatchJob
from streams.jobs.handle import Handle

app = App("typed")


class Mail(msgspec.Struct):
    to: str


class Receipt(msgspec.Struct):
    id: str


@app.job(batch=10, within=seconds(1), name="receipts")
def receipts(mails: list[Mail]) -> list[Receipt]:
    return [Receipt(mail.to) for mail in mails]


@app.job(batch=10, name="some")
def some(mails: list[Mail]) -> list[Receipt | Exception]:
    return [ValueError(mail.to) for mail in mails]


@app.job(batch=10, name="nothing", priority=1)
def nothing(mails: list[Mail]) -> None: ...


@app.job(batch=10, name="perhaps")
def perhaps(mails: list[Mail]) -> list[int] | None:
    return [1] if mails else None


@app.job(batch=10, name="asynchronous")
async def asynchronous(mails: list[Mail]) -> list[int]:
    return [1 for _ in mails]


def enqueue() -> None:
    """Checked, and never called."""
    assert_type(receipts.enqueue(Mail("a")), Handle[Receipt])
    assert_type(receipts.using(delay=seconds(1)).enqueue(Mail("a")), Handle[Receipt])
    assert_type(some.enqueue(Mail("a")), Handle[Receipt])
    assert_type(nothing.enqueue(Mail("a")), Handle[None])
    assert_type(perhaps.enqueue(Mail("a")), Handle[int | None])
    assert_type(asynchronous.enqueue(Mail("a")), Handle[int])
    assert_type(receipts.enqueue_many([receipts.call(Mail("a"))]), list[Handle[Receipt]])


def test_a_batch_job_knows_its_item_and_its_result():
    assert_type(receipts, BatchJob[Mail, Receipt])
    assert receipts.result.decode(b'{"id":"1"}') == Receipt("1")
    assert some.result.decode(b'{"id":"1"}') == Receipt("1")
    assert perhaps.result.decode(b"1") == 1
    assert perhaps.result.decode(b"null") is None
    assert nothing.result.decode(b"null") is None
    with pytest.raises(msgspec.ValidationError):
        asynchronous.result.decode(b'"text"')


def test_a_list_is_no_item():
    with pytest.raises(TypeError):
        receipts.call([Mail("a")])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        receipts.call("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
