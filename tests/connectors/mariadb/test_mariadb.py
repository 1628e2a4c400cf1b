"""Debezium with another database than Postgres, by its properties: a real MariaDB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from streams.connectors.debezium import Debezium
from streams.errors import ConfigurationError
from tests.support.mariadb import required_jars

PROPERTIES = {"database.hostname": "db1", "database.user": "sync", "database.password": "secret"}


def test_the_cases_with_a_real_server():
    """In a process of their own: the Java runtime of this one has other jars."""
    required_jars()
    cases = Path(__file__).with_name("cases.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--quiet",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        str(cases),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name",
    [
        *("snapshot.mode", "table.include.list", "offset.storage", "topic.prefix", "time.precision.mode"),
        *("transforms", "value.converter", "schema.history.internal.kafka.topic"),
    ],
)
def test_a_property_on_which_the_position_or_the_form_of_values_depends_is_refused(name):
    with pytest.raises(ConfigurationError, match=f"the properties {name} are set by the source"):
        Debezium.mysql({**PROPERTIES, name: "x"}, ["shop.orders"])


def test_a_source_of_sql_server_has_one_database():
    with pytest.raises(ConfigurationError, match="needs one database"):
        Debezium.sqlserver(PROPERTIES, ["dbo.orders"])
    with pytest.raises(ConfigurationError, match="needs one database"):
        Debezium.sqlserver({**PROPERTIES, "database.names": "a,b"}, ["dbo.orders"])
    source = Debezium.sqlserver({**PROPERTIES, "database.names": "shop"}, ["dbo.orders"])
    assert source.change_topics("s") == ["s.dbo.orders"]


def test_the_description_has_no_secrets():
    source = Debezium.mysql(PROPERTIES, ["shop.orders"])
    assert repr(source) == "Debezium.mysql(…, tables=[shop.orders])"


def test_a_table_needs_the_name_of_its_database():
    with pytest.raises(ConfigurationError, match="the tables orders need the name of what they are in"):
        Debezium.mysql(PROPERTIES, ["shop.customers", "orders"])


@pytest.mark.parametrize("system", ["mysql", "mariadb", "sqlserver", "oracle", "mongodb"])
def test_single_tables_are_read_again_in_postgres_alone(system):
    with pytest.raises(ConfigurationError) as caught:
        getattr(Debezium, system)(PROPERTIES, ["shop.orders"], table_snapshots={"shop.orders": "2"})
    assert str(caught.value).startswith(
        f"table_snapshots= names shop.orders, and Debezium.{system} cannot read single tables again"
    )
    assert "another snapshot= than '' reads all of the source again" in str(caught.value.hint)


def test_the_jars_of_mariadb_are_needed():
    with pytest.raises(ConfigurationError, match=r"Debezium\.mariadb needs jars="):
        Debezium.mariadb(PROPERTIES, ["shop.orders"])
