"""What receivers get, on servers in the process."""

from __future__ import annotations

import smtplib
import socket
import ssl
import threading
from contextlib import contextmanager
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from streams import ConfigurationError, Email, Webhook, seconds
from streams.alerts.alert import Alert, AlertKey, AlertState
from streams.alerts.declared import sender_of
from streams.alerts.delivery import Delivery
from streams.alerts.mail import PartlyRefused
from streams.alerts.rules import AlertName
from streams.alerts.webhook import WebhookRefused
from tests.alerts.receiving import HookServer, hook_server
from tests.support.logs import capture_logs
from tests.support.messages import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALERT = Alert(
    app="shop",
    alert=AlertName.BEHIND,
    subject="orders",
    state=AlertState.FIRING,
    severity="warning",
    sentence="App shop is behind: a record of orders has waited for 45 s.",
    value=45.0,
    threshold=30.0,
    since=1_000_000,
    raised=1_300_000,
)
CLEARED = ALERT.notified("hook", AlertState.FIRING)
KEY = AlertKey(AlertName.BEHIND, "orders")


@pytest.fixture
def hook() -> Iterator[HookServer]:
    with hook_server() as server:
        yield server


class Mailbox:
    """What an SMTP server has accepted. Addresses that begin with ``nobody`` are refused."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], Any]] = []
        self.logins: list[tuple[bytes, bytes]] = []

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name and arguments
        self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any
    ) -> str:
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's
        self.mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=default)))
        return "250 OK"

    def authenticate(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> Any:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=True)


@contextmanager
def mailbox(**options: Any) -> Iterator[tuple[Mailbox, int]]:
    box, port = Mailbox(), free_port()
    controller = Controller(box, hostname="127.0.0.1", port=port, authenticator=box.authenticate, **options)
    controller.start()
    try:
        yield box, port
    finally:
        controller.stop()


def email(port: int, **options: Any) -> Email:
    given = {"to": ["ops@example.com"], "security": "none"} | options
    return Email(host="127.0.0.1", port=port, sender_address="streams@example.com", **given)


def test_a_webhook_gets_json_and_the_secret_of_the_environment(
    hook: HookServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOOK_SECRET", "Bearer s3cret")
    sender_of(Webhook(hook.url + "?to=ops", secret_from="HOOK_SECRET")).send(ALERT)
    (post,) = hook.posts
    assert (post.path, post.headers["authorization"]) == ("/hook?to=ops", "Bearer s3cret")
    assert post.headers["content-type"] == "application/json"
    assert post.body == {
        "id": "shop/StreamsBehind/orders/1300000",
        "app": "shop",
        "alert": "StreamsBehind",
        "subject": "orders",
        "state": "firing",
        "severity": "warning",
        "sentence": "App shop is behind: a record of orders has waited for 45 s.",
        "value": 45.0,
        "threshold": 30.0,
        "since": 1_000_000,
        "raised": 1_300_000,
        "cleared": None,
        "page": "docs/alerts.md#streamsbehind",
    }


def test_a_url_may_come_from_the_environment_and_is_never_shown(
    hook: HookServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOOK_URL", hook.url)
    sender_of(Webhook(url_from="HOOK_URL")).send(ALERT)
    assert len(hook.posts) == 1
    assert "secret-path" not in repr(Webhook("https://hooks.example.com/secret-path"))
    monkeypatch.setenv("HOOK_URL", "secret-path")
    with pytest.raises(ConfigurationError) as caught:
        sender_of(Webhook(url_from="HOOK_URL"))
    assert "secret-path" not in str(caught.value)


@pytest.mark.parametrize("status", [302, 400, 401, 500, 503])
def test_another_answer_than_2xx_is_a_refusal(hook: HookServer, status: int):
    hook.statuses = [status]
    with pytest.raises(WebhookRefused, match=str(status)):
        sender_of(Webhook(hook.url)).send(ALERT)


def test_a_webhook_that_does_not_answer_times_out(hook: HookServer):
    hook.open.clear()
    with pytest.raises(TimeoutError):
        sender_of(Webhook(hook.url, timeout=seconds(0.1))).send(ALERT)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "needs a URL"),
        ({"url": "https://a", "url_from": "B"}, "needs a URL"),
        ({"url": "ftp://a/b"}, "not one of http"),
        ({"url": "https:///b"}, "not one of http"),
        ({"url": "https://a:port/b"}, "not one of http"),
        ({"url": "https://user:word@a/b"}, "without user and password"),
        ({"url": "https://a", "header": "X: y"}, "header's name"),
        ({"url": "https://a", "timeout": seconds(0)}, "longer than 0"),
    ],
)
def test_a_wrong_webhook_is_refused_where_it_is_declared(options: dict[str, Any], reason: str):
    with pytest.raises(ConfigurationError) as caught:
        Webhook(**options)
    assert reason in f"{caught.value} {caught.value.hint}"


def test_a_missing_secret_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HOOK_SECRET", raising=False)
    with pytest.raises(ConfigurationError, match="HOOK_SECRET is not set"):
        sender_of(Webhook("https://a", secret_from="HOOK_SECRET"))
    monkeypatch.setenv("HOOK_SECRET", "two\r\nlines")
    with pytest.raises(ConfigurationError, match="cannot be sent as a header") as caught:
        sender_of(Webhook("https://a", secret_from="HOOK_SECRET"))
    assert "lines" not in str(caught.value)


def test_a_mail_says_what_is_wrong_and_what_to_do():
    with mailbox() as (box, port):
        sender = sender_of(email(port, to=["ops@example.com", "dev@example.com"]))
        sender.send(ALERT)
        sender.send(ALERT)
    (addresses, mail), (_, again) = box.mails
    assert addresses == ["ops@example.com", "dev@example.com"]
    assert mail["Subject"] == "[shop] warning: StreamsBehind/orders"
    text = mail.get_content()
    assert text.startswith("App shop is behind: a record of orders has waited for 45 s.")
    assert "what to do: docs/alerts.md#streamsbehind" in text
    # A mail that is sent twice is recognised.
    assert mail["Message-ID"] == again["Message-ID"]


def test_a_mail_that_is_refused_for_some_is_repeated_for_these_only():
    with mailbox() as (box, port):
        sender = sender_of(email(port, to=["ops@example.com", "nobody@example.com"]))
        with pytest.raises(PartlyRefused, match="1 of 2"):
            sender.send(ALERT)
        with pytest.raises(Exception, match="no such user"):
            sender.send(ALERT)
    assert [addresses for addresses, _ in box.mails] == [["ops@example.com"]]


def test_a_text_from_a_topic_cannot_add_a_header():
    with mailbox() as (box, port):
        sneaky = Alert(
            app="shop",
            alert=AlertName.CRON_MISSED,
            subject="nightly\r\nBcc: all@example.com",
            state=AlertState.FIRING,
            severity="warning",
            sentence="Late.\r\n.\r\nQUIT",
            value=1.0,
            threshold=0.0,
            since=0,
            raised=0,
        )
        sender_of(email(port)).send(sneaky)
    ((addresses, mail),) = box.mails
    assert addresses == ["ops@example.com"]
    assert mail["Bcc"] is None
    assert "\nQUIT" in mail.get_content().replace("\r", "")


def test_a_password_is_only_sent_over_an_encrypted_connection(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAIL_PASSWORD", "s3cret")
    with pytest.raises(ConfigurationError, match="anyone can read"):
        email(25, user="streams", password_from="MAIL_PASSWORD")
    with mailbox() as (box, port):
        secure = sender_of(email(port, user="streams", password_from="MAIL_PASSWORD", security="starttls"))
        with pytest.raises(Exception, match="STARTTLS"):
            secure.send(ALERT)
        assert box.logins == []


def test_a_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(served)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("MAIL_PASSWORD", "s3cret")
    with mailbox(tls_context=served, require_starttls=True) as (box, port):
        receiver = email(port, user="streams", password_from="MAIL_PASSWORD", security="starttls")
        sender_of(receiver).send(ALERT)
    assert box.logins == [(b"streams", b"s3cret")]
    assert len(box.mails) == 1
    assert "s3cret" not in repr(receiver)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"to": "ops@example.com"}, "list of addresses"),
        ({"to": []}, "list of addresses"),
        ({"to": ["ops"]}, "is not an address"),
        ({"to": ["a@b\nBcc: c@d"]}, "is not an address"),
        ({"user": "streams"}, "belong together"),
        ({"security": "ssl"}, "security"),
        ({"timeout": timedelta(0)}, "longer than 0"),
    ],
)
def test_a_wrong_email_is_refused_where_it_is_declared(options: dict[str, Any], reason: str):
    with pytest.raises(ConfigurationError, match=reason):
        email(25, **options)


class Recorder:
    """Notes what it is sent, and fails as often as it is told."""

    def __init__(self, *failures: Exception) -> None:
        self.sent: list[Alert] = []
        self.attempts = 0
        self.failures = list(failures)
        self.attempted = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def send(self, alert: Alert) -> None:
        self.attempts += 1
        self.attempted.set()
        self.may_answer.wait(20)
        if self.failures:
            raise self.failures.pop(0)
        self.sent.append(alert)


@contextmanager
def delivering(sender: Recorder) -> Iterator[Delivery]:
    delivery = Delivery("hook", sender, lambda: None, backoff=0.01)
    delivery.start()
    try:
        yield delivery
    finally:
        sender.may_answer.set()
        delivery.close()


def test_what_fails_is_tried_again_and_each_reason_logged_once():
    sender = Recorder(OSError("no route"), OSError("no route"), OSError("http://user:word@host refused"))
    with capture_logs() as lines, delivering(sender) as delivery:
        delivery.want({KEY: ALERT})
        wait_until(lambda: sender.sent, 20, what="it is sent")
        delivery.want({KEY: ALERT})
        assert [item.key for item in delivery.delivered()] == [KEY]
    assert (sender.attempts, sender.sent) == (4, [ALERT])
    assert [line["error"] for line in lines] == ["OSError: no route", "OSError: http://***@host refused"]


def test_what_is_not_wanted_any_more_is_not_sent():
    sender = Recorder(*[OSError("away")] * 1_000)
    with delivering(sender) as delivery:
        delivery.want({KEY: ALERT})
        wait_until(lambda: sender.attempts > 2, 20, what="it is tried")
        sender.may_answer.clear()
        sender.attempted.clear()
        assert sender.attempted.wait(20)
        delivery.want({})
        attempts, other = sender.attempts, AlertKey(AlertName.STALLED, "")
        sender.may_answer.set()
        sender.failures = [OSError("away")]
        stalled = Alert(
            app="shop",
            alert=AlertName.STALLED,
            state=AlertState.FIRING,
            severity="critical",
            sentence="Stalled.",
            value=1,
            threshold=0,
            since=0,
            raised=1,
        )
        delivery.want({other: stalled})
        wait_until(lambda: sender.sent, 20, what="the other one is sent")
    assert sender.sent == [stalled]
    assert sender.attempts <= attempts + 2


def test_a_mail_server_that_says_nothing_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        sender = sender_of(email(port, timeout=seconds(0.2)))
        with pytest.raises(smtplib.SMTPServerDisconnected, match="timed out"):
            sender.send(ALERT)


def test_a_certificate_that_nobody_signed_is_not_trusted(hook: HookServer):
    url = hook.url.replace("http://", "https://")
    with pytest.raises(ssl.SSLError):
        sender_of(Webhook(url)).send(ALERT)
