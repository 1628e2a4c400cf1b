"""librdkafka's own settings: those that exactly-once depends on are refused, with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from streams import App
from streams.broker.kafka import KafkaBroker
from streams.errors import ConfigurationError

CONSUMER: list[tuple[str, Any, str]] = [
    ("isolation.level", "read_uncommitted", "aborted transactions"),
    ("enable.auto.commit", True, "commit_interval"),
    ("enable.auto.commit", "true", "committed together with the results"),
    ("auto.commit.enable", 1, "commit_interval"),
    ("auto.commit.interval.ms", 5000, "commit_interval"),
    ("enable.auto.offset.store", True, "committed together with the results"),
    ("offset.store.method", "file", "committed together with the results"),
    ("enable.partition.eof", False, "caught up"),
    ("auto.offset.reset", "latest", "offset_reset or out_of_range_reset"),
    ("group.id", "other", "the app's name is the group's id"),
    ("group.instance.id", "one", "group_instance_id"),
    ("group.protocol", "classic", "group_protocol"),
    ("group.remote.assignor", "uniform", "equal partition numbers"),
    ("partition.assignment.strategy", "cooperative-sticky", "equal partition numbers"),
    ("session.timeout.ms", 6000, "session_timeout"),
    ("heartbeat.interval.ms", 1000, "session_timeout"),
    ("max.poll.interval.ms", 1000, "poll_deadline"),
    ("allow.auto.create.topics", True, "silently be created"),
    ("on_commit", print, "callback"),
]
PRODUCER: list[tuple[str, Any, str]] = [
    ("transactional.id", "mine", "worker_id"),
    ("transaction.timeout.ms", 60000, "transaction_timeout"),
    ("message.timeout.ms", 1000, "transaction_timeout"),
    ("delivery.timeout.ms", 1000, "transaction_timeout"),
    ("enable.idempotence", False, "lost, duplicated"),
    ("enable.idempotence", "0", "lost, duplicated"),
    ("acks", 1, "lost, duplicated"),
    ("request.required.acks", "0", "lost, duplicated"),
    ("max.in.flight", 6, "more than 5"),
    ("max.in.flight.requests.per.connection", "100", "more than 5"),
    ("retries", 0, "transaction_timeout"),
    ("message.send.max.retries", 3, "transaction_timeout"),
    ("partitioner", "consistent_random", "Java clients"),
    ("partitioner", "murmur2", "Java clients"),
    ("delivery.report.only.error", False, "failures"),
    ("enable.gapless.guarantee", True, "end the client"),
    ("on_delivery", print, "callback"),
    ("dr_msg_cb", print, "callback"),
]
ANY: list[tuple[str, Any, str]] = [
    ("bootstrap.servers", "elsewhere:9092", "bootstrap_servers"),
    ("metadata.broker.list", "elsewhere:9092", "bootstrap_servers"),
    ("default.topic.config", {"acks": 1}, "not checked"),
    ("topic.blacklist", "orders.*", "look missing"),
    ("api.version.request", False, "transactions"),
    ("error_cb", print, "callback"),
    ("logger", None, "without secrets"),
]
CASES = [
    *(("consumer", *case) for case in (*CONSUMER, *ANY)),
    *(("producer", *case) for case in (*PRODUCER, *ANY)),
    *(("client", *case) for case in (*CONSUMER, *PRODUCER, *ANY)),
]


def app_with(kind: str, **settings: Any) -> App:
    given: dict[str, Any] = {kind: settings}
    return App("test", bootstrap_servers="127.0.0.1:9", **given)


@pytest.mark.parametrize(("kind", "name", "value", "says"), CASES)
def test_a_setting_that_commits_or_places_depend_on_is_refused_with_the_reason(kind, name, value, says):
    app = app_with(kind, **{name: value})
    with pytest.raises(ConfigurationError) as refused:
        app.broker()
    text = str(refused.value)
    assert f"{kind} setting {name!r} cannot be set" in text
    assert says in text
    assert refused.value.exit_code == 2
    assert "elsewhere" not in text


def test_all_wrong_settings_are_reported_together():
    app = app_with(
        "consumer", **{"isolation.level": "read_uncommitted", "group.id": "x", "fetch.min.bytes": 2}
    )
    with pytest.raises(ConfigurationError) as refused:
        app.broker()
    assert "'isolation.level'" in str(refused.value)
    assert "'group.id'" in str(refused.value)
    assert "fetch.min.bytes" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("consumer", {"isolation.level": "read_committed", "enable.auto.commit": False}),
        ("consumer", {"enable.partition.eof": "true", "partition.assignment.strategy": "range"}),
        ("producer", {"enable.idempotence": True, "acks": "all", "partitioner": "murmur2_random"}),
        ("producer", {"max.in.flight": 5, "retries": 2147483647, "acks": -1}),
        ("client", {"enable.idempotence": "True", "enable.auto.offset.store": "false"}),
        ("consumer", {"fetch.min.bytes": 1000, "queued.min.messages": "10", "client.rack": "a"}),
        ("consumer", {"max.partition.fetch.bytes": 1 << 20, "fetch.wait.max.ms": 5, "check.crcs": True}),
        ("producer", {"linger.ms": 0, "batch.size": 1000, "compression.type": "lz4"}),
        ("producer", {"queue.buffering.max.messages": 10, "queue.buffering.max.ms": 7.5}),
        ("producer", {"socket.timeout.ms": 60_000, "sticky.partitioning.linger.ms": 5}),
        ("client", {"client.id": "me", "statistics.interval.ms": 1000, "stats_cb": print, "debug": "all"}),
        ("client", {"socket.keepalive.enable": True, "fetch.min.bytes": 2, "linger.ms": 1}),
    ],
)
def test_what_is_a_matter_of_taste_or_just_as_it_has_to_be_is_taken(kind, settings):
    broker = app_with(kind, **settings).broker()
    producer = broker.producer(transactional_id="test", transaction_timeout=5.0)
    producer.close()


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("consumer", {"fetch.min.byte": 5}, r"fetch\.min\.byte.*\n.*did you mean fetch\.min\.bytes\?"),
        ("consumer", {"max.poll.records": 5}, r"max\.poll\.records.*\n.*max_poll_records"),
        ("producer", {"delivery.timeout": 5}, r"delivery\.timeout.*\n.*did you mean delivery\.timeout\.ms"),
        ("producer", {"nothing.like.it": 5}, r"nothing\.like\.it.*\n.*CONFIGURATION\.md"),
        ("consumer", {"fetch.min.bytes": "many"}, r"consumer settings.*Invalid value.*fetch\.min\.bytes"),
        ("consumer", {"fetch.min.bytes": [1]}, r"consumer settings.*fetch\.min\.bytes"),
        ("consumer", {"fetch.min.bytes": None}, r"consumer settings.*fetch\.min\.bytes"),
        ("consumer", {"check.crcs": "perhaps"}, r"consumer settings.*check\.crcs"),
        ("producer", {"compression.type": "zip"}, r"producer settings.*compression"),
        ("producer", {"socket.timeout.ms": "soon"}, r"producer settings.*socket\.timeout\.ms"),
        ("client", {"stats_cb": 5}, r"client settings.*stats_cb"),
        ("client", {"fetch.min.byte": 5}, r"client settings.*\n.*did you mean fetch\.min\.bytes\?"),
        (
            "consumer",
            {"linger.ms": 5},
            r"setting of producers and has no effect on consumers.*\n.*into the setting producer",
        ),
        ("producer", {"fetch.min.bytes": 5}, r"setting of consumers and has no effect on producers"),
    ],
)
def test_what_the_client_does_not_take_is_refused_before_it_is_used(kind, settings, says):
    app = app_with(kind, **settings)
    with pytest.raises(ConfigurationError, match=says):
        app.broker().admin()


def test_a_wait_between_attempts_of_the_users_own_reaches_the_transactional_client():
    # Beyond what the client takes, so that its refusal shows which value it was given.
    broker = KafkaBroker({"bootstrap.servers": "127.0.0.1:9", "retry.backoff.ms": 500_000})
    with pytest.raises(ConfigurationError, match=r"retry\.backoff\.ms.*500000"):
        broker.producer(transactional_id="test")


def test_a_secret_in_a_setting_that_is_refused_is_not_shown():
    app = app_with(
        "consumer", **{"sasl.password": "marker", "sasl.mechanism": "PLAIN", "sasl.pasword": "marker"}
    )
    with pytest.raises(ConfigurationError, match=r"sasl\.pasword") as refused:
        app.broker()
    assert "marker" not in str(refused.value)


def test_the_command_ends_with_exit_code_2_and_nothing_is_made(tmp_path):
    (tmp_path / "refused.py").write_text(
        "from streams import App\napp = App('refused')\napp.stream('in').to('out')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "streams", "run", "refused:app"],
        cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("STREAMS_")},
            "STREAMS_BOOTSTRAP_SERVERS": "127.0.0.1:9",
            "STREAMS_STATE_DIR": str(tmp_path / "state"),
            "STREAMS_CONSUMER": '{"isolation.level": "read_uncommitted"}',
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "'isolation.level' cannot be set" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "state").exists()
