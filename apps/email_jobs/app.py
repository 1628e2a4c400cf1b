"""The app: ``streams run apps.email_jobs.app:app`` sends mail, also for each record of the topic ``signups``.

Other programs of the same machine or network enqueue mails: ``send_mail.enqueue("ann@example.com", …)``.
The settings are environment variables, see ``settings.py``; ``EMAIL_JOBS_PREFIX`` precedes the names of the
app and of its topics.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

from apps.email_jobs.day import Day, End, day_before, day_of_mail, report_of
from apps.email_jobs.mail import Mail, Signup, as_message, domain_of, recipient_of, reminder, welcome
from apps.email_jobs.mail_server import MailServer, ServerBusy, TemporaryRefusal
from apps.email_jobs.other_queues import read_queues
from apps.email_jobs.settings import MailSettings
from streams import App, Cron, Json, Limit, Retry, RetryLater, Text, current_job, seconds

if TYPE_CHECKING:
    from streams import Call

PREFIX = os.environ.get("EMAIL_JOBS_PREFIX", "")
SIGNUPS = f"{PREFIX}signups"
SETTINGS = MailSettings.read(os.environ)

app = App(f"{PREFIX}email-jobs")
server = app.resource(lambda: closing(MailServer(SETTINGS)))


@app.job(
    name="send-mail",
    # A refusal for good is not among these: the mail becomes a dead letter at once.
    retry=Retry(SETTINGS.tries, backoff=SETTINGS.backoff, on=(TemporaryRefusal,)),
    # One after another to each recipient, while others are sent.
    key=recipient_of,
    limit=Limit(rate=SETTINGS.per_second, per=seconds(1), running=SETTINGS.at_once, key=domain_of),
)
def send_mail(to: str, subject: str, text: str) -> str:
    """Send a mail; the result is its Message-ID."""
    message = as_message(Mail(to, subject, text), SETTINGS.sender, current_job().idempotency_key)
    try:
        server.get().send(message)
    except ServerBusy as error:
        # No mail goes to this domain until then, from any worker, and no try is lost.
        raise RetryLater(after=SETTINGS.busy_wait) from error
    return str(message["Message-ID"])


def call_for(mail: Mail) -> Call[str]:
    """The call of ``send_mail`` for a mail."""
    return send_mail.call(mail.to, mail.subject, mail.text)


def delayed_reminder(signup: Signup) -> Call[str]:
    """The reminder for a new account, which is sent some days later."""
    mail = reminder(signup)
    return send_mail.using(delay=SETTINGS.remind_after).call(mail.to, mail.subject, mail.text)


# In the transaction of the signup's record: each one leads to exactly one welcome and one reminder.
signups = app.stream(SIGNUPS, value=Json(Signup))
signups.enqueue(send_mail, lambda signup: call_for(welcome(signup)), name="welcome")
signups.enqueue(send_mail, delayed_reminder, name="remind")

read_queues(app, SETTINGS, send_mail, call_for)


@app.job(name="daily-report", schedule=Cron(SETTINGS.report_at, zone=SETTINGS.zone))
def daily_report() -> str:
    """Ask for the report of the day before the scheduled one; the result is that day's date."""
    scheduled = current_job().scheduled
    assert scheduled is not None, "only the schedule enqueues it"
    return day_before(scheduled, SETTINGS.zone)


def counted(end: End) -> Day:
    """The end of a job as a part of its day."""
    return Day(end.result, asked=True) if end.job == "daily-report" else day_of_mail(end, SETTINGS.zone)


def report_call(day: Day) -> Call[str]:
    """The call of ``send_mail`` that reports a day."""
    return call_for(report_of(day, SETTINGS.report_to))


# Each end counts exactly once. That of ``daily_report`` enqueues the mail, in the transaction of the counts.
ends = app.stream(f"{app.name}-job-results", key=Text(), value=Json(End))
of_days = ends.filter(lambda end: end.job == "send-mail" or end.ending == "succeeded").map(counted)
days = of_days.group_by(lambda day: day.date, value=Json(Day)).reduce("days", Day.__add__)
days.to_stream().filter(lambda day: day.asked).enqueue(send_mail, report_call, name="report")
