"""What an error of the server or the client means for a connector."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import redis

from streams.errors import ConnectorError, SinkUnavailable, SourceUnavailable

if TYPE_CHECKING:
    from streams.errors import ConnectorUnavailable

_PASSING = {
    "BUSY",
    "CLUSTERDOWN",
    "EXECABORT",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOGROUP",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
}
"""Codes of refusals that may pass: the server is full, starts, or is a replica; opening creates a group."""

_LOGIN = {"NOAUTH", "NOPERM", "WRONGPASS"}

_ADVICE = {
    "WRONGPASS": "check the user and the password of the URL, or REDISCLI_AUTH",
    "NOAUTH": "the server needs a password: in the URL, or in REDISCLI_AUTH",
    "NOPERM": "grant the user this command and these keys (ACL SETUSER)",
    "WRONGTYPE": "delete the key, or name another one",
    "CROSSSLOT": "in a cluster, keys that are written together need the same hash tag, e.g. {orders}",
}


class CommandRefused(Exception):
    """The server refuses a command; ``code`` is the first word of its answer."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def refused(error: redis.RedisError) -> CommandRefused:
    """The server's answer, with its code, which the client removes from some."""
    text = str(error)
    code = _CODES.get(type(error)) or text.partition(" ")[0].rstrip(":")
    return CommandRefused(text if text.startswith(code) else f"{code} {text}", code)


_CODES: dict[type[Exception], str] = {
    redis.exceptions.NoScriptError: "NOSCRIPT",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ExecAbortError: "EXECABORT",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.MovedError: "MOVED",
    redis.exceptions.AskError: "ASK",
    redis.exceptions.TryAgainError: "TRYAGAIN",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.ClusterCrossSlotError: "CROSSSLOT",
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.AuthenticationError: "WRONGPASS",
    redis.exceptions.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
}


def to_error(
    error: Exception,
    doing: str,
    *,
    starting: bool = False,
    unavailable: type[ConnectorUnavailable] = SourceUnavailable,
) -> ConnectorError | ConnectorUnavailable:
    """The connector's error. While ``starting``, a refused login or certificate ends the worker.

    In a worker that runs it is an outage, as a password may have been changed.
    """
    if isinstance(error, redis.exceptions.AuthenticationError | redis.exceptions.ResponseError):
        error = refused(error)
    if isinstance(error, CommandRefused):
        passes = error.code in _PASSING or (error.code in _LOGIN and not starting)
        text = f"Redis refuses {doing}: {error}"
        if passes:
            return unavailable(text)
        return ConnectorError(text, hint=_ADVICE.get(error.code))
    text = f"Redis does not answer ({doing}): {error}"
    if starting and _certificate_refused(error):
        return ConnectorError(text, hint="name the authority's file: rediss://…?ssl_ca_certs=/path/ca.pem")
    return unavailable(text)


def sink_error(error: Exception, doing: str, *, starting: bool = False) -> Exception:
    """As ``to_error``, for a sink."""
    return to_error(error, doing, starting=starting, unavailable=SinkUnavailable)


def _certificate_refused(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
