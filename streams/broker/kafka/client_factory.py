"""Create the clients of a broker, and keep their secrets out of logs and errors."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from streams.broker.kafka.client_log import ClientLog
from streams.broker.kafka.client_settings import unusable
from streams.broker.kafka.errors import REJECTED, classify
from streams.broker.kafka.throttle_times import ThrottleTimes
from streams.errors import BrokerError, BrokerUnreachable, NotAuthenticated, Right
from streams.redaction import scrub, secrets_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.broker.throttling import Role
    from streams.errors import ConfigurationError

Settings = dict[str, Any]

C = TypeVar("C")

REQUEST_SECONDS: Final = 10.0
"""The time-out of a request to the cluster, after which the broker counts as unreachable."""

log = logging.getLogger("streams.librdkafka")

ROLES: Final[Mapping[object, Role]] = {Consumer: "consumer", Producer: "producer"}
"""The clients that quotas hold back."""


class ClientFactory:
    """Creates the clients of a broker, and knows their principal and their secrets.

    It is also the clients' logger, which removes secrets from their log lines.
    """

    def __init__(self, *settings: Mapping[str, Any]) -> None:
        self.principal = _principal(settings[0])
        self.complete = str(settings[0].get("security.protocol", "")).lower() == "sasl_ssl"
        """Whether TLS and authentication are configured: a broker cannot require more."""
        self.has_answered = False
        """Whether the cluster has answered any client: later authentication errors may be temporary."""
        self.throttle_times = ThrottleTimes()
        self._client_log = ClientLog()
        self._secrets = set[str]().union(*map(secrets_in, settings))

    def log(self, level: int, message: str, *arguments: object) -> None:
        if log.isEnabledFor(level):
            text = self._client_log.admit(self.scrub(message % arguments))
            if text is not None:
                log.log(level, "%s", text)

    def scrub(self, text: str) -> str:
        """The text without secrets."""
        return scrub(text, self._secrets)

    def make(self, kind: Callable[[Settings], C], settings: Settings) -> C:
        """Create a client. Raises ``ConfigurationError`` for settings that it does not accept."""
        get_token = settings.get("oauth_cb")
        failures: list[str] = []
        if callable(get_token):
            settings = settings | {"oauth_cb": partial(_token, get_token, failures)}
        for name in ("stats_cb", "throttle_cb"):
            if callable(settings.get(name)):
                settings = settings | {name: partial(self._call_back, name, settings[name])}
        if role := ROLES.get(kind):
            given = settings.get("throttle_cb")
            settings = settings | {"throttle_cb": self.throttle_times.callback(role, given)}
        try:
            return kind(settings)
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            if cause.code() in REJECTED:
                why = f"no token was obtained: {self.scrub(' '.join(failures) or cause.str())}"
                raise (BrokerUnreachable(why) if self.has_answered else NotAuthenticated(why)) from None
            raise self._unusable(cause.str()) from None
        except (TypeError, ValueError) as error:
            raise self._unusable(str(error)) from None

    def _unusable(self, why: str) -> ConfigurationError:
        return unusable("client", self.scrub(why))

    def _call_back(self, name: str, call: Callable[[Any], object], argument: object) -> None:
        """Call a callback of the program, in the worker's thread; its exceptions are only logged."""
        try:
            call(argument)
        except Exception as error:  # noqa: BLE001 - any exception would end the worker
            log.warning("%s raised %s: %s", name, type(error).__name__, self.scrub(str(error)))

    def to_error(
        self, error: KafkaError, doing: str, *rights: Right, replaceable: bool = False
    ) -> BrokerError:
        """The engine's error for a client error; see ``classify``."""
        return classify(error, doing, *rights, principal=self.principal, replaceable=replaceable)


def _principal(settings: Mapping[str, Any]) -> str | None:
    """The principal of a client with these settings, as far as they determine it."""
    protocol = str(settings.get("security.protocol", "plaintext")).lower()
    if protocol == "plaintext":
        return "User:ANONYMOUS"
    name = settings.get("sasl.username")
    return f"User:{name}" if name and protocol.startswith("sasl") else None


def _token(get_token: Callable[[str], Any], failures: list[str], config: str) -> Any:
    """Call the user's ``oauth_cb``, and record its exception, which the client does not report."""
    try:
        return get_token(config)
    except Exception as error:
        failures[:] = [f"oauth_cb raised {type(error).__name__}: {error}"]
        raise


class LastError:
    """An ``error_cb`` that stores why a client cannot connect, which errors of calls do not include."""

    def __init__(self) -> None:
        self.text = ""
        self.refusal = ""
        """The last failure of TLS or authentication, if any."""

    def __call__(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - a public name of the library
            self.text = error.str()
            # A port without TLS just closes the connection, for which there is no error code.
            if error.code() in REJECTED or "SSL handshake failed" in self.text:
                self.refusal = self.text
