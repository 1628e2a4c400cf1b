"""Settings from arguments and environment, refused early and in words."""

from __future__ import annotations

import pytest

from streams import App
from streams.config import load_settings
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
        ({"guarantee": "twice"}, "setting guarantee='twice': invalid enum value 'twice'"),
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
            "STREAMS_COMIT_INTERVAL is no setting\n  hint: did you mean STREAMS_COMMIT_INTERVAL?",
        ),
        ("STREAMS_HTTP_PORT", "many", "environment variable STREAMS_HTTP_PORT='many'"),
        ("STREAMS_CLIENT", "{", "STREAMS_CLIENT is no JSON"),
    ],
)
def test_a_wrong_variable_is_refused(variable, text, says):
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, {variable: text})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "name", ["STREAMS_SERVICE_HOST", "STREAMS_PORT", "STREAMS_PORT_80_TCP", "STREAMS_CACHE_DIR"]
)
def test_variables_that_others_set_are_left_alone(name):
    load_settings({}, {name: "tcp://10.0.0.1:80"})


def test_settings_that_commits_depend_on_cannot_be_passed_through():
    app = App("test", bootstrap_servers="nowhere:1", consumer={"enable.auto.commit": True})
    with pytest.raises(
        ConfigurationError, match=r"consumer setting 'enable.auto.commit' is not yours to choose"
    ):
        app.broker()
