"""The source connectors of a worker: one feed for each task that has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.runtime.source_feed import SourceFeed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from streams.connectors.source import SourceHealth
    from streams.runtime.task import Task, TaskId
    from streams.topology.graph import SourceNode, Topology


class Sources:
    """The feeds of a worker's tasks. ``clock`` returns seconds."""

    def __init__(self, topology: Topology, application: str, clock: Callable[[], float]) -> None:
        self._application = application
        self._clock = clock
        self._nodes: dict[int, SourceNode] = {
            part.number: node
            for part in topology.subtopologies
            if (node := part.source_connector) is not None
        }
        self._feeds: dict[TaskId, tuple[Task, SourceFeed]] = {}

    def __bool__(self) -> bool:
        return bool(self._nodes)

    @property
    def backlog(self) -> bool:
        """Whether any feed has batches to process."""
        return any(feed.backlog for _, feed in self._feeds.values())

    @property
    def health(self) -> dict[str, SourceHealth]:
        """What the sources reported last, by the tasks' names; from any thread."""
        return {
            f"{self._nodes[identifier.subtopology].name}-{identifier.partition}": feed.health
            for identifier, (_, feed) in list(self._feeds.items())
        }

    @property
    def problems(self) -> dict[str, str]:
        """The sources that cannot be read, or report a problem, and why; from any thread."""
        found = {}
        for identifier, (_, feed) in list(self._feeds.items()):
            problem = feed.problem or feed.health.problem
            if problem:
                found[f"{self._nodes[identifier.subtopology].name}-{identifier.partition}"] = problem
        return found

    def feeds(self, tasks: Mapping[TaskId, Task], alive: Collection[TaskId]) -> list[tuple[Task, SourceFeed]]:
        """The running tasks with a source and their feeds, opened where there is none.

        ``alive`` are the tasks that are not closed: feeds of others end.
        """
        for identifier in [identifier for identifier in self._feeds if identifier not in alive]:
            self._feeds.pop(identifier)[1].close()
        found = []
        for identifier, task in tasks.items():
            node = self._nodes.get(identifier.subtopology)
            # Only offsets fence: nothing is read before the task has a position in its own topic. (I5)
            if node is None or not task.positions:
                continue
            known = self._feeds.get(identifier)
            if known is None or known[0] is not task:
                known = self._feeds[identifier] = task, self._feed(node, task, known)
            found.append(known)
        return found

    def _feed(self, node: SourceNode, task: Task, known: tuple[Task, SourceFeed] | None) -> SourceFeed:
        position, state = task.source_position
        if known is not None:
            # The task was restored after a commit of unknown outcome: its position says what was committed.
            if known[1].continue_at(position):
                return known[1]
            known[1].close()
        return SourceFeed(node, self._application, task.id.partition, position, state, clock=self._clock)

    def committed(self) -> None:
        """Everything processed is committed."""
        for _, feed in self._feeds.values():
            feed.committed()

    def rewind(self) -> None:
        """Everything processed since the last commit is discarded."""
        for _, feed in self._feeds.values():
            feed.rewind()

    def close(self) -> None:
        """End all feeds."""
        for _, feed in self._feeds.values():
            feed.close()
        self._feeds.clear()
