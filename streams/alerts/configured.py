"""Where the alerts of an app are declared: in its program, or in a file, which may change."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from streams.alerts.declared import Alerts, Silence, sender_of
from streams.alerts.mail import Email
from streams.alerts.rules import AlertRule
from streams.alerts.webhook import Webhook
from streams.errors import ConfigurationError, StreamsError
from streams.events import Event, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

LARGEST_FILE = 1024 * 1024

DURATIONS = {"lasting", "clearing", "timeout"}
"""Keys whose values are seconds in a file, as those of settings are."""


class Configured:
    """The alerts of an app: those of a file, else those of its program.

    The file is checked at once, and read again when it has changed. A change that is wrong is logged, and
    what the file said before holds. Raises ``ConfigurationError``.
    """

    def __init__(self, declared: Alerts, path: Path | None = None) -> None:
        self._path = path
        self._seen: object = None
        self._current = declared
        if path is not None:
            self._seen = _version(path)
            self._current = read_alerts_file(path)

    def current(self) -> Alerts:
        """What holds now; another object only if it has changed."""
        path = self._path
        if path is None:
            return self._current
        seen = _version(path)
        if seen != self._seen:
            self._seen = seen
            try:
                changed = read_alerts_file(path)
                for receiver in changed.receivers:
                    sender_of(receiver)
                self._current = changed
            except StreamsError as error:
                get_logger().error(Event.ALERTS_FILE_REFUSED, file=str(path), error=str(error))
        return self._current


def read_alerts_file(path: Path) -> Alerts:
    """The alerts that a file (TOML) declares. Raises ``ConfigurationError``."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ConfigurationError(f"{path} has more than {LARGEST_FILE} bytes")
        document = tomllib.loads(content.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"the file of alerts {path} cannot be read: {error}") from error
    known = {"webhooks", "emails", "rules", "off", "silences"}
    if unknown := sorted(document.keys() - known):
        raise ConfigurationError(
            f"{path}: {', '.join(unknown)} is not known there", hint=f"it has: {', '.join(sorted(known))}"
        )
    rules = document.get("rules", {})
    if not isinstance(rules, dict):
        raise ConfigurationError(f"{path}: rules is a table of alerts", hint="[rules.StreamsBehind]")
    off = document.get("off", [])
    if not isinstance(off, list):
        raise ConfigurationError(f"{path}: off is a list of alerts", hint='off = ["StreamsCronMissed"]')
    return Alerts(
        receivers=[
            *_tables(document, "webhooks", Webhook, path),
            *_tables(document, "emails", Email, path),
        ],
        rules={name: _made(AlertRule, fields, f"{path}: rules.{name}") for name, fields in rules.items()},
        off=off,
        silences=_tables(document, "silences", Silence, path),
    )


def _tables(document: Mapping[str, Any], name: str, make: Callable[..., Any], path: Path) -> list[Any]:
    found = document.get(name, [])
    if not isinstance(found, list):
        raise ConfigurationError(f"{path}: {name} is a list of tables", hint=f"[[{name}]]")
    return [_made(make, fields, f"{path}: {name}[{number}]") for number, fields in enumerate(found)]


def _made(make: Callable[..., Any], fields: object, what: str) -> Any:
    if not isinstance(fields, dict):
        raise ConfigurationError(f"{what} is a table, got {fields!r:.80}")
    values = {name: _value(name, value, what) for name, value in fields.items()}
    try:
        return make(**values)
    except TypeError as error:
        raise ConfigurationError(f"{what}: {error}") from None
    except StreamsError as error:
        raise ConfigurationError(f"{what}: {error}") from None


def _value(name: str, value: object, what: str) -> object:
    if name not in DURATIONS:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 10**9:
        raise ConfigurationError(f"{what}: {name} is a number of seconds, got {value!r:.80}")
    return timedelta(seconds=value)


def _version(path: Path) -> object:
    """What changes whenever the file does, also if a mounted file is replaced by a link to another one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
