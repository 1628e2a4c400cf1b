"""What apps do with topics, and which topics are theirs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from streams.topology.graph import matches
from streams.topology.topic_pattern import INTERNAL_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from streams.console.app_snapshot import AppSnapshot

OWN_SUFFIXES: Final = ("-retries", "-replicas", "-alerts", "-alert-figures")
"""Ends of names of topics that an app keeps for itself, beside those of stores and between its parts."""


class Use(NamedTuple):
    """What an app does with a topic."""

    app: str
    verb: str
    """``reads``, ``writes`` or ``writes dead letters to``."""


def uses_of(apps: Iterable[AppSnapshot], topics: Collection[str]) -> dict[str, list[Use]]:
    """What the apps do with these topics, as far as their topology is known."""
    found: dict[str, list[Use]] = {}

    def note(topic: str, app: str, verb: str) -> None:
        if topic in topics and Use(app, verb) not in found.setdefault(topic, []):
            found[topic].append(Use(app, verb))

    for app in apps:
        for node in _nodes(app.topology):
            for topic in node.get("topics", ()):
                note(topic, app.name, "reads")
            if node.get("topic"):
                note(node["topic"], app.name, "writes")
        for table in (app.topology or {}).get("global_tables", ()):
            note(table["topic"], app.name, "reads")
        if app.program is not None:
            for pattern in app.program.topology.patterns:
                for topic in topics:
                    if matches(pattern, topic):
                        note(topic, app.name, "reads")
            note(app.program.dead_letter_topic, app.name, "writes dead letters to")
        else:
            note(f"{app.name}-dead-letters", app.name, "writes dead letters to")
    return found


def is_internal(topic: str, apps: Iterable[str]) -> bool:
    """Whether a topic is Kafka's, or one that an app or the console keeps for itself."""
    if topic.startswith("__") or topic == "streams-console-audit":
        return True
    return any(
        topic.startswith(f"{app}-") and topic.endswith((*INTERNAL_SUFFIXES, *OWN_SUFFIXES)) for app in apps
    )


def _nodes(topology: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    return (node for part in (topology or {}).get("subtopologies", ()) for node in part["nodes"])
