"""Checks the systems of connectors before the worker joins the group, and waits until sources answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from streams.errors import ConnectorUnavailable, SinkUnavailable
from streams.events import Event, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.connectors.sink import SinkContext
    from streams.topology.graph import Topology

CONNECT_SECONDS = 1.0
"""Wait between attempts to reach another system."""


class ConnectorCheck:
    """The check of one worker. ``pause`` waits for at most the given seconds.

    ``contexts`` are those of the sinks, by the names of their nodes. ``unreachable`` is told of a sink that
    does not answer, which holds only the partitions that are read for it.
    """

    def __init__(
        self,
        topology: Topology,
        application: str,
        contexts: Mapping[str, SinkContext],
        unreachable: Callable[[str, SinkUnavailable], None],
        pause: Callable[[float], object],
    ) -> None:
        self._unreachable = unreachable
        self._pause = pause
        self._log = get_logger()
        self._checks: dict[str, Callable[[], None]] = {
            node.name: partial(node.connector.check, contexts[node.name]) for node in topology.sink_connectors
        }
        for source in topology.source_topics.values():
            assert source.connector is not None
            self._checks[source.name] = partial(source.connector.check, application, source.store)
        self.problems: dict[str, str] = {}
        """The system that is waited for, and why; from any thread."""

    def run(self, stopped: Callable[[], bool]) -> None:
        """Check all connectors. Raises ``ConnectorError`` for a system that does not fit the program."""
        for name, check in self._checks.items():
            self._until_reached(name, check, stopped)

    def _until_reached(self, name: str, check: Callable[[], None], stopped: Callable[[], bool]) -> None:
        while not stopped():
            try:
                check()
            except SinkUnavailable as error:
                self._unreachable(name, error)
                break
            except ConnectorUnavailable as error:
                text = str(error).partition("\n")[0]
                if text != self.problems.get(name):
                    self.problems = {name: text}
                    self._log.warning(
                        Event.SOURCE_UNAVAILABLE, name=name, error=text, seconds=CONNECT_SECONDS
                    )
                self._pause(CONNECT_SECONDS)
            else:
                break
        self.problems = {}
