"""Topology: the graph of an app, with what flows through it, what each step takes, and what holds it back."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from streams.console.page import Page
from streams.console.topology_drawing import Drawing, draw
from streams.console.topology_graph import (
    GraphDescription,
    causes,
    edge_rates,
    read_graph,
    step_figures,
    workers_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console

ZOOMS: Final = {"fit": "fit", "75": "75 %", "100": "100 %", "150": "150 %"}
"""Sizes of the drawing, in percent of its own; ``fit`` is the page's width."""

SHOWN_WORKERS: Final = 12

HOT: Final = 0.7
WARM: Final = 0.3
"""Shares of the workers' time from which a step is marked."""


class _Drawn(NamedTuple):
    topology: Mapping[str, Any]
    graph: GraphDescription
    drawing: Drawing


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""
    drawn: dict[str, _Drawn] = {}

    def drawing_of(app: AppSnapshot) -> _Drawn | None:
        """The drawing, which is made again only if the app's topology is another one."""
        known = drawn.get(app.name)
        if app.topology is None:
            return None
        if known is None or known.topology is not app.topology:
            graph = read_graph(app.topology)
            if graph is None:
                return None
            known = drawn[app.name] = _Drawn(app.topology, graph, draw(graph))
        return known

    def topology(request: Request) -> Response:
        app = console.app(request)
        found = drawing_of(app)
        zoom = request.query_params.get("zoom", "fit")
        zoom = zoom if zoom in ZOOMS else "fit"
        context: dict[str, Any] = {"found": None}
        if found is not None:
            context = _context(app, found, request.query_params.get("step"))
        scale = 1.0 if zoom == "fit" else int(zoom) / 100
        return console.render(
            request,
            "topology.html",
            page="topology",
            title="Topology",
            app=app,
            zoom=zoom,
            zooms=ZOOMS,
            scale=scale,
            **context,
        )

    return [console.get("/apps/{app}/topology", topology)]


def _context(app: AppSnapshot, found: _Drawn, selected: str | None) -> dict[str, Any]:
    graph = found.graph
    figures = step_figures(app, graph)
    between = edge_rates(graph, figures)
    hot = causes(app)
    nodes = {node.name: node for _, node in graph.nodes}
    chosen = nodes.get(selected) if selected is not None else None
    tasks = Counter(task.task.partition("_")[0] for worker in app.report.workers for task in worker.tasks)
    return {
        "found": found,
        "drawing": found.drawing,
        "figures": figures,
        "nodes": graph.nodes,
        "hot": hot,
        "heat": {name: _heat(item.busiest) for name, item in figures.items()},
        "tasks": tasks,
        "hot_topics": [_hot_topic(topic.topics, hot) for topic in found.drawing.topics],
        "edges": [
            (
                edge,
                between.get((edge.source, edge.target))
                if edge.source and edge.target
                else figures[edge.source or edge.target].rate
                if edge.source or edge.target
                else None,
            )
            for edge in found.drawing.edges
        ],
        "width_of": _width,
        "chosen": chosen,
        "chosen_part": next((number for number, node in graph.nodes if node is chosen), None),
        "children": [node.name for _, node in graph.nodes if selected in node.parents],
        "by_worker": workers_of(app, chosen.name) if chosen is not None else [],
        "shown_workers": SHOWN_WORKERS,
        "measured": any(item.share is not None for item in figures.values()),
        "connectors": {
            name: problem for worker in app.report.workers for name, problem in worker.problems.items()
        },
    }


def _heat(share: float | None) -> str:
    if share is None or share < WARM:
        return ""
    return "warm" if share < HOT else "heated"


def _hot_topic(topics: Sequence[str], hot: Mapping[str, str]) -> str:
    """What holds one of these topics back; empty if nothing does. Patterns are between slashes."""
    for topic in topics:
        if topic in hot:
            return hot[topic]
        if len(topic) > 2 and topic[0] == topic[-1] == "/":
            pattern = topic[1:-1]
            try:
                found = next((name for name in hot if re.fullmatch(pattern, name)), None)
            except re.error:
                continue
            if found is not None:
                return hot[found]
    return ""


def _width(rate: float | None) -> str:
    """The class of a line that carries so many records each second: one step for each power of ten."""
    if rate is None:
        return "flow-unknown"
    return f"flow-{0 if rate < 0.05 else max(1, min(5, 1 + math.floor(math.log10(max(1.0, rate)))))}"


TOPOLOGY: Final = Page("topology", "Topology", of_app=True, routes=routes)
