"""Java's ``.properties`` files, read as Java reads them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from streams.cli.properties_file import read_properties
from streams.connectors.debezium import jvm
from streams.errors import ConfigurationError


@pytest.fixture
def read(tmp_path):
    def read(text: str, **environment: str) -> dict[str, str]:
        path = tmp_path / "shop.properties"
        path.write_text(text, encoding="utf-8", newline="")
        return read_properties(path, environment)

    return read


def test_what_a_file_may_have(read):
    text = (
        "# A comment \\\n"
        "! another one\r\n"
        "\n"
        "database.hostname=db1\n"
        "  database.port : 3306\r\n"
        "database.user sync\n"
        "table.list=a, \\\n"
        "    b, \\\n"
        "    # c\n"
        "path=C:\\\\data\\\\\n"
        "name\\ with\\:\\==x=y:z \n"
        "words=\\u00fc\\ud83d\\ude00ä\\t\\q\n"
        "empty=\n"
        "last=1\\"
    )
    assert read(text) == {
        "database.hostname": "db1",
        "database.port": "3306",
        "database.user": "sync",
        "table.list": "a, b, # c",
        "path": "C:\\data\\",
        "name with:=": "x=y:z ",
        "words": "ü😀ä\tq",
        "empty": "",
        "last": "1",
    }


def test_secrets_may_be_in_the_environment(read):
    text = "password=${env:SECRET}\nurl=a-${env:HOST}:${env:PORT}\ntemplate=${table}"
    found = read(text, SECRET="${env:HOST}=\\", HOST="db1", PORT="1")
    assert found == {"password": "${env:HOST}=\\", "url": "a-db1:1", "template": "${table}"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=1\n\nhost\n", "line 3: host is no property: write NAME=VALUE"),
        ("a=1\\\n  2\n=x", "line 3: =x is no property"),
        ("a=\\u12g4", "line 1: .u needs four hexadecimal digits"),
        ("a=\\ud83d", "line 1: .u is half of a character"),
        ("a=1\nb=2\n#\na:3", "line 4: a is given in line 1 already"),
        ("a=${env:NOT_SET}", "line 1: the environment variable NOT_SET is not set"),
        ("a=${file:/etc/x:y}", r"line 1: \$\{file:…\} is not supported: only \$\{env:NAME\}"),
    ],
)
def test_a_line_that_is_no_property_is_refused_with_its_number(read, text, message):
    with pytest.raises(ConfigurationError, match=message):
        read(text)


def test_another_encoding_is_refused(tmp_path):
    path = tmp_path / "shop.properties"
    path.write_bytes("a=ü".encode("latin-1"))
    with pytest.raises(ConfigurationError, match="not in UTF-8: byte 2"):
        read_properties(path, {})


PARTS = st.sampled_from(
    ["a", "b", "=", ":", " ", "\t", "\f", "\\", "\\\\", "\n", "\r", "\r\n", "#", "!", "\\n", "\\u0041", "ü"]
)


@given(st.lists(PARTS, max_size=25).map("".join))
def test_files_are_read_as_java_reads_them(tmp_path_factory, text):
    jvm.start()
    java = jvm.java_class("java.util.Properties")()
    java.load(jvm.java_class("java.io.StringReader")(text))
    expected = {str(name): str(java.getProperty(name)) for name in java.stringPropertyNames()}
    # Of a backslash that is all there is.
    expected.pop("", None)
    path = tmp_path_factory.getbasetemp() / "any.properties"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        found = read_properties(path, {})
    except ConfigurationError as error:
        refused = str(error)
    else:
        refused = ""
        assert found == expected
    # Java takes a name without a value, a value without a name, and the last of two.
    assert not refused or "is no property" in refused or "already" in refused
