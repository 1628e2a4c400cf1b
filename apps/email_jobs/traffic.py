"""The mails of the demonstration, and the program that enqueues them in a process of its own.

``python -m apps.email_jobs.traffic --client 0 --clients 2 --jobs 20000 --journal FILE`` writes what it has
enqueued into the journal, a line of JSON for each job.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from streams import milliseconds
from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH = 100
"""How many jobs are enqueued in one transaction."""
SIGNUP_SECONDS = 30.0


class Kind(StrEnum):
    """What is special about a mail, and so about its job."""

    SHORT = "short"
    ORDERED = "in order"
    LIMITED = "limited"
    DELAYED = "delayed"
    TEMPORARY = "refused for now"
    BUSY = "server busy"
    LONG = "long"
    PERMANENT = "refused for good"


class Planned(msgspec.Struct, frozen=True):
    """A mail to be enqueued."""

    kind: Kind
    to: str
    subject: str = "News"
    delay: int | None = None
    """Milliseconds."""


class Enqueued(msgspec.Struct, frozen=True):
    """A line of the journal: a job that was enqueued."""

    id: str
    kind: Kind
    to: str
    before: int
    """A time before it was enqueued, in milliseconds since the epoch."""
    due: int | None
    """When it may be executed at the earliest, if it is delayed."""


class Plan(msgspec.Struct, frozen=True):
    """All mails of a run, and the addresses that sign up, which makes two mails for each."""

    mails: list[Planned]
    signups: list[str]

    @property
    def jobs(self) -> int:
        """How many jobs these are."""
        return len(self.mails) + 2 * len(self.signups)


def plan(jobs: int, seed: int) -> Plan:
    """The mails of a run with that many jobs, in random order; the same for each client."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    signups = [f"new-{number}@signup-{number // 20}.example" for number in range(jobs // 40)]
    mails = [
        *_mails(Kind.ORDERED, jobs // 5, 40, "ann"),
        *_mails(Kind.LIMITED, jobs // 10, 300, "person-{}"),
        *(
            msgspec.structs.replace(mail, delay=chance.randrange(1_000, 8_000))
            for mail in _mails(Kind.DELAYED, jobs // 10, 20, "person-{}")
        ),
        *_mails(Kind.TEMPORARY, jobs // 20, 20, "person-{}"),
        *_mails(Kind.PERMANENT, jobs // 20, 20, "nobody-{}"),
        *_mails(Kind.BUSY, max(4, jobs // 100), 50, "person-{}"),
        *_mails(Kind.LONG, max(4, jobs // 200), 10, "person-{}"),
    ]
    mails += _mails(Kind.SHORT, jobs - 2 * len(signups) - len(mails), 20, "person-{}")
    chance.shuffle(mails)
    # Whatever is in order is numbered after that; every seventh one is refused for now.
    numbers: dict[str, int] = {}
    for at, mail in enumerate(mails):
        if mail.kind is Kind.ORDERED:
            number = numbers[mail.to] = numbers.get(mail.to, 0) + 1
            if number % 7 == 3:
                mails[at] = msgspec.structs.replace(mail, subject="Refused for now")
    return Plan(mails, signups)


def _mails(kind: Kind, count: int, to_a_domain: int, name: str) -> list[Planned]:
    """Mails to as many domains as it takes."""
    domain = kind.replace(" ", "-")
    subject = "Refused for now" if kind is Kind.TEMPORARY else "News"
    return [
        Planned(kind, f"{name.format(number)}@{domain}-{number // to_a_domain}.example", subject)
        for number in range(count)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Enqueue this client's share."""
    from apps.email_jobs.app import SIGNUPS, app, send_mail  # noqa: PLC0415 - reads the environment

    parser = argparse.ArgumentParser(prog="python -m apps.email_jobs.traffic", description=__doc__)
    parser.add_argument("--client", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--journal", type=Path, required=True)
    options = parser.parse_args(arguments)
    planned = plan(options.jobs, options.seed)
    signups = planned.signups[options.client :: options.clients]
    appender = app.broker().appender(f"{app.name}-signups-{options.client}")
    appender.append(
        Output(
            SIGNUPS,
            [None] * len(signups),
            [msgspec.json.encode({"email": email, "name": email.partition("@")[0]}) for email in signups],
            [time.time_ns() // 1_000_000] * len(signups),
            None,
        ),
        SIGNUP_SECONDS,
    )
    appender.close()
    with options.journal.open("ab") as journal:
        share = planned.mails[options.client :: options.clients]
        for mails in (share[at : at + BATCH] for at in range(0, len(share), BATCH)):
            before = time.time_ns() // 1_000_000
            calls = [
                (send_mail if mail.delay is None else send_mail.using(delay=milliseconds(mail.delay))).call(
                    mail.to, mail.subject, f"To {mail.to}: {mail.kind}.\n"
                )
                for mail in mails
            ]
            for mail, handle in zip(mails, send_mail.enqueue_many(calls), strict=True):
                due = None if mail.delay is None else before + mail.delay
                entry = Enqueued(handle.id, mail.kind, mail.to, before, due)
                journal.write(msgspec.json.encode(entry) + b"\n")
            journal.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
