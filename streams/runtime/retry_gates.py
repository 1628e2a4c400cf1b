"""Gates between the steps of a task: closed beside the path of records that are retried.

Gates exist only where a step has several children, and before steps that may be given several rows made of
one record. They cost a call a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.topology.graph import SourceNode

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.operators import Forward
    from streams.records import Batch
    from streams.runtime.retried import Retried
    from streams.runtime.retry_path import RetryPath
    from streams.topology.graph import Node, Subtopology


class RetryGates:
    """The gates of one task. All are open until ``begin``, and again after ``end``.

    ``withheld`` counts the records that a gate keeps from a step, and negative ones that it lets pass later.
    """

    def __init__(self, subtopology: Subtopology, withheld: Callable[[str, int], None]) -> None:
        self._withheld = withheld
        self._path: RetryPath | None = None
        self._held: list[tuple[str, Forward, Batch[Any, Any]]] = []
        self._multiplied = multiplied_steps(subtopology)

    def bound(self, parent: str, children: dict[str, Forward]) -> dict[str, Forward]:
        """The functions by which a node forwards to its children, with gates where these are needed."""
        gated = {
            name: self._entrance(name, forward) if name in self._multiplied else forward
            for name, forward in children.items()
        }
        if len(gated) > 1:
            gated = {name: self._edge(parent, name, forward) for name, forward in gated.items()}
        return gated

    def begin(self, path: RetryPath) -> None:
        """Forward along that path only. Rows for its step are held where there may be several of a record."""
        self._path = path

    def release(self, records: Retried) -> None:
        """Forward to the step the row of each record that has failed; the others were processed before."""
        held, self._held = self._held, []
        places: list[list[tuple[int, int]]] = [[] for _ in range(len(records))]
        for number, (_, _, batch) in enumerate(held):
            for row, source in enumerate(batch.rows):
                places[source].append((number, row))
        chosen: dict[int, list[int]] = {}
        for record, (found, ordered) in enumerate(zip(places, records.ordered, strict=True)):
            request = ordered.request
            if len(found) == request.rows:
                number, row = found[request.row]
                chosen.setdefault(number, []).append(row)
            elif found:
                records.refuse(
                    record,
                    f"{len(found)} rows are made of the record for step {request.step!r}, and the dead "
                    f"letter is row {request.row + 1} of {request.rows}",
                )
        for number, (step, forward, batch) in enumerate(held):
            if number in chosen:
                released = batch.select(sorted(chosen[number]))
                self._withheld(step, -len(released))
                forward(released)

    def end(self) -> None:
        """Open all gates."""
        self._path = None
        self._held = []

    def _edge(self, parent: str, child: str, forward: Forward) -> Forward:
        def pass_on(batch: Batch[Any, Any]) -> None:
            path = self._path
            if path is None or path.is_open(parent, child):
                forward(batch)
            else:
                self._withheld(child, len(batch))

        return pass_on

    def _entrance(self, step: str, forward: Forward) -> Forward:
        def pass_on(batch: Batch[Any, Any]) -> None:
            path = self._path
            if path is None or path.step != step:
                forward(batch)
            else:
                self._withheld(step, len(batch))
                self._held.append((step, forward, batch))

        return pass_on


def multiplied_steps(subtopology: Subtopology) -> frozenset[str]:
    """The steps that may be given several rows made of one record."""
    found: set[str] = set()
    for node in subtopology.nodes:
        parents = [subtopology.node(name) for name in node.parents]
        if len(parents) > 1 or any(parent.name in found or _multiplies(parent) for parent in parents):
            found.add(node.name)
    return frozenset(found)


def _multiplies(node: Node) -> bool:
    return not isinstance(node, SourceNode) and not node.operator.one_to_one
