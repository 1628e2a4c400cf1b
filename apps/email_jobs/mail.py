"""What a mail consists of, and the mails that the app writes."""

from __future__ import annotations

from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate

import msgspec


class Mail(msgspec.Struct, frozen=True):
    """A mail to one recipient."""

    to: str
    subject: str
    text: str


class Signup(msgspec.Struct, frozen=True):
    """The value of a record of the topic of signups: somebody has created an account."""

    email: str
    name: str


def domain_of(to: str) -> str:
    """The domain of an address, in lower case."""
    return to.rpartition("@")[2].lower()


def recipient_of(to: str) -> str:
    """What the addresses of one mailbox have in common: as in practice, case makes no difference."""
    return to.lower()


def as_message(mail: Mail, sender: str, idempotency_key: str) -> EmailMessage:
    """The mail for a server. Raises ``ValueError`` for an address or a subject that cannot be written.

    The Message-ID is made of the job's idempotency key. If a worker dies before it has recorded that a mail
    was sent, the mail is sent again with the same one, so that servers and mail programs can recognise it.
    """
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = mail.to
    message["Subject"] = mail.subject
    message["Date"] = formatdate(usegmt=True)
    message["Message-ID"] = f"<{idempotency_key}@{domain_of(sender)}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail.text)
    return message


def welcome(signup: Signup) -> Mail:
    """The mail for a new account."""
    return Mail(signup.email, f"Welcome, {signup.name}", "Your account is ready.\n")


def reminder(signup: Signup) -> Mail:
    """The mail some days later."""
    return Mail(signup.email, f"{signup.name}, your account waits for you", "Have you had a look around?\n")
