"""Stream time in a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.eventtime.clock import StreamClock
from streams.topology.graph import Node, Step, Subtopology

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.operators import Forward
    from streams.records import Batch
    from streams.state.changelog import Checkpoint


class Clocks:
    """The clocks of a task: steps that assign event times for the same stateful steps share one."""

    def __init__(self, subtopology: Subtopology, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._subtopology = subtopology
        self._checkpoints = checkpoints
        self.by_maker: dict[str, StreamClock] = {}
        self.keepers: dict[str, StreamClock] = {}
        """The clock whose time each store's changelog stores."""
        groups: list[set[str]] = []
        owners = {
            store.name: node for node in subtopology.nodes if isinstance(node, Step) for store in node.owns
        }
        windowed = {
            store.name for store in subtopology.stores if store.retention is not None or store.ttl is not None
        }
        for node in subtopology.nodes:
            if isinstance(node, Step) and (node.owns or node.uses or node.operator.stamps):
                # Steps that share a store must agree on what is late, and on what has expired.
                sharing = [owners[name] for name in node.uses if name in windowed]
                groups.append({maker for step in (node, *sharing) for maker in self._makers(step)})
        self._groups = _joined(groups)

    def of(self, step: Step) -> StreamClock:
        """The step's clock: stream time of the records that reach it."""
        makers = self._makers(step)
        group = next(group for group in self._groups if makers[0] in group)
        clock = self.by_maker.get(makers[0])
        if clock is None:
            clock = StreamClock()
            self.by_maker.update(dict.fromkeys(group, clock))
        kept = [store for store in step.owns if store.source_topic is None]
        # Each windowed store's changelog stores the time, to restore which windows have closed.
        for store in [store for store in kept if store.retention is not None] or kept[:1]:
            if store.name not in self.keepers:
                self.keepers[store.name] = clock
                checkpoint = self._checkpoints[store.name]
                clock.restore(checkpoint.time, checkpoint.observed)
        return clock

    def end_slice(self) -> None:
        """The open slice is complete."""
        for clock in self._all():
            clock.end_slice()

    def drop_slice(self) -> None:
        """Undo the changes of the open slice."""
        for clock in self._all():
            clock.drop_slice()

    def committed(self) -> None:
        """The changes of complete slices are committed."""
        for clock in self._all():
            clock.committed()

    def drop(self) -> None:
        """Undo the changes since the last commit."""
        for clock in self._all():
            clock.drop()

    def _all(self) -> list[StreamClock]:
        return list({id(clock): clock for clock in self.by_maker.values()}.values())

    def observed(self, name: str, forward: Forward) -> Forward:
        """Wrap ``forward`` to advance the step's clock by the records, if a step uses one."""
        clock = self.by_maker.get(name)
        if clock is None:
            return forward

        def run(batch: Batch[Any, Any]) -> None:
            before = clock.observe(batch)
            forward(batch)
            clock.resume(before)

        return run

    def _makers(self, step: Step) -> list[str]:
        nodes = self._subtopology.ancestors(step.name, stop=_stamps)
        return [node.name for node in nodes if _stamps(node)]


def _joined(groups: list[set[str]]) -> list[set[str]]:
    """Merge the groups that overlap."""
    joined: list[set[str]] = []
    for group in groups:
        overlapping = [other for other in joined if other & group]
        joined = [other for other in joined if not other & group]
        joined.append(group.union(*overlapping))
    return joined


def _stamps(node: Node) -> bool:
    return node.operator.stamps
