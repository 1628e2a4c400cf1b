"""The interface of schema registries: schemas by id, and the versions of subjects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.serde.schemas.subject_options import CompatibilityLevel

Part: TypeAlias = Literal["key", "value"]
"""Which part of a topic's records has a schema."""


class Reference(NamedTuple):
    """A named type that a schema uses and another subject defines."""

    name: str
    subject: str
    version: int


class RegisteredSchema(NamedTuple):
    """A schema as registered. ``source`` is its JSON, which may name types of ``references``."""

    identifier: int
    source: Any
    references: tuple[Reference, ...] = ()
    version: int | None = None
    """Its version in the subject for which it was requested, ``None`` if it was requested by its id."""


class SchemaRegistry(Protocol):
    """A schema registry with the interface of Confluent's.

    All methods raise ``RegistryUnavailable`` where the request may be repeated, and ``SchemaRegistryError``
    where the registry rejects it.
    """

    def schema(self, identifier: int) -> RegisteredSchema:
        """The schema with that id. Raises ``LookupError`` if there is none, or none in Avro."""

    def version(self, subject: str, version: int) -> RegisteredSchema:
        """One version of a subject. Raises ``LookupError`` if there is none."""

    def versions(self, subject: str) -> list[int]:
        """The versions of a subject, oldest first; empty if there is no such subject."""

    def find(
        self, subject: str, source: Any, references: Sequence[Reference] = ()
    ) -> RegisteredSchema | None:
        """The version of a subject that is this schema, ``None`` if there is none."""

    def register(self, subject: str, source: Any, references: Sequence[Reference] = ()) -> RegisteredSchema:
        """Register a schema, unless it is registered. Raises ``SchemaRefused`` if it is incompatible."""

    def accepts(self, subject: str, source: Any, references: Sequence[Reference] = ()) -> bool:
        """Whether the registry would register a schema as the next version of an existing subject."""

    def level(self, subject: str) -> CompatibilityLevel:
        """The compatibility level of a subject."""

    def close(self) -> None:
        """Release its connections."""
