"""The mail app on the driver, with a real SMTP server in this process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from apps.email_jobs import app as email_jobs
from apps.email_jobs.app import SIGNUPS, app, send_mail
from apps.email_jobs.mail import Signup
from apps.email_jobs.settings import MailSettings
from apps.email_jobs.smtp_server import OK, Answer, SmtpServer
from streams import JobFailed, days, milliseconds, minutes, seconds
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = 1_800_000_000_000


@pytest.fixture
def smtp(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        settings = replace(email_jobs.SETTINGS, host="127.0.0.1", port=server.port)
        monkeypatch.setattr(email_jobs, "SETTINGS", settings)
        yield server


@pytest.fixture
def driver(smtp: SmtpServer) -> Iterator[TopologyDriver]:
    with TopologyDriver(app, clock=NOON) as driver:
        yield driver


def letters(driver: TopologyDriver) -> list[str]:
    """The messages of the errors of the dead letters."""
    return [
        (dict(letter.headers or [])["__streams.errors.message"] or b"").decode()
        for letter in driver.dead_letters()
    ]


def to_ann(smtp: SmtpServer) -> list[str]:
    """The subjects of her mails, without the daily reports."""
    return [mail.subject for mail in smtp.mails if mail.to == "ann@example.com"]


def test_a_mail_has_the_idempotency_key_as_message_id(driver: TopologyDriver, smtp: SmtpServer) -> None:
    handle = send_mail.enqueue("ann@example.com", "Hello", "A text\n.\n")
    (mail,) = smtp.mails
    assert (mail.to, mail.subject) == ("ann@example.com", "Hello")
    assert mail.message_id == f"<email-jobs-jobs-{handle.id}@example.com>"
    assert handle.result(timeout=seconds(1)) == mail.message_id


def test_a_signup_leads_to_a_welcome_and_days_later_to_a_reminder(
    driver: TopologyDriver, smtp: SmtpServer
) -> None:
    driver.send(SIGNUPS, Signup("ann@example.com", "Ann"))
    assert [mail.subject for mail in smtp.mails] == ["Welcome, Ann"]
    welcome, reminder = driver.enqueued(send_mail)
    assert (welcome.due, reminder.due) == (None, NOON + 3 * 86_400_000)
    driver.advance(days(2))
    driver.restart()
    assert len(to_ann(smtp)) == 1
    driver.advance(days(1))
    assert to_ann(smtp) == ["Welcome, Ann", "Ann, your account waits for you"]


@pytest.mark.parametrize("first", [Answer("451 4.7.1 greylisted"), Answer(hang_up=True)])
def test_a_mail_that_is_refused_for_now_is_sent_later_with_the_same_message_id(
    driver: TopologyDriver, smtp: SmtpServer, first: Answer
) -> None:
    smtp.at_mail = lambda _: first if len(smtp.deliveries) < 3 else OK
    handle = send_mail.enqueue("ann@example.com", "Hello", "")
    driver.advance(minutes(1))
    driver.advance(minutes(2))
    assert handle.result(timeout=seconds(1)) == smtp.mails[0].message_id
    assert len(smtp.deliveries) == 3
    assert {delivery.message_id for delivery in smtp.deliveries} == {smtp.mails[0].message_id}


def test_a_mail_that_is_refused_for_good_becomes_a_dead_letter_at_once(
    driver: TopologyDriver, smtp: SmtpServer
) -> None:
    smtp.at_recipient = lambda delivery: (
        Answer("550 5.1.1 no such user") if delivery.to.startswith("nobody") else OK
    )
    handle = send_mail.enqueue("nobody@example.com", "Hello", "")
    send_mail.enqueue("ann@example.com", "Hello", "")
    with pytest.raises(JobFailed, match=r"after 1 attempt: PermanentRefusal: .*550 5.1.1 no such user"):
        handle.result(timeout=seconds(1))
    assert letters(driver) == ["the server has answered 550 5.1.1 no such user"]
    assert [mail.to for mail in smtp.mails] == ["ann@example.com"]


def test_a_connection_is_used_again_also_after_refusals(driver: TopologyDriver, smtp: SmtpServer) -> None:
    smtp.at_recipient = lambda delivery: (
        Answer("550 5.1.1 no such user") if delivery.to.startswith("nobody") else OK
    )
    smtp.at_mail = lambda delivery: Answer("554 5.7.1 spam") if delivery.subject == "Spam" else OK
    for number in range(3):
        send_mail.enqueue(f"nobody-{number}@example.com", "Hello", "")
        send_mail.enqueue(f"ann-{number}@example.com", "Hello", "")
    assert smtp.connections == 1
    send_mail.enqueue("ann@example.com", "Spam", "")
    send_mail.enqueue("bob@example.com", "Hello", "")
    assert len(smtp.mails) == 4
    assert smtp.connections == 2
    assert len(letters(driver)) == 4


def test_an_address_that_cannot_be_written_becomes_a_dead_letter(
    driver: TopologyDriver, smtp: SmtpServer
) -> None:
    send_mail.enqueue("ann@example.com\nBcc: all@example.com", "Hello", "")
    assert len(letters(driver)) == 1
    assert smtp.deliveries == []


def test_a_domain_rests_while_its_server_is_busy_and_no_try_is_lost(
    driver: TopologyDriver, smtp: SmtpServer
) -> None:
    smtp.at_recipient = lambda delivery: (
        Answer("421 4.3.2 too much to do") if delivery.to.endswith("@busy.example") else OK
    )
    handle = send_mail.enqueue("ann@busy.example", "Hello", "")
    send_mail.enqueue("bob@busy.example", "Hello", "")
    send_mail.enqueue("cat@example.com", "Hello", "")
    assert [delivery.to for delivery in smtp.deliveries] == ["ann@busy.example", "cat@example.com"]
    smtp.at_recipient = lambda _: OK
    driver.advance(minutes(4))
    assert len(smtp.deliveries) == 2
    driver.advance(minutes(1))
    assert sorted(mail.to for mail in smtp.mails) == [
        "ann@busy.example",
        "bob@busy.example",
        "cat@example.com",
    ]
    ends = {end.key: end.value.tries for end in driver.read("email-jobs-job-results")}
    assert ends[handle.id] == 1


def test_mails_to_one_recipient_keep_their_order_while_one_waits(
    driver: TopologyDriver, smtp: SmtpServer
) -> None:
    smtp.at_mail = lambda delivery: (
        Answer("450 4.2.1 mailbox busy") if delivery.subject == "1" and len(smtp.mails) < 2 else OK
    )
    for number in (1, 2):
        send_mail.enqueue("ann@example.com", str(number), "")
    send_mail.enqueue("Ann@example.com", "3", "")
    send_mail.enqueue("bob@example.com", "4", "")
    send_mail.enqueue("bob@example.com", "5", "")
    assert [mail.subject for mail in smtp.mails] == ["4", "5"]
    driver.advance(minutes(1))
    assert [mail.subject for mail in smtp.mails] == ["4", "5", "1", "2", "3"]


def test_each_domain_gets_as_many_mails_a_second_as_allowed(driver: TopologyDriver, smtp: SmtpServer) -> None:
    calls = [send_mail.call(f"person-{number}@example.com", "Hello", "") for number in range(15)]
    send_mail.enqueue_many([*calls, send_mail.call("ann@example.org", "Hello", "")])
    assert [mail.to for mail in smtp.mails].count("ann@example.org") == 1
    assert len(smtp.mails) == 11
    driver.advance(milliseconds(900))
    assert len(smtp.mails) == 11
    driver.advance(milliseconds(300))
    assert len(smtp.mails) == 16


def test_a_mail_that_no_server_takes_becomes_a_dead_letter_after_all_tries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with SmtpServer() as closed:
        settings = replace(email_jobs.SETTINGS, host="127.0.0.1", port=closed.port)
    monkeypatch.setattr(email_jobs, "SETTINGS", settings)
    with TopologyDriver(app, clock=NOON) as driver:
        handle = send_mail.enqueue("ann@example.com", "Hello", "")
        for _ in range(9):
            driver.advance(days(1))
        with pytest.raises(JobFailed, match="after 10 attempts: TemporaryRefusal"):
            handle.result(timeout=seconds(1))
        assert "the connection was lost" in letters(driver)[0]


def test_settings_come_from_the_environment() -> None:
    settings = MailSettings.read(
        {"SMTP_HOST": "mail.example.com", "SMTP_PORT": "587", "SMTP_STARTTLS": "yes"}
    )
    assert (settings.host, settings.port, settings.starttls) == ("mail.example.com", 587, True)
    assert settings.per_second == 10
    with pytest.raises(ValueError, match="many"):
        MailSettings.read({"SMTP_PORT": "many"})


def test_a_day_is_reported_in_the_morning_after_it(driver: TopologyDriver, smtp: SmtpServer) -> None:
    smtp.at_recipient = lambda delivery: (
        Answer("550 5.1.1 no such user") if delivery.to.startswith("nobody") else OK
    )
    # NOON is 08:00 in UTC.
    driver.advance(minutes(1))
    for to in ("ann@example.com", "bob@example.com", "nobody@example.com"):
        send_mail.enqueue(to, "Hello", "")
    assert len(letters(driver)) == 1
    driver.restart()
    assert len(smtp.mails) == 2
    driver.advance(days(1))
    report = smtp.mails[-1]
    assert (report.to, report.subject) == ("postmaster@example.com", "Mails of 2027-01-15")
    assert report.text.strip() == "Sent: 2, with 0 retries. Not sent: 1."
    assert len(smtp.mails) == 3
    # The report is a mail of the next day.
    driver.advance(days(1))
    assert smtp.mails[-1].text.strip() == "Sent: 1, with 0 retries. Not sent: 0."
    assert len(smtp.mails) == 4
