"""Whether every job of the demonstration is accounted for: what clients, topics and the SMTP server say."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from apps.email_jobs.mail import domain_of
from apps.email_jobs.traffic import Kind
from streams.jobs.record import Ending

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from apps.email_jobs.smtp_server import Delivery
    from apps.email_jobs.traffic import Enqueued
    from streams.jobs.record import JobEnd

EXAMPLES = 3
"""How many of the jobs that do not fit are named."""


class Check(NamedTuple):
    """One comparison, in words, with what does not fit."""

    claim: str
    wrong: list[str]

    @property
    def holds(self) -> bool:
        """Whether everything fits."""
        return not self.wrong


@dataclass(slots=True, kw_only=True)
class Accounts:
    """What happened, from four sides that know nothing of each other."""

    enqueued: dict[str, Enqueued]
    """What the clients have noted, by the job's id."""
    signups: list[str]
    """The addresses that have signed up."""
    elsewhere: dict[str, list[str]]
    """The addresses to which other clients have mails sent, by the system that these use."""
    answers: dict[str, str]
    """The results that Celery's client was given, by the address."""
    ends: list[JobEnd]
    """The topic of results."""
    letters: list[str]
    """The ids of the jobs among the dead letters."""
    released: list[str]
    """The ids of the delayed jobs that were released."""
    deliveries: list[Delivery]
    """What the SMTP server has noted."""
    settled: float
    """When partitions last went to a worker, in seconds since the epoch."""
    per_second: int
    at_once: int
    _end: dict[str, JobEnd] = field(init=False)
    _attempts: dict[str, list[Delivery]] = field(init=False)
    """The deliveries of each job that came as far as its Message-ID."""
    _domains: dict[str, list[Delivery]] = field(init=False)

    def __post_init__(self) -> None:
        self._end = {end.id: end for end in self.ends}
        self._attempts = defaultdict(list)
        self._domains = defaultdict(list)
        for delivery in self.deliveries:
            self._domains[domain_of(delivery.to)].append(delivery)
            if delivery.message_id:
                self._attempts[job_of(delivery.message_id)].append(delivery)

    @property
    def repeated(self) -> int:
        """How many mails the server has taken once more."""
        return sum(len(self._taken(job)) - 1 for job in self._attempts if self._taken(job))

    def checks(self) -> list[Check]:
        """All comparisons."""
        return [
            self._each_has_one_end(),
            self._results_are_mails(),
            self._celery(),
            self._nothing_again_once_recorded(),
            self._refusals_for_good(),
            self._refusals_for_now(),
            self._repeats(),
            self._order(),
            self._delays(),
            self._rate(),
            self._at_once(),
            self._busy(),
        ]

    def _each_has_one_end(self) -> Check:
        counts = Counter(end.id for end in self.ends)
        others = sum(map(len, self.elsewhere.values()))
        expected = len(self.enqueued) + 2 * len(self.signups) + others
        wrong = [f"job {job} has {count} ends" for job, count in counts.items() if count > 1]
        wrong += [f"job {job} has no end" for job in self.enqueued.keys() - counts.keys()]
        if len(counts) != expected:
            wrong.append(f"{len(counts):,} jobs have ended")
        return Check(f"each of {expected:,} jobs has exactly one end in the topic of results", _few(wrong))

    def _results_are_mails(self) -> Check:
        """Of clients and of signups: the latter are known by their addresses."""
        succeeded = {end.id for end in self.ends if end.ending is Ending.SUCCEEDED}
        taken = {job for job in self._attempts if self._taken(job)}
        wrong = [f"job {job} has succeeded, and the server has no mail of it" for job in succeeded - taken]
        wrong += [
            f"job {job} has not succeeded, and the server has a mail of it" for job in taken - succeeded
        ]
        by_address = Counter(self._attempts[job][0].to for job in succeeded & taken)
        wrong += [
            f"{email} has signed up and has got {by_address[email]} mails"
            for email in self.signups
            if by_address[email] != 2
        ]
        wrong += [
            f"{email} has got {by_address[email]} mails of a client that uses {system}"
            for system, emails in self.elsewhere.items()
            for email in emails
            if by_address[email] != 1
        ]
        return Check(
            "the server has taken the mail of each job that has succeeded, and of no other one; for each "
            f"signup these are two, for each message in {_listed(self.elsewhere)} one",
            _few(wrong),
        )

    def _celery(self) -> Check:
        """A result is the Message-ID."""
        sent = {(each.to, each.message_id) for each in self.deliveries if each.answer.startswith("250")}
        emails = self.elsewhere.get("Celery", [])
        wrong = [
            f"{email}: the caller has got {self.answers.get(email)!r}"
            for email in emails
            if (email, self.answers.get(email)) not in sent
        ]
        return Check(f"{len(emails):,} callers of Celery's tasks have got the Message-ID", _few(wrong))

    def _nothing_again_once_recorded(self) -> Check:
        wrong = [
            f"job {job} was executed {delivery.begun * 1000 - self._end[job].ended:.0f} ms after its end"
            for job, deliveries in self._attempts.items()
            if job in self._end
            for delivery in deliveries
            if delivery.begun * 1000 > self._end[job].ended + 1
        ]
        return Check("no job was executed again once its result was recorded", _few(wrong))

    def _refusals_for_good(self) -> Check:
        expected = set(self._of(Kind.PERMANENT))
        counts = Counter(self.letters)
        wrong = [f"job {job} is {counts[job]} dead letters" for job in expected if counts[job] != 1]
        wrong += [f"job {job} is a dead letter" for job in counts.keys() - expected]
        wrong += [
            f"job {job} has ended as {end.ending} after {end.tries} tries"
            for job in expected
            if (end := self._end.get(job)) is not None and (end.ending, end.tries) != (Ending.FAILED, 1)
        ]
        return Check(
            f"{len(expected):,} mails that were refused for good are one dead letter each, after one try",
            _few(wrong),
        )

    def _refusals_for_now(self) -> Check:
        expected = self._of(Kind.TEMPORARY)
        wrong = [
            f"job {job} has ended as {end.ending} after {end.tries} tries"
            for job in expected
            if (end := self._end.get(job)) is not None
            and not (end.ending is Ending.SUCCEEDED and end.tries in {2, 2 - min(1, self._lost(job))})
        ]
        return Check(
            f"{len(expected):,} mails that were refused once, or whose connection was lost, were sent with "
            "the second try, unless the first one was lost with its worker",
            _few(wrong),
        )

    def _repeats(self) -> Check:
        lost = [job for job in self._attempts if job in self._end and self._lost(job)]
        wrong = [
            f"job {job} was executed once more, {begun - self.settled:.1f} s after that"
            for job in lost
            if (begun := min(each.begun for each in self._attempts[job])) > self.settled
        ]
        return Check(
            f"{len(lost):,} jobs were executed once more, all begun before the partitions had their last "
            "owner",
            _few(wrong),
        )

    def _order(self) -> Check:
        by_recipient: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        for job in self._of(Kind.ORDERED):
            by_recipient[self.enqueued[job].to].append((int(job.partition("-")[2]), job))
        wrong: list[str] = []
        for to, places in by_recipient.items():
            mails = [(job, self._taken(job)[0]) for _, job in sorted(places) if self._taken(job)]
            wrong += [
                f"{to}: job {later} came before job {job} had ended"
                for (job, mail), (later, following) in pairwise(mails)
                if following.begun < mail.ended
            ]
        return Check(
            f"{len(by_recipient):,} recipients with up to {max(map(len, by_recipient.values()), default=0)} "
            "mails each got them in the order of the queue, one after another",
            _few(wrong),
        )

    def _delays(self) -> Check:
        delayed = {job: entry.due for job, entry in self.enqueued.items() if entry.due is not None}
        others = self.enqueued.keys() - delayed.keys()
        wrong = [
            f"job {job} was executed {due - delivery.begun * 1000:.0f} ms early"
            for job, due in delayed.items()
            for delivery in self._attempts.get(job, [])
            if delivery.begun * 1000 < due
        ]
        # One that was read when it was due already needs no release.
        counts = Counter(self.released)
        wrong += [f"job {job} was released {count} times" for job, count in counts.items() if count > 1]
        wrong += [f"job {job} was released, and was not delayed" for job in counts.keys() & others]
        return Check(
            f"{len(delayed) + len(self.signups):,} delayed jobs were executed after their time, and "
            f"{len(counts):,} that waited for it were released once each",
            _few(wrong),
        )

    def _rate(self) -> Check:
        """A domain's ``n``-th mail may begin so many intervals after its first one was enqueued."""
        first: dict[str, int] = {}
        for entry in self.enqueued.values():
            if entry.kind is Kind.LIMITED:
                domain = domain_of(entry.to)
                first[domain] = min(first.get(domain, entry.before), entry.before)
        wrong: list[str] = []
        for domain, since in first.items():
            begun = sorted(
                min(delivery.begun for delivery in self._attempts[job])
                for job in self._of(Kind.LIMITED)
                if domain_of(self.enqueued[job].to) == domain and job in self._attempts
            )
            wrong += [
                f"{domain}: mail {number} came too early"
                for number, time in enumerate(begun, 1)
                if time < since / 1000 + (number - self.per_second) / self.per_second
            ]
        return Check(
            f"{len(first):,} domains with many mails never got more than {self.per_second} and "
            f"{self.per_second} a second",
            _few(wrong),
        )

    def _at_once(self) -> Check:
        wrong: list[str] = []
        for domain, deliveries in self._domains.items():
            changes = sorted(
                [(delivery.begun, 1) for delivery in deliveries]
                + [(delivery.ended or delivery.begun, -1) for delivery in deliveries]
            )
            most = now = 0
            for _, change in changes:
                now += change
                most = max(most, now)
            # The mails of a killed worker may still be under way when they are sent again.
            allowed = self.at_once + self._repeated_to(deliveries)
            if most > allowed:
                wrong.append(f"{domain}: {most} at once, {allowed} allowed")
        return Check(
            f"no domain got more than {self.at_once} mails at once, but for those of the killed worker",
            _few(wrong),
        )

    def _busy(self) -> Check:
        jobs = self._of(Kind.BUSY)
        wrong = [
            f"job {job} has ended as {end.ending} after {end.tries} tries"
            for job in jobs
            if (end := self._end.get(job)) is not None and (end.ending, end.tries) != (Ending.SUCCEEDED, 1)
        ]
        domains = {domain_of(self.enqueued[job].to) for job in jobs}
        for domain in domains:
            refused = sum(delivery.answer.startswith("421") for delivery in self._domains[domain])
            # Twice, as the worker may have been killed before it had recorded the answer.
            if not 1 <= refused <= 2 * self.at_once:
                wrong.append(f"{domain}: {refused} mails were refused")
        return Check(
            f"{len(domains):,} domains whose server was busy were left alone, and none of their "
            f"{len(jobs):,} mails lost a try",
            _few(wrong),
        )

    def _of(self, kind: Kind) -> list[str]:
        return [job for job, entry in self.enqueued.items() if entry.kind is kind]

    def _taken(self, job: str) -> list[Delivery]:
        taken = [each for each in self._attempts.get(job, []) if each.answer.startswith("250")]
        return sorted(taken, key=lambda delivery: delivery.ended)

    def _lost(self, job: str) -> int:
        """How many attempts at a job that got as far as the server were not recorded."""
        return len(self._attempts[job]) - self._end[job].tries

    def _repeated_to(self, deliveries: Sequence[Delivery]) -> int:
        jobs = {job_of(delivery.message_id) for delivery in deliveries if delivery.message_id}
        return sum(max(0, len(self._taken(job)) - 1) for job in jobs)


def job_of(message_id: str) -> str:
    """The id of the job that a mail was sent by: the last two parts of its idempotency key."""
    key = message_id.strip("<>").rpartition("@")[0]
    return "-".join(key.rsplit("-", 2)[-2:])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "other systems"


def _few(wrong: Iterable[str]) -> list[str]:
    found = list(wrong)
    more = len(found) - EXAMPLES
    return found if more <= 0 else [*found[:EXAMPLES], f"and {more:,} more"]
