"""The parts that all pages share: sessions, forms, hosts, live content, actions and their audit."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from streams import App, Text
from streams.broker.memory import MemoryBroker
from streams.broker.reading import read_to_end
from streams.console.audit import TOPIC, Action
from streams.console.console import Planned
from streams.console.mounted import served
from streams.console.page import Page
from streams.console.pages import PAGES
from streams.errors import BrokerUnreachable, ConfigurationError
from tests.support.logs import capture_logs
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "a long enough token"


def shop() -> App:
    app = App("shop")
    app.stream("orders", value=Text()).filter(bool, name="keep").to("out")
    return app


@contextmanager
def console(
    broker: MemoryBroker | None = None, *, host: str = "localhost", **options: Any
) -> Iterator[TestClient]:
    app = shop()
    chosen = {"token": None, "read_only": False} | options
    with served(broker or MemoryBroker(), app.settings, [app], **chosen) as application:
        client = TestClient(application, base_url=f"http://{host}", follow_redirects=False)
        if chosen["token"] is None:
            wait_until(lambda: "shop" in client.get("/").text or host != "localhost", what="the app")
        yield client


def form_token(text: str) -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]+)"', text)
    assert found is not None, text
    return found[1]


@pytest.fixture
def acting(monkeypatch) -> list[str]:
    """A page with an action, which notes what it is asked to do."""
    done: list[str] = []

    def routes(parts: Any) -> list[Any]:
        def plan(_request: Any, form: Any) -> Planned:
            def run() -> str:
                if form["value"] == "unreachable":
                    raise BrokerUnreachable("no broker answers")
                done.append(form["value"])
                return f"{form['value']} was done"

            if not form["value"]:
                raise ConfigurationError("the value is empty")
            return Planned("shop", "a target", {"value": form["value"]}, run, "/")

        def page(request: Any) -> Any:
            return PlainTextResponse(f'name="form_token" value="{parts.sessions.form_token(request)}"')

        return [parts.get("/acting", page), parts.post("/acting", "act", plan)]

    monkeypatch.setattr(
        "streams.console.application.PAGES", (*PAGES, Page("acting", "Acting", of_app=False, routes=routes))
    )
    return done


@pytest.mark.parametrize("path", ["/", "/apps/shop/overview", "/self-check"])
def test_pages_forbid_scripts_and_frames_of_others(path):
    with console() as client:
        response = client.get(path)
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    # Nothing that the policy would refuse.
    assert not re.search(r"<script(?![^>]*src=)|<style| style=| on\w+=", response.text)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", response.text)


@pytest.mark.parametrize("asset", ["htmx.min.js", "console.js", "theme.js", "console.css", "icon.svg"])
def test_all_files_of_a_page_come_from_the_package(asset):
    with console() as client:
        assert f"/assets/{asset}" in client.get("/").text
        assert client.get(f"/assets/{asset}").status_code == 200


def test_live_content_is_sent_only_if_it_has_changed():
    with console() as client:
        page = client.get("/self-check").text
        found = re.search(r'data-version="(\w+)"', page)
        assert found is not None
        version = found[1]
        assert client.get("/self-check", headers={"X-Live-Version": version}).status_code == 204
        part = client.get("/self-check", headers={"X-Live-Version": "another"})
    assert part.status_code == 200
    assert "<html" not in part.text
    assert f'data-version="{version}"' in part.text


def test_an_app_that_is_not_watched_is_not_found():
    with console() as client:
        response = client.get("/apps/%3Cscript%3E/overview")
    assert response.status_code == 404
    assert "<script>" not in response.text


def test_a_name_of_another_site_that_leads_here_is_refused():
    # Its page could read everything that the browser may read (DNS rebinding).
    with console(host="attacker.example") as client:
        assert client.get("/").status_code == 403
    with console(host="ops.example", hosts=["ops.example"]) as client:
        assert client.get("/").status_code == 200


def test_without_the_token_nothing_is_served():
    with console(token=TOKEN, host="any.example") as client:
        for path in ("/", "/apps/shop/overview", "/self-check"):
            response = client.get(path)
            assert response.status_code == 303
            assert response.headers["location"] == "/login"
        assert client.get("/login").status_code == 200
        assert client.post("/login", data={"token": "a wrong token"}).status_code == 403
        assert client.get("/").status_code == 303
        signed_in = client.post("/login", data={"token": TOKEN})
        assert signed_in.status_code == 303
        cookie = signed_in.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/").status_code == 200


def test_a_session_that_is_changed_or_of_another_console_is_none():
    with console(token=TOKEN) as client, console(token=TOKEN) as other:
        client.post("/login", data={"token": TOKEN})
        session = client.cookies["streams_console"]
        assert client.get("/").status_code == 200
        other.cookies.set("streams_console", session)
        assert other.get("/").status_code == 303
        for changed in (session[:-1] + "x", session.replace(".", "9.", 1), "", "a.b", "é.9999999999.x"):
            fresh = TestClient(client.app, base_url="http://localhost", follow_redirects=False)
            response = fresh.get("/", headers=[(b"cookie", f"streams_console={changed}".encode())])
            assert response.status_code == 303, changed


def test_an_action_is_done_once_and_recorded_before_and_after(acting):
    broker = MemoryBroker()
    with console(broker, user_header="x-user") as client:
        token = form_token(client.get("/acting").text)
        form = {"form_token": token, "value": "this"}
        response = client.post("/acting", data=form, headers={"x-user": "ann"})
        assert response.status_code == 303
        page = client.get("/").text
        assert "this was done" in page
        assert "this was done" not in client.get("/").text
    assert acting == ["this"]
    found = audit(broker)
    assert [entry.outcome for entry in found] == ["begun", "done: this was done"]
    for entry in found:
        assert (entry.app, entry.action, entry.target) == ("shop", "act", "a target")
        assert entry.details == {"value": "this"}
        assert entry.who == "ann (testclient)"


def test_an_action_that_fails_says_so_and_is_recorded(acting):
    broker = MemoryBroker()
    with console(broker) as client:
        token = form_token(client.get("/acting").text)
        client.post("/acting", data={"form_token": token, "value": "unreachable"})
        assert "no broker answers" in client.get("/").text
        # A form that cannot be used does nothing, and nothing of it is recorded.
        refused = client.post("/acting", data={"form_token": token, "value": ""})
        assert refused.status_code == 400
        assert "the value is empty" in refused.text
    assert acting == []
    assert [entry.outcome for entry in audit(broker)] == ["begun", "failed: no broker answers"]


@pytest.mark.parametrize(
    ("method", "form", "headers", "status"),
    [
        ("POST", {"value": "x"}, {}, 403),
        ("POST", {"value": "x", "form_token": "0" * 64}, {}, 403),
        ("POST", {"value": "x", "form_token": "OWN"}, {"sec-fetch-site": "cross-site"}, 403),
        ("POST", {"value": "x", "form_token": "OWN"}, {"content-type": "application/json"}, 415),
        ("POST", {"value": "x" * 2_100_000, "form_token": "OWN"}, {}, 413),
        ("PUT", {"value": "x", "form_token": "OWN"}, {}, 405),
    ],
)
def test_what_is_no_form_of_this_console_changes_nothing(acting, method, form, headers, status):
    broker = MemoryBroker()
    with console(broker) as client:
        token = form_token(client.get("/acting").text)
        sent = {name: token if value == "OWN" else value for name, value in form.items()}
        assert client.request(method, "/acting", data=sent, headers=headers).status_code == status
        # The token of another browser's session.
        other = TestClient(client.app, base_url="http://localhost")
        assert other.post("/acting", data={"value": "x", "form_token": token}).status_code == 403
        assert client.get("/acting?value=x&form_token=" + token).status_code == 200
    assert acting == []
    assert audit(broker) == []


def test_a_console_that_is_read_only_changes_nothing(acting):
    with console(read_only=True) as client:
        token = form_token(client.get("/acting").text)
        response = client.post("/acting", data={"form_token": token, "value": "x"})
    assert response.status_code == 403
    assert "read-only" in response.text
    assert acting == []


def test_what_cannot_be_recorded_is_not_done(acting, monkeypatch):
    broker = MemoryBroker()
    with console(broker) as client:
        token = form_token(client.get("/acting").text)

        def unreachable() -> Any:
            raise BrokerUnreachable("no broker answers")

        monkeypatch.setattr(broker, "producer", unreachable)
        assert client.post("/acting", data={"form_token": token, "value": "x"}).status_code == 503
    assert acting == []


def test_a_page_that_fails_says_so_and_the_log_says_why(acting, monkeypatch):
    with console() as client:
        monkeypatch.setattr("streams.console.pages.now.recent_dead_letters", lambda *_: 1 // 0)
        tolerant = TestClient(client.app, base_url="http://localhost", raise_server_exceptions=False)
        with capture_logs() as logs:
            response = tolerant.get("/")
    assert response.status_code == 500
    assert "ZeroDivisionError" not in response.text
    assert [line for line in logs if "ZeroDivisionError" in str(line)]


def test_it_works_below_another_path():
    app = shop()
    with served(MemoryBroker(), app.settings, [app], token=None, read_only=True) as application:

        async def below(scope: Any, receive: Any, send: Any) -> None:
            await application({**scope, "root_path": "/console"}, receive, send)

        client = TestClient(below, base_url="http://localhost", follow_redirects=False)
        wait_until(lambda: "shop" in client.get("/console/").text, what="the app")
        page = client.get("/console/").text
        links = re.findall(r'(?:href|src|hx-get)="([^"#]+)"', page)
        assert links
        assert all(link.startswith("/console/") for link in links), links
        for link in set(links):
            assert client.get(link).status_code == 200, link


def audit(broker: MemoryBroker) -> list[Action]:
    if TOPIC not in broker.admin().topics():
        return []
    return [
        msgspec.json.decode(value, type=Action)
        for fetched in read_to_end(broker, [TOPIC])
        for value in fetched.values()
        if value is not None
    ]
