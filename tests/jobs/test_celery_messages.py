"""Messages of the real Celery become jobs, and their ends results that it reads; in the driver."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import pytest

pytest.importorskip("celery", reason="tasks of Celery are sent by Celery (requirements/sync.txt)")
pytest.importorskip("redis", reason="its results are written to Redis (requirements/sync.txt)")

from celery import chain, group, signature
from celery.exceptions import NotRegistered, TaskRevokedError
from kombu.exceptions import ContentDisallowed

from streams import App, ConfigurationError, Retry, TopologyError, current_job, days, seconds
from streams.celery import read_celery
from streams.jobs.commands import Action, Command
from streams.testing import TopologyDriver
from tests.support.celery_client import celery_client, sent, take

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from streams import Record

NOON = 1_800_000_000_000
READER = celery_client(results="redis://127.0.0.1:1/0")
"""Reads results as a program does, once it has them: it never connects."""

REDIS = "redis://user:secret@127.0.0.1:1/0"
SOURCE = "shop-celery-celery-source"


class Address(msgspec.Struct):
    city: str


class Outage(Exception):
    pass


def shop(*, with_add: bool = True) -> App:
    app = App("shop")

    @app.job(name="describe")
    def describe(
        at: datetime,
        day: date,
        clock: time,
        cents: Decimal,
        who: UUID,
        blob: bytes,
        to: Address,
        pair: tuple[int, int],
    ) -> list[Any]:
        assert (type(to), type(pair)) == (Address, tuple)
        return [at, day, clock, cents, who, blob, to, pair]

    if with_add:

        @app.job(name="add")
        def add(first: int, *, second: int = 1) -> int:
            return first + second

    @app.job(name="moment")
    def moment() -> datetime:
        return datetime(2026, 11, 30, 12, tzinfo=UTC)

    @app.job(name="untyped")
    def untyped(value):
        return value

    @app.job(name="break", retry=Retry(2, backoff=seconds(10), jitter=0))
    def fails(what: str) -> None:
        if what == "own":
            raise Outage("the service is closed")
        raise LookupError(f"no {what}")

    @app.job(name="keyed", key=lambda options: options["customer"])
    def keyed(options: dict[str, str]) -> None: ...

    @app.job(name="together", batch=3, within=seconds(1))
    def together(numbers: list[int]) -> list[int]:
        return [number * len(numbers) for number in numbers]

    read_celery(app, REDIS, results=REDIS)
    return app


@pytest.fixture
def driver() -> Iterator[TopologyDriver]:
    with TopologyDriver(shop(), clock=NOON, check_dead_letters=False) as driver:
        yield driver


@pytest.fixture
def client() -> Celery:
    return celery_client()


def feed(driver: TopologyDriver, *messages: bytes) -> None:
    for message in messages:
        driver.send_bytes(SOURCE, value=message, partition=0)


def results(driver: TopologyDriver) -> dict[str, dict[str, Any]]:
    """What was written for callers since the last call, by task, as Celery reads it."""
    rows = driver.rows("celery-results") + driver.rows("celery-celery-failures")
    return {row.key: READER.backend.decode_result(row.value) for row in rows}


def letters(driver: TopologyDriver) -> list[str]:
    return [header(letter, ".message") for letter in driver.dead_letters()]


def header(letter: Record[Any, Any], name: str) -> str:
    return next(value.decode() for key, value in letter.headers or [] if key.endswith(name) and value)


def test_a_task_is_the_job_of_its_name_and_its_result_is_found_by_its_id(driver, client):
    first, message = sent(client, "add", 1, kwargs={"second": 2})
    second, other = sent(client, "add", 2**70)
    feed(driver, message, other)
    found = results(driver)
    assert {key: meta["result"] for key, meta in found.items()} == {first: 3, second: 2**70 + 1}
    assert found[first] == {
        "status": "SUCCESS",
        "result": 3,
        "traceback": None,
        "children": [],
        "date_done": datetime.fromtimestamp(NOON / 1000, UTC).isoformat(),
        "task_id": first,
    }
    assert not driver.dead_letters()


def test_values_of_kombus_types_arrive_and_return_unchanged(driver, client):
    values = (
        datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
        date(2026, 3, 29),
        time(1, 30),
        Decimal("10.50"),
        UUID(int=7),
        b"\xff\x00",
    )
    identifier, message = sent(client, "describe", *values, {"city": "Ulm"}, (1, 2))
    feed(driver, message)
    meta = results(driver)[identifier]
    # The function's result has no types: what JSON has of them.
    assert meta["status"] == "SUCCESS"
    assert meta["result"][3:] == ["10.50", str(UUID(int=7)), "/wA=", {"city": "Ulm"}, [1, 2]]
    identifier, message = sent(client, "moment")
    feed(driver, message)
    assert results(driver)[identifier]["result"] == datetime(2026, 11, 30, 12, tzinfo=UTC)


def test_text_and_utf8_bytes_are_told_apart(driver, client):
    _, message = sent(client, "untyped", b"text")
    feed(driver, message)
    (error,) = letters(driver)
    assert "read it back as another value" in error
    identifier, message = sent(client, "untyped", {"__type__": 1})
    feed(driver, message)
    assert results(driver)[identifier]["result"] == {"__type__": 1}


def test_countdown_expiry_and_priority_are_those_of_the_job(driver, client):
    now = datetime.fromtimestamp(NOON / 1000, UTC)
    later, message = sent(client, "add", 1, eta=now + timedelta(days=40))
    lost, expiring = sent(
        client, "add", 2, eta=now + timedelta(seconds=60), expires=now + timedelta(seconds=30)
    )
    past, old = sent(client, "add", 3, eta=now - timedelta(days=1), priority=9)
    feed(driver, message, expiring, old)
    jobs = [json.loads(record.value) for record in driver.read("shop-jobs")]
    assert [(job.get("due"), job.get("expires"), job.get("priority")) for job in jobs] == [
        (NOON + 40 * 24 * 3600 * 1000, None, None),
        (NOON + 60_000, NOON + 30_000, None),
        (None, None, -90),
    ]
    assert list(results(driver)) == [past]
    driver.advance(seconds(61))
    ((key, meta),) = results(driver).items()
    assert (key, meta["status"]) == (lost, "REVOKED")
    assert isinstance(meta["result"], TaskRevokedError)
    assert meta["result"].args == ("expired",)
    driver.advance(days(40))
    assert results(driver)[later]["result"] == 2


def test_a_task_whose_job_is_cancelled_is_revoked(driver, client):
    later = datetime.fromtimestamp(NOON / 1000, UTC) + timedelta(hours=1)
    identifier, message = sent(client, "add", 1, eta=later)
    feed(driver, message)
    command = Command(Action.CANCEL, NOON, "ann@desk", ["0-0"])
    driver.send_bytes("shop-job-commands", value=msgspec.json.encode(command))
    meta = results(driver)[identifier]
    assert (meta["status"], meta["result"].args) == ("REVOKED", ("revoked",))
    assert isinstance(meta["result"], TaskRevokedError)


def test_a_task_that_fails_for_good_has_its_exception_and_traceback(driver, client):
    identifier, message = sent(client, "break", "order")
    own, other = sent(client, "break", "own")
    feed(driver, message, other)
    assert not results(driver)
    driver.advance(seconds(10))
    found = results(driver)
    assert found[identifier]["status"] == "FAILURE"
    assert isinstance(found[identifier]["result"], LookupError)
    assert found[identifier]["result"].args == ("no order",)
    assert 'raise LookupError(f"no {what}")' in found[identifier]["traceback"]
    assert type(found[own]["result"]).__name__ == "Outage"
    assert found[own]["result"].args == ("the service is closed",)
    assert len(driver.dead_letters()) == 2


def test_a_job_knows_the_id_of_its_task_and_keeps_it_when_it_is_enqueued_again(client):
    app = App("shop")

    @app.job(name="own-id")
    def own_id() -> str | None:
        return current_job().correlation_id

    read_celery(app, REDIS, results=REDIS)
    with TopologyDriver(app, clock=NOON) as driver:
        identifier, message = sent(client, "own-id")
        feed(driver, message)
        assert results(driver)[identifier]["result"] == identifier
        (job,) = driver.read("shop-jobs")
        assert json.loads(job.value)["correlation_id"] == identifier
        (end,) = driver.read("shop-job-results")
        assert end.value.correlation_id == identifier


def test_a_task_whose_result_is_ignored_and_a_bridge_without_results_write_none(driver, client):
    _, message = sent(client, "add", 1, ignore_result=True)
    _, refused = sent(client, "nothing", ignore_result=True)
    feed(driver, message, refused)
    assert not results(driver)
    assert len(driver.read("shop-job-results")) == 1
    assert len(driver.dead_letters()) == 1


class Exploit:
    """Whatever unpickles it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@pytest.mark.parametrize("labelled", ["application/x-python-serialize", "application/json"])
def test_pickle_is_never_read_whatever_it_is_called(driver, client, tmp_path, labelled):
    identifier, message = sent(client, "add", 1)
    file = tmp_path / "unpickled"
    envelope = json.loads(message)
    envelope["content-type"] = labelled
    envelope["body"] = base64.b64encode(pickle.dumps(((Exploit(str(file)),), {}, {}))).decode()
    good, other = sent(client, "add", 2)
    feed(driver, json.dumps(envelope).encode(), other)
    assert not file.exists()
    found = results(driver)
    assert found[good]["result"] == 3
    (error,) = letters(driver)
    assert error.startswith(f"task add[{identifier}]: its content ")
    assert ("pickle" in error) == (labelled != "application/json")
    if labelled != "application/json":
        assert isinstance(found[identifier]["result"], ContentDisallowed)


def test_a_real_client_that_pickles_is_refused_by_name(driver):
    client = celery_client(task_serializer="pickle")
    identifier, message = sent(client, "add", 1)
    feed(driver, message)
    (error,) = letters(driver)
    assert error == (
        f"task add[{identifier}]: its content is 'application/x-python-serialize' (pickle), which is never "
        "read: set task_serializer = 'json' in the program that sends it"
    )


@pytest.mark.parametrize(
    ("send", "error", "exception"),
    [
        (lambda app: app.send_task("ad"), "no job of this name; did you mean 'add'", NotRegistered),
        (lambda app: app.send_task("x.y"), "no job of this name; there are: add, ", NotRegistered),
        (lambda app: app.send_task("add"), "arguments do not fit add: missing a required arg", TypeError),
        (lambda app: app.send_task("add", [1, 2, 3]), "too many positional arguments", TypeError),
        (lambda app: app.send_task("add", ["1"]), "Expected `int`, got `str` - at `$.first`", TypeError),
        (lambda app: app.send_task("add", kwargs={"third": 1}), "missing a required arg", TypeError),
        (lambda app: app.send_task("keyed", [{}]), "no call of keyed can be made of it: KeyError", None),
        (
            lambda app: app.send_task("add", [1], link=signature("add", app=app)),
            "followed by callbacks (link=), which is not carried over",
            None,
        ),
        (
            lambda app: app.send_task("add", [1], link_error=signature("add", app=app)),
            "callbacks for errors (link_error=)",
            None,
        ),
        (
            lambda app: chain(signature("add", [1], app=app), signature("add", app=app)).apply_async(),
            "followed by a chain",
            None,
        ),
        (
            lambda app: app.send_task("add", [1], chord=signature("add", app=app)),
            "followed by a chord, which is not carried over",
            None,
        ),
    ],
)
def test_what_cannot_be_a_job_is_a_dead_letter_that_says_why(driver, client, send, error, exception):
    result = send(client)
    while result.parent is not None:
        result = result.parent
    good = client.send_task("add", [1]).id
    feed(driver, *take(client))
    (letter,) = letters(driver)
    assert error in letter
    found = results(driver)
    assert found.pop(good)["result"] == 2
    ((identifier, meta),) = found.items()
    assert letter.startswith(f"task {letter.split('[')[0].removeprefix('task ')}[{identifier}]: ")
    assert meta["status"] == "FAILURE"
    if exception is not None:
        assert isinstance(meta["result"], exception)


def test_tasks_of_a_function_that_takes_a_list_are_executed_together(driver, client):
    ids = [client.send_task("together", [number]).id for number in (1, 2)]
    feed(driver, *take(client))
    driver.advance(seconds(1))
    found = results(driver)
    assert [found[each]["result"] for each in ids] == [2, 4]


def test_a_group_is_its_tasks(driver, client):
    sending = group(signature("add", [number], app=client) for number in range(3)).apply_async()
    feed(driver, *take(client))
    found = results(driver)
    assert [found[child.id]["result"] for child in sending.children] == [1, 2, 3]


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_compressed_content_is_read(driver, client, compression):
    identifier, message = sent(client, "add", 1, compression=compression)
    feed(driver, message)
    assert results(driver)[identifier]["result"] == 2


def changed(message: bytes, *, body: bytes | None = None, **changes: Any) -> bytes:
    envelope = json.loads(message)
    envelope["headers"] |= changes.pop("headers", {})
    envelope |= changes
    if body is not None:
        envelope["body"] = base64.b64encode(body).decode()
    return json.dumps(envelope).encode()


# Quickly made, as it is made whenever tests are collected.
BOMB = zlib.compress(b"[[" + b" " * 50_000_000 + b"], {}, {}]", level=1)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"content-type": "application/x-yaml"}, "(yaml), which is never read"),
        ({"content-type": "application/x-msgpack"}, "(msgpack), which is never read"),
        ({"content-type": None}, "of no type"),
        ({"content-encoding": "utf-16"}, "encoded as 'utf-16'"),
        ({"headers": {"compression": "application/zstd"}}, "compressed as 'application/zstd'"),
        ({"headers": {"compression": ["gzip"]}}, "compressed as ['gzip']"),
        ({"headers": {"compression": "application/x-gzip"}}, "cannot be decompressed"),
        ({"headers": {"compression": "application/x-gzip"}, "body": BOMB}, "more than 1,000,000 bytes"),
        ({"headers": {"compression": "application/x-gzip"}, "body": BOMB[:99]}, "it is cut off"),
        ({"body": b"[[1], {}, {}"}, "its content cannot be read"),
        ({"body": b"[" * 200_000}, "its content cannot be read"),
        ({"body": b"[" * 200_000 + b'"__type__"'}, "nested too deeply"),
        ({"body": b'[[{"__type__": "app", "__value__": 1}], {}, {}]'}, "of the type 'app', which"),
        ({"body": b'[[{"__type__": "date", "__value__": 1}], {}, {}]'}, "not of the type that it names"),
        ({"body": b'[[{"__type__": ["a"], "__value__": 1}], {}, {}]'}, "not of the type that it names"),
        ({"body": b'[[{"__type__": "uuid", "__value__": {}}], {}, {}]'}, "not of the type that it names"),
        ({"body": b'[[{"__type__": "decimal", "__value__": "x"}], {}, {}]'}, "not of the type that it names"),
        ({"body": b"{}"}, "is not [args, kwargs, embed]"),
        ({"body": b'["ab", {}, {}]'}, "no list and no mapping"),
        ({"headers": {"id": "x" * 300}}, "no text of 1 to 255 characters"),
        ({"headers": {"task": ["add"]}}, "which is no name"),
        ({"headers": {"eta": "soon"}}, "its eta is 'soon', which is no time"),
        ({"headers": {"expires": 5}}, "its expires is 5, which is no time"),
    ],
)
def test_content_that_nobody_should_send_is_refused(driver, client, changes, error):
    _, message = sent(client, "add", 1)
    good, other = sent(client, "add", 2)
    feed(driver, changed(message, **changes), other)
    (letter,) = letters(driver)
    assert error in letter
    assert results(driver)[good]["result"] == 3


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"[]", b'{"body": "%"}', b'{"body": 1}'])
def test_what_kombu_has_not_written_is_a_dead_letter(driver, client, garbage):
    good, message = sent(client, "add", 2)
    feed(driver, garbage, message)
    assert len(driver.dead_letters()) == 1
    assert results(driver)[good]["result"] == 3


def test_the_first_version_of_the_protocol_is_read(driver):
    client = celery_client(task_protocol=1)
    identifier, message = sent(client, "add", 1, kwargs={"second": 2}, countdown=-1)
    linked, other = sent(client, "add", 1, link=signature("add", app=client))
    feed(driver, message, other)
    assert results(driver)[identifier]["result"] == 3
    (letter,) = letters(driver)
    assert "callbacks (link=)" in letter
    assert linked in other.decode() or linked in letter


def test_a_dead_letter_has_the_message_which_can_be_sent_again_once_the_app_has_the_job(client):
    identifier, message = sent(client, "add", 1)
    with TopologyDriver(shop(with_add=False), clock=NOON, check_dead_letters=False) as driver:
        feed(driver, message)
        assert isinstance(results(driver)[identifier]["result"], NotRegistered)
        (letter,) = driver.dead_letters()
        assert letter.value == message
        driver.restart(shop())
        feed(driver, letter.value)
        assert results(driver)[identifier]["result"] == 2


def test_what_the_bridge_cannot_do_is_refused_when_it_is_declared():
    app = App("shop")
    with pytest.raises(TopologyError, match="has no jobs"):
        read_celery(app, REDIS)
    app.job(name="work")(lambda: None)
    with pytest.raises(ConfigurationError, match="begins with 'sqs'") as raised:
        read_celery(app, "sqs://user:secret@host")
    assert "secret" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="a list of the queues' names"):
        read_celery(app, REDIS, queues="celery")
    read_celery(app, REDIS, queues=["celery", "high priority"], results=REDIS)
    assert "secret" not in repr(app)
