"""Who a broker's clients are to the cluster; how clients are made, and what of that must never be shown."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from streams.broker.kafka.client_log import ClientLog
from streams.broker.kafka.client_settings import unusable
from streams.broker.kafka.errors import REJECTED, classify
from streams.errors import BrokerError, BrokerUnreachable, NotAuthenticated, Right
from streams.redaction import scrub, secrets_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.errors import ConfigurationError

Settings = dict[str, Any]

C = TypeVar("C")

REQUEST_SECONDS: Final = 10.0
"""How long one question to the cluster may take before the broker counts as unreachable."""

log = logging.getLogger("streams.librdkafka")


class Access:
    """Who a broker's clients are to the cluster, and what of that must never be shown.

    It is the clients' logger too: what they say goes on without secrets.
    """

    def __init__(self, *settings: Mapping[str, Any]) -> None:
        self.principal = _principal(settings[0])
        self.complete = str(settings[0].get("security.protocol", "")).lower() == "sasl_ssl"
        """Whether there is TLS and authentication: a broker cannot ask for more."""
        self.let_in = False
        """Whether the cluster has answered any of the clients: a refusal from then on may pass."""
        self._client_log = ClientLog()
        self._secrets = set[str]().union(*map(secrets_in, settings))

    def log(self, level: int, message: str, *arguments: object) -> None:
        if log.isEnabledFor(level):
            text = self._client_log.admit(self.scrub(message % arguments))
            if text is not None:
                log.log(level, "%s", text)

    def scrub(self, text: str) -> str:
        """The text as it may be shown."""
        return scrub(text, self._secrets)

    def make(self, kind: Callable[[Settings], C], settings: Settings) -> C:
        """A client. Raises ``ConfigurationError`` for settings that it cannot take."""
        ask = settings.get("oauth_cb")
        failures: list[str] = []
        if callable(ask):
            settings = settings | {"oauth_cb": partial(_token, ask, failures)}
        for name in ("stats_cb", "throttle_cb"):
            if callable(settings.get(name)):
                settings = settings | {name: partial(self._tell, name, settings[name])}
        try:
            return kind(settings)
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            if cause.code() in REJECTED:
                why = f"there is no token: {self.scrub(' '.join(failures) or cause.str())}"
                raise (BrokerUnreachable(why) if self.let_in else NotAuthenticated(why)) from None
            raise self._unusable(cause.str()) from None
        except (TypeError, ValueError) as error:
            raise self._unusable(str(error)) from None

    def _unusable(self, why: str) -> ConfigurationError:
        return unusable("client", self.scrub(why))

    def _tell(self, name: str, call: Callable[[Any], object], news: object) -> None:
        """Call a program's callback. It runs in the worker's thread, whose work does not depend on it."""
        try:
            call(news)
        except Exception as error:  # noqa: BLE001 - whatever it raises would end the worker
            log.warning("%s raised %s: %s", name, type(error).__name__, self.scrub(str(error)))

    def means(self, error: KafkaError, doing: str, *rights: Right, replaceable: bool = False) -> BrokerError:
        """What a client error means to the engine; see ``classify``."""
        return classify(error, doing, *rights, principal=self.principal, replaceable=replaceable)


def _principal(settings: Mapping[str, Any]) -> str | None:
    """Who the cluster takes these settings' client for, where they tell."""
    protocol = str(settings.get("security.protocol", "plaintext")).lower()
    if protocol == "plaintext":
        return "User:ANONYMOUS"
    name = settings.get("sasl.username")
    return f"User:{name}" if name and protocol.startswith("sasl") else None


def _token(ask: Callable[[str], Any], failures: list[str], told: str) -> Any:
    """What the user's ``oauth_cb`` gives. The client itself does not say why it failed."""
    try:
        return ask(told)
    except Exception as error:
        failures[:] = [f"oauth_cb raised {type(error).__name__}: {error}"]
        raise


class LastError:
    """Remembers why a client cannot connect, which the error of the failing call itself does not tell."""

    def __init__(self) -> None:
        self.text = ""
        self.refusal = ""
        """Why it was refused, by TLS or for its credentials, if it ever was."""

    def __call__(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - a public name of the library
            self.text = error.str()
            # A port without TLS just closes the connection, which has no code of its own.
            if error.code() in REJECTED or "SSL handshake failed" in self.text:
                self.refusal = self.text
