"""The HTTP server: fixed paths, templates, limits and TLS."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import urllib.error
import urllib.request

import psutil
import pytest
import trustme

from streams.config import Settings
from streams.errors import ConfigurationError
from streams.queries import http_server
from streams.queries.http import Request, Response, Tls, ask, client_tls
from streams.queries.http_server import MOST_CONNECTIONS, HttpServer
from tests.support.waiting import wait_until


def test_it_serves_its_routes_and_404_elsewhere():
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
        assert (missing.status, missing.content_type) == (404, "application/json")
        assert json.loads(missing.body) == {
            "reason": "no such path",
            "error": "there is no path /of/a; paths are: /fixed, /of/{one}/{two}",
        }
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


def test_a_response_has_its_type_and_nothing_is_printed(capfd):
    with (
        HttpServer("127.0.0.1", 0, {"/": lambda: Response(200, b"{}", "application/json")}) as server,
        urllib.request.urlopen(f"{server.url}/", timeout=5) as answer,
    ):
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Content-Length"] == "2"
    assert capfd.readouterr() == ("", "")


def test_a_port_beyond_the_highest_is_refused_with_a_message():
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


def read_all(connection: socket.socket) -> bytes:
    connection.settimeout(20)
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404, "no such path"),
        (b"POST /fine HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405, "method not allowed"),
        (b"DELETE /fine HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405, "method not allowed"),
        (b"GET /bad HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 500, "internal error"),
        (b"this is no HTTP\r\n\r\n", 400, "bad request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad request"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 400, "bad request"),
    ],
)
def test_every_refusal_is_json_with_a_status_that_fits(sent, status, reason, capfd):
    def fail() -> Response:
        raise RuntimeError("made to fail")

    with (
        HttpServer("127.0.0.1", 0, {"/fine": lambda: Response(200, b"yes"), "/bad": fail}) as server,
        socket.create_connection(("127.0.0.1", server.port)) as connection,
    ):
        connection.sendall(sent)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"application/json" in head
        assert json.loads(body)["reason"] == reason
    assert capfd.readouterr() == ("", "")


def test_head_is_answered_without_a_body():
    with HttpServer("127.0.0.1", 0, {"/fine": lambda: Response(200, b"yes")}) as server:
        request = urllib.request.Request(f"{server.url}/fine", method="HEAD")
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, "3", b"")


def test_a_thousand_idle_connections_block_no_client_and_leave_descriptors_free(capfd):
    with HttpServer("127.0.0.1", 0, {"/healthz": lambda: Response(200, b"ok")}, token="x" * 8) as server:
        before = psutil.Process().num_fds()
        idle = []
        try:
            for number in range(1000):
                connection = socket.create_connection(("127.0.0.1", server.port))
                if number % 2:
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
                idle.append(connection)
            response = ask(
                f"127.0.0.1:{server.port}",
                "/healthz",
                headers={"Authorization": "Bearer xxxxxxxx"},
                timeout=10,
            )
            assert response is not None
            assert response.body == b"ok"
            # Those of this side are a thousand of them.
            wait_until(lambda: psutil.Process().num_fds() - before - 1000 <= MOST_CONNECTIONS + 2)
        finally:
            for connection in idle:
                connection.close()
    assert capfd.readouterr() == ("", "")


def test_connections_that_bring_no_request_or_take_no_answer_are_closed(monkeypatch):
    for name, seconds in (("IDLE_SECONDS", 1.0), ("ANSWER_SECONDS", 1.0), ("LOOK_SECONDS", 0.1)):
        monkeypatch.setattr(http_server, name, seconds)
    large = Response(200, b"x" * 50_000_000)
    with HttpServer("127.0.0.1", 0, {"/large": lambda: large}) as server:
        silent, slow, deaf = (socket.create_connection(("127.0.0.1", server.port)) for _ in range(3))
        slow.sendall(b"GET /large HTTP/1.1\r\n")
        deaf.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        # They are aborted, so that what was not read counts for nothing.
        for connection in (silent, slow):
            with contextlib.suppress(ConnectionResetError):
                assert read_all(connection) == b""
        wait_until(lambda: not connected_to(server.port))
        for connection in (silent, slow, deaf):
            connection.close()


def connected_to(port: int) -> list[object]:
    """The connections that the server's side of this process still has."""
    return [
        item
        for item in psutil.Process().net_connections("tcp")
        if item.laddr.port == port and item.status == psutil.CONN_ESTABLISHED
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "::", "0.0.0.0"])
def test_any_address_of_this_machine_can_be_listened_at(host):
    try:
        server = HttpServer(host, 0, {"/": lambda: Response(200, b"yes")})
    except ConfigurationError as error:
        if ":" in host and not socket.has_ipv6:
            pytest.skip(f"there is no IPv6 here: {error}")
        raise
    with server:
        reached = {"::": ["127.0.0.1", "::1"], "0.0.0.0": ["127.0.0.1"]}.get(host, [host])
        for name in reached:
            address = f"[{name}]:{server.port}" if ":" in name else f"{name}:{server.port}"
            response = ask(address, "/", headers={}, timeout=5)
            assert response is not None, address
            assert response.body == b"yes"
        if host not in ("::", "0.0.0.0"):
            assert urllib.request.urlopen(server.url + "/", timeout=5).read() == b"yes"


@pytest.mark.parametrize("host", ["256.1.1.1", "no such host", "a" * 300, "192.0.2.1"])
def test_a_host_that_is_not_this_machine_is_refused_with_a_message(host):
    with pytest.raises(ConfigurationError, match="cannot be used"):
        HttpServer(host, 0, {})


def test_https_is_spoken_with_a_certificate(tmp_path):
    authority, files = trustme.CA(), {name: tmp_path / name for name in ("ca.pem", "certificate.pem")}
    authority.cert_pem.write_to_path(str(files["ca.pem"]))
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(files["certificate.pem"]))
    tls = Tls(str(files["certificate.pem"]), str(files["certificate.pem"]))
    with HttpServer("127.0.0.1", 0, {"/": lambda: Response(200, b"yes")}, tls=tls) as server:
        assert server.url.startswith("https://")
        address = f"localhost:{server.port}"
        trusting = client_tls(str(files["ca.pem"]))
        response = ask(address, "/", headers={}, timeout=5, tls=trusting)
        assert response is not None
        assert response.body == b"yes"
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(address, "/", headers={}, timeout=5, tls=client_tls(None))
        assert ask(address, "/", headers={}, timeout=5) is None


def test_a_certificate_that_cannot_be_used_is_refused_with_a_message(tmp_path):
    (tmp_path / "other.pem").write_text("no certificate")
    for name in ("missing.pem", "other.pem"):
        path = str(tmp_path / name)
        with pytest.raises(ConfigurationError, match="certificate for the HTTP port cannot be used"):
            HttpServer("127.0.0.1", 0, {}, tls=Tls(path, path))
        with pytest.raises(ConfigurationError, match="http_tls_ca="):
            client_tls(path)
