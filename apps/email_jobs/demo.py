"""``make demo-jobs``: thousands of mails through a queue, a worker killed, every job accounted for."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from apps.email_jobs.accounts import Accounts, job_of
from apps.email_jobs.other_clients import addresses, declare_queue
from apps.email_jobs.other_side import OtherSide
from apps.email_jobs.report import Report, show
from apps.email_jobs.smtp_server import HOST, SmtpServer
from apps.email_jobs.traffic import Enqueued, plan
from apps.workers import WorkerFailed, Workers
from streams.broker import BEGINNING, NewTopic
from streams.broker.kafka import KafkaBroker
from streams.broker.reading import find_partitions, follow, read_to_end
from streams.devstack.development import development_broker
from streams.devstack.rabbitmq import LocalRabbitMQ
from streams.devstack.redis import LocalRedis
from streams.errors import StreamsError
from streams.jobs.record import JobEnd, ends_topic, releases_topic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WORKERS = 2
CLIENTS = 2
STALL_SECONDS = 120.0
"""After this time without a job that ends, the demonstration fails."""
KILL_AT = 0.35
"""The share of the jobs that have ended when a worker is killed."""
LOOK_SECONDS = 0.1
OTHERS_SHARE = 40
"""Through each other system goes one mail for so many jobs."""
SYSTEMS = {"celery": "Celery", "rabbitmq": "RabbitMQ", "redis": "Redis"}
BUILD = Path("build")
STATE = BUILD / "demo-jobs-state"
REPORT = BUILD / "demo-jobs-report.json"
ANSWERS = BUILD / "demo-jobs-other-clients.jsonl"

# A killed worker's partitions move after this time.
QUICK_GROUPS = {
    "group.consumer.heartbeat.interval.ms": "500",
    "group.consumer.session.timeout.ms": "6000",
}

LIMITS: Final = {"MAIL_PER_SECOND": "25", "MAIL_AT_ONCE": "5"}
"""For each domain."""

console = Console()


class DemoFailed(Exception):
    """The demonstration failed; the message says where and why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is 0 only if every job is accounted for."""
    parser = argparse.ArgumentParser(prog="make demo-jobs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000, help="how many mails")
    parser.add_argument("--seed", type=int, default=1, help="of their order")
    options = parser.parse_args(arguments)
    if options.jobs < 100:
        parser.error("--jobs must be 100 or more")
    # Hide the client's messages about a broker that is still starting.
    logging.getLogger("streams").addHandler(logging.NullHandler())
    # The SMTP server's notes about connections that were lost on purpose.
    logging.getLogger("mail.log").setLevel(logging.CRITICAL)
    # SIGTERM becomes an exception, so that the workers and the servers are stopped too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    BUILD.mkdir(exist_ok=True)
    try:
        with ExitStack() as stack:
            report = _Demo(stack, options.jobs, options.seed).run()
    except (StreamsError, DemoFailed, WorkerFailed) as error:
        console.print("[bold red]The demo failed:[/] ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return error.exit_code if isinstance(error, StreamsError) else 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    show(report, console)
    REPORT.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    console.print(f"The same figures as data: {REPORT}")
    return 1 if report.problems else 0


def _say(text: str) -> None:
    console.print(f"[dim]{text}[/]", highlight=False)


class _Ends:
    """Counts the ends of jobs while they are recorded, in a thread of its own."""

    def __init__(self, broker: KafkaBroker, topic: str) -> None:
        self.count = 0
        self._broker = broker
        self._topic = topic
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop counting."""
        self._stopped.set()
        self._thread.join()

    def _follow(self) -> None:
        starts = dict.fromkeys(find_partitions(self._broker, [self._topic]), BEGINNING)
        for fetched in follow(self._broker, starts, self._stopped.is_set):
            self.count += len(fetched)


class _Demo:
    """The servers, the workers, the clients, and what happens to them."""

    def __init__(self, stack: ExitStack, jobs: int, seed: int) -> None:
        self._stack = stack
        self._jobs = jobs
        self._seed = seed
        self._plan = plan(jobs, seed)
        self._seconds: dict[str, float] = {}
        self._survived: list[str] = []
        begun = time.monotonic()
        _say("Starting an SMTP server that refuses some mails, and a Kafka …")
        other_side = OtherSide()
        self._smtp = stack.enter_context(SmtpServer(other_side.at_recipient, other_side.at_mail))
        self._start_other_systems()
        servers = stack.enter_context(development_broker(_say, properties=QUICK_GROUPS))
        # The user's cluster may contain an earlier run, so every run has its own names.
        prefix = f"demo-{uuid.uuid4().hex[:6]}-"
        self._name = f"{prefix}email-jobs"
        self._environment: Mapping[str, str] = {
            **os.environ,
            **LIMITS,
            "EMAIL_JOBS_PREFIX": prefix,
            "SMTP_HOST": HOST,
            "SMTP_PORT": str(self._smtp.port),
            "MAIL_BACKOFF": "1",
            "MAIL_BUSY_WAIT": "2",
            "REMIND_AFTER": "5",
            # Twelve hours from now: no report is among the jobs that are accounted for.
            "MAIL_REPORT_AT": f"0 {(time.gmtime().tm_hour + 12) % 24} * * *",
            **{f"MAIL_{system.upper()}": url for system, url in self._other_urls.items()},
            "STREAMS_BOOTSTRAP_SERVERS": servers,
            "STREAMS_STATE_DIR": str(STATE),
            "STREAMS_JOB_CONCURRENCY": "32",
            # A killed worker's partitions and open transaction are free after these times.
            "STREAMS_SESSION_TIMEOUT": "6",
            "STREAMS_TRANSACTION_TIMEOUT": "6",
        }
        self._broker = KafkaBroker({"bootstrap.servers": servers})
        self._broker.admin().create_topics([NewTopic(name=f"{prefix}signups", partitions=4)])
        shutil.rmtree(STATE, ignore_errors=True)
        stack.callback(shutil.rmtree, STATE, ignore_errors=True)
        self._workers = Workers(
            "apps.email_jobs.app:app", WORKERS, self._environment, BUILD, "demo-jobs-worker"
        )
        self._clients: list[subprocess.Popen[bytes]] = []
        self._seconds["start the servers"] = time.monotonic() - begun

    def run(self) -> Report:
        """Run everything, and compare."""
        with self._workers:
            begun = time.monotonic()
            self._wait_for_topics()
            self._seconds["start the workers"] = time.monotonic() - begun
            ends = _Ends(self._broker, ends_topic(self._name))
            self._stack.callback(ends.stop)
            begun = time.monotonic()
            for number in range(CLIENTS):
                self._start_client(number)
            self._start_other_clients()
            self._follow(ends)
            self._seconds["enqueue and execute"] = time.monotonic() - begun
            begun = time.monotonic()
        self._seconds["stop the workers"] = time.monotonic() - begun
        _say("Comparing what clients, topics and the SMTP server say …")
        begun = time.monotonic()
        accounts = self._accounts()
        checks = accounts.checks()
        self._seconds["compare"] = time.monotonic() - begun
        kinds = Counter(entry.kind.value for entry in accounts.enqueued.values())
        kinds["by signups"] = 2 * len(accounts.signups)
        kinds |= {f"through {system}": len(emails) for system, emails in self._elsewhere.items()}
        return Report(
            seed=self._seed,
            kinds=dict(kinds.most_common()),
            endings=dict(Counter(end.ending.value for end in accounts.ends).most_common()),
            mails=len(self._smtp.mails),
            repeated=accounts.repeated,
            refused=sum(not delivery.answer.startswith("250") for delivery in self._smtp.deliveries),
            dead_letters=len(accounts.letters),
            seconds=self._seconds,
            waits=self._waits(accounts.enqueued),
            survived=self._survived,
            checks=checks,
        )

    # --- other systems

    def _start_other_systems(self) -> None:
        """The servers of clients that do not know of this library."""
        redis = self._stack.enter_context(LocalRedis.create())
        self._other_urls = {"redis": redis.url, "celery": redis.url.replace("/0", "/1")}
        if reason := LocalRabbitMQ.missing():
            console.print(f"[yellow]Without mails through RabbitMQ: {reason}[/]", highlight=False)
        else:
            _say("Starting a RabbitMQ …")
            rabbitmq = self._stack.enter_context(LocalRabbitMQ.create())
            self._other_urls["rabbitmq"] = rabbitmq.url()
            declare_queue(rabbitmq.url())
        self._other_mails = max(10, self._jobs // OTHERS_SHARE)
        self._elsewhere = {
            SYSTEMS[system]: addresses(system, self._other_mails) for system in sorted(self._other_urls)
        }

    def _start_other_clients(self) -> None:
        """One process, which imports nothing of this library."""
        urls = [word for system, url in self._other_urls.items() for word in (f"--{system}", url)]
        command = (sys.executable, "-m", "apps.email_jobs.other_clients", "--mails", str(self._other_mails))
        ANSWERS.unlink(missing_ok=True)
        self._start_process((*command, *urls, "--results", str(ANSWERS)), ANSWERS.with_suffix(".log"))

    def _answers(self) -> dict[str, str]:
        """What Celery's client was given, once it has all."""
        client = self._clients[-1]
        if client.wait(STALL_SECONDS):
            raise DemoFailed(f"the other clients ended with exit code {client.returncode}; see {ANSWERS}")
        found = map(json.loads, ANSWERS.read_text(encoding="utf-8").splitlines())
        return {entry["to"]: entry["result"] for entry in found}

    # --- while it goes

    def _wait_for_topics(self) -> None:
        deadline = time.monotonic() + STALL_SECONDS
        admin = self._broker.admin()
        while ends_topic(self._name) not in admin.topics():
            self._workers.require()
            if time.monotonic() > deadline:
                raise DemoFailed(f"the workers do not start; see {BUILD}/demo-jobs-worker-*.log")
            time.sleep(LOOK_SECONDS)

    def _start_client(self, number: int) -> None:
        journal = self._journal(number)
        journal.unlink(missing_ok=True)
        command = (sys.executable, "-m", "apps.email_jobs.traffic", "--clients", str(CLIENTS))
        arguments = ("--client", str(number), "--jobs", str(self._jobs), "--seed", str(self._seed))
        self._start_process((*command, *arguments, "--journal", str(journal)), journal.with_suffix(".log"))

    def _start_process(self, command: Sequence[str], log_file: Path) -> None:
        with log_file.open("wb") as log:
            client = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._clients.append(client)
        self._stack.callback(_end, client)

    def _follow(self, ends: _Ends) -> None:
        """Wait until every job has ended, and let things happen meanwhile."""
        jobs = self._plan.jobs + sum(map(len, self._elsewhere.values()))
        with _progress() as progress:
            enqueuing = progress.add_task("enqueue", total=self._plan.jobs, note="")
            ending = progress.add_task("end", total=jobs, note="")
            seen, moved = 0, time.monotonic()
            begun = moved
            while ends.count < jobs:
                time.sleep(LOOK_SECONDS)
                self._workers.require()
                self._require_clients()
                now = time.monotonic()
                if ends.count != seen:
                    seen, moved = ends.count, now
                elif now - moved > STALL_SECONDS:
                    raise DemoFailed(
                        f"no job has ended for {STALL_SECONDS:.0f} s, {seen:,} of {jobs:,} have; "
                        f"see {BUILD}/demo-jobs-worker-*.log"
                    )
                if not self._survived and seen >= KILL_AT * jobs:
                    happened = self._kill_a_worker()
                    progress.console.print(f"[yellow]{happened}[/]", highlight=False)
                progress.update(
                    enqueuing, completed=self._enqueued(), note=f"{self._smtp.accepted:>9,} mails arrived"
                )
                progress.update(ending, completed=seen, note=f"{seen / (now - begun):>9,.0f} jobs/s")

    def _kill_a_worker(self) -> str:
        self._workers.kill(0)
        self._workers.start(0)
        happened = "kill -9 of worker 0 in the middle of its jobs; another one was started"
        self._survived.append(happened)
        return happened

    def _require_clients(self) -> None:
        for number, client in enumerate(self._clients):
            if client.poll():
                journal = self._journal(number) if number < CLIENTS else ANSWERS
                log = journal.with_suffix(".log")
                raise DemoFailed(f"client {number} ended with exit code {client.returncode}; see {log}")

    def _enqueued(self) -> int:
        """How many jobs are enqueued, by the clients' journals and the signups."""
        lines = sum(
            self._journal(number).read_bytes().count(b"\n")
            for number in range(CLIENTS)
            if self._journal(number).exists()
        )
        return lines + 2 * len(self._plan.signups) if lines else 0

    # --- afterwards

    def _accounts(self) -> Accounts:
        decode = msgspec.json.Decoder(Enqueued).decode
        lines = [
            line for number in range(CLIENTS) for line in self._journal(number).read_bytes().splitlines()
        ]
        end = msgspec.json.Decoder(JobEnd).decode
        letters: list[str] = []
        for fetched in read_to_end(self._broker, [f"{self._name}-dead-letters"]):
            for headers in fetched.headers() or []:
                origin = dict(headers or [])
                place = (origin[f"__streams.errors.{part}"] or b"" for part in ("partition", "offset"))
                letters.append(b"-".join(place).decode())
        return Accounts(
            enqueued={entry.id: entry for entry in map(decode, lines)},
            signups=self._plan.signups,
            elsewhere=self._elsewhere,
            answers=self._answers(),
            ends=[end(value or b"") for value in self._values(ends_topic(self._name))],
            letters=letters,
            released=[
                msgspec.json.decode(value or b"")["id"] for value in self._values(releases_topic(self._name))
            ],
            deliveries=self._smtp.deliveries,
            settled=self._workers.settled(),
            per_second=int(LIMITS["MAIL_PER_SECOND"]),
            at_once=int(LIMITS["MAIL_AT_ONCE"]),
        )

    def _values(self, topic: str) -> list[bytes | None]:
        return [value for fetched in read_to_end(self._broker, [topic]) for value in fetched.values()]

    def _waits(self, enqueued: Mapping[str, Enqueued]) -> dict[str, list[float]]:
        """How long jobs have waited for their first attempt; delayed ones since they were due."""
        waits: defaultdict[str, list[float]] = defaultdict(list)
        seen: set[str] = set()
        for delivery in self._smtp.deliveries:
            job = job_of(delivery.message_id) if delivery.message_id else ""
            if job in enqueued and job not in seen:
                seen.add(job)
                entry = enqueued[job]
                since = entry.before if entry.due is None else entry.due
                waits[entry.kind.value].append(delivery.begun - since / 1000)
        return dict(waits)

    def _journal(self, number: int) -> Path:
        return BUILD / f"demo-jobs-client-{number}.jsonl"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:>9,}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    )


if __name__ == "__main__":
    sys.exit(main())
