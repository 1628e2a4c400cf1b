"""Remove secrets from logs, errors and descriptions of settings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

HIDDEN = "***"
"""The replacement for a secret."""

_SECRET = re.compile(
    r"password|passphrase|secret|key\.pem$|^http_token$|^sasl\.oauthbearer\.config$|user\.info$|auth\.token$"
)
_USER_INFO = re.compile(r"(?<=://)[^/@\s\"']+@")


def is_secret(name: str) -> bool:
    """Whether the value of a setting of that name, of an app or of librdkafka, must not be shown."""
    return _SECRET.search(name) is not None


def secrets_in(settings: Mapping[str, object]) -> set[str]:
    """The secret values among settings."""
    return {str(value) for name, value in settings.items() if value and is_secret(name)}


def without_secrets(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings with their secrets replaced."""
    return {
        name: HIDDEN if value and is_secret(name) else scrub(value) if isinstance(value, str) else value
        for name, value in settings.items()
    }


def scrub(text: str, secrets: Collection[str] = ()) -> str:
    """The text without these secrets, and without user names and passwords in URLs."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _USER_INFO.sub(f"{HIDDEN}@", text)
