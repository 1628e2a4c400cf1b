"""Where the nodes, topics and edges of an app's graph are drawn. It depends on the graph only: made once."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.console.layered import Size, Spot, layered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.console.layered import Layout
    from streams.console.topology_graph import (
        GlobalTableDescription,
        GraphDescription,
        NodeDescription,
        SubtopologyDescription,
    )

NODE: Final = Size(204.0, 66.0)
STORE_HEIGHT: Final = 20.0
TOPIC: Final = Size(176.0, 34.0)
PADDING: Final = 18.0
TITLE: Final = 24.0
MARGIN: Final = 12.0
LEAST_WIDTH: Final = 1_300.0
RATIO: Final = 1.5
"""Parts of the graph without a connection are beside each other up to this width, or, if there are many, so
that the drawing is about so many times wider than high."""

MOST_TOPICS: Final = 6
"""Of a source that reads more, the topics are drawn as one."""

Point = tuple[float, float]


class DrawnNode(NamedTuple):
    """A node: its upper left corner and its height."""

    node: NodeDescription
    x: float
    y: float
    height: float
    label: str
    detail: str
    stores: Sequence[tuple[str, float]]
    """The labels of its stores, and how far below its upper edge they are."""


class DrawnTopic(NamedTuple):
    """A topic, or several of a source: its upper left corner."""

    label: str
    topics: Sequence[str]
    x: float
    y: float


class DrawnBox(NamedTuple):
    """The box around a subtopology, or a global table."""

    title: str
    number: int | None
    x: float
    y: float
    width: float
    height: float


class DrawnEdge(NamedTuple):
    """A line, and where its label is. ``source`` or ``target`` is empty where that is a topic.

    One without both is of a global table. One of ``store`` is no flow: the target uses a store of the source.
    """

    source: str
    target: str
    path: str
    x: float
    y: float
    store: bool = False


class Drawing(NamedTuple):
    """Everything that is drawn."""

    width: float
    height: float
    boxes: Sequence[DrawnBox]
    nodes: Sequence[DrawnNode]
    topics: Sequence[DrawnTopic]
    edges: Sequence[DrawnEdge]
    table_stores: Sequence[tuple[str, float, float]]
    """Stores of global tables, with their upper left corners."""


class _Part(NamedTuple):
    """A subtopology, laid out by itself."""

    description: SubtopologyDescription
    layout: Layout
    size: Size

    def place(self, name: str) -> Spot:
        """A node's place within the box."""
        place = self.layout.places[name]
        return Spot(place.x + PADDING, place.y + PADDING + TITLE)


def draw(graph: GraphDescription) -> Drawing:
    """Draw a graph: each subtopology in a box, topics between the boxes."""
    parts = {f"part {part.number}": _part(part) for part in graph.subtopologies}
    tables = {f"table {table.name}": table for table in graph.global_tables}
    sizes: dict[str, Size] = {}
    topics: dict[str, Sequence[str]] = {}
    links: list[tuple[str, str, str]] = []
    """From, to, and the node within the part."""
    for name, part in parts.items():
        sizes[name] = part.size
        for node in part.description.nodes:
            for topic, members in _read_topics(node):
                topics[topic] = members
                links.append((topic, name, node.name))
            if node.role == "sink" and not node.connector:
                topic = f"topic {node.topic}" if node.topic is not None else f"chosen by {node.name}"
                topics[topic] = (node.topic,) if node.topic is not None else ()
                links.append((name, topic, node.name))
    for name, table in tables.items():
        sizes[name] = Size(NODE.width, 44.0 + TITLE)
        topics[f"topic {table.topic}"] = (table.topic,)
        links.append((f"topic {table.topic}", name, ""))
    sizes |= dict.fromkeys(topics, TOPIC)
    return _assembled(parts, tables, sizes, topics, links)


def _read_topics(node: NodeDescription) -> list[tuple[str, tuple[str, ...]]]:
    read = node.read_topics
    if len(read) > MOST_TOPICS:
        return [(f"{len(read)} topics of {node.name}", read)]
    return [(f"topic {topic}", (topic,)) for topic in read]


def _part(part: SubtopologyDescription) -> _Part:
    names = {node.name for node in part.nodes}
    layout = layered(
        {node.name: Size(NODE.width, _height(node)) for node in part.nodes},
        [
            *((parent, node.name) for node in part.nodes for parent in node.parents if parent in names),
            *_store_edges(part),
        ],
        last=[node.name for node in part.nodes if node.role == "sink"],
    )
    return _Part(part, layout, Size(layout.width + 2 * PADDING, layout.height + 2 * PADDING + TITLE))


def _store_edges(part: SubtopologyDescription) -> list[tuple[str, str]]:
    """From the step that owns a store, which is described first, to the others that use it."""
    owners: dict[str, str] = {}
    found = []
    for node in part.nodes:
        for store in node.stores:
            owner = owners.setdefault(store, node.name)
            if owner != node.name and owner not in node.parents:
                found.append((owner, node.name))
    return found


def _height(node: NodeDescription) -> float:
    return NODE.height + STORE_HEIGHT * len(node.stores)


def _assembled(
    parts: Mapping[str, _Part],
    tables: Mapping[str, GlobalTableDescription],
    sizes: Mapping[str, Size],
    topics: Mapping[str, Sequence[str]],
    links: Sequence[tuple[str, str, str]],
) -> Drawing:
    ports: dict[tuple[str, str], Point] = {}
    for above, below, node in links:
        part = parts.get(above) or parts.get(below)
        if part is not None and (above, below) not in ports:
            offset = part.place(node).x - part.size.width / 2
            ports[above, below] = (offset, 0.0) if above in parts else (0.0, offset)
    corners: dict[str, Point] = {}
    routes: dict[tuple[str, str], list[Point]] = {}
    left, top, shelf, width = MARGIN, MARGIN, 0.0, 0.0
    layouts = [
        layered(
            {name: sizes[name] for name in component},
            [(above, below) for above, below, _ in links if above in component],
            late_roots=True,
            gap=34.0,
            layer_gap=52.0,
            ports=ports,
        )
        for component in _components(sizes, [(above, below) for above, below, _ in links])
    ]
    area = sum(layout.width * layout.height for layout in layouts)
    widest = max(LEAST_WIDTH, math.sqrt(area * RATIO))
    for layout in layouts:
        if left > MARGIN and left + layout.width > widest:
            left, top, shelf = MARGIN, top + shelf + 2 * MARGIN, 0.0
        for name, place in layout.places.items():
            corners[name] = left + place.x - sizes[name].width / 2, top + place.y
        for edge, points in layout.routes.items():
            routes[edge] = [(x + left, y + top) for x, y in points]
        width = max(width, left + layout.width)
        shelf = max(shelf, layout.height)
        left += layout.width + 3 * MARGIN
    return Drawing(
        width + MARGIN,
        top + shelf + MARGIN,
        [
            DrawnBox(
                f"Subtopology {part.description.number}", part.description.number, *corners[name], *part.size
            )
            for name, part in parts.items()
        ]
        + [
            DrawnBox(f"Global table {table.name}", None, *corners[name], *sizes[name])
            for name, table in tables.items()
        ],
        [node for name, part in parts.items() for node in _nodes(part, corners[name])],
        [DrawnTopic(_topic_label(topics[name]), topics[name], *corners[name]) for name in topics],
        [
            *(edge for name, part in parts.items() for edge in _inner_edges(part, corners[name])),
            *_outer_edges(parts, corners, routes, links),
        ],
        [
            (_cut(table.name, 24), corners[name][0] + 12, corners[name][1] + TITLE + 6)
            for name, table in tables.items()
        ],
    )


def _nodes(part: _Part, corner: Point) -> list[DrawnNode]:
    found = []
    for node in part.description.nodes:
        place = part.place(node.name)
        found.append(
            DrawnNode(
                node,
                round(corner[0] + place.x - NODE.width / 2, 1),
                round(corner[1] + place.y, 1),
                _height(node),
                _cut(node.name, 26),
                _cut(node.what, 32),
                [
                    (_cut(store, 26), NODE.height + STORE_HEIGHT * number)
                    for number, store in enumerate(node.stores)
                ],
            )
        )
    return found


def _inner_edges(part: _Part, corner: Point) -> list[DrawnEdge]:
    x, y = corner[0] + PADDING, corner[1] + PADDING + TITLE
    stores = set(_store_edges(part.description))
    return [
        _edge(source, target, [(x + point[0], y + point[1]) for point in points])._replace(
            store=(source, target) in stores
        )
        for (source, target), points in part.layout.routes.items()
    ]


def _outer_edges(
    parts: Mapping[str, _Part],
    corners: Mapping[str, Point],
    routes: Mapping[tuple[str, str], Sequence[Point]],
    links: Sequence[tuple[str, str, str]],
) -> list[DrawnEdge]:
    """Between topics and the nodes within the boxes."""
    found = []
    for above, below, name in links:
        points = list(routes[above, below])
        part, box = (parts.get(above), above) if above in parts else (parts.get(below), below)
        if part is None:
            found.append(_edge("", "", points))
            continue
        place = part.place(name)
        x, y = corners[box][0] + place.x, corners[box][1] + place.y
        if above in parts:
            node = next(node for node in part.description.nodes if node.name == name)
            points[0] = (x, y + _height(node))
            found.append(_edge(name, "", points))
        else:
            points[-1] = (x, y)
            # The label is above the box, whose title it would cover.
            found.append(
                _edge("", name, points)._replace(x=round(points[0][0], 1), y=round(points[0][1] + 22, 1))
            )
    return found


def _edge(source: str, target: str, points: Sequence[Point]) -> DrawnEdge:
    """A curve from each even point to the next one, and a straight line from there on."""
    text = [f"M{points[0][0]:.1f},{points[0][1]:.1f}"]
    for number in range(1, len(points)):
        (x0, y0), (x1, y1) = points[number - 1], points[number]
        if number % 2:
            middle = (y0 + y1) / 2
            text.append(f"C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}")
        else:
            text.append(f"L{x1:.1f},{y1:.1f}")
    (x0, y0), (x1, y1) = points[-2], points[-1]
    return DrawnEdge(source, target, " ".join(text), round((x0 + x1) / 2, 1), round((y0 + y1) / 2 + 4, 1))


def _components(sizes: Mapping[str, Size], edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The connected parts, each in the order of ``sizes``."""
    near: defaultdict[str, list[str]] = defaultdict(list)
    for above, below in edges:
        near[above].append(below)
        near[below].append(above)
    seen: set[str] = set()
    found = []
    for root in sizes:
        if root in seen:
            continue
        members, waiting = {root}, [root]
        while waiting:
            for other in near[waiting.pop()]:
                if other not in members:
                    members.add(other)
                    waiting.append(other)
        seen |= members
        found.append([name for name in sizes if name in members])
    return found


def _topic_label(topics: Sequence[str]) -> str:
    if not topics:
        return "chosen by a function"
    return _cut(topics[0] if len(topics) == 1 else f"{len(topics)} topics", 23)


def _cut(text: str, longest: int) -> str:
    """Its beginning and its end: names often differ in one of them."""
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]}…{text[-(longest - longest * 2 // 3 - 1) :]}"
