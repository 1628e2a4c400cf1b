"""The small server: fixed paths, whatever they answer."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

import pytest

from streams.config import Settings
from streams.errors import ConfigurationError
from streams.http import HttpServer, Request, Response, ask


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


def test_a_template_takes_its_parameters_from_the_path_and_the_query_apart():
    asked: list[Request] = []

    def answer(request: Request) -> Response:
        asked.append(request)
        return Response(200, b"yes")

    with HttpServer(
        "127.0.0.1", 0, {"/fixed": lambda: Response(200, b"")}, {"/of/{one}/{two}": answer}
    ) as server:
        address = server.url.removeprefix("http://")
        target = "/of/a%2Fb/%C3%BC%FF?x=1%262&y=&x=3"
        response = ask(address, target, headers={"X-Mine": "5"}, timeout=5)
        assert response is not None
        assert (response.status, response.body) == (200, b"yes")
        missing = ask(address, "/of/a", headers={}, timeout=5)
        assert missing is not None
        assert (missing.status, missing.body) == (404, b"not here; try /fixed, /of/{one}/{two}\n")
    (request,) = asked
    assert request.target == target
    assert request.parameters == {"one": "a/b", "two": "ü\udcff"}
    assert request.query == {"x": "3", "y": ""}
    assert request.headers["x-mine"] == "5"
    assert ask(address, "/fixed", headers={}, timeout=1) is None


def test_a_port_that_is_taken_is_named():
    with (
        HttpServer("127.0.0.1", 0, {}) as server,
        pytest.raises(ConfigurationError, match=f"{server.port} cannot be used"),
    ):
        HttpServer("127.0.0.1", server.port, {})


def test_a_route_that_fails_is_a_server_error_and_the_next_request_is_answered(capfd):
    def fail() -> Response:
        raise RuntimeError("made to fail")

    with HttpServer("127.0.0.1", 0, {"/bad": fail, "/fine": lambda: Response(200, b"yes")}) as server:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.url}/bad", timeout=5)
        assert caught.value.code == 500
        caught.value.close()
        with urllib.request.urlopen(f"{server.url}/fine", timeout=5) as answer:
            assert answer.status == 200


def test_a_slow_route_does_not_keep_others_waiting():
    started, go_on = threading.Event(), threading.Event()

    def slow() -> Response:
        started.set()
        go_on.wait(10)
        return Response(200, b"late")

    answers: list[bytes] = []

    def get_slow() -> None:
        with urllib.request.urlopen(f"{server.url}/slow", timeout=10) as answer:
            answers.append(answer.read())

    with HttpServer("127.0.0.1", 0, {"/slow": slow, "/fine": lambda: Response(200, b"yes")}) as server:
        thread = threading.Thread(target=get_slow)
        thread.start()
        assert started.wait(10)
        with urllib.request.urlopen(f"{server.url}/fine", timeout=5) as answer:
            assert answer.read() == b"yes"
        go_on.set()
        thread.join()
    assert answers == [b"late"]


def test_a_closed_server_gives_its_port_back():
    with HttpServer("127.0.0.1", 0, {}) as server:
        port = server.port
    with HttpServer("127.0.0.1", port, {"/": lambda: Response(200, b"again")}) as server:
        assert urllib.request.urlopen(f"{server.url}/", timeout=5).read() == b"again"


def test_an_answer_has_its_type_and_nothing_is_said_on_the_terminal(capfd):
    with (
        HttpServer("127.0.0.1", 0, {"/": lambda: Response(200, b"{}", "application/json")}) as server,
        urllib.request.urlopen(f"{server.url}/", timeout=5) as answer,
    ):
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Content-Length"] == "2"
    assert capfd.readouterr() == ("", "")


def test_a_port_past_the_last_is_refused_in_words():
    # The setting is in range, but each further worker takes the next port.
    with pytest.raises(ConfigurationError, match="65536 cannot be used"):
        HttpServer("127.0.0.1", 65536, {})


def test_without_the_token_nothing_but_the_public_is_answered():
    token = "a-token-of-some-length"
    routes = {"/metrics": lambda: Response(200, b"numbers"), "/healthz": lambda: Response(200, b"ok")}
    templates = {"/stores/{store}": lambda _request: Response(200, b"state")}
    with HttpServer("127.0.0.1", 0, routes, templates, token=token, public=["/healthz"]) as server:
        address = server.url.removeprefix("http://")

        def status(path: str, header: str | None) -> int:
            response = ask(address, path, headers={"Authorization": header} if header else {}, timeout=5)
            assert response is not None
            return response.status

        for path in ("/metrics", "/stores/counts", "/elsewhere"):
            for wrong in (
                None,
                "Bearer",
                "Bearer ",
                f"Basic {token}",
                token,
                f"Bearer {token}x",
                f"Bearer {token[:-1]}",
                "Bearer \xfc",
            ):
                assert status(path, wrong) == 401, (path, wrong)
        assert status("/healthz", None) == 200
        assert status("/healthz?x=1", "Bearer wrong") == 200
        assert status("/metrics", f"Bearer {token}") == 200
        assert status("/stores/counts", f"bearer {token}") == 200
        assert status("/elsewhere", f"Bearer {token}") == 404
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.url}/metrics", timeout=5)
        with caught.value as refused:
            assert refused.headers["WWW-Authenticate"] == "Bearer"
            assert token not in refused.read().decode()


def test_the_default_is_to_listen_on_this_machine_only():
    assert Settings().http_host == "127.0.0.1"
    assert Settings().http_token is None
