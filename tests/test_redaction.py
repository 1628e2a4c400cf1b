"""Secrets are recognised, and never shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from streams import App
from streams.broker.kafka import KafkaBroker
from streams.config import load_settings
from streams.errors import ConfigurationError, NotAuthorized, Right
from streams.events import configure_logging, get_logger
from streams.redaction import is_secret, scrub, secrets_in, without_secrets

SECRET = {
    "sasl.password": "marker-1",
    "ssl.key.password": "marker-2",
    "ssl.keystore.password": "marker-3",
    "ssl.key.pem": "marker-4",
    "sasl.oauthbearer.client.secret": "marker-5",
    "sasl.oauthbearer.assertion.private.key.passphrase": "marker-6",
    "sasl.oauthbearer.assertion.private.key.pem": "marker-7",
    "sasl.oauthbearer.config": "marker-8",
}
SHOWN = {"sasl.username": "alice", "ssl.ca.location": "/etc/ca.pem", "security.protocol": "SASL_SSL"}


def test_secrets_are_known_by_their_settings_names():
    assert secrets_in(SECRET | SHOWN) == set(SECRET.values())
    assert without_secrets(SECRET | SHOWN) == dict.fromkeys(SECRET, "***") | SHOWN
    assert is_secret("http_token")
    assert not is_secret("sasl.oauthbearer.token.endpoint.url")


def test_an_empty_secret_hides_nothing():
    assert secrets_in({"sasl.password": ""}) == set()
    assert scrub("a text", {*secrets_in({"sasl.password": ""})}) == "a text"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://alice:marker@host:1/x?y=1", "http://***@host:1/x?y=1"),
        (
            "no answer from https://marker@host and http://other",
            "no answer from https://***@host and http://other",
        ),
        ("alice@example.org", "alice@example.org"),
    ],
)
def test_names_and_passwords_in_urls_are_hidden(text, shown):
    assert scrub(text) == shown


def test_a_secret_that_begins_another_does_not_leave_its_rest():
    assert scrub("long-secret long", {"long", "long-secret"}) == "*** ***"


def test_settings_show_themselves_without_secrets():
    app = App("test", client=SECRET | SHOWN, consumer=SECRET, producer=SECRET, http_token="marker-of-http")
    printed = io.StringIO()
    Console(file=printed, width=200).print(app.settings)
    for text in (repr(app.settings), str(app.settings), f"{[app.settings]}", printed.getvalue()):
        assert "marker" not in text
        assert "alice" in text
    assert app.settings.client["sasl.password"] == "marker-1"


@pytest.mark.parametrize(
    "environment",
    [
        {"STREAMS_CLIENT": '["marker"]'},
        {"STREAMS_CLIENT": '"sasl.password=marker"'},
        {"STREAMS_CLIENT": '{"sasl.password": "marker"'},
        {"STREAMS_HTTP_TOKEN": "marker"},
        {"STREAMS_HTTP_TOKEN": "a marker with blanks"},
    ],
)
def test_a_wrong_setting_is_refused_without_its_value(environment):
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, environment)
    assert next(iter(environment)) in str(caught.value)
    assert "marker" not in str(caught.value)
    cause: BaseException | None = caught.value
    while cause is not None:
        assert "marker" not in str(cause)
        cause = cause.__cause__


def test_a_client_that_cannot_be_made_does_not_tell_its_secrets():
    broker = KafkaBroker(
        {"bootstrap.servers": "127.0.0.1:1", "security.protocol": "SSL", "ssl.key.pem": "marker"}
    )
    with pytest.raises(ConfigurationError, match="the client settings are not usable") as caught:
        broker.admin()
    assert "marker" not in str(caught.value)


def test_a_traceback_on_a_terminal_has_no_local_variables(capsys):
    def connect(password: str) -> None:
        raise RuntimeError(f"no answer to {len(password)} characters")

    configure_logging("console", "debug")
    try:
        connect("drowssap-a-fo-rekram"[::-1])
    except RuntimeError:
        get_logger().exception("failed")
    said = capsys.readouterr().err
    assert "no answer to 20 characters" in said
    assert "marker-of" not in said


def test_a_missing_right_names_principal_right_resource_and_the_command_that_grants_it():
    error = NotAuthorized(
        "x",
        [Right("READ", "topic", "a b"), Right("WRITE", "topic", "a b"), Right("CREATE", "cluster")],
        principal="User:alice",
    )
    assert str(error) == (
        "User:alice lacks the rights READ on topic 'a b', WRITE on topic 'a b', CREATE on the cluster (x)\n"
        "  hint: grant the missing rights, e.g.:\n"
        "        kafka-acls --add --allow-principal User:alice --operation READ --operation WRITE "
        "--topic 'a b'\n"
        "        kafka-acls --add --allow-principal User:alice --operation CREATE --cluster"
    )
    assert error.exit_code == 10


def test_an_unknown_principal_is_called_this_client():
    error = NotAuthorized("joining", [Right("READ", "transactional id", "x")])
    assert str(error).splitlines()[0] == "this client lacks the right READ on transactional id 'x' (joining)"
    assert "--allow-principal User:NAME --operation READ --transactional-id x" in str(error)
