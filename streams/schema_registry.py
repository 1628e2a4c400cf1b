"""The client of a schema registry, by confluent_kafka's client for Confluent's interface.

Apicurio, Karapace and Redpanda have that interface too.
"""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from streams.errors import ConfigurationError, RegistryUnavailable, SchemaRefused, SchemaRegistryError
from streams.redaction import scrub, secrets_in
from streams.serde.registry import Reference, RegisteredSchema
from streams.serde.schemas.subject_options import CompatibilityLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

T = TypeVar("T")

REQUEST_SECONDS = 5.0
"""The time-out of a request; the group is not polled meanwhile."""

_NETWORK = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "authlib"})
"""The libraries whose errors mean that there was no answer."""

_NOT_FOUND = 404
_NO_LEVEL = 40408
"""The error code of a subject without a level of its own."""


class ConfluentRegistry:
    """A schema registry at ``url``, or at one of several URLs separated by commas.

    ``settings`` are the client's own: ``ssl.…`` for TLS, ``basic.auth.user.info`` and ``bearer.auth.…`` for
    authentication. Raises ``ConfigurationError`` for settings that the client does not accept.
    """

    def __init__(self, url: str, settings: Mapping[str, Any] | None = None) -> None:
        try:
            from confluent_kafka import schema_registry  # noqa: PLC0415 - needs an extra
        except ImportError as error:
            raise ConfigurationError(
                f"a schema registry needs packages that are not installed: {error}",
                hint="pip install 'streams[registry]'",
            ) from error
        from confluent_kafka.schema_registry.error import (  # noqa: PLC0415 - as above
            OAuthTokenError,
            SchemaRegistryError as Rejected,
        )

        self._library = schema_registry
        self._rejected = Rejected
        self._no_token = OAuthTokenError
        self._secrets = secrets_in(settings or {})
        self.url = scrub(url)
        try:
            self._client: SchemaRegistryClient = schema_registry.SchemaRegistryClient(
                # Repeated by the worker, which polls its group meanwhile; the client would only sleep.
                {"timeout": REQUEST_SECONDS, "max.retries": 0, **(settings or {}), "url": url}
            )
        except (ValueError, TypeError, OSError) as error:
            raise ConfigurationError(
                f"the client of the schema registry does not accept its settings: "
                f"{scrub(str(error), self._secrets)}",
                hint="see schema_registry_url and schema_registry in the documentation of settings",
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def schema(self, identifier: int) -> RegisteredSchema:
        found = self._unless_missing(
            lambda: self._client.get_schema(identifier), f"read the schema with id {identifier}"
        )
        if found is None:
            raise LookupError(f"the schema registry {self.url} has no schema with id {identifier}")
        return _read(identifier, found, None)

    def version(self, subject: str, version: int) -> RegisteredSchema:
        found = self._unless_missing(
            lambda: self._client.get_version(subject, version),
            f"read version {version} of subject {subject!r}",
        )
        if found is None:
            raise LookupError(f"the schema registry {self.url} has no version {version} of {subject!r}")
        return _read(found.schema_id, found.schema, version)

    def versions(self, subject: str) -> list[int]:
        found = self._unless_missing(
            lambda: self._client.get_versions(subject), f"list the versions of subject {subject!r}"
        )
        return sorted(found or ())

    def find(
        self, subject: str, source: Any, references: Sequence[Reference] = ()
    ) -> RegisteredSchema | None:
        schema = self._schema(source, references)
        found = self._unless_missing(
            lambda: self._client.lookup_schema(subject, schema), f"look a schema up in subject {subject!r}"
        )
        if found is None:
            return None
        return RegisteredSchema(_present(found.schema_id), source, tuple(references), found.version)

    def register(self, subject: str, source: Any, references: Sequence[Reference] = ()) -> RegisteredSchema:
        schema = self._schema(source, references)
        identifier = self._call(
            lambda: self._client.register_schema(subject, schema), f"register a schema under {subject!r}"
        )
        found = self.find(subject, source, references)
        return RegisteredSchema(identifier, source, tuple(references), found.version if found else None)

    def accepts(self, subject: str, source: Any, references: Sequence[Reference] = ()) -> bool:
        schema = self._schema(source, references)
        return self._call(
            lambda: self._client.test_compatibility(subject, schema), f"test a schema under {subject!r}"
        )

    def level(self, subject: str) -> CompatibilityLevel:
        doing = "read the compatibility level"
        own = self._unless_missing(
            lambda: self._client.get_compatibility(subject), f"{doing} of subject {subject!r}"
        )
        if own is None or own == "NONE":
            # Apicurio reports NONE for subjects without a level of their own.
            own = self._call(self._client.get_compatibility, doing) or own
        return cast("CompatibilityLevel", own) if own in get_args(CompatibilityLevel) else "NONE"

    def _schema(self, source: Any, references: Sequence[Reference]) -> Schema:
        made: Schema = self._library.Schema(
            json.dumps(source),
            "AVRO",
            references=[self._library.SchemaReference(*reference) for reference in references],
        )
        return made

    def _unless_missing(self, call: Callable[[], T], doing: str) -> T | None:
        """The result of a request; ``None`` if the registry does not have what it is about."""
        try:
            return self._attempt(call, doing)
        except self._rejected as error:
            if error.http_status_code == _NOT_FOUND or error.error_code == _NO_LEVEL:
                return None
            raise self._error(error, doing) from None

    def _call(self, call: Callable[[], T], doing: str) -> T:
        try:
            return self._attempt(call, doing)
        except self._rejected as error:
            raise self._error(error, doing) from None

    def _attempt(self, call: Callable[[], T], doing: str) -> T:
        try:
            return call()
        except self._rejected:
            raise
        except Exception as error:  # noqa: BLE001 - an error of a kind that is not known is one of the registry
            # The client passes the errors of its HTTP library on, whichever that is.
            if _certificate_failed(error):
                raise SchemaRegistryError(
                    f"could not {doing}: {self._text(error)}",
                    hint="set ssl.ca.location in schema_registry to the authority of the registry's "
                    "certificate",
                ) from None
            if isinstance(error, OSError | self._no_token) or _library(error) in _NETWORK:
                raise self._unavailable(doing, error) from None
            raise SchemaRegistryError(
                f"the schema registry {self.url} gave an unexpected answer to a request to {doing}: "
                f"{type(error).__name__}: {self._text(error)}",
                hint="check schema_registry_url: is this a schema registry?",
            ) from None

    def _error(self, error: Any, doing: str) -> SchemaRegistryError | RegistryUnavailable:
        status, text = error.http_status_code, self._text(error.error_message)
        message = f"the schema registry {self.url} refused to {doing}: {text} (status {status})"
        if status == 409:
            return SchemaRefused(message)
        if status in {401, 403}:
            return SchemaRegistryError(
                message, hint="check the credentials in schema_registry, and their rights"
            )
        if status in {408, 425, 429} or status >= 500:
            return RegistryUnavailable(message)
        return SchemaRegistryError(message)

    def _unavailable(self, doing: str, error: Exception) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"the schema registry {self.url} did not answer a request to {doing}: "
            f"{type(error).__name__}: {self._text(error)}"
        )

    def _text(self, error: object) -> str:
        return scrub(str(error), self._secrets)


def _read(identifier: int | None, schema: Schema, version: int | None) -> RegisteredSchema:
    if (schema.schema_type or "AVRO") != "AVRO":
        raise LookupError(f"the schema with id {identifier} is not an Avro schema but {schema.schema_type}")
    assert schema.schema_str is not None, "a schema that was read has a text"
    text = schema.schema_str
    try:
        source = json.loads(text)
    except ValueError:
        # A primitive type may be registered by its name alone.
        source = text.strip()
    references = tuple(
        Reference(str(item.name), str(item.subject), int(item.version or 0))
        for item in schema.references or ()
    )
    return RegisteredSchema(_present(identifier), source, references, version)


def _present(identifier: int | None) -> int:
    assert identifier is not None, "a registered schema has an id"
    return identifier


def _library(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]


def _certificate_failed(error: BaseException | None) -> bool:
    seen = 0
    while error is not None and seen < 8:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
