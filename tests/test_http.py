"""The small server: fixed paths, whatever they answer."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from streams.errors import ConfigurationError
from streams.http import HttpServer, Response


def test_it_answers_what_a_route_says_and_404_elsewhere():
    with HttpServer(
        "127.0.0.1", 0, {"/fine": lambda: Response(200, b"yes"), "/not": lambda: Response(503, b"no")}
    ) as server:
        with urllib.request.urlopen(f"{server.url}/fine?x=1", timeout=5) as answer:
            assert (answer.status, answer.read()) == (200, b"yes")
        for path, code in (("/not", 503), ("/other", 404)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(server.url + path, timeout=5)
            assert caught.value.code == code
            caught.value.close()


def test_a_port_that_is_taken_is_named():
    with (
        HttpServer("127.0.0.1", 0, {}) as server,
        pytest.raises(ConfigurationError, match=f"{server.port} cannot be used"),
    ):
        HttpServer("127.0.0.1", server.port, {})
