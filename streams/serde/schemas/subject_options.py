"""How the subjects of a schema registry are named, and which versions they accept."""

from __future__ import annotations

from typing import Literal, TypeAlias

CompatibilityLevel: TypeAlias = Literal[
    "NONE",
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FORWARD",
    "FORWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
]
"""Which versions of a subject a new one must be compatible with, and in which direction."""

SubjectStrategy: TypeAlias = Literal["topic", "record", "topic-record"]
"""How the subject of a topic's schema is named."""
