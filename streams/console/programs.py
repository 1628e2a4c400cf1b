"""What the console's programs know of topics: their serdes, connected to their registries."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from streams.registry_topics import connect_registry
from streams.topology.topic_format import TopicFormat, topic_format

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streams.app import App
    from streams.console.app_snapshot import AppSnapshot
    from streams.topology.graph import Topology


class Programs:
    """Topologies of programs, each connected once. Used from any thread, but not from a request's own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._topologies: dict[str, Topology] = {}

    def topology(self, program: App) -> Topology:
        """A program's topology. Raises ``StreamsError`` if its registry does not answer."""
        with self._lock:
            found = self._topologies.get(program.name)
            if found is None:
                found = program.topology
                if program.settings.schema_registry_url is not None:
                    found = connect_registry(found, program.settings).topology
                self._topologies[program.name] = found
            return found

    def topic_form(self, programs: Iterable[App], topic: str) -> tuple[str, TopicFormat]:
        """The first app that knows the records of a topic, and their form; else no name and no form.

        Raises as ``topology``.
        """
        for program in programs:
            # Decided on the program as it is: a registry need not answer for topics of other apps.
            if topic_format(program.topology, program.name, topic) != TopicFormat():
                return program.name, topic_format(self.topology(program), program.name, topic)
        return "", TopicFormat()


def programs_of(apps: Iterable[AppSnapshot]) -> list[App]:
    """The programs of those apps that have one here."""
    return [app.program for app in apps if app.program is not None]
