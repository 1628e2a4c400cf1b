"""An SMTP server in this process, for tests and the demonstration, that notes what it is sent."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

from aiosmtpd.controller import Controller

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from aiosmtpd.smtp import SMTP, Envelope, Session

HOST = "127.0.0.1"
ATTEMPTS = 10
"""How many free ports are tried: another program may take one before the server does."""

_HEADER = re.compile(rb"^(Message-ID|Subject):\s*(.*?)\r?$", re.MULTILINE | re.IGNORECASE)


@dataclass(slots=True)
class Delivery:
    """One attempt to deliver a mail, from the recipient's name on."""

    to: str
    begun: float
    """Seconds since the epoch."""
    message_id: str = ""
    subject: str = ""
    ended: float = 0.0
    """When the server has answered; 0: it has not."""
    answer: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says to a recipient or to a mail."""

    text: str = "250 OK"
    after: float = 0.0
    """Seconds to wait first."""
    hang_up: bool = False
    """Close the connection instead."""


OK = Answer()


class SmtpServer:
    """Listens on a free port of this machine while it is open.

    ``at_recipient`` and ``at_mail`` decide what it answers to a recipient and to a complete mail.
    """

    def __init__(
        self,
        at_recipient: Callable[[Delivery], Answer] = lambda _: OK,
        at_mail: Callable[[Delivery], Answer] = lambda _: OK,
    ) -> None:
        self.deliveries: list[Delivery] = []
        """All attempts, in the order in which they began."""
        self.accepted = 0
        """How many mails it has taken responsibility for."""
        self.connections = 0
        """How many connections have sent a greeting."""
        self.port = 0
        self.at_recipient = at_recipient
        self.at_mail = at_mail
        self._underway: WeakKeyDictionary[Session, Delivery] = WeakKeyDictionary()
        self._controller: Controller | None = None

    def __enter__(self) -> Self:
        for attempt in range(ATTEMPTS):
            with closing(socket.socket()) as probe:
                probe.bind((HOST, 0))
                self.port = probe.getsockname()[1]
            controller = Controller(self, hostname=HOST, port=self.port)
            try:
                controller.start()
            except OSError:
                if attempt == ATTEMPTS - 1:
                    raise
                continue
            self._controller = controller
            break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._controller is not None:
            self._controller.stop()

    @property
    def mails(self) -> list[Delivery]:
        """The mails that it has taken responsibility for, in that order."""
        taken = [delivery for delivery in self.deliveries if delivery.answer.startswith("250")]
        return sorted(taken, key=lambda delivery: delivery.ended)

    # --- called by aiosmtpd, in its thread

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self,
        server: SMTP,  # noqa: ARG002 - aiosmtpd's arguments
        session: Session,
        envelope: Envelope,  # noqa: ARG002 - as above
        hostname: str,
        responses: list[str],
    ) -> list[str]:
        self.connections += 1
        session.host_name = hostname
        return responses

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        delivery = Delivery(address, time.time())
        self.deliveries.append(delivery)
        found = await self._answer(delivery, self.at_recipient(delivery), server)
        if found.startswith("250"):
            envelope.rcpt_tos.append(address)
            delivery.answer, delivery.ended = "", 0.0
            self._underway[session] = delivery
        return found

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        delivery = self._underway[session]
        content = envelope.content
        assert isinstance(content, bytes)
        headers = {
            name.lower(): value.decode()
            for name, value in _HEADER.findall(content[: content.find(b"\r\n\r\n")])
        }
        delivery.message_id = headers[b"message-id"]
        delivery.subject = headers[b"subject"]
        delivery.text = content.partition(b"\r\n\r\n")[2].decode()
        found = await self._answer(delivery, self.at_mail(delivery), server)
        self.accepted += found.startswith("250")
        return found

    async def _answer(self, delivery: Delivery, answer: Answer, server: SMTP) -> str:
        if answer.after:
            await asyncio.sleep(answer.after)
        delivery.answer = "hung up" if answer.hang_up else answer.text
        delivery.ended = time.time()
        if answer.hang_up and isinstance(server.transport, asyncio.WriteTransport):
            server.transport.abort()
        return answer.text
