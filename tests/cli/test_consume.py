"""``streams consume``: the selection and format of records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, Bytes, Json, Text, Tumbling
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.broker.memory import MemoryBroker
from streams.broker.reading import find_partitions, read_from, read_to_end
from streams.cli.record_lines import RecordLines, parse_condition, parse_offset, parse_pattern, starts
from streams.errors import ConfigurationError, TopicError
from streams.records import Output
from streams.simulation.inputs import read_inputs
from streams.state.changelog import Checkpoint, metadata_records
from streams.topology.topic_format import TopicFormat, topic_format
from tests.cli.test_cli import here

if TYPE_CHECKING:
    from collections.abc import Sequence


class Order(msgspec.Struct):
    item: str
    amount: int


def shop() -> App:
    app = App("shop")
    orders = app.stream("orders", key=Text(), value=Json(Order))
    orders.filter(lambda order: order.amount > 10).to("large")
    orders.group_by(lambda order: order.item).count("items").to_stream().to("counts", value=Json())
    orders.group_by_key().window(Tumbling(seconds=10)).count("windows").updates().to("per-window")
    return app


def written(
    topic: str, rows: Sequence[tuple[bytes | None, bytes | None]], partitions: int = 1
) -> MemoryBroker:
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name=topic, partitions=1)])
    producer = broker.producer()
    keys, values = [key for key, _ in rows], [value for _, value in rows]
    producer.produce(Output(topic, keys, values, list(range(1000, 1000 + len(rows)))))
    producer.flush(1)
    return broker


def shown(broker: MemoryBroker, topic: str, form: TopicFormat = TopicFormat(), **wanted: Any) -> list[Any]:  # noqa: B008 - a value
    lines = RecordLines(form, **wanted)
    return [json.loads(line) for fetched in read_to_end(broker, [topic]) for line in lines.lines(fetched)]


def test_without_an_app_json_is_json_text_is_text_and_the_rest_is_base64():
    rows = [
        (b"a", b'{"x": [1, 2.5, null]}'),
        (None, b"plain"),
        (b"\xff", b"\xfe\x00"),
        (b"b", None),
        (b"1", b"1"),
    ]
    found = shown(written("t", rows), "t")
    assert found[0] == {
        "topic": "t",
        "partition": 0,
        "offset": 0,
        "timestamp": 1000,
        "key": "a",
        "value": {"x": [1, 2.5, None]},
    }
    assert (found[1]["key"], found[1]["value"]) == (None, "plain")
    assert (found[2]["key_base64"], found[2]["value_base64"]) == ("/w==", "/gA=")
    assert found[3]["value"] is None
    assert (found[4]["key"], found[4]["value"]) == ("1", 1)


def test_what_the_apps_serde_cannot_read_is_shown_with_the_reason():
    form = topic_format(shop().topology, "shop", "orders")
    broker = written("orders", [(b"k", b'{"item": "tea", "amount": 3}'), (b"\xff", b'{"item": "tea"}')])
    good, bad = shown(broker, "orders", form)
    assert good["value"] == {"item": "tea", "amount": 3}
    assert "error" not in good
    assert bad["value_base64"] == "eyJpdGVtIjogInRlYSJ9"
    assert "value: " in bad["error"]
    assert "missing required field `amount`" in bad["error"]


def test_an_undecodable_record_has_the_errors_of_key_and_value():
    form = topic_format(shop().topology, "shop", "orders")
    (line,) = shown(written("orders", [(b"\xff", b"no JSON")]), "orders", form)
    assert (line["key_base64"], line["value_base64"]) == ("/w==", "bm8gSlNPTg==")
    assert "key: " in line["error"]
    assert "; value: " in line["error"]


def test_a_changelogs_metadata_is_shown_as_it_is():
    form = topic_format(shop().topology, "shop", "shop-items-changelog")
    keys, values, headers = metadata_records(Checkpoint('"schema"', time=7))
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name="shop-items-changelog", partitions=1)])
    producer = broker.producer()
    producer.produce(Output("shop-items-changelog", keys, values, [1] * len(keys), headers))
    producer.flush(1)
    found = shown(broker, "shop-items-changelog", form)
    assert len(found) == len(keys) > 0
    assert all("error" not in line and "key_base64" in line for line in found)


def test_bytes_of_an_app_are_shown_as_they_are_written():
    app = App("raw")
    app.stream("in", value=Bytes()).to("out")
    form = topic_format(app.topology, "raw", "in")
    (line,) = shown(written("in", [(b"1", b'{"a":  1}')]), "in", form)
    assert (line["key"], line["value"]) == ("1", '{"a":  1}')


def test_true_is_not_1():
    broker = written("t", [(None, b'{"ok": true}'), (None, b'{"ok": 1}'), (None, b'{"ok": 1.0}')])

    def offsets(condition: str) -> list[int]:
        return [line["offset"] for line in shown(broker, "t", conditions=[parse_condition(condition)])]

    assert offsets("value.ok=true") == [0]
    assert offsets("value.ok=1") == [1, 2]


def test_conditions_look_at_the_line_and_all_must_hold():
    rows = [(b"%d" % n, b'{"status": %d, "user": {"id": "u%d"}}' % (200 + n % 2, n % 3)) for n in range(12)]
    broker = written("t", rows)

    def offsets(*conditions: str, pattern: str | None = None) -> list[int]:
        found = shown(
            broker,
            "t",
            conditions=[parse_condition(item) for item in conditions],
            pattern=None if pattern is None else parse_pattern(pattern),
        )
        return [item["offset"] for item in found]

    assert offsets("value.status=201") == [1, 3, 5, 7, 9, 11]
    assert offsets("value.status=201", "value.user.id=u0") == [3, 9]
    assert offsets("key=7") == [7]
    assert offsets("offset=7") == [7]
    assert offsets("value.missing=1") == []
    assert offsets("value.missing=null") == list(range(12))
    assert offsets("value.status=201", pattern='"u[12]"') == [1, 5, 7, 11]


def test_an_offset_outside_of_the_log_is_the_nearest_there_is():
    broker = written("t", [(None, b"%d" % n) for n in range(5)])
    (place,) = find_partitions(broker, ["t"])

    def read(offset: str) -> list[int]:
        begin = starts(broker.admin(), [place], parse_offset(offset), "read_committed")
        return [number for fetched in read_from(broker, begin) for number in fetched.offsets()]

    assert read("earliest") == [0, 1, 2, 3, 4]
    assert read("latest") == []
    assert read("3") == [3, 4]
    assert read("-2") == [3, 4]
    assert read("-99") == [0, 1, 2, 3, 4]
    assert read("99") == []
    broker.admin().delete_records({place: 2})
    assert read("0") == [2, 3, 4]


@pytest.mark.parametrize("text", ["yesterday", "", "1.5", "--1"])
def test_an_invalid_offset_is_refused(text):
    with pytest.raises(ConfigurationError, match="is not an offset"):
        parse_offset(text)


@pytest.mark.parametrize("text", ["value.status", "=1"])
def test_an_invalid_condition_is_refused(text):
    with pytest.raises(ConfigurationError, match="write FIELD=VALUE"):
        parse_condition(text)


def test_a_topic_that_does_not_exist_is_refused():
    with pytest.raises(TopicError, match="nothing"):
        find_partitions(MemoryBroker(), ["nothing"])


def test_lines_are_input_of_a_simulation(tmp_path):
    app = App("echo")
    app.stream("orders", key=Text(), value=Json(Order)).to("out")
    form = topic_format(app.topology, "echo", "orders")
    broker = written("orders", [(b"a", b'{"item":"tea","amount":3}'), (b"b", None), (b"c", b"\xff")])
    lines = RecordLines(form)
    (tmp_path / "orders.jsonl").write_text(
        "".join(line + "\n" for fetched in read_to_end(broker, ["orders"]) for line in lines.lines(fetched))
    )
    (records,) = read_inputs(app.topology, {}, {"orders": tmp_path / "orders.jsonl"}).values()
    assert [(record.key, record.value, record.timestamp) for record in records] == [
        (b"a", b'{"item":"tea","amount":3}', 1000),
        (b"b", None, 1001),
        (b"c", b"\xff", 1002),
    ]


PROGRAM = """
import msgspec
from streams import App, Json, Text, Tumbling

class Order(msgspec.Struct):
    item: str
    amount: int

app = App("{prefix}-shop", create_topics=True)
orders = app.stream("{prefix}-orders", key=Text(), value=Json(Order))
orders.filter(lambda order: order.amount > 10).to("{prefix}-large")
orders.group_by(lambda order: order.item).count("items").to_stream().to("{prefix}-counts", value=Json())
windows = orders.group_by_key().window(Tumbling(seconds=10))
windows.count("windows").updates().to("{prefix}-windows", value=Json())
"""


FOR_EVER = {"retention.ms": "-1"}
COUNTS = {"i0": 2, "i1": 2, "i2": 2}


@pytest.mark.kafka
def test_every_topic_of_an_app_is_shown_as_its_users_know_it(tmp_path, kafka_bootstrap, prefix):
    (tmp_path / "orders.py").write_text(PROGRAM.replace("{prefix}", prefix))
    servers = ("--bootstrap-servers", kafka_bootstrap)
    broker = KafkaBroker({}, servers=kafka_bootstrap)
    broker.admin().create_topics([NewTopic(name=f"{prefix}-orders", partitions=2, settings=FOR_EVER)])
    producer = broker.producer()
    rows = [(b"k%d" % (n % 2), b'{"item": "i%d", "amount": %d}' % (n % 3, n * 5)) for n in range(6)]
    rows.append((b"k0", b'{"item": "lost"}'))
    producer.produce(
        Output(f"{prefix}-orders", [key for key, _ in rows], [value for _, value in rows], [1000] * len(rows))
    )
    producer.flush(10)
    producer.close()

    def lines(topic: str, *options: str) -> list[dict[str, Any]]:
        done = here(tmp_path, "consume", f"{prefix}-{topic}", *options, *servers)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    command = [sys.executable, "-m", "streams", "run", "orders:app", *servers]
    environment = os.environ | {"STREAMS_STATE_DIR": str(tmp_path), "STREAMS_LOG_FORMAT": "json"}
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        app = ("--app", "orders:app")
        until = time.monotonic() + 60

        def counted() -> int:
            if f"{prefix}-shop-items-changelog" not in broker.admin().topics():
                return 0
            changes = lines("shop-items-changelog", *app)
            return sum({line["key"]: line["value"] for line in changes if line.get("key") in COUNTS}.values())

        while counted() < sum(COUNTS.values()):
            assert time.monotonic() < until, (tmp_path / "log").read_text()
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert sorted(line["value"]["amount"] for line in lines("large", *app)) == [15, 20, 25]
    assert {line["key"]: line["value"] for line in lines("counts", *app)} == COUNTS
    changes = [line for line in lines("shop-windows-changelog", *app) if isinstance(line.get("key"), dict)]
    assert {(line["key"]["start"], line["key"]["key"]): line["value"] for line in changes} == {
        (0, "k0"): 3,
        (0, "k1"): 3,
    }
    assert sorted(line["value"]["amount"] for line in lines("orders", *app, "--where", "value.item=i1")) == [
        5,
        20,
    ]
    (letter,) = lines("shop-dead-letters", *app)
    assert letter["headers"]["__streams.errors.topic"] == f"{prefix}-orders"
    assert len(lines("orders", "--limit", "3")) == 3
    assert {line["partition"] for line in lines("orders", "--partition", "1")} <= {1}
    refused = here(tmp_path, "consume", f"{prefix}-orders", "--partition", "7", *servers)
    assert refused.returncode != 0
    assert "has no partition 7: it has 2, numbered from 0" in refused.stderr
    assert "topics do not exist" in here(tmp_path, "consume", f"{prefix}-none", *servers).stderr


@pytest.mark.kafka
def test_following_shows_what_comes_until_a_signal(tmp_path, kafka_bootstrap, prefix):
    broker = KafkaBroker({}, servers=kafka_bootstrap)
    broker.admin().create_topics([NewTopic(name=f"{prefix}-t", partitions=1, settings=FOR_EVER)])
    producer = broker.producer()

    def write(value: bytes) -> None:
        producer.produce(Output(f"{prefix}-t", [None], [value], [1000]))
        producer.flush(10)

    write(b"before")
    command = [sys.executable, "-m", "streams", "consume", f"{prefix}-t", "--follow"]
    with subprocess.Popen(
        [*command, "--offset", "latest", "--bootstrap-servers", kafka_bootstrap],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        # Where it begins is known once a first record is shown.
        until = time.monotonic() + 60
        reader = threading.Thread(target=lines.extend, args=(iter(process.stdout.readline, ""),))
        reader.start()
        while not lines:
            assert time.monotonic() < until
            write(b"first")
            time.sleep(0.1)
        write(b"last")
        while json.loads(lines[-1])["value"] != "last":
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        reader.join(10)
    producer.close()
    assert "before" not in [json.loads(line)["value"] for line in lines]
