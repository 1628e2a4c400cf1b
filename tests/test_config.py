"""Settings from arguments and environment, and their early errors."""

from __future__ import annotations

import pytest

from streams import App
from streams.broker.kafka import KafkaBroker
from streams.config import Settings, load_settings
from streams.errors import ConfigurationError


def test_the_environment_wins_over_the_program():
    settings = load_settings({"commit_interval": 2.0}, {"STREAMS_COMMIT_INTERVAL": "0.5", "OTHER": "x"})
    assert settings.commit_interval == 0.5


def test_words_numbers_and_objects_are_read_from_the_environment():
    settings = load_settings(
        {},
        {
            "STREAMS_CREATE_TOPICS": "true",
            "STREAMS_HTTP_PORT": "8000",
            "STREAMS_GUARANTEE": "at_least_once",
            "STREAMS_CLIENT": '{"security.protocol": "SSL"}',
        },
    )
    assert (settings.create_topics, settings.http_port, settings.guarantee) == (True, 8000, "at_least_once")
    assert settings.client == {"security.protocol": "SSL"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"comit_interval": 1.0}, "unknown setting 'comit_interval'\n  hint: did you mean commit_interval?"),
        ({"commit_interval": "soon"}, "setting commit_interval='soon': expected `float`, got `str`"),
        ({"commit_interval": 0.0}, "setting commit_interval=0.0: expected `float` > 0.0"),
        (
            {"guarantee": "twice"},
            (
                "setting guarantee='twice': invalid enum value 'twice'\n"
                "  hint: one of: exactly_once, at_least_once"
            ),
        ),
        ({"dead_letter_limit": 1.5}, "setting dead_letter_limit=1.5: expected `float` <= 1.0"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_app_is_made(arguments, says):
    with pytest.raises(ConfigurationError) as caught:
        App("test", **arguments)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        (
            "STREAMS_COMIT_INTERVAL",
            "1",
            "STREAMS_COMIT_INTERVAL is not a setting\n  hint: did you mean STREAMS_COMMIT_INTERVAL?",
        ),
        ("STREAMS_HTTP_PORT", "many", "environment variable STREAMS_HTTP_PORT='many'"),
        ("STREAMS_CLIENT", "{", "STREAMS_CLIENT is not JSON"),
        ("STREAMS_LOG_LEVEL", "loud", "hint: one of: debug, info, warning, error"),
    ],
)
def test_a_wrong_variable_is_refused(variable, text, says):
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, {variable: text})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "name", ["STREAMS_SERVICE_HOST", "STREAMS_PORT", "STREAMS_PORT_80_TCP", "STREAMS_CACHE_DIR"]
)
def test_variables_of_other_programs_are_ignored(name):
    load_settings({}, {name: "tcp://10.0.0.1:80"})


def test_settings_that_commits_depend_on_cannot_be_passed_through():
    app = App("test", bootstrap_servers="nowhere:1", consumer={"enable.auto.commit": True})
    with pytest.raises(ConfigurationError, match=r"consumer setting 'enable.auto.commit' cannot be set"):
        app.broker()


@pytest.mark.parametrize("name", ["state_dir", "worker_id", "dead_letter_topic", "bootstrap_servers"])
def test_every_setting_can_be_given_in_the_environment(name):
    assert (
        getattr(load_settings({name: "program"}, {f"STREAMS_{name.upper()}": "operator"}), name) == "operator"
    )


def test_no_setting_is_hidden_from_the_environment():
    texts = {float: "2.5", int: "3", bool: "true", str: "text"}
    for name in Settings.__struct_fields__:
        default = getattr(Settings(), name)
        if isinstance(default, dict):
            text = '{"a": 1}'
        elif default is True:
            text = "false"
        elif name in ENUMERATED:
            text = ENUMERATED[name]
        else:
            text = "5" if name == "http_port" else texts.get(type(default), "text")
        text = {"dead_letter_limit": "0.25", "state_memory_mb": "33", "http_token": "long-enough"}.get(
            name, text
        )
        assert getattr(load_settings({}, {f"STREAMS_{name.upper()}": text}), name) != default, name


ENUMERATED = {
    "http_console": "read_only",
    "guarantee": "at_least_once",
    "group_protocol": "classic",
    "offset_reset": "latest",
    "out_of_range_reset": "latest",
    "log_format": "json",
    "log_level": "debug",
    "state_store": "memory",
    "schema_subjects": "record",
    "schema_compatibility": "FULL",
}


@pytest.mark.parametrize(
    "name",
    [
        # Kubernetes' variables for the services streams, streams-web and streams-web-ui.
        "STREAMS_SERVICE_PORT_HTTP_METRICS",
        "STREAMS_PORT_80_TCP_ADDR",
        "STREAMS_WEB_SERVICE_HOST",
        "STREAMS_WEB_SERVICE_PORT",
        "STREAMS_WEB_SERVICE_PORT_HTTP",
        "STREAMS_WEB_PORT",
        "STREAMS_WEB_PORT_443_TCP",
        "STREAMS_WEB_PORT_443_TCP_PROTO",
        "STREAMS_WEB_UI_SERVICE_HOST",
    ],
)
def test_a_service_whose_name_begins_with_streams_keeps_no_app_from_starting(name):
    load_settings({}, {name: "tcp://10.0.0.1:80"})


@pytest.mark.parametrize("text", ["[1]", "null", "7", '"security.protocol=SSL"'])
def test_client_settings_that_are_no_object_are_refused(text):
    with pytest.raises(ConfigurationError, match="STREAMS_CONSUMER"):
        load_settings({}, {"STREAMS_CONSUMER": text})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("http_port", "65536"),
        ("http_port", "-1"),
        ("max_poll_records", "0"),
        ("poll_deadline", "-5"),
        ("dead_letter_limit", "0"),
        ("commit_interval", "nan"),
        ("create_topics", "perhaps"),
        ("log_level", "loud"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_variables_name(name, text):
    variable = f"STREAMS_{name.upper()}"
    with pytest.raises(ConfigurationError, match=f"environment variable {variable}="):
        load_settings({}, {variable: text})


def test_words_are_not_taken_for_numbers_in_a_program():
    with pytest.raises(
        ConfigurationError, match=r"setting http_port='8000': expected `int \| null`, got `str`"
    ):
        load_settings({"http_port": "8000"}, {})


def test_the_environment_replaces_all_client_settings():
    given = {"client": {"security.protocol": "SSL", "client.rack": "a"}}
    settings = load_settings(given, {"STREAMS_CLIENT": '{"client.rack": "b"}'})
    assert settings.client == {"client.rack": "b"}
    assert load_settings(given, {}).client == given["client"]


def test_a_name_like_no_other_is_answered_with_all_settings():
    with pytest.raises(ConfigurationError, match=r"hint: settings are: bootstrap_servers, guarantee, "):
        load_settings({"qqqq": 1}, {})


def test_an_app_reads_the_environment_when_it_is_made(monkeypatch):
    monkeypatch.setenv("STREAMS_MAX_POLL_RECORDS", "7")
    app = App("test", max_poll_records=9)
    monkeypatch.setenv("STREAMS_MAX_POLL_RECORDS", "8")
    assert app.settings.max_poll_records == 7


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("größe", "it contains 'ö'"),
        ("订单", "it contains '订'"),
        ("orders²", "it contains '²'"),
        ("a b", "it contains ' '"),
        ("a\n", "it contains '\\n'"),
        ("", "it is empty"),
        (".", "not a valid folder name"),
        ("..", "not a valid folder name"),
        ("a" * 300, "it has 300 characters, at most 249 are allowed"),
        ("a" * 249, "it has 262 characters, at most 249 are allowed"),
    ],
)
def test_a_name_that_no_topic_can_have_names_no_app(name, says):
    with pytest.raises(ConfigurationError) as caught:
        App(name)
    assert says in str(caught.value)
    assert "hint: use letters" in str(caught.value)


def test_names_that_kafka_takes_name_an_app():
    for name in ("a", "A.b_c-9", "..a", "a" * 236):
        assert App(name).name == name


def test_a_dead_letter_topic_that_cannot_be_is_refused_when_the_app_is_made():
    with pytest.raises(ConfigurationError, match="dead_letter_topic='a b' cannot name a topic"):
        App("test", dead_letter_topic="a b")


@pytest.mark.parametrize(
    "client",
    [
        {},
        # Above the library's bound, which follows.
        {"reconnect.backoff.ms": 5_000},
        {"reconnect.backoff.ms": "5000"},
        {"reconnect.backoff.max.ms": 200},
        {"reconnect.backoff.ms": 5_000, "reconnect.backoff.max.ms": 20_000},
    ],
)
def test_the_bound_on_reconnecting_fits_the_users_settings(client):
    """The client refuses a longest time below the first one."""
    KafkaBroker(client, servers="localhost:1", consumer={"fetch.min.bytes": 1}, producer={"linger.ms": 1})


def test_a_bound_on_reconnecting_below_its_first_time_is_refused_as_the_user_has_set_it():
    client = {"reconnect.backoff.ms": 5_000, "reconnect.backoff.max.ms": 1_000}
    with pytest.raises(ConfigurationError, match=r"reconnect\.backoff\.max\.ms"):
        KafkaBroker(client, servers="localhost:1", consumer={"fetch.min.bytes": 1})
