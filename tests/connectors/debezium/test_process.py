"""A source in a process of its own: killed at any moment, and ended without closing anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streams.connectors.debezium import Debezium
from tests.support.captured import Captured

if TYPE_CHECKING:
    from collections.abc import Iterator

READER = """
import sys
from streams.connectors.debezium import Debezium
from streams.connectors.source import SourceContext

source = Debezium.postgres(sys.argv[1], ["t"])
source.check("captured", "src")
reader = source.open(SourceContext(application="captured", name="src", task=0, position=b""))
while True:
    batch = reader.read(0.2)
    if batch is not None:
        print(len(batch.records), batch.position.decode(), sep="\\t", flush=True)
        reader.confirm(batch.position)
        if len(sys.argv) > 2:
            break
"""


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", READER, *arguments], stdout=subprocess.PIPE, text=True)


def committed(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line.rstrip("\n").rpartition("\t")[2]


def test_a_process_that_is_killed_is_continued_by_another(database, db):
    db.execute("create table t(id int primary key)")
    db.execute("insert into t select generate_series(1, 10)")
    with started(database) as process:
        position = next(position for position in committed(process) if '"stream"' in position)
        db.execute("insert into t select generate_series(11, 20)")
        process.send_signal(signal.SIGKILL)
    source = Captured(Debezium.postgres(database, ["t"]))
    source.position = position.encode()
    source.count(10)
    assert list(source.table()) == list(range(11, 21))
    source.close()


def test_a_process_ends_although_its_source_is_open(database, db):
    db.execute("create table t(id int primary key)")
    with started(database, "once") as process:
        # Starting Java and the snapshot take what the machine needs; then nothing is left to wait for.
        assert next(committed(process))
        process.communicate(timeout=60)
    assert process.returncode == 0


ZONED = """
import sys
from streams.connectors.debezium import Debezium, jvm
from tests.support.captured import Captured

jvm.start()
source = Captured(Debezium.postgres(sys.argv[1], ["t"]))
source.count(1)
print(list(source.changes[0].after.values()))
source.close()
"""


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_the_time_zone_of_the_process_changes_no_value(database, db, zone):
    db.execute(
        "create table t(id int primary key, d date, n date, ts timestamp, tz timestamptz, h time,"
        " ats timestamp[] check ('1582-10-15' <= all (ats))); alter table t replica identity full"
    )
    # New York had no such time, and Tokyo's midnight is another day in UTC.
    gap = "2026-03-08T02:30:00"
    db.execute(
        "insert into t values (1, 'infinity', '2026-03-08', %s, '2026-03-08 00:00+00', '24:00', %s)",
        [gap, f"{{{gap}}}"],
    )
    process = subprocess.run(
        [sys.executable, "-c", ZONED, database],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"TZ": zone},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    expected = [1, "infinity", "2026-03-08", gap, "2026-03-08T00:00:00.000000Z", "24:00:00", [gap]]
    assert process.stdout == f"{expected}\n"


NESTED = """
import json
from streams.connectors.debezium import jvm

jvm.start()
try:
    json.loads("[" * 100_000 + "]" * 100_000)
except RecursionError:
    print("RecursionError")
"""


def test_deep_recursion_in_the_main_thread_is_an_error_and_not_the_end_of_the_process():
    process = subprocess.run([sys.executable, "-c", NESTED], stdout=subprocess.PIPE, text=True, check=False)
    assert (process.returncode, process.stdout) == (0, "RecursionError\n")


COLLECTED = """
import gc
import threading
from streams.connectors.debezium import jvm

jvm.start()
complete = []
gc.callbacks.append(lambda phase, info: phase == "start" and info["generation"] == 2 and complete.append(1))
java = jvm.java_class("java.lang.System")
for _ in range(20):
    java.gc()
    # The thread that would notice it needs a moment.
    threading.Event().wait(0.02)
threading.Event().wait(0.5)
print(len(complete))
"""


def test_collections_of_java_are_not_followed_by_complete_ones_of_python():
    process = subprocess.run([sys.executable, "-c", COLLECTED], stdout=subprocess.PIPE, text=True, check=True)
    assert int(process.stdout) < 5, "20 of Java"


LOSING = """
import sys
from streams.connectors.debezium import Debezium, jvm
from streams.errors import ConnectorError
from tests.support.captured import Captured

jvm.start()
jvm.java_class("java.lang.System").gc()
source = Captured(Debezium.postgres(sys.argv[1], ["t"]))
try:
    source.count(2)
except ConnectorError as error:
    print(error)
print([change.after for change in source.changes])
source.close()
"""

LOG4J = """<?xml version="1.0"?>
<Configuration>
  <Appenders><Console name="own"/></Appenders>
  <Loggers>
    <Logger name="io.debezium" level="off" additivity="false"/>
    <Root level="error"><AppenderRef ref="own"/></Root>
  </Loggers>
</Configuration>
"""


@pytest.mark.parametrize(
    "variables", [{}, {"LOG4J_CONFIGURATION_FILE": "log4j.xml"}], ids=["defaults", "configured"]
)
def test_a_lost_value_stops_the_source_whatever_became_of_java_logging(database, db, tmp_path, variables):
    """Debezium tells of it by a warning alone.

    Nothing but Python knew of the place where it goes before Debezium had a logger: Java's next collection
    took it. JPype begins one whenever the process has grown.
    """
    db.execute("create table t(id int primary key, v int[]); alter table t replica identity full")
    db.execute("insert into t values (1, '{{1}}')")
    (tmp_path / "log4j.xml").write_text(LOG4J)
    process = subprocess.run(
        [sys.executable, "-c", LOSING, database],
        cwd=Path(__file__).parents[3],
        env=os.environ | {name: str(tmp_path / file) for name, file in variables.items()},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    error, changes = process.stdout.splitlines()
    assert "several dimensions" in error
    assert changes == "[]"


SILENCED = """
from streams.connectors.debezium import jvm
from streams.errors import ConnectorError

jvm.start()
level = jvm.java_class("org.apache.logging.log4j.Level")
for logger in ("io.debezium", "io.debezium.connector"):
    jvm.java_class("org.apache.logging.log4j.core.config.Configurator").setLevel(logger, level.OFF)
try:
    jvm.start()
except ConnectorError as error:
    print(error)
"""


def test_no_source_starts_where_debezium_cannot_warn():
    process = subprocess.run([sys.executable, "-c", SILENCED], stdout=subprocess.PIPE, text=True, check=True)
    assert process.stdout.startswith("warnings of Debezium do not reach Python"), process.stdout


OTHERS_RUNTIME = """
import jpype
from streams.connectors.debezium import jvm
from streams.errors import ConnectorError

jpype.startJVM(str(jvm._libjvm()), "-Xmx64m", "-XX:+UseSerialGC")
try:
    jvm.start()
except ConnectorError as error:
    print(error)
"""


def test_a_runtime_that_other_code_has_started_is_refused():
    process = subprocess.run(
        [sys.executable, "-c", OTHERS_RUNTIME], stdout=subprocess.PIPE, text=True, check=True
    )
    assert "was started by other code" in process.stdout
