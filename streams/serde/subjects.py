"""The schemas of topics in a schema registry: the subjects' names, and the ids in the records."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from streams.errors import ConfigurationError, SchemaRefused
from streams.serde.compatibility import incompatibilities
from streams.serde.registry import Reference
from streams.serde.schema_folder import written_schema
from streams.serde.schemas.avro_references import complete, full_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.serde.registry import Part, RegisteredSchema, SchemaRegistry
    from streams.serde.schema_folder import WrittenSchema
    from streams.serde.schemas.subject_options import CompatibilityLevel, SubjectStrategy

UNKNOWN_SECONDS = 10.0
"""An id that the registry does not know is not requested again for this long."""


class Subjects:
    """The subjects of one registry, as an app uses them.

    With ``register``, schemas that are not registered yet are registered; without it, they must be. ``level``
    is checked before that in addition to the registry's own check, unless it is ``None``.
    """

    def __init__(
        self,
        registry: SchemaRegistry,
        *,
        strategy: SubjectStrategy = "topic",
        register: bool = True,
        level: CompatibilityLevel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self._strategy = strategy
        self._register = register
        self._level = level
        self._clock = clock
        self._schemas: dict[int, Any] = {}
        self._unknown: dict[int, tuple[float, str]] = {}
        self._identifiers: dict[tuple[str, str], int] = {}

    def name(self, topic: str, part: Part, source: Any) -> str:
        """The subject of a schema for a topic. Raises ``ConfigurationError`` if it would have no name."""
        if self._strategy == "topic":
            return f"{topic}-{part}"
        record = full_name(source)
        if record is None:
            raise ConfigurationError(
                f"topic {topic!r}: the {part}'s schema is no named type, which schema_subjects="
                f"{self._strategy!r} needs to name its subject",
                hint="use a record, or schema_subjects='topic'",
            )
        return record if self._strategy == "record" else f"{topic}-{record}"

    def schema(self, identifier: int) -> Any:
        """The schema with that id, complete.

        Raises ``LookupError`` if the registry has none, and ``RegistryUnavailable``.
        """
        if identifier in self._schemas:
            return self._schemas[identifier]
        since, why = self._unknown.get(identifier, (-UNKNOWN_SECONDS, ""))
        if why and self._clock() - since < UNKNOWN_SECONDS:
            raise LookupError(why)
        try:
            found = self.complete(self.registry.schema(identifier))
        except LookupError as error:
            if len(self._unknown) >= 10_000:
                # Records of another format have any number as an id.
                self._unknown.clear()
            self._unknown[identifier] = self._clock(), str(error.args[0])
            raise
        self._schemas[identifier] = found
        return found

    def complete(self, registered: RegisteredSchema) -> Any:
        """A registered schema with the types that it references."""
        definitions: dict[str, Any] = {}

        def collect(references: tuple[Reference, ...]) -> None:
            for reference in references:
                if reference.name not in definitions:
                    found = self.registry.version(reference.subject, reference.version)
                    definitions[reference.name] = found.source
                    collect(found.references)

        collect(registered.references)
        return complete(registered.source, definitions.get)

    def identify(self, topic: str, part: Part, schema: Any) -> int:
        """The id of a schema for a topic, given as JSON without references; as ``identifier``."""
        return self.identifier(self.name(topic, part, schema), written_schema(schema))

    def identifier(self, subject: str, schema: WrittenSchema) -> int:
        """The id of a schema in a subject, registered if that is allowed.

        Raises ``SchemaRefused`` with the fields that do not fit, and ``RegistryUnavailable``.
        """
        text = json.dumps(schema.source)
        known = self._identifiers.get((subject, text))
        if known is None:
            known = self._identifiers[subject, text] = self._registered(subject, schema).identifier
        return known

    def _registered(self, subject: str, schema: WrittenSchema) -> RegisteredSchema:
        registry = self.registry
        references = self._references(schema)
        found = registry.find(subject, schema.source, references)
        if found is not None:
            return found
        if not self._register:
            raise SchemaRefused(
                f"the schema for subject {subject!r} is not registered, and register_schemas is false",
                hint="register it, with: streams schemas register MODULE:APP",
            )
        if self._level is not None:
            differences = self.differences(subject, schema, self._level)
            if differences:
                raise self._refused(subject, self._level, differences, "")
        try:
            return registry.register(subject, schema.source, references)
        except SchemaRefused as error:
            level = registry.level(subject)
            found_differences = self.differences(subject, schema, level)
            raise self._refused(subject, level, found_differences, error.message) from None

    def _references(self, schema: WrittenSchema) -> list[Reference]:
        """References to the named types that a schema uses, registered under their own names."""
        found = []
        for name, used in schema.uses.items():
            registered = self._registered(name, used)
            found.append(Reference(name, name, registered.version or 1))
        return found

    def differences(self, subject: str, schema: WrittenSchema, level: CompatibilityLevel) -> list[str]:
        """Why a schema is not compatible with the versions of a subject, each with its field."""
        if level == "NONE":
            return []
        versions = self.registry.versions(subject)
        if not level.endswith("_TRANSITIVE"):
            versions = versions[-1:]
        found: dict[str, None] = {}
        new = schema.complete
        for version in reversed(versions):
            old = self.complete(self.registry.version(subject, version))
            for difference in incompatibilities(old, new, level):
                found.setdefault(f"{difference} (version {version})")
        return list(found)

    def refusal(self, subject: str, schema: WrittenSchema) -> list[str]:
        """Why a schema could not be registered now, each reason with its field; nothing is registered."""
        registry = self.registry
        if not registry.versions(subject):
            return []
        if self._level is not None:
            found = self.differences(subject, schema, self._level)
            if found:
                return found
        references = [
            Reference(name, name, version)
            for name, used in schema.uses.items()
            if (version := self._known_version(name, used)) is not None
        ]
        if len(references) < len(schema.uses):
            # A type that it uses has a new version, which only a registration would give a number.
            return self.differences(subject, schema, registry.level(subject))
        if registry.find(subject, schema.source, references) or registry.accepts(
            subject, schema.source, references
        ):
            return []
        level = registry.level(subject)
        return self.differences(subject, schema, level) or [f"the registry refuses it ({level})"]

    def _known_version(self, subject: str, schema: WrittenSchema) -> int | None:
        references = [
            Reference(name, name, version)
            for name, used in schema.uses.items()
            if (version := self._known_version(name, used)) is not None
        ]
        found = self.registry.find(subject, schema.source, references)
        return None if found is None else found.version

    def _refused(
        self, subject: str, level: CompatibilityLevel, differences: list[str], message: str
    ) -> SchemaRefused:
        lines = "".join(f"\n  {line}" for line in differences)
        said = f"\n  {message}" if message else ""
        return SchemaRefused(
            f"the new schema for subject {subject!r} is not compatible ({level}) with the registered ones:"
            f"{lines}{said}",
            hint=_way_out(level),
        )


def _way_out(level: CompatibilityLevel) -> str:
    backward = "give new fields a default, and keep the types of the others"
    forward = "remove only fields that have a default, and keep the types of the others"
    advice = {"BACKWARD": backward, "FORWARD": forward}.get(
        level.removesuffix("_TRANSITIVE"), f"{backward}; {forward}"
    )
    return f"{advice}; or write to another topic; or lower the subject's compatibility level in the registry"
