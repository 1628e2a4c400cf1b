"""What tests of pages share: a console in this process, a browser, and workers that only report."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from html import unescape
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.testclient import TestClient

from streams.console.mounted import served
from streams.monitoring.worker_report import PartitionStatus, WorkerReport
from streams.queries.http import JSON, Response
from streams.queries.http_server import HttpServer
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from streams.app import App
    from streams.broker import Broker


class Browser:
    """Loads pages of a console, and sends its forms."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def text(self, path: str) -> str:
        """The page's text, without tags, each run of blanks as one."""
        response = self.client.get(path)
        assert response.status_code == 200, f"{path}: {response.status_code} {response.text}"
        return _text(response.text)

    def wait(self, path: str, words: str, *, without: str = "\0") -> str:
        """The page's text once it has these words."""

        def found() -> str | None:
            text = self.text(path)
            return text if words in text and without not in text else None

        return wait_until(found, 30, what=f"{words!r} on {path}")

    def send(self, page: str, path: str, **fields: str) -> str:
        """Send a form with the token of a page; the text of the page that follows."""
        token = wait_until(
            lambda: re.search(r'name="form_token" value="([0-9a-f]+)"', self.client.get(page).text),
            30,
            what=f"a form on {page}",
        )
        response = self.client.post(path, data={"form_token": token[1], **fields})
        assert response.status_code == 200, f"{path}: {response.status_code} {_text(response.text)}"
        return _text(response.text)


def _text(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


@contextmanager
def browsing(app: App, broker: Broker, **options: Any) -> Iterator[Browser]:
    """A console of one app."""
    chosen: dict[str, Any] = {"token": None, "read_only": False, **options}
    with served(broker, app.settings, [app], **chosen) as application:
        browser = Browser(TestClient(application, base_url="http://localhost"))
        wait_until(lambda: app.name in browser.client.get("/").text, what="the app")
        yield browser


def partition(topic: str, number: int, **figures: Any) -> PartitionStatus:
    """The figures of a partition."""
    known: dict[str, Any] = {
        "task": f"0_{number}",
        "position": 10,
        "end": 10,
        "lag": 0,
        "waiting_seconds": 0.0,
        "arrival_rate": 1.0,
        "processing_rate": 1.0,
        "caught_up_in_seconds": None,
        "deleted_in_seconds": None,
        "age_seconds": 1.0,
        "problem": "",
    }
    return PartitionStatus(topic=topic, partition=number, **known | figures)


def report(app: str, worker: str, **fields: Any) -> WorkerReport:
    """The report of a worker that keeps up."""
    now = time.time_ns() // 1_000_000
    known: dict[str, Any] = {
        "version": "1",
        "started": now - 60_000,
        "memory_bytes": 1,
        "state": "running",
        "time": now,
        "measured": now,
        "condition": "keeping up",
        "since": now,
        "caught_up_in_seconds": None,
        "waiting_seconds": 0.0,
        "bottlenecks": [],
        "busy_seconds": {},
        "commits": 1,
        "transactions_aborted": 0,
        "problems": {},
        "partitions": [],
        "tasks": [],
        "steps": [],
        "rebalances": [],
    }
    return WorkerReport(app=app, worker=worker, **known | fields)


@contextmanager
def reporting(
    made: WorkerReport, *, metrics: str = "", answers: Mapping[str, Callable[[], Response]] | None = None
) -> Iterator[str]:
    """A port that reports this; yields its address. ``answers`` are further paths."""
    routes = {
        "/status": lambda: Response(200, msgspec.json.encode(made), JSON),
        "/metrics": lambda: Response(200, metrics.encode(), "text/plain"),
        **(answers or {}),
    }
    with HttpServer("127.0.0.1", 0, routes) as server:
        yield server.url.removeprefix("http://")


def answer(content: Any, status: int = 200) -> Callable[[], Response]:
    """A route that answers with JSON."""
    return lambda: Response(status, msgspec.json.encode(content), JSON)
