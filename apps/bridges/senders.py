"""Those who send the numbers: to Redis, to topics, and through ZeroMQ, whatever is killed meanwhile."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import redis
from confluent_kafka import Producer
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

BATCH: Final = 50
LOOK_SECONDS: Final = 0.05
KAFKA_SECONDS: Final = 120.0

# A client's lines about a broker that was killed on purpose.
_SILENT: Final = logging.Logger("silent")  # noqa: LOG001 - it belongs to no tree, so nothing handles it
_SILENT.addHandler(logging.NullHandler())


class SendFailed(Exception):
    """A sender has ended; the message says which one and why."""


class Pace:
    """Lets all senders send the same share of their messages, up to a limit that is raised once."""

    def __init__(self, messages: int, seconds: float, limit: int) -> None:
        self._messages = messages
        self._seconds = seconds
        self._limit = limit
        self._begun = time.monotonic()

    def allowed(self) -> int:
        """How many messages may have been sent by now."""
        share = (time.monotonic() - self._begun) / self._seconds
        return min(self._limit, int(share * self._messages))

    def release(self) -> None:
        """Let them send all."""
        self._limit = self._messages
        # The rest at the same pace.
        self._begun = max(self._begun, time.monotonic() - self._seconds * 0.9)


class Target(Protocol):
    """Where numbers are sent."""

    def send(self, numbers: range) -> None:
        """Send these; returns once they are acknowledged, or raises for what passes."""

    def sent(self) -> int | None:
        """How many were, after a failure; ``None`` if that cannot be known: what failed is not repeated."""

    def close(self) -> None:
        """Disconnect."""


class Sender(threading.Thread):
    """Sends the numbers from 0 on, as the pace allows."""

    def __init__(
        self,
        name: str,
        target: Target,
        pace: Pace,
        messages: int,
        passing: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.sent = 0
        self._target = target
        self._pace = pace
        self._messages = messages
        self._passing = passing
        self._stopped = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Send until all are sent."""
        try:
            while self.sent < self._messages and not self._stopped.wait(LOOK_SECONDS):
                while (until := min(self._pace.allowed(), self.sent + BATCH)) > self.sent:
                    self._send(range(self.sent, until))
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._error = error
        finally:
            self._target.close()

    def require(self) -> None:
        """Raise ``SendFailed`` if it has ended by an error."""
        if self._error is not None:
            raise SendFailed(f"the sender {self.name} failed: {self._error}") from self._error

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        self.join()

    def _send(self, numbers: range) -> None:
        try:
            self._target.send(numbers)
        except self._passing:
            known = None
            while known is None and not self._stopped.wait(LOOK_SECONDS):
                try:
                    found = self._target.sent()
                except self._passing:
                    continue
                known = numbers.stop if found is None else found
            self.sent = self.sent if known is None else known
        else:
            self.sent = numbers.stop


class RedisTarget:
    """A stream, list or channel. A batch and its end are written together, so that none is written twice."""

    def __init__(self, port: int, kind: str, key: str) -> None:
        self._kind = kind
        self._key = key
        self._count = f"sent:{key}"
        # Its types are partly unknown.
        self._client: Any = redis_client(port)

    def send(self, numbers: range) -> None:
        if self._kind == "channel":
            pipeline = self._client.pipeline(transaction=False)
            for number in numbers:
                pipeline.publish(self._key, number)
        else:
            pipeline = self._client.pipeline(transaction=True)
            if self._kind == "list":
                pipeline.rpush(self._key, *numbers)
            else:
                for number in numbers:
                    pipeline.xadd(self._key, {"n": number})
            pipeline.set(self._count, numbers.stop)
        pipeline.execute()

    def sent(self) -> int | None:
        found: Any = self._client.get(self._count)
        return None if self._kind == "channel" else int(found or 0)

    def close(self) -> None:
        self._client.close()


class KafkaTarget:
    """All topics at once, by an idempotent producer, which repeats by itself what a killed broker missed."""

    def __init__(self, servers: str, topics: Mapping[str, Callable[[int], bytes]]) -> None:
        self._topics = topics
        self._failed: list[str] = []
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.timeout.ms": int(KAFKA_SECONDS * 1_000),
            },
            logger=_SILENT,
        )

    def send(self, numbers: range) -> None:
        for topic, value in self._topics.items():
            for number in numbers:
                self._producer.produce(
                    topic, value(number), key=str(number), partition=number % 2, on_delivery=self._delivered
                )
        if self._producer.flush(KAFKA_SECONDS) or self._failed:
            raise SendFailed(f"Kafka has not taken all messages: {self._failed[:1]}")

    def sent(self) -> int | None:
        """The client repeats by itself, for ``KAFKA_SECONDS``: what fails then ends the demonstration."""
        return None

    def close(self) -> None:
        self._producer.flush(1.0)

    def _delivered(self, error: object, _message: object) -> None:
        if error is not None:
            self._failed.append(str(error))


class ZeroMQTarget:
    """A process that sends up to the number that is written to it."""

    def __init__(self, process: ZeroMQProcess) -> None:
        self._process = process

    def send(self, numbers: range) -> None:
        self._process.say(f"{numbers.stop}\n")

    def sent(self) -> int | None:
        """The process that takes the place of a killed one is given the same number."""
        return None

    def close(self) -> None:
        """It is ended by the demonstration, after what it has sent has arrived."""


class ZeroMQProcess:
    """The other side of a socket, which is killed and started again."""

    def __init__(self, kind: str, address: str, file: Path) -> None:
        self._command = (sys.executable, "-m", "apps.bridges.zeromq_side", kind, address, str(file))
        self._lock = threading.Lock()
        self._last = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and say again what was said last. It ends with this process at the latest."""
        # Ctrl-C is for the demonstration, which ends them.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0, start_new_session=True
        )
        if self._last:
            self._write(self._last)

    def say(self, line: str) -> None:
        """Write to its standard input. Raises ``BrokenPipeError`` if it is gone."""
        with self._lock:
            self._last = line
            self._write(line)

    def kill_and_start(self) -> None:
        """Kill it (SIGKILL), and start another one, which continues."""
        with self._lock:
            self.kill()
            self.start()

    def kill(self) -> None:
        """End it at once, if it was started."""
        if (process := self._process) is not None:
            assert process.stdin is not None
            process.kill()
            process.wait()
            process.stdin.close()

    def require(self) -> None:
        """Raise ``SendFailed`` if it has ended by itself."""
        if self._process is not None and (code := self._process.poll()) is not None:
            raise SendFailed(f"{' '.join(self._command[2:])} has ended with exit code {code}")

    def _write(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())


def redis_client(port: int) -> redis.Redis:
    """A client that never repeats a command."""
    return redis.Redis(port=port, retry=Retry(NoBackoff(), 0), protocol=2, socket_timeout=5.0)
